"""Whether a network fits the data or another network: inputs, classes by name, vocabulary.

Classes of the same names in another order are mapped; other names are refused; where one side has
no names, classes are matched by number, and a line on the console says so.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from distill_core import config
from distill_core.config import InputError
from distill_core.data.images.dataset import Dataset
from distill_core.models.network import LoadedModel, Network
from distill_core.runtime import parallel


def data_for(field: str, path: str, loaded: LoadedModel, dataset: Dataset) -> Dataset:
    """The data set with its labels in the order of a network's classes.

    `field` and `path` named the network. Raises InputError on the field if it is a language model,
    or has other inputs (names the first leaf of another shape) or other classes (names the first).
    """
    network = loaded.network
    if network.is_text:
        raise InputError(field, path, f"is a language model; {dataset.name} holds images")
    wanted = {"num_classes": dataset.num_classes, "input_shape": tuple(dataset.input_shape)}
    has = {name: getattr(network, name) for name in wanted}
    if has != wanted:
        what = ", ".join(
            f"{name} {config.to_json(has[name])} where {dataset.name} needs "
            f"{config.to_json(wanted[name])}"
            for name in wanted
            if has[name] != wanted[name]
        )
        leaf = _first_difference(network, dataclasses.replace(network, **wanted))
        raise InputError(field, path, f"has {what}{leaf}")
    theirs = loaded.network.class_names
    ours = dataset.classes if dataset.named else None
    if theirs is ours is None and loaded.metadata.get("config", {}).get("dataset") == dataset.name:
        return dataset  # the one whose class numbers it was trained on
    order, line = class_order(field, path, theirs, ours, what=dataset.name)
    say(line)
    return dataset if order is None else dataset.reordered(order)


def class_order(
    field: str,
    path: str,
    theirs: Sequence[str] | None,
    ours: Sequence[str] | None,
    *,
    what: str,
    mapped: bool = True,
) -> tuple[list[int] | None, str]:
    """Where each of our classes stands among theirs; None if the order is the same.

    The second value is a line for `say`, once nothing else refuses the run; "" for none.

    Args:
      field, path: what named the artefact that has their classes.
      theirs, ours: names of the classes in order; None where there are none.
      what: what has our classes, e.g. the data set's name.
      mapped: whether the caller can map another order; otherwise it is refused.

    Raises:
      InputError: on `field`, with the first name that differs.
    """
    if theirs is None or ours is None:
        who = what if theirs is not None else f"{field} {path}"
        return None, f"{who} has no class names: classes are matched by number"
    if list(theirs) == list(ours):
        return None, ""
    strange = [name for name in theirs if name not in ours]
    lacking = [name for name in ours if name not in theirs]
    if strange or lacking:
        first = f"lacks the class {lacking[0]!r} of {what}" if lacking else ""
        if strange:
            place = list(theirs).index(strange[0])
            also = f", which has {lacking[0]!r}" if lacking else ""
            first = f"calls class {place} {strange[0]!r}, which is no class of {what}{also}"
        raise InputError(field, path, f"{first}; the class names must agree")
    order = [list(theirs).index(name) for name in ours]
    place = next(i for i, k in enumerate(order) if i != k)
    differ = f"class {place} is {theirs[place]!r}, in {what} {ours[place]!r}"
    if not mapped:
        raise InputError(field, path, f"has the same classes in another order: {differ}")
    return order, f"{field} {path} has the classes in another order: labels are mapped ({differ})"


def check_start(field: str, path: str, theirs: Network, ours: Network):
    """Raises InputError if weights of `theirs` cannot initialise `ours`.

    That is a network of the other kind, of other classes or another order of them, or of another
    vocabulary. `field` and `path` named the weights.
    """
    if ours.is_text != theirs.is_text:
        kind = "a language model" if theirs.is_text else "a network of images"
        raise InputError(field, path, f"is {kind}")
    if ours.is_text:
        first, second = (each.load_tokenizer() for each in (theirs, ours))
        if first is None:
            say(f"{field} {path} has no tokenizer: its tokens are taken to be the run's")
        elif second is None:
            raise InputError(field, path, f"has a vocabulary and the run none; {_take(path)}")
        elif shared_tokens(field, path, first, second) < max(first.vocab_size, second.vocab_size):
            raise InputError(field, path, f"has other added tokens than the run; {_take(path)}")
    names = theirs.class_names, ours.class_names
    same = theirs.num_classes == ours.num_classes  # else a leaf has another shape
    if same and any(each is not None for each in names):
        say(class_order(field, path, *names, what="the run", mapped=False)[1])


def shared_tokens(field: str, path: str, theirs: Any, ours: Any) -> int:
    """How many first ids are the same token for a network's tokenizer and for the run's.

    Added tokens may differ. Raises InputError on the field that named the network, with the first
    token that differs, if the two split text differently.
    """
    from distill_core.data.text.tokenizers import num_shared

    try:
        return num_shared(theirs, ours)
    except ValueError as error:
        allowed = f"has another tokenizer than the run: {error} (the network's, the run's)"
        raise InputError(field, path, f"{allowed}; {_take(path)}") from None


def _take(path: str) -> str:
    return f"all networks of a run need one tokenizer; to take this one's, tokenizer={path}"


def _first_difference(network: Network, wanted: Network) -> str:
    try:
        ours, theirs = jax.tree.leaves(wanted.shapes()), network.shapes()
    except Exception:
        return ""  # the network cannot even be built for the other input: no leaf to name
    for (path, a), b in zip(jax.tree.leaves_with_path(theirs), ours, strict=False):
        if a.shape != b.shape:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return f" (leaf {name} has shape {a.shape}, not {b.shape})"
    return ""


def say(line: str):
    """Prints a line, if it is not empty, in process 0."""
    if line and parallel.is_main():
        print(line, flush=True)
