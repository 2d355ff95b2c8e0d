"""How long a save keeps the loop waiting, and what memory it takes, beside a synchronous save.

    python benchmarks/checkpoint_save.py [--millions 200] [--rounds 3] [--steps 5] [--folder DIR]

A state of so many million parameters with Adam's two moments, on the first device. In turn the
state is saved as it once was (copied to the host, checked, written and read back for the checksums
while the loop waits) and by `checkpoint.save`, beside which training steps that donate the state go
on. Prints medians of seconds: blocked by either save, until the new one is complete, of a step, and
of the first step beside a save, which on a CPU takes new memory, as the old is being written. And
the most memory beyond that of training, as a multiple of the state.
"""

import argparse
import contextlib
import pathlib
import re
import shutil
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint
from distill_core.checkpoint import integrity, store

WIDTH = 4096  # a leaf has 16 million parameters
METADATA = {"method": "benchmark", "parts": {"model": {}}, "config": {}, "ledger": {}}


def main():
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--millions", type=float, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="beside every save")
    parser.add_argument("--folder", help="where to write; by default the system's for such files")
    given = parser.parse_args()
    state = fresh_state(given.millions)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    state = jax.block_until_ready(step(step(state)))
    found = {"old": [], "new": [], "written": [], "step": [], "beside": []}
    memory = {"old": [], "new": []}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for _ in range(given.rounds):
            with measured_memory(memory["old"]):
                found["old"].append(seconds(save_synchronously, folder, state)[0])
            shutil.rmtree(folder + "/checkpoints")
            took, state = seconds(step, state)
            found["step"].append(took)
            with measured_memory(memory["new"]):
                took, saving = seconds(save, folder, state)
                found["new"].append(took)
                begun = time.perf_counter()
                took, state = seconds(step, state)
                found["beside"].append(took)
                for _ in range(given.steps):
                    state = jax.block_until_ready(step(state))
                saving.wait()
                found["written"].append(time.perf_counter() - begun)
            shutil.rmtree(folder + "/checkpoints")
    median = {name: statistics.median(values) for name, values in found.items()}
    print(f"{size / 1e9:.2f} GB, {given.rounds} rounds, {jax.devices()[0].device_kind}")
    for name, values in found.items():
        print(f"{name:8} {median[name]:7.3f} s   ({', '.join(f'{v:.3f}' for v in values)})")
    for name, values in memory.items():
        print(f"{name:8} {max(values) / size:7.2f} x the state in memory")
    slower = median["new"] + median["beside"] - median["step"]
    print(f"blocked  {median['new'] / median['old']:7.1%} of the synchronous save")
    print(f"lost     {slower / median['old']:7.1%} of it with the slower step")


def fresh_state(millions: float) -> dict[str, dict[str, jax.Array]]:
    """Random parameters and moments, in float32."""
    rows = round(millions * 1e6 / WIDTH)
    sizes = [min(WIDTH, rows - at) for at in range(0, rows, WIDTH)]
    rng = np.random.default_rng(0)
    return {
        part: {
            f"layer_{i}": jnp.asarray(rng.standard_normal((n, WIDTH), np.float32))
            for i, n in enumerate(sizes)
        }
        for part in ("params", "mu", "nu")
    }


@jax.jit(donate_argnums=0)
def step(state):
    """As Adam does, without a gradient: reads and writes the whole state."""
    params, mu, nu = state["params"], state["mu"], state["nu"]
    return {
        "params": jax.tree.map(lambda p, m: p - 1e-4 * m, params, mu),
        "mu": jax.tree.map(lambda m: 0.9999 * m, mu),
        "nu": jax.tree.map(lambda v: 0.9999 * v, nu),
    }


def split(state):
    """(parts, train) as `checkpoint.save` takes them."""
    parts = {"model": {"params": state["params"], "model_state": {}}}
    return parts, {"mu": state["mu"], "nu": state["nu"]}


def save(folder: str, state) -> checkpoint.Saving:
    """What the loop waits for: the check and the start of the save."""
    parts, train = split(state)
    assert not checkpoint.not_finite(parts)
    return checkpoint.save(folder, 1, parts=parts, train=train, metadata=METADATA)


def save_synchronously(folder: str, state):
    """The baseline: everything on the host, one after another."""
    parts, train = split(state)
    model, train = checkpoint.to_host(parts), checkpoint.by_name(checkpoint.to_host(train))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model))
    path = epath.Path(folder) / checkpoint.FOLDER / "1"
    store._orbax().save_checkpointables(path, {"model": model, "train": train})
    integrity.finish(path, METADATA)


def seconds(function, *args):
    """(seconds until the result is ready, the result)."""
    begun = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return time.perf_counter() - begun, result


@contextlib.contextmanager
def measured_memory(into: list[int]):
    """Appends the most memory that the process has inside beyond what it had before (Linux)."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the maximum so far
    before = _status("VmRSS")
    yield
    into.append(_status("VmHWM") - before)


def _status(name: str) -> int:
    text = pathlib.Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
