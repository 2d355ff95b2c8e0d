"""Whether two artefacts that meet mean the same: inputs, classes by name, tokens.

The same names of classes in another order are mapped; other names are refused; where one side has
no names, classes are taken in their order, and a line on the console says so.
"""

import dataclasses
from collections.abc import Sequence

import jax

from distill_core.config import InputError
from distill_core.data.images.dataset import Dataset
from distill_core.models.network import LoadedModel, Network
from distill_core.runtime import parallel


def data_for(field: str, path: str, loaded: LoadedModel, dataset: Dataset) -> Dataset:
    """The data set, its labels in the order of a network's classes.

    Args:
      field, path: what named the network, for messages.
      loaded: the network.
      dataset: images and labels.

    Raises:
      InputError: the network is of text, has other inputs (names the first leaf that would have
        another shape), or other classes (names the first).
    """
    if loaded.network.is_text:
        raise InputError(field, path, f"is a language model; {dataset.name} holds images")
    _check_shapes(field, path, loaded.network, dataset)
    theirs = loaded.network.class_names
    ours = dataset.classes if dataset.named else None
    if theirs is ours is None and loaded.metadata.get("config", {}).get("dataset") == dataset.name:
        return dataset  # whose numbers it was trained on
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
    """Where each of our classes stands among theirs; None if all are in their places.

    The second value is a line for `say`, once nothing else refuses the run; "" for none.

    Args:
      field, path: what named the artefact with their classes, for messages.
      theirs: names in the order of its numbers; None if it has none.
      ours: likewise.
      what: whose ours are, e.g. the data set's name.
      mapped: whether the caller can map another order; else it is refused.

    Raises:
      InputError: on `field`, with the first name that differs.
    """
    if theirs is None or ours is None:
        who = what if theirs is not None else f"{field} {path}"
        return None, f"{who} has no names of classes: they are taken in the order of their numbers"
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
        raise InputError(field, path, f"{first}; the names of the classes must agree")
    order = [list(theirs).index(name) for name in ours]
    place = next(i for i, k in enumerate(order) if i != k)
    differ = f"class {place} is {theirs[place]!r}, in {what} {ours[place]!r}"
    if not mapped:
        raise InputError(field, path, f"has the same classes in another order: {differ}")
    return order, f"{field} {path} has its classes in another order: labels are mapped ({differ})"


def check_start(field: str, path: str, theirs: Network, ours: Network):
    """Refuses first weights of a network whose outputs or tokens mean something else.

    Args:
      field, path: what named the weights, for messages.
      theirs: the network that they belong to.
      ours: the run's.

    Raises:
      InputError: other classes, also in another order, or another vocabulary.
    """
    if ours.is_text != theirs.is_text:
        kind = "a language model" if theirs.is_text else "a network of images"
        raise InputError(field, path, f"is {kind}")
    if ours.is_text:
        first, second = (each.load_tokenizer() for each in (theirs, ours))
        if first is None:
            say(f"{field} {path} has no tokenizer: its tokens are taken to be the run's")
        elif second is None or first.to_json() != second.to_json():
            allowed = f"has another vocabulary ({first.vocab_size:,} tokens) than the run"
            raise InputError(field, path, f"{allowed}; take it by tokenizer={path}")
    names = theirs.class_names, ours.class_names
    same = theirs.num_classes == ours.num_classes  # else a leaf has another shape
    if same and any(each is not None for each in names):
        say(class_order(field, path, *names, what="the run", mapped=False)[1])


def _check_shapes(field: str, path: str, network: Network, dataset: Dataset):
    wanted = {"num_classes": dataset.num_classes, "input_shape": tuple(dataset.input_shape)}
    changed = [name for name in wanted if getattr(network, name) != wanted[name]]
    if not changed:
        return
    what = ", ".join(
        f"{name} {_listed(getattr(network, name))} where {dataset.name} needs "
        f"{_listed(wanted[name])}"
        for name in changed
    )
    difference = _first_difference(network, dataclasses.replace(network, **wanted))
    raise InputError(field, path, f"has {what}{difference}")


def _listed(value):
    """Tuples as lists, as JSON has them."""
    return list(value) if isinstance(value, tuple) else value


def _first_difference(network: Network, wanted: Network) -> str:
    try:
        ours, theirs = wanted.shapes(), network.shapes()
    except Exception:
        return ""  # the network cannot even be built for the other input: no leaf to name
    for (path, a), b in zip(
        jax.tree_util.tree_flatten_with_path(theirs)[0], jax.tree.leaves(ours), strict=False
    ):
        if a.shape != b.shape:
            name = "/".join(jax.tree_util.keystr((k,), simple=True) for k in path)
            return f" (leaf {name} has shape {a.shape}, not {b.shape})"
    return ""


def say(line: str):
    """Prints a line, in one process of several."""
    if line and parallel.is_main():
        print(line, flush=True)
