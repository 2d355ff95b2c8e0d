"""Whole conversions: what they need, what they draw and charge, and how they go on after a kill.

As a program: a run that kills itself before it asks the teacher for the Nth time,
`python tests/dpdfd/test_train.py '[{settings}, "workdir", N]'`.
"""

import dataclasses
import functools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from distill_core import checkpoint, data, load_model, release
from distill_core.config import InputError
from distill_core.data.images.dataset import make_dataset
from distill_core.models.network import image_network
from distill_core.privacy import ledger, noise
from distill_core.privacy.ledger import Entry, Ledger
from distill_core.runtime import cli, parallel
from dpdfd import conversion, evaluate, privacy_spent, train
from dpdfd.ensemble import provenance
from dpdfd.ensemble import training as ensemble
from dpdfd.privacy import bought, exact_noise
from dpdfd.settings import validate

ROOT = Path(__file__).parents[2]
DELTA, SIZE = 1e-5, 16
NETWORK = {"model": "cnn", "model_kwargs": {"widths": [2], "hidden": 4, "norm": "none"}}
ALTERNATE = {
    **NETWORK, "learning_rate": 0.05, "batch_size": SIZE, "num_steps": 40, "log_every": 5,
    "save_every": 8, "eval_every": 100, "delta": DELTA, "epsilon": 5.0,
    "privacy_unit": "query", "mechanism": "logit",
    "generator": {"width": 2, "latent_size": 4, "diversity": 0.5, "smoothness": 0.1},
}  # fmt: skip
PLAIN = {**ALTERNATE, "privacy_unit": "none", "mechanism": "none", "epsilon": None}
PARAM = {**ALTERNATE, "mechanism": "param", "generator": {**ALTERNATE["generator"], "every": 99}}
# Three rounds of 4 steps and 2 releases of 16 queries each.
ROUNDS = {
    **ALTERNATE, "num_steps": 12, "num_rounds": 3, "num_queries": 6 * SIZE, "save_every": 3,
    "log_every": 2, "candidates": 2, "privacy_unit": "record_single",
}  # fmt: skip
ANSWERS = {
    **ROUNDS, "privacy_unit": "record_ensemble", "mechanism": "answers",
    "prior": {"strokes": 1.0, "noise": 1.0}, "generator": {**ALTERNATE["generator"], "every": 0},
}  # fmt: skip
SINGLE_DEVICE = "jit"


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Where a test does not say otherwise: eight cost more to compile."""
    monkeypatch.setattr(parallel, "choose_mode", lambda mode=None: mode or SINGLE_DEVICE)


@functools.cache
def digits():
    return data.load_dataset("digits")


def save(folder, seed=0, *, told=None, dataset=None, about=None, **network):
    """A checkpoint of a network with random weights; `about` goes into its metadata."""
    found = dataset or digits()
    described = image_network(found, **{**NETWORK, **network})
    params, _ = described.init(jax.random.key(seed))
    metadata = {
        "method": "test", "parts": {"model": described.to_json()}, "config": {}, "data_note": "",
        "ledger": (told or Ledger()).to_json(), **(about or {}),
    }  # fmt: skip
    parts = {"model": {"params": params, "model_state": {}}}
    checkpoint.save(folder, 1, parts=parts, train={"step": np.int32(1)}, metadata=metadata).wait()
    return str(folder)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Folders of checkpoints, by name."""
    folder = tmp_path_factory.mktemp("teachers")
    sgd = Entry("poisson_gaussian", 1.0, 1.0, 50, "record", ledger.ZERO_OUT, sampling_rate=0.02)
    member = {"member": NETWORK["model"], "member_kwargs": NETWORK["model_kwargs"]}
    apart = provenance.describe(1437, 20, 1)
    return {
        "plain": save(folder / "plain"),
        "other": save(folder / "other", seed=1),
        "dp": save(folder / "dp", told=Ledger().charge(sgd)),
        "ensemble": save(
            folder / "ensemble", model=ensemble.MODEL, model_kwargs={"num_teachers": 20, **member},
            about={"method": "dpdfd.ensemble", "ensemble": apart, "num_examples": 1437},
        ),
    }  # fmt: skip


@pytest.fixture
def convert(teachers, tmp_path):
    """`convert(settings, name, teacher=…, …)` runs in the folder of that name."""

    def run(settings, name="run", teacher="plain", parallel=None, **changes):
        return train.train_and_evaluate(
            {"teacher": str(teachers.get(teacher, teacher)), **settings, **changes},
            tmp_path / name,
            parallel=parallel,
        )

    return run


class Killed(BaseException):
    """Stands for SIGKILL where a test stays in one process: nothing catches it."""


def watched(before):
    """`parallel.wrap`, with `before(name, state, frozen, batch)` at each call of a step's function.

    What it returns, if anything, is given to the function in place of `frozen`.
    """
    real = parallel.wrap

    def wrap(step, mode, **options):
        program = real(step, mode, **options)

        def call(state, frozen, batch):
            instead = before(step.function.__name__, state, frozen, batch)
            return program(state, frozen if instead is None else instead, batch)

        return call if isinstance(step, parallel.Bound) else program

    return wrap


@pytest.fixture
def watch(monkeypatch):
    """`watch(before)`, see `watched`."""
    return lambda before: monkeypatch.setattr(parallel, "wrap", watched(before))


@pytest.fixture
def draws(watch, tmp_path):
    """(key, release) of all noise that was drawn, in order; `draws.kill_at = n` kills before it."""

    class Draws(list):
        kill_at = None

        def keys(self):
            return {key for key, _ in self}

    found = Draws()

    def before(name, state, frozen, batch):
        if name not in ("alternate", "ask"):
            return
        number = state.student.step if name == "alternate" else np.ravel(batch["number"])[0]
        if len(found) == found.kill_at:
            raise Killed
        key = tuple(np.asarray(jax.random.key_data(frozen["noise"]["key"])).tolist())
        found.append((key, int(number)))
        # Written down before it is drawn, for a crash to find.
        record = json.loads((tmp_path / "run" / "private" / "noise.json").read_text())
        assert record["reserved"] > int(number)
        assert record["restarts"] == len(found.keys()) - 1

    watch(before)
    return found


def charged(told):
    return sum(entry["count"] for entry in told["mechanisms"])


def epsilon(told):
    return privacy_spent(told, delta=DELTA).epsilon


def contents(workdir):
    """All that must not depend on how often a run was interrupted, bit by bit."""
    path, metadata = checkpoint.find(workdir)
    arrays = checkpoint.contents(path)
    metadata["ledger"].pop("conversions", None)  # what others charged to the teacher
    return {
        "arrays": jax.tree.map(lambda x: np.asarray(x).tobytes(), arrays),
        # Orbax names its files at random, and so are checkpoints.
        "metadata": {k: v for k, v in metadata.items() if k not in ("files", "checksum", "id")},
        "metrics": (workdir / "metrics.jsonl").read_text().splitlines(),
    }


def params_of(workdir, part):
    return jax.tree.leaves(load_model(workdir, part=part).variables)


def same_bits(first, second):
    return all((a == b).all() for a, b in zip(first, second, strict=True))


# -- what a conversion needs -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "teacher"), [(ALTERNATE, "plain"), (ROUNDS, "plain"), (ANSWERS, "ensemble")]
)
def test_it_needs_a_teacher_and_no_data(convert, tmp_path, monkeypatch, settings, teacher):
    def missing(*_, **__):
        raise AssertionError("looked for a data set")

    monkeypatch.setattr(data, "load_dataset", missing)
    found = convert(settings, teacher=teacher)
    assert set(found) == {"id", "ledger", "noise_multiplier"}
    fresh = load_model(tmp_path / "run").network.init(jax.random.key(0))[0]
    assert not same_bits(params_of(tmp_path / "run", "student"), jax.tree.leaves(fresh))
    student = load_model(tmp_path / "run")
    assert student.apply(student.variables, digits().test.images[:3]).shape == (3, 10)


def test_a_data_set_is_for_measuring_alone(convert, tmp_path):
    without, found = convert(ALTERNATE, "without"), convert(ALTERNATE, dataset="digits")
    student, test = load_model(tmp_path / "run"), digits().test
    logits = np.asarray(student.apply(student.variables, test.images))
    right = np.mean(logits.argmax(-1) == test.labels)
    assert found["accuracy"] == pytest.approx(right, abs=1e-6)
    assert found["num_test"] == len(test)
    assert without["noise_multiplier"] == found["noise_multiplier"]


def test_the_generator_learns_of_the_teacher_through_the_student_alone(
    convert, watch, teachers, tmp_path
):
    """Another teacher between the student's step and the generator's changes no bit of its step."""
    other = {"teacher": load_model(teachers["other"]).variables}
    given, swapping = [], False

    def swap(name, state, frozen, batch):
        if name == "generator_step":
            given.append("teacher" in frozen)
        return {**frozen, **other} if swapping and name == "generator_step" else None

    watch(swap)
    for settings, sees_it in (
        ({**ALTERNATE, "noise_seed": 3}, False),
        ({**PLAIN, "guide": "teacher"}, True),
    ):
        found = {}
        for swapping in (False, True):
            name = f"{settings['guide'] if sees_it else 'student'}, {swapping}"
            convert(settings, name)
            found[swapping] = [
                params_of(tmp_path / name, part) for part in ("generator", "student")
            ]
        for left, swapped in zip(found[False], found[True], strict=True):
            assert same_bits(left, swapped) != sees_it
        assert given == [sees_it] * 80
        given.clear()


def test_a_generator_may_step_less_often_and_start_from_images_that_code_draws(
    convert, tmp_path, monkeypatch
):
    monkeypatch.setattr(conversion, "_WARM_START_IMAGES", 64)
    seldom = {**ALTERNATE["generator"], "every": 2}
    convert(ALTERNATE, generator={**seldom, "warm_start_steps": 2}, prior={"strokes": 1.0})
    convert(ALTERNATE, "cold", generator=seldom)
    assert not same_bits(*(params_of(tmp_path / name, "generator") for name in ("run", "cold")))
    path, metadata = checkpoint.find(tmp_path / "run")
    arrays = checkpoint.contents(path)["train"]
    assert (int(arrays["student/step"]), int(arrays["generator/step"])) == (40, 20)
    assert metadata["step"] == 40


# -- what it charges ---------------------------------------------------------------------------

CLAIMS = [
    (ALTERNATE, "plain", {}),
    (PARAM, "plain", {"privacy_unit": "query"}),
    (PARAM, "plain", {"privacy_unit": "record_single"}),
    (ROUNDS, "plain", {}),
    (ANSWERS, "ensemble", {"smooth": True}),
]


@pytest.mark.parametrize(("settings", "teacher", "more"), CLAIMS)
def test_the_checkpoints_ledger_composes_back_to_epsilon(
    convert, tmp_path, settings, teacher, more
):
    found = convert(settings, teacher=teacher, **more)
    _, metadata = checkpoint.find(tmp_path / "run")
    told = metadata["ledger"]
    assert found["ledger"] == told
    report = privacy_spent(told, delta=DELTA)
    assert 0.99 * 5.0 < report.epsilon <= 5.0 * (1 + 1e-6)
    assert report.claim == {**settings, **more}["privacy_unit"]
    assert report.batch_size == SIZE
    assert metadata["config"]["noise_multiplier"] == found["noise_multiplier"]
    (ancestor,) = told["ancestors"]
    assert ancestor["role"] == "mechanism"


@pytest.mark.parametrize("guide", ["student", "teacher"])
def test_the_student_of_a_dp_teacher_inherits_its_claim_and_of_another_makes_none(
    convert, watch, teachers, tmp_path, guide
):
    """All that a DP teacher says is post-processing, so it may guide the generator, too."""
    seen = set()
    watch(lambda name, _, frozen, *__: seen.add((name, "teacher" in frozen)))
    heir = {**PLAIN, "privacy_unit": "record_dp_teacher", "guide": guide}
    found = convert(heir, teacher="dp")
    assert ("generator_step", guide == "teacher") in seen and len(seen) == 2
    assert not (tmp_path / "run" / "private" / "noise.json").exists()
    report, theirs = (
        privacy_spent(told, delta=DELTA)
        for told in (found["ledger"], load_model(teachers["dp"]).metadata["ledger"])
    )
    assert (report.claim, report.epsilon) == ("record_dp_teacher", theirs.epsilon)
    claimless = convert(PLAIN, "none")
    with pytest.raises(InputError, match="no ε to claim"):
        privacy_spent(claimless["ledger"], delta=DELTA)
    # Nor does anything that is made from it, or from a teacher trained without DP.
    for name, teacher in (("heir", tmp_path / "none"), ("other", "plain")):
        with pytest.raises(InputError, match="^teacher: .*its ledger makes no claim"):
            convert(heir, name, teacher)


# -- over kills and moves ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "kill", "total"), [(ALTERNATE, 21, 40), (ROUNDS, 3, 6)], ids=["steps", "rounds"]
)
def test_killed_and_resumed_it_draws_the_same_noise_again_and_pays_once(
    convert, draws, tmp_path, settings, kill, total
):
    draws.kill_at = kill
    with pytest.raises(Killed):
        convert(settings)
    draws.kill_at = None
    told = convert(settings)["ledger"]
    assert len(draws) > total == len(set(draws))
    assert len(draws.keys()) == 1
    assert (charged(told), told.get("restarts", 0)) == (
        total * (SIZE if settings is ROUNDS else 1), 0,
    )  # fmt: skip
    assert 0.99 * 5.0 < epsilon(told) <= 5.0 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("settings", "kill", "saved", "lost", "each"),
    [(ALTERNATE, 21, 16, 16, 1), (ROUNDS, 3, 3, 2, SIZE)],
    ids=["steps", "rounds"],
)
def test_killed_and_moved_it_draws_other_noise_pays_again_and_ends_within_epsilon(
    convert, draws, tmp_path, monkeypatch, settings, kill, saved, lost, each
):
    """To another machine; what was drawn in vain is missing at the end."""
    draws.kill_at = kill
    with pytest.raises(Killed):
        convert(settings)
    assert checkpoint.find(tmp_path / "run")[1]["step"] == saved
    monkeypatch.setattr(noise, "machine", lambda mode: ["elsewhere", mode])
    draws.kill_at = None
    told = convert(settings)["ledger"]
    total = 40 if each == 1 else 6
    end = checkpoint.find(tmp_path / "run")[1]["step"]
    assert end == {1: total - lost, SIZE: 8}[each]
    assert len(draws.keys()) == 2
    assert told["restarts"] == 1
    assert len(set(draws)) * each <= charged(told) <= total * each
    if each == SIZE:  # rounds are written down one by one
        assert len(set(draws)) == kill + 2 and charged(told) == (kill - 1 + 2 + 2) * each
    assert epsilon(told) <= 5.0 * (1 + 1e-6)
    # There it stays, and what it has is whole.
    before = contents(tmp_path / "run")
    convert(settings)
    assert contents(tmp_path / "run") == before


def answers_kept(workdir):
    """Of each round, as bytes."""
    found = {}
    for path in sorted((workdir / "private" / "rounds").iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with np.load(path) as stored:
            found[path.name] = stored["answers"].tobytes()
    return found


@pytest.fixture
def kill_in_round(monkeypatch):
    """`kill_in_round(number, when)`: once, "asked", "drawn" or "kept" answers of that round."""
    noisy, write = exact_noise.noisy_answers, bought.Bought.write

    def start(number, when):
        rounds_left = [number]

        def at(moment, *_):
            if when == moment and rounds_left and rounds_left[0] == 0:
                rounds_left.clear()
                raise Killed

        def noised(*given, **named):
            at("asked")
            found = noisy(*given, **named)
            at("drawn")
            return found

        def kept(self, *given):
            write(self, *given)
            at("kept")
            if rounds_left:
                rounds_left[0] -= 1

        monkeypatch.setattr(exact_noise, "noisy_answers", noised)
        monkeypatch.setattr(bought.Bought, "write", kept)

    return start


def test_answers_that_were_kept_are_read_again_bit_by_bit_and_paid_once(
    convert, kill_in_round, watch, tmp_path
):
    kill_in_round(1, "kept")
    with pytest.raises(Killed):
        convert(ANSWERS, teacher="ensemble")
    before = answers_kept(tmp_path / "run")
    assert set(before) == {"0.npz", "1.npz"}
    asked = []
    watch(lambda name, *_: asked.append(name) if name == "ask" else None)
    told = convert(ANSWERS, teacher="ensemble")["ledger"]
    assert len(asked) == 2  # of the third round alone
    assert (charged(told), told.get("restarts", 0)) == (6 * SIZE, 0)
    after = answers_kept(tmp_path / "run")
    assert {name: after[name] for name in before} == before
    # A run that is given these answers from the start ends with the same bits.
    shutil.copytree(tmp_path / "run" / "private", tmp_path / "straight" / "private")
    convert(ANSWERS, "straight", teacher="ensemble")
    assert contents(tmp_path / "straight")["arrays"] == contents(tmp_path / "run")["arrays"]


@pytest.mark.parametrize("when", ["asked", "drawn"])
def test_answers_that_were_drawn_and_lost_are_charged_again_within_epsilon(
    convert, kill_in_round, tmp_path, when
):
    """Written down before the noise is drawn: nobody can tell the two moments apart."""
    kill_in_round(1, when)
    with pytest.raises(Killed):
        convert(ANSWERS, teacher="ensemble")
    kept = answers_kept(tmp_path / "run")
    told = convert(ANSWERS, teacher="ensemble")["ledger"]
    assert (charged(told), told["restarts"]) == (6 * SIZE, 1)
    assert epsilon(told) <= 5.0 * (1 + 1e-6)
    assert checkpoint.find(tmp_path / "run")[1]["step"] == 8, "of three rounds two are paid for"
    after = answers_kept(tmp_path / "run")
    assert set(after) == {"0.npz", "1.npz"}
    assert after["0.npz"] == kept["0.npz"]


def test_kept_answers_are_not_charged_again_on_another_machine(
    convert, kill_in_round, tmp_path, monkeypatch
):
    kill_in_round(1, "kept")
    with pytest.raises(Killed):
        convert(ANSWERS, teacher="ensemble")
    monkeypatch.setattr(noise, "machine", lambda mode: ["elsewhere", mode])
    told = convert(ANSWERS, teacher="ensemble")["ledger"]
    assert charged(told) == 6 * SIZE
    assert checkpoint.find(tmp_path / "run")[1]["step"] == 12


def published(folder):
    """The bytes of all files outside `private/` and of all arrays, which files hold compressed."""
    held = [path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.relative_to(folder).parts[0] != "private"]  # fmt: skip
    assert len(held) > 5
    for step in checkpoint.steps(folder):
        path, _ = checkpoint.find(folder, step=step)
        arrays = checkpoint.contents(path)
        held += [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(arrays)]
    return held


@pytest.mark.parametrize("settings", [ROUNDS, ANSWERS], ids=["logit", "answers"])
def test_answers_lie_in_private_and_nowhere_else(convert, tmp_path, settings):
    convert(settings, teacher="ensemble" if settings is ANSWERS else "plain")
    folder = tmp_path / "run"
    bits = [answers[:40] for answers in answers_kept(folder).values()]  # of the first query
    assert len(bits) == 3
    assert not [each for each in bits if any(each in one for one in published(folder))]


@pytest.mark.parametrize(
    ("file", "said"),
    [("rounds/1.npz", "answers that this run bought"), ("noise.json", "the noise of this run")],
)
def test_a_run_that_lost_its_answers_or_root_does_not_go_on(
    call, convert, tmp_path, teachers, file, said
):
    convert(ANSWERS, teacher="ensemble")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    (tmp_path / "run" / "private" / file).unlink()
    code, lines = call({**ANSWERS, "teacher": teachers["ensemble"]}, workdir="run")
    assert (code, len(lines)) == (2, 1)
    assert f"is missing, and with it {said}" in lines[0]


# Little noise, and no choice of queries that a last bit could turn.
STEADY = {**ROUNDS, "candidates": 1, "epsilon": 500.0, "learning_rate": 0.01}


def test_eight_devices_convert_as_one_does(convert, tmp_path):
    """All compiled programs, the generator's terms included; the noise is drawn once."""
    convert(STEADY, "run", noise_seed=5)
    convert(STEADY, "eight", parallel="pmap", noise_seed=5)
    for part in ("student", "generator"):
        one, eight = (params_of(tmp_path / name, part) for name in ("run", "eight"))
        for a, b in zip(one, eight, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_resume_on_eight_devices_is_a_move(convert, draws, tmp_path):
    draws.kill_at = 3
    with pytest.raises(Killed):
        convert(STEADY)
    draws.kill_at = None
    told = convert(STEADY, parallel="pmap")["ledger"]
    assert (told["restarts"], len(draws.keys())) == (1, 2)
    assert privacy_spent(told, delta=DELTA).epsilon <= 500.0 * (1 + 1e-6)


def test_killed_in_the_middle_of_a_round_it_ends_bit_by_bit_as_if_nothing_had_happened(
    convert, teachers, tmp_path
):
    """By the system, in a process of its own; noise from a root that nobody was told."""
    workdir, straight = tmp_path / "run", tmp_path / "straight"
    settings = {"teacher": teachers["plain"], **ROUNDS}
    arguments = json.dumps([settings, str(workdir), 4])  # of the second round one half is asked
    process = subprocess.run(
        [sys.executable, __file__, arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert checkpoint.steps(workdir) == [3]
    root = (workdir / "private" / "noise.json").read_text()
    convert(ROUNDS)
    after = json.loads((workdir / "private" / "noise.json").read_text())
    assert after["root"] == json.loads(root)["root"]
    assert (after["restarts"], after["replayed"]) == (0, 0)
    # A run with this root that nobody touched.
    (straight / "private").mkdir(parents=True)
    (straight / "private" / "noise.json").write_text(json.dumps({**after, "reserved": 0}))
    convert(ROUNDS, "straight")
    found, expected = contents(workdir), contents(straight)
    trained = found["arrays"]["train"]
    assert [name for name in trained if name.startswith("bank")] == ["bank/replay_cdf"]
    assert any(name.startswith("student/opt_state") for name in trained)
    assert any(name.startswith("generator/opt_state") for name in trained)
    assert found == expected
    assert charged(found["metadata"]["ledger"]) == 6 * SIZE


# -- the root ----------------------------------------------------------------------------------


def test_two_runs_draw_two_roots_and_nothing_tells_them(convert, tmp_path):
    roots = []
    for name in ("a", "b"):
        convert(ALTERNATE, name, learning_rate=1e-3)  # small: no noise makes it diverge
        roots.append(json.loads((tmp_path / name / "private" / "noise.json").read_text())["root"])
    assert roots[0] != roots[1]
    assert not same_bits(*(params_of(tmp_path / name, "student") for name in "ab"))
    folder = tmp_path / "a"
    secret = bytes.fromhex(roots[0])
    words = np.frombuffer(secret, np.uint32)
    key = np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(words), 0)))
    told = [secret, secret[::-1], roots[0].encode(), key.tobytes()]
    told += [str(word).encode() for word in (*words, *key)]
    held = published(folder)
    assert not [each for each in told if any(each in one for one in held)]
    assert secret.hex().encode() in (folder / "private" / "noise.json").read_bytes()


@pytest.mark.parametrize("settings", [ALTERNATE, ANSWERS], ids=["logit", "answers"])
def test_a_seed_repeats_a_run_and_then_there_is_no_epsilon(convert, tmp_path, settings):
    teacher = "ensemble" if settings is ANSWERS else "plain"
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        told = convert(settings, name, teacher=teacher, noise_seed=seed)["ledger"]
        with pytest.raises(InputError, match="no ε holds: the noise's seed was given"):
            privacy_spent(told, delta=DELTA)
    found = evaluate.privacy(checkpoint.find(tmp_path / "a")[1])
    assert found["epsilon"] is None and "seed was given" in found["why"]
    assert "epsilon" not in evaluate.describe(found)
    card = release.release(tmp_path / "a", tmp_path / "released")
    assert "epsilon" not in json.dumps(card)
    first, second, third = (contents(tmp_path / name) for name in "abc")
    assert first == second
    assert first["arrays"] != third["arrays"]


# -- what it refuses ---------------------------------------------------------------------------


@pytest.fixture
def call(teachers, tmp_path, capfd):
    """`call(settings, *flags)`: the exit code and the one line of the binary in this process."""

    def run(settings, *flags, workdir="refused"):
        given = {"teacher": teachers["plain"], **settings}
        file = tmp_path / "config.py"
        file.write_text(
            "from ml_collections import config_dict\n"
            f"def get_config(arg=''):\n    return config_dict.ConfigDict({given!r}).lock()\n"
        )
        capfd.readouterr()
        code = cli.exit_code(
            lambda argv: cli.run_training(train.train_and_evaluate, train.Settings, argv),
            [f"--config={file}", f"--workdir={tmp_path / workdir}", *flags],
        )
        return code, capfd.readouterr().err.splitlines()

    return run


@pytest.fixture(scope="module")
def odd_data(tmp_path_factory):
    """Data sets with 3 classes, and with images of 12×12."""
    folder, rng = tmp_path_factory.mktemp("odd"), np.random.default_rng(0)
    for name, classes, size in (("classes", 3, 8), ("inputs", 10, 12)):
        arrays = {}
        for split in ("train", "test"):
            arrays[f"x_{split}"] = rng.integers(0, 256, (30, size, size, 1), dtype=np.uint8)
            arrays[f"y_{split}"] = np.arange(30) % classes
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


@pytest.mark.parametrize(
    ("settings", "changes", "line"),
    [
        (ALTERNATE, {"epsilon": 0.0}, "epsilon: got 0.0; "),
        (ALTERNATE, ["--config.epsilon=0"], "epsilon: got 0"),
        (ALTERNATE, ["--config.generator.depth=2"], "generator.depth: got"),
        (ALTERNATE, {"delta": 0.01, "num_examples": 100}, "delta: got 0.01; must be below 1/N"),
        (ANSWERS, {}, "teacher: got"),
        (PLAIN, {"privacy_unit": "record_dp_teacher"}, "teacher: got"),
        (ALTERNATE, {"dataset": "npz:ODD/classes.npz"}, "teacher: got"),
        (ALTERNATE, {"dataset": "npz:ODD/inputs.npz"}, "teacher: got"),
        (ALTERNATE, {"teacher": "nowhere"}, "teacher: got 'nowhere'; "),
        (ALTERNATE, {"batch_size": 12}, "batch_size: got 12; must be divisible by the 8 devices"),
        (ROUNDS, {"prior": {"strokes": 0.0}}, "prior: got"),
        (ROUNDS, {"prior": {"strokes": 1.0}, "prior_extent": (0.9, 0.2)}, "prior_extent: got"),
        (ALTERNATE, {"model_kwargs": {"norm": "batch"}}, "model: got 'cnn'; has statistics of a"),
    ],
)
def test_what_is_wrong_costs_one_line_and_writes_nothing(
    call, tmp_path, odd_data, settings, changes, line
):
    changes = json.loads(json.dumps(changes).replace("ODD", str(odd_data)))
    flags, changes = (changes, {}) if isinstance(changes, list) else ([], changes)
    code, said = call({**settings, **changes}, *flags)
    assert (code, len(said)) == (2, 1), said
    assert said[0].startswith(f"error: {line}")
    assert not (tmp_path / "refused").exists()


def test_a_run_goes_on_only_as_it_was_begun(call, convert, teachers, tmp_path):
    convert(ROUNDS)
    path = tmp_path / "run"
    shutil.rmtree(path / "checkpoints" / "12")  # as if it had been killed
    assert checkpoint.steps(path) == [9]

    def files():
        return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}

    before = files()
    for changes, field in (
        ({"batch_size": 8}, "batch_size"),
        ({"norm": 2.0}, "norm"),
        ({"epsilon": 6.0}, "epsilon"),
        ({"delta": 1e-6}, "delta"),
        ({"noise_seed": 1}, "noise_seed"),
        ({"num_steps": 24}, "planned_num_steps"),
        ({"generator": {**ROUNDS["generator"], "width": 3}}, "generator.width"),
        ({"teacher": teachers["other"]}, "teacher"),
    ):
        code, said = call({**ROUNDS, **changes}, workdir="run")
        assert (code, len(said)) == (2, 1), said
        assert said[0].startswith(f"error: {field}: got "), said
        assert "this run was started with" in said[0]
        assert files() == before
    # How often it logs and saves is free.
    code, said = call({**ROUNDS, "log_every": 1, "save_every": 2, "eval_every": 7}, workdir="run")
    assert code == 0, said
    assert charged(checkpoint.find(path)[1]["ledger"]) == 6 * SIZE


def test_a_generator_needs_several_values_to_normalise_over(tmp_path):
    """Images of 4x4 pixels grow from a single one: one image leaves one value per channel."""
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)
    split = (images, np.arange(6) % 2)
    small = make_dataset("small", split, split, classes=("a", "b"))
    teacher = load_model(save(tmp_path / "teacher", dataset=small))
    group = {**ALTERNATE["generator"], "norm": "batch"}
    given = {**ALTERNATE, "teacher": str(tmp_path / "teacher"), "generator": group}
    hp = validate(given)
    conversion.choose(hp, teacher)
    hp = dataclasses.replace(hp, batch_size=1)
    with pytest.raises(InputError, match="^batch_size: got 1; leaves the generator's batch norm"):
        conversion.choose(hp, teacher)
    for changed in ({"norm": "none"}, {"every": 0}):
        other = dataclasses.replace(hp.generator, **changed)
        conversion.choose(dataclasses.replace(hp, generator=other), teacher)
    with pytest.raises(InputError, match="^crop_padding: got 4; must be below the 4 pixels"):
        conversion.choose(dataclasses.replace(hp, batch_size=2, crop_padding=4), teacher)


def _main(settings, workdir, kill_at):
    """The program: see the module's docstring."""
    parallel.choose_mode = lambda mode=None: SINGLE_DEVICE
    asked = []

    def before(name, *_):
        asked.extend([1] if name == "ask" else [])
        if len(asked) == kill_at:
            while not checkpoint.steps(workdir):  # written in the background
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)

    parallel.wrap = watched(before)
    train.train_and_evaluate(settings, workdir)


if __name__ == "__main__":
    _main(*json.loads(sys.argv[1]))
