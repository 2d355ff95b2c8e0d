"""A student whose teacher is a cache: what its settings may ask for, and what its rows get."""

from collections.abc import Mapping
from typing import Any

from distill_core import config
from distill_core.config import InputError
from distill_core.training import teacher_cache
from distill_core.training.teacher_cache import Cache

_SCORERS = ("differential", "divergence")  # ask the teacher for all its logits


def check(hp: Any) -> Cache:
    """The cache that a student's config names; refuses what it cannot serve.

    Of a noised release every setting that decided it has to be the same again.

    Raises:
      InputError: on `teacher`, if there is no whole cache, or on the field that does not fit.
    """
    cache = teacher_cache.read("teacher", hp.teacher)
    config.check_unset(hp, ("frozen_dtype",), "a cache holds no network")
    if cache.manifest.release is not None:
        _check_release(hp, cache.manifest.release["settings"])
        return cache
    why = "needs the teacher itself: a cache has the answers of one network, bare"
    if hp.variant not in ("swing", "mask"):
        raise InputError("variant", hp.variant, f"{why}; swing and mask work from it")
    if asks := [name for name in hp.scorers if name in _SCORERS]:
        allowed = "needs the teacher itself; rules, presidio, spans and surprisal work from a cache"
        raise InputError("scorers", asks[0], allowed)
    allowed = "of a cache is decided when it is written: python -m swingdistill.cache"
    config.check_unset(hp, ("epsilon", "entries"), allowed)
    if hp.t_min < 1:
        raise InputError("t_min", hp.t_min, "must be at least 1 with a cache, or its tail is lost")
    return cache


def check_fits(hp: Any, cache: Cache, rows: Mapping[str, Any], shared: int):
    """Refuses a cache of other rows, or of tokens that are not all among the first `shared`.

    Raises:
      InputError: on `teacher` or on the setting of the text that differs.
    """
    teacher_cache.check_rows(cache, "teacher", hp.teacher, rows, vars(hp))
    if (size := cache.model.network.num_tokens) != shared:
        allowed = f"has answers over {size:,} tokens, of which the run's networks share {shared:,}"
        raise InputError("teacher", hp.teacher, allowed)


def with_answers(hp: Any, cache: Cache, rows: Mapping[str, Any]) -> dict[str, Any]:
    """The rows with the cache's columns, which stay on disk unless the device holds the data."""
    return {
        **rows,
        **{name: each[:] if hp.data_on_device else each for name, each in cache.columns.items()},
    }


def with_release(
    hp: Any, cache: Cache, rows: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`with_answers` of a noised release, and what a table says of its noise."""
    assert cache.manifest.release is not None
    report = {**cache.manifest.release["report"], "release": cache.manifest.id}
    return with_answers(hp, cache, rows), report


def _check_release(hp: Any, settings: Mapping[str, Any]):
    for name, value in settings.items():
        if (ours := config.to_json(getattr(hp, name))) != value:
            allowed = f"must be {value!r}, as when the release was written: its targets follow it"
            raise InputError(name, ours, allowed)
