"""A budget: the ledger says what was drawn, over kills and moves, and nothing is overspent."""

import dataclasses
import json
import math
import re

import jax
import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.privacy import ledger, noise
from distill_core.privacy.ledger import Entry, Ledger
from dpdfd import privacy_spent, settings
from dpdfd.privacy import budget as module
from dpdfd.privacy import odometer
from dpdfd.privacy.budget import Budget

DELTA, STEPS, SIZE = 1e-5, 12, 16
TEACHER = {"id": "abc", "ledger": {"mechanisms": [], "ancestors": []}}
COMMON = {
    "teacher": "t", "model": "cnn", "learning_rate": 0.1, "batch_size": SIZE, "num_steps": STEPS,
    "epsilon": 3.0, "delta": DELTA,
}  # fmt: skip
ROUNDS = {"num_rounds": 3, "num_queries": 6 * SIZE}
CLAIMS = {
    "query, parameters": {"privacy_unit": "query", "mechanism": "param"},
    "query, logits": {"privacy_unit": "query", "mechanism": "logit", "bound": "clip"},
    "query, rounds": {"privacy_unit": "query", "mechanism": "logit", **ROUNDS},
    "single, parameters": {"privacy_unit": "record_single", "mechanism": "param"},
    "single, logits": {"privacy_unit": "record_single", "mechanism": "logit", **ROUNDS},
    "ensemble": {"privacy_unit": "record_ensemble", "mechanism": "answers", **ROUNDS},
}


def make(claim, teacher=TEACHER, **changes):
    given = CLAIMS[claim] if isinstance(claim, str) else claim
    hp = settings.validate({**COMMON, **given, **changes})
    release = settings.release(hp, num_teachers=20, num_examples=None)
    each = hp.num_steps // (hp.num_rounds or hp.num_steps)
    per_round = hp.num_rounds and hp.num_queries // hp.num_rounds // SIZE

    def releases_at(step):
        return -(-step // each) * per_round if per_round else step

    return Budget(hp, release, releases_at, teacher)


def open_plan(budget, workdir, start, mode="jit", decides=None):
    return budget.plan(workdir, {"teacher": 1}, mode, decides or {"norm": 1.0})(start)


def spent(told):
    """ε of a ledger; 0 where nothing was charged yet."""
    return privacy_spent(told, delta=DELTA).epsilon if told["mechanisms"] else 0.0


@pytest.fixture(autouse=True)
def teachers_account(monkeypatch):
    """What was charged to the teacher, which is none here, by conversion."""
    lines = {}

    def charge(teacher, conversion, entry):
        lines.setdefault((teacher, conversion), entry)
        return ()

    monkeypatch.setattr(odometer, "charge", charge)
    return lines


@pytest.fixture
def elsewhere(monkeypatch):
    def move(name):
        monkeypatch.setattr(noise, "machine", lambda mode: [name, mode])

    return move


# -- ε -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("claim", CLAIMS)
def test_the_noise_of_all_steps_composes_back_to_epsilon(
    claim, epsilon, tmp_path, teachers_account
):
    budget = make(claim, epsilon=epsilon)
    plan = open_plan(budget, tmp_path, 0)
    assert plan.num_steps == STEPS
    told = json.loads(json.dumps(plan.ledger(STEPS)))
    report = privacy_spent(told, delta=DELTA)
    assert 0.99 * epsilon < report.epsilon <= epsilon * (1 + 1e-6)
    assert report.claim == CLAIMS[claim]["privacy_unit"]
    (entry,) = ledger.read(told).mechanisms
    once = budget.release.charge(budget.noise_multiplier)
    assert entry == once.times(budget.releases_at(STEPS))
    assert plan.frozen["noise"]["noise_multiplier"] == budget.noise_multiplier
    assert plan.frozen["teacher"] == 1
    # All that it may release was charged to the teacher beforehand.
    assert list(teachers_account.values()) == [entry]
    assert budget.answer_std == once.std > 0
    # A step more would overspend.
    done = budget.ledger(budget.releases_at(STEPS))
    assert ledger.affordable_steps(done, once, epsilon, DELTA, most=1) == 0


def test_a_ledger_rises_with_the_releases_and_starts_without_a_claim(tmp_path):
    plan = open_plan(make("query, rounds"), tmp_path, 0)
    counts = [sum(m["count"] for m in plan.ledger(step)["mechanisms"]) for step in range(STEPS + 1)]
    assert counts == [0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6]
    with pytest.raises(InputError, match="saw private data and has no mechanism"):
        privacy_spent(plan.ledger(0), delta=DELTA)
    ancestors = plan.ledger(STEPS)["ancestors"]
    assert [(each["id"], each["role"]) for each in ancestors] == [("abc", "mechanism")]


def test_the_multiplier_is_a_short_number_that_another_machine_finds_too(monkeypatch):
    """Rounded up: the noise never shrinks by it."""
    found = make("query, logits").noise_multiplier
    assert len(f"{found:.10g}".replace(".", "")) <= 8
    exact = module.calibrate
    for last_bits in (1 - 1e-13, 1 + 1e-13):
        monkeypatch.setattr(module, "calibrate", lambda *a, x=last_bits, **k: x * exact(*a, **k))
        assert make("query, logits").noise_multiplier == found
    monkeypatch.setattr(module, "calibrate", exact)
    budget = make("query, logits")
    assert found >= exact(budget.release, epsilon=3.0, delta=DELTA, steps=STEPS)


# -- what was drawn ----------------------------------------------------------------------------


class Machine:
    """Runs a budget's plan as the loop does; counts the noise that is drawn, by its key."""

    def __init__(self, claim, workdir):
        self.claim, self.workdir = claim, workdir
        self.drawn, self.saved, self.told = set(), 0, {"mechanisms": []}

    def go(self, *, kill, save_every):
        """From the last checkpoint on, until a kill at this step, if the run gets there."""
        budget = make(self.claim)
        plan = open_plan(budget, self.workdir, self.saved)
        key = tuple(np.asarray(jax.random.key_data(plan.frozen["noise"]["key"])).tolist())
        for step in range(self.saved, plan.num_steps):
            first, end = budget.releases_at(step), budget.releases_at(step + 1)
            for release in range(first, end):
                budget.reserve(release, end - first)
                self.drawn.add((key, release))
            if step == kill:
                return
            if (step + 1) % save_every == 0 or step + 1 == plan.num_steps:
                self.saved, self.told = step + 1, plan.ledger(step + 1)

    @property
    def charged(self):
        return sum(entry["count"] for entry in self.told["mechanisms"])


@pytest.mark.parametrize("claim", ["query, parameters", "query, rounds"])
@pytest.mark.parametrize("moves", [False, True])
def test_killed_it_draws_the_same_noise_again_or_moved_other_noise_and_pays_again(
    claim, moves, tmp_path, elsewhere
):
    """The same bits twice are one release; what was lost to a move is missing at the end."""
    elsewhere("a")
    run, releases_at = Machine(claim, tmp_path), make(claim).releases_at
    run.go(kill=6, save_every=4)
    assert run.saved == 4 and len(run.drawn) > releases_at(4)
    lost = (releases_at(7) - releases_at(4)) * moves
    if moves:
        elsewhere("b")
    run.go(kill=None, save_every=4)
    total = releases_at(STEPS)
    assert (run.saved < STEPS) == moves
    assert releases_at(run.saved) <= total - lost
    assert len(run.drawn) == run.charged <= total
    assert ledger.read(run.told).restarts == moves
    assert spent(run.told) <= 3.0 * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("claim", ["query, parameters", "query, rounds"])
def test_whatever_happens_the_ledger_is_what_was_drawn_and_within_epsilon(
    claim, seed, tmp_path, elsewhere, teachers_account
):
    rng = np.random.default_rng(seed)
    run, total = Machine(claim, tmp_path), make(claim).releases_at(STEPS)
    for _ in range(5):
        elsewhere(str(rng.integers(2)))
        run.go(kill=rng.integers(STEPS + 3), save_every=int(rng.integers(1, 5)))
        assert len(run.drawn) <= total
        assert spent(run.told) <= 3.0 * (1 + 1e-6)
    elsewhere("0")
    before = run.saved
    run.go(kill=None, save_every=3)
    assert len(run.drawn) <= total
    # However often it went on, the teacher was charged for one conversion, and enough.
    (planned,) = teachers_account.values()
    assert run.charged <= planned.count
    if run.saved > before:
        assert run.charged == len(run.drawn)
    else:  # nothing was left; the checkpoint is of before the noise that is lost
        assert run.charged <= len(run.drawn) and (run.saved == STEPS or len(run.drawn) > total - 4)


def test_a_run_with_nothing_left_says_so_and_makes_no_step(tmp_path, elsewhere, capfd):
    elsewhere("a")
    run = Machine("query, parameters", tmp_path)
    run.go(kill=STEPS - 1, save_every=8)  # all is drawn, and 8 steps are saved
    drawn = len(run.drawn)
    elsewhere("b")
    capfd.readouterr()
    run.go(kill=None, save_every=8)
    assert (run.saved, len(run.drawn)) == (8, drawn)
    assert capfd.readouterr().out == (
        "4 releases were drawn before and are charged again: the budget ends at step 8\n"
    )


def test_steps_that_are_never_taken_are_not_charged(tmp_path, elsewhere):
    """Draws are written down some ahead, but not beyond the run's end."""
    elsewhere("a")
    budget = make("query, parameters")
    open_plan(budget, tmp_path, 0)
    budget.reserve(0, 1000)
    elsewhere("b")
    plan = open_plan(make("query, parameters"), tmp_path, 0)
    assert plan.num_steps == 0
    assert sum(entry["count"] for entry in plan.ledger(0)["mechanisms"]) == STEPS


def test_what_decides_the_noise_may_not_change_but_how_often_a_run_logs_and_saves_may(tmp_path):
    decides = {"norm": 1.0, "planned_num_steps": 1, "log_every": 1, "save_every": 1}
    open_plan(make("query, logits"), tmp_path, 0, decides=decides)
    free = {**decides, "log_every": 3, "save_every": 3, "eval_every": 3}
    open_plan(make("query, logits"), tmp_path, 2, decides=free)
    for name in ("norm", "planned_num_steps"):
        with pytest.raises(InputError, match="^workdir: "):
            open_plan(make("query, logits"), tmp_path, 2, decides={**decides, name: 3})


# -- runs without noise of their own -----------------------------------------------------------

NONE = {"privacy_unit": "none", "mechanism": "none", "epsilon": None}
DP_TEACHER = {**NONE, "privacy_unit": "record_dp_teacher"}
SGD_FULL = Entry(
    "gaussian", 9.0, 1.0, 50, "record", ledger.ZERO_OUT, batch_size=500, num_examples=500
)
SGD = Entry("poisson_gaussian", 1.0, 1.0, 50, "record", ledger.ZERO_OUT, sampling_rate=0.02)


def taught_by(told):
    return {"id": "abc", "ledger": told.to_json()}


def test_the_student_of_a_dp_teacher_has_its_ledger():
    teacher = Ledger().charge(SGD)
    budget = make(DP_TEACHER, taught_by(teacher))
    assert budget.plan(None, {}, "jit", {}) is None
    assert budget.noise_multiplier == budget.answer_std == 0.0
    budget.reserve(0, 1)  # nothing to write down
    found = privacy_spent(budget.ledger(0).to_json(), delta=DELTA)
    assert found.claim == "record_dp_teacher"
    assert found.epsilon == privacy_spent(teacher, delta=DELTA).epsilon


@pytest.mark.parametrize(
    "told",
    [
        Ledger(),
        Ledger().charge(SGD).expose("labels"),
        Ledger().charge(SGD).descend("old", Ledger()),
        Ledger().charge(Entry("gaussian", 1.0, 1.0, 1, "query", ledger.REPLACE_ONE)),
        Ledger().charge(Entry("gaussian", 1.0, 1.0, 1, "record", ledger.REPLACE_AT_INDEX)),
    ],
)
def test_a_teacher_without_a_ledger_of_dp_sgd_carries_no_claim(told):
    with pytest.raises(InputError, match="^teacher: "):
        make(DP_TEACHER, taught_by(told))


def test_delta_is_held_against_the_n_of_the_teachers_ledger():
    teacher = Ledger().charge(dataclasses.replace(SGD, num_examples=1000))
    assert make(DP_TEACHER, taught_by(teacher), delta=9e-4)
    with pytest.raises(InputError, match=r"^delta: got 0\.001; must be below 1/N = 0\.001"):
        make(DP_TEACHER, taught_by(teacher), delta=1e-3)


def test_behind_noise_a_teacher_without_a_ledger_is_no_obstacle_but_its_student_is_one():
    student = make("query, logits").ledger(4)
    assert privacy_spent(student, delta=DELTA).claim == "query"
    with pytest.raises(InputError, match="no ε to claim"):
        privacy_spent(make(NONE, taught_by(Ledger().charge(SGD))).ledger(0), delta=DELTA)
    heir = Ledger(public=True).descend("student", make(NONE).ledger(0))
    with pytest.raises(InputError, match="^ancestor: got 'student'; no ε to claim"):
        privacy_spent(heir, delta=DELTA)


# -- what it says ------------------------------------------------------------------------------

RECORD_LOUD = {"privacy_unit": "record_single", "mechanism": "logit", "norm": 1.0, **ROUNDS}
GRADIENTS = {"privacy_unit": "query", "mechanism": "param"}
ADVICE = "A teacher trained with dp may be asked freely: privacy_unit 'record_dp_teacher'"


@pytest.mark.parametrize(
    ("given", "epsilon", "num_parameters", "said", "loud"),
    [
        ("ensemble", 0.5, 9, "in each entry of an answer, whose entries add up to 1", True),
        ("ensemble", 3000.0, 9, "in each entry of an answer, whose entries add up to 1", False),
        (RECORD_LOUD, 3.0, 9, "in each entry of an answer, whose error is at most 1", True),
        ("query, rounds", 500.0, 9, "in each entry of an answer, whose error is at most 1", False),
        ("query, rounds", 1.0, 9, "in each entry of an answer, whose error is at most 1", True),
        (GRADIENTS, 3.0, 10**6, "times as long as 16 gradients can be together", True),
        (GRADIENTS, 30.0, 1, "times as long as 16 gradients can be together", False),
        ("single, parameters", 3.0, 10**4, "times as long as 16 gradients can be together", True),
    ],
)
def test_it_says_how_loud_the_noise_is_and_advises_where_it_covers_the_teacher(
    given, epsilon, num_parameters, said, loud, capfd
):
    budget = make(given, epsilon=epsilon)
    budget.say(num_parameters)
    (line,) = capfd.readouterr().out.splitlines()
    assert said in line and line.startswith("noise ")
    assert ("little of the teacher is left under it" in line) == loud
    # Of use only to whoever wants to protect records.
    about = given if isinstance(given, dict) else CLAIMS[given]
    assert (ADVICE in line) == (loud and about["privacy_unit"] != "query")
    assert len(line) < 300


@pytest.mark.parametrize(
    ("given", "per_unit", "num_parameters"),
    [
        ("ensemble", math.sqrt(2) / 20, 1),  # std is noise_multiplier times Δ
        ("query, rounds", 1.0, 1),
        (GRADIENTS, math.sqrt(400) / SIZE, 400),
    ],
)
def test_the_strength_that_it_says_is_that_of_the_noise(given, per_unit, num_parameters, capfd):
    budget = make(given)
    budget.say(num_parameters)
    (number,) = re.findall(r"^noise (?:of )?(\S+) ", capfd.readouterr().out)
    assert float(number) == pytest.approx(budget.noise_multiplier * per_unit, rel=0.05)


def test_without_noise_it_says_nothing_and_of_moments_how_noisy_they_are(capfd):
    teacher = Ledger().charge(dataclasses.replace(SGD_FULL, std=20.0))
    make(DP_TEACHER, taught_by(teacher)).say(9)
    assert capfd.readouterr().out == ""
    bought = {"moments": {"size": 3, "norm": 1.0}, "prior": {"dp_gaussian": 1.0}, **ROUNDS}
    given = {**DP_TEACHER, "dataset": "digits", "epsilon": 3.0, **bought}
    budget = make(given, taught_by(teacher), epsilon=3.0)
    budget.say(9)
    (line,) = capfd.readouterr().out.splitlines()
    assert line == f"buys class moments under noise of {budget.moments.std:.3g} times their bound"
