"""What an experiment found beyond the comparison: tables, figures and fields of results.json."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from distill_core.experiment import plotting
from distill_core.experiment.report import (
    Figure,
    Gate,
    Results,
    Table,
    percent,
    summarize,
    values_of,
)
from distill_core.experiment.stages import run_directory
from nasty.experiment import ablations
from nasty.experiment.ablations import AXES, Point, shown
from nasty.experiment.contest import ATTACKS, DEFENCES, Contest

LEAST_DATA_FREE_GAP = 0.05  # the paper's (†), in its table for DAFL
KNOWN_WEAKNESS = "(a known weakness)"  # at the end of a criterion's name
UNCHECKED = "† From a secondary source, not checked against the paper."


class Further(NamedTuple):
    """Parts of a `report.Report`."""

    tables: list[Table]
    figures: list[Figure]
    fields: dict[str, Any]
    gates: list[Gate]
    lead: list[str]  # sentences


def collect(
    results: Results,
    *,
    seed: int,
    sweeps: Mapping[str, Sequence[Point]],
    fought: Contest | None,
    inverted: Mapping[str, Any] | None,
    targets: Mapping[str, float],
    num_test: int,
) -> Further:
    """Everything that the experiment's config asked for beside the comparison.

    Args:
      results: of the comparison, by (arm, seed).
      seed: the first, whose teachers were inverted.
      sweeps: points of each ablation.
      fought: attacks against defences.
      inverted: what `inversion.reconstruct` returned.
      targets: arm -> the paper's accuracy (†), a fraction.
      num_test: examples that accuracies are of.
    """
    accuracies = values_of(results, "accuracy")
    means = {arm: float(np.mean(values)) for arm, values in accuracies.items()}
    found = Further([], [], {}, [], [])
    known = [arm for arm in accuracies if arm in targets]
    if known:
        caption = f"Beside the paper's tables: test accuracy, %. {UNCHECKED}"
        rows = [
            [arm, _percent(accuracies[arm], num_test), f"{100 * targets[arm]:.2f}"] for arm in known
        ]
        found.tables.append(Table(caption, ["arm", "ours", "the paper's †"], rows))
    if sweeps:
        _add_trends(found, sweeps, means)
        alone = means["student_alone"]
        every = [p.accuracies.values() for points in sweeps.values() for p in points]
        percents = [100 * value for each in every for runs in each for value in runs]
        low, high = min(100 * alone, *percents), max(100 * alone, *percents)
        margin = 0.05 * (high - low) + 0.1
        for name, points in sweeps.items():
            _add_sweep(found, name, points, alone, (low - margin, high + margin), num_test)
    if fought is not None:
        _add_contest(found, fought, num_test)
    if inverted is not None:
        _add_inversion(found, inverted, seed)
    return found


def _add_trends(found: Further, sweeps: Mapping[str, Sequence[Point]], means: Mapping[str, float]):
    # Name in results.json -> (what was varied, the paper's trend, ours).
    judged = {
        name: (AXES[name].label, AXES[name].paper, ablations.judge(name, points, means))
        for name, points in sweeps.items()
    }
    paper = "a weaker student suffers more than one of the teacher's architecture"
    if "self_of_nasty" in means:
        gap, own = (means[f"{a}_of_normal"] - means[f"{a}_of_nasty"] for a in ("student", "self"))
        measured = f"gaps of {100 * gap:.1f} points (student) and {100 * own:.1f} (teacher's own)"
        judged["student"] = ("student", paper, ablations.Trend(gap > own, measured))
    if "data_free_of_nasty" in means:
        paper = "without data, too, the nasty teacher's student ends 5 points lower"
        gap = means["data_free_of_normal"] - means["data_free_of_nasty"]
        measured = f"{100 * gap:.1f} points below the normal teacher's"
        trend = ablations.Trend(gap > LEAST_DATA_FREE_GAP, measured)
        judged["data_free"] = ("data free", paper, trend)
    rows = [
        [label, "yes" if trend.agrees else "no", paper, trend.measured]
        for label, paper, trend in judged.values()
    ]
    caption = f"Trends of the paper, and whether ours agree. {UNCHECKED}"
    found.tables.append(Table(caption, ["varied", "agrees", "the paper †", "ours"], rows))
    found.fields["trends"] = {
        name: {"paper": paper, "agrees": trend.agrees, "measured": trend.measured}
        for name, (_, paper, trend) in judged.items()
    }


def _add_sweep(
    found: Further,
    name: str,
    points: Sequence[Point],
    alone: float,
    limits: tuple[float, float],  # percent, the same for all sweeps
    num_test: int,
):
    axis, values = AXES[name], [shown(point.value) for point in points]
    series = {
        label: [point.accuracies[key] for point in points] for key, label in axis.series.items()
    }
    rows = [
        [value, *(_percent(runs[i], num_test) for runs in series.values())]
        for i, value in enumerate(values)
    ]
    found.tables.append(Table(f"Test accuracy, %, by {axis.label}", [axis.label, *series], rows))

    def draw(path: epath.Path) -> epath.Path:
        with plotting.drawing(path, 3.6) as figure:
            panel = figure.subplots()
            connected = not isinstance(points[0].value, Mapping)
            plotting.sweep(panel, values, series, scale=100, connected=connected)
            panel.axhline(100 * alone, label="student alone", **plotting.REFERENCE)
            panel.set(xlabel=axis.label, ylabel="accuracy, %", ylim=limits)
            figure.legend(loc="outside upper left", ncols=2)
        return path

    caption = f"Test accuracy by {axis.label}. The paper †: {axis.paper}."
    found.figures.append(Figure(caption, f"figures/ablation_{name}.png", draw))
    found.fields.setdefault("ablations", {})[name] = [
        {"value": value, **{key: summarize(runs) for key, runs in point.accuracies.items()}}
        for value, point in zip(values, points, strict=True)
    ]


def _add_contest(found: Further, fought: Contest, num_test: int):
    attacks, defences = list(dict.fromkeys(a for a, _ in fought.attacked)), list(fought.teachers)
    labels = [defence.replace("_", " ") for defence in defences]
    rows: list[list[str | None]] = [
        [attack, *(_percent(fought.attacked[attack, defence], num_test) for defence in defences)]
        for attack in attacks
    ]
    itself = (_percent(fought.teachers[defence], num_test) for defence in defences)
    rows.append(["the teacher itself", *itself])
    full, times = fought.seconds.get("nasty"), [fought.seconds[d] for d in defences]
    rows.append(["making it, seconds", *(None if t is None else f"{t:.1f}" for t in times)])
    if full:
        shares = [None if t is None else f"{t / full:.0%}" for t in times]
        rows.append(["… of the nasty one's", *shares])
    caption = (
        "Attacks × defences: test accuracy of the attacker's student, %; alone it has "
        f"{_percent(fought.alone, num_test)}. Times are of the wall clock, compilation included"
    )
    about = {attack: ATTACKS[attack] for attack in attacks}
    about |= {name: DEFENCES[d].about for name, d in zip(labels, defences, strict=True)}
    found.tables.append(Table(caption, ["attack", *labels], rows, about=about))
    if "nasty" in defences:
        _add_best_attack(found, fought, num_test)
    found.figures.append(
        Figure(
            "What every attack got out of every defence.",
            "figures/contest.png",
            lambda path: plotting.accuracies(
                path,
                [attack.replace("_", " ") for attack in attacks],
                {
                    label: [fought.attacked[attack, defence] for attack in attacks]
                    for label, defence in zip(labels, defences, strict=True)
                },
                reference=float(np.mean(fought.alone)),
                label="accuracy of the attacker's student, %; dashed: the student alone",
            ),
        )
    )
    found.fields["attacks_and_defences"] = {
        "attacked": [
            {"attack": attack, "defence": defence, "accuracy": summarize(values)}
            for (attack, defence), values in fought.attacked.items()
        ],
        "teachers": {defence: summarize(values) for defence, values in fought.teachers.items()},
        "seconds": fought.seconds,
        "alone": summarize(fought.alone),
    }


def _add_best_attack(found: Further, fought: Contest, num_test: int):
    got = {a: values for (a, defence), values in fought.attacked.items() if defence == "nasty"}
    best = max(got, key=lambda attack: np.mean(got[attack]))
    reached, alone = (f"{percent(v, num_test)[0]}%" for v in (got[best], fought.alone))
    found.gates.append(
        Gate(
            f"every attack on the nasty teacher ends below the student alone {KNOWN_WEAKNESS}",
            bool(np.mean(got[best]) < np.mean(fought.alone)),
            f"{reached} by the best, {best}",
            f"below {alone}",
        )
    )
    found.lead.append(
        f"The best of {len(got)} attacks on the nasty teacher, {best}, reaches {reached}."
    )


def _add_inversion(found: Further, inverted: Mapping[str, Any], seed: int):
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
    found.tables.append(Table("Reconstructed images (DeepInversion)", head, rows))
    found.figures.append(
        Figure(
            "Images that both teachers take for the classes, reconstructed from the same noise. "
            "The paper †: those of the nasty teacher are noisier, with features of wrong classes.",
            str(run_directory("", "inversion", seed) / "inversion.png"),  # drawn by the stage
        )
    )
    found.fields["inversion"] = numbers


def _percent(values: Sequence[float], num_test: int) -> str:
    return " ± ".join(filter(None, percent(values, num_test)))
