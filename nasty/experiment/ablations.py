"""Ablations of the paper: one setting varied, all else as in the comparison, and what it does.

Each axis names the stages of one of its values, and judges whether our points follow the trend that
the paper shows. The paper's trends (†) are from a secondary source and were not checked against the
paper; how agreement is judged is ours. Stages that the comparison has anyway are used, not run
again; settings that are numbers are traced, so that a sweep compiles once.
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


class Trend(NamedTuple):
    """Whether our points agree with the paper's trend, and the number that says so."""

    agrees: bool
    measured: str


class Axis(NamedTuple):
    """One ablation.

    Attributes:
      label: of the axis in tables and figures.
      paper: the paper's trend (†) in words.
      series: the columns: name in `stages` -> how a table calls it.
      stages: (comparison's runs of a seed by arm, value) -> this point's, inputs first.
      judge: (values, mean accuracies of each series, those of the comparison by arm) -> Trend.
    """

    label: str
    paper: str
    series: Mapping[str, str]
    stages: Callable[[Mapping[str, Run], Any], dict[str, Run]]
    judge: Callable[[Sequence[Any], Mapping[str, Sequence[float]], Mapping[str, float]], Trend]


class Point(NamedTuple):
    """Every seed's test accuracy of each series, at one value."""

    value: Any
    accuracies: dict[str, list[float]]


def check(ablations: Mapping[str, Any]):
    """Refuses what is no axis, or values that it cannot take.

    Raises:
      InputError: on `ablations` or `ablations.AXIS`.
    """
    for name, values in ablations.items():
        if name not in AXES:
            allowed = f"no such axis of an ablation; {config.suggest(name, AXES)}"
            raise InputError(f"ablations.{name}", values, allowed)
        field = _VALUES[name]
        try:
            read = field.read(values)
        except (TypeError, ValueError):
            raise InputError(f"ablations.{name}", values, field.allowed) from None
        if len(read) < 2:
            raise InputError(f"ablations.{name}", values, "needs at least two values to compare")


def values_of(name: str, given: Any) -> list[Any]:
    """The values of an axis, in rising order where they are numbers."""
    if name == "adversary":
        return [{"name": key, **network} for key, network in given.items()]
    return sorted(float(value) for value in given)


def shown(value: Any) -> str:
    """A value as tables, figures and stages' names write it."""
    return value["name"] if isinstance(value, Mapping) else f"{value:g}"


def judge(name: str, points: Sequence[Point], comparison: Mapping[str, float]) -> Trend:
    """Whether an axis's points agree with the paper; `comparison` has mean accuracies by arm."""
    means = {
        series: [float(np.mean(point.accuracies[series])) for point in points]
        for series in AXES[name].series
    }
    return AXES[name].judge([point.value for point in points], means, comparison)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's ρ, ties at their mean rank; 0 where one side is constant."""
    from scipy.stats import rankdata

    a, b = rankdata(x), rankdata(y)
    spread = a.std() * b.std()
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 0 else 0.0


def _of_teacher(
    stages: Mapping[str, Run], arm: str, changes: Mapping[str, Any], inputs=None
) -> dict[str, Run]:
    """A nasty teacher under changed settings, and its student."""
    base = stages["teacher_nasty"]
    if not inputs and all(base.settings[name] == value for name, value in changes.items()):
        return {"teacher": base, "student": stages["student_of_nasty"]}
    teacher = base._replace(
        arm=f"{arm}_teacher",
        settings={**base.settings, **changes, "check_nastiness": False},
        inputs=inputs or base.inputs,
    )
    student = stages["student_of_nasty"]._replace(arm=f"{arm}_student", inputs={"teacher": teacher})
    return {"teacher": teacher, "student": student}


def _omega(stages, value) -> dict[str, Run]:
    return _of_teacher(stages, f"omega{value:g}", {"omega": value})


def _adversary(stages, value) -> dict[str, Run]:
    name, normal = value["name"], stages["teacher_normal"]
    network = {key: value.get(key, {}) for key in _NETWORK}
    if all(normal.settings[key] == network[key] for key in _NETWORK):
        own = normal
        made = _of_teacher(stages, f"adversary_{name}", {})
    else:
        own = normal._replace(arm=f"adversary_{name}", settings={**normal.settings, **network})
        made = _of_teacher(stages, f"adversary_{name}", {}, {"adversary": own})
    return {"adversary": own, **made}


def student_stage(base: Run, **changes: float) -> Run:
    """A student of the comparison under changed settings; that student itself where none changes.

    Args:
      base: one of the stages `student_…`.
      **changes: settings that are numbers; they name the stage.
    """
    if all(base.settings.get(name) == value for name, value in changes.items()):
        return base
    suffix = "_".join(f"{name}{value:g}" for name, value in changes.items())
    return base._replace(arm=f"{base.arm}_{suffix}", settings={**base.settings, **changes})


def _both(name: str):
    def stages_of(stages, value) -> dict[str, Run]:
        # Both names in the suffix: the attacker's grid has the same stages.
        both = {key: stages["student_of_nasty"].settings[key] for key in ("alpha", "temperature")}
        changes = both | {name: value}
        return {
            kind: student_stage(stages[f"student_of_{kind}"], **changes)
            for kind in ("normal", "nasty")
        }

    return stages_of


def _data_share(stages, value) -> dict[str, Run]:
    return {
        kind: student_stage(stages[f"student_{kind}"], train_share=value)
        for kind in ("alone", "of_normal", "of_nasty")
    }


def _falls(series: str, what: str):
    def judged(values, means, comparison) -> Trend:
        del comparison
        rho = rank_correlation(values, means[series])
        return Trend(rho <= -LEAST_RANK_CORRELATION, f"rank correlation {rho:+.2f} with {what}")

    return judged


def _nasty_whatever(values, means, comparison) -> Trend:
    del values
    lost = comparison["teacher_normal"] - np.array(means["teacher"])
    below = comparison["student_of_normal"] - np.array(means["student"])
    found = (
        f"teachers lose at most {100 * lost.max():.1f} points; their students end "
        f"{100 * below.min():.1f} to {100 * below.max():.1f} below the normal teacher's"
    )
    return Trend(bool((lost <= MOST_LOST).all() and (below > 0).all()), found)


def _below_at_every(values, means, comparison) -> Trend:
    del values, comparison
    gaps = np.array(means["of_normal"]) - np.array(means["of_nasty"])
    found = f"gaps of {100 * gaps.min():.1f} to {100 * gaps.max():.1f} points"
    return Trend(bool((gaps > 0).all()), found)


_STUDENTS = {"normal": "student of the normal teacher", "nasty": "student of the nasty teacher"}
_TEACHER = {"teacher": "nasty teacher", "student": "its student"}
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
        _falls("student", "the student's accuracy"),
    ),
    "temperature": Axis(
        "τ_S",
        "a higher temperature hurts the nasty teacher's student more",
        _STUDENTS,
        _both("temperature"),
        _falls("nasty", "the accuracy of the nasty teacher's student"),
    ),
    "alpha": Axis(
        "α",
        "a smaller α hurts the nasty teacher's student less",
        _STUDENTS,
        _both("alpha"),
        _falls("nasty", "the accuracy of the nasty teacher's student"),
    ),
    "data_share": Axis(
        "share of the training data",
        "the nasty teacher's student stays below the normal one's at every share of the data",
        {
            "alone": "student alone",
            "of_normal": "student of the normal teacher",
            "of_nasty": "student of the nasty teacher",
        },
        _data_share,
        _below_at_every,
    ),
}


def _networks() -> config.Field:
    """{NAME: {"model": …, "model_kwargs": {…}}}."""

    def read(value):
        found = config.mapping().read(value)
        for network in found.values():
            if not isinstance(network, Mapping) or not {"model"} <= set(network) <= set(_NETWORK):
                raise TypeError
        return found

    return config.Field(read, "must be a group of networks: NAME = {'model': …, 'model_kwargs': …}")


_VALUES = {
    "adversary": _networks(),
    "omega": config.sequence(config.number(0.0)),
    "temperature": config.sequence(config.number(0.0, above=True)),
    "alpha": config.sequence(config.number(0.0, 1.0)),
    "data_share": config.sequence(config.number(0.0, 1.0, above=True)),
}
