"""The whole comparison: what it writes, and which runs a second call does again."""

import dataclasses
import functools
import itertools
import json
import re
import shutil
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest

from distill_core import config, distill, train
from distill_core import load_model as load
from distill_core import step as distill_step
from distill_core.checkpoint import integrity
from distill_core.config import InputError
from distill_core.experiment import report
from distill_core.runtime import process
from distill_core.training import classification, loop
from nasty import nastiness
from nasty import step as nasty_step
from nasty import train as nasty_train
from nasty.experiment import comparison as experiment
from nasty.experiment import data_free, summary

ARMS = (
    "teacher_normal",
    "teacher_nasty",
    "student_alone",
    "student_of_normal",
    "student_of_nasty",
    "self_of_normal",
    "self_of_nasty",
)
NETWORK = {
    "model": "cnn",
    "model_kwargs": {"widths": (4,), "hidden": 8, "norm": "none"},
    "learning_rate": 0.05,
    "batch_size": 16,
    "num_steps": 4,
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Small data, one small network for teachers and students, so that little is compiled."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 60), ("test", 45)):
        labels = np.arange(count) % 3
        noise = rng.integers(0, 100, (count, 8, 8, 1))
        arrays[f"x_{split}"] = (noise + 70 * labels[:, None, None, None]).astype(np.uint8)
        arrays[f"y_{split}"] = labels
    np.savez(folder / "data.npz", **arrays)
    return {
        "dataset": f"npz:{folder}/data.npz",
        "num_validation": 9,
        "seeds": (1,),
        "omega": 0.01,
        "temperature": 4.0,
        "save_every": 2,
        **NETWORK,
        "student": NETWORK,
    }


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    """A finished experiment, not to be touched."""
    workdir = tmp_path_factory.mktemp("finished")
    experiment.run(settings, workdir)
    return workdir


@pytest.fixture
def again(settings, finished, tmp_path, monkeypatch, capsys):
    """`again(…)` runs a copy of the experiment under changed settings, and says what became of its
    stages: {status: arms}."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.setattr(summary, "teacher_figures", lambda *_: [])

    def again(**changes):
        capsys.readouterr()
        experiment.run({**settings, **changes}, tmp_path / "copy")
        statuses = {}
        for line in capsys.readouterr().err.splitlines():
            pattern = r"([\w.]+)/seed\d+[^:]*: (starting|up to date|redoing|resuming)"
            if found := re.match(pattern, line):
                statuses.setdefault(found[2], []).append(found[1])
        return statuses

    again.workdir = tmp_path / "copy"
    return again


def fake(original, calls=None):
    """A binary that trains nothing; held out, its accuracy is alpha / temperature."""

    @functools.wraps(original)
    def run(settings, workdir, *, parallel=None):
        if calls is not None:
            calls.append((workdir, settings))
        held = settings.get("alpha", 0.5) / settings.get("temperature", 1.0)
        return {"accuracy": 1 - held, "validation_accuracy": held, "num_test": 1, "id": ""}

    return run


def test_results_follow_the_schema_and_the_report_needs_no_other_file(finished, settings):
    results = json.loads((finished / "results.json").read_text())
    assert {"method", "dataset", "rows", "gates", "environment"} <= set(results)
    assert (results["method"], results["dataset"]) == ("nasty", settings["dataset"])
    assert [row["arm"] for row in results["rows"]] == list(ARMS)
    for row in results["rows"]:
        accuracy = row["metrics"]["accuracy"]
        assert accuracy["n"] == len(accuracy["values"]) == 1
        assert 0 <= accuracy["mean"] == accuracy["values"][0] <= 1
    rows = {row["arm"]: row["settings"] for row in results["rows"]}
    assert rows["teacher_nasty"] == {
        "model": "cnn",
        "model_kwargs": {"hidden": 8, "norm": "none", "widths": [4]},
        "num_steps": 4,
        "omega": 0.01,
        "temperature": 4.0,
    }
    assert results["nastiness_check"] == ["inconclusive"]  # of so short a training
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert all(arm in page for arm in ARMS)


def test_every_network_is_made_from_the_right_ones(finished):
    about = {arm: load(finished / "runs" / arm / "seed1").metadata for arm in ARMS}
    arms = {each["id"]: arm for arm, each in about.items()}
    made_from = {
        arm: [arms[a["id"]] for a in each["ledger"]["ancestors"]] for arm, each in about.items()
    }
    assert made_from == {
        "teacher_normal": [],
        "teacher_nasty": ["teacher_normal"],
        "student_alone": [],
        "student_of_normal": ["teacher_normal"],
        "student_of_nasty": ["teacher_nasty"],
        "self_of_normal": ["teacher_normal"],
        "self_of_nasty": ["teacher_nasty"],
    }
    seeds = {arm: each["config"]["seed"] for arm, each in about.items()}
    compared = {seeds[arm] for arm in ARMS if arm.startswith("student")}
    assert len(compared) == 1
    assert seeds["self_of_normal"] == seeds["self_of_nasty"]
    assert len({seeds["teacher_normal"], seeds["teacher_nasty"], *compared}) == 3


def test_a_second_call_skips_all_stages_even_in_a_moved_workdir(again, finished):
    assert again(log_every=1, eval_batch_size=7) == {"up to date": list(ARMS)}
    old, new = (
        json.loads((folder / "results.json").read_text()) for folder in (finished, again.workdir)
    )
    assert new["rows"] == old["rows"]


def test_a_changed_setting_redoes_a_run_and_what_depends_on_it(again):
    redone = ["teacher_nasty", "student_of_nasty", "self_of_nasty"]
    others = [arm for arm in ARMS if arm not in redone]
    assert again(omega=0.02) == {"redoing": redone, "up to date": others}


def test_other_data_under_the_same_name_redoes_everything(again, monkeypatch):
    original = classification.load_splits

    def load_splits(hp):
        dataset, splits = original(hp)
        images = np.array(dataset.train.images)
        images[0, 0, 0, 0] ^= 1
        train_split = dataclasses.replace(dataset.train, images=images)
        return dataclasses.replace(dataset, train=train_split), splits

    monkeypatch.setattr(classification, "load_splits", load_splits)
    for module in (train, nasty_train, distill):
        monkeypatch.setattr(module, "train_and_evaluate", fake(module.train_and_evaluate))
    monkeypatch.setattr(integrity, "find", lambda path, **_: (path, {"id": str(path)}))
    monkeypatch.setattr(summary, "responses", lambda *_: {})
    assert again() == {"redoing": list(ARMS)}


def test_an_interrupted_stage_goes_on_where_it_was(again, finished, settings, monkeypatch, capsys):
    shutil.rmtree(again.workdir / "runs" / "student_of_nasty")
    whole = distill.train_and_evaluate

    @functools.wraps(whole)
    def interrupted(settings, workdir, *, parallel=None):
        whole({**settings, "num_steps": 2}, workdir, parallel=parallel)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(distill, "train_and_evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            again()
    capsys.readouterr()
    experiment.run(settings, again.workdir)
    err = capsys.readouterr().err
    assert "student_of_nasty/seed1 (5 of 7): resuming" in err
    assert "resumes from step 2" in err
    assert err.count(": up to date") == len(ARMS) - 1
    ended, straight = (
        jax.tree.leaves(load(folder / "runs" / "student_of_nasty" / "seed1").variables)
        for folder in (again.workdir, finished)
    )
    assert all(map(np.array_equal, ended, straight))


def test_the_attacker_chooses_on_held_out_data_of_the_first_seed(settings, tmp_path, monkeypatch):
    calls, written = [], {}
    for module in (train, nasty_train, distill):
        monkeypatch.setattr(module, "train_and_evaluate", fake(module.train_and_evaluate, calls))
    monkeypatch.setattr(integrity, "find", lambda path, **_: (path, {"id": str(path)}))
    monkeypatch.setattr(summary, "responses", lambda *_: {})
    monkeypatch.setattr(report, "publish", lambda found, _: written.update(rows=found.rows))
    changes = {"seeds": (1, 2), "attack_alphas": (0.1, 0.9), "attack_temperatures": (1.0, 4.0)}
    results = experiment.run({**settings, **changes}, tmp_path)
    # Held out, (0.9, 1) is best; (0.9, 4) is in the table anyway.
    rows = {row.arm: row for row in written["rows"]}
    for teacher in ("normal", "nasty"):
        row = rows[f"attacker_of_{teacher}"]
        assert row.settings["alpha"] == 0.9
        assert row.settings["temperature"] == 1.0
        assert row.metrics["accuracy"] == [1 - 0.9, 1 - 0.9]
        assert results[f"student_of_{teacher}", 1]["accuracy"] == 1 - 0.9 / 4.0
    tried = [
        (path.parts[-2], path.parts[-1])
        for path, _ in calls
        if path.parts[-2].startswith("student_of_nasty")
    ]
    assert sorted(tried) == [
        ("student_of_nasty", "seed1"),
        ("student_of_nasty", "seed2"),
        ("student_of_nasty_alpha0.1_temperature1", "seed1"),
        ("student_of_nasty_alpha0.1_temperature4", "seed1"),
        ("student_of_nasty_alpha0.9_temperature1", "seed1"),
        ("student_of_nasty_alpha0.9_temperature1", "seed2"),
    ]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seeds": ()}, "seeds"),
        ({"attack_alphas": (0.9,)}, "attack_alphas"),
        (
            {"attack_alphas": (0.9,), "attack_temperatures": (4.0,), "num_validation": 0},
            "num_validation",
        ),
        ({"seed": 3}, "seed"),
        ({"student": {"omega": 3}}, "student.omega"),
        ({"batch_size": 13}, "batch_size"),  # on eight devices
        ({"student": {**NETWORK, "batch_size": 13}}, "student.batch_size"),
        ({"ablations": {"omgea": (0.0, 1.0)}}, "ablations.omgea"),
        ({"attacks": {"kd": {}}}, "attacks"),
        ({"attacks": {"kd": {}}, "defences": {"stingy": {"top_k": 4}}}, "defences.stingy.top_k"),
        ({"inversion": {"steps": 3}}, "inversion.steps"),
        ({"students": {"small": {}}}, "students.small"),
        ({"students": {"self": {"model": "cnn"}}}, "students.self"),
        ({"students": {"a": {"model": "cnn", "learning_rate": -1}}}, "students.a.learning_rate"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_made(settings, tmp_path, changes, field):
    with pytest.raises(InputError) as error:
        experiment.run({**settings, **changes}, tmp_path / "run")
    assert error.value.field == field
    assert not (tmp_path / "run").exists()


EXTRAS = {
    "students": {"wide": {"model_kwargs": {"widths": (6,), "norm": "none"}, "model": "cnn"}},
    "ablations": {
        "adversary": {
            "same": {"model": "cnn", "model_kwargs": {"widths": (4,), "hidden": 8, "norm": "none"}},
            "wide": {"model": "cnn", "model_kwargs": {"widths": (6,), "norm": "none"}},
        },
        "omega": (0.0, 0.01),
        "temperature": (1.0, 4.0),
        "alpha": (0.5, 0.9),
        "data_share": (0.5, 1.0),
    },
    "attacks": {
        "kd": {},
        "htc": {"temperature": 9.0},
        "averager": {},
        "skeptical": {
            "model": "nasty.attacks.skeptical:SkepticalCNN",
            "model_kwargs": {"widths": (4,), "hidden": 8},
        },
        "scm": {"num_intermediates": 1},
    },
    "defences": {
        "none": {},
        "nasty": {},
        "stingy": {"top_k": 2},
        "head_only": {"omega": 0.1},
        "cmim": {},
    },
}


def test_ablations_attacks_and_defences_end_in_results_and_report(again):
    assert set(again(**EXTRAS)["up to date"]) == set(ARMS)
    found = json.loads((again.workdir / "results.json").read_text())
    assert set(found["ablations"]) == set(EXTRAS["ablations"])
    assert set(found["trends"]) == {*EXTRAS["ablations"], "student"}
    fought = {(e["attack"], e["defence"]) for e in found["attacks_and_defences"]["attacked"]}
    assert fought == {(a, d) for a in EXTRAS["attacks"] for d in EXTRAS["defences"]}
    rows = [row["arm"] for row in found["rows"]]
    assert rows == [*ARMS, "wide_alone", "wide_of_normal", "wide_of_nasty"]
    page = (again.workdir / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 + 5 + 1
    for text in ("Attacks × defences", "Trends of the paper", "rank correlation", "skeptical"):
        assert text in page
    ablations = {**EXTRAS["ablations"], "omega": (0.0, 0.01, 0.02)}
    begun = again(**{**EXTRAS, "ablations": ablations})["starting"]
    assert begun == ["omega0.02_teacher", "omega0.02_student"]


def test_students_without_data_and_reconstructed_images_join_the_report(
    settings, tmp_path, monkeypatch
):
    calls = []
    monkeypatch.setattr(data_free, "train_and_evaluate", fake(data_free.train_and_evaluate, calls))
    monkeypatch.setattr(data_free, "check", lambda given: calls.clear())
    network = {"widths": (4,), "hidden": 8, "norm": "batch"}
    own = {"model_kwargs": network, "student": {**settings["student"], "model_kwargs": network}}
    own |= {"data_free": {"model": "cnn"}, "inversion": {"num_steps": 2, "images_per_class": 2}}
    experiment.run({**settings, **own}, tmp_path)
    kinds = ("normal", "nasty")
    places = [str(tmp_path / "runs" / f"teacher_{kind}" / "seed1") for kind in kinds]
    assert [given["teacher"] for _, given in calls] == places
    assert {given["dataset"] for _, given in calls} == {settings["dataset"]}
    found = json.loads((tmp_path / "results.json").read_text())
    rows = {row["arm"]: row for row in found["rows"]}
    for kind in kinds:
        assert rows[f"data_free_of_{kind}"]["settings"] == {"model": "cnn", "data": "none"}
        assert set(found["inversion"][kind]) == {"confidence", "noisiness", "judge_accuracy"}
    with np.load(tmp_path / "runs" / "inversion" / "seed1" / "images.npz") as arrays:
        assert arrays["normal"].shape == arrays["nasty"].shape == (6, 8, 8, 1)
        assert arrays["labels"].tolist() == [0, 0, 1, 1, 2, 2]
        assert not np.array_equal(arrays["normal"], arrays["nasty"])
    assert "Reconstructed images" in (tmp_path / "report.html").read_text()


def test_a_sweep_of_numbers_compiles_once(again, monkeypatch):
    chex.clear_trace_counter()
    once = chex.assert_max_traces(distill_step.distillation_loss, n=1)
    monkeypatch.setattr(distill_step, "distillation_loss", once)
    sweep = {"temperature": (1.0, 2.0, 3.0), "alpha": (0.2, 0.4, 0.5)}
    student = {**NETWORK, "learning_rate": 0.013}  # which no step has had before
    assert len(again(student=student, ablations=sweep)["starting"]) >= 5


def test_it_stops_in_time_and_goes_on(settings, tmp_path, monkeypatch):
    clock = itertools.count(0, 60)  # a minute each time it is read
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    for minutes, ending in ((4.0, "at step 2; saved in"), (0.5, "before teacher_normal/seed1")):
        with pytest.raises(loop.StoppedError, match=f"stopped by the deadline {ending}"):
            experiment.run({**settings, "max_minutes": minutes}, tmp_path)
        assert not (tmp_path / "results.json").exists()
    experiment.run({**settings, "max_minutes": 1e6}, tmp_path)
    assert (tmp_path / "results.json").exists()


def test_nasty_teachers_that_differ_in_omega_temperature_and_seed_compile_once(
    settings, finished, tmp_path, monkeypatch
):
    chex.clear_trace_counter()
    once = chex.assert_max_traces(nasty_step.nasty_loss, n=1)
    monkeypatch.setattr(nasty_step, "nasty_loss", once)
    known = config.fields(nasty_train.Settings)
    own = {name: value for name, value in settings.items() if name in known}
    own |= {"adversary": str(finished / "runs" / "teacher_normal" / "seed1")}
    own |= {"learning_rate": 0.013}  # which no step has had before
    digests = set()
    for i, changes in enumerate(({}, {"omega": 0.5}, {"temperature": 9.0}, {"seed": 7})):
        result = nasty_train.train_and_evaluate({**own, **changes}, tmp_path / str(i))
        digests.add(result["id"])
        assert set(nastiness.Nastiness._fields) == set(result["nastiness"])
    assert len(digests) == 4
