"""From a model's name to its module."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from distill_core.config import InputError
from distill_core.models import trust
from distill_core.models.cnn import CNN
from distill_core.models.mobilenetv2 import mobilenetv2
from distill_core.models.resnet import resnet18, resnet34, resnet50
from distill_core.models.resnetc import resnetc20, resnetc32
from distill_core.models.resnext import resnext29
from distill_core.models.shufflenetv2 import shufflenetv2
from distill_core.models.transformer import Transformer
from distill_core.runtime import collectives


def _transformer(*, num_classes: int, **kwargs: Any) -> Transformer:
    return Transformer(vocab_size=num_classes, **kwargs)


_FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "resnetc20": resnetc20,
    "resnetc32": resnetc32,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnext29": resnext29,
    "mobilenetv2": mobilenetv2,
    "shufflenetv2": shufflenetv2,
    "transformer": _transformer,
}
MODEL_NAMES = tuple(_FACTORIES)


def create_model(name: str, *, num_classes: int, **kwargs: Any) -> nn.Module:
    """The network called `name`, without variables.

    Args:
      name: one of `MODEL_NAMES`, or "package.module:factory", a user's own: a Linen class or a
        function that returns a Linen module, whose `__call__` takes images [B, H, W, channels]
        to logits [B, C] (see `apply_model` for its optional arguments). A network of text takes
        `max_length`, too, and has the methods of `Transformer`.
      num_classes: C, of text the size of the vocabulary, passed to the factory.
      **kwargs: the factory's own settings. Lists become tuples, so that modules stay hashable.

    A user's factory with an argument `axis_name` (or, within a mapped function, any keyword) gets
    the name of the axis that holds the devices, None where there is none: Flax's batch
    normalisation wants it. Ours sums over the devices by itself.

    Raises:
      InputError: field "model" if nothing of that name can be had, with the reason; field
        "model_kwargs" if the factory does not take these settings.
    """
    factory = _FACTORIES[name] if name in _FACTORIES else _load_factory(name)
    settings = {key: _freeze(value) for key, value in kwargs.items()}
    bound, axis = collectives.is_bound(), {}
    if name not in _FACTORIES and _takes_axis(factory, by_any=bound and "max_length" not in kwargs):
        axis = {"axis_name": collectives.AXIS if bound else None}
    try:
        model = factory(num_classes=num_classes, **axis, **settings)
    except TypeError as error:
        allowed = f"{name} refused: {_one_line(error)}; it takes {_settings_of(factory)}"
        raise InputError("model_kwargs", settings, allowed) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            "model",
            name,
            f"the factory must return a flax.linen.Module, it returned {type(model).__name__}",
        )
    return model


def _load_factory(name: str) -> Callable[..., Any]:
    found = trust.REFERENCE.fullmatch(str(name))
    if not found:
        raise InputError(
            "model",
            name,
            f"must be one of {', '.join(MODEL_NAMES)}, or package.module:factory",
        )
    module_name, attribute = found.groups()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's file may fail in any way while it is imported
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise InputError("model", name, f"{module_name} cannot be imported: {reason}") from error
    if not hasattr(module, attribute):
        raise InputError("model", name, f"{module_name} has no {attribute!r}")
    factory = getattr(module, attribute)
    if isinstance(factory, nn.Module) or not callable(factory):
        raise InputError(
            "model",
            name,
            f"{attribute} must be a Linen class or a function that returns a Linen module, "
            f"it is a {type(factory).__name__} object",
        )
    return factory


def _takes_axis(factory: Callable[..., Any], *, by_any: bool) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # some built-ins have no signature
        return False
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return "axis_name" in parameters or (takes_any and by_any)


def _settings_of(factory: Callable[..., Any]) -> str:
    """Names of the settings that a factory takes."""
    ours = ("num_classes", "axis_name", "max_length", "parent", "name")
    try:
        known = [name for name in inspect.signature(factory).parameters if name not in ours]
    except ValueError:  # some built-ins have no signature
        known = []
    return ", ".join(known) or "none"


def _freeze(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
