"""Swing distillation: keeps a teacher's private tokens out of its student.

The losses and the measure of what leaks, for a notebook. Per-token temperatures and noise in the
soft targets are the ideas of "Swing Distillation: A Privacy-Preserving Knowledge Distillation
Framework", Li et al., 2022, as its abstract states them; the formulas here are our reconstruction.
"""

from swingdistill.canaries.exposure import exposure
from swingdistill.chunked_loss import swing_loss_from_hidden
from swingdistill.losses import context_ids, soft_targets, swing_loss, token_temperatures

__all__ = [
    "context_ids",
    "exposure",
    "soft_targets",
    "swing_loss",
    "swing_loss_from_hidden",
    "token_temperatures",
]
