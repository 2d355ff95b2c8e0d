"""The arms of the comparison: which settings each changes.

Names and settings of the baselines are ours; the paper's own list could not be read.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from distill_core import config
from swingdistill.scorers import scoring

PRIVATE = "dp_sgd"
LARGE = {  # networks of the teacher's size, and what they are; all others are students
    "reference": "trained on other text of the same kind, which holds no secret",
    "teacher": "trained on the private text, which holds the secrets",
}
SWEPT = {"constant": "constant temperature", "swing": "swing"}  # over the noise: kind, label


class Arm(NamedTuple):
    """A student.

    Attributes:
      about: what it is, in one line.
      changes: settings of `swingdistill.train` in place of the experiment's.
      every_seed: whether it runs for every seed of secrets, not only for the first.
      taught: whether it has a teacher; else it learns from labels alone.
    """

    about: str
    changes: Mapping[str, Any]
    every_seed: bool = False
    taught: bool = True


def students(hp: Any) -> dict[str, Arm]:
    """The students that an experiment's settings ask for, by name."""
    plain = {"scorers": (), "noise_scale": 0.0, "epsilon": 0.0}
    cold, uniform = {"t_max": hp.t_min}, hp.uniform_temperature
    found = {
        "student_ce": Arm("labels alone, no teacher", {}, every_seed=True, taught=False),
        "kd": Arm("plain distillation", plain | cold, every_seed=True),
        "ce_dropped": Arm(
            "plain distillation without the labels of private tokens: what dropping them does",
            cold | {"noise_scale": 0.0, "epsilon": 0.0},
            every_seed=True,
        ),
        "mask": Arm(
            "leaves private tokens out: neither labels nor soft targets",
            {"variant": "mask", "epsilon": 0.0},
            every_seed=True,
        ),
        "swing": Arm("Swing distillation, as the config has it", {}, every_seed=True),
    }
    divergence = {
        "swing_divergence": Arm(
            "Swing, private by the divergence alone", {"scorers": ("divergence",)}
        )
    }
    if not any(name in scoring.TEXT_SCORERS for name in hp.scorers):
        divergence = {}
    decoys = {
        f"{name}_decoy": arm._replace(
            about=f"{name} on text with other numbers in place of the secrets",
            changes={**arm.changes, "transfer_set": "decoy"},
            every_seed=False,
        )
        for name, arm in ({n: found[n] for n in ("kd", "swing")} | divergence).items()
    }
    if hp.ablations:
        found |= {
            "uniform_temperature": Arm(
                f"one temperature, {uniform:g}, for all tokens, on both sides; no noise",
                plain | {"t_min": uniform, "t_max": uniform},
            ),
            "uniform_noise": Arm(
                "plain distillation with noise on all tokens",
                cold | {"scorers": (), "noise_everywhere": True},
            ),
            "swing_no_temperature": Arm("Swing with noise alone", cold),
            "swing_no_noise": Arm(
                "Swing with temperatures alone", {"noise_scale": 0.0, "epsilon": 0.0}
            ),
            "swing_keep_ce": Arm("Swing that keeps private tokens' labels", {"keep_ce": True}),
            "swing_anchored": Arm("Swing softened towards the reference", {"variant": "anchored"}),
            **divergence,
        }
    # At one noise both have it on the same tokens and drop their labels alike: they differ in
    # temperature.
    for scale in hp.sweep:
        constant, swing = (f"{label} at noise {scale:g}" for label in SWEPT.values())
        noise = {"noise_scale": scale}
        found[at_noise("swing", scale)] = Arm(swing, noise, every_seed=True)
        found[at_noise("constant", scale)] = Arm(constant, {**noise, **cold}, every_seed=True)
    if hp.dp:
        own = {
            "batch_size": hp.dp_batch_size,
            "num_steps": hp.dp_num_steps,
            "learning_rate": hp.dp_learning_rate,
        }
        changes = {name: value for name, value in own.items() if value is not None}
        changes["dp"] = config.to_json(hp.dp)
        about = "labels alone as student_ce, differentially privately"
        found[PRIVATE] = Arm(about, changes, every_seed=True, taught=False)
    return found | (decoys if hp.decoys else {})


def about(arm: str, hp: Any) -> str:
    """What an arm of an experiment is, in one line."""
    return LARGE[arm] if arm in LARGE else students(hp)[arm].about


def at_noise(kind: str, scale: float) -> str:
    """The arm of `SWEPT` at one noise scale."""
    return f"{kind}_noise{scale:g}"
