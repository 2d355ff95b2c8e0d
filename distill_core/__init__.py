"""Training and distillation, and what the three methods share.

The losses and the steps for a notebook; binaries are `distill_core.train`, `.distill`, `.evaluate`
and `.release`.
"""

from distill_core.checkpoint import LoadedModel, load_model
from distill_core.losses import cross_entropy, distillation_loss, kl_divergence
from distill_core.training.step import TrainState, make_eval_step, make_train_step

__all__ = [
    "LoadedModel",
    "TrainState",
    "cross_entropy",
    "distillation_loss",
    "kl_divergence",
    "load_model",
    "make_eval_step",
    "make_train_step",
]
