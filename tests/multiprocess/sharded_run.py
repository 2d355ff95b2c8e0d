"""Trains a state that no process has the whole of, and saves every second step in the background.

`--hold=STEP`: the second process never completes the save of that step, while both train on.
"""

import argparse
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from distill_core import checkpoint
from distill_core.checkpoint import store
from distill_core.runtime import parallel

ROWS, COLUMNS = 64, 8


def places(devices):
    """The shardings of `fresh`: rows over all devices, scalars on each."""
    mesh = Mesh(np.asarray(devices), ("data",))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    return {"w": rows, "mu": rows, "step": whole, "rng": whole}


def fresh():
    """Whole numbers, so that sums do not depend on their order."""
    w = jnp.arange(ROWS * COLUMNS, dtype=jnp.float32).reshape(ROWS, COLUMNS) % 5
    return {"w": w, "mu": 0 * w, "step": jnp.int32(0), "rng": jax.random.key(7)}


def advance(state):
    """One step; its sum needs all processes."""
    key = jax.random.fold_in(state["rng"], state["step"])
    total = jnp.sum(state["w"]) + jax.random.randint(key, (), 0, 9).astype(jnp.float32)
    mu = (state["mu"] + state["w"] + total) % 11
    return {**state, "w": (state["w"] + mu) % 7, "mu": mu, "step": state["step"] + 1}


def split(state):
    """(parts, train) as `checkpoint.save` takes them."""
    parts = {"model": {"params": {"w": state["w"]}, "model_state": {}}}
    return parts, {name: state[name] for name in ("mu", "step", "rng")}


def restored(path, devices):
    """The state of a checkpoint on these devices."""
    shapes = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        jax.eval_shape(fresh),
        places(devices),
    )
    parts, train = split(shapes)
    parts, train = checkpoint.restore(path, parts=parts, train=train)
    return {"w": parts["model"]["params"]["w"], **train}


def main():
    """One process of the run."""
    parser = argparse.ArgumentParser()
    for name in ("workdir", "coordinator_address"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("num_processes", "process_id", "num_steps", "hold"):
        parser.add_argument(f"--{name}", type=int)
    given, _ = parser.parse_known_args()
    parallel.start(
        coordinator_address=given.coordinator_address,
        num_processes=given.num_processes,
        process_id=given.process_id,
    )
    finish = store.finish

    def finish_or_hang(path, metadata):
        if given.process_id == 1 and metadata["step"] == given.hold:
            threading.Event().wait()
        finish(path, metadata)

    store.finish = finish_or_hang
    saved = checkpoint.steps(given.workdir)
    if saved:
        state = restored(checkpoint.find(given.workdir)[0], jax.devices())
        print(f"resumes from step {saved[-1]}", flush=True)
    else:
        state = jax.jit(fresh, out_shardings=places(jax.devices()))()
    checkpoint.remove_unfinished(given.workdir)
    step_fn = jax.jit(advance, donate_argnums=0, out_shardings=places(jax.devices()))
    saving = None
    for step in range(saved[-1] if saved else 0, given.num_steps):
        state = jax.block_until_ready(step_fn(state))
        print(f"step {step + 1}", flush=True)
        if (step + 1) % 2 == 0:
            if saving is not None:
                saving.wait()
            parts, train = split(state)
            assert not checkpoint.not_finite(parts)
            saving = checkpoint.save(
                given.workdir, step + 1, parts=parts, train=train, metadata={"method": "sharded"}
            )
    if saving is not None:
        saving.wait()


if __name__ == "__main__":
    main()
