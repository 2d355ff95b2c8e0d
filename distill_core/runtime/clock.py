"""Where a run's time goes, and how fast its steps are: for its record, beside its numbers."""

import contextlib
import contextvars
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax.monitoring

ACTIVITIES = ("start_up", "compilation", "training", "evaluation", "saving")
_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass
class Spent:
    """The time of what runs inside `recorded`.

    Attributes:
      seconds: by activity, each without the compilation in it; "start_up" ends with the first step.
      speed: of the training loop inside, see `loop.Work`; {} before its first steps.
    """

    seconds: dict[str, float]
    speed: dict[str, Any]
    began: float

    def close(self):
        """What no other activity took is training."""
        took = time.perf_counter() - self.began
        self.seconds["training"] = max(0.0, took - sum(self.seconds.values()))


_spent: contextvars.ContextVar[Spent | None] = contextvars.ContextVar("spent", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[Spent]:
    """Records what is done inside."""
    spent = Spent(dict.fromkeys(ACTIVITIES, 0.0), {}, time.perf_counter())
    token = _spent.set(spent)
    try:
        yield spent
    finally:
        _spent.reset(token)
        spent.close()


@contextlib.contextmanager
def counted(activity: str) -> Iterator[None]:
    """Counts the time inside, compilation apart, as an activity."""
    spent = _spent.get()
    if spent is None:
        yield
        return
    began, compiled = time.perf_counter(), spent.seconds["compilation"]
    try:
        yield
    finally:
        compiled = spent.seconds["compilation"] - compiled
        spent.seconds[activity] += max(0.0, time.perf_counter() - began - compiled)


def first_step():
    """The first step is about to be taken."""
    if (spent := _spent.get()) is not None and not spent.seconds["start_up"]:
        took = time.perf_counter() - spent.began
        spent.seconds["start_up"] = max(0.0, took - sum(spent.seconds.values()))


def note_speed(speed: dict[str, Any]):
    """The loop's speed so far."""
    if (spent := _spent.get()) is not None:
        spent.speed = speed


def _compiled(event: str, duration_secs: float, **_: Any):
    if event == _COMPILED and (spent := _spent.get()) is not None:
        spent.seconds["compilation"] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_compiled)
