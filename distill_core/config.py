"""Typed settings of a run, checks of their values, and the messages when one is wrong.

A binary declares its settings as a class, one line per field:

    @config.settings
    class Settings(config.Training):
        omega: float = config.number(0.0, help="weight of the adversarial term")
"""

import ast
import contextlib
import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, dataclass_transform, overload

from flax.core import FrozenDict

_REQUIRED: Any = object()
T = TypeVar("T")


class InputError(ValueError):
    """Wrong input from the user: which field, what was given, what is allowed; one line.

    >>> str(InputError("omega", -1.0, "must be at least 0"))
    'omega: got -1.0; must be at least 0'
    """

    def __init__(self, field: str, given: object, allowed: str):
        super().__init__(" ".join(f"{field}: got {_plain(given)!r}; {allowed}".split()))
        self.field, self.given, self.allowed = field, given, allowed


def _plain(value: Any) -> Any:
    """As a user writes it: groups are dicts."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return tuple(map(_plain, value)) if type(value) is tuple else value


@contextlib.contextmanager
def within(group: str) -> Iterator[None]:
    """Input errors inside name their field as `group.field`.

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
    """One field of a config. None is allowed as a value if it is the default.

    `read` returns a value in its proper, hashable type or raises ValueError or TypeError (or, for a
    group, InputError); `parse` turns an argument of the command line into a value; `allowed` and
    `help` are clauses that say what is allowed and what the field means.
    """

    read: Callable[[Any], Any]
    allowed: str
    default: Any = _REQUIRED
    parse: Callable[[str], Any] = literal
    help: str = ""
    kind: type | None = None  # of a group

    @property
    def required(self) -> bool:
        return self.default is _REQUIRED

    def refused(self, name: str, given: Any) -> InputError:
        """The error for a wrong or missing value."""
        meaning = f" ({self.help})" if self.help else ""
        return InputError(name, given, f"{self.allowed}{meaning}")


def _jsonable(value: Any) -> Any:
    """A value that JSON can hold, made hashable: FrozenDicts and tuples at any depth."""
    if isinstance(value, Mapping):
        return FrozenDict({str(name): _jsonable(each) for name, each in value.items()})
    if isinstance(value, list | tuple):
        return tuple(map(_jsonable, value))
    if value is not None and not isinstance(value, bool | int | float | str):
        raise TypeError
    return value


# The functions below return a `Field`; typed as Any, it can be a default in a class.


def number(
    low: float,
    high: float = math.inf,
    *,
    default=_REQUIRED,
    above: bool = False,
    below: bool = False,
    help: str = "",
) -> Any:
    """A float in [low, high], or None if that is the default.

    It is above `low` if `above`, and below `high` if `below`.
    """

    def read(value):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError
        value = float(value)
        inside = low < value if above else low <= value
        inside &= value < high if below else value <= high
        if not (inside and math.isfinite(value)):
            raise ValueError
        return value

    bound = f"above {low:g}" if above else f"at least {low:g}"
    if high < math.inf:
        bound = f"in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
    return Field(read, f"must be a number {bound}", default, help=help)


def integer(low: int, high: int | None = None, *, default=_REQUIRED, help: str = "") -> Any:
    """An integer in [low, high]; or None if that is the default."""

    def read(value):
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if not is_integer or value < low or (high is not None and value > high):
            raise ValueError
        return value

    bound = f"of at least {low}" if high is None else f"in [{low}, {high}]"
    return Field(read, f"must be an integer {bound}", default, help=help)


def text(*, default=_REQUIRED, help: str = "") -> Any:
    """A non-empty string; or None if that is the default."""

    def read(value):
        if not isinstance(value, str) or not value:
            raise TypeError
        return value

    def parse(text):  # no literal: a directory may be called 2024
        return None if default is None and text.lower() == "none" else text

    return Field(read, "must be a non-empty string", default, parse, help)


def choice(*names: str, default=_REQUIRED, help: str = "") -> Any:
    """One of the names."""

    def read(value):
        if value not in names:
            raise ValueError
        return value

    return Field(read, f"must be one of {', '.join(names)}", default, str, help)


def boolean(*, default=_REQUIRED, help: str = "") -> Any:
    """True or False."""

    def read(value):
        if not isinstance(value, bool):
            raise TypeError
        return value

    return Field(read, "must be True or False", default, help=help)


def mapping(*, default=_REQUIRED, help: str = "") -> Any:
    """Names and values that JSON can hold, made hashable."""

    def read(value):
        if not isinstance(value, Mapping):
            raise TypeError
        return _jsonable(value)

    allowed = "must be a group of names and plain values (numbers, strings, True, None, tuples)"
    return Field(read, allowed, _jsonable(default) if default == {} else default, help=help)


def sequence(item: Field, *, default=_REQUIRED, help: str = "") -> Any:
    """A tuple of values that `item` reads."""

    def read(value):
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(item.read(v) for v in value)

    allowed = f"must be a tuple, (A, B, …); each item {item.allowed}"
    return Field(read, allowed, default, help=help)


def group(kind: type, *, default=_REQUIRED, help: str = "") -> Any:
    """Nested settings; the default {} means their defaults, None that there are none."""

    def read(value):
        if dataclasses.is_dataclass(value):
            return value
        if not isinstance(value, Mapping):
            raise TypeError
        if not value and default is None:  # it is unclear what an empty group asks for
            raise ValueError
        return validate(value, kind)

    allowed = f"must be a group: {', '.join(fields(kind))}"
    if default is None:
        allowed += "; or None"
    default = validate({}, kind) if default == {} else default
    return Field(read, allowed, default, help=help, kind=kind)


@dataclass_transform(
    kw_only_default=True,
    frozen_default=True,
    field_specifiers=(number, integer, text, choice, boolean, mapping, sequence, group),
)
def settings(cls: type[T]) -> type[T]:
    """Turns a class whose attributes are fields into a frozen dataclass of their values."""
    for name, value in list(vars(cls).items()):
        if isinstance(value, Field):
            default = {} if value.required else {"default": value.default}
            setattr(cls, name, dataclasses.field(**default, metadata={"field": value}))
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def fields(kind: type) -> dict[str, Field]:
    """The fields of settings, by name."""
    return {each.name: each.metadata["field"] for each in dataclasses.fields(kind)}


@overload
def validate(config: Any, kind: type[T]) -> T: ...
@overload
def validate(config: Any, kind: Mapping[str, Field]) -> dict[str, Any]: ...
def validate(config: Any, kind: Any) -> Any:
    """Checked values of a mapping or ConfigDict, defaults filled in.

    `kind` is a class of settings, of which an instance is returned; or fields by name, for a dict.

    Raises:
      InputError: an unknown or missing field, a wrong type, a value outside its range, or values
        that the class does not allow together; names a group's field as `group.field`.
    """
    given = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    known = kind if isinstance(kind, Mapping) else fields(kind)
    check_names(given, known)
    values = {}
    for name, field in known.items():
        if name not in given and field.required:
            raise InputError(name, None, f"is required; {field.refused(name, None).allowed}")
        if name not in given or given[name] is field.default is None:
            values[name] = field.default  # None means not given where it is the default
            continue
        try:
            with within(name):
                values[name] = field.read(given[name])
        except InputError:
            raise
        except (TypeError, ValueError, OverflowError):
            raise field.refused(name, given[name]) from None
    return values if isinstance(kind, Mapping) else kind(**values)


def check_names(given: Mapping[Any, Any], known: Iterable[str]):
    """Raises InputError on the first name that no field has."""
    for name, value in given.items():
        if name not in known:
            raise InputError(str(name), value, f"no such field; {suggest(str(name), known)}")


def check_unset(hp: Any, names: Iterable[str], why: str):
    """Raises InputError, which says `why`, on the first of these fields that has another value
    than its default."""
    known = fields(type(hp))
    for name in names:
        if (value := getattr(hp, name)) != known[name].default:
            raise InputError(name, value, why)


def to_json(settings: Any) -> Any:
    """Settings, or one of their values, as dicts and lists for JSON."""
    if dataclasses.is_dataclass(settings):
        settings = vars(settings)
    if isinstance(settings, Mapping):
        return {name: to_json(value) for name, value in settings.items()}
    return [to_json(v) for v in settings] if isinstance(settings, list | tuple) else settings


def part(settings: Any, kind: type[T]) -> T:
    """Settings of one kind, taken from settings that include its fields."""
    return kind(**{each.name: getattr(settings, each.name) for each in dataclasses.fields(kind)})  # type: ignore[arg-type]


def part_of(values: Mapping[str, Any], kind: type[T]) -> T:
    """Settings of one kind, from a config that may hold other fields, too."""
    return validate({name: value for name, value in values.items() if name in fields(kind)}, kind)


# What training binaries share: the flat names at the top of a config.


@settings
class Data:
    """Labelled images."""

    dataset: str = text(help="digits, tfds:NAME, npz:PATH or folder:PATH")
    data_dir: str | None = text(default=None, help="where tfds:NAME was prepared")
    image_memory: int = integer(
        0, default=8192, help="MiB of images up to which a split is held in memory, else on disk"
    )
    num_validation: int = integer(0, default=0, help="held-out training examples")


@settings
class Model:
    """A network."""

    model: str = text(
        help="a network's name, or package.module:factory; of text also init_from or teacher: as "
        "theirs"
    )
    model_kwargs: Mapping[str, Any] = mapping(default={}, help="the network's own settings")


@settings
class Optimizer:
    """An optimiser and the schedule of its learning rate."""

    optimizer: str = choice("sgd", "adam", "adamw", default="sgd", help="the update rule")
    learning_rate: float = number(0.0, above=True, help="the highest of the schedule")
    momentum: float = number(0.0, 1.0, default=0.9, help="of sgd")
    b1: float = number(0.0, 1.0, below=True, default=0.9, help="of adam's mean of gradients")
    b2: float = number(0.0, 1.0, below=True, default=0.999, help="of adam's mean of squares")
    weight_decay: float = number(
        0.0,
        default=0.0,
        help="factor of L2 on all parameters; adamw keeps it off the gradient",
    )
    clip_norm: float | None = number(
        0.0, above=True, default=None, help="bound of the whole gradient's L2 norm"
    )
    warmup_steps: int = integer(0, default=0, help="in which the rate rises from 0 to its highest")
    schedule: str = choice(
        "constant", "step", "cosine", "onecycle", default="constant", help="of the learning rate"
    )
    drop_steps: tuple[int, ...] = sequence(
        integer(1), default=(), help="where schedule 'step' lowers the rate"
    )
    drop_factor: float = number(0.0, 1.0, default=0.1, above=True, help="by which it lowers it")

    def __post_init__(self):
        if self.schedule == "step" and not self.drop_steps:
            allowed = "schedule 'step' needs at least one step to drop at"
            raise InputError("drop_steps", self.drop_steps, allowed)
        if list(self.drop_steps) != sorted(set(self.drop_steps)):
            allowed = "must increase from each item to the next"
            raise InputError("drop_steps", self.drop_steps, allowed)
        if self.drop_steps and self.drop_steps[0] <= self.warmup_steps:
            allowed = f"must lie behind the warm-up of {self.warmup_steps} steps"
            raise InputError("drop_steps", self.drop_steps, allowed)
        if self.schedule == "onecycle" and self.warmup_steps:
            allowed = "must be 0 with onecycle, which rises by itself"
            raise InputError("warmup_steps", self.warmup_steps, allowed)
        if self.optimizer == "sgd":
            check_unset(self, ("b1", "b2"), "belongs to adam and adamw")


@settings
class Length:
    """Length and batches of a run, and how often it is logged and saved."""

    batch_size: int = integer(1, help="over all devices")
    num_steps: int = integer(0, help="updates in all; 0 keeps the first weights")
    eval_batch_size: int = integer(1, default=512, help="of the evaluations")
    log_every: int = integer(1, default=50, help="steps between lines of the log")
    save_every: int = integer(1, default=1000, help="steps between checkpoints")


@settings
class Steps(Length):
    """A run with a seed."""

    # jax.random.key keeps 32 bits.
    seed: int = integer(0, 2**32 - 1, default=0, help="of weights, batches and augmentation")


@settings
class Evaluated:
    """A run that is evaluated while it trains."""

    eval_every: int = integer(1, default=1000, help="steps between evaluations")


@settings
class Run(Evaluated, Steps):
    """A run with a seed that is evaluated while it trains."""


@settings
class Start:
    """Where the first weights come from."""

    init_from: str | None = text(default=None, help="a checkpoint with the first weights")
    reinitialise: str = choice(
        "none", "head", default="none", help="what of init_from is made anew, for other classes"
    )


@settings
class Update:
    """How a batch becomes an update, and which weights are kept."""

    accumulate_steps: int = integer(
        1, default=1, help="parts of a batch, one after another in less memory"
    )
    ema_decay: float = number(
        0.0, 1.0, below=True, default=0.0,
        help="of a moving average of the weights, which is what is kept; 0 for none",
    )  # fmt: skip


@settings
class Frozen:
    """Networks that are only asked."""

    frozen_dtype: str = choice(
        "float32", "bfloat16", default="float32", help="in which they are stored and computed"
    )


@settings
class Augmentation:
    """Random changes of training images."""

    crop_padding: int = integer(0, default=0, help="pixels of random shift")
    flip: bool = boolean(default=False, help="mirrors half of the images")
    rotation: float = number(0.0, 180.0, default=0.0, help="degrees of random rotation")


@settings
class Device:
    """Precision, and the way of feeding the device."""

    compute_dtype: str = choice(
        "float32", "bfloat16", default="float32", help="precision of the network's arithmetic"
    )
    data_on_device: bool = boolean(default=False, help="keeps the training data on the devices")
    steps_per_dispatch: int = integer(1, default=1, help="steps per program; 1 is best on CPU")


@settings
class Classifier(Device):
    """An image classifier's share of the data, and its device."""

    train_share: float = number(
        0.0, 1.0, above=True, default=1.0, help="share of the training examples"
    )


@settings
class Language:
    """A language model's memory, and which of its checkpoints counts."""

    use: str = choice(
        "last", "best", default="last", help="which step is loaded; best on validation text"
    )

    remat: str = choice(
        "none", "block", default="none", help="activations computed again in the backward pass"
    )


@settings
class Stream:
    """Where text that is too large for memory is kept as tokens."""

    text_memory: int = integer(
        0, default=2, help="MiB of text up to which it is held in memory, else read from text_cache"
    )
    text_cache: str | None = text(
        default=None, help="DIR of tokenised text and its scores; in the user's cache directory"
    )


@settings
class Training(Classifier, Augmentation, Update, Start, Run, Optimizer, Model, Data):
    """A run that trains an image classifier."""


# A resumed run may change these; everything else decides the numbers of its training.
_FEEDING = {"data_on_device", "steps_per_dispatch", "remat", "text_cache", "image_memory"}
_CHECK = {"check_nastiness", "check_model", "check_model_kwargs"}
MAY_CHANGE = frozenset({"num_steps", "log_every", "eval_every", "save_every"} | _FEEDING | _CHECK)


def suggest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name.

    >>> suggest("omgea", ["alpha", "omega"])
    'did you mean omega?'
    """
    known = sorted(known)
    near = difflib.get_close_matches(name.replace("-", "_").lower(), known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def check_resume(old: Mapping[str, Any], new: Mapping[str, Any]):
    """Raises InputError on the first field that differs and decides the numbers of a run."""
    for name in {**new, **old}:
        if name not in MAY_CHANGE:
            _check_same(name, old.get(name), new.get(name))


def _check_same(name: str, old: Any, new: Any):
    if isinstance(old, Mapping) and isinstance(new, Mapping) and old.keys() == new.keys():
        for inner in new:
            _check_same(f"{name}.{inner}", old[inner], new[inner])
    elif to_json(old) != to_json(new):
        allowed = f"this run was started with {old!r}; keep it or use another workdir"
        raise InputError(name, new, allowed)
