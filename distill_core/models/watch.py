"""Observes what a network's layers do in training while a pass is traced on shapes."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from flax import linen as nn

from distill_core.models.apply import takes_train
from distill_core.models.norm import BatchNorm
from distill_core.runtime import collectives

# Dropout layers, and their names for the rate.
_RATES: Any = ((nn.Dropout, "rate"), (nn.MultiHeadDotProductAttention, "dropout_rate"))


class Seen(NamedTuple):
    """Names of layers, in the order in which they ran.

    Attributes:
      dropout: layers with a dropout rate above 0, whether or not it was applied.
      norms: layers with batch statistics, whether or not these were used.
      untold: those of both whose network is not told when it is trained.
      values: of norms that used the batch's statistics: values per channel normalised over.
    """

    dropout: list[str]
    norms: list[str]
    untold: list[str]
    values: dict[str, int]


@contextlib.contextmanager
def watched() -> Iterator[Seen]:
    """Records the layers, Flax's and ours, that run inside, in jitted or abstract passes too."""
    seen = Seen([], [], [], {})

    def watch(call, args, kwargs, context):
        module: Any = context.module
        if context.method_name == "__call__":
            name = "/".join(module.path) or type(module).__name__
            rate = next((getattr(module, n) for kind, n in _RATES if isinstance(module, kind)), 0)
            if rate > 0:
                seen.dropout.append(name)
            is_norm = isinstance(module, BatchNorm | nn.BatchNorm)
            if (rate > 0 or is_norm) and not takes_train(_root(module)):
                seen.untold.append(name)
            if is_norm:
                seen.norms.append(name)
                if _uses_the_batch(module, args, kwargs):
                    shape = (args[0] if args else kwargs["x"]).shape
                    axes = getattr(module, "axis", -1)
                    axes = (axes,) if isinstance(axes, int) else axes
                    values = math.prod(shape) // max(1, math.prod(shape[axis] for axis in axes))
                    summed = isinstance(module, BatchNorm) or module.axis_name is not None
                    seen.values[name] = values * (collectives.num_devices() if summed else 1)
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        yield seen


def _root(module: nn.Module) -> nn.Module:
    """The network that a layer belongs to."""
    while isinstance(module.parent, nn.Module):
        module = module.parent
    return module


def _uses_the_batch(module: Any, args: Any, kwargs: Any) -> bool:
    if isinstance(module, BatchNorm):
        return bool(kwargs.get("train", False))
    given = args[1] if len(args) > 1 else kwargs.get("use_running_average")
    return not (module.use_running_average if given is None else given)
