"""Ablations of the paper: one setting varied, all else as in the comparison, and what it does.

Each axis names the runs at one of its values, and judges whether our points follow the trend that
the paper shows. The paper's trends (†) are from a secondary source and were not checked against the
paper; how agreement is judged is ours. Runs that the comparison has anyway are used, not run again;
settings that are numbers are traced, so that a sweep compiles once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distill_core import config
from distill_core.config import InputError
from distill_core.experiment.stages import Run

LEAST_RANK_CORRELATION = 0.5
MOST_LOST = 0.02
_NETWORK = ("model", "model_kwargs")
Runs = Mapping[str, Run]  # the comparison's of one seed by arm
Means = Mapping[str, Sequence[float]]  # series -> mean accuracy at each value


@config.settings
class Ablations:
    """The values of each axis; none by default, else at least two."""

    adversary: Mapping[str, Any] = config.mapping(
        default={}, help="NAME: {'model': …, 'model_kwargs': …}"
    )
    omega: tuple[float, ...] = config.sequence(config.number(0.0), default=(), help="of teachers")
    temperature: tuple[float, ...] = config.sequence(
        config.number(0.0, above=True), default=(), help="of students, τ_S"
    )
    alpha: tuple[float, ...] = config.sequence(
        config.number(0.0, 1.0), default=(), help="of students"
    )
    data_share: tuple[float, ...] = config.sequence(
        config.number(0.0, 1.0, above=True), default=(), help="of the students' training data"
    )


class Trend(NamedTuple):
    """Whether our points agree with the paper's trend, and the number that says so."""

    agrees: bool
    measured: str


class Axis(NamedTuple):
    """One ablation.

    Attributes:
      label: of the axis in tables and figures.
      paper: the paper's trend (†) in words.
      series: the columns: name in `runs` -> how a table calls it.
      runs: (the comparison's runs, value) -> this point's, inputs first.
      judge: (mean accuracies of each series, those of the comparison by arm) -> agrees, measured.
    """

    label: str
    paper: str
    series: Mapping[str, str]
    runs: Callable[[Runs, Any], dict[str, Run]]
    judge: Callable[[Means, Mapping[str, float]], tuple[bool, str]]


class Point(NamedTuple):
    """Every seed's test accuracy of each series, at one value."""

    value: Any
    accuracies: dict[str, list[float]]


def values_of(chosen: Ablations | None) -> dict[str, list[Any]]:
    """Axis -> its values, in rising order where they are numbers; axes without values are left out.

    Raises:
      InputError: on `ablations.AXIS`: one value alone, or an adversary that is no network.
    """
    found: dict[str, list[Any]] = {}
    for name, given in config.to_json(chosen).items() if chosen else ():
        if name != "adversary":
            found[name] = sorted(set(map(float, given)))
        else:
            for key, network in given.items():
                with config.within(f"ablations.adversary.{key}"):
                    config.validate(network if isinstance(network, Mapping) else {}, config.Model)
            found[name] = [{"name": key, **network} for key, network in given.items()]
        if len(found[name]) == 1:
            raise InputError(f"ablations.{name}", given, "needs at least two values to compare")
    return {name: values for name, values in found.items() if values}


def shown(value: Any) -> str:
    """A value as tables and figures write it."""
    return value["name"] if isinstance(value, Mapping) else f"{value:g}"


def judge(name: str, points: Sequence[Point], comparison: Mapping[str, float]) -> Trend:
    """Whether an axis's points agree with the paper; `comparison` has mean accuracies by arm."""
    axis = AXES[name]
    means = {
        series: [float(np.mean(point.accuracies[series])) for point in points]
        for series in axis.series
    }
    agrees, measured = axis.judge(means, comparison)
    return Trend(bool(agrees), measured)


def student(base: Run, **changes: float) -> Run:
    """A student of the comparison under changed settings; that student itself where none changes.

    Args:
      base: one of the runs `student_…`.
      **changes: settings that are numbers; they name the run.
    """
    if all(base.settings.get(name) == value for name, value in changes.items()):
        return base
    suffix = "_".join(f"{name}{value:g}" for name, value in changes.items())
    return base._replace(arm=f"{base.arm}_{suffix}", settings={**base.settings, **changes})


def _nasty_teacher(runs: Runs, arm: str, changes: Mapping[str, Any], inputs=None) -> dict[str, Run]:
    """A nasty teacher under changed settings, and its student."""
    base = runs["teacher_nasty"]
    if not inputs and all(base.settings[name] == value for name, value in changes.items()):
        return {"teacher": base, "student": runs["student_of_nasty"]}
    teacher = base._replace(
        arm=f"{arm}_teacher",
        settings={**base.settings, **changes, "check_nastiness": False},
        inputs=inputs or base.inputs,
    )
    pupil = runs["student_of_nasty"]._replace(arm=f"{arm}_student", inputs={"teacher": teacher})
    return {"teacher": teacher, "student": pupil}


def _omega(runs: Runs, value: float) -> dict[str, Run]:
    return _nasty_teacher(runs, f"omega{value:g}", {"omega": value})


def _adversary(runs: Runs, value: Mapping[str, Any]) -> dict[str, Run]:
    arm, normal = f"adversary_{value['name']}", runs["teacher_normal"]
    network = {key: value.get(key, {}) for key in _NETWORK}
    if all(normal.settings[key] == network[key] for key in _NETWORK):
        return {"adversary": normal, **_nasty_teacher(runs, arm, {})}
    own = normal._replace(arm=arm, settings={**normal.settings, **network})
    return {"adversary": own, **_nasty_teacher(runs, arm, {}, {"adversary": own})}


def _of_both(runs: Runs, changes: Mapping[str, float]) -> dict[str, Run]:
    # Both names in the suffix: the attacker's grid has the same runs.
    own = runs["student_of_nasty"].settings
    changes = {"alpha": own["alpha"], "temperature": own["temperature"], **changes}
    return {kind: student(runs[f"student_of_{kind}"], **changes) for kind in ("normal", "nasty")}


def _data_share(runs: Runs, value: float) -> dict[str, Run]:
    kinds = ("alone", "of_normal", "of_nasty")
    return {kind: student(runs[f"student_{kind}"], train_share=value) for kind in kinds}


def _falls(accuracies: Sequence[float], what: str) -> tuple[bool, str]:
    """Whether accuracies fall as the values rise."""
    from scipy.stats import spearmanr

    rho: Any = 0.0  # where they are constant
    if len(set(accuracies)) > 1:
        rho = spearmanr(range(len(accuracies)), accuracies)[0]
    return rho <= -LEAST_RANK_CORRELATION, f"rank correlation {rho:+.2f} with {what}"


def _nasty_whatever(means: Means, comparison: Mapping[str, float]) -> tuple[bool, str]:
    lost = comparison["teacher_normal"] - np.array(means["teacher"])
    below = comparison["student_of_normal"] - np.array(means["student"])
    found = (
        f"teachers lose at most {100 * lost.max():.1f} points; their students end "
        f"{100 * below.min():.1f} to {100 * below.max():.1f} below the normal teacher's"
    )
    return bool((lost <= MOST_LOST).all() and (below > 0).all()), found


def _below_at_every(means: Means, _: Mapping[str, float]) -> tuple[bool, str]:
    gaps = np.array(means["of_normal"]) - np.array(means["of_nasty"])
    found = f"gaps of {100 * gaps.min():.1f} to {100 * gaps.max():.1f} points"
    return bool((gaps > 0).all()), found


_STUDENTS = {"normal": "student of the normal teacher", "nasty": "student of the nasty teacher"}
_TEACHER = {"teacher": "nasty teacher", "student": "its student"}
_OF_NASTY = "the accuracy of the nasty teacher's student"
AXES: dict[str, Axis] = {
    "adversary": Axis(
        "adversary",
        "the teacher becomes nasty, and stays accurate, whatever its adversary's architecture",
        {"adversary": "adversary", **_TEACHER},
        _adversary,
        _nasty_whatever,
    ),
    "omega": Axis(
        "ω",
        "students fall as ω grows",
        _TEACHER,
        _omega,
        lambda means, _: _falls(means["student"], "the student's accuracy"),
    ),
    "temperature": Axis(
        "τ_S",
        "a higher temperature hurts the nasty teacher's student more",
        _STUDENTS,
        lambda runs, value: _of_both(runs, {"temperature": value}),
        lambda means, _: _falls(means["nasty"], _OF_NASTY),
    ),
    "alpha": Axis(
        "α",
        "a smaller α hurts the nasty teacher's student less",
        _STUDENTS,
        lambda runs, value: _of_both(runs, {"alpha": value}),
        lambda means, _: _falls(means["nasty"], _OF_NASTY),
    ),
    "data_share": Axis(
        "share of the training data",
        "the nasty teacher's student stays below the normal one's at every share of the data",
        {"alone": "student alone", **{f"of_{kind}": name for kind, name in _STUDENTS.items()}},
        _data_share,
        _below_at_every,
    ),
}
