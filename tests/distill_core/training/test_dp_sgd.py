"""Differentially private training: its gradient, batches, noise, ledger, and what it refuses."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_privacy import clipping
from scipy import stats

import dpdfd
from distill_core import checkpoint, release, train
from distill_core.config import InputError
from distill_core.data.images import augment
from distill_core.losses import cross_entropy
from distill_core.models.network import Network
from distill_core.privacy import accountants, poisson
from distill_core.privacy.per_example import SLACK, noisy_sum
from distill_core.runtime import parallel
from distill_core.training import dp_sgd
from distill_core.training.gradients import PrivateGradient
from distill_core.training.step import per_example

N, B, DELTA = 240, 24, 1e-3
NETWORK = {"widths": (4,), "hidden": 8, "norm": "none"}
SPEC = Network("cnn", 3, {**NETWORK, "norm": "group"}, (8, 8, 1), (0.5,), (0.5,))
MODES = ("pmap", "shard_map")
KEY = jax.random.key(3)


class KilledError(Exception):
    """The process ended."""


@pytest.fixture(scope="module")
def path(tmp_path_factory, three_classes):
    return three_classes(tmp_path_factory.mktemp("data") / "data.npz", train=N)


@pytest.fixture(scope="module")
def fit(path):
    """`fit(workdir, dp={…}, …)` trains privately; a field of `dp` that is None is left out, and
    with `dp` None the run is not private."""

    def fit(workdir, dp=(), *, parallel=None, **changes):
        group = {"epsilon": 6.0, "delta": DELTA, "norm": 0.5, **dict(dp or {})}
        group = {name: value for name, value in group.items() if value is not None}
        settings = {
            "dataset": f"npz:{path}",
            "model": "cnn",
            "model_kwargs": NETWORK,
            "learning_rate": 0.2,
            "batch_size": B,
            "num_steps": 6,
            "log_every": 1,
            "save_every": 2,
            "dp": None if dp is None else group,
            **changes,
        }
        return train.train_and_evaluate(settings, workdir, parallel=parallel)

    return fit


@pytest.fixture(scope="module")
def finished(fit, tmp_path_factory):
    """(workdir, result) of a run that nothing interrupted; not to be touched."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, fit(workdir)


@pytest.fixture
def killed(fit, monkeypatch):
    """`killed(workdir, …)` trains until the process is killed before step 3."""

    def killed(workdir, *arguments, **changes):
        batch = dp_sgd.PrivateRun.batch

        def until(self, step, take):
            found = batch(self, step, take)
            if step == 3:
                raise KilledError
            return found

        with monkeypatch.context() as patch:
            patch.setattr(dp_sgd.PrivateRun, "batch", until)
            with pytest.raises(KilledError):
                fit(workdir, *arguments, **changes)
        assert checkpoint.find(workdir)[1]["step"] == 2

    return killed


def frozen_of(*, norm=0.3, noise_multiplier=0.0, batch_size=10.0, key=KEY):
    numbers = {"norm": norm, "noise_multiplier": noise_multiplier, "batch_size": batch_size}
    return {"dp": {"key": key, **{name: jnp.float32(x) for name, x in numbers.items()}}}


def batch_of(rows=16, *, step=5, seed=1):
    rng = np.random.default_rng(seed)
    images = rng.random((rows, 8, 8, 1), np.float32)
    labels = rng.integers(0, 3, rows).astype(np.int32)
    where = np.arange(rows) % 4 != 3
    images[~where] = np.nan
    return {
        "rows": {"image": images, "label": labels, "index": np.arange(rows, dtype=np.int32)},
        "where": where,
        "step": np.full(rows, step, np.int32),
    }


def loss_fn(params, model_state, frozen, batch, key):
    logits = SPEC.apply({"params": params}, batch["image"])
    values = cross_entropy(logits, batch["label"])
    return per_example(values, model_state)


def step_of(mode, copies=1, loss_fn=loss_fn):
    """A wrapped step that returns the gradient as its metrics."""

    def step(state, frozen, batch):
        gradient = PrivateGradient(copies)
        grads, model_state, metrics = gradient(loss_fn, state, {}, frozen, batch, KEY)
        assert (model_state, metrics) == ({}, {})
        return state, grads

    wrapped = parallel.wrap(step, mode)

    def run(params, frozen, batch):
        placed = parallel.place(params, mode), parallel.place(frozen, mode)
        return jax.device_get(wrapped(*placed, parallel.feed(batch, mode))[1])

    return run


@pytest.fixture(scope="module")
def params():
    return SPEC.init(jax.random.key(0))[0]


def assert_close(found, expected, rtol=1e-4, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, expected
    )


@pytest.mark.filterwarnings("ignore:optax.global_norm:DeprecationWarning")  # jax_privacy's
def test_without_noise_the_gradient_is_jax_privacys_over_the_expected_batch(params):
    batch = batch_of()
    live = jax.tree.map(lambda x: x[batch["where"]], batch["rows"])
    apply = SPEC.apply

    def one(params, image, label):
        return cross_entropy(apply({"params": params}, image[None])[0], label)

    oracle = clipping.clipped_grad(
        one, l2_clip_norm=0.3, keep_batch_dim=False, batch_argnums=(1, 2)
    )
    expected = jax.jit(oracle)(params, live["image"], live["label"])
    found = step_of("jit")(params, frozen_of(), batch)
    assert_close(found, jax.tree.map(lambda g: g / 10.0, expected))


def test_eight_devices_give_what_one_gives_and_noise_comes_once(params):
    batch, frozen = batch_of(), frozen_of(noise_multiplier=1.3)
    alone = step_of("jit")(params, frozen, batch)
    for mode in MODES:
        assert_close(step_of(mode)(params, frozen, batch), alone, atol=1e-5)
    nothing = {**batch, "where": np.zeros(16, bool)}
    noise = noisy_sum(
        jax.random.fold_in(KEY, 5),
        jax.tree.map(jnp.zeros_like, params),
        norm=0.3,
        noise_multiplier=1.3,
    )
    expected = jax.tree.map(lambda g: g / 10.0, noise)
    for mode in ("jit", "pmap"):
        assert_close(step_of(mode)(params, frozen, nothing), expected)
    later = step_of("jit")(params, frozen, {**nothing, "step": batch["step"] + 1})
    assert not np.allclose(jax.tree.leaves(later)[0], jax.tree.leaves(expected)[0])


def test_copies_of_a_record_share_one_clipped_gradient():
    seen = jnp.arange(8.0)

    def loss(params, model_state, frozen, batch, key):
        images = augment.augment(key, batch["image"], batch["index"], crop_padding=1, flip=True)
        values = images.reshape(len(images), -1) @ params
        return per_example(values, model_state)

    rows = {"image": np.arange(2 * 8, dtype=np.float32).reshape(2, 2, 4, 1)}
    batch = {
        "rows": {**rows, "index": np.array([4, 9], np.int32)},
        "where": np.array([True, False]),
        "step": np.zeros(2, np.int32),
    }

    def copies(index, count):
        key = jax.random.fold_in(KEY, index)
        many = jnp.repeat(rows["image"][:1], count, axis=0)
        index = index * count + jnp.arange(count)
        return augment.augment(key, many, index, crop_padding=1, flip=True).reshape(count, -1)

    for count in (1, 4):
        made = np.asarray(copies(4, count), np.float64)
        mean = made.mean(0)
        found = step_of("jit", count, loss)(seen, frozen_of(norm=1e3), batch)
        np.testing.assert_allclose(found, mean / 10.0, rtol=1e-5)
        clipped = step_of("jit", count, loss)(seen, frozen_of(norm=0.5), batch)
        np.testing.assert_allclose(clipped, 0.05 * mean / np.linalg.norm(mean), rtol=1e-5)
    assert len(np.unique(np.round(made, 3), axis=0)) > 1  # each copy has its own augmentation


def test_every_record_is_drawn_independently_and_with_the_stated_probability():
    rate, records, steps = 0.25, 40, 4000
    drawn = np.zeros((steps, records))
    for step in range(steps):
        drawn[step, poisson.draw((1, 2), step, rate, records)] = 1
    spread = np.sqrt(rate * (1 - rate) / steps)
    assert np.abs(drawn.mean(0) - rate).max() < 5 * spread
    correlation = np.corrcoef(drawn.T) - np.eye(records)
    assert np.abs(correlation).max() < 5 / np.sqrt(steps)
    later = np.mean((drawn[1:] - rate) * (drawn[:-1] - rate), axis=0) / (rate * (1 - rate))
    assert np.abs(later).max() < 5 / np.sqrt(steps)
    sizes = drawn.sum(1)
    assert sizes.var() == pytest.approx(records * rate * (1 - rate), rel=0.15)
    again = poisson.draw((1, 2), 7, rate, records)
    np.testing.assert_array_equal(np.flatnonzero(drawn[7]), again)
    assert not np.array_equal(again, poisson.draw((1, 3), 7, rate, records))
    assert len(poisson.draw((1, 2), 0, 1.0, 9)) == 9


def test_a_batch_that_does_not_fit_gets_more_rows_and_loses_nobody():
    size = poisson.capacity(0.1, 1000, 500, multiple=8)
    assert size % 8 == 0
    assert (
        500 * stats.binom.sf(size, 1000, 0.1) <= 1e-9 < 500 * stats.binom.sf(size - 16, 1000, 0.1)
    )
    for count in (0, 1, size, size + 1, 3 * size):
        drawn = 5 + np.arange(count)
        rows, where = poisson.pad(drawn, size)
        assert len(rows) % size == 0
        np.testing.assert_array_equal(rows[where], drawn)
    assert len(poisson.pad(np.arange(size), size)[0]) == size


def test_a_run_logs_nothing_private_and_its_ledger_says_what_it_cost(finished):
    workdir, result = finished
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"step", "split", "grad_norm"}] * 6
    metadata = checkpoint.find(workdir)[1]
    sigma = metadata["config"]["dp.noise_multiplier"]
    assert metadata["config"]["dp.num_steps"] == metadata["step"] == 6
    (entry,) = metadata["ledger"]["mechanisms"]
    assert entry == {
        "mechanism": "poisson_gaussian", "std": sigma * 0.5,
        "sensitivity": pytest.approx(0.5 * (1 + SLACK), rel=1e-12), "count": 6,
        "unit": "record", "adjacency": "zero-out", "sampling_rate": B / N,
        "note": "training_gradients, clip", "batch_size": B, "num_examples": N,
    }  # fmt: skip
    assert metadata["ledger"]["ancestors"] == []
    spent = dpdfd.privacy_spent(metadata["ledger"], delta=DELTA, num_examples=N)
    assert (spent.unit, spent.adjacency) == ("record", "zero-out")
    assert 0.99 * 6.0 <= spent.epsilon <= 6.0
    steps = accountants.Noised((1 + SLACK) / sigma, 6, B / N)
    direct = accountants.composed_epsilon([steps], DELTA)
    assert direct == pytest.approx(spent.epsilon)
    told = {
        "epsilon": spent.epsilon,
        "replace_one_epsilon": spent.replace_one_epsilon,
        "privacy_unit": "record",
        "adjacency": "zero-out",
    }
    assert spent.epsilon < spent.replace_one_epsilon < 2 * spent.epsilon + 1
    assert {name: result[name] for name in told} == told
    assert (result["delta"], result["noise_multiplier"]) == (DELTA, sigma)
    assert metadata["last_loss"] is None and metadata["best"] is None


def test_the_root_is_in_no_file_but_its_own(finished, tmp_path):
    workdir, _ = finished
    release.release(workdir, tmp_path / "released")
    secret = workdir / "private" / "noise.json"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.parent.stat().st_mode & 0o777 == 0o700
    root = json.loads(secret.read_text())["root"]
    words = np.frombuffer(bytes.fromhex(root), np.uint32)
    wanted = [root.encode(), bytes.fromhex(root), *(str(word).encode() for word in words)]
    files = [p for place in (workdir, tmp_path) for p in place.rglob("*") if p.is_file()]
    files = [file for file in files if file != secret]
    assert len(files) > 5
    for file in files:
        content = file.read_bytes()
        assert not any(text in content for text in wanted), file


def _weights(workdir):
    return checkpoint.digest(checkpoint.load_model(workdir).variables)


def test_with_a_given_seed_no_epsilon_is_told_anywhere(fit, tmp_path, capsys):
    result = fit(tmp_path / "run", {"seed": 3})
    assert not {name for name in result if "epsilon" in name}
    printed = capsys.readouterr().out
    assert "the noise's seed was given: whoever knows it subtracts the noise" in printed
    assert not [
        line for line in printed.splitlines() if "epsilon" in line and "no epsilon" not in line
    ]
    ledger = checkpoint.find(tmp_path / "run")[1]["ledger"]
    assert ledger["mechanisms"][0]["count"] == 6
    with pytest.raises(InputError, match="noise's seed was given"):
        dpdfd.privacy_spent(ledger, delta=DELTA)
    card = release.release(tmp_path / "run", tmp_path / "released")
    assert "epsilon" not in json.dumps(card)


def test_without_a_seed_two_runs_differ_and_with_one_they_agree(fit, finished, tmp_path):
    for i, seed in enumerate((3, 3, 4)):
        fit(tmp_path / f"{i}", {"seed": seed})
    first, second, third = (_weights(tmp_path / name) for name in "012")
    assert first == second != third
    fit(tmp_path / "drawn")
    assert _weights(tmp_path / "drawn") != _weights(finished[0])


def test_a_killed_run_ends_bit_by_bit_as_one_that_was_not(fit, killed, tmp_path):
    killed(tmp_path / "run")
    resumed = fit(tmp_path / "run")
    # The same root, from the beginning.
    shutil.copytree(tmp_path / "run" / "private", tmp_path / "straight" / "private")
    straight = fit(tmp_path / "straight")
    assert resumed.pop("id") != straight.pop("id")
    assert resumed == straight
    assert _weights(tmp_path / "run") == _weights(tmp_path / "straight")
    found = [checkpoint.find(tmp_path / name)[1] for name in ("run", "straight")]
    assert found[0]["ledger"] == found[1]["ledger"]
    assert found[0]["ledger"]["mechanisms"][0]["count"] == 6
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "straight")]
    assert logs[0] == logs[1]


def test_on_other_devices_it_draws_other_noise_and_pays_again(fit, killed, tmp_path):
    dp = {"epsilon": 50.0, "noise_multiplier": 1.5}
    killed(tmp_path / "run", dp)
    shutil.copytree(tmp_path / "run", tmp_path / "same")
    same = fit(tmp_path / "same", dp)
    other = fit(tmp_path / "run", dp, parallel="shard_map")
    metadata = checkpoint.find(tmp_path / "run")[1]
    reserved = 16  # steps that had been written down as drawn when step 2 was saved
    assert metadata["ledger"]["mechanisms"][0]["count"] == 6 + reserved - 2
    assert metadata["ledger"]["restarts"] == 1
    assert other["epsilon"] > same["epsilon"]
    assert _weights(tmp_path / "run") != _weights(tmp_path / "same")


def test_what_it_pays_again_ends_a_calibrated_run_early(fit, killed, tmp_path, capsys):
    killed(tmp_path / "run")
    fit(tmp_path / "run", parallel="shard_map")
    assert "the budget ends at step 2 of 6" in capsys.readouterr().out
    metadata = checkpoint.find(tmp_path / "run")[1]
    assert (metadata["step"], metadata["ledger"]["mechanisms"][0]["count"]) == (2, 2)


def test_with_noise_of_its_own_it_stops_before_the_step_that_overspends(fit, tmp_path, capsys):
    result = fit(tmp_path / "run", {"epsilon": 3.0, "noise_multiplier": 1.1}, num_steps=60)
    step = checkpoint.find(tmp_path / "run")[1]["step"]
    assert f"the budget ends at step {step} of 60" in capsys.readouterr().out
    costs = [
        accountants.composed_epsilon([accountants.Noised((1 + SLACK) / 1.1, count, B / N)], DELTA)
        for count in (step, step + 1)
    ]
    assert costs[0] <= 3.0 < costs[1]
    assert 2 < step < 60 and result["epsilon"] == pytest.approx(costs[0])
    again = fit(tmp_path / "run", {"epsilon": 3.0, "noise_multiplier": 1.1}, num_steps=60)
    assert again["id"] == result["id"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 7}, "dp.num_steps: got 7; this run was started with 6; keep it or"),
        ({"dp": {"epsilon": 5.0}}, "dp.epsilon: got 5.0; this run was started with 6.0"),
        ({"dp": {"norm": 1.0}}, "dp.norm: got 1.0; this run was started with 0.5"),
        ({"batch_size": 12}, "batch_size: got 12; this run was started with 24"),
        ({"dp": None}, "dp: got None; this run was started with {'epsilon': 6.0"),
    ],
)
def test_another_plan_is_no_resume(fit, finished, tmp_path, changes, message):
    shutil.copytree(finished[0], tmp_path / "run")
    with pytest.raises(InputError) as error:
        fit(tmp_path / "run", **changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("dp", "changes", "message"),
    [
        ({"epsilon": 0.0}, {}, "dp.epsilon: got 0.0; must be a number above 0"),
        ({"epsilon": None}, {}, "dp.epsilon: got None; is required; must be a number above 0"),
        ({"delta": 0.0}, {}, "dp.delta: got 0.0; must be a number in (0, 1]"),
        ({"delta": 1 / N}, {}, "dp.delta: got 0.004166666666666667; must be below 1/N = 0.00417"),
        ({"norm": 0}, {}, "dp.norm: got 0; must be a number above 0"),
        ({"norm": 1e-300}, {}, "dp.norm: got 1e-300; must be from 1e-12 to 1e+12"),
        ({"noise_multiplier": 1e38}, {}, "dp.noise_multiplier: got 1e+38; must be from 1e-08 to"),
        ({"norms": 1}, {}, "dp.norms: got 1; no such field; did you mean norm?"),
        ({"augmentations": 0}, {}, "dp.augmentations: got 0; must be an integer of at least 1"),
        ({"noise_multiplier": -1}, {}, "dp.noise_multiplier: got -1; must be a number above 0"),
        (dict.fromkeys(("epsilon", "delta", "norm")), {}, "dp: got {}; must be a group: epsilon, "),
        ({}, {"parallel": "mesh"}, "parallel: got 'mesh'; per-example gradients need pmap or"),
        ({}, {"steps_per_dispatch": 2}, "steps_per_dispatch: got 2; is not for private training"),
        ({}, {"data_on_device": True}, "data_on_device: got True; is not for private training"),
        ({}, {"batch_size": 241}, "batch_size: got 241; must be at most 240, the records"),
        ({}, {"num_validation": 9}, "num_validation: got 9; must be 0 with dp: held-out"),
        (
            {},
            {"model_kwargs": {**NETWORK, "norm": "batch"}},
            "model_kwargs.norm: got 'batch'; keeps statistics of batches (batch_stats), which mix "
            "records; with dp take model_kwargs.norm 'group' or 'none'",
        ),
        ({}, {"model_kwargs": {}}, "model: got 'cnn'; keeps statistics of batches (batch_stats)"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    fit, tmp_path, dp, changes, message
):
    with pytest.raises(InputError) as error:
        fit(tmp_path / "run", dp, **changes)
    assert str(error.value).startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_start_that_saw_private_data_refuses_the_claim_and_a_private_one_is_paid_for(
    fit, finished, tmp_path
):
    fit(tmp_path / "plain", None, num_steps=2)
    start = {"init_from": str(tmp_path / "plain"), "num_steps": 2}
    for dp in ({}, {"noise_multiplier": 2.0}):
        with pytest.raises(InputError) as error:
            fit(tmp_path / "run", dp, **start)
        assert error.value.field == "init_from"
        assert "saw private data" in str(error.value) and "dp.public_start" in str(error.value)
    assert not (tmp_path / "run").exists()

    assert 5.9 < fit(tmp_path / "public", {"public_start": True}, **start)["epsilon"] <= 6.0
    id = checkpoint.find(tmp_path / "plain")[1]["id"]
    ledger = checkpoint.find(tmp_path / "public")[1]["ledger"]
    assert [each["id"] for each in ledger["ancestors"]] == [id]

    fit(tmp_path / "second", None, **start)  # plain training does not forget it, either
    (tmp_path / "plain").rename(tmp_path / "moved")
    fit(tmp_path / "second", None, **{**start, "num_steps": 3})
    ledger = checkpoint.find(tmp_path / "second")[1]["ledger"]
    assert [each["id"] for each in ledger["ancestors"]] == [id]

    workdir, first = finished
    start = {"init_from": str(workdir), "num_steps": 2}
    with pytest.raises(InputError, match=r"^dp.epsilon: got 5.9; must be above the 5.9"):
        fit(tmp_path / "too_little", {"epsilon": 5.9}, **start)
    found = fit(tmp_path / "more", {"epsilon": 8.0}, **start)
    assert first["epsilon"] < found["epsilon"] <= 8.0
    alone = fit(tmp_path / "alone", {"epsilon": 8.0}, num_steps=2)
    assert found["noise_multiplier"] > alone["noise_multiplier"]
