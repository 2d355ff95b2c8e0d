"""What a run bought: kept in the workdir's `private/`, so that a resume buys nothing again."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from distill_core.config import InputError
from distill_core.privacy import noise
from distill_core.runtime import parallel, process
from distill_core.training import run_state


def once(
    workdir: epath.Path,
    name: str,
    decides: Mapping[str, Any],
    buy: Callable[[], bytes],
    *,
    begun: bool,
) -> bytes:
    """What `buy` gave to the run that `decides` describes: read, or else bought now and kept.

    Kept as `private/<name>`, under the workdir's lock, before anything is made of it. Noise that
    was drawn before a crash and never kept has told nobody anything. Raises InputError on `workdir`
    where it is missing although the run has `begun`, cannot be read, or is another run's.
    """
    run, path = noise.digest(decides), workdir / noise.FOLDER / name
    if not path.exists():
        if begun:
            allowed = "is missing, and with it what this run bought; take another workdir"
            raise InputError("workdir", str(path), allowed)
        with process.hold(workdir):
            if parallel.is_main() and not path.exists():
                buffer = io.BytesIO()
                np.savez(buffer, bought=np.frombuffer(buy(), np.uint8), run=np.array(run))
                noise.write_private(path, buffer.getvalue())
            parallel.barrier(f"bought-{name}")
    found, theirs = _read_kept(path)
    if theirs != run:
        allowed = "belongs to a run with other settings, data or teacher; take another workdir"
        raise InputError("workdir", str(path), allowed)
    return found


def kept_bytes(path: epath.Path) -> bytes:
    """What `once` kept in a file; raises InputError on `workdir` if it cannot be read."""
    return _read_kept(path)[0]


def _read_kept(path: epath.Path) -> tuple[bytes, str]:
    """(what was bought, by which run)."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return stored["bought"].tobytes(), str(stored["run"])
    except Exception:  # NumPy raises many kinds for a damaged archive
        allowed = "cannot be read, and with it what was bought; take another workdir"
        raise InputError("workdir", str(path), allowed) from None


def has_begun(workdir: epath.Path) -> bool:
    """Whether a run has made anything of what it bought: it has a checkpoint, or answers."""
    return run_state.has_checkpoint(workdir) or (workdir / noise.FOLDER / "rounds").exists()


class Bought:
    """The rounds of one run, `<workdir>/private/rounds/<number>.npz`.

    A round is written atomically before anything is made of it: a resume reads the same answers and
    pays for them once.
    """

    def __init__(self, workdir: epath.PathLike, decides: Mapping[str, Any]):
        """`decides`: JSON-able, settings and teacher by content; of another run nothing is read."""
        self._folder = epath.Path(workdir) / noise.FOLDER / "rounds"
        self._run = noise.digest(decides)

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Queries uint8 [n, H, W, C] and answers float32 [n, K] of a round; None if not there."""
        path = self._folder / f"{number}.npz"
        if not path.exists():
            return None
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                found, run = (stored["images"], stored["answers"]), str(stored["run"])
        except Exception:  # NumPy raises many kinds for a damaged archive
            allowed = "cannot be read, and with it answers that were bought; take another workdir"
            raise InputError("workdir", str(path), allowed) from None
        return found if run == self._run else None

    def write(self, number: int, images: np.ndarray, answers: np.ndarray):
        """Of process 0 alone; returns when every process can read it."""
        if parallel.is_main():
            buffer = io.BytesIO()
            np.savez(buffer, images=images, answers=answers, run=np.array(self._run))
            noise.write_private(self._folder / f"{number}.npz", buffer.getvalue())
        parallel.barrier(f"bought-{number}")

    def missing(self, number: int) -> InputError:
        """For a round that has to be there."""
        allowed = "is missing, and with it answers that this run bought; take another workdir"
        return InputError("workdir", str(self._folder / f"{number}.npz"), allowed)

    def count(self) -> int:
        """How many rounds are there, from the first on without a gap."""
        number = 0
        while self.read(number) is not None:
            number += 1
        return number
