"""How much of a run is spent outside its jitted step.

    python benchmarks/loop_overhead.py --dataset digits
    python benchmarks/loop_overhead.py --dataset tfds:cifar10 --data_dir ../shared/data/tfds

Trains through `distill_core.train` with every step timed to its end, and prints what is left:
batches, logging, saving, and (listed apart) evaluation. Steps are waited for one by one, so the
share is an upper bound: in a real run host work overlaps with the device's. The first step, which
compiles, counts neither way.
"""

import argparse
import tempfile
import time

import jax

from distill_core import loop, train

RUNS = {
    "digits": {
        "model_kwargs": {"widths": (16, 32), "hidden": 64},
        "batch_size": 64,
        "num_validation": 287,
        "num_steps": 900,
    },
    "tfds:cifar10": {
        "batch_size": 128,
        "num_validation": 5000,
        "num_steps": 200,
        "crop_padding": 4,
        "flip": True,
    },
}


def main():
    """Times and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dataset", choices=list(RUNS), default="digits")
    parser.add_argument("--data_dir", default=None)
    options = parser.parse_args()
    spent = {"step": 0.0, "evaluate": 0.0}
    clock = {}
    run = loop.run

    def timed(name, function):
        def call(*args, **kwargs):
            start = time.perf_counter()
            result = jax.block_until_ready(function(*args, **kwargs))
            if name == "step" and "began" not in clock:
                clock["began"] = time.perf_counter()  # compiled
            else:
                spent[name] += time.perf_counter() - start
            return result

        return call

    def timed_run(*, step_fn, evaluate, **kwargs):
        final = run(step_fn=timed("step", step_fn), evaluate=timed("evaluate", evaluate), **kwargs)
        clock["ended"] = time.perf_counter()
        return final

    loop.run = timed_run
    settings = {
        "dataset": options.dataset,
        "data_dir": options.data_dir,
        "model": "cnn",
        "optimizer": "adam",
        "learning_rate": 1e-3,
        **RUNS[options.dataset],
    }
    with tempfile.TemporaryDirectory() as workdir:
        train.train_and_evaluate(settings, workdir)
    total = clock["ended"] - clock["began"] - spent["evaluate"]
    outside = total - spent["step"]
    print(
        f"{options.dataset}: {settings['num_steps'] - 1} steps in {total:.2f} s; outside the "
        f"jitted step {outside:.2f} s = {outside / total:.1%} "
        f"(evaluation, apart: {spent['evaluate']:.2f} s)"
    )


if __name__ == "__main__":
    main()
