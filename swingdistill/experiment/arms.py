"""The arms of the comparison: which settings each changes, and which runs it takes.

Names and settings of the baselines are ours; the paper's own list could not be read.
"""

from collections.abc import Mapping
from typing import Any

from swingdistill.scorers import scoring

PLAIN = {"scorers": (), "noise_scale": 0.0, "epsilon": 0.0}
PRIVATE = "dp_sgd"  # labels alone as `student_ce`, differentially privately
HEADLINE = ("student_ce", "kd", "ce_dropped", "mask", "swing")
LARGE = ("teacher", "reference")  # networks of the teacher's size; all others are students
SWEPT = {"constant": "constant temperature", "swing": "swing"}  # over the noise; what they are


def ablations(hp: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arm -> the settings of `swingdistill.train` that it changes, all students of one teacher.

    - `student_ce`: labels alone, no teacher.
    - `kd`: plain distillation.
    - `ce_dropped`: no labels on private tokens, no Swing: the control for what dropping does.
    - `mask`: neither labels nor soft targets on private tokens.
    - `swing`: the method, as the config has it.
    - the rest takes a part away or applies it everywhere.
    """
    t_min = hp["t_min"]
    uniform = hp["uniform_temperature"]
    arms: dict[str, dict[str, Any]] = {
        "student_ce": {"teacher": None, "reference": None},
        "kd": PLAIN | {"t_max": t_min},
        "ce_dropped": {"t_max": t_min, "noise_scale": 0.0, "epsilon": 0.0},
        "mask": {"variant": "mask", "epsilon": 0.0},
        "swing": {},
        "uniform_temperature": PLAIN | {"t_min": uniform, "t_max": uniform},
        "uniform_noise": {"scorers": (), "t_max": t_min, "noise_everywhere": True},
        "swing_no_temperature": {"t_max": t_min},
        "swing_no_noise": {"noise_scale": 0.0, "epsilon": 0.0},
        "swing_keep_ce": {"keep_ce": True},
        "swing_anchored": {"variant": "anchored"},
    }
    if any(name in scoring.TEXT_SCORERS for name in hp["scorers"]):
        arms["swing_divergence"] = {"scorers": ("divergence",)}
    return arms


def decoys() -> dict[str, str]:
    """Arm on the decoy text -> the arm whose settings it has."""
    return {"kd_decoy": "kd", "swing_decoy": "swing", "swing_divergence_decoy": "swing_divergence"}


def sweep(noise_scales: tuple[float, ...], t_min: float) -> dict[str, dict[str, Any]]:
    """Arms over the noise: Swing, and distillation at a constant temperature with the same noise.

    Both have the noise on the same tokens and drop their labels alike; they differ in temperature.
    """
    arms = {}
    for scale in noise_scales:
        arms[at_noise("swing", scale)] = {"noise_scale": scale}
        arms[at_noise("constant", scale)] = {"noise_scale": scale, "t_max": t_min}
    return arms


def at_noise(kind: str, scale: float) -> str:
    """The arm of `SWEPT` at one noise scale."""
    return f"{kind}_noise{scale:g}"
