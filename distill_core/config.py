"""Config to validated hyper-parameters."""

import ast
import contextlib
import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

_REQUIRED = object()


class InputError(ValueError):
    """Wrong input from the user: which field, what was given, what is allowed; one line.

    >>> str(InputError("omega", -1.0, "must be at least 0"))
    'omega: got -1.0; must be at least 0'
    """

    def __init__(self, field: str, given: object, allowed: str):
        super().__init__(" ".join(f"{field}: got {given!r}; {allowed}".split()))
        self.field, self.given, self.allowed = field, given, allowed


@contextlib.contextmanager
def within(group: str) -> Iterator[None]:
    """Errors inside name their field as `group.field`.

    >>> with within("dp"):
    ...     raise InputError("norm", 0.0, "must be above 0")
    Traceback (most recent call last):
    distill_core.config.InputError: dp.norm: got 0.0; must be above 0
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{group}.{error.field}", error.given, error.allowed) from None


def literal(text: str) -> Any:
    """A value from the command line: a Python literal, True, False or None in any case, or text.

    >>> literal("0.04"), literal("8, 16"), literal("true"), literal("group")
    (0.04, (8, 16), True, 'group')
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a config: how to read a value, and the words for what is allowed.

    `read` returns the value in its proper type or raises ValueError or TypeError; `parse` makes a
    value for it out of an argument of the command line.
    """

    read: Callable[[Any], Any]
    allowed: str
    default: Any = _REQUIRED
    parse: Callable[[str], Any] = literal

    @property
    def required(self) -> bool:
        return self.default is _REQUIRED


def number(low: float, high: float = math.inf, *, default=_REQUIRED, above: bool = False) -> Field:
    """A float in [low, high], or above `low` if `above`; None where that is the default."""

    def read(value):
        if value is None and default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError
        value = float(value)
        inside = (low < value if above else low <= value) and value <= high
        if not (inside and math.isfinite(value)):
            raise ValueError
        return value

    bound = f"above {low:g}" if above else f"at least {low:g}"
    if high < math.inf:
        bound = f"in {'(' if above else '['}{low:g}, {high:g}]"
    return Field(read, f"must be a number {bound}", default)


def integer(low: int, high: int | None = None, *, default=_REQUIRED) -> Field:
    """An integer in [low, high]; None where that is the default."""

    def read(value):
        if value is None and default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError
        if value < low or (high is not None and value > high):
            raise ValueError
        return value

    bound = f"of at least {low}" if high is None else f"in [{low}, {high}]"
    return Field(read, f"must be an integer {bound}", default)


def text(*, default=_REQUIRED) -> Field:
    """A string that is not empty; None counts as not given where there is a default."""

    def read(value):
        if value is None and default is None:
            return None
        if not isinstance(value, str) or not value:
            raise TypeError
        return value

    def parse(text):  # as it stands: a directory may be called 2024
        return None if default is None and text.lower() == "none" else text

    return Field(read, "must be a string that is not empty", default, parse)


def choice(*names: str, default=_REQUIRED) -> Field:
    """One of some names."""

    def read(value):
        if value not in names:
            raise ValueError
        return value

    return Field(read, f"must be one of {', '.join(names)}", default, str)


def boolean(*, default=_REQUIRED) -> Field:
    """True or False."""

    def read(value):
        if not isinstance(value, bool):
            raise TypeError
        return value

    return Field(read, "must be True or False", default)


def mapping(*, default=_REQUIRED) -> Field:
    """A group of names and values that JSON can hold; lists become tuples."""

    def read(value):
        if not isinstance(value, Mapping):
            raise TypeError
        json.dumps(dict(value))  # checkpoints store it
        return {str(k): tuple(v) if isinstance(v, list) else v for k, v in value.items()}

    allowed = "must be a group of names and plain values (numbers, strings, True, None, tuples)"
    return Field(read, allowed, default)


def sequence(item: Field, *, default=_REQUIRED) -> Field:
    """A tuple of values that each satisfy `item`."""

    def read(value):
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(item.read(v) for v in value)

    return Field(read, f"must be a tuple, (A, B, …); each item {item.allowed}", default)


# What every training binary has: the flat names at the top of a config.
DATA = {"dataset": text(), "data_dir": text(default=None), "num_validation": integer(0, default=0)}
MODEL = {"model": text(), "model_kwargs": mapping(default={})}
OPTIMIZER = {
    "optimizer": choice("sgd", "adam", default="sgd"),
    "learning_rate": number(0.0, above=True),
    "momentum": number(0.0, 1.0, default=0.9),
    "weight_decay": number(0.0, default=0.0),
    "schedule": choice("constant", "step", "cosine", "onecycle", default="constant"),
    "drop_steps": sequence(integer(1), default=()),
    "drop_factor": number(0.0, 1.0, default=0.1, above=True),
}
RUN = {
    "seed": integer(0, 2**32 - 1, default=0),  # jax.random.key keeps 32 bits
    "batch_size": integer(1),
    "num_steps": integer(1),
    "eval_batch_size": integer(1, default=512),
    "log_every": integer(1, default=50),
    "eval_every": integer(1, default=1000),
    "save_every": integer(1, default=1000),
    "init_from": text(default=None),
}
AUGMENTATION = {
    "crop_padding": integer(0, default=0),
    "flip": boolean(default=False),
    "rotation": number(0.0, 180.0, default=0.0),
}
# Of image classifiers: numbers to compute in, and how steps reach the device. A step that is a
# method's own (a skeptical student's, a head's) takes its batches from the host, one at a time.
CLASSIFIER = {
    "train_share": number(0.0, 1.0, above=True, default=1.0),
    "compute_dtype": choice("float32", "bfloat16", default="float32"),
    "data_on_device": boolean(default=False),
    "steps_per_dispatch": integer(1, default=1),
}
TRAINING = {**DATA, **MODEL, **OPTIMIZER, **RUN, **AUGMENTATION, **CLASSIFIER}

# A resumed run may change these; everything else decides the numbers.
_FEEDING = {"data_on_device", "steps_per_dispatch"}
MAY_CHANGE = frozenset({"num_steps", "log_every", "eval_every", "save_every"} | _FEEDING)
# Fields that older runs do not name, and what they would say.
ABSENT_MEANS = {"rotation": 0.0, "train_share": 1.0, "compute_dtype": "float32"}


def validate(config: Any, fields: Mapping[str, Field]) -> dict[str, Any]:
    """Checked values of a mapping or ConfigDict, defaults filled in, in the order of `fields`.

    Raises:
      InputError: an unknown or missing field, a wrong type, a value outside its range, drop steps
        that a schedule cannot have.
    """
    given = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    for name, value in given.items():
        if name not in fields:
            raise InputError(name, value, f"no such field; {suggest(name, fields)}")
    values = {}
    for name, field in fields.items():
        if name not in given:
            if field.required:
                raise InputError(name, None, f"is required; {field.allowed}")
            values[name] = field.default
            continue
        try:
            values[name] = field.read(given[name])
        except (TypeError, ValueError, OverflowError):
            raise InputError(name, given[name], field.allowed) from None
    for name in values:
        if name.endswith("drop_steps"):
            schedule = name.removesuffix("drop_steps") + "schedule"
            _check_drops(name, values[name], schedule, values[schedule])
    return values


def suggest(name: str, known: Iterable[str]) -> str:
    """What to write instead of an unknown name.

    >>> suggest("omgea", ["alpha", "omega"])
    'did you mean omega?'
    """
    known = sorted(known)
    near = difflib.get_close_matches(name.replace("-", "_").lower(), known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _check_drops(name: str, drops: tuple[int, ...], schedule_name: str, schedule: str):
    if schedule == "step" and not drops:
        raise InputError(name, drops, f"{schedule_name} 'step' needs at least one step to drop at")
    if list(drops) != sorted(set(drops)):
        raise InputError(name, drops, "must increase from each item to the next")


def check_resume(old: Mapping[str, Any], new: Mapping[str, Any]):
    """Refuses to resume a run under other settings, by name.

    Raises:
      InputError: the first field that differs and decides the numbers.
    """
    old, new = {**ABSENT_MEANS, **old}, {**ABSENT_MEANS, **new}
    for name in [*new, *(name for name in old if name not in new)]:
        if name not in MAY_CHANGE and _plain(old.get(name)) != _plain(new.get(name)):
            raise InputError(
                name,
                new.get(name),
                f"this run was started with {old.get(name)!r}; keep it or take another workdir",
            )


def _plain(value):
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value
