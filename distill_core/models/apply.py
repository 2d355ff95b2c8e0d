"""Initialises and runs a network, ours or a user's."""

import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# Collection of fixed arrays that belong to a network and that no training changes.
CONSTANTS = "constants"


def init_model(
    module: nn.Module, key: jax.Array, input_shape: Sequence[int], *, dtype: Any = jnp.float32
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fresh variables of a network.

    Args:
      module: the network.
      key: typed PRNG key.
      input_shape: of one example: (H, W, channels), or (L,) for text.
      dtype: of an input; for text an integer type.

    Returns:
      (params, model_state), plain dicts of arrays; `model_state` holds every other collection, such
      as `batch_stats`.
    """
    variables = dict(_init(module, tuple(input_shape), jnp.dtype(dtype), key))
    params = variables.pop("params", {})
    variables.pop("intermediates", None)
    return params, variables


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _init(module: nn.Module, input_shape: tuple[int, ...], dtype: Any, key: jax.Array) -> Any:
    options = _accepted(module, train=False)
    return module.init(key, jnp.zeros((1, *input_shape), dtype), **options)


def apply_model(
    module: nn.Module,
    variables: Mapping[str, Any],
    x: jax.Array,
    *,
    train: bool,
    where: jax.Array | None = None,
    mutable: Sequence[str] = (),
    key: jax.Array | None = None,
) -> Any:
    """Logits of a network, and in training its new state.

    Args:
      module: the network. Its `__call__` gets `train`, `where` and `deterministic` (Flax's word for
        not `train`) only if it takes them, so that a user's network may lack any.
      variables: {"params": …, **model_state}.
      x: preprocessed images float32 [B, H, W, channels].
      train: whether to use and update batch statistics, and to apply dropout.
      where: bool [B], False for masked examples; None for none.
      mutable: further collections to return, such as "intermediates".
      key: random key for dropout.

    Returns:
      Logits [B, C]; with `train` or `mutable` (logits, collections), in training the whole new
      model_state (everything in `variables` but `params`; constants as they were) and those of
      `mutable`.
    """
    options = _accepted(module, train=train, where=where)
    rngs = None if key is None else {"dropout": key}
    if not (train or mutable):
        return module.apply(variables, x, rngs=rngs, **options)
    fixed = {name: variables[name] for name in variables if name == CONSTANTS and train}
    state = [name for name in variables if name not in ("params", CONSTANTS)] if train else []
    found: Any = module.apply(variables, x, rngs=rngs, mutable=[*state, *mutable], **options)
    logits, changed = found
    return logits, {**changed, **fixed}


def features(module: nn.Module, variables: Mapping[str, Any], x: jax.Array) -> jax.Array | None:
    """Inputs of the last dense layer at inference.

    A network sows them by `self.sow("intermediates", "features", …)` in its `__call__`.

    Args:
      module: the network.
      variables: `{"params": …, **model_state}`.
      x: preprocessed images, float32 `[B, H, W, C]`.

    Returns:
      `[B, D]`, or None if the network sows none.
    """
    _, collections = apply_model(module, variables, x, train=False, mutable=("intermediates",))
    sown = collections.get("intermediates", {}).get("features")
    return None if sown is None else sown[-1]


def has_public_part(module: nn.Module) -> bool:
    """Whether a network's first part reads no parameters.

    Args:
      module: the network.

    Returns:
      True if it has the methods `public` and `head`.
    """
    return all(callable(getattr(type(module), name, None)) for name in ("public", "head"))


def count_parameters(params: Any) -> int:
    """Number of scalars in a tree.

    Args:
      params: a tree of arrays or of shapes (`jax.eval_shape`).

    Returns:
      The sum of the leaves' sizes.
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def takes_train(module: nn.Module) -> bool:
    """Whether a network is told when it is trained, by `train` or `deterministic`."""
    return bool(_accepted(module, train=True))


def _accepted(module: nn.Module, *, train: bool, **options: Any) -> dict[str, Any]:
    """Those of the options that the module's `__call__` takes, and `deterministic`."""
    options = {"train": train, **options}
    parameters = inspect.signature(type(module).__call__).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        options = {name: value for name, value in options.items() if name in parameters}
    named = {"deterministic": not train} if "deterministic" in parameters else {}
    return {**options, **named}
