"""Text as a stream: the input pipeline against a step, and memory on a corpus ten times as large.

    python benchmarks/text_stream.py
    python benchmarks/text_stream.py --lines 20000

Writes generated text, trains a teacher, a reference and a student of `swingdistill.train` on it and
on ten times as much, each in a process of its own, and prints the ratio of the students' peak
resident memory. Then it reads the student's batches from the cache, as its steps would, and prints
their tokens per second, and how many times as fast that is as the steps themselves are here.
"""

import argparse
import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_LENGTH, _BATCH = 64, 32
_WORDS = ["".join(three) for three in itertools.product("abcdefghijklmno", repeat=3)]


def write_text(folder: Path, lines: int):
    """Sentences of words, some with a number in them; validation and test text of one size."""
    folder.mkdir()
    rng = random.Random(0)
    for split, count in {"train": lines, "valid": 1000, "test": 1000}.items():
        with (folder / f"{split}.txt").open("w") as file:
            for _ in range(count):
                words = rng.choices(_WORDS, k=rng.randint(20, 60))
                if rng.random() < 0.05:
                    words[3] = str(rng.randint(10**6, 10**7))
                file.write(" ".join(words) + "\n")


def settings(place: Path, text: str, what: str) -> dict:
    """Of one run of `swingdistill.train`."""
    base = {
        "dataset": f"text:{place / text}",
        "text_cache": str(place / "cache"),
        "text_memory": 0,
        "length": _LENGTH,
        "vocab_size": 2000,
        "half": "second" if what == "reference" else "first",
        "model": "transformer",
        "model_kwargs": {"width": 64, "num_layers": 1 if what == "student" else 2, "num_heads": 4},
        "optimizer": "adam",
        "learning_rate": 5e-3,
        "batch_size": _BATCH,
        "num_steps": 60,
        "log_every": 20,
    }
    if what == "student":
        base |= {"teacher": str(place / "teacher"), "reference": str(place / "reference")}
    return base


def train(place: Path, text: str, what: str) -> tuple[float, float]:
    """Trains in a process of its own; (its peak of resident memory in MiB, its seconds)."""
    workdir = place / (what if what != "student" else f"student_{text}")
    given = json.dumps([settings(place, text, what), str(workdir)])
    began = time.monotonic()
    command = [sys.executable, __file__, "--child", given]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return float(done.stdout.splitlines()[-1]), time.monotonic() - began


def child(given: str):
    """What a process of `train` runs."""
    from swingdistill.train import train_and_evaluate

    train_and_evaluate(*json.loads(given))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def pipeline(place: Path, text: str, seconds: float) -> tuple[float, float]:
    """(tokens per second of the student's batches, of its steps)."""
    from distill_core.data import sampling
    from distill_core.runtime import clock
    from distill_core.training import language
    from swingdistill.train import train_and_evaluate

    runs, original = [], language.train

    def noted(run, objective, **given):
        runs.append(run)
        return original(run, objective, **given)

    language.train = noted
    with clock.recorded() as spent:
        train_and_evaluate(settings(place, text, "student"), place / "again")
    rows, step = runs[0].rows, 0
    num, length = rows["tokens"].shape
    sampling.batch_indices(0, 0, _BATCH, num)  # draws the order of the first epoch
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        index = sampling.batch_indices(0, step, _BATCH, num)
        batch = {name: array[index] for name, array in rows.items()}
        assert batch["scores"].shape == (_BATCH, length)
        step += 1
    rate = step * _BATCH * length / (time.monotonic() - began)
    return rate, spent.speed["per_second"]


def main():
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lines", type=int, default=5000, help="of the smaller training text")
    parser.add_argument("--seconds", type=float, default=5.0, help="of reading batches")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        place, peaks = Path(folder), {}
        write_text(place / "small", options.lines)
        write_text(place / "large", 10 * options.lines)
        for what in ("teacher", "reference"):
            train(place, "small", what)
        for text in ("small", "large"):
            size = (place / text / "train.txt").stat().st_size / 2**20
            peaks[text], seconds = train(place, text, "student")
            print(f"{size:.1f} MiB of text: {peaks[text]:.0f} MiB resident, {seconds:.0f} s")
        print(f"ten times the text, resident memory: ratio {peaks['large'] / peaks['small']:.3f}")
        read, trained = pipeline(place, "large", options.seconds)
        print(f"batches from the cache: {read:,.0f} tokens/s; steps: {trained:,.0f} tokens/s")
        print(f"input pipeline against a step: ratio {read / trained:.1f}")


if __name__ == "__main__":
    main()
