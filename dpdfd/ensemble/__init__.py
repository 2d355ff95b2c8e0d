"""A teacher made of members that each saw a part of the data of their own."""

from dpdfd.ensemble.network import Ensemble, answers
from dpdfd.ensemble.training import FIELDS, MODEL, train_and_evaluate

__all__ = ["FIELDS", "MODEL", "Ensemble", "answers", "train_and_evaluate"]
