"""Training and distillation, and what the three methods share.

The losses and the steps for a notebook; binaries are `distill_core.train`, `.distill`, `.evaluate`
and `.release`.
"""

from distill_core.checkpoint import LoadedModel, load_model
from distill_core.losses import cross_entropy, distillation_loss, kl_divergence
from distill_core.training.step import Objective, Outputs, TrainState, train_step

__all__ = [
    "LoadedModel",
    "Objective",
    "Outputs",
    "TrainState",
    "cross_entropy",
    "distillation_loss",
    "kl_divergence",
    "load_model",
    "train_step",
]
