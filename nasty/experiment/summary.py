"""An experiment's runs to arms, criteria and a report."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from distill_core import checkpoint, config, evaluate
from distill_core.config import InputError
from distill_core.data import Dataset
from distill_core.experiment import plotting
from distill_core.experiment.report import (
    Figure,
    Gate,
    Report,
    Results,
    Row,
    by_arm,
    decimals,
    percent,
    values_of,
)
from distill_core.experiment.stages import Run, run_directory
from nasty.experiment import figures, representations
from nasty.experiment.further_results import KNOWN_WEAKNESS, Further

MOST_LOST, LEAST_GAP, MOST_BELOW_ALONE = 0.02, 0.05, 0.005  # fractions
# Names of criteria: each says whose accuracy is taken from whose.
_LOST = "accuracy lost by the nasty teacher, against the normal one"
_BELOW_NORMAL = "accuracy lost by the nasty teacher's students, against the normal one's"
_BELOW_ALONE = "accuracy lost by the nasty teacher's students, against the student alone"
_BEHIND_ALONE = "accuracy lost by the normal teacher's students, against the student alone"
_SELF = (
    "accuracy lost by students as large as the nasty teacher, against the normal one's "
    f"{KNOWN_WEAKNESS}"
)
_ATTACKER = f"{_BELOW_NORMAL} at the attacker's best alpha and temperature {KNOWN_WEAKNESS}"
_INPUTS, _POINTS = 6, 1000
_VERDICTS = {True: "nasty", False: "not nasty", None: "inconclusive"}
_NOTES = (
    "Accuracies are fractions of all test examples, at the last step; this run chose nothing on "
    "the test split. How the config's values were chosen, its docstring says.",
    "The method and the loss are those of Ma et al., ICLR 2021; the recipe is the config's. The "
    "nastiness check, the attacker's choice, and attacks and defences other than the paper's in "
    "their details are our reconstruction.",
)


class Arm(NamedTuple):
    """One row of the comparison, and what shaped it."""

    name: str
    settings: Mapping[str, Any]
    nasty: bool  # the nasty teacher, or a student of it
    about: str  # in one line


def arm_of(
    name: str,
    run: Run,
    shown: Sequence[str] = ("model", "model_kwargs", "num_steps", "omega", "alpha", "temperature"),
    **more: str,
) -> Arm:
    """The arm of a run, with those of its settings that a reader compares, and `more`."""
    settings = {key: run.settings[key] for key in shown if key in run.settings}
    return Arm(name, settings | more, _is_nasty(run), run.about)


def _is_nasty(run: Run) -> bool:
    return "omega" in run.settings or any(map(_is_nasty, run.inputs.values()))


def rows_of(arms: Sequence[Arm], results: Results) -> list[Row]:
    """One row per arm over its seeds; accuracies are of the last step, on the test split."""
    runs_of, rows = by_arm(results), []
    for arm in arms:
        runs = runs_of[arm.name]
        metrics = {"accuracy": [r["accuracy"] for r in runs]}
        checks = [r["nastiness"] for r in runs if "nastiness" in r]
        if checks and all(c["nasty"] is not None for c in checks):
            metrics["nastiness_check_gap"] = [
                c["student_of_adversary"] - c["student_of_teacher"] for c in checks
            ]
        rows.append(Row(arm.name, arm.settings, metrics, arm.about))
    return rows


def verdicts_of(results: Results) -> list[str]:
    """What the nastiness check says of each seed's nasty teacher that was checked."""
    checked = [r["nastiness"] for r in by_arm(results)["teacher_nasty"] if "nastiness" in r]
    return [_VERDICTS[each["nasty"]] for each in checked]


def gates_of(results: Results, num_test: int) -> list[Gate]:
    """What the method has to show, its known weaknesses among it."""
    mean = {arm: float(np.mean(runs)) for arm, runs in values_of(results, "accuracy").items()}

    def gate(name: str, value: float, passed: bool, needed: str) -> Gate:
        points = f"{100 * value:.{decimals(num_test)}f} points"
        return Gate(name, bool(passed), points, f"{needed} points")

    def gap(of: str) -> float:
        return mean[f"{of}_of_normal"] - mean[f"{of}_of_nasty"]

    def wide(name: str, of: str) -> Gate:
        return gate(name, gap(of), gap(of) >= LEAST_GAP, "at least 5")

    lost = mean["teacher_normal"] - mean["teacher_nasty"]
    below = mean["student_alone"] - mean["student_of_nasty"]
    behind = mean["student_alone"] - mean["student_of_normal"]
    gates = [
        gate(_LOST, lost, lost <= MOST_LOST, "at most 2"),
        wide(_BELOW_NORMAL, "student"),
        gate(_BELOW_ALONE, below, below > 0, "above 0"),
        gate(_BEHIND_ALONE, behind, behind <= MOST_BELOW_ALONE, "at most 0.5"),
    ]
    if "self_of_nasty" in mean:
        gates.append(wide(_SELF, "self"))
    if "attacker_of_nasty" in mean:
        gates.append(wide(_ATTACKER, "attacker"))
    checked = [r for r in by_arm(results)["teacher_nasty"] if "nastiness" in r]
    verdicts = [r["nastiness"]["nasty"] for r in checked]
    judged = [verdict for verdict in verdicts if verdict is not None]
    if judged:  # a check without power is no criterion missed
        found = f"{sum(judged)} of {len(judged)} runs"
        if unjudged := len(verdicts) - len(judged):
            found += f"; inconclusive in {unjudged} more"
        name = "the nastiness check calls the nasty teacher nasty"
        gates.append(Gate(name, all(judged), found, "all runs that it can judge"))
    return gates


def _lead(accuracies: Mapping[str, Sequence[float]], further: Further, num_test: int) -> str:
    """What was found, for the claim and against it."""
    mean = {arm: f"{percent(runs, num_test)[0]}%" for arm, runs in accuracies.items()}
    said = [
        f"The nasty teacher classifies {mean['teacher_nasty']} of the test images right, the "
        f"normal one {mean['teacher_normal']}. A student distilled from the normal teacher "
        f"reaches {mean['student_of_normal']}, one from the nasty teacher "
        f"{mean['student_of_nasty']}, and one without a teacher {mean['student_alone']}."
    ]
    if "self_of_nasty" in mean:
        gap = np.mean(accuracies["self_of_normal"]) - np.mean(accuracies["self_of_nasty"])
        learns = (
            "is hurt, too" if gap >= LEAST_GAP else "learns from the nasty teacher all the same"
        )
        said.append(
            f"A student as large as the teacher {learns}: {mean['self_of_nasty']}, against "
            f"{mean['self_of_normal']} from the normal one."
        )
    if "attacker_of_nasty" in mean:
        said.append(
            "With α and τ_S chosen on held-out examples a student of the nasty teacher reaches "
            f"{mean['attacker_of_nasty']}, one of the normal teacher {mean['attacker_of_normal']}."
        )
    return " ".join(said + further.lead)


def report_of(
    workdir: epath.Path,
    hp: Any,
    dataset: Dataset,
    results: Results,
    arms: Sequence[Arm],
    further: Further,
    minutes: float,
) -> Report:
    """The experiment's report; `results` by (arm, seed), `arms` in the order of the table."""
    accuracies, verdicts = values_of(results, "accuracy"), verdicts_of(results)
    answered = responses(workdir, hp, dataset)
    notes = [*_NOTES]
    if verdicts:
        notes.append(f"The nastiness check says of teacher_nasty: {', '.join(verdicts)}.")
    if not any("†" in table.caption for table in further.tables):  # else it is explained there
        notes.append("† Not checked against the paper.")
    return Report(
        method="nasty",
        dataset=dataset.name,
        title=f"Nasty teachers on {dataset.name}",
        summary=_lead(accuracies, further, len(dataset.test)),
        num_test=len(dataset.test),
        rows=rows_of(arms, results),
        metrics=["accuracy"],
        gates=[*gates_of(results, len(dataset.test)), *further.gates],
        settings=config.to_json(hp),
        minutes=minutes,
        notes=[*notes, *filter(None, [dataset.note])],
        figures=[
            arms_figure(arms, accuracies),
            *teacher_figures(workdir, hp, dataset, answered),
            *further.figures,
        ],
        tables=further.tables,
        fields={**further.fields, "nastiness_check": verdicts, "responses": answered},
    )


def arms_figure(arms: Sequence[Arm], runs: Mapping[str, Sequence[float]]) -> Figure:
    """The accuracy of every arm."""
    return Figure(
        "Accuracy of every arm; one dot per seed, the dashed line is the student alone.",
        "figures/arms.png",
        lambda path: plotting.accuracies(
            path,
            [arm.name.replace("_", " ") for arm in arms],
            {"accuracy": [runs[arm.name] for arm in arms]},
            colors=[plotting.PALETTE[5 if arm.nasty else 0] for arm in arms],
            reference=float(np.mean(runs["student_alone"])),
        ),
    )


def responses(workdir: epath.Path, hp: Any, dataset: Dataset) -> dict[str, Any]:
    """What the first seed's teachers answer to some test images, one per class.

    Returns:
      `temperature`, `test_rows` (of the images in the test split), and the logits of both teachers,
      `normal` and `nasty`, [N, C]; nothing where their checkpoints were removed.
    """
    _, labels, rows = _shown(dataset)
    rows = rows[np.sort(np.unique(labels, return_index=True)[1])[:_INPUTS]]
    try:
        loaded = [checkpoint.load_model(each) for each in _teachers(workdir, hp)]
    except InputError:
        return {}
    normal, nasty = (
        evaluate.compute_logits(each, dataset.test.images[rows]).tolist() for each in loaded
    )
    return {
        "temperature": hp.temperature,
        "test_rows": rows.tolist(),
        "normal": normal,
        "nasty": nasty,
    }


def teacher_figures(
    workdir: epath.Path, hp: Any, dataset: Dataset, answered: Mapping[str, Any]
) -> list[Figure]:
    """What the first seed's teachers answer (`responses`), and features and logits in the plane."""
    return [
        Figure(
            f"What both teachers tell a student, softened at temperature {hp.temperature:g}. "
            "The paper † shows one peak from a normal teacher, and several from a nasty one.",
            "figures/logit_response.png",
            lambda path: draw_responses(path, answered, dataset) if answered else None,
        ),
        Figure(
            "t-SNE of features and of logits on test images, with the accuracy of a linear probe "
            "and the similarity (linear CKA) to the normal teacher.",
            "figures/embeddings.png",
            lambda path: _embeddings(path, _teachers(workdir, hp), dataset),
        ),
    ]


def draw_responses(
    path: epath.PathLike, answered: Mapping[str, Any], dataset: Dataset
) -> epath.Path:
    """The figure of `responses`."""
    rows = answered["test_rows"]
    images, labels = dataset.test.images[rows], dataset.test.labels[rows]
    logits = answered["normal"], answered["nasty"]
    classes, temperature = dataset.classes, answered["temperature"]
    return figures.logit_response(path, images, *logits, labels, classes, temperature)


def _teachers(workdir: epath.Path, hp: Any) -> list[epath.Path]:
    arms = ("teacher_normal", "teacher_nasty")
    return [run_directory(workdir, arm, hp.seeds[0]) for arm in arms]


def _shown(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images, labels, rows) of some of the test split, shuffled: some are sorted by class."""
    rows = np.random.default_rng(0).permutation(len(dataset.test))[:_POINTS]
    return dataset.test.images[rows], dataset.test.labels[rows], rows


def _embeddings(path, teachers, dataset: Dataset) -> epath.Path | None:
    """None where a class has one image, or a network of a user's own shows no features."""
    images, labels, _ = _shown(dataset)
    loaded = [checkpoint.load_model(each) for each in teachers]
    features = [jax.jit(each.network.features)(each.variables, images) for each in loaded]
    few = np.bincount(labels, minlength=dataset.num_classes).min() < 2
    if few or any(f is None for f in features):
        return None
    logits = [evaluate.compute_logits(teacher, images) for teacher in loaded]
    panels = []
    for name, pair in (("Features", features), ("Logits", logits)):
        for kind, x in zip(("normal", "nasty"), pair, strict=True):
            panels.append(
                figures.Panel(
                    f"{name}, {kind} teacher",
                    representations.tsne(x, seed=0),
                    labels,
                    representations.linear_probe_accuracy(x, labels, seed=0),
                    representations.linear_cka(pair[0], x) if kind == "nasty" else None,
                )
            )
    return figures.embedding_figure(path, panels, dataset.classes)
