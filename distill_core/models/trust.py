"""Which code a file may name: a checkpoint is data, and nothing in it is imported unasked.

This project's own networks may always be named. Another module is imported for a file only if the
user names it in the same call: `--trust=PACKAGE`, `load_model(…, trust=("package",))`, or the
`model` field of the run's own config.
"""

import contextlib
import contextvars
import functools
import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from distill_core.config import InputError

# "package.module:factory"; `models.create_model` imports names of this form alone.
REFERENCE = re.compile(r"([\w.-]+):(\w+)")
_PACKAGE = re.compile(r"[\w-]+(\.[\w-]+)*")
_OURS = ("distill_core", "nasty", "swingdistill", "dpdfd")
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
# Trusted prefixes of "module:".
_trusted: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("trusted", default=())


def allow(packages: str | Iterable[str]):
    """Trusts packages, each with its submodules, for the rest of this context (`contextvars`)."""
    packages = (packages,) if isinstance(packages, str) else tuple(packages)
    for name in packages:
        if not isinstance(name, str) or not _PACKAGE.fullmatch(name):
            raise InputError("trust", name, "must be the name of a package or a module: a, or a.b")
    _trusted.set((*_trusted.get(), *(f"{name}{sign}" for name in packages for sign in ".:")))


@contextlib.contextmanager
def allowed(packages: str | Iterable[str]) -> Iterator[None]:
    """`allow`, within a block."""
    before = _trusted.get()
    try:
        allow(packages)
        yield
    finally:
        _trusted.set(before)


def config_allows(run: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates `run(settings, …)`: trusts the modules of its `model` fields, not submodules."""

    @functools.wraps(run)
    def inside(settings: Any, *args: Any, **kwargs: Any) -> Any:
        plain = settings.to_dict() if hasattr(settings, "to_dict") else settings
        with allowed(()):
            _trusted.set((*_trusted.get(), *(f"{module}:" for module in _models(plain))))
            return run(settings, *args, **kwargs)

    return inside


def check_network(path: object, network: Mapping[str, Any]):
    """Refuses a file's network if it names untrusted code, without importing it.

    Everything in `model` and `model_kwargs` that could name code counts, at any depth.
    """
    well_formed = (
        isinstance(network, Mapping)
        and isinstance(network.get("model"), str)
        and isinstance(network.get("model_kwargs"), Mapping)
    )
    if not well_formed:
        allowed = "describes no network: its model must be a name, its model_kwargs a group"
        raise InputError("checkpoint", str(path), allowed)
    for text in _strings([network["model"], network["model_kwargs"]]):
        found = REFERENCE.fullmatch(text)
        if found and not _is_our_network(*found.groups()):
            check("checkpoint", path, found[1], asks_for=f"the network {text}")


def check(field: str, path: object, module: str, *, asks_for: str):
    """Refuses a file that needs an untrusted module."""
    if not f"{module}:".startswith(_trusted.get()):
        allowed = (
            f"needs {asks_for}, which is not this project's, and would run its code; if you "
            f"trust it, give --trust={module}, in Python load_model(…, trust=({module!r},))"
        )
        raise InputError(field, str(path), allowed)


def _is_our_network(module: str, attribute: str) -> bool:
    """Whether it is one of our networks, not a function of ours or a module of the same name."""
    from flax import linen as nn

    if not _is_ours(module):
        return False
    try:
        named = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return False
    return isinstance(named, type) and issubclass(named, nn.Module) and _is_ours(named.__module__)


def _is_ours(module: str) -> bool:
    top = module.partition(".")[0]
    if top not in _OURS:
        return False
    try:
        found = importlib.util.find_spec(top)  # imports nothing: the name has no parent
    except ValueError:  # already imported, without a spec
        return False
    origin = os.path.realpath(found.origin) if found and found.origin else None
    return origin == os.path.join(_ROOT, top, "__init__.py")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(each)


def _models(settings: Any) -> Iterator[str]:
    """The modules that fields `model` and `…_model` name, in groups too."""
    for name, value in settings.items() if isinstance(settings, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _models(value)
        elif re.fullmatch("(.*_)?model", str(name)) and (found := REFERENCE.fullmatch(str(value))):
            yield found[1]
