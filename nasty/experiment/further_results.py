"""What an experiment found beyond the comparison, as tables, JSON and figures."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from distill_core.experiment import report
from distill_core.experiment.plotting import attempt
from nasty.experiment import ablations, sweep_figures
from nasty.experiment.ablations import AXES, Point, shown
from nasty.experiment.contest import Contest

LEAST_DATA_FREE_GAP = 0.05  # the paper's (†), in its table for DAFL
UNCHECKED = "† From a secondary source, not checked against the paper."


class Further(NamedTuple):
    """Tables as `report.write_html` takes them, and fields of results.json."""

    tables: list[tuple[str, Sequence[str], Sequence[Sequence[str | None]]]]
    fields: dict[str, Any]


def collect(
    results: Mapping[tuple[str, int], Mapping[str, Any]],
    *,
    sweeps: Mapping[str, Sequence[Point]],
    fought: Contest | None,
    inverted: Mapping[str, Any] | None,
    targets: Mapping[str, float],
) -> Further:
    """Everything that the experiment's config asked for beside the comparison.

    Args:
      results: of the comparison, by (arm, seed).
      sweeps: points of each ablation.
      fought: attacks against defences.
      inverted: what `inversion_stage.reconstruct` returned.
      targets: arm -> the paper's accuracy (†), a fraction.
    """
    accuracies = _accuracies(results)
    means = {arm: float(np.mean(values)) for arm, values in accuracies.items()}
    found = Further([], {})
    _add_targets(found, accuracies, targets)
    if sweeps:
        _add_trends(found, sweeps, means)
    for name, points in sweeps.items():
        _add_sweep(found, name, points)
    if fought is not None:
        _add_contest(found, fought)
    if inverted is not None:
        _add_inversion(found, inverted)
    return found


def draw_figures(
    workdir: epath.Path,
    results: Mapping[tuple[str, int], Mapping[str, Any]],
    sweeps: Mapping[str, Sequence[Point]],
    fought: Contest | None,
    inverted: bool,
) -> list[tuple[str, epath.Path | None]]:
    """(caption, PNG) of what `collect` has tables of, in `<workdir>/figures`; a picture that fails
    is None."""
    folder, made = workdir / "figures", []
    alone = float(np.mean(_accuracies(results)["student_alone"]))
    for name, points in sweeps.items():
        axis, values = AXES[name], [shown(point.value) for point in points]
        drawn = attempt(
            sweep_figures.sweep,
            folder / f"ablation_{name}.png",
            axis.label,
            values,
            _series(name, points),
            alone,
            connected=not isinstance(points[0].value, Mapping),
        )
        made.append((f"Test accuracy by {axis.label}. The paper: {axis.paper}.", drawn))
    if fought is not None:
        path, mean = folder / "contest.png", float(np.mean(fought.alone))
        drawn = attempt(sweep_figures.contest, path, fought.attacked, mean)
        made.append(("What every attack got out of every defence.", drawn))
    if inverted:
        caption = (
            "Images that both teachers take for the classes, reconstructed from the same noise. "
            "The paper: those of the nasty teacher are noisier, with features of wrong classes."
        )
        # The stage drew it, if it could.
        found = sorted((workdir / "runs" / "inversion").glob("*/inversion.png"))
        made.append((caption, found[0] if found else None))
    return made


def _accuracies(results: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, list[float]]:
    """Arm -> the accuracy of each seed."""
    found: dict[str, list[float]] = {}
    for (arm, _), result in results.items():
        found.setdefault(arm, []).append(result["accuracy"])
    return found


def _series(name: str, points: Sequence[Point]) -> dict[str, list[Sequence[float]]]:
    """Label of each series of an ablation -> the accuracies of each of its points."""
    return {
        label: [point.accuracies[key] for point in points]
        for key, label in AXES[name].series.items()
    }


def _add_targets(found: Further, accuracies, targets: Mapping[str, float]):
    rows = [
        [arm, _percent(values), f"{100 * targets[arm]:.2f}"]
        for arm, values in accuracies.items()
        if arm in targets
    ]
    if rows:
        caption = f"Beside the paper's tables: test accuracy, %. {UNCHECKED}"
        found.tables.append((caption, ["arm", "ours", "the paper's †"], rows))


def _add_trends(found: Further, sweeps: Mapping[str, Sequence[Point]], means: Mapping[str, float]):
    rows, fields = [], {}
    judged = {name: ablations.judge(name, points, means) for name, points in sweeps.items()}
    papers = {name: AXES[name].paper for name in judged}
    papers["student"] = "a weaker student suffers more than one of the teacher's architecture"
    judged["student"] = _weaker_suffer_more(means)
    if "data_free_of_nasty" in means:
        papers["data_free"] = "without data, too, the nasty teacher's student ends 5 points lower"
        gap = means["data_free_of_normal"] - means["data_free_of_nasty"]
        judged["data_free"] = ablations.Trend(
            gap > LEAST_DATA_FREE_GAP, f"{100 * gap:.1f} points below the normal teacher's"
        )
    for name, trend in judged.items():
        label = AXES[name].label if name in AXES else name.replace("_", " ")
        rows.append([label, "yes" if trend.agrees else "no", papers[name], trend.measured])
        fields[name] = {"paper": papers[name], "agrees": trend.agrees, "measured": trend.measured}
    caption = f"Trends of the paper, and whether ours agree. {UNCHECKED}"
    found.tables.append((caption, ["varied", "agrees", "the paper †", "ours"], rows))
    found.fields["trends"] = fields


def _weaker_suffer_more(means: Mapping[str, float]) -> ablations.Trend:
    student, own = (means[f"{x}_of_normal"] - means[f"{x}_of_nasty"] for x in ("student", "self"))
    text = f"gaps of {100 * student:.1f} points (student) and {100 * own:.1f} (teacher's own)"
    return ablations.Trend(student > own, text)


def _add_sweep(found: Further, name: str, points: Sequence[Point]):
    axis = AXES[name]
    values, series = [shown(point.value) for point in points], _series(name, points)
    rows = [
        [value, *(_percent(runs[i]) for runs in series.values())] for i, value in enumerate(values)
    ]
    found.tables.append((f"Test accuracy, %, by {axis.label}", [axis.label, *series], rows))
    found.fields.setdefault("ablations", {})[name] = [
        {"value": value, **{k: report.summarize(v) for k, v in point.accuracies.items()}}
        for value, point in zip(values, points, strict=True)
    ]


def _add_contest(found: Further, fought: Contest):
    defences = fought.defences
    rows: list[list[str | None]] = [
        [attack, *(_percent(fought.attacked[attack, d]) for d in defences)]
        for attack in fought.attacks
    ]
    rows.append(["the teacher itself", *(_percent(fought.teachers[d]) for d in defences)])
    full, times = fought.seconds.get("nasty"), [fought.seconds[d] for d in defences]
    rows.append(["making it, seconds", *(None if t is None else f"{t:.1f}" for t in times)])
    if full:
        shares = [None if t is None else f"{t / full:.0%}" for t in times]
        rows.append(["… of the nasty one's", *shares])
    caption = (
        "Attacks × defences: test accuracy of the attacker's student, %; alone it has "
        f"{_percent(fought.alone)}. Times are of the wall clock, compilation included"
    )
    head = ["attack", *(defence.replace("_", " ") for defence in defences)]
    found.tables.append((caption, head, rows))
    found.fields["attacks_and_defences"] = {
        "attacked": [
            {"attack": attack, "defence": defence, "accuracy": report.summarize(values)}
            for (attack, defence), values in fought.attacked.items()
        ],
        "teachers": {d: report.summarize(values) for d, values in fought.teachers.items()},
        "seconds": fought.seconds,
        "alone": report.summarize(fought.alone),
    }


def _add_inversion(found: Further, inverted: Mapping[str, Any]):
    numbers = {name: inverted[name] for name in ("normal", "nasty")}
    rows = [
        [
            f"{name} teacher",
            f"{100 * each['confidence']:.1f}%",
            f"{each['noisiness']:.3f}",
            f"{100 * each['judge_accuracy']:.1f}%",
        ]
        for name, each in numbers.items()
    ]
    head = ["images from", "its own confidence", "total variation", "right to the student alone"]
    found.tables.append(("Reconstructed images (DeepInversion)", head, rows))
    found.fields["inversion"] = numbers


def _percent(values: Sequence[float]) -> str:
    summary = report.summarize(values)
    spread = f" ± {100 * summary['std']:.2f}" if summary["n"] > 1 else ""
    return f"{100 * summary['mean']:.2f}{spread}"
