"""The whole comparison: what it writes, what a second call does again, and what it refuses."""

import dataclasses
import functools
import html
import json
import math
import re
import shutil
import types
from pathlib import Path

import numpy as np
import pytest

from distill_core import data
from distill_core import load_model as load
from distill_core.config import InputError, validate
from distill_core.data.images import dataset as dataset_lib
from distill_core.experiment import plotting, report
from distill_core.runtime import cli, config_file, parallel
from dpdfd import privacy_spent
from dpdfd.experiment import audit, summary
from dpdfd.experiment import comparison as experiment

CONFIG = Path(__file__).parents[3] / "configs/dpdfd/digits.py"
TEACHERS = ("dp_teacher", "dp_teacher_share", "ensemble", "teacher")
DP_TEACHERS = ("dp_teacher", "dp_teacher_share")
# Arms that draw noise of their own on answers, named as their units; and students of DP teachers.
NOISED = ("query", "record_single", "record_ensemble")
HEIRS = ("dp_student", "dp_student_bought_prior", "dp_student_cnn")
PRIVATE = (*NOISED, *HEIRS)
ARMS = ("no_privacy", *PRIVATE)
EVALUATED = tuple(f"{arm}_evaluated" for arm in ARMS)
NETWORK = {"model": "cnn", "model_kwargs": {"widths": (2,), "hidden": 4, "norm": "none"}}
SCATTERING = {"model": "scattering", "model_kwargs": {"J": 1, "L": 4, "components": 20}}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Eight cost more to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "choose_mode", lambda mode=None: mode or "jit")
        yield


def smoke():
    """The config's own smoke run."""
    return config_file.read(f"{CONFIG}:smoke", (), experiment.Settings).to_dict()


@pytest.fixture(scope="module")
def given():
    """The same with tiny networks, so that little is compiled."""
    found = smoke()
    found["teachers"]["teacher"] |= NETWORK
    for name in DP_TEACHERS:
        found["teachers"][name] |= SCATTERING
    found["teachers"]["ensemble"] |= {**SCATTERING, "num_teachers": 20, "copies": 0}
    for name, arm in found["arms"].items():
        arm |= SCATTERING if name == "dp_student" else NETWORK
    found["arms"]["dp_student_cnn"]["fresh"] = {"source": "generator", "num_samples": 48}
    found["fresh"] |= NETWORK
    found["student"]["generator"] |= {"width": 2, "latent_size": 4}
    return found


@pytest.fixture(scope="module")
def finished(given, tmp_path_factory):
    """The workdir of a finished experiment, not to be touched."""
    workdir = tmp_path_factory.mktemp("finished")
    experiment.run(given, workdir)
    return workdir


def table(workdir):
    """Arm -> its row of results.json."""
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    return {row["arm"]: row for row in rows}


def means(workdir, metric):
    found = {arm: row["metrics"].get(metric) for arm, row in table(workdir).items()}
    return {arm: values["mean"] for arm, values in found.items() if values}


# -- what it writes ----------------------------------------------------------------------------


def test_every_run_has_a_row_of_what_was_measured_in_fractions(finished, given):
    results = json.loads((finished / "results.json").read_text())
    assert (results["method"], results["dataset"]) == ("dpdfd", "digits")
    assert [row["arm"] for row in results["rows"]] == [*TEACHERS, *ARMS]
    for row in results["rows"]:
        assert "accuracy" in row["metrics"] and set(row["metrics"]) <= set(summary.METRICS)
        assert all(values["n"] == 1 for values in row["metrics"].values())
        for name in summary.RATES:
            assert 0 <= row["metrics"].get(name, {"mean": 0})["mean"] <= 1
    assert set(means(finished, "fresh_classifier_accuracy")) == set(ARMS)
    told = results["settings"]
    assert told["arms"] == json.loads(json.dumps(given["arms"]))
    assert (told["seeds"], told["delta"], told["num_canaries"]) == ([0], 1e-5, 20)


def test_no_epsilon_stands_without_what_it_is_about(finished):
    about = {
        arm: tuple(row["settings"][name] for name in ("privacy_unit", "adjacency", "delta"))
        for arm, row in table(finished).items()
        if "epsilon" in row["metrics"]
    }
    assert about == {
        **{arm: ("record", "zero-out", 1e-5) for arm in (*DP_TEACHERS, *HEIRS)},
        "query": ("query", "replace one", 1e-5),
        "record_single": ("record", "replace one", 1e-5),
        "record_ensemble": ("record", "replace one, at a fixed index", 1e-5),
    }
    rows = table(finished)
    claims = [rows[arm]["settings"].get("claim") for arm in PRIVATE]
    assert claims == [*NOISED, *["record_dp_teacher"] * len(HEIRS)]
    assert rows["no_privacy"]["settings"]["privacy"] == "no claim"


def test_what_is_spent_is_what_the_checkpoints_say_and_within_the_budget(finished):
    spent, record = (means(finished, name) for name in ("epsilon", "record_epsilon"))
    for arm in PRIVATE:
        ledger = load(finished / "runs" / arm / "seed0").metadata["ledger"]
        found = privacy_spent(ledger, delta=1e-5)
        assert (spent[arm], record[arm]) == (found.epsilon, found.record_epsilon)
        assert 9.9 < spent[arm] <= 10 * (1 + 1e-6)
        assert record[arm] > 100 if arm == "query" else record[arm] == spent[arm]
    for arm in ("dp_student", "dp_student_cnn"):
        assert spent[arm] == spent["dp_teacher"] == record["dp_teacher"]
    assert spent["dp_teacher_share"] < 9 < spent["dp_student_bought_prior"]


def test_a_row_says_how_often_the_private_data_were_used_and_what_dpimagebench_would_print(
    finished,
):
    rows = table(finished)
    used = {arm: row["settings"].get("private_data", "").split(":")[0] for arm, row in rows.items()}
    assert used == {
        **dict.fromkeys((*DP_TEACHERS, "record_single", "record_ensemble"), "once"),
        **dict.fromkeys(("dp_student", "dp_student_cnn"), "once"),
        "dp_student_bought_prior": "twice",
        **dict.fromkeys(("ensemble", "teacher", "no_privacy", "query"), ""),  # protect no record
    }
    assert "the prior's moments" in rows["dp_student_bought_prior"]["settings"]["private_data"]
    delta = 1 / (1437 * math.log(1437))
    stricter, spent = means(finished, "dpimagebench_epsilon"), means(finished, "epsilon")
    # Of the others N is not known, or they protect no record.
    assert {*stricter} == {*DP_TEACHERS, *HEIRS, "record_ensemble", "record_single"}
    for arm, epsilon in stricter.items():
        assert rows[arm]["settings"]["dpimagebench_delta"] == pytest.approx(delta, rel=1e-12)
        ledger = load(finished / "runs" / arm / "seed0").metadata["ledger"]
        assert epsilon == pytest.approx(privacy_spent(ledger, delta=delta).epsilon)
        assert epsilon < spent[arm]  # digits are few: this δ is above 1e-5


def test_an_arms_own_fresh_classifier_is_what_its_evaluation_made(finished):
    found = {
        arm: json.loads((finished / "runs" / f"{arm}_evaluated/seed0/evaluation.json").read_text())
        for arm in ARMS
    }
    assert found["dp_student_cnn"]["num_samples"] == 48
    assert {each["num_samples"] for arm, each in found.items() if arm != "dp_student_cnn"} == {64}
    asked = {
        arm: json.loads((finished / "runs" / f"{arm}_evaluated/seed0/stage.json").read_text())
        for arm in ARMS
    }
    sources = {arm: each["config"]["source"] for arm, each in asked.items()}
    drawn = ("no_privacy", "record_ensemble", "dp_student", "dp_student_bought_prior")
    assert {arm for arm, source in sources.items() if source == "prior"} == {*drawn}


def test_moments_are_bought_of_the_records_that_the_teacher_saw(finished):
    """Of the data with canaries, of which the absent ones count as empty for both."""
    teacher, student = (
        load(finished / "runs" / arm / "seed0").metadata["config"]
        for arm in ("dp_teacher_share", "dp_student_bought_prior")
    )
    assert student["dataset"] == teacher["dataset"] == f"npz:{finished}/data/masked/planted.npz"
    assert student["moments"]["masked"] == teacher["dp"]["masked"]
    assert (student["moments"]["size"], student["moments"]["norm"]) == (8, 4.0)


def test_the_gates_are_about_budgets_audits_and_the_control(finished):
    gates = json.loads((finished / "results.json").read_text())["gates"]
    (budget,) = [gate for gate in gates if "spends" in gate["name"]]
    assert (budget["name"], budget["passed"]) == ("every arm spends no more than its ε", True)
    assert budget["value"].split(" by ")[1] in [*NOISED, "dp_student_bought_prior"]
    audits = [gate for gate in gates if "audit" in gate["name"]]
    (control,) = [gate for gate in audits if gate["name"].endswith("teacher is not private")]
    held = (*DP_TEACHERS, *PRIVATE)
    below = [f"the audit of {arm} stays below its ε for a record" for arm in held]
    if control["passed"]:
        assert sorted(gate["name"] for gate in audits) == sorted([*below, control["name"]])
    else:  # the training is short; what is left was found to be above its ε
        assert summary.NO_POWER in control["value"]
        assert not any(gate["passed"] for gate in audits)
    weaknesses = [gate["name"] for gate in gates[: -1 - len(audits)]]
    assert weaknesses[0] == "the ε of query protects a training record, too"
    assert "one given teacher" in weaknesses[1] and "drawn samples" in weaknesses[2]
    assert len(weaknesses) == 3


def test_the_report_stands_alone_and_says_what_each_epsilon_rests_on(finished):
    page = html.unescape((finished / "report.html").read_text())
    samples = [finished / "runs" / arm / "seed0" / "samples.png" for arm in EVALUATED]
    assert all(path.exists() for path in samples)
    assert page.count("data:image/png;base64,") >= 1 + len(samples)
    for words in ("No record is protected", "it protects no record", "What may be published",
                  "per record, zero-out, δ = 1e-05", "are our reconstruction"):  # fmt: skip
        assert words in page, words
    assert page.index(summary.AUDIENCE) < page.index("Results by arm")
    assert json.loads((finished / "results.json").read_text())["audience"] == summary.AUDIENCE
    rows = table(finished)
    assert not [line for arm in PRIVATE for line in rows[arm]["settings"]["assumptions"]
                if line not in page]  # fmt: skip


def test_no_fingerprint_of_the_data_is_in_what_it_tells(finished):
    remembered = finished.glob("runs/*/*/private/stage.json")
    prints = {json.loads(path.read_text())["data"] for path in remembered}
    assert len(prints) == 3  # the data, and with canaries of two kinds
    told = [finished / "results.json", finished / "report.html", *finished.glob("runs/*/*/*.json")]
    assert len(told) > 2 + len(ARMS)
    for path in told:
        assert not [each for each in prints if each in path.read_text()], path


# -- what is made from what --------------------------------------------------------------------


def test_every_student_is_made_from_its_own_teacher_and_sees_no_training_data(finished):
    models = {arm: load(finished / "runs" / arm / "seed0") for arm in TEACHERS}
    names = {model.metadata["id"]: arm for arm, model in models.items()}
    students = {arm: load(finished / "runs" / arm / "seed0", part="student") for arm in ARMS}
    made_from = {
        arm: [names[a["id"]] for a in model.metadata["ledger"]["ancestors"]]
        for arm, model in students.items()
    }
    assert made_from == {
        "no_privacy": ["teacher"],
        "query": ["teacher"],
        "record_single": ["teacher"],
        "record_ensemble": ["ensemble"],
        "dp_student": ["dp_teacher"],
        "dp_student_cnn": ["dp_teacher"],
        "dp_student_bought_prior": ["dp_teacher_share"],
    }
    of = {arm: model.metadata["config"] for arm, model in students.items()}
    sources = {arm: config["dataset"] for arm, config in of.items()}
    assert sources.pop("dp_student_bought_prior") != "digits"  # it buys moments
    assert set(sources.values()) == {"digits"}  # to measure
    assert len({config["seed"] for config in of.values()}) == 1
    theirs = {model.metadata["config"]["seed"] for model in models.values()}
    assert len(theirs | {of["query"]["seed"]}) == len(TEACHERS) + 1


def test_each_teacher_has_the_canaries_that_its_adjacency_asks_for(finished):
    digits = data.load_dataset("digits")
    for arm in TEACHERS:
        config = load(finished / "runs" / arm / "seed0").metadata["config"]
        name = config["dataset"]
        absent = "masked" if arm in DP_TEACHERS else "replaced"
        assert name == f"npz:{finished}/data/{absent}/planted.npz"
        planted = data.load_dataset(name)
        canaries = audit.load_canaries(finished / "data" / absent / "private" / "canaries.npz")
        assert (canaries.absent, len(canaries.included)) == (absent, 20)
        assert 0 < canaries.included.sum() < 20 and len(planted.train) == len(digits.train)
        changed = np.flatnonzero(planted.train.labels != digits.train.labels)
        if absent == "replaced":
            np.testing.assert_array_equal(changed, canaries.index[canaries.included])
        else:
            np.testing.assert_array_equal(changed, canaries.index)
            empty = np.load(config["dp"]["masked"])
            np.testing.assert_array_equal(empty, canaries.index[~canaries.included])
        np.testing.assert_array_equal(planted.test.labels, digits.test.labels)


def test_audits_are_where_canaries_were_and_with_those_of_the_teacher(finished, given, monkeypatch):
    assert set(means(finished, "audit_epsilon_lower")) == {"teacher", *DP_TEACHERS, *ARMS}
    calls = {}

    def audited(model, canaries, *, delta, comparisons):
        assert (delta, comparisons) == (1e-5, 1 + len(DP_TEACHERS) + len(ARMS))
        calls[names[model.metadata["id"]]] = Path(canaries).parts[-3]
        return {"audit_epsilon_lower": 0.25}

    arms = ("teacher", *DP_TEACHERS, *ARMS)
    names = {load(finished / "runs" / arm / "seed0").metadata["id"]: arm for arm in arms}
    monkeypatch.setattr(experiment.audit, "audit", audited)
    monkeypatch.setattr(report, "publish", lambda *_: None)
    monkeypatch.setattr(summary, "report_of", lambda *_: None)
    results = experiment.run(given, finished)
    masked = dict.fromkeys((*DP_TEACHERS, *HEIRS), "masked")
    assert calls == {arm: masked.get(arm, "replaced") for arm in arms}
    bounds = {arm: found.get("audit_epsilon_lower") for (arm, _), found in results.items()}
    assert bounds == {arm: 0.25 for arm in arms} | {"ensemble": None}


# -- a second call -----------------------------------------------------------------------------


@pytest.fixture
def again(given, finished, tmp_path, monkeypatch, capsys):
    """`again(…)` calls it once more in a copy, and says what became of the stages: {status: names}.

    That it lies elsewhere then must not matter.
    """
    shutil.copytree(finished, tmp_path / "moved")
    monkeypatch.setattr(summary, "_figures", lambda *_: [])

    def again(change=lambda hp: None):
        changed = json.loads(json.dumps(given))
        change(changed)
        capsys.readouterr()
        experiment.run(changed, tmp_path / "moved")
        statuses = {}
        for line in capsys.readouterr().err.splitlines():
            if found := re.match(
                r"(\w+)/seed\d+[^:]*: (starting|up to date|redoing|resuming)", line
            ):
                statuses.setdefault(found[2], []).append(found[1])
        return {status: sorted(names) for status, names in statuses.items()}

    return again


def others(*redone):
    return sorted({*TEACHERS, *ARMS, *EVALUATED} - {*redone})


def test_a_second_call_runs_nothing(again, finished, tmp_path):
    old = json.loads((finished / "results.json").read_text())
    assert again() == {"up to date": others()}
    new = json.loads((tmp_path / "moved" / "results.json").read_text())
    assert (new["rows"], new["gates"]) == (old["rows"], old["gates"])


def test_a_picture_or_report_that_fails_costs_no_result(
    given, finished, tmp_path, monkeypatch, capsys
):
    def fail(*_, **__):
        raise ValueError("no such colour")

    shutil.copytree(finished, place := tmp_path / "moved")
    for name in ("results.json", "report.html"):
        (place / name).unlink()
    (place / "report.html").mkdir()
    monkeypatch.setattr(plotting, "accuracies", fail)
    capsys.readouterr()
    assert cli.exit_code(lambda _: experiment.run(given, place), []) == cli.EXIT_SYSTEM
    err = capsys.readouterr().err
    assert "starting" not in err
    assert f"{place}/figures/arms.png: picture left out: ValueError: no such colour\n" in err
    assert err.splitlines()[-1].startswith(f"error: {place}/report.html: ")
    assert json.loads((place / "results.json").read_text())["rows"]


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        (lambda hp: hp["arms"]["query"].update(epsilon=5.0), ["query", "query_evaluated"]),
        (
            lambda hp: hp["teachers"]["dp_teacher"]["dp"].update(epsilon=9.0),
            [
                *("dp_student", "dp_student_cnn", "dp_student_cnn_evaluated"),
                *("dp_student_evaluated", "dp_teacher"),
            ],
        ),
        (lambda hp: hp["fresh"].update(num_steps=3), sorted(EVALUATED)),
    ],
    ids=["an arm", "a teacher", "the fresh classifier"],
)
def test_what_changes_is_done_again_with_what_is_made_from_it_and_nothing_else(
    again, change, redone
):
    assert again(change) == {"redoing": redone, "up to date": others(*redone)}


def test_other_canaries_redo_the_teachers_and_all_that_is_made_from_them(again):
    assert again(lambda hp: hp.update(num_canaries=30)) == {"redoing": others()}


# -- what is planned ---------------------------------------------------------------------------


@pytest.fixture
def planned(given, tmp_path, monkeypatch):
    """`planned(…)`: the (arm, seed) that would run, in order; nothing is trained or written."""

    def planned(**changes):
        order = []

        def complete(runner, run):
            if not run.arm.endswith("_evaluated"):
                order.append((run.arm, run.seed))
            return {}

        found = (None, {"ledger": {}, "id": ""})
        monkeypatch.setattr(experiment.stages.Runner, "complete", complete)
        monkeypatch.setattr(experiment.checkpoint, "find", lambda path: found)
        monkeypatch.setattr(experiment, "_audit", lambda *_: {})
        monkeypatch.setattr(experiment, "_planted", lambda *_: {})
        monkeypatch.setattr(report, "publish", lambda *_: None)
        monkeypatch.setattr(summary, "report_of", lambda *_: None)
        experiment.run({**given, "num_canaries": 0, **changes}, tmp_path)
        return order

    return planned


def test_teachers_come_first_and_what_runs_once_last_with_the_first_seed_alone(planned):
    assert planned() == [(name, 0) for name in (*TEACHERS, *ARMS)]
    once = ("dp_student", "dp_student_cnn", "dp_teacher", "query")
    every = [
        *("dp_teacher_share", "ensemble", "teacher", "no_privacy"),
        *("record_single", "record_ensemble", "dp_student_bought_prior"),
    ]
    assert planned(seeds=(3, 4), once=once) == [
        *((name, 3) for name in every),
        *((name, 4) for name in every),
        *((name, 3) for name in ("dp_teacher", "query", "dp_student", "dp_student_cnn")),
    ]


def test_without_canaries_teachers_have_the_data_itself_and_nothing_is_audited(given, tmp_path):
    hp = validate({**given, "num_canaries": 0}, experiment.Settings)
    assert experiment._planted(hp, tmp_path, data.load_dataset("digits")) == {}
    assert experiment._audited(hp) == {} and not list(tmp_path.iterdir())
    found = {run.settings["dataset"] for run in experiment.teachers(hp, {}, 0).values()}
    assert found == {"digits"}


@pytest.mark.parametrize("names", [("a", "b", "c", "d"), ("d", "c", "b", "a")])
def test_the_control_is_the_plain_teacher_whatever_names_and_order_are(given, names):
    plain, several, dp = (given["teachers"][n] for n in ("teacher", "ensemble", "dp_teacher"))
    kinds = [dp, several, plain, {**several, "num_teachers": 2}]
    hp = types.SimpleNamespace(teachers=dict(zip(names, kinds, strict=True)))
    assert summary.control(hp) == names[2]
    hp.teachers = dict(sorted(hp.teachers.items()))
    assert summary.control(hp) == names[2]
    del hp.teachers[names[2]]
    assert summary.control(hp) is None


# -- what it refuses ---------------------------------------------------------------------------


def change(path, value):
    """What sets the field at `path`, or with ... removes it."""

    def apply(hp):
        *groups, name = path.split(".")
        for group in groups:
            hp = hp[group]
        if value is ...:
            del hp[name]
        else:
            hp[name] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("seeds", (), "seeds: got (); must name at least one seed"),
        ("delta", 0.001, "delta: got 0.001; must be below 1/N"),
        ("dataset", "digit", "dataset: got 'digit'; "),
        ("num_canaries", 10**6, "num_canaries: got 1000000; "),
        ("fresh.steps", 3, "fresh.steps: got 3; no such field"),
        ("fresh.model", "cn", "fresh.model: got 'cn'; "),
        ("once", ("querry",), "once: got 'querry'; did you mean query?"),
        ("once", ("dp_teacher",), "once: got ('dp_teacher',); must have dp_student, too"),
        ("bars", {"querry": {"accuracy": 0.5}}, "bars.querry: got {'accuracy': 0.5}; did you mean"),
        ("bars", {"query": {"accuracies": 0.5}}, "bars.query.accuracies: got 0.5; no such field"),
        ("bars", {"query": 0.5}, "bars.query: got 0.5; must be a group"),
        ("teachers.teacher.num_step", 3, "teachers.teacher.num_step: got 3; no such field"),
        ("teachers.teacher.model", "cn", "teachers.teacher.model: got 'cn'; "),
        ("teachers.teacher.seed", 3, "teachers.teacher.seed: got 3; "),
        ("teachers.ensemble.num_teachers", 2000, "teachers.ensemble.num_teachers: got 2000; must"),
        ("teachers.dp_teacher.dp.epsilon", -1.0, "teachers.dp_teacher.dp.epsilon: got -1.0; "),
        ("teachers.dp_teacher.dp.delta", 0.001, "teachers.dp_teacher.dp.delta: got 0.001; must be"),
        ("teachers.query", {"model": "cnn"}, "arms.query: got 'query'; must be named otherwise"),
        ("arms.query.teacher", "techer", "arms.query.teacher: got 'techer'; is one of"),
        ("arms.query.privacy_unit", ..., "arms.query.privacy_unit: got None; is required"),
        ("arms.query.epsilon", -1.0, "arms.query.epsilon: got -1.0; must be a number above 0"),
        ("arms.record_single.delta", 1e-6, "arms.record_single.delta: got 1e-06; "),
        ("arms.query.epsilom", 1.0, "arms.query.epsilom: got 1.0; no such field; did you mean"),
        ("arms.query.model", "cn", "arms.query.model: got 'cn'; "),
        ("arms.record_ensemble.teacher", "teacher", "arms.record_ensemble.teacher: got 'teacher';"),
        ("arms.dp_student.teacher", "teacher", "arms.dp_student.teacher: got 'teacher'; is not tr"),
        ("arms.query.fresh", {"steps": 3}, "arms.query.fresh.steps: got 3; no such field"),
        ("arms.query.fresh", {"model": "cn"}, "arms.query.fresh.model: got 'cn'; "),
        ("arms.query.fresh", {"source": "air"}, "arms.query.fresh.source: got 'air'; must be one"),
        ("arms.query.fresh", {"temperature": 0.0}, "arms.query.fresh.temperature: got 0.0; must"),
        ("arms.query.fresh", {"model": None}, "arms.query.fresh.model_kwargs: got {"),
        ("arms.query.fresh", 3, "arms.query.fresh: got 3; must be a group"),
        ("fresh.model", ..., "fresh.model_kwargs: got {'widths': "),
        ("arms.dp_student.prior", {}, "arms.dp_student.fresh.source: got 'prior'; the arm has no"),
        ("arms.dp_student.epsilon", 9.0, "arms.dp_student.epsilon: got 9.0; 'record_dp_teacher' s"),
        ("arms.query.moments", {"size": 4, "norm": 1.0}, "arms.query.moments: got {"),
        ("arms.query.temperature", 2.0, "arms.query.temperature: got 2.0; softens"),
        ("student.modle", "cnn", "student.modle: got 'cnn'; no such field; did you mean model"),
        ("student.generator.depth", 2, "arms.dp_student.generator.depth: got 2; no such field"),
    ],
)  # fmt: skip
def test_what_is_wrong_costs_one_line_before_anything_is_trained(
    given, tmp_path, monkeypatch, path, value, message
):
    monkeypatch.setattr(experiment.stages.Runner, "complete", lambda *_: pytest.fail("trains"))
    changed = json.loads(json.dumps(given))
    change(path, value)(changed)
    with pytest.raises(InputError) as error:
        experiment.run(changed, tmp_path / "run")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.npz"))


def test_files_of_one_name_do_not_go_with_canaries(given, tmp_path, monkeypatch):
    """Stored with canaries, two such files would go to two teachers, by their classes."""
    found = experiment.data.load_dataset("digits")
    record = np.maximum(found.train.index - 1, 0)
    shared = dataclasses.replace(found, train=dataclasses.replace(found.train, record=record))
    monkeypatch.setattr(experiment.data, "load_dataset", lambda *_, **__: shared)
    with pytest.raises(InputError, match="dataset: .*files of one name in several classes; rename"):
        experiment.run(given, tmp_path / "run")


def test_the_binary_refuses_a_field_of_an_arm_by_name(tmp_path, capfd):
    flags = [f"--config={CONFIG}:smoke", f"--workdir={tmp_path / 'run'}"]
    flags += ["--config.arms.query.epsilon=-1"]
    main = functools.partial(cli.run_training, experiment.run, experiment.Settings)
    assert cli.exit_code(main, flags) == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("error: arms.query.epsilon: got -1.0; must be a number")
    assert not (tmp_path / "run").exists()


ARGUMENTS = ("", ":fashion_mnist", ":paper", ":epsilons", ":fashion_epsilons", ":smoke")


@pytest.mark.parametrize(
    "argument", ["digits.py", "digits.py:smoke", *(f"mnist.py{each}" for each in ARGUMENTS)]
)
def test_the_projects_own_comparisons_are_such_as_it_takes(argument):
    """Data of MNIST's kind stand for MNIST itself."""
    given = config_file.read(f"{CONFIG.parent}/{argument}", (), experiment.Settings)
    hp = validate(given, experiment.Settings)
    # Full batches name the number of records; empty pages of memory stand for 60,000 images.
    side, count = (8, 1437) if argument.startswith("digits.py") else (28, 60_000)
    images, labels = np.zeros((count, side, side, 1), np.uint8), np.arange(count) % 10
    few = images[:10], labels[:10]
    classes = tuple("0123456789")
    dataset = dataset_lib.make_dataset("d", (images, labels), few, classes=classes)
    experiment._check(hp, dataset)
    if ":paper" not in argument:
        assert "record_dp_teacher" in {arm["privacy_unit"] for arm in hp.arms.values()}
