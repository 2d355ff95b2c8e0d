"""Creates a network from its name."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from distill_core.config import InputError
from distill_core.models import trust
from distill_core.models.cnn import CNN
from distill_core.models.mobilenetv2 import MobileNetV2
from distill_core.models.resnet import Bottleneck, ResNet
from distill_core.models.resnetc import ResNetC
from distill_core.models.resnext import ResNeXt
from distill_core.models.scattering import Scattering
from distill_core.models.shufflenetv2 import ShuffleNetV2
from distill_core.models.text.decoder import Decoder
from distill_core.models.text.transformer import Transformer
from distill_core.runtime import collectives


def _transformer(*, num_classes: int, **kwargs: Any) -> Transformer:
    return Transformer(vocab_size=num_classes, **kwargs)


def _decoder(*, num_classes: int, max_length: int = 0, **kwargs: Any) -> Decoder:
    del max_length  # rotary positions end nowhere
    return Decoder(vocab_size=num_classes, **kwargs)


# For errors: what they take.
_transformer.__signature__ = inspect.signature(Transformer)
_decoder.__signature__ = inspect.signature(Decoder)


def _of_size(network: Callable[..., nn.Module], **sizes: Any) -> Callable[..., nn.Module]:
    """A factory for a network of fixed sizes, whose only setting is the norm."""

    def make(*, num_classes: int, norm: str = "batch") -> nn.Module:
        return network(num_classes, norm=norm, **sizes)

    make.__qualname__ = "network"  # in Python's message on a wrong argument
    return make


_FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "resnetc20": _of_size(ResNetC, blocks_per_stage=3),
    "resnetc32": _of_size(ResNetC, blocks_per_stage=5),
    "resnet18": _of_size(ResNet, stage_sizes=(2, 2, 2, 2)),
    "resnet34": _of_size(ResNet, stage_sizes=(3, 4, 6, 3)),
    "resnet50": _of_size(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck),
    "resnext29": _of_size(ResNeXt),
    "mobilenetv2": _of_size(MobileNetV2),
    "shufflenetv2": _of_size(ShuffleNetV2),
    "scattering": Scattering,
    "transformer": _transformer,
    "decoder": _decoder,
}
MODEL_NAMES = tuple(_FACTORIES)
TEXT_MODELS = ("transformer", "decoder")


def create_model(name: str, *, num_classes: int, **kwargs: Any) -> nn.Module:
    """The network called `name`, without variables.

    Args:
      name: one of `MODEL_NAMES`, or "package.module:factory", a user's own: a Linen class or a
        function that returns a Linen module, whose `__call__` maps images [B, H, W, channels] to
        logits [B, C] (see `apply_model` for its optional arguments). A network of text also takes
        `max_length` and has the methods of `Transformer`.
      num_classes: C, of text the size of the vocabulary, passed to the factory.
      **kwargs: the factory's own settings. Lists become tuples, so that modules stay hashable.

    A user's factory with an argument `axis_name` (or, within a mapped function, any keyword) gets
    the name of the mapped axis over the devices, None where there is none: Flax's batch
    normalisation needs it. Ours sums over the devices by itself.

    Returns:
      The Linen module, hashable.

    Raises:
      InputError: on `model`, with the reason, if there is no such network; on `model_kwargs`, if
        the factory does not take these settings.
    """
    factory = _FACTORIES[name] if name in _FACTORIES else _load_factory(name)
    settings = {key: _hashable(value) for key, value in kwargs.items()}
    if "max_length" in settings and name in _FACTORIES and name not in TEXT_MODELS:
        allowed = f"is a network of images; ours of text are {' and '.join(TEXT_MODELS)}"
        raise InputError("model", name, allowed)
    bound, axis = collectives.is_bound(), {}
    if name not in _FACTORIES and _takes_axis(factory, by_any=bound and "max_length" not in kwargs):
        axis = {"axis_name": collectives.AXIS if bound else None}
    try:
        model = factory(num_classes=num_classes, **axis, **settings)
    except TypeError as error:
        allowed = f"{name} refused: {_one_line(error)}; it takes {_settings_of(factory)}"
        if "max_length" in settings:
            for ours in ("max_length", "dtype", "remat"):  # the user did not give them
                settings.pop(ours, None)
        raise InputError("model_kwargs", settings, allowed) from error
    if not isinstance(model, nn.Module):
        allowed = f"the factory must return a flax.linen.Module, not {type(model).__name__}"
        raise InputError("model", name, allowed)
    return model


def _load_factory(name: str) -> Callable[..., Any]:
    found = trust.REFERENCE.fullmatch(str(name))
    if not found:
        allowed = f"must be one of {', '.join(MODEL_NAMES)}, or package.module:factory"
        raise InputError("model", name, allowed)
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
        allowed = "must be a Linen class or a function that returns a Linen module"
        raise InputError("model", name, f"{attribute} is a {type(factory).__name__}; {allowed}")
    return factory


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except ValueError:  # some built-ins have no signature
        return {}


def _takes_axis(factory: Callable[..., Any], *, by_any: bool) -> bool:
    parameters = _parameters(factory)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return "axis_name" in parameters or (takes_any and by_any)


def _settings_of(factory: Callable[..., Any]) -> str:
    """Names of the settings that a factory takes."""
    ours = ("num_classes", "vocab_size", "axis_name", "max_length", "parent", "name")
    return ", ".join(name for name in _parameters(factory) if name not in ours) or "none"


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
