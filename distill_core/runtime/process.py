"""Workdir lock, signal handling and deadlines."""

import contextlib
import contextvars
import fcntl
import signal
import threading
import time

import jax
from etils import epath

from distill_core import config
from distill_core.runtime import parallel

_deadline: contextvars.ContextVar[float | None] = contextvars.ContextVar("deadline", default=None)


@contextlib.contextmanager
def hold(workdir: epath.Path):
    """Locks the workdir for this run; the system frees the lock however the process ends.

    Object stores have no locks, so two live runs in one workdir there go unnoticed.
    """
    handle, refusal = None, ""
    if parallel.is_main():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            if "://" not in str(workdir):
                handle = open(workdir / ".lock", "w")  # noqa: SIM115 - held until the run ends
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            refusal = "is in use by a live process"
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            refusal = f"is not a directory to write to: {error.strerror}"
    try:
        if refusal:
            raise config.InputError("workdir", str(workdir), refusal)
        yield
    finally:
        if handle is not None:
            handle.close()


@contextlib.contextmanager
def stop_after(minutes: float | None):
    """Makes runs inside save and stop after that many minutes, as on a signal; None: never."""
    token = _deadline.set(None if minutes is None else time.monotonic() + 60 * minutes)
    try:
        yield
    finally:
        _deadline.reset(token)


def is_overdue() -> bool:
    """Whether the deadline of `stop_after` has passed."""
    deadline = _deadline.get()
    return deadline is not None and time.monotonic() >= deadline


@contextlib.contextmanager
def watch_signals():
    """Yields `stopped()`: whether SIGTERM or SIGINT came, or the deadline has passed.

    A second SIGINT takes effect at once. With several processes JAX's own service watches SIGTERM
    and stops all of them at one step (see `parallel.should_stop`), so none may stop by itself.
    """
    came = threading.Event()
    several = jax.process_count() > 1

    def stopped() -> bool:
        return not several and (came.is_set() or is_overdue())

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def handler(signum, _):
        if came.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        came.set()
        if several:
            signal.raise_signal(signal.SIGTERM)

    watched = [signal.SIGINT] if several else [signal.SIGINT, signal.SIGTERM]
    old = {s: signal.signal(s, handler) for s in watched}
    try:
        yield stopped
    finally:
        for s, previous in old.items():
            signal.signal(s, previous or signal.SIG_DFL)  # None: not installed from Python
