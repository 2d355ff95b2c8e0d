"""Recall and precision of a recogniser per kind, on labelled sentences."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from distill_core.data.text.lines import Span
from swingdistill.recognisers.labelled import Labelled

ALL = "all"


def quality(
    examples: Iterable[Labelled], find: Callable[[str], Sequence[Span]], *, by_form: bool = False
) -> dict[str, dict[str, float | int | None]]:
    """How much a recogniser finds, and how much of what it finds is private.

    Args:
      examples: sentences with at most one private stretch.
      find: the recogniser.
      by_form: whether to tell forms of a kind apart: "telephone: GB, by hand".

    Returns:
      by kind, and for all together: "recall", the share of private stretches of which all letters
      and digits are found, as whatever kind; "named", the share of which most was found as this
      kind; "precision", the share of what is found as this kind that lies in a private stretch by
      half of its characters or more; "num", stretches. None where there is nothing to divide by.
    """
    hits: dict[str, list[tuple[bool, bool]]] = {}
    calls: dict[str, list[bool]] = {}
    for example in examples:
        private = np.zeros(len(example.text), bool)
        private[example.start : example.end] = True
        covered, named = np.zeros_like(private), np.zeros_like(private)
        form = f": {example.form}" if by_form else ""
        for found in find(example.text):
            place = slice(found.start, found.end)
            covered[place] = True
            named[place] |= found.kind == example.kind
            calls.setdefault(found.kind + form, []).append(bool(np.mean(private[place]) >= 0.5))
        if example.kind:
            shown = private & [c.isalnum() for c in example.text]
            hit = (bool(covered[shown].all()), bool(np.mean(named[shown]) >= 0.5))
            hits.setdefault(example.kind + form, []).append(hit)
    kinds = sorted(hits.keys() | calls.keys())
    hits[ALL] = [hit for of_kind in hits.values() for hit in of_kind]
    calls[ALL] = [call for of_kind in calls.values() for call in of_kind]
    return {
        kind: {
            "recall": _share([found for found, _ in hits.get(kind, [])]),
            "named": _share([named for _, named in hits.get(kind, [])]),
            "precision": _share(calls.get(kind, [])),
            "num": len(hits.get(kind, [])),
        }
        for kind in (*kinds, ALL)
    }


def _share(values: Sequence[bool]) -> float | None:
    return float(np.mean(values)) if values else None
