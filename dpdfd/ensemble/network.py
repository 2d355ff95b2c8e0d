"""An ensemble: M networks of one kind, stacked into one, and the answers of each member."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from distill_core import models
from distill_core.config import InputError
from distill_core.data.images.preprocess import check_range, preprocess
from distill_core.models.network import Network, hashable

Array = jax.Array
PyTree = Any
KINDS = ("votes", "probabilities")


class Ensemble(nn.Module):
    """M networks of one kind; its `params` are theirs, stacked on axis 0 under "members".

    Attributes:
      num_classes: K.
      num_teachers: M.
      member: name of a network without batch statistics, as `models.create_model` takes it.
      member_kwargs: its settings.
    """

    num_classes: int
    num_teachers: int
    member: str
    member_kwargs: Mapping[str, Any]

    def __post_init__(self):
        # Modules are hashed; JSON gives dictionaries and lists.
        object.__setattr__(self, "member_kwargs", hashable(self.member_kwargs))
        super().__post_init__()

    def __call__(self, x: Array) -> Array:
        """Preprocessed images float32 [B, H, W, C] to the log of the mean probability [B, K]."""
        log_probs = jax.nn.log_softmax(self._logits(x), axis=-1)
        return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(float(self.num_teachers))

    def answers(self, x: Array, kind: str = "votes") -> Array:
        """Each member's answers, as the function `answers` gives them of raw images.

        Args:
          x: preprocessed images, float32 `[B, H, W, C]`.
          kind: "votes", one-hot, or "probabilities"; static.

        Returns:
          float32 `[M, B, K]`; rows add up to 1.

        Raises:
          InputError: another kind.
        """
        if kind not in KINDS:
            raise InputError("kind", kind, f"must be one of {', '.join(KINDS)}")
        logits = self._logits(x)
        if kind == "votes":
            return jax.nn.one_hot(jnp.argmax(logits, axis=-1), self.num_classes)
        return jax.nn.softmax(logits, axis=-1)

    @nn.compact
    def _logits(self, x: Array) -> Array:
        """float32 [M, B, K]."""
        member = models.create_model(
            self.member, num_classes=self.num_classes, **self.member_kwargs
        ).clone(parent=None)  # a network of its own: its parameters come stacked

        def init(key: Array):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(self.num_teachers))
            return jax.vmap(lambda key: _own_params(self.member, member, key, x.shape[1:]))(keys)

        stacked = self.param("members", init)
        constants = self._constants(member, x.shape[1:])
        inputs = public_part(member, x, constants)
        return map_members(lambda params: member_logits(member, params, inputs), stacked, member)

    def _constants(self, member: nn.Module, input_shape: tuple[int, ...]) -> PyTree:
        """The members' own, which they share."""
        if self.is_initializing():
            key = jax.eval_shape(jax.random.key, 0)
            init = functools.partial(models.init_model, member, input_shape=input_shape)
            shapes = jax.eval_shape(lambda key: init(key)[1], key).get(models.CONSTANTS, {})
            for name, each in shapes.items():
                self.put_variable(models.CONSTANTS, name, jnp.zeros(each.shape, each.dtype))
        return self.variables.get(models.CONSTANTS, {})

    @nn.nowrap
    def constants(self, *given: Any) -> PyTree:
        """The members' constants, which they share.

        Args:
          *given: shape of an image, mean and std of its pixels; see `Network.init`.

        Returns:
          NumPy arrays by name.
        """
        own = {"num_classes": self.num_classes, **self.member_kwargs}
        return models.create_model(self.member, **own).constants(*given)


def _own_params(name: str, member: nn.Module, key: Array, input_shape: tuple[int, ...]):
    params, others = models.init_model(member, key, input_shape)
    if others.keys() - {models.CONSTANTS}:
        allowed = f"a teacher of an ensemble keeps no {', '.join(others)}: take norm group or none"
        raise InputError("model", name, allowed)
    return params


def answers(network: Network, variables: PyTree, images: Array, *, kind: str = "votes") -> Array:
    """Each member's answers to images; preprocessing is inside. Pure and jit-safe.

    Args:
      network: an ensemble's, e.g. `load_model(path).network`.
      variables: its own.
      images: [B, H, W, C], uint8 or floats in [0, 1].
      kind: "votes", one-hot, or "probabilities"; static.

    Returns:
      float32 [M, B, K]; rows add up to 1.

    Raises:
      InputError: field "teacher", the network is no ensemble; or another kind.
    """
    module = None if network.is_text else network.module()
    if not isinstance(module, Ensemble):
        raise InputError("teacher", network.model, "must be an ensemble, dpdfd.ensemble:Ensemble")
    if tuple(images.shape[1:]) != network.input_shape:
        shape = network.input_shape
        raise ValueError(f"images {tuple(images.shape)}: this ensemble takes [B, {shape}]")
    check_range(images, jnp.floating, 0, 1, "images that are floats")
    found: Any = module.apply(
        variables, preprocess(images, network.mean, network.std), kind, method="answers"
    )
    return found


def public_part(member: nn.Module, images: Array, constants: PyTree) -> Array:
    """What a member computes before any weight, the same for all; by default the images."""
    if not models.has_public_part(member):
        return images
    found: Any = member.apply({models.CONSTANTS: constants}, images, method="public")
    return found


def member_logits(
    member: nn.Module, params: PyTree, inputs: Array, *, train: bool = False,
    key: Array | None = None,
) -> Array:  # fmt: skip
    """float32 logits [B, K] of one member, of what `public_part` gives."""
    logits: Any
    if models.has_public_part(member):
        logits = member.apply({"params": params}, inputs, method="head")
    elif train:
        logits, _ = models.apply_model(member, {"params": params}, inputs, train=True, key=key)
    else:
        logits = models.apply_model(member, {"params": params}, inputs, train=False)
    return jnp.asarray(logits, jnp.float32)


def map_members(function: Callable, stacked: PyTree, member: nn.Module) -> PyTree:
    """`function` of each teacher's slice, a few at a time, so that memory stays bounded."""
    return jax.lax.map(function, stacked, batch_size=128 if models.has_public_part(member) else 16)
