"""What a run needs of its process: the workdir for itself, and to hear of signals."""

import contextlib
import fcntl
import signal
import threading

import jax
from etils import epath

from distill_core import config
from distill_core.runtime import parallel


@contextlib.contextmanager
def hold(workdir: epath.Path):
    """Holds the workdir for this run. The system frees the lock when the process ends, however.

    Object stores have no locks: there two live runs in one workdir are not noticed.
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
            refusal = f"is no directory to write to: {error.strerror}"
    try:
        if refusal:
            raise config.InputError("workdir", str(workdir), refusal)
        yield
    finally:
        if handle is not None:
            handle.close()


@contextlib.contextmanager
def watch_signals():
    """Yields `stopped()`: whether SIGTERM or SIGINT came. A second SIGINT acts at once.

    With several processes JAX's own service watches SIGTERM and makes all of them stop at one
    step (see `parallel.should_stop`), so that none may stop by itself.
    """
    came = threading.Event()
    several = jax.process_count() > 1
    stopped = (lambda: False) if several else came.is_set
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
            signal.signal(s, previous or signal.SIG_DFL)  # None: it was not put in from Python
