"""Auditing: what is planted, and that the bound on ε has the confidence that it claims."""

import math
import stat
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

from distill_core import checkpoint, data
from distill_core.config import InputError
from distill_core.data.images.dataset import make_dataset
from distill_core.losses import cross_entropy
from distill_core.models.network import image_network
from distill_core.privacy import accountants
from distill_core.training import dp_settings
from dpdfd.experiment import audit

DELTA = 1e-5
SETTINGS = {"num_canaries": 60, "num_classes": 10, "seed": 3, "absent": "replaced"}


def _examples(count=200, classes=10):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 4, 4, 1), np.uint8)
    return images, rng.integers(0, classes, count)


def _bound(in_scores, out_scores, **settings):
    return audit.epsilon_lower_bound(in_scores, out_scores, **{"delta": DELTA, **settings})


def _coins(rng, count):
    return rng.random(count) < 0.5


# Planting.


@pytest.mark.parametrize("seed", range(3))
def test_an_absent_canary_that_is_replaced_keeps_its_label_and_its_place(seed):
    images, labels = _examples()
    labels.flags.writeable = images.flags.writeable = False
    planted, again = (audit.plant(images, labels, **{**SETTINGS, "seed": seed}) for _ in range(2))
    for name, value in vars(planted).items():
        np.testing.assert_array_equal(value, getattr(again, name))
    assert len(planted.index) == 60 and (np.diff(planted.index) > 0).all()
    assert (planted.canary_labels != labels[planted.index]).all()
    np.testing.assert_array_equal(planted.images, images)
    np.testing.assert_array_equal(planted.canary_images, images[planted.index])
    expected = labels.copy()
    expected[planted.index[planted.included]] = planted.canary_labels[planted.included]
    np.testing.assert_array_equal(planted.labels, expected)
    assert 10 < planted.included.sum() < 50


def test_an_absent_canary_that_is_masked_stays_at_its_place_and_a_list_says_that_it_is_empty(
    tmp_path,
):
    images, labels = _examples()
    replaced = audit.plant(images, labels, **SETTINGS)
    masked = audit.plant(images, labels, **{**SETTINGS, "absent": "masked"})
    np.testing.assert_array_equal(masked.index, replaced.index)
    np.testing.assert_array_equal(masked.included, replaced.included)
    np.testing.assert_array_equal(masked.images, images)
    others = np.setdiff1d(np.arange(200), masked.index)
    np.testing.assert_array_equal(masked.labels[others], labels[others])
    np.testing.assert_array_equal(masked.labels[masked.index], masked.canary_labels)  # no coin
    dataset = make_dataset("x", (images, labels), (images, labels), classes=list("0123456789"))
    _, canaries = audit.write(tmp_path, dataset, masked)
    empty = np.load(audit.masked_file(canaries))
    np.testing.assert_array_equal(empty, masked.index[~masked.included])
    live = dp_settings.live_records(str(audit.masked_file(canaries)), 200)
    np.testing.assert_array_equal(np.flatnonzero(~live), empty)


def test_choice_labels_and_coins_are_uniform_and_independent():
    images, labels = _examples(100)
    chosen, shifts, coins, together = np.zeros(100), np.zeros(10), [], np.zeros((9, 2))
    for seed in range(300):
        planted = audit.plant(images, labels, **{**SETTINGS, "num_canaries": 20, "seed": seed})
        chosen[planted.index] += 1
        shift = (planted.canary_labels - labels[planted.index]) % 10
        np.add.at(shifts, shift, 1)
        np.add.at(together, (shift - 1, planted.included.astype(int)), 1)
        coins.append(planted.included)
    assert shifts[0] == 0
    assert scipy.stats.chisquare(shifts[1:]).pvalue > 1e-3
    assert scipy.stats.kstest(chosen, scipy.stats.binom(300, 0.2).cdf).statistic < 0.2
    assert scipy.stats.chi2_contingency(together).pvalue > 1e-3
    coins = np.array(coins)
    assert coins.mean() == pytest.approx(0.5, abs=3 * 0.5 / math.sqrt(coins.size))
    assert coins.sum(1).var() == pytest.approx(5, abs=1.3)  # a fixed number would have none


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_is_written_is_read_by_the_data_source(dtype, tmp_path):
    images, labels = _examples()
    images = images if dtype == np.uint8 else (images / 255).astype(dtype)
    names = ["one", "two", *"3456789", "ten"]
    dataset = make_dataset("x", (images, labels), (images[:7], labels[:7]), classes=names)
    planted = audit.plant(images, labels, **{**SETTINGS, "absent": "masked"})
    for _ in range(2):  # a second time over the first
        name, canaries = audit.write(tmp_path / "deep" / "er", dataset, planted)
    read = data.load_dataset(name)
    assert read.classes == tuple(names)
    whole = {"train": (planted.images, planted.labels), "test": (images, labels)}
    for split, (x, y) in whole.items():
        found = getattr(read, split)
        assert found.images.dtype == dtype
        np.testing.assert_array_equal(found.images, x[: len(found)])
        np.testing.assert_array_equal(found.labels, y[: len(found)])
    assert (len(read.train), len(read.test)) == (len(planted.labels), 7)
    back = audit.load_canaries(canaries)
    for field, value in vars(back).items():
        np.testing.assert_array_equal(value, getattr(planted, field))
        assert type(value) is type(getattr(planted, field))
    for path in (canaries, audit.masked_file(canaries), name.removeprefix("npz:")):
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(canaries).parent.stat().st_mode) == 0o700
    files = {f.relative_to(tmp_path / "deep/er").as_posix() for f in tmp_path.rglob("*.*")}
    assert files == {"planted.npz", "private/canaries.npz", "private/masked.npy"}


# Scores.


def test_a_score_is_the_log_odds_of_the_wrong_label():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (50, 7)), rng.integers(0, 7, 50)
    canaries = SimpleNamespace(canary_labels=labels)
    p = scipy.special.softmax(logits, 1)[np.arange(50), labels]
    found = audit.scores(logits, canaries)
    np.testing.assert_allclose(found, np.log(p) - np.log1p(-p), rtol=1e-9)
    assert found.dtype == np.float64
    high = np.zeros((50, 7), np.float32)
    high[np.arange(50), labels] = np.arange(50) * 100  # p rounds to 1: still in order
    assert (np.diff(audit.scores(high, canaries)) > 99).all()
    logits[3] = np.nan
    logits[4] = np.inf
    broken = audit.scores(logits, canaries)
    assert np.isnan(broken[3:5]).all()
    np.testing.assert_array_equal(np.delete(broken, [3, 4]), np.delete(found, [3, 4]))


# The bound.


def test_the_bound_is_the_papers_formula():
    """Against a p-value written out as the paper has it; only tenths are guessed rightly."""
    m, k = 1000, 100
    scores = np.arange(m)[::-1]  # highest first
    is_in = np.arange(m) % 2 == 0
    is_in[:k], is_in[-k:] = True, False
    is_in[[3, 70]] = False  # two wrong ones
    found = _bound(scores[is_in], scores[~is_in], delta=1e-4, significance=0.04, comparisons=2)

    def p_value(epsilon):
        guesses = scipy.stats.binom(2 * k, 1 / (1 + math.exp(-epsilon)))
        v = 2 * k - 2
        beta = guesses.sf(v - 1)
        tails = [sum(guesses.pmf(v - j) for j in range(1, i + 1)) / i for i in range(1, v + 1)]
        return beta + 2 * m * 1e-4 * max(tails)

    assert p_value(found) == pytest.approx(0.04 / 2 / 2, rel=1e-3)


def test_perfect_separation():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(20):
        coins = _coins(rng, 200)
        found.append(_bound(rng.random(coins.sum()) + 1, rng.random((~coins).sum())))
    assert min(found) > 3
    assert max(found) == pytest.approx(3.57, abs=0.01)


def _exceeded(mechanism, epsilon, *, repetitions, num, **settings):
    """How often the bound is above ε, beside the number of times allowed: 5%, and 3 s.e."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(repetitions):
        coins = _coins(rng, num)
        scores = mechanism(rng, coins)
        found.append(_bound(scores[coins], scores[~coins], **settings))
    allowed = repetitions * 0.05 + 3 * math.sqrt(repetitions * 0.05 * 0.95)
    return sum(value > epsilon for value in found), allowed, float(np.median(found))


@pytest.mark.parametrize("num", [40, 200, 1000])
def test_noise_is_no_evidence(num):
    above, allowed, _ = _exceeded(
        lambda rng, coins: rng.random(len(coins)), 0.0, repetitions=600, num=num
    )
    assert above <= allowed


def _randomized_response(rng, coins):
    told = np.where(rng.random(len(coins)) < 1 / (1 + math.exp(-2)), coins, ~coins)
    return told + 0.5 * rng.random(len(coins))


def _gaussian(rng, coins):
    """One coordinate a canary, noise of std 1, Δ = 2."""
    return np.where(coins, 1.0, -1.0) + rng.normal(size=len(coins))


@pytest.mark.parametrize("num", [200, 1000])
def test_randomized_response_is_not_exceeded(num):
    above, allowed, median = _exceeded(_randomized_response, 2.0, repetitions=200, num=num)
    assert above <= allowed
    assert median > (1.0 if num == 200 else 1.5)


def test_a_mechanism_that_fails_with_chance_delta_is_not_exceeded():
    """(0, δ)-DP: each coin is told with chance δ. Without the term of δ it would be exceeded."""

    def leak(rng, coins):
        told = rng.random(len(coins)) < 0.2
        return np.where(told, np.where(coins, 2.0, -1.0), rng.random(len(coins)))

    above, allowed, _ = _exceeded(leak, 0.0, repetitions=200, num=300, delta=0.2)
    assert above <= allowed
    assert _exceeded(leak, 0.0, repetitions=50, num=300)[0] > 25


def test_a_gaussian_mechanism_is_not_exceeded():
    epsilon = accountants.composed_epsilon([accountants.Noised(2.0)], DELTA)
    above, _, median = _exceeded(_gaussian, epsilon, repetitions=100, num=600)
    assert above == 0
    assert median > 2


@pytest.mark.filterwarnings("error")
def test_scores_that_say_nothing_bound_nothing():
    for num_in, num_out in [(0, 0), (0, 50), (50, 0), (1, 1), (1, 2), (3, 3)]:
        assert _bound(np.ones(num_in), np.zeros(num_out)) == 0.0
    assert _bound(np.zeros(500), np.zeros(500)) == 0.0
    assert _bound(np.full(500, np.nan), np.full(500, np.nan)) == 0.0
    rng = np.random.default_rng(0)
    coins = _coins(rng, 600)
    told = np.where(rng.random(600) < 0.95, coins, ~coins).astype(float)
    coarse, fine = (_bound(s[coins], s[~coins]) for s in (told, told + 0.5 * rng.random(600)))
    assert 0 < coarse < fine, "equal scores say nothing in whatever order they come"
    for odd in (np.nan, np.inf, -np.inf):
        scores = rng.normal(size=(2, 100)) + np.array([[50.0], [0.0]])
        scores[:, ::7] = odd
        assert 0 <= _bound(*scores) < 3.6


def test_more_comparisons_and_more_confidence_lower_it():
    scores = np.arange(100) + 1000, np.arange(100)
    bounds = [_bound(*scores, comparisons=c) for c in (1, 2, 10)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > bounds[-1]
    assert bounds[1] == pytest.approx(_bound(*scores, significance=0.025))
    assert _bound(*scores, delta=0.1) < bounds[0]


# From end to end.


def _memorize(dataset):
    """A classifier trained without privacy, until it knows its training set by heart."""
    kwargs = {"widths": (32,), "hidden": 256, "norm": "none"}
    network, tx = image_network(dataset, model="cnn", model_kwargs=kwargs), optax.adam(3e-3)

    def loss(params):
        logits = network.apply({"params": params}, dataset.train.images)
        return cross_entropy(logits, dataset.train.labels).mean()

    def step(_, state):
        updates, opt_state = tx.update(jax.grad(loss)(state[0]), state[1])
        return optax.apply_updates(state[0], updates), opt_state

    params, _ = network.init(jax.random.key(0))
    params, _ = jax.jit(lambda *state: jax.lax.fori_loop(0, 120, step, state))(
        params, tx.init(params)
    )
    return checkpoint.LoadedModel({"params": params}, network)


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """Classifiers without privacy: one whose training set has the canaries, one that has none."""
    digits = data.load_dataset("digits")
    few = digits.train.images[:400], digits.train.labels[:400]
    without = make_dataset(
        "few", few, (digits.test.images, digits.test.labels), classes=digits.classes
    )
    planted = audit.plant(*few, **{**SETTINGS, "num_canaries": 150})
    name, canaries = audit.write(tmp_path_factory.mktemp("control"), without, planted)
    models = {"with": _memorize(data.load_dataset(name)), "without": _memorize(without)}
    return models, canaries


def test_the_positive_control_comes_out_and_a_model_without_canaries_does_not(control):
    models, canaries = control
    found = {name: audit.audit(model, canaries, delta=DELTA) for name, model in models.items()}
    assert found["with"]["audit_epsilon_lower"] > 1
    assert found["without"]["audit_epsilon_lower"] < 1
    rest = {"num_canaries": 150, "audit_delta": DELTA}
    rest["audit_adjacency"] = "replace one, at a fixed index"
    for each in found.values():
        del each["audit_epsilon_lower"]
        assert each == rest


def test_logits_do_as_well_as_the_model(control):
    models, path = control
    model, canaries = models["with"], audit.load_canaries(path)
    logits = np.asarray(model.apply(model.variables, canaries.canary_images))
    both = audit.scores(model, canaries), audit.scores(logits, canaries)
    np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-4)


# Wrong input.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("num_canaries", value) for value in (0, 201, 1.5)),
        ("num_classes", 1), ("seed", -1), ("absent", "gone"), ("absent", None),
        *((name, value) for name in ("delta", "significance")
          for value in (0.0, 1.0, 2, math.nan, True, "0.1", None)),
        ("comparisons", 0), ("comparisons", 1.5),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line_that_names_them(field, value):
    with pytest.raises(InputError, match=f"^{field}: got [^\n]*$"):
        if field in SETTINGS:
            audit.plant(*_examples(), **{**SETTINGS, field: value})
        else:
            _bound(np.ones(9), np.zeros(9), **{field: value})


def test_planting_refuses_labels_that_do_not_fit():
    images, labels = _examples()
    for wrong in (labels[1:], labels + 1, labels - 1, labels / 2):
        with pytest.raises(InputError, match=r"^train_labels: got .*must be 200 integers in"):
            audit.plant(images, wrong, **SETTINGS)


def test_a_file_that_is_no_list_of_canaries_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("canaries")
    for name in ("other.npz", "array.npy", "text.npz", "missing.npz", "."):
        with pytest.raises(InputError, match="^canaries: got"):
            audit.audit(np.zeros((3, 2)), tmp_path / name, delta=DELTA)


@pytest.mark.parametrize("shape", [(4, 10), (3,), (3, 1), (3, 9), (3, 10, 1)])
def test_logits_of_other_canaries_are_refused(shape):
    canaries = SimpleNamespace(canary_labels=np.array([0, 5, 9]))
    with pytest.raises(InputError, match="^model: got"):
        audit.scores(np.zeros(shape), canaries)
