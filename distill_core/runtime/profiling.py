"""A trace of some of a run's steps, which TensorBoard's profile plugin opens."""

import contextlib
import contextvars
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from distill_core.config import InputError

_asked: contextvars.ContextVar[tuple[int, int] | None] = contextvars.ContextVar(
    "asked", default=None
)


@contextlib.contextmanager
def steps(asked: str | None) -> Iterator[None]:
    """Runs inside trace the steps START … STOP − 1 of "START:STOP"; None: none.

    Raises InputError on `profile` if it is no such range.
    """
    found = None
    if asked is not None:
        numbers = re.fullmatch(r"(\d{1,12}):(\d{1,12})", asked)
        found = numbers and (int(numbers[1]), int(numbers[2]))
        if not found or found[0] >= found[1]:
            raise InputError("profile", asked, "must be START:STOP, steps with START below STOP")
    token = _asked.set(found)
    try:
        yield
    finally:
        _asked.reset(token)


def refuse(why: str):
    """Raises InputError on `profile` if steps are asked for."""
    if (asked := _asked.get()) is not None:
        raise InputError("profile", "{}:{}".format(*asked), why)


def check(first: int, last: int):
    """Raises InputError on `profile` unless a run takes the steps that are asked for."""
    if (asked := _asked.get()) is not None and not first <= asked[0] < asked[1] <= last:
        allowed = f"must lie within the steps that this run takes, {first}:{last}"
        raise InputError("profile", "{}:{}".format(*asked), allowed)


class Tracer:
    """Traces the steps asked for into a folder; without any it does nothing."""

    def __init__(self, folder: epath.PathLike):
        self._folder, self._asked, self._running = folder, _asked.get(), False

    def step(
        self, number: int, count: int, finished: Callable[[], object]
    ) -> contextlib.AbstractContextManager[Any]:
        """Around the dispatch of `count` steps from `number` on; traced if one is asked for.

        `finished` waits for the steps before it.
        """
        if self._asked is None:
            return contextlib.nullcontext()
        first, last = self._asked
        if self._running and number >= last:
            self.end(finished)
        elif not self._running and first < number + count and number < last:
            finished()
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def end(self, finished: Callable[[], object]):
        """Writes the trace, if one is being taken."""
        if self._running:
            finished()
            jax.profiler.stop_trace()
            self._running, self._asked = False, None
