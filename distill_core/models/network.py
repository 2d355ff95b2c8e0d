"""`Network`: a network's description, as checkpoints store it, and its functions.

Networks of images have `input_shape`, `mean`, `std` and `classes`; networks of text `max_length`
and a tokenizer, and `num_classes` is the size of their vocabulary.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from distill_core import models
from distill_core.config import InputError
from distill_core.data.images import preprocess
from distill_core.runtime import sharding

PyTree = Any
ELSEWHERE = "elsewhere"  # a tokenizer's source if unknown
_MAPPINGS = ("model_kwargs", "special_tokens", "chat_templates")
_RESERVED = {
    "num_classes": "comes from the data set",
    "max_length": "comes from the field length",
    "axis_name": "comes from the devices",
    "name": "is a module's own; the network is named by the field model",
    "parent": "is a module's own",
}
_RESERVED_OF_TEXT = {
    "dtype": "comes from the field compute_dtype",
    "remat": "is the field remat",
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A network without its weights; hashable by value, so that it can be a static argument.

    Attributes:
      model: a name of `models.MODEL_NAMES`, or "package.module:factory".
      num_classes: K, of text the size of the vocabulary.
      model_kwargs: the factory's own settings.
      input_shape: (H, W, C) of an image; () of text.
      mean, std: constants that pixels are standardised by, one value per channel.
      classes: class names. A language model has them if it classifies.
      classes_named: False where the classes are numbers without names.
      compute_dtype: dtype that parameters and pixels are rounded to, or of text that matrix
        products are computed in; statistics of norms and softmax, logits and stored parameters
        stay float32.
      remat: whether a network of text computes activations again in the backward pass; not stored.
      max_length: L of text, in tokens; None for images.
      vocab_size: of text, how many first classes are tokens; the rows of the embedding beyond are
        padding, which `hidden` leaves out, and so every softmax and loss. None: all are tokens.
      tokenizer: of text, as JSON; None if there is none.
      special_tokens: the tokenizer's pad, unk, bos and eos by name; {} for those of `tokenizers`.
      tokenizer_from: the source of the tokenizer's vocabulary, see `tokenizers`.
      chat_templates, eos_ids: what the tokenizer's source says of them, see `Tokenizer`.
      outputs: "logits", or "images" of a generator, whose inputs are normally distributed.
      labelled: whether a generator is conditioned on the class.
    """

    model: str
    num_classes: int
    model_kwargs: Mapping[str, Any] = FrozenDict()
    input_shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    classes_named: bool = True
    compute_dtype: str = "float32"
    max_length: int | None = None
    vocab_size: int | None = None
    tokenizer: str | None = dataclasses.field(default=None, repr=False)
    special_tokens: Mapping[str, Any] = FrozenDict()
    tokenizer_from: str = ELSEWHERE
    chat_templates: Mapping[str, str] = dataclasses.field(default=FrozenDict(), repr=False)
    eos_ids: tuple[int, ...] = ()
    outputs: str = "logits"
    labelled: bool = False
    remat: bool = False

    def __post_init__(self):
        for name in (*_MAPPINGS, "input_shape", "mean", "std", "classes", "eos_ids"):
            object.__setattr__(self, name, hashable(getattr(self, name)))

    def to_json(self) -> dict[str, Any]:
        """As JSON values; fields at their defaults are left out, except `model_kwargs`."""
        found = {"model": self.model, "model_kwargs": _plain(self.model_kwargs)}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in (*found, "remat") and value != field.default:
                found[field.name] = _plain(value)
        return found

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "Network":
        """The inverse of `to_json`; ValueError for an unknown or missing field."""
        if strange := given.keys() - {field.name for field in dataclasses.fields(cls)}:
            raise ValueError(f"unknown: {', '.join(sorted(strange))}")
        try:
            return cls(**given)
        except TypeError as error:
            raise ValueError(str(error)) from None

    @property
    def is_text(self) -> bool:
        """Whether the inputs are token ids rather than images."""
        return self.max_length is not None

    @property
    def num_tokens(self) -> int:
        """V of text: the classes that are tokens."""
        return self.vocab_size or self.num_classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The class names; None if there are only numbers."""
        return self.classes if self.classes and self.classes_named else None

    def load_tokenizer(self):
        """The tokenizer of a network of text; None if there is none."""
        if not self.tokenizer:
            return None
        from distill_core.data.text.tokenizers import Tokenizer

        return Tokenizer.from_json(
            self.tokenizer,
            self.tokenizer_from,
            self.special_tokens,
            chat_templates=self.chat_templates,
            eos_ids=self.eos_ids,
        )

    def module(self) -> Any:
        """The Linen module; created within a mapped function, it may depend on the axis.

        Raises:
          InputError: no such model, or settings that it does not take.
        """
        for name, source in (_RESERVED | (_RESERVED_OF_TEXT if self.is_text else {})).items():
            if name in self.model_kwargs:
                given = self.model_kwargs[name]
                raise InputError(f"model_kwargs.{name}", given, f"{source}; leave it out")
        text: dict[str, Any] = {}
        if self.is_text:
            text["max_length"] = self.max_length
            if self.compute_dtype != "float32":
                text["dtype"] = self.compute_dtype
            if self.remat:
                text["remat"] = True
        try:
            return models.create_model(
                self.model, num_classes=self.num_classes, **text, **self.model_kwargs
            )
        except InputError as error:
            for name, field in (("dtype", "compute_dtype"), ("remat", "remat")):
                if name in text and f"'{name}'" in error.allowed:
                    allowed = f"{self.model} takes no argument {name!r}, which it would come as"
                    raise InputError(field, text[name], allowed) from error
            raise

    def init(self, key: jax.Array, constants: PyTree | None = None) -> tuple[PyTree, PyTree]:
        """Fresh (params, model_state), with the `constants` given, else its own; not to be traced.

        A module whose constants are more than their initial values has a method
        `constants(input_shape, mean, std)`.
        """
        params, model_state = self._init(key)
        if models.CONSTANTS in model_state:
            make = getattr(self.module(), "constants", None)
            if constants is None and make is not None:
                constants = make(self.input_shape, self.mean, self.std)
            constants = model_state[models.CONSTANTS] if constants is None else constants
            model_state = {**model_state, models.CONSTANTS: constants}
        return params, model_state

    def _init(self, key: jax.Array) -> tuple[PyTree, PyTree]:
        if self.max_length is not None:
            return models.init_model(self.module(), key, (self.max_length,), dtype=jnp.int32)
        return models.init_model(self.module(), key, self.input_shape)

    def shapes(self) -> PyTree:
        """Shapes and dtypes of the variables `{"params": …, **model_state}`."""
        params, model_state = jax.eval_shape(self._init, jax.random.key(0))
        return {"params": params, **model_state}

    @property
    def has_public_part(self) -> bool:
        """Whether its first part reads no parameters; see `models.has_public_part`."""
        return models.has_public_part(self.module())

    def public(self, variables: PyTree, images: jax.Array) -> jax.Array:
        """What a network with a public part computes before its first parameter, [B, D]."""
        constants = {name: value for name, value in variables.items() if name == models.CONSTANTS}
        _, pixels = self._prepared(variables, images)
        return self.module().apply(constants, pixels, method="public")

    def head(self, variables: PyTree, features: jax.Array) -> jax.Array:
        """Logits float32 [B, K] of what `public` gives."""
        return self.module().apply(variables, features, method="head").astype(jnp.float32)

    def apply(self, variables: PyTree, inputs, *, train=False, where=None, key=None) -> Any:
        """Logits, preprocessing included. Pure and jit-safe; checks values that are not traced.

        Args:
          variables: `{"params": …, **model_state}`.
          inputs: images `[B, H, W, C]`, uint8 or floats in [0, 1]; or token ids `[B, L]`, one
            document per row.
          train: use and update batch statistics, and apply dropout.
          where: bool `[B]`, False for masked examples.
          key: for dropout.

        Returns:
          float32 logits `[B, K]`, of text `[B, L, V]`; with `train` (logits, new model_state).

        Raises:
          InputError: on `inputs`: floats outside [0, 1] or NaN, or ids outside the vocabulary.
        """
        if self.is_text:
            preprocess.check_range(inputs, jnp.integer, 0, self.num_classes - 1, "token ids")
            variables = self._gathered(variables)
        else:
            variables, inputs = self._prepared(variables, inputs)
        found = models.apply_model(
            self.module(), variables, inputs, train=train, where=where, key=key
        )
        if self.is_text:
            return found
        logits, *state = found if train else (found,)
        if not isinstance(logits, jax.Array):
            allowed = f"must return logits [B, {self.num_classes}], not a {type(logits).__name__}"
            raise InputError("model", self.model, allowed)
        logits = logits.astype(jnp.float32)
        return (logits, *state) if train else logits

    def train_apply(
        self, params: PyTree, model_state: PyTree, inputs: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        """(logits, new model_state) of a training step; see `apply`."""
        return self.apply({"params": params, **model_state}, inputs, train=True, key=key)

    def train_apply_sown(
        self, params: PyTree, model_state: PyTree, images: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, PyTree, PyTree]:
        """`train_apply` of a network of images, with what its layers sowed, by name."""
        variables, pixels = self._prepared({"params": params, **model_state}, images)
        logits, found = models.apply_model(
            self.module(), variables, pixels, train=True, mutable=("intermediates",), key=key
        )
        found = dict(found)
        sown = {name: each[-1] for name, each in found.pop("intermediates", {}).items()}
        return logits.astype(jnp.float32), found, sown

    def features(self, variables: PyTree, images: jax.Array) -> jax.Array | None:
        """Inputs of the last dense layer at inference, float32 `[B, D]`; None if not sown."""
        found = models.features(self.module(), *self._prepared(variables, images))
        return None if found is None else found.astype(jnp.float32)

    def hidden(self, variables: PyTree, tokens, segments=None) -> tuple[jax.Array, jax.Array]:
        """(hidden states `[B, L, D]`, embedding `[V, D]`) of a network of text.

        Logits are hidden · embeddingᵀ, for losses that never hold them all in memory. V is
        `num_tokens`: there are none of padding. `tokens` and `segments` are integers `[B, L]`; see
        `models.Transformer.hidden`.
        """
        module, variables = self.module(), self._gathered(variables)
        states = module.apply(variables, tokens, segments, method="hidden")
        return states, module.apply(variables, method="embedding")[: self.num_tokens]

    @property
    def is_bounded(self) -> bool:
        """Whether a line of text has at most `max_length` positions; a module may deny it.

        A module with rotary positions has the class attribute `bounded = False`.
        """
        return getattr(self.module(), "bounded", True)

    def empty_cache(self, variables: PyTree, batch_size: int, length: int) -> PyTree:
        """The cache of `next_hidden` for lines of `length` positions: zeros `[B, L, …]`.

        Raises:
          InputError: on `model`, a user's own without the method `next_hidden`.
        """
        module = self.module()
        if not callable(getattr(type(module), "next_hidden", None)):
            allowed = "has no method `next_hidden`, by which a text is continued; see Transformer's"
            raise InputError("model", self.model, allowed)
        ids = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
        next_hidden = functools.partial(module.apply, mutable=["cache"], method="next_hidden")
        _, changed = jax.eval_shape(next_hidden, variables, ids, ids)
        return jax.tree.map(
            lambda leaf: jnp.zeros((batch_size, length, *leaf.shape[2:]), leaf.dtype),
            changed.get("cache", {}),
        )

    def next_hidden(
        self, variables: PyTree, cache: PyTree, tokens, place
    ) -> tuple[jax.Array, jax.Array, PyTree]:
        """(hidden states `[B, D]`, embedding `[V, D]`, new cache): `hidden`, a token at a time.

        Args:
          variables: `{"params": …, **model_state}`.
          cache: what the last call gave, at first `empty_cache`.
          tokens: integers `[B]`, the next token of each line.
          place: integers `[B]` or a scalar, its place, from 0 to below the cache's length.
        """
        module = self.module()
        place = jnp.broadcast_to(jnp.asarray(place, jnp.int32), tokens.shape)
        states, changed = module.apply(
            {**variables, "cache": cache}, tokens, place, mutable=["cache"], method="next_hidden"
        )
        embedding = module.apply(variables, method="embedding")[: self.num_tokens]
        return states, embedding, changed["cache"]

    def _gathered(self, variables: PyTree) -> PyTree:
        if getattr(self.module(), "gathers", False):
            return variables
        params = sharding.gathered(variables["params"], self.compute_dtype)
        return {**variables, "params": params}

    def _prepared(self, variables: PyTree, images: Any) -> tuple[PyTree, jax.Array]:
        """Standardised images, and variables whose parameters have the `compute_dtype`."""
        if tuple(images.shape[1:]) != self.input_shape:
            raise ValueError(
                f"inputs {tuple(images.shape)}: this network takes [B, {self.input_shape}]"
            )
        if self.outputs == "logits":  # else they are draws of a normal distribution
            preprocess.check_range(images, jnp.floating, 0, 1, "images that are floats")
        pixels = preprocess.preprocess(images, self.mean, self.std)
        dtype = jnp.dtype(self.compute_dtype)
        if "params" in variables:
            variables = self._gathered(variables)
        if dtype == jnp.float32:
            return variables, pixels
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), variables["params"])
        return {**variables, "params": params}, pixels.astype(dtype)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A network with its weights.

    Attributes:
      variables: `{"params": …, **model_state}`, NumPy arrays; `jax.Array`s if they were placed.
      network: how to rebuild it.
      metadata: the checkpoint's metadata.
    """

    variables: PyTree
    network: Network
    metadata: dict = dataclasses.field(default_factory=dict)

    def apply(self, variables: PyTree, inputs, *, train: bool = False) -> Any:
        """Logits, preprocessing included: `Network.apply`, pure and jit-safe.

        Args:
          variables: `{"params": …, **model_state}`, such as this model's own.
          inputs: images `[B, H, W, C]`, uint8 or floats in [0, 1]; or token ids `[B, L]`.
          train: use and update batch statistics, and apply dropout.

        Returns:
          float32 logits `[B, K]`, of text `[B, L, V]`; with `train` (logits, new model_state).
        """
        return self.network.apply(variables, inputs, train=train)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The `Tokenizer` of a network of text, otherwise None."""
        return self.network.load_tokenizer()

    def __repr__(self) -> str:
        """One line, without weights and settings."""
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(self.variables.get("params", {})))
        kind = "tokens" if self.network.is_text else "classes"
        found = [self.network.model, f"{size:,} parameters", f"{self.network.num_classes:,} {kind}"]
        if "step" in self.metadata:
            found.append(f"step {self.metadata['step']} of {self.metadata.get('method')}")
        return f"LoadedModel({', '.join(found)})"


def stored_as(loaded: LoadedModel, dtype: str) -> LoadedModel:
    """A network to be asked only, its parameters stored and its answers computed in `dtype`.

    "float32" leaves it as it is, with its own `compute_dtype`. Raises InputError on
    `frozen_dtype` if the network cannot be computed so.
    """
    if dtype == "float32":
        return loaded

    def cast(leaf: Any) -> Any:
        leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        return leaf.astype(jnp.dtype(dtype)) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    params = jax.tree.map(cast, loaded.variables["params"])
    network = dataclasses.replace(loaded.network, compute_dtype=dtype)
    try:
        network.module()
    except InputError as error:
        raise InputError("frozen_dtype", dtype, error.allowed) from error
    return LoadedModel({**loaded.variables, "params": params}, network, loaded.metadata)


def image_network(
    dataset, *, model: str, model_kwargs: Mapping[str, Any], compute_dtype: str = "float32"
) -> Network:
    """A classifier of a data set's images."""
    return Network(
        model,
        dataset.num_classes,
        model_kwargs,
        input_shape=dataset.input_shape,
        mean=dataset.mean,
        std=dataset.std,
        classes=dataset.classes,
        classes_named=dataset.named,
        compute_dtype=compute_dtype,
    )


def text_network(
    tokenizer: Any,
    max_length: int,
    *,
    model: str,
    model_kwargs: Mapping[str, Any],
    classes: Sequence[str] = (),
    compute_dtype: str = "float32",
    remat: bool = False,
) -> Network:
    """A language model over a tokenizer's vocabulary; with `classes` one that classifies."""
    return Network(
        model,
        tokenizer.vocab_size,
        model_kwargs,
        max_length=max_length,
        tokenizer=tokenizer.to_json(),
        special_tokens=tokenizer.special_tokens,
        tokenizer_from=tokenizer.made_from,
        chat_templates=tokenizer.chat_templates,
        eos_ids=tokenizer.eos_ids,
        classes=tuple(classes),
        compute_dtype=compute_dtype,
        remat=remat,
    )


def hashable(value: Any) -> Any:
    """JSON with tuples and FrozenDicts for lists and mappings, at any depth."""
    if isinstance(value, Mapping):
        return FrozenDict({name: hashable(each) for name, each in value.items()})
    return tuple(map(hashable, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
