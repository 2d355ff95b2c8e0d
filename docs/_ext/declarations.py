"""What the binaries declare: their purpose, flags and fields, read from the code itself."""

import dataclasses
import runpy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from distill_core import config
from distill_core.runtime import cli

ROOT = Path(__file__).parents[2]
PACKAGES = ("distill_core", "nasty", "swingdistill", "dpdfd")


@dataclasses.dataclass(frozen=True)
class Option:
    """A flag of a binary, or a field of its config."""

    name: str
    default: str
    allowed: str
    help: str


@dataclasses.dataclass(frozen=True)
class Binary:
    """A binary: `groups` are tables of fields by the group's name, "" for those at the top."""

    name: str
    purpose: str
    flags: tuple[Option, ...]
    groups: dict[str, tuple[Option, ...]]
    about: dict[str, str]  # a group's own help


class _Declared(Exception):
    """Carries a parser out of a binary."""

    def __init__(self, parser: cli.Flags):
        self.parser = parser


def names() -> list[str]:
    """Every binary of the packages, as `python -m` takes it."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if "\n    cli.launch" in path.read_text(encoding="utf-8"):
                parts = path.relative_to(ROOT).with_suffix("").parts
                found.add(".".join(part for part in parts if part != "__main__"))
    return sorted(found, key=lambda name: (PACKAGES.index(name.split(".")[0]), name))


def _parser(name: str) -> cli.Flags:
    """The parser that a binary makes at its start; nothing else of it runs."""

    def read(self, argv, **kwargs):
        raise _Declared(self)

    with warnings.catch_warnings(), mock.patch.object(cli, "launch", lambda main: main([])):
        warnings.simplefilter("ignore", RuntimeWarning)  # the binary has been imported before
        with mock.patch.object(cli.Flags, "read", read):
            try:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            except _Declared as declared:
                return declared.parser
    raise ValueError(f"{name}: reads no flags; must begin with cli.launch")


def read(name: str) -> Binary:
    """What one binary declares."""
    parser = _parser(name)
    purpose = parser.description or ""
    flags = tuple(
        Option(
            " ".join(filter(None, (action.option_strings[-1], _metavar(action)))),
            "" if action.default in (None, False, [], "==SUPPRESS==") else str(action.default),
            ", ".join(map(str, action.choices or ())),
            " ".join((action.help or "").split()),
        )
        for action in parser._actions
        if action.help != "==SUPPRESS=="
    )
    groups: dict[str, tuple[Option, ...]] = {}
    about: dict[str, str] = {}
    for group, fields, meaning in _groups(parser.fields):
        groups[group] = fields
        about[group] = meaning
    return Binary(name, purpose, flags, groups, about)


def _metavar(action) -> str | None:
    if action.nargs == 0:
        return None
    return action.metavar or action.dest.upper()


def _groups(
    fields: dict[str, config.Field], group: str = "", meaning: str = ""
) -> Iterator[tuple[str, tuple[Option, ...], str]]:
    """(group, its fields, its help), those at the top first and nested ones after their parent."""
    if not fields:
        return
    yield group, tuple(_option(group, name, field) for name, field in fields.items()), meaning
    for name, field in fields.items():
        if field.kind is not None:
            yield from _groups(config.fields(field.kind), f"{group}{name}.", field.help)


def _option(group: str, name: str, field: config.Field) -> Option:
    if field.kind is not None:
        allowed = "a group, below" + ("; or None" if field.default is None else "")
        default = "required" if field.required else "None" if field.default is None else "its own"
    else:
        allowed = field.allowed.removeprefix("must be ")
        default = "required" if field.required else _value(field.default)
    return Option(f"{group}{name}", default, allowed, field.help)


def _value(value: Any) -> str:
    """A default as it is written on the command line."""
    return str(dict(value)) if hasattr(value, "items") else repr(value)
