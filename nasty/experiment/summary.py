"""An experiment's runs to table, gates, results.json, figures and report.html."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from distill_core import checkpoint, evaluate
from distill_core.data import Dataset
from distill_core.experiment import console, report
from distill_core.experiment.plotting import attempt
from nasty.experiment import figures, representations
from nasty.experiment.further_results import Further

MOST_LOST, LEAST_GAP, MOST_BELOW_ALONE = 0.02, 0.05, 0.005  # fractions
_INPUTS, _POINTS = 6, 1000
_CHECKED = "nastiness_check_gap"
_VERDICTS = {True: "nasty", False: "not nasty", None: "inconclusive"}


def rows_and_gates(
    results: Mapping[tuple[str, int], Mapping[str, Any]],
    hp: Mapping[str, Any],
    attack: Mapping[str, Mapping[str, float]],
) -> tuple[list[report.Row], list[report.Gate]]:
    """One row an arm over its seeds, and what the method has to show.

    Args:
      results: each run's result by (arm, seed); accuracies are of the last step, on the test split.
      hp: the experiment's values.
      attack: teacher kind -> the (α, τ_S) that its attacker chose; {} without an attack.
    """
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for (arm, _), result in results.items():
        arms.setdefault(arm, []).append(result)
    rows = []
    for arm, runs in arms.items():
        metrics = {"accuracy": [r["accuracy"] for r in runs]}
        checks = [r["nastiness"] for r in runs if "nastiness" in r]
        if checks and all(c["nasty"] is not None for c in checks):
            metrics[_CHECKED] = [
                c["student_of_adversary"] - c["student_of_teacher"] for c in checks
            ]
        settings = _settings(arm, hp, attack)
        if checks:
            settings["nastiness_check"] = ", ".join(_VERDICTS[c["nasty"]] for c in checks)
        rows.append(report.Row(arm, settings, metrics))
    return rows, _gates(arms)


def _settings(arm: str, hp, attack) -> dict[str, Any]:
    if arm.startswith("data_free"):
        return {"model": hp["data_free"]["model"], "data": "none"}
    own = arm.startswith(("teacher", "self"))
    name = arm.removesuffix("_alone").removesuffix("_of_normal").removesuffix("_of_nasty")
    further = hp["students"].get(name, {"model": hp["student_model"]})
    settings = {"model": hp["model"] if own else further["model"]}
    if arm == "teacher_nasty":
        settings |= {"omega": hp["omega"], "temperature": hp["temperature"]}
    elif arm.startswith("attacker"):
        settings |= attack[arm.removeprefix("attacker_of_")] | {"chosen_on": "held-out examples"}
    elif "_of_" in arm:
        settings |= {"alpha": hp["alpha"], "temperature": hp["temperature"]}
    return settings


def _gates(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[report.Gate]:
    mean = {arm: float(np.mean([r["accuracy"] for r in runs])) for arm, runs in arms.items()}
    lost = mean["teacher_normal"] - mean["teacher_nasty"]
    gap = mean["student_of_normal"] - mean["student_of_nasty"]
    below = mean["student_alone"] - mean["student_of_nasty"]
    behind = mean["student_alone"] - mean["student_of_normal"]
    gates = [
        _gate("the nasty teacher loses little accuracy", lost, lost <= MOST_LOST, "at most 2"),
        _gate("its students end below the normal teacher's", gap, gap >= LEAST_GAP, "at least 5"),
        _gate("its students end below the student alone", below, below > 0, "above 0"),
        _gate(
            "the normal teacher's student is not behind the student alone",
            behind,
            behind <= MOST_BELOW_ALONE,
            "at most 0.5",
        ),
    ]
    if "attacker_of_nasty" in mean:
        best = mean["attacker_of_normal"] - mean["attacker_of_nasty"]
        name = "the gap stays at the attacker's best alpha and temperature"
        gates.append(_gate(name, best, best >= LEAST_GAP, "at least 5"))
    verdicts = [r["nastiness"]["nasty"] for r in arms["teacher_nasty"] if "nastiness" in r]
    judged = [verdict for verdict in verdicts if verdict is not None]
    if judged:  # a check without power is no criterion missed
        found = f"{sum(judged)} of {len(judged)} runs"
        if unjudged := len(verdicts) - len(judged):
            found += f"; inconclusive in {unjudged} more"
        name = "the nastiness check calls the nasty teacher nasty"
        gates.append(report.Gate(name, all(judged), found, "all runs that it can judge"))
    return gates


def _gate(name: str, value: float, passed: bool, needed: str) -> report.Gate:
    return report.Gate(name, bool(passed), f"{100 * value:.2f} points", f"{needed} points")


def draw_figures(
    workdir: epath.Path,
    dataset: Dataset,
    rows: Sequence[report.Row],
    normal: epath.Path,
    nasty: epath.Path,
    temperature: float,
) -> list[tuple[str, epath.Path | None]]:
    """(caption, PNG) of the arms, the logit response, and features and logits in the plane.

    `normal` and `nasty` are the teachers' workdirs. A picture that fails is None.
    """
    folder, workdirs = workdir / "figures", (normal, nasty)
    return [
        (
            "Accuracy of every arm; one dot a seed, the line is the student alone.",
            attempt(figures.arm_accuracies, folder / "arms.png", rows),
        ),
        (
            f"What both teachers tell a student, softened at temperature {temperature:g}. The "
            "paper shows one peak from a normal teacher, and several from a nasty one.",
            attempt(_response, folder / "logit_response.png", workdirs, dataset, temperature),
        ),
        (
            "t-SNE of features and of logits on test images, with the accuracy of a linear probe "
            "and the similarity (linear CKA) to the normal teacher.",
            attempt(_embeddings, folder / "embeddings.png", workdirs, dataset),
        ),
    ]


def _shown(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of some of the test split, shuffled: some splits are sorted by class."""
    rows = np.random.default_rng(0).permutation(len(dataset.test))[:_POINTS]
    return dataset.test.images[rows], dataset.test.labels[rows]


def _response(path, workdirs, dataset: Dataset, temperature: float) -> epath.Path:
    images, labels = _shown(dataset)
    first = _one_a_class(labels)
    images, labels = images[first], labels[first]
    normal, nasty = (
        evaluate.compute_logits(checkpoint.load_model(each), images) for each in workdirs
    )
    return figures.logit_response(path, images, normal, nasty, labels, dataset.classes, temperature)


def _embeddings(path, workdirs, dataset: Dataset) -> epath.Path | None:
    """None where a class has one image, or a network of a user's own shows no features."""
    images, labels = _shown(dataset)
    teachers = [checkpoint.load_model(each) for each in workdirs]
    features = [_features(teacher, images) for teacher in teachers]
    few = np.bincount(labels, minlength=dataset.num_classes).min() < 2
    if few or any(f is None for f in features):
        return None
    logits = [evaluate.compute_logits(teacher, images) for teacher in teachers]
    panels = []
    for name, pair in (("Features", features), ("Logits", logits)):
        for kind, x in zip(("normal", "nasty"), pair, strict=True):
            points = representations.tsne(x, seed=0)
            panels.append(
                figures.Panel(
                    f"{name}, {kind} teacher",
                    points,
                    labels[: len(points)],
                    representations.linear_probe_accuracy(x, labels, seed=0),
                    representations.linear_cka(pair[0], x) if kind == "nasty" else None,
                )
            )
    return figures.embedding_figure(path, panels, dataset.classes)


def _features(model: checkpoint.LoadedModel, images: np.ndarray) -> np.ndarray | None:
    """Penultimate activations [N, D]; None for a user's network that does not sow them."""
    found = jax.jit(lambda *given: model.network.features(*given))(model.variables, images)
    return None if found is None else np.asarray(found)


def _one_a_class(labels: np.ndarray) -> np.ndarray:
    """The first example of each of some classes."""
    return np.sort(np.unique(labels, return_index=True)[1])[:_INPUTS]


def conclude(
    workdir: epath.Path,
    hp: Mapping[str, Any],
    dataset: Dataset,
    rows: Sequence[report.Row],
    gates: Sequence[report.Gate],
    further: Further,
    minutes: float,
):
    """results.json, and the tables and gates on the console: before anything is drawn."""
    try:
        report.write_results(
            workdir / "results.json",
            method="nasty",
            dataset=dataset.name,
            rows=rows,
            gates=gates,
            environment=report.environment(),
            extra={
                "settings": json.loads(json.dumps(dict(hp))),
                "minutes": minutes,
                **further.fields,
            },
        )
    finally:  # a full disk does not cost the table
        console.conclude(rows, ["accuracy"], gates, _title(dataset), further.tables)


def _title(dataset: Dataset) -> str:
    return f"Nasty teachers on {dataset.name}"


def write_report(
    workdir: epath.Path,
    dataset: Dataset,
    rows: Sequence[report.Row],
    gates: Sequence[report.Gate],
    drawn: Sequence[tuple[str, epath.Path | None]],
    further: Further,
    minutes: float,
):
    """report.html."""
    notes = [
        "Accuracies are fractions of all test examples, at the last step; this run chose nothing "
        "on the test split. How the config's values were chosen, its docstring says.",
        "The method and the loss are those of Ma et al., ICLR 2021; the recipe is the config's. "
        "The nastiness check, the attacker's choice, and attacks and defences other than the "
        "paper's in their details are our reconstruction.",
        f"This call took {minutes:.1f} minutes; stages finished before it are not counted.",
    ] + ([dataset.note] if dataset.note else [])
    mean = {row.arm: report.summarize(row.metrics["accuracy"])["mean"] for row in rows}
    report.write_html(
        workdir / "report.html",
        title=_title(dataset),
        summary=(
            f"The nasty teacher classifies {mean['teacher_nasty']:.1%} of the test images right, "
            f"the normal one {mean['teacher_normal']:.1%}. A student distilled from the normal "
            f"teacher reaches {mean['student_of_normal']:.1%}, one from the nasty teacher "
            f"{mean['student_of_nasty']:.1%}, and one without a teacher "
            f"{mean['student_alone']:.1%}."
        ),
        rows=rows,
        metrics=["accuracy"],
        gates=gates,
        figures=drawn,
        extra_tables=further.tables,
        notes=notes,
        environment=report.environment(),
        command=" ".join(["python -m nasty.experiment", *sys.argv[1:]]),
    )
    console.say_report(workdir / "report.html")
