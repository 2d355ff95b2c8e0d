"""How fast the runs of an experiment were: images a second, and the share of the chip's peak."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_core import checkpoint
from nasty.nastiness import forward_flops

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


def table(
    results: Mapping[tuple[str, int], Mapping[str, Any]],
    hp: Any,
    teacher: checkpoint.LoadedModel,
    student: checkpoint.LoadedModel,
    *,
    peak: float,
) -> tuple[str, list[str], list[list[str | None]]]:
    """(caption, head, rows) of the comparison's runs whose time is known.

    Args:
      results: each run's result by (arm, seed), with "seconds" of the wall clock.
      hp: the experiment's values.
      teacher, student: for the operations a training image: three forward passes of the network
        (the backward pass counts as two) and one of the network that it is trained against.
      peak: of all devices together, FLOP/s.
    """
    large, small = (forward_flops(model) for model in (teacher, student))
    flops = {
        "teacher_normal": 3 * large,
        "teacher_nasty": 4 * large,
        "student_alone": 3 * small,
        "student_of_normal": 3 * small + large,
    }
    rows: list[list[str | None]] = []
    for arm, each in flops.items():
        times = [r["seconds"] for (name, _), r in results.items() if name == arm]
        known = [seconds for seconds in times if seconds is not None]
        if known:
            own = hp if arm.startswith("teacher") else hp.student
            count = own.num_steps * own.batch_size
            seconds = float(np.median(known))
            rate = count / seconds
            rows.append([arm, f"{seconds:.0f}", f"{rate:,.0f}", f"{rate * each / peak:.1%}"])
    caption = "Speed; times are of whole runs, compilation, evaluation and saving included"
    return caption, ["run", "seconds", "images a second", "of the bfloat16 peak"], rows
