"""Data-free distillation through differentially private gradients.

The mechanism for a notebook: what is released of a private teacher, bounded and noised. The idea is
that of Liu et al., "Model Conversion via Differentially Private Data-Free Distillation", IJCAI
2023, as its abstract and introduction state it; formulas and accounting are our reconstruction.
"""

from dpdfd.privacy.mechanism import (
    bounded_gradient_sum,
    ensemble_gradients,
    noisy_sum,
    private_answers,
    privatize_logit_gradients,
)
from dpdfd.privacy.units import PrivacyReport, privacy_spent

__all__ = [
    "PrivacyReport",
    "bounded_gradient_sum",
    "ensemble_gradients",
    "noisy_sum",
    "privacy_spent",
    "private_answers",
    "privatize_logit_gradients",
]
