"""Conversion from a teacher that may be asked freely: what is asked, and what a student learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core import checkpoint, data, load_model
from distill_core.models import CONSTANTS
from distill_core.models.network import Network, image_network
from distill_core.privacy import ledger
from distill_core.privacy.ledger import Entry, Ledger
from distill_core.runtime import parallel
from dpdfd import bank, conversion, train
from dpdfd.ensemble import training as ensemble
from dpdfd.losses import answer_loss
from dpdfd.settings import validate

SIZE, ROUNDS, QUERIES = 16, 2, 64
NETWORK = {"model": "cnn", "model_kwargs": {"widths": [2], "hidden": 4, "norm": "none"}}
MLP = {"model": "dpdfd.features:FeatureMLP", "model_kwargs": {"hidden": [4]}}
SCATTERING = {
    "model": "scattering",
    "model_kwargs": {"J": 1, "L": 2, "components": 10, "whitening": ["noise"]},
}
FREE = {
    **NETWORK, "optimizer": "adam", "learning_rate": 0.01, "batch_size": SIZE, "num_steps": 8,
    "num_rounds": ROUNDS, "num_queries": QUERIES, "candidates": 3, "prior": {"strokes": 1.0},
    "privacy_unit": "none", "loss": "cross_entropy", "temperature": 2.0,
    "log_every": 1, "save_every": 2, "eval_every": 100,
    "generator": {"width": 2, "latent_size": 4, "norm": "none", "every": 0},
}  # fmt: skip
HEIR = {"privacy_unit": "record_dp_teacher", "delta": 1e-5}


class KilledError(Exception):
    """The process ended."""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Eight cost more to compile."""
    monkeypatch.setattr(parallel, "choose_mode", lambda mode=None: mode or "jit")


@functools.cache
def digits():
    return data.load_dataset("digits")


def save(folder, *, turned=0.0, scale=0.5, **network):
    """A DP teacher's checkpoint, of a network with random weights.

    Constants, if it has any, differ by `turned` from what the network itself would fit.
    """
    described, rng = image_network(digits(), **network), np.random.default_rng(0)
    params, state = described.init(jax.random.key(1))
    params = jax.tree.map(
        lambda leaf: (scale * rng.normal(0, leaf.ndim > 1, leaf.shape)).astype(np.float32), params
    )
    state = jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(1 + turned), state)
    sgd = Entry("poisson_gaussian", 1.0, 1.0, 50, "record", ledger.ZERO_OUT, sampling_rate=0.02)
    metadata = {
        "method": "test", "parts": {"model": described.to_json()}, "config": {}, "data_note": "",
        "ledger": Ledger().charge(sgd).to_json(),
    }  # fmt: skip
    parts = {"model": {"params": params, "model_state": state}}
    checkpoint.save(folder, 1, parts=parts, train={"step": np.int32(1)}, metadata=metadata).wait()
    return str(folder)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {
        "mlp": save(folder / "mlp", **MLP),
        "scattering": save(folder / "scattering", turned=1e-2, scale=2.0, **SCATTERING),
    }


@pytest.fixture
def convert(teachers, tmp_path):
    """`convert(name, teacher=…, …)` runs in the folder of that name."""

    def run(name="run", teacher="mlp", **changes):
        settings = {"teacher": teachers.get(teacher, teacher), **FREE, **changes}
        return train.train_and_evaluate(settings, tmp_path / name)

    return run


@pytest.fixture
def replays(monkeypatch):
    """Names of the bank that each step of replay read; `replays.kill_at = n` ends before one."""

    class Replays(list):
        kill_at = None

    found, real = Replays(), parallel.wrap

    def wrap(step, mode, **options):
        program = real(step, mode, **options)

        def call(state, frozen, batch):
            if step.function.__name__ == "replay_step":
                if len(found) == found.kill_at:
                    raise KilledError
                found.append(set(state.bank))
            return program(state, frozen, batch)

        return call if isinstance(step, parallel.Bound) else program

    monkeypatch.setattr(parallel, "wrap", wrap)
    return found


def kept(workdir):
    """(queries, answers) of all rounds."""
    folder = workdir / "private" / "rounds"
    rounds = [np.load(folder / f"{number}.npz") for number in range(ROUNDS)]
    return tuple(np.concatenate([each[name] for each in rounds]) for name in ("images", "answers"))


def arrays(workdir):
    path, _ = checkpoint.find(workdir)
    return checkpoint.contents(path)


def assert_same_bits(first, second):
    jax.tree.map(np.testing.assert_array_equal, arrays(first), arrays(second))


def student_of(workdir):
    return load_model(workdir, part="student").variables


# -- what is asked -----------------------------------------------------------------------------


@pytest.mark.parametrize("claim", [{}, HEIR], ids=["none", "record_dp_teacher"])
def test_queries_are_those_of_all_candidates_that_spread_over_the_teachers_answers(
    convert, teachers, tmp_path, claim
):
    """From the first round on: no noise keeps its answers from choosing."""
    convert(**claim)
    images, answers = kept(tmp_path / "run")
    teacher, num = load_model(teachers["mlp"]), QUERIES // ROUNDS
    for number in range(ROUNDS):
        drawn = conversion.Prior({"strokes": 1.0}).draw(0, (8, 8, 1), 1 + number, 3 * num)
        drawn = np.round(drawn * 255).astype(np.uint8)
        logits = jax.jit(teacher.apply)(teacher.variables, drawn)
        rows = bank.choose_balanced(np.asarray(logits), num)
        part = slice(number * num, (number + 1) * num)
        np.testing.assert_array_equal(images[part], drawn[rows])
        np.testing.assert_allclose(answers[part], jax.nn.softmax(logits)[rows], atol=1e-5)
        counts = [np.bincount(np.argmax(x, -1), minlength=10) for x in (logits, answers[part])]
        assert counts[1].max() < counts[0].max() / 2  # more even than they were drawn


def test_replay_is_balanced_by_the_teachers_answers_too(convert, tmp_path):
    convert()
    _, answers = kept(tmp_path / "run")
    chances = arrays(tmp_path / "run")["train"]["bank/replay_cdf"]
    space = {"images": np.zeros((QUERIES, 1)), "replay_cdf": np.zeros(QUERIES)}
    expected = bank.balance(space, QUERIES, answers)["replay_cdf"]
    np.testing.assert_array_equal(chances, expected)


# -- features that are computed once -----------------------------------------------------------


@pytest.mark.parametrize("network", [MLP, SCATTERING], ids=["mlp", "scattering"])
def test_a_student_with_a_public_part_learns_from_features_what_it_learns_from_images(
    convert, replays, tmp_path, monkeypatch, network
):
    convert("features", **network)
    assert all("features" in each for each in replays) and len(replays) == 8
    replays.clear()
    monkeypatch.setattr(Network, "has_public_part", property(lambda _: False))
    convert("images", **network)
    assert not any("features" in each for each in replays) and len(replays) == 8
    found, expected = (student_of(tmp_path / name)["params"] for name in ("features", "images"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    fresh = load_model(tmp_path / "images", part="student").network.init(jax.random.key(0))[0]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), found, fresh)
    assert min(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize("changes", [{"crop_padding": 1, **MLP}, NETWORK], ids=["crops", "cnn"])
def test_shifted_queries_and_other_networks_need_images(convert, replays, changes):
    convert(**changes)
    assert replays and not any("features" in each for each in replays)


@pytest.mark.parametrize("kill", [1, 3, 5])
def test_killed_and_resumed_it_ends_bit_by_bit_as_if_nothing_had_happened(
    convert, replays, tmp_path, kill
):
    convert("straight", **SCATTERING)
    replays.clear()
    replays.kill_at = kill
    with pytest.raises(KilledError):
        convert(**SCATTERING)
    replays.kill_at = None
    convert(**SCATTERING)
    assert_same_bits(tmp_path / "run", tmp_path / "straight")
    for first, second in zip(kept(tmp_path / "run"), kept(tmp_path / "straight"), strict=True):
        np.testing.assert_array_equal(first, second)


def test_eight_devices_convert_as_one_does(convert, tmp_path, monkeypatch):
    """Answers and features are computed by all of them, for all of them."""
    steady = {**SCATTERING, "candidates": 1}  # no choice of queries that a last bit could turn
    convert("one", **steady)
    monkeypatch.setattr(parallel, "choose_mode", lambda mode=None: "pmap")
    convert("eight", **steady)
    first, second = (student_of(tmp_path / name)["params"] for name in ("one", "eight"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), first, second)
    for a, b in zip(kept(tmp_path / "one"), kept(tmp_path / "eight"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


# -- constants ---------------------------------------------------------------------------------


def test_a_student_of_the_teachers_kind_has_its_constants_and_another_fits_its_own(
    convert, teachers, tmp_path
):
    theirs = load_model(teachers["scattering"]).variables[CONSTANTS]
    convert(teacher="scattering", **SCATTERING)
    jax.tree.map(np.testing.assert_array_equal, student_of(tmp_path / "run")[CONSTANTS], theirs)
    kwargs = {**SCATTERING["model_kwargs"], "components": 9}
    convert("other", teacher="scattering", **{**SCATTERING, "model_kwargs": kwargs})
    model = load_model(tmp_path / "other", part="student")
    jax.tree.map(
        np.testing.assert_array_equal,
        model.variables[CONSTANTS],
        model.network.init(jax.random.key(0))[1][CONSTANTS],
    )
    assert (model.variables[CONSTANTS]["mean"] != theirs["mean"]).any()


def test_a_resume_has_the_constants_of_its_checkpoint(convert, replays, tmp_path, monkeypatch):
    """Another machine would fit others."""
    convert("straight", teacher="mlp", **SCATTERING)
    replays.clear()
    replays.kill_at = 3
    with pytest.raises(KilledError):
        convert(**SCATTERING)
    replays.kill_at = None
    real = Network.init

    def elsewhere(self, key, constants=None):
        params, state = real(self, key, constants)
        return params, jax.tree.map(lambda leaf: np.asarray(leaf) * np.float32(1.01), state)

    monkeypatch.setattr(Network, "init", elsewhere)
    convert(**SCATTERING)
    assert_same_bits(tmp_path / "run", tmp_path / "straight")


# -- what is learnt ----------------------------------------------------------------------------


def test_a_linear_student_at_a_high_temperature_becomes_its_teacher(convert, teachers, tmp_path):
    """Of the same features, and as many logits: nothing else explains all its answers."""
    steps = {"num_steps": 800, "log_every": 800, "save_every": 800, "schedule": "cosine"}
    changes = {**SCATTERING, **steps, "temperature": 8.0, "learning_rate": 0.1, "candidates": 1}
    prior = {"strokes": 1.0, "noise": 1.0}
    convert(teacher="scattering", num_queries=256, prior=prior, **changes)
    images, answers = kept(tmp_path / "run")
    assert len(np.unique(answers.argmax(-1))) > 3
    student = load_model(tmp_path / "run", part="student")
    said = np.asarray(jax.jit(student.apply)(student.variables, images))
    assert (said.argmax(-1) == answers.argmax(-1)).mean() >= 0.99
    np.testing.assert_allclose(jax.nn.softmax(said), answers, atol=0.05)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_softened_answers_are_compared_by_the_formula(temperature):
    rng = np.random.default_rng(0)
    logits, answers = rng.normal(0, 3, (5, 4)), rng.dirichlet([0.3] * 4, 5)
    soft = answers ** (1 / temperature)
    soft /= soft.sum(-1, keepdims=True)
    own = np.exp(logits / temperature)
    own /= own.sum(-1, keepdims=True)
    expected = temperature**2 * (soft * np.log(soft / own)).sum(-1)
    given = jnp.asarray(logits, jnp.float32), jnp.asarray(answers, jnp.float32)
    found = answer_loss(*given, "cross_entropy", temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # Its gradient keeps its size: τ²·(1/τ)·(p − a) of softened p and a.
    slope = jax.grad(lambda z: answer_loss(z, given[1], "cross_entropy", temperature).sum())
    np.testing.assert_allclose(slope(given[0]), temperature * (own - soft), atol=1e-4)


def test_a_temperature_of_one_is_none_and_an_answer_off_the_simplex_is_brought_onto_it():
    logits = jnp.array([[0.3, -0.2, 1.0]])
    answers = jnp.array([[0.5, -0.25, 1.5]])  # noisy: of [¼, 0, ¾]
    found = answer_loss(logits, answers, "cross_entropy", 1.0)
    p = jax.nn.log_softmax(logits)[0]
    expected = 0.25 * (np.log(0.25) - p[0]) + 0.75 * (np.log(0.75) - p[2])
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


# -- an ensemble of scattering networks --------------------------------------------------------


def test_an_ensemble_of_scattering_networks_can_be_converted(tmp_path):
    """What is bought of it are its members' votes, up to little noise."""
    fitted = {**SCATTERING, "dataset": "digits", "num_teachers": 8, "copies": 0, "ridge": 30.0}
    ensemble.train_and_evaluate(fitted, tmp_path / "teacher")
    noisy = {"privacy_unit": "record_ensemble", "mechanism": "answers", "epsilon": 1e7}
    settings = {**FREE, **SCATTERING, **noisy, "teacher": str(tmp_path / "teacher")}
    train.train_and_evaluate({**settings, "candidates": 1}, tmp_path / "run")
    loaded = load_model(tmp_path / "teacher")
    images, answers = kept(tmp_path / "run")
    votes = np.asarray(ensemble.answers(loaded.network, loaded.variables, images))
    apart = np.abs(answers - votes.mean(0)).max(1)
    assert np.mean(apart < 0.05) > 0.9  # a vote may turn where two classes are equally likely
    assert np.ptp(answers, 0).max() > 0.3
    assert validate(settings).mechanism == "answers"
