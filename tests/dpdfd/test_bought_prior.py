"""A prior that draws from bought moments: what is charged, kept, published, drawn and refused."""

import functools
import io
import json
import shutil
import stat

import jax
import numpy as np
import pytest

from distill_core import checkpoint, data, release
from distill_core import train as plain
from distill_core.config import InputError
from distill_core.data.images import procedural
from distill_core.privacy import accountants, ledger
from distill_core.runtime import cli, parallel, process
from distill_core.training import loop
from dpdfd import evaluate, privacy_spent, train
from dpdfd.conversion import Prior
from dpdfd.fresh import Recipe
from dpdfd.priors import bought_moments as kept_lib
from dpdfd.priors import moments
from dpdfd.priors.moments import Moments

N, DELTA, EPSILON, SHARE = 300, 1e-5, 8.0, 0.7
TEACHER = {
    "model": "scattering",
    "model_kwargs": {"J": 1, "L": 2, "components": 10, "whitening": ["noise"]},
    "optimizer": "sgd", "learning_rate": 1.0, "batch_size": N, "num_steps": 5,
    "dp": {"epsilon": EPSILON, "delta": DELTA, "norm": 1.0, "sampling": "full", "share": SHARE},
}  # fmt: skip
STUDENT = {
    "model": "cnn", "model_kwargs": {"widths": [2], "hidden": 4, "norm": "none"},
    "optimizer": "adam", "learning_rate": 0.01, "batch_size": 16, "num_steps": 8,
    "num_rounds": 2, "num_queries": 64, "candidates": 1, "loss": "cross_entropy",
    "privacy_unit": "record_dp_teacher", "epsilon": EPSILON, "delta": DELTA,
    "prior": {"strokes": 1.0, "dp_gaussian": 1.0}, "moments": {"size": 4, "norm": 4.0},
    "log_every": 1, "save_every": 2, "eval_every": 8,
    "generator": {"width": 2, "latent_size": 4, "norm": "none", "every": 0},
}  # fmt: skip
QUICK = Recipe(num_samples=20, num_steps=1, batch_size=8, source="prior")


class KilledError(Exception):
    """The process ended."""


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Eight cost more to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "choose_mode", lambda mode=None: mode or "jit")
        yield


@functools.cache
def digits():
    """The arrays of the private data set."""
    found = data.load_dataset("digits")
    return {
        "x_train": found.train.images[:N], "y_train": found.train.labels[:N],
        "x_test": found.test.images[:40], "y_test": found.test.labels[:40],
    }  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data sets, files of masked rows, and teachers."""
    folder = tmp_path_factory.mktemp("private")
    arrays = digits()
    np.savez(folder / "data.npz", **arrays)
    turned = arrays["x_train"].copy()
    turned[:3] = 255 - turned[:3]
    np.savez(folder / "turned.npz", **{**arrays, "x_train": turned})
    labels = arrays["y_train"].copy()
    labels[:3] = (labels[:3] + 1) % 10
    np.savez(folder / "masked.npz", **{**arrays, "x_train": turned, "y_train": labels})
    fewer = {name: arrays[name][:-1] for name in ("x_train", "y_train")}
    np.savez(folder / "fewer.npz", **{**arrays, **fewer})
    np.save(folder / "rows.npy", np.arange(3))
    np.save(folder / "outside.npy", np.array([N]))
    data_set = f"npz:{folder}/data.npz"
    plain.train_and_evaluate({**TEACHER, "dataset": data_set}, folder / "teacher")
    plain.train_and_evaluate({**TEACHER, "dataset": data_set, "seed": 1}, folder / "other")
    whole = {**TEACHER, "dp": {**TEACHER["dp"], "share": 1.0}}
    plain.train_and_evaluate({**whole, "dataset": data_set}, folder / "whole")
    return folder


@pytest.fixture
def convert(place, tmp_path):
    """`convert(name, teacher=…, dataset=…, …)` runs in the folder of that name."""

    def run(name="run", teacher="teacher", dataset="data", **changes):
        own = {"teacher": str(place / teacher), "dataset": f"npz:{place}/{dataset}.npz"}
        return train.train_and_evaluate({**STUDENT, **own, **changes}, tmp_path / name)

    return run


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory):
    """(workdir, result) of a conversion; not to be touched."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    own = {"teacher": str(place / "teacher"), "dataset": f"npz:{place}/data.npz"}
    return workdir, train.train_and_evaluate({**STUDENT, **own}, workdir)


@pytest.fixture
def purchases(monkeypatch):
    """Noise multipliers of all releases of moments."""
    found, real = [], moments.release

    def buy(*args, **kwargs):
        found.append(kwargs["noise_multiplier"])
        return real(*args, **kwargs)

    monkeypatch.setattr(moments, "release", buy)
    return found


def published(workdir):
    return Moments.from_bytes((workdir / "moments.npz").read_bytes())


def arrays_of(workdir):
    path, _ = checkpoint.find(workdir)
    return checkpoint.contents(path)


def assert_same_bits(first, second):
    jax.tree.map(np.testing.assert_array_equal, arrays_of(first), arrays_of(second))


# -- what it charges ---------------------------------------------------------------------------


def test_teacher_and_moments_together_spend_epsilon(finished, place):
    workdir, result = finished
    told = checkpoint.find(workdir)[1]["ledger"]
    assert result["ledger"] == told
    report = privacy_spent(told, delta=DELTA)
    assert EPSILON * (1 - 1e-3) < report.epsilon <= EPSILON
    assert (report.claim, report.adjacency) == ("record_dp_teacher", "zero-out")
    theirs = ledger.charged(checkpoint.find(place / "teacher")[1]["ledger"])
    (mine,) = set(ledger.charged(told)) - set(theirs)
    assert set(theirs) < set(ledger.charged(told)) and len(ledger.charged(told)) == 2
    assert (mine.mechanism, mine.unit, mine.adjacency) == ("gaussian", "record", "zero-out")
    assert (mine.count, mine.sampling_rate, mine.num_examples) == (1, None, N)
    assert not mine.full_batches
    # With one record replaced by any other all of it moves twice as far.
    mu = accountants.gaussian_mu(EPSILON, DELTA)
    twice = accountants.composed_epsilon([accountants.Noised(2 * mu)], DELTA)
    assert report.replace_one_epsilon == pytest.approx(twice, rel=1e-3)


def test_moments_have_the_share_of_mu_squared_that_the_teacher_left(convert, purchases, tmp_path):
    convert(num_steps=2)
    (multiplier,) = purchases
    mu = accountants.gaussian_mu(EPSILON, DELTA)
    assert 1 / multiplier**2 == pytest.approx((1 - SHARE) * mu**2, rel=1e-3)
    # A larger budget is not shared: all beyond what the teacher spent is there for them.
    convert("more", epsilon=12.0, num_steps=2)
    left = accountants.gaussian_mu(12.0, DELTA) ** 2 - SHARE * mu**2
    assert 1 / purchases[1] ** 2 == pytest.approx(left, rel=1e-3)


def test_the_release_and_its_card_tell_of_both(finished, tmp_path):
    card = release.release(finished[0], tmp_path / "released", part="student")
    assert card["privacy"]["epsilon"] == pytest.approx(EPSILON, rel=1e-3)
    counts = [(each["mechanism"], each["count"]) for each in card["ledger"]["mechanisms"]]
    assert sorted(counts) == [("gaussian", 1), ("gaussian", TEACHER["num_steps"])]


@pytest.mark.parametrize("seed", [0, 5])
def test_a_given_seed_of_the_noise_claims_nothing_and_repeats_it(convert, tmp_path, seed):
    for name in "ab":
        told = convert(name, noise_seed=seed, num_steps=2)["ledger"]
        with pytest.raises(InputError, match="no ε holds: the noise's seed was given"):
            privacy_spent(told, delta=DELTA)
    first, second = ((tmp_path / name / "moments.npz").read_bytes() for name in "ab")
    assert first == second
    assert_same_bits(tmp_path / "a", tmp_path / "b")
    assert evaluate.privacy(checkpoint.find(tmp_path / "a")[1])["epsilon"] is None


def test_purchases_by_way_of_one_teacher_compose_with_its_training(
    convert, place, tmp_path, capsys
):
    shutil.copytree(place / "teacher", tmp_path / "own", ignore=shutil.ignore_patterns("odometer"))
    capsys.readouterr()
    told = [convert(n, str(tmp_path / "own"), num_steps=2)["ledger"] for n in ("a", "b")]
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("Conversions of")]
    assert [line.split("one: ")[1][0] for line in lines] == ["1", "2"]
    reports = [privacy_spent(each, delta=DELTA) for each in told]
    assert [each.total.conversions for each in reports] == [1, 2]
    assert reports[0].total.epsilon == pytest.approx(reports[0].epsilon, rel=1e-6)
    mu = accountants.gaussian_mu(EPSILON, DELTA)
    both = accountants.composed_epsilon(
        [accountants.Noised(mu * (SHARE + 2 * (1 - SHARE)) ** 0.5)], DELTA
    )
    assert reports[1].total.epsilon == pytest.approx(both, rel=1e-3)
    assert reports[1].epsilon == pytest.approx(EPSILON, rel=1e-3)
    # A resumed run is charged once.
    convert("b", str(tmp_path / "own"), num_steps=2)
    assert len(list((tmp_path / "own" / "private" / "odometer").glob("*.json"))) == 2


def test_two_runs_draw_two_noises(finished, convert, tmp_path):
    convert(num_steps=2)
    assert (published(tmp_path / "run").means != published(finished[0]).means).any()


# -- what it keeps -----------------------------------------------------------------------------


def test_what_is_published_are_the_moments_alone(finished, place):
    workdir, _ = finished
    private = workdir / "private" / "moments.npz"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    with np.load(private) as stored:
        digest, bought = str(stored["run"]), stored["bought"].tobytes()
    public = (workdir / "moments.npz").read_bytes()
    assert public == bought == published(workdir).to_bytes()
    with np.load(io.BytesIO(public)) as stored:
        assert set(stored.files) == {
            *("counts", "means", "covariances", "noise", "size", "image_shape"),
        }  # fmt: skip
    # The digest is of data, settings and teacher: whoever guesses a record would see it confirmed.
    outside = [path for path in workdir.rglob("*") if "private" not in path.parts]
    held = [path.read_bytes() for path in outside if path.is_file()]
    assert len(held) > 5 and len(digest) >= 16
    told = [digest, data.load_dataset(f"npz:{place}/data.npz").fingerprint()]
    assert not [each for each in held if any(one.encode() in each for one in told)]
    assert not any(bytes.fromhex(digest) in each for each in held)


@pytest.mark.parametrize("when", ["bought", "before a step"])
def test_a_killed_run_buys_nothing_again_and_ends_bit_by_bit_as_if_nothing_had_happened(
    convert, purchases, tmp_path, monkeypatch, when
):
    def dies(*_, **__):
        raise KilledError

    real = parallel.wrap

    def wrap(step, mode, **options):
        program, calls = real(step, mode, **options), []

        def call(*args):
            calls.append(1)
            if step.function.__name__ == "replay_step" and len(calls) == 4:
                raise KilledError
            return program(*args)

        return call if isinstance(step, parallel.Bound) else program

    with monkeypatch.context() as patch:
        if when == "bought":
            patch.setattr(loop, "run", dies)
        else:
            patch.setattr(parallel, "wrap", wrap)
        with pytest.raises(KilledError):
            convert()
    found = checkpoint.steps(tmp_path / "run") if when != "bought" else []
    assert found == ([] if when == "bought" else [2])
    shutil.copytree(tmp_path / "run" / "private", tmp_path / "straight" / "private",
                    ignore=lambda *_: ["rounds", "inputs.json"])  # fmt: skip
    convert()
    convert("straight")
    convert()  # nothing is left to do
    assert len(purchases) == 1
    assert_same_bits(tmp_path / "run", tmp_path / "straight")
    first, second = ((tmp_path / x / "moments.npz").read_bytes() for x in ("run", "straight"))
    assert first == second


@pytest.mark.parametrize("begun", [False, True], ids=["bought", "begun"])
@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "turned"},
        {"moments": {"size": 3, "norm": 4.0}},
        {"moments": {"size": 4, "norm": 5.0}},
        {"teacher": "other"},
        {"epsilon": 9.0},
    ],
    ids=["data", "size", "norm", "teacher", "epsilon"],
)
def test_a_workdir_belongs_to_one_run(
    convert, finished, purchases, tmp_path, monkeypatch, begun, changes
):
    """Whether or not it has a checkpoint yet: what it bought is of other data, or not enough."""
    ignore = None if begun else lambda *_: ["checkpoints"]
    shutil.copytree(finished[0], tmp_path / "run", ignore=ignore)

    def files():
        return {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}

    before = files()
    with pytest.raises(InputError) as error:
        convert(**changes)
    assert "\n" not in str(error.value)
    assert files() == before and not purchases


def test_masked_records_count_as_empty(convert, place, tmp_path):
    masked = {**STUDENT["moments"], "masked": str(place / "rows.npy")}
    common = {"noise_seed": 3, "num_steps": 2}
    convert("masked", moments=masked, **common)
    convert("changed", moments=masked, dataset="masked", **common)
    convert("unmasked", **common)
    found, changed, unmasked = (published(tmp_path / x) for x in ("masked", "changed", "unmasked"))
    np.testing.assert_array_equal(found.means, changed.means)
    np.testing.assert_array_equal(found.covariances, changed.covariances)
    assert unmasked.counts.sum() - found.counts.sum() == pytest.approx(3, abs=1e-6)


# -- what it draws -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known():
    """Moments with little noise."""
    arrays = digits()
    return moments.release(
        arrays["x_train"], arrays["y_train"], num_classes=10, size=6, norm=4.0,
        noise_multiplier=0.01, random=np.random.default_rng(0).bytes,
    )  # fmt: skip


WEIGHTS = {"strokes": 1.0, "noise": 1.0, "dp_gaussian": 2.0}


def drawn(weights, known, num, seed=3, stream=1):
    return Prior(weights, (), known).draw(seed, (8, 8, 1), stream, num)


def test_an_image_of_a_prior_does_not_depend_on_how_many_are_drawn(known):
    whole = drawn(WEIGHTS, known, 300)
    for num in (1, 150, 299):
        np.testing.assert_array_equal(drawn(WEIGHTS, known, num), whole[:num])
    assert drawn(WEIGHTS, known, 0).shape == (0, 8, 8, 1)
    for other in (drawn(WEIGHTS, known, 300, stream=2), drawn(WEIGHTS, known, 300, seed=4)):
        assert (other != whole).any((1, 2, 3)).all()


def test_kinds_have_their_shares_and_those_that_code_draws_are_what_they_are_without_moments(known):
    whole = drawn(WEIGHTS, known, 2000)
    code = {"strokes": 1.0, "noise": 1.0}
    without = procedural.mixture(3 * 1000 + 1, 2000, size=8, channels=1, weights=code)
    bought = (whole != without).any((1, 2, 3))
    assert 0.45 < bought.mean() < 0.55
    only = drawn({"dp_gaussian": 1.0}, known, 2000)
    assert (only != without).any((1, 2, 3)).all()
    assert whole.dtype == only.dtype == np.float32 and 0 <= whole.min() <= whole.max() <= 1


def test_bought_images_are_of_all_classes_alike(known):
    only = drawn({"dp_gaussian": 1.0, "strokes": 0.0}, known, 1500)
    assert only.shape == (1500, 8, 8, 1)
    arrays = digits()
    mean = np.mean([
        arrays["x_train"][arrays["y_train"] == k].mean(0) / 255 for k in range(10)
    ], 0)  # fmt: skip
    noise = procedural.mixture(0, 1500, size=8, channels=1, weights={"noise": 1.0})
    apart, others = (np.abs(found.mean(0) - mean).mean() for found in (only, noise))
    assert apart < 0.05 < 0.1 < others


def test_queries_are_of_the_bought_prior(finished):
    workdir, _ = finished
    found = np.load(workdir / "private" / "rounds" / "1.npz")["images"]
    prior = Prior(STUDENT["prior"], (), published(workdir))
    # Candidates are as many as queries, so that all are asked, in their order.
    expected = np.round(prior.draw(0, (8, 8, 1), 2, 32) * 255).astype(np.uint8)
    np.testing.assert_array_equal(found, expected)


# -- a fresh classifier ------------------------------------------------------------------------


def test_the_evaluation_draws_from_the_published_moments(finished, place, tmp_path):
    workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "carried", ignore=lambda *_: ["private"])
    export = tmp_path / "samples.npz"
    found = evaluate.evaluate(tmp_path / "carried", export=export, recipe=QUICK)
    assert found["num_samples"] == 20
    assert found["privacy"]["epsilon"] == pytest.approx(EPSILON, rel=1e-3)
    prior = Prior(STUDENT["prior"], (), published(workdir))
    candidates = [prior.draw(0, (8, 8, 1), 900 + i, 20) for i in range(2)]
    pixels = {np.round(x * 255).astype(np.uint8).tobytes() for x in np.concatenate(candidates)}
    assert {image.tobytes() for image in np.load(export)["images"]} <= pixels


def test_moments_that_the_run_did_not_buy_are_no_prior_of_its(finished, convert, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy")
    convert("other", num_steps=2)
    shutil.copy(tmp_path / "other" / "moments.npz", tmp_path / "copy" / "moments.npz")
    with pytest.raises(InputError, match="^checkpoint: .* is not what the run bought"):
        kept_lib.published_moments(tmp_path / "copy")


def test_without_its_moments_the_prior_cannot_be_drawn_again(finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "moments.npz").unlink()
    flags = [f"--checkpoint={tmp_path}/run", "--source=prior", "--num_samples=20"]
    code = cli.exit_code(evaluate.main, [*flags, "--num_steps=1"])
    printed = capsys.readouterr()
    assert (code, printed.out, printed.err.count("\n")) == (cli.EXIT_INPUT, "", 1)
    assert printed.err.startswith(f"error: checkpoint: got '{tmp_path}/run'; its prior draws from")
    (tmp_path / "run" / "moments.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="^moments: got '2 bytes'; must be the .npz file"):
        kept_lib.published_moments(tmp_path / "run")
    # What the generator draws needs none.
    recipe = Recipe(num_samples=20, num_steps=1, batch_size=8)
    assert evaluate.evaluate(tmp_path / "run", recipe=recipe)["num_samples"] == 20


# -- what it refuses ---------------------------------------------------------------------------


@pytest.fixture
def call(place, tmp_path, capfd):
    """`call(changes)`: the exit code and the lines of the binary in this process."""

    def run(changes):
        given = {**STUDENT, "teacher": str(place / "teacher"), "dataset": f"npz:{place}/data.npz"}
        given = {**given, **json.loads(json.dumps(changes).replace("PLACE", str(place)))}
        file = tmp_path / "config.py"
        file.write_text(
            "from ml_collections import config_dict\n"
            f"def get_config(arg=''):\n    return config_dict.ConfigDict({given!r}).lock()\n"
        )
        capfd.readouterr()
        code = cli.exit_code(
            lambda argv: cli.run_training(train.train_and_evaluate, train.Settings, argv),
            [f"--config={file}", f"--workdir={tmp_path / 'refused'}"],
        )
        return code, capfd.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"moments": None}, "prior: got {'dp_gaussian': 1.0, 'strokes': 1.0}; dp_gaussian draws"),
        ({"prior": {"strokes": 1.0}}, "moments: got {"),
        ({"prior": {"strokes": 1.0, "dp_gaussian": 0.0}}, "moments: got {"),
        ({"prior": {"dp_gaussian": -1.0}}, "prior.dp_gaussian: got -1.0; must be a number at le"),
        ({"privacy_unit": "none"}, "moments: got {"),
        ({"privacy_unit": "record_single", "mechanism": "logit"}, "moments: got {"),
        ({"dataset": None}, "dataset: got None; is required with moments"),
        ({"epsilon": None}, "epsilon: got None; is required with moments"),
        ({"epsilon": 1.0}, "epsilon: got 1.0; must be above the "),
        (
            {"teacher": "PLACE/whole"},
            "epsilon: got 8.0; is all but spent before (",
        ),
        (
            {"moments": {"size": 9, "norm": 4.0}},
            "moments.size: got 9; must be an integer in [1, 8]",
        ),
        ({"moments": {"size": 0, "norm": 4.0}}, "moments.size: got 0; must be an integer of at "),
        ({"moments": {"size": 4, "norm": 0.0}}, "moments.norm: got 0.0; must be a number above 0"),
        ({"moments": {"size": 4}}, "moments.norm: got None; is required"),
        ({"moments": {"size": 4, "norm": 4.0, "rank": 3}}, "moments.rank: got 3; no such field"),
        (
            {"moments": {"size": 4, "norm": 4.0, "masked": "PLACE/outside.npy"}},
            "moments.masked: got 'PLACE/outside.npy'; must be a .npy file of integers in [0, 299]",
        ),
        (
            {"moments": {"size": 4, "norm": 4.0, "masked": "PLACE/none.npy"}},
            "moments.masked: got 'PLACE/none.npy'; must be a .npy file",
        ),
        (
            {"dataset": "npz:PLACE/fewer.npz"},
            "dataset: got 'npz:PLACE/fewer.npz'; has 299 training images; the teacher saw 300: ",
        ),
        ({"delta": 0.01}, "delta: got 0.01; must be below 1/N"),
    ],
)
def test_what_is_wrong_costs_one_line_and_writes_nothing(call, place, tmp_path, changes, line):
    code, said = call(changes)
    assert (code, len(said)) == (cli.EXIT_INPUT, 1), said
    assert said[0].startswith("error: " + line.replace("PLACE", str(place))), said
    assert not (tmp_path / "refused").exists()


def test_an_epsilon_that_leaves_next_to_nothing_is_refused_by_name(call, place, tmp_path):
    """Rather than the noise, which nobody asked for."""
    told = checkpoint.find(place / "teacher")[1]["ledger"]
    spent = privacy_spent(told, delta=DELTA).epsilon
    code, said = call({"epsilon": spent * (1 + 1e-10)})
    assert (code, len(said)) == (cli.EXIT_INPUT, 1), said
    assert said[0].startswith("error: epsilon: got "), said
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("when", ["bought", "trained"])
def test_moments_that_are_lost_are_not_bought_again(convert, purchases, tmp_path, when):
    if when == "trained":
        convert()
    else:
        convert(num_steps=8)
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "private" / "moments.npz").unlink()
    before = len(purchases)
    with pytest.raises(InputError, match="is missing, and with it what this run bought"):
        convert()
    assert len(purchases) == before


def test_a_workdir_in_use_buys_nothing(convert, purchases, tmp_path):
    with process.hold(tmp_path / "run"), pytest.raises(InputError, match="in use"):
        convert()
    assert not purchases
