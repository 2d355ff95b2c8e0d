"""How much of a run is spent outside its jitted step.

    python benchmarks/loop_overhead.py --dataset digits
    python benchmarks/loop_overhead.py --dataset tfds:cifar10 --data_dir DIRECTORY

Trains through `distill_core.train` and, right after, calls the same compiled step as often on
batches made before, with nothing around it. What the run took longer, evaluation apart, is the
loop's: batches, logging, saving. Compilation counts neither way. Repeated; medians.
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
import time

import jax

from distill_core import train
from distill_core.training import loop

RUNS = {
    "digits": {
        "model_kwargs": {"widths": (16, 32), "hidden": 64},
        "batch_size": 64,
        "num_validation": 287,
        "num_steps": 2100,
    },
    "tfds:cifar10": {
        "batch_size": 128,
        "num_validation": 5000,
        "num_steps": 100,
        "crop_padding": 4,
        "flip": True,
    },
}
BATCHES = 16


def main():
    """Times and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=list(RUNS), default="digits")
    parser.add_argument("--data_dir", default=None)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    settings = {
        "dataset": options.dataset,
        "data_dir": options.data_dir,
        "model": "cnn",
        "optimizer": "adam",
        "learning_rate": 1e-3,
        **RUNS[options.dataset],
    }
    pairs = [_round(settings) for _ in range(options.rounds + 1)][1:]  # the first compiles
    run, steps = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(
        f"{options.dataset}: {settings['num_steps']} steps: the run {run:.2f} s, its steps alone "
        f"{steps:.2f} s; outside the jitted step {(run - steps) / run:.1%} "
        f"(medians of {options.rounds})"
    )


def _round(settings: dict) -> tuple[float, float]:
    """Seconds of `loop.run` without its evaluations, and of its steps alone."""
    kept, run = {}, loop.run

    def timed_run(workdir, state, program, *args, monitor, **kwargs):
        spent = 0.0

        def timed_measure(*args):
            nonlocal spent
            began = time.perf_counter()
            found = monitor.measure(*args)
            spent += time.perf_counter() - began
            return found

        began = time.perf_counter()
        timed = dataclasses.replace(monitor, measure=timed_measure)
        final = run(workdir, state, program, *args, monitor=timed, **kwargs)
        jax.block_until_ready(final)
        kept.update(seconds=time.perf_counter() - began - spent, program=program, final=final)
        return final

    loop.run = timed_run
    try:
        with tempfile.TemporaryDirectory() as workdir:
            train.train_and_evaluate(settings, workdir)
    finally:
        loop.run = run
    program = kept["program"]
    batches = itertools.cycle([program.batch_fn(step) for step in range(BATCHES)])
    state = jax.tree.map(lambda leaf: leaf.copy(), kept["final"])
    began = time.perf_counter()
    for _ in range(settings["num_steps"]):
        state, metrics = program.step_fn(state, program.frozen, next(batches))
    jax.block_until_ready((state, metrics))
    return kept["seconds"], time.perf_counter() - began


if __name__ == "__main__":
    main()
