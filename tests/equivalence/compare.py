"""Trains the same tiny runs in two checkouts and compares what they computed, bit for bit.

    python tests/equivalence/compare.py BEFORE_CHECKOUT AFTER_CHECKOUT [--only NAME ...] [--out DIR]

For changes that must not change a number. Every run is trained from scratch and resumed: a copy
of its workdir loses its last checkpoint, as if the process had been killed before writing it, and
the same command is given again. Compared are all leaves of every part of the last checkpoint, its
privacy ledger, and every row of metrics.jsonl (which holds no times), scratch with scratch and
resumed with resumed.
A line a run says what differs first, or where a resume does not end as scratch does, and the
seconds of processor time of both. The exit code is 1 if the checkouts differ.

The checkouts' code is used as their users do, through the binaries, and checkpoints are read by
Orbax alone, so that modules may move. A config names networks by class; the module is looked up in
each checkout. What the project's code draws from the operating system is pinned. Neither checkout
may change meanwhile.

The Python that runs this needs the project's dependencies. Most of the time is spent on compiling;
what was compiled is kept in JAX_COMPILATION_CACHE_DIR, by default in a folder of the temporary
directory. `--devices 2` splits the CPU, so that the runs are spread over several devices.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PACKAGES = ("distill_core", "nasty", "swingdistill", "dpdfd")
VARIANTS = ("scratch", "resumed")
HALF, END = 4, 8


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a binary, its config, and the runs whose checkpoints it reads."""

    name: str
    binary: str
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """What a run computed: parameters and statistics, and plain values, by name."""

    leaves: Mapping[str, np.ndarray]
    values: Mapping[str, Any]


# -- the runs ----------------------------------------------------------------------------------

CADENCE = {"num_steps": END, "log_every": 2, "eval_every": HALF, "save_every": HALF}
FIT = {**CADENCE, "optimizer": "adam", "learning_rate": 3e-3, "seed": 5, "batch_size": 16}
CNN = {"model": "cnn", "model_kwargs": {"widths": (4, 8), "hidden": 16}}
PRIVATE_CNN = {"model": "cnn", "model_kwargs": {"widths": (4, 8), "hidden": 16, "norm": "group"}}
IMAGES = {**FIT, **CNN, "dataset": "digits", "num_validation": 100, "eval_batch_size": 256}
STUDENT = {**IMAGES, "seed": 7, "temperature": 5.0, "alpha": 0.7}
GENERATOR = {"width": 4, "latent_size": 8}
CONVERT = {**FIT, **PRIVATE_CNN, "dataset": "digits", "eval_batch_size": 256}
ROUNDS = {**CONVERT, "num_rounds": 2, "num_queries": 128}


def plan(folder: Path, network: Callable[[str], str]) -> list[Run]:
    """All runs, each after those that it needs.

    Args:
      folder: where `write_data` has been; run NAME is at NAME/scratch in it.
      network: class -> what a config calls it.
    """

    def at(name):
        return str(folder / name / "scratch")

    text = {
        **FIT,
        "dataset": f"text:{folder}/text",
        "model": "transformer",
        "model_kwargs": {"width": 16, "num_layers": 1, "num_heads": 2},
        "length": 16,
        "eval_batch_size": 16,
    }
    words = {**text, "tokenizer": at("language")}
    swing = {**words, "teacher": at("language"), "reference": at("reference"), "seed": 8}
    private = {"epsilon": 8.0, "delta": 1e-5}
    nasty = {**IMAGES, "adversary": at("plain"), "temperature": 5.0, "omega": 0.01}
    nasty["check_nastiness"] = False
    attack = {**STUDENT, "teacher": at("nasty")}
    ridge = {"model": network("FeatureRidge"), "model_kwargs": {"num_random": 20}}
    members = {**ridge, "dataset": "digits", "num_teachers": 8, "copies": 1, "save_every": HALF}
    skeptical = {"attack": "skeptical", "model": network("SkepticalCNN"), "delay_steps": 3}
    return [
        Run(
            "plain",
            "distill_core.train",
            {**IMAGES, "schedule": "cosine", "crop_padding": 1, "rotation": 10.0},
        ),
        Run(
            "plain_dispatch",
            "distill_core.train",
            {
                **IMAGES,
                "optimizer": "sgd",
                "schedule": "onecycle",
                "weight_decay": 1e-3,
                "flip": True,
                "train_share": 0.5,
                "data_on_device": True,
                "steps_per_dispatch": 2,
            },
        ),
        Run(
            "dp_image",
            "distill_core.train",
            {
                **IMAGES,
                **PRIVATE_CNN,
                "num_validation": 0,
                "crop_padding": 1,
                "dp": {**private, "norm": 1.0, "augmentations": 2},
            },
        ),
        Run("language", "distill_core.train", {**text, "vocab_size": 40, "public_text": True}),
        Run(
            "dp_text",
            "distill_core.train",
            {**words, "dp": {"epsilon": 8.0, "delta": 1e-3, "norm": 1.0, "seed": 3}},
            ("language",),
        ),
        Run("distill", "distill_core.distill", {**STUDENT, "teacher": at("plain")}, ("plain",)),
        Run(
            "distill_stored",
            "distill_core.distill",
            {**STUDENT, "teacher": f"npz:{folder}/logits.npz"},
        ),
        Run("nasty", "nasty.train", nasty, ("plain",)),
        Run("cmim", "nasty.train", {**IMAGES, "defence": "cmim", "cmim_weight": 3.0}),
        Run(
            "head_only",
            "nasty.train",
            {**nasty, "train_only_head": True, "init_from": at("plain")},
            ("plain",),
        ),
        Run("skeptical", "nasty.attack", {**attack, **skeptical}, ("nasty",)),
        Run("htc", "nasty.attack", {**attack, "attack": "htc", "top_k": 3}, ("nasty",)),
        Run("averager", "nasty.attack", {**attack, "attack": "averager"}, ("nasty",)),
        Run("scm", "nasty.attack", {**attack, "attack": "scm"}, ("nasty",)),
        Run("reference", "swingdistill.train", {**words, "half": "second"}, ("language",)),
        Run("swing", "swingdistill.train", {**swing, "noise_seed": 4}, ("language", "reference")),
        Run(
            "swing_anchored",
            "swingdistill.train",
            {**swing, "variant": "anchored", "scorers": ("divergence",), "teacher_weight": 0.3},
            ("language", "reference"),
        ),
        Run(
            "swing_formal",
            "swingdistill.train",
            {**swing, "epsilon": 4.0, "delta": 1e-5, "entries": 8},
            ("language", "reference"),
        ),
        Run(
            "convert_param",
            "dpdfd.train",
            {
                **CONVERT,
                **private,
                "prior": {"noise": 1.0},
                "teacher": at("plain"),
                "privacy_unit": "query",
                "mechanism": "param",
                "generator": {**GENERATOR, "warm_start_steps": 2, "diversity": 0.5},
            },
            ("plain",),
        ),
        Run(
            "convert_logit",
            "dpdfd.train",
            {
                **CONVERT,
                **private,
                "teacher": at("plain"),
                "privacy_unit": "query",
                "mechanism": "logit",
                "bound": "clip",
                "noise_seed": 2,
                "generator": {**GENERATOR, "conditional": True, "smoothness": 0.1},
            },
            ("plain",),
        ),
        Run(
            "convert_guided",
            "dpdfd.train",
            {
                **CONVERT,
                "teacher": at("plain"),
                "privacy_unit": "none",
                "guide": "teacher",
                "generator": {**GENERATOR, "activation": 1e-3},
            },
            ("plain",),
        ),
        Run(
            "rounds",
            "dpdfd.train",
            {
                **ROUNDS,
                **private,
                "teacher": at("plain"),
                "privacy_unit": "record_single",
                "mechanism": "logit",
                "smooth": True,
                "generator": GENERATOR,
            },
            ("plain",),
        ),
        Run("ensemble", "dpdfd.ensemble", members),
        Run(
            "ensemble_cnn",
            "dpdfd.ensemble",
            {
                **PRIVATE_CNN,
                **{k: v for k, v in CADENCE.items() if k != "eval_every"},
                "dataset": "digits",
                "num_teachers": 2,
                "batch_size": 8,
            },
        ),
        Run(
            "rounds_answers",
            "dpdfd.train",
            {
                **ROUNDS,
                **private,
                "prior": {"strokes": 1.0},
                "prior_extent": (0.85, 1.0),
                "teacher": at("ensemble"),
                "privacy_unit": "record_ensemble",
                "mechanism": "answers",
                "noise_seed": 2,
                "generator": {**GENERATOR, "every": 0},
            },
            ("ensemble",),
        ),
    ]


def write_data(folder: Path):
    """A text of three splits in `text/`, and logits for the training images of digits."""
    rng = random.Random(0)
    words = ("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "42", "17")
    (folder / "text").mkdir(parents=True)
    for split, num in (("train", 120), ("valid", 20), ("test", 20)):
        lines = [" ".join(rng.choices(words, k=rng.randint(3, 8))) + " ." for _ in range(num)]
        (folder / "text" / f"{split}.txt").write_text("\n".join(lines))
    logits = np.random.default_rng(0).normal(size=(1437, 10)).astype(np.float32)
    np.savez(folder / "logits.npz", logits=logits)


def chosen(runs: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """The runs of these names (all if there are none) and those they need, in their order."""
    wanted = set(names) or {run.name for run in runs}
    for run in reversed(runs):
        if run.name in wanted:
            wanted.update(run.needs)
    return [run for run in runs if run.name in wanted]


# -- in a checkout: a process of its own ---------------------------------------------------------


def find_network(checkout: Path, name: str) -> str:
    """`package.module:NAME` of the class NAME, wherever it lies in this checkout."""
    for package in PACKAGES:
        for file in sorted((checkout / package).rglob("*.py")):
            if re.search(rf"^class {name}\b", file.read_text(), re.MULTILINE):
                return f"{'.'.join(file.relative_to(checkout).with_suffix('').parts)}:{name}"
    raise LookupError(f"{checkout} has no class {name}")


def train_all(checkout: Path, folder: Path):
    """Trains and reads the runs that stdin names; writes a line of JSON a run to stdout."""
    for package in PACKAGES:
        found = importlib.util.find_spec(package)
        if found is None or not Path(found.origin or "").resolve().is_relative_to(checkout):
            raise SystemExit(f"{package} is not the one of {checkout}: {found}")
    write_data(folder)
    os.urandom = pinned = Pinned(checkout)  # before anything of the project is imported
    answers = os.fdopen(os.dup(1), "w")
    runs = {run.name: run for run in plan(folder, lambda name: find_network(checkout, name))}
    for run in (runs[line.strip()] for line in sys.stdin):
        home, begun, failure = folder / run.name, time.process_time(), ""
        home.mkdir()
        with log_to(home / "log.txt"):
            try:
                for variant in VARIANTS:
                    pinned.begin(run.name)
                    train(run, home, variant)
            except Exception as error:
                traceback.print_exc()
                failure = f"{error} (see {home}/log.txt)"
        seconds = time.process_time() - begun
        print(json.dumps({"failure": failure, "seconds": seconds}), file=answers, flush=True)


def train(run: Run, home: Path, variant: str):
    """Runs the binary in `home/VARIANT`, and leaves what came out in two files beside it."""
    workdir = home / variant
    if variant == "resumed":
        shutil.copytree(home / "scratch", workdir)
        steps = checkpoints(workdir)
        if len(steps) < 2:
            raise RuntimeError("kept no checkpoint before the last one to resume from")
        shutil.rmtree(steps[-1])
    config = home / "config.py"
    config.write_text(
        "from ml_collections import config_dict\n\n\n"
        f"def get_config():\n    return config_dict.ConfigDict({dict(run.settings)!r})\n"
    )
    sys.argv = [run.binary, f"--config={config}", f"--workdir={workdir}"]
    try:
        runpy.run_module(run.binary, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if error.code:
            raise RuntimeError(f"{variant}: exit code {error.code}") from None
    path = checkpoints(workdir)[-1]
    metadata = json.loads((path / "metadata.json").read_text())
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    values = {"step": path.name, "metrics": [json.loads(row) for row in rows]}
    values["ledger"] = metadata["ledger"]
    (home / f"{variant}.json").write_text(json.dumps(values))
    np.savez(home / f"{variant}.npz", **read_leaves(path))


def checkpoints(workdir: Path) -> list[Path]:
    """In the order of their steps."""
    return sorted((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))


def read_leaves(path: Path) -> dict[str, np.ndarray]:
    """All leaves of a checkpoint's networks, by their names joined by slashes."""
    import jax
    from orbax.checkpoint import v1 as ocp

    model = ocp.load_checkpointables(path, {"model": None})["model"]
    return {
        jax.tree_util.keystr(keypath, simple=True, separator="/"): np.asarray(leaf)
        for keypath, leaf in jax.tree_util.tree_flatten_with_path(model)[0]
    }


class Pinned:
    """In place of `os.urandom`: what the checkout's own code draws follows from the run's name, and
    the draw's size and number; what others draw, e.g. names of temporary files, stays random."""

    def __init__(self, checkout: Path):
        self._ours, self._system = f"{checkout}{os.sep}", os.urandom
        self.begin("")

    def begin(self, name: str):
        """A run begins; the same name gives the same draws."""
        self._name, self._counts = name, collections.Counter[int]()

    def __call__(self, size: int) -> bytes:
        if not sys._getframe(1).f_code.co_filename.startswith(self._ours):
            return self._system(size)
        self._counts[size] += 1
        text = f"{self._name} {size} {self._counts[size]}"
        return hashlib.shake_256(text.encode()).digest(size)


@contextlib.contextmanager
def log_to(path: Path):
    """Everything that this process writes to stdout and stderr goes into a file."""
    streams = sys.stdout, sys.stderr
    kept = [os.dup(stream.fileno()) for stream in streams]
    with path.open("w") as file:
        for stream in streams:
            os.dup2(file.fileno(), stream.fileno())
        try:
            yield
        finally:
            for stream, old in zip(streams, kept, strict=True):
                stream.flush()
                os.dup2(old, stream.fileno())
                os.close(old)


# -- the comparison ------------------------------------------------------------------------------


def read(home: Path, variant: str) -> Outcome:
    """What `train` left of a run."""
    with np.load(home / f"{variant}.npz") as file:
        leaves = dict(file)
    return Outcome(leaves, dict(flatten("", json.loads((home / f"{variant}.json").read_text()))))


def flatten(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Plain values of JSON by their paths, without the random ids of a ledger."""
    if isinstance(value, list):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, dict):
        yield name, value
        return
    for key, item in value.items():
        if key != "id":
            yield from flatten(f"{name}/{key}" if name else key, item)


def difference(before: Outcome, after: Outcome) -> str:
    """The first difference in a few words; "" if every bit is the same."""
    names = [*before.leaves, *(name for name in after.leaves if name not in before.leaves)]
    apart = [n for n in names if not same_bits(before.leaves.get(n), after.leaves.get(n))]
    if apart:
        old, new = before.leaves.get(apart[0]), after.leaves.get(apart[0])
        return f"leaf {apart[0]}: {how_far(old, new)} ({len(apart)} of {len(names)} leaves)"
    for name in [*before.values, *(name for name in after.values if name not in before.values)]:
        old, new = (outcome.values.get(name, "absent") for outcome in (before, after))
        if json.dumps(old) != json.dumps(new):  # as text: there -0.0 is not 0.0
            return f"{name}: {old} against {new}"
    return ""


def same_bits(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether two arrays are equal, type and shape and bits; None is no array."""
    if a is None or b is None:
        return a is b
    return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()


def how_far(a: np.ndarray | None, b: np.ndarray | None) -> str:
    """In words; of types that NumPy lacks and a file keeps as bytes, the bits are compared."""
    if a is None or b is None or (a.dtype, a.shape) != (b.dtype, b.shape):
        kinds = ["absent" if x is None else f"{x.dtype}{list(x.shape)}" for x in (a, b)]
        return " against ".join(kinds)
    if a.dtype.kind == "V":
        a, b = (x.view(f"u{x.dtype.itemsize}") for x in (a, b))
    return f"by up to {np.nanmax(np.abs(a.astype(np.float64) - b.astype(np.float64))):.3g}"


def verdict(before: Path, after: Path) -> tuple[bool, str]:
    """Whether two homes of a run are equal, and a few words on what differs."""
    for variant in VARIANTS:
        if found := difference(read(before, variant), read(after, variant)):
            return False, f"{variant}: {found}"
    scratch, resumed = (read(after, variant) for variant in VARIANTS)
    found = difference(scratch, resumed)
    return True, f"equal, but a resume is not as scratch: {found}" if found else "equal"


def start(checkout: Path, folder: Path, devices: int) -> subprocess.Popen:
    """The process that trains in a checkout; one thread, since two of them run side by side."""
    flags = f"--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count={devices}"
    cache = Path(tempfile.gettempdir(), "equivalence-jax-cache")
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        **os.environ,
        "PYTHONPATH": str(checkout),  # wins over an installed version
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "MPLBACKEND": "agg",
    }
    command = [sys.executable, __file__, "--inside", str(checkout), str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=checkout, env=environment, **pipes)


def ask(process: subprocess.Popen, names: Sequence[str]):
    """Asks for runs; a process that ended is found by `answer`."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.writelines(f"{name}\n" for name in names)
        process.stdin.flush()


def answer(process: subprocess.Popen) -> dict[str, Any]:
    """The next line of JSON; a process that ended is a failure, too."""
    assert process.stdout is not None
    line = process.stdout.readline()
    return json.loads(line) if line else {"failure": "its process ended", "seconds": 0.0}


def compare(checkouts: Mapping[str, Path], out: Path, names: Sequence[str], devices: int) -> bool:
    """Prints a line a run; returns whether all are equal."""
    started = time.perf_counter()
    folders = {side: out / side for side in checkouts}
    todo = [run.name for run in chosen(plan(out, str), names)]
    processes = {side: start(path, folders[side], devices) for side, path in checkouts.items()}
    equal = 0
    try:
        ask(processes["before"], todo)
        for name in todo:
            answers = {"before": answer(processes["before"])}
            ask(processes["after"], [name])  # one run behind: finds all compiled that is the same
            answers["after"] = answer(processes["after"])
            failures = [f"{side}: {a['failure']}" for side, a in answers.items() if a["failure"]]
            homes = [folder / name for folder in folders.values()]
            same, said = (False, "; ".join(failures)) if failures else verdict(*homes)
            equal += same
            seconds = " + ".join(f"{a['seconds']:.1f}" for a in answers.values())
            print(f"{name:15} {said}  [{seconds} s]", flush=True)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    seconds = time.perf_counter() - started
    print(f"{equal} of {len(todo)} runs are equal; {seconds:.0f} s; outputs in {out}")
    return equal == len(todo)


def main(argv: Sequence[str]) -> int:
    """Reads the arguments; returns the exit code."""
    names = [run.name for run in plan(Path(), str)]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, metavar="BEFORE_CHECKOUT")
    parser.add_argument("after", type=Path, metavar="AFTER_CHECKOUT")
    parser.add_argument(
        "--only", nargs="+", default=[], choices=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="kept; default a temporary one")
    parser.add_argument("--devices", type=int, default=1, metavar="N")
    given = parser.parse_args(argv)
    checkouts = {"before": given.before.resolve(), "after": given.after.resolve()}
    for checkout in checkouts.values():
        if not (checkout / PACKAGES[0]).is_dir():
            parser.error(f"{checkout} is no checkout of this project")
    if given.out is not None and given.out.exists() and any(given.out.iterdir()):
        parser.error(f"{given.out} is not empty")
    out = (given.out or Path(tempfile.mkdtemp(prefix="equivalence-"))).resolve()
    return 0 if compare(checkouts, out, given.only, given.devices) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        train_all(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit(main(sys.argv[1:]))
