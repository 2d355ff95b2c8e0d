"""A private run's source of noise, and how often noise was drawn.

The root is 64 bits from the operating system, drawn by process 0 and kept in
`<workdir>/private/noise.json` (mode 0600), in no checkpoint and no release: whoever knows it
subtracts the noise. A resume that repeats the earlier bits draws the same noise on the same values,
which gives nothing more away. On other devices, with other versions of the libraries, or where
operations need not repeat their bits (`repeats_bits`), values differ in their last bits, and the
same noise on both would reveal the difference: then the key folds in a restart counter, and what
may have been drawn beyond the checkpoint is charged again.

Noise drawn afresh from the operating system, as for an ensemble's answers, needs no root; the file
then says how much of it was drawn.
"""

import dataclasses
import hashlib
import json
import os
import platform
import secrets
from collections.abc import Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from etils import epath

from distill_core.checkpoint import integrity
from distill_core.config import InputError
from distill_core.runtime import parallel

FOLDER = "private"
_FILE = "noise.json"
# Settings of JAX that change how numbers are computed or drawn.
_DECIDING = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_threefry_partitionable",
)
_DETERMINISTIC = ("--xla_gpu_deterministic_ops", "--xla_gpu_exclude_nondeterministic_ops")
_FIELDS = {"root", "id", "digest", "machine", "restarts", "replayed", "reserved"}


@dataclasses.dataclass
class Noise:
    """The noise of one run, as `open_noise` gives it.

    Attributes:
      key: typed key, equal on all processes; fold the step in.
      restarts: how often the run went on without repeating its bits.
      replayed: steps that are charged beyond the run's own number of steps.
      id: random name of the run, not secret; empty in processes that do not write.
    """

    key: jax.Array
    restarts: int
    replayed: int
    id: str
    _path: epath.Path
    _record: dict[str, Any] | None  # None in processes that do not write

    def reserve(self, step: int, ahead: int = 16):
        """Writes down that the noise of `step` is about to be drawn; call before every step.

        So that not every step writes, `ahead` steps count as drawn with it.
        """
        if self._record is None or step < self._record["reserved"]:
            return
        self._record["reserved"] = step + ahead
        write_private(self._path, self._record)


def open_noise(
    workdir: epath.PathLike,
    *,
    decides: Mapping[str, Any],
    start: int,
    mode: str,
    seed: int | None = None,
    repeats: bool = True,
) -> Noise:
    """The noise of the run in `workdir`, drawn now or read back; call holding the run's lock.

    Args:
      workdir: the run's directory.
      decides: JSON-able, everything that determines what is noised: settings, data, teachers.
      start: step that the run starts from.
      mode: as for `parallel.wrap`.
      seed: instead of the operating system's bits, for reproduction; whoever knows it knows the
        noise.
      repeats: whether the noise comes from the key, so that a resume draws it again. Fresh noise
        does not: what was drawn beyond `start` is lost, and charged again.

    Raises:
      InputError: a run with a checkpoint has lost its root, or the root there belongs to another.
    """
    path = epath.Path(workdir) / FOLDER / _FILE
    numbers = np.zeros(4, np.uint32)
    record, here = None, machine(mode)
    if parallel.is_main():
        record = _read(path, digest(decides), start)
        if record is None:
            record = {
                "root": os.urandom(8).hex(),
                "id": secrets.token_hex(16),
                "digest": digest(decides),
                "machine": here,
                "restarts": 0,
                "replayed": 0,
                "reserved": start,
            }
        else:
            moved = record["machine"] != here or (repeats and not repeats_bits())
            again = max(0, record["reserved"] - start) if moved or not repeats else 0
            record["restarts"] += moved or again > 0
            record["replayed"] += again
            if moved or again:
                record["machine"], record["reserved"] = here, start
        write_private(path, record)
        if seed is None:
            root = np.frombuffer(bytes.fromhex(record["root"]), np.uint32)
        else:
            root = np.asarray(jax.random.key_data(jax.random.key(seed)), np.uint32)
        numbers = np.array([*root, record["restarts"], record["replayed"]], np.uint32)
    numbers = parallel.from_main(numbers)
    restarts, replayed = (int(number) for number in numbers[2:])
    key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(numbers[:2])), restarts)
    return Noise(key, restarts, replayed, record["id"] if record else "", path, record)


def open_key(
    workdir: epath.PathLike, name: str, *, decides: Mapping[str, Any], start: int
) -> jax.Array:
    """A secret typed key of one run, 64 bits from the operating system, equal on all processes.

    For noise that is a function of what it is added to: unlike `open_noise`, a resume elsewhere
    gets the same key, since other noise on the same values would be one more release of them. It
    lies in `private/<name>`; other arguments and errors are those of `open_noise`.
    """
    path = epath.Path(workdir) / FOLDER / name
    root = np.zeros(2, np.uint32)
    if parallel.is_main():
        record = _read(path, digest(decides), start, {"root", "digest"})
        if record is None:
            record = {"root": os.urandom(8).hex(), "digest": digest(decides)}
            write_private(path, record)
        root = np.frombuffer(bytes.fromhex(record["root"]), np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(parallel.from_main(root)))


def digest(decides: Mapping[str, Any]) -> str:
    """Of JSON-able values, equal for equal ones."""
    return hashlib.sha256(json.dumps(dict(decides), sort_keys=True).encode()).hexdigest()


def machine(mode: str) -> list[Any]:
    """What has to be the same for a resume to repeat the earlier bits."""
    devices = jax.devices()
    versions = [jax.__version__, jaxlib.version.__version__, np.__version__]
    settings = [os.environ.get("XLA_FLAGS", "").split()]
    settings += [str(getattr(jax.config, name)) for name in _DECIDING]
    kinds = sorted({f"{device.platform} {device.device_kind}" for device in devices})
    # On a CPU, how a sum is split follows the cores that the process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores if devices[0].platform == "cpu" else 0
    sizes = [len(devices), jax.process_count()]
    return [mode, kinds, *sizes, _processor(), cores, *versions, *settings]


def repeats_bits() -> bool:
    """Whether the same program gives the same bits again on the same machine.

    CPUs do, and GPUs with the XLA flag for deterministic operations; TPUs promise nothing.
    """
    platform = jax.default_backend()
    flags = os.environ.get("XLA_FLAGS", "").split()
    deterministic = any(
        flag in (name, f"{name}=true", f"{name}=1") for name in _DETERMINISTIC for flag in flags
    )
    return platform == "cpu" or (platform in ("gpu", "cuda", "rocm") and deterministic)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _read(
    path: epath.Path, decides: str, start: int, fields: Set[str] = _FIELDS
) -> dict[str, Any] | None:
    if not path.exists():
        if start:
            allowed = f"is missing, and with it the noise of this run's first {start} steps"
            raise InputError("workdir", str(path), f"{allowed}; take another workdir")
        return None
    try:
        record = json.loads(path.read_text())
        fits = record["digest"] == decides
        if not record.keys() >= fields or len(bytes.fromhex(record["root"])) != 8:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise InputError("workdir", str(path), "cannot be read; take another workdir") from None
    if not fits:
        allowed = "holds the noise of a run with other settings, data or teachers"
        raise InputError("workdir", str(path), f"{allowed}; take another workdir")
    return record


def write_private(path: epath.Path, content: Mapping[str, Any] | bytes):
    """Writes JSON or bytes below a workdir's `FOLDER`, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    local = "://" not in str(path)  # object stores have rights of their own
    if local:
        os.chmod(path.parent, 0o700)
    written = content if isinstance(content, bytes) else json.dumps(dict(content), allow_nan=False)
    integrity.write_atomically(path, written, mode=0o600 if local else None)
