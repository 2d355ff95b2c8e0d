"""From `--config FILE.py[:ARG]` and `--config.FIELD=VALUE` to settings.

Not `ml_collections.config_flags`, which takes only fields that the file mentions, and only in the
type that they have there. Here every field of the binary can be given.
"""

import contextlib
import inspect
import sys
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from distill_core import config
from distill_core.config import InputError, literal, suggest
from distill_core.runtime import paths

_KIND = "must be a Python file that defines get_config(arg): FILE.py, or FILE.py:ARG"


def split(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """The overrides (field, text) among the arguments, in order, and the other arguments."""
    overrides, others = [], []
    remaining = iter(argv)
    for argument in remaining:
        name, equals, text = argument.lstrip("-").partition("=")
        if not (argument.startswith("-") and name.startswith("config.")):
            others.append(argument)
            continue
        field = name.removeprefix("config.")
        if not field:
            raise InputError("config", argument, "names no field: --config.FIELD=VALUE")
        if not equals:
            text = next(remaining, "--")
            if text.startswith("--"):
                raise InputError(field, None, f"needs a value: --config.{field}=VALUE")
        overrides.append((field, text))
    return overrides, others


def read(given: str, overrides: Sequence[tuple[str, str]], kind: type) -> config_dict.ConfigDict:
    """The settings of a config file after the overrides; locked, values not yet checked.

    Args:
      given: `FILE.py`, or `FILE.py:ARG`, where ARG is passed to `get_config`.
      overrides: (field, text) in order; `group.name` sets a field of a group, and creates it.
      kind: class of the binary's settings, whose fields parse the texts.

    Raises:
      InputError: on "config" if the file cannot be read; on an override that is no field.
    """
    path, _, arg = ("" if "://" in given else given).partition(":")
    settings = _run(given, Path(paths.expand("config", path, given=given)), arg)
    with settings.unlocked(), settings.ignore_type():
        for name, text in overrides:
            *groups, last = name.split(".")
            group: Any = settings
            known = config.fields(kind)
            for key in groups:
                if key not in (known or {key}):
                    raise InputError(name, text, f"no such field; {suggest(key, known)}")
                if not isinstance(group.get(key), config_dict.ConfigDict):
                    group[key] = config_dict.ConfigDict()
                inner = known[key].kind if known else None
                group, known = group[key], config.fields(inner) if inner else {}
            if last not in (known or {last}):
                raise InputError(name, text, f"no such field; {suggest(last, known)}")
            group[last] = known[last].parse(text) if known else literal(text)
    return settings.lock()


def _run(given: str, file: Path, arg: str) -> config_dict.ConfigDict:
    """What the file's `get_config` returns, as a ConfigDict."""
    if file.suffix != ".py" or file.is_dir():
        raise InputError("config", given, _KIND)
    if not file.exists():
        others = [p.name for p in file.parent.glob("*.py")]
        hint = suggest(file.name, others) if others else f"{file.parent} holds no config"
        raise InputError("config", given, f"no such file; {hint}")
    module = types.ModuleType(f"config {file.stem}")  # no other module has such a name
    module.__file__ = str(file.resolve())
    try:
        with _importing_from(file.parent.resolve()):
            sys.modules[module.__name__] = module  # dataclasses look for theirs
            exec(compile(file.read_bytes(), str(file), "exec"), vars(module))
            if not callable(get_config := vars(module).get("get_config")):
                raise InputError("config", given, f"defines no get_config; {_KIND}")
            takes_arg = bool(inspect.signature(get_config).parameters)
            if arg and not takes_arg:
                allowed = f"its get_config() takes no argument, not {arg!r}"
                raise InputError("config", given, allowed)
            settings = get_config(arg) if takes_arg else get_config()
    except InputError:
        raise
    except Exception as error:  # a user's file may raise anything
        line, reason = _line(error, file), f"{type(error).__name__}: {error}"
        raise InputError("config", given, f"fails{line} with {reason}") from error
    if not isinstance(settings, config_dict.ConfigDict | Mapping):
        kind = type(settings).__name__
        allowed = f"its get_config must return a dict or a ml_collections ConfigDict, not a {kind}"
        raise InputError("config", given, allowed)
    for name, value in _fields(settings):
        if not isinstance(name, str):
            raise InputError("config", given, f"its get_config returned {name!r} as a field's name")
        if "." in name:
            group, _, inner = name.partition(".")
            allowed = f'no such field; a group is written {{"{group}": {{"{inner}": …}}}}'
            raise InputError(name, value, allowed)
    return config_dict.ConfigDict(settings)  # pyright: ignore[reportArgumentType]: thaws a frozen one


def _fields(settings: Any) -> Iterator[tuple[Any, Any]]:
    """All fields with their values, those of groups too."""
    for name, value in settings.items():
        yield name, value
        if isinstance(value, Mapping):
            yield from _fields(value)


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Lets a config import its neighbours, and forgets them: other folders have their own."""
    sys.path.insert(0, str(folder))
    before = set(sys.modules)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in sys.modules.keys() - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(f"{folder}/"):
                del sys.modules[name]


def _line(error: Exception, file: Path) -> str:
    """` at line N`, the innermost in the file; "" if there is none."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    if isinstance(error, SyntaxError):
        lines.append(error.lineno)
    return f" at line {lines[-1]}" if lines and lines[-1] else ""
