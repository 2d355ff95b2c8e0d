"""What programs are compiled for: the platform, and the memory of one of its devices."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_assumed: contextvars.ContextVar[tuple[str, int | None] | None] = contextvars.ContextVar(
    "assumed", default=None
)


def platform() -> str:
    """ "cpu", "gpu" or "tpu"."""
    assumed = _assumed.get()
    return jax.default_backend() if assumed is None else assumed[0]


def memory() -> int | None:
    """Bytes that programs may use on one device; None on a CPU, or where it is not known."""
    if (assumed := _assumed.get()) is not None:
        return assumed[1]
    if jax.default_backend() == "cpu":
        return None
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


@contextlib.contextmanager
def assume(platform: str, memory: int | None) -> Iterator[None]:
    """What is traced inside is for another platform than this machine's, to be compiled for it."""
    token = _assumed.set((platform, memory))
    try:
        yield
    finally:
        _assumed.reset(token)
