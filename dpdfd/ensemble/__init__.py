"""A teacher made of members that each saw a part of the data of their own."""

from dpdfd.ensemble.network import Ensemble, answers
from dpdfd.ensemble.training import MODEL, Settings, train_and_evaluate

__all__ = ["MODEL", "Ensemble", "Settings", "answers", "train_and_evaluate"]
