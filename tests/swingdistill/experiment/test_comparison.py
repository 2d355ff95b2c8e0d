"""The whole comparison: what it writes, and which runs a second call does again."""

import dataclasses
import json
import re
import shutil

import pytest

from distill_core import load_model as load
from distill_core.config import InputError, part_of, to_json, validate
from distill_core.experiment import stages
from swingdistill import evaluate, private_text, train
from swingdistill.experiment import arms, summary
from swingdistill.experiment import comparison as experiment

HEADLINE = ("student_ce", "kd", "ce_dropped", "mask", "swing")
ARMS = ("reference", "teacher", *HEADLINE)
_NETWORK = ("model", "model_kwargs", "optimizer", "learning_rate", "num_steps", "batch_size")


@pytest.fixture(scope="module")
def given(settings):
    """A comparison that takes no time; teacher and students are one network, to compile once."""
    base = settings(canary_digits=3, scorers=("rules", "divergence"), t_max=8.0, eval_every=2)
    return {
        **base,
        "student": {name: base[name] for name in _NETWORK},
        "seeds": (1,),
        "ablations": False,
        "decoys": False,
    }


@pytest.fixture(scope="module")
def finished(given, tmp_path_factory):
    """The workdir of a finished experiment, not to be touched."""
    workdir = tmp_path_factory.mktemp("finished")
    experiment.run(given, workdir)
    return workdir


def statuses(err):
    """{status: arms} of what was said on stderr."""
    found = {}
    for line in err.splitlines():
        if said := re.match(r"(\w+)/seed\d+[^:]*: (starting|up to date|redoing|resuming)", line):
            found.setdefault(said[2], []).append(said[1])
    return found


def test_results_hold_every_arm_its_secrets_and_the_gates(finished, given):
    results = json.loads((finished / "results.json").read_text())
    assert (results["method"], results["dataset"]) == ("swingdistill", given["dataset"])
    assert [row["arm"] for row in results["rows"]] == list(ARMS)
    for row in results["rows"]:
        metrics = row["metrics"]
        assert {"perplexity", "accuracy", "public_perplexity"} <= set(metrics)
        bits = [f"{kind}exposure_{n}" for n in (1, 4) for kind in ("", "worst_")]
        assert set(bits) <= set(metrics)
        seed = "0" if row["arm"] == "reference" else "1"
        for level in ("1", "4"):
            values = results["exposure"][row["arm"]][seed][level]
            assert len(values) == 2
            assert metrics[f"worst_exposure_{level}"]["values"] == [max(values)]
        found = results["attacks"][row["arm"]][seed]
        for level in ("1", "4"):
            roc = found["membership"]["canaries"][level]["mean"]
            assert metrics[f"tpr_{level}"]["values"] == [roc["tpr"]]
            counts = found["extraction"]["canaries"][level]
            assert metrics[f"extracted_{level}"]["values"] == [counts["sampled"] / 2]
    membership = [gate for gate in results["gates"] if "membership" in gate["name"]]
    assert [gate["name"].split()[-1] for gate in membership] == ["repetitions", "swing", "mask"]
    assert all(set(gate) == {"name", "passed", "value", "needed"} for gate in results["gates"])
    assert "leak" in results["gates"][0]["name"] and not results["gates"][0]["passed"]
    assert set(results["scorers"]["1"]) >= {"rules", "divergence", "combined"}
    rows = {row["arm"]: row["settings"] for row in results["rows"]}
    budget = {"mode": "empirical", "noise_scale": 1.0}
    assert rows["swing"] == {"model": "transformer", **budget}
    assert rows["kd"] == {"model": "transformer", **budget, "noise_scale": 0.0}
    assert rows["teacher"] == rows["student_ce"] == {"model": "transformer"}


def test_the_report_holds_the_figures_and_says_first_that_nothing_is_claimed(finished):
    page = (finished / "report.html").read_text()
    figures = sorted(path.name for path in (finished / "figures").iterdir())
    assert figures == ["exposure.png", "scorers.png"]
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in re.sub(r"https?://www\.w3\.org", "", page)
    assert all(arm in page for arm in ARMS)
    assert "our reconstruction" in page and "Sample text as the scores see it" in page
    places = [page.index(words) for words in ("Nothing can be claimed", "Results by arm")]
    assert places == sorted(places)


def test_every_run_is_made_from_the_right_ones(finished):
    models = {arm: load(finished / "runs" / arm / f"seed{int(arm != 'reference')}") for arm in ARMS}
    names = {model.metadata["id"]: arm for arm, model in models.items()}
    made_from = {
        arm: [names[a["id"]] for a in model.metadata["ledger"]["ancestors"]]
        for arm, model in models.items()
    }
    assert made_from == {
        "reference": [],
        "teacher": [],
        "student_ce": [],
        "kd": ["teacher"],
        "ce_dropped": ["teacher", "reference"],
        "mask": ["teacher", "reference"],
        "swing": ["teacher", "reference"],
    }
    of = {arm: model.metadata["config"] for arm, model in models.items()}
    halves = {arm: (c["half"], c["transfer_set"]) for arm, c in of.items()}
    assert halves == {
        arm: ("second", "public") if arm == "reference" else ("first", "private") for arm in ARMS
    }
    compared = {of[arm]["seed"] for arm in HEADLINE}
    assert len({of["teacher"]["seed"], of["reference"]["seed"], *compared}) == 3
    assert len({model.tokenizer.to_json() for model in models.values()}) == 1


def test_a_second_call_runs_nothing(given, finished, tmp_path, capsys, monkeypatch):
    shutil.copytree(finished, tmp_path / "moved")
    monkeypatch.setattr(train, "train_and_evaluate", lambda *_, **__: pytest.fail("trains"))
    monkeypatch.setattr(summary, "_figures", lambda *_: [])
    capsys.readouterr()
    experiment.run(given, tmp_path / "moved")
    out, err = capsys.readouterr()
    assert statuses(err) == {"up to date": [*ARMS, "attacks", "scorers"]}
    assert "nothing can be claimed from this run: the first criterion is missed" in out
    assert f"report: {tmp_path}/moved/report.html" in out
    old, new = (
        json.loads((folder / "results.json").read_text())
        for folder in (finished, tmp_path / "moved")
    )
    assert (new["rows"], new["gates"], new["scorers"]) == (
        old["rows"],
        old["gates"],
        old["scorers"],
    )


def planned(given, **changes):
    return experiment.runs(validate({**given, **changes}, experiment.Settings))


def changed(given, **changes):
    """Arms that are done again under changed settings, inputs apart."""
    before, after = (
        {run.arm: stages._known_by(run.settings) for run in planned(given, **each)}
        for each in ({}, changes)
    )
    return [arm for arm in after if after[arm] != before[arm]]


def test_a_change_redoes_what_it_concerns_and_nothing_else(given):
    cadence = {"log_every": 3, "eval_every": 4, "save_every": 2, "eval_batch_size": 16}
    assert changed(given, **cadence) == []
    for changes in ({"t_max": 4.0}, {"noise_scale": 2.0}):
        assert {"swing"} <= set(changed(given, **changes)) <= {"mask", "swing"}
    assert changed(given, student={**given["student"], "learning_rate": 0.02}) == list(HEADLINE)


def test_the_runs_are_known_by_the_content_of_the_text(given, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(stages.Runner, "complete_all", lambda self, _: seen.append(self.data) or {})
    monkeypatch.setattr(stages.Runner, "complete", lambda *_: {})
    monkeypatch.setattr(summary, "report_of", lambda *_: None)
    monkeypatch.setattr(experiment.report, "publish", lambda *_: None)
    for test in ("one line", "another line"):
        for split in ("train", "valid", "test"):
            (tmp_path / split).write_text("a line\nanother" if split == "train" else test)
        experiment.run({**given, "dataset": f"text:{tmp_path}"}, tmp_path / "run")
    assert len(set(seen)) == 2


def test_only_the_first_seed_has_ablations_and_decoys_but_every_seed_the_sweep(given):
    found = planned(given, seeds=(3, 4), ablations=True, decoys=True, sweep=(0.1, 10.0))
    of = {seed: [run.arm for run in found if run.seed == seed] for seed in (3, 4)}
    swept = [f"{kind}_noise{scale:g}" for scale in (0.1, 10.0) for kind in ("swing", "constant")]
    assert of[4] == ["teacher", *HEADLINE, *swept]
    assert {"uniform_noise", "swing_keep_ce", "swing_anchored", "kd_decoy"} <= set(of[3])
    assert {"swing_noise0.1", "constant_noise10"} <= set(of[3])
    assert len(of[3]) == len(set(of[3]))
    assert [run.arm for run in found].count("reference") == 1
    assert found[0].arm == "reference", "inputs come first"


def test_every_arm_is_explained_and_no_two_alike(given):
    changes = {"ablations": True, "decoys": True, "sweep": (0.1, 10.0)}
    changes["dp"] = {"epsilon": 8.0, "delta": 1e-3, "norm": 1.0}
    hp = validate({**given, **changes}, experiment.Settings)
    explained = {run.arm: arms.about(run.arm, hp) for run in experiment.runs(hp)}
    assert len(explained) == 2 + 5 + 7 + 4 + 3 + 1
    assert all(explained.values()) and len({*explained.values()}) == len(explained)
    assert (explained["constant_noise10"], explained["swing_noise0.1"]) == (
        "constant temperature at noise 10",
        "swing at noise 0.1",
    )


def test_the_attacks_ask_every_run_of_a_seed_and_the_reference_once(given):
    plan = planned(given, seeds=(3, 4), decoys=True)
    hp = validate({**given, "seeds": (3, 4), "decoys": True}, experiment.Settings)
    first, second = experiment.attacks(hp, plan)
    for stage in (first, second):
        asked_of = {run.arm for run in plan if run.seed == stage.seed}
        extra = {"reference"} if stage is first else set()
        assert set(stage.settings["arms"]) == asked_of | extra
        assert set(stage.inputs) == asked_of | {"reference"}
        asked = part_of(stage.settings, private_text.Settings)
        teacher = part_of(stage.inputs["teacher"].settings, private_text.Settings)
        assert private_text.draw(asked) == private_text.draw(teacher)
        assert asked.transfer_set == "private"


def test_every_seed_has_secrets_of_its_own_and_its_students_share_their_teachers(given):
    found = planned(given, seeds=(3, 4), decoys=True)
    drawn = {3: set(), 4: set()}
    for run in found[1:]:
        drawn[run.seed].add(private_text.draw(part_of(run.settings, private_text.Settings)))
    assert len(drawn[3]) == len(drawn[4]) == 1 and drawn[3] != drawn[4]
    for run in found:
        decoy = run.arm.endswith("_decoy")
        expected = "public" if run.arm == "reference" else "decoy" if decoy else "private"
        assert run.settings["transfer_set"] == expected
        if "teacher" in run.inputs:
            assert (run.inputs["teacher"].arm, run.inputs["teacher"].seed) == ("teacher", run.seed)


def test_what_counts_as_private_in_the_test_text_is_the_same_for_all_runs(given):
    """Else their perplexities of private and of public tokens could not be compared."""
    expressions = (r"cat \w+",)
    for run in planned(given, ablations=True, decoys=True, expressions=expressions):
        hp = part_of(run.settings, train.Settings)
        assert hp.expressions == expressions, run.arm


def test_every_planned_run_is_one_that_the_binary_takes(given):
    for run in planned(given, ablations=True, decoys=True, sweep=(0.5,)):
        paths = {name: each.arm for name, each in run.inputs.items()}
        trained = {k: v for k, v in run.settings.items() if k != "num_samples"}
        train.check(validate(trained | paths, train.Settings))


def test_no_vocabulary_of_a_comparison_tells_a_word_of_the_teachers_half(given, folder, tmp_path):
    """The reference's is made from its half, and all other runs take it."""
    private = tmp_path / "text"
    shutil.copytree(folder, private)
    lines = (private / "train.txt").read_text().splitlines()
    lines[0] = "the patient Zyxomatic"
    (private / "train.txt").write_text("\n".join(lines))
    dp = {"epsilon": 8.0, "delta": 1e-3, "norm": 1.0}
    changes = {"dataset": f"text:{private}", "tokenizer": "words", "dp": dp, "ablations": True}
    made = {run.arm: run for run in planned(given, **changes)}
    hp = part_of(made["reference"].settings, train.Settings)
    tokenizer = private_text.get_tokenizer(hp)
    assert tokenizer.unk_id in tokenizer.encode("Zyxomatic") and hp.public_text
    whole = private_text.get_tokenizer(dataclasses.replace(hp, public_text=False))
    assert whole.unk_id not in whole.encode("Zyxomatic")
    made.pop("reference")
    for arm, run in made.items():
        taken = {"teacher", "tokenizer"} & set(run.inputs)
        assert len(taken) == 1 and "tokenizer" not in run.settings, arm


def test_noise_is_secret_unless_the_config_gives_a_seed(given):
    secret, given_seed = (
        {(r.arm, r.seed): r.settings.get("noise_seed") for r in planned(given, **more)}
        for more in ({"seeds": (1, 2)}, {"seeds": (1, 2), "noise_seed": 7})
    )
    assert set(secret.values()) == {None}
    seeds = [given_seed["swing", 1], given_seed["swing", 2]]
    assert None not in seeds and len(set(seeds)) == 2, "each seed of secrets has noise of its own"


def test_a_tokenizer_of_the_users_own_is_every_runs(given):
    for run in planned(given, tokenizer="mine.json"):
        assert "tokenizer" not in run.inputs
        assert run.settings["tokenizer"] == "mine.json"


def test_without_scorers_of_text_there_is_no_arm_of_the_divergence_alone(given):
    found = {run.arm for run in planned(given, scorers=("divergence",), decoys=True)}
    assert "swing_divergence" not in found and "swing_decoy" in found


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seeds": ()}, "seeds"),
        ({"canaries_per_level": 0}, "canaries_per_level"),
        ({"canary_digits": 2}, "canary_digits"),
        ({"t_min": 9.0}, "t_max"),
        ({"quantiles": (0.9, 0.5)}, "quantiles"),
        ({"epsilon": 1.0}, "entries"),
        ({"dataset": "text:nowhere"}, "dataset"),
        ({"seed": 3}, "seed"),
        ({"teacher": "runs/x"}, "teacher"),
        ({"student": {"t_max": 3.0}}, "student.t_max"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_made(given, tmp_path, changes, field):
    with pytest.raises(InputError) as error:
        experiment.run({**given, **changes}, tmp_path / "run")
    assert error.value.field == field
    assert not (tmp_path / "run").exists()


def test_a_group_dp_adds_a_student_that_learns_privately_from_labels(given):
    dp = {"epsilon": 8.0, "delta": 1e-3, "norm": 1.0}
    hp = validate({**given, "dp": dp, "dp_batch_size": 20, "dp_num_steps": 9}, experiment.Settings)
    made = {run.arm: run for run in experiment.runs(hp)}
    without = {run.arm: run for run in experiment.runs(dataclasses.replace(hp, dp=None))}
    private = made.pop("dp_sgd")
    assert made == without
    reference = {"tokenizer": made["reference"]}
    assert "dp" not in made["student_ce"].settings and private.inputs == reference
    changed = {"dp": to_json(hp.dp), "batch_size": 20, "num_steps": 9}
    assert private.settings == {**made["student_ce"].settings, **changed}

    spent = {
        "epsilon": 7.99,
        "replace_one_epsilon": 9.1,
        "privacy_unit": "record",
        "adjacency": "zero-out",
        "delta": 1e-3,
    }
    found = {"perplexity": 9.0, "accuracy": 0.5, "exposure": {"1": [1.0], "4": [2.0]}}
    found |= {f"{name}_perplexity": None for name in evaluate.CLASSES}
    results = {
        ("student_ce", 1): {**found, "budget": None},
        ("dp_sgd", 1): {**found, "budget": spent},
    }
    rows = [summary._row(arm, [run], hp) for (arm, _), run in results.items()]
    assert rows[1].metrics["epsilon"] == [7.99] and "epsilon" not in rows[0].metrics
    assert rows[1].metrics["replace_one_epsilon"] == [9.1]
    assert spent.items() <= rows[1].settings.items()
    assert "epsilon" in summary._shown(hp, rows, [1, 4])
    seeded = summary._row("dp_sgd", [{**found, "budget": {}}], hp)
    assert "epsilon" not in seeded.metrics | seeded.settings
    results["dp_sgd", 1] |= {"exposure_among": 10, "exposure_candidates": 10}
    notes = summary._notes(hp, {("dp_sgd", 1): results["dp_sgd", 1]})
    assert any("group privacy" in note for note in notes)
