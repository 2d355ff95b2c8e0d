"""Peaks of chips, against which a step's operations are held."""

import jax

# Dense bfloat16 peak of one chip in FLOP/s, by the vendors' data sheets.
PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak(device_kind: str) -> float | None:
    """The bfloat16 peak of a device as JAX names it, FLOP/s; None where it is not known.

    >>> peak("NVIDIA H100 80GB HBM3") == 989e12, peak("cpu")
    (True, None)
    """
    fitting = [name for name in PEAKS if device_kind.startswith(name)]
    return PEAKS[max(fitting, key=len)] if fitting else None


def peak_of_all() -> float | None:
    """That of all devices together, FLOP/s."""
    devices = jax.devices()
    one = peak(devices[0].device_kind)
    return None if one is None else one * len(devices)
