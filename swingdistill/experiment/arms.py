"""The arms of the comparison: which settings each changes.

Names and settings of the baselines are ours; the paper's own list could not be read.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from distill_core import config
from swingdistill.scorers import scoring

PRIVATE = "dp_sgd"
LARGE = ("teacher", "reference")  # networks of the teacher's size; all others are students
SWEPT = {"constant": "constant temperature", "swing": "swing"}  # over the noise: kind, label


class Arm(NamedTuple):
    """A student.

    Attributes:
      changes: settings of `swingdistill.train` in place of the experiment's.
      every_seed: whether it runs for every seed of secrets, not only for the first.
      taught: whether it has a teacher; else it learns from labels alone.
    """

    changes: Mapping[str, Any]
    every_seed: bool = False
    taught: bool = True


def students(hp: Any) -> dict[str, Arm]:
    """The students that an experiment's settings ask for, by name.

    - `student_ce`: labels alone, no teacher.
    - `kd`: plain distillation.
    - `ce_dropped`: no labels on private tokens, no Swing: the control for what dropping does.
    - `mask`: neither labels nor soft targets on private tokens.
    - `swing`: the method, as the config has it.
    - the ablations take a part away or apply it everywhere.
    - `…_noise…`: Swing, and distillation at a constant temperature, at the same noise. Both have
      the noise on the same tokens and drop their labels alike; they differ in temperature.
    - `dp_sgd`: labels alone as `student_ce`, differentially privately.
    - `…_decoy`: distilled on text with decoys in place of the canaries.
    """
    plain = {"scorers": (), "noise_scale": 0.0, "epsilon": 0.0}
    cold, uniform = {"t_max": hp.t_min}, hp.uniform_temperature
    found = {
        "student_ce": Arm({}, every_seed=True, taught=False),
        "kd": Arm(plain | cold, every_seed=True),
        "ce_dropped": Arm(cold | {"noise_scale": 0.0, "epsilon": 0.0}, every_seed=True),
        "mask": Arm({"variant": "mask", "epsilon": 0.0}, every_seed=True),
        "swing": Arm({}, every_seed=True),
    }
    divergence = {"swing_divergence": Arm({"scorers": ("divergence",)})}
    if not any(name in scoring.TEXT_SCORERS for name in hp.scorers):
        divergence = {}
    decoys = {
        f"{name}_decoy": Arm({**arm.changes, "transfer_set": "decoy"})
        for name, arm in ({n: found[n] for n in ("kd", "swing")} | divergence).items()
    }
    if hp.ablations:
        found |= {
            "uniform_temperature": Arm(plain | {"t_min": uniform, "t_max": uniform}),
            "uniform_noise": Arm(cold | {"scorers": (), "noise_everywhere": True}),
            "swing_no_temperature": Arm(cold),
            "swing_no_noise": Arm({"noise_scale": 0.0, "epsilon": 0.0}),
            "swing_keep_ce": Arm({"keep_ce": True}),
            "swing_anchored": Arm({"variant": "anchored"}),
            **divergence,
        }
    for scale in hp.sweep:
        found[at_noise("swing", scale)] = Arm({"noise_scale": scale}, every_seed=True)
        found[at_noise("constant", scale)] = Arm({"noise_scale": scale, **cold}, every_seed=True)
    if hp.dp:
        own = {
            "batch_size": hp.dp_batch_size,
            "num_steps": hp.dp_num_steps,
            "learning_rate": hp.dp_learning_rate,
        }
        changes = {name: value for name, value in own.items() if value is not None}
        changes["dp"] = config.to_json(hp.dp)
        found[PRIVATE] = Arm(changes, every_seed=True, taught=False)
    return found | (decoys if hp.decoys else {})


def at_noise(kind: str, scale: float) -> str:
    """The arm of `SWEPT` at one noise scale."""
    return f"{kind}_noise{scale:g}"
