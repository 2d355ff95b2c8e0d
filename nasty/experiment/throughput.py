"""How fast the runs of an experiment were: images a second, and the share of the chip's peak."""

from collections.abc import Mapping

import jax
import numpy as np

from distill_core import checkpoint
from distill_core.experiment.report import Results, Table, values_of
from distill_core.experiment.stages import Run, Runner
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
_SHOWN = ("teacher_normal", "teacher_nasty", "student_alone", "student_of_normal")


def peak(device_kind: str) -> float | None:
    """The bfloat16 peak of a device as JAX names it, FLOP/s; None where it is not known.

    >>> peak("NVIDIA H100 80GB HBM3") == 989e12, peak("cpu")
    (True, None)
    """
    fitting = [name for name in PEAKS if device_kind.startswith(name)]
    return PEAKS[max(fitting, key=len)] if fitting else None


def tables(results: Results, runs: Mapping[str, Run], runner: Runner) -> list[Table]:
    """The speed of the comparison's runs whose time is known; none on other devices than `PEAKS`.

    A training image takes three forward passes of the network (the backward pass counts as two) and
    one of each network that it is trained against. `runs` are those of one seed by arm.
    """
    devices = jax.devices()
    if (one := peak(devices[0].device_kind)) is None:
        return []

    def forward(run: Run) -> float:
        return forward_flops(checkpoint.load_model(runner.directory(run)))

    rows, seconds = [], values_of(results, "seconds")
    for arm in _SHOWN:
        run, known = runs[arm], [each for each in seconds[arm] if each is not None]
        if known:
            flops = 3 * forward(run) + sum(map(forward, run.inputs.values()))
            time = float(np.median(known))
            rate = run.settings["num_steps"] * run.settings["batch_size"] / time
            share = rate * flops / (one * len(devices))
            rows.append([arm, f"{time:.0f}", f"{rate:,.0f}", f"{share:.1%}"])
    caption = "Speed; times are of whole runs, compilation, evaluation and saving included"
    head = ["run", "seconds", "images a second", "of the bfloat16 peak"]
    return [Table(caption, head, rows)]
