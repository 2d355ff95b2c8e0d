"""A network with its weights, whatever file it was read from."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from distill_core.config import InputError
from distill_core.data.images.dataset import wrong_constants

PyTree = Any


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A network with its weights, as a checkpoint holds it.

    Attributes:
      variables: `{"params": …, **model_state}`, NumPy arrays.
      spec: how to rebuild it: model, model_kwargs, num_classes, and for images input_shape, mean,
        std, classes, for text max_length and tokenizer.
      apply: `apply(variables, inputs, *, train=False)`, pure and jit-safe. Inputs are images
        `[B, H, W, C]` in [0, 1] or uint8, preprocessing is inside; or token ids `[B, L]`. Returns
        float32 logits `[B, K]` or `[B, L, V]`; with `train=True` (logits, updated model_state).
        Where inputs are not traced, values outside their range raise an InputError.
      tokenizer: of text models, `distill_core.data.text.tokenizers.Tokenizer`; None for images.
      metadata: everything that the checkpoint says of itself.
    """

    variables: PyTree
    spec: dict
    apply: Callable
    tokenizer: Any = None
    metadata: dict = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """One line: neither weights nor settings."""
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(self.variables.get("params", {})))
        kind = "tokens" if "max_length" in self.spec else "classes"
        found = [self.spec["model"], f"{size:,} parameters"]
        found.append(f"{self.spec['num_classes']:,} {kind}")
        if "step" in self.metadata:
            found.append(f"step {self.metadata['step']} of {self.metadata.get('method')}")
        return f"LoadedModel({', '.join(found)})"


def check_images(path: object, network: Mapping[str, Any]):
    """Refuses a file's network of images whose own classes and constants cannot be.

    Raises:
      InputError: on `checkpoint`: numbers that do not belong together, or constants that are not
        for pixels in [0, 1].
    """
    if "mean" not in network:
        return
    try:
        mean, std = ([float(value) for value in network[name]] for name in ("mean", "std"))
        count, channels = network["num_classes"], network["input_shape"][-1]
        names = network.get("classes")
        fit = type(count) is int and len(mean) == len(std) == channels
        fit = fit and (names is None or len(names) == count)
    except (KeyError, IndexError, TypeError, ValueError):
        mean, std, fit = [], [], False
    if not fit:
        allowed = "describes no network: its image size, mean, std and classes do not agree"
        raise InputError("checkpoint", str(path), allowed)
    if (wrong := wrong_constants(mean, std)) is not None:
        raise InputError("checkpoint", str(path), wrong)
