"""A run that takes no time to compile: linear regression by Adam, with a noise that needs the key.

As a program it is a binary: `python tests/distill_core/tiny_run.py '{"workdir": …}'`.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_core import checkpoint
from distill_core.runtime import cli, parallel
from distill_core.training import loop
from distill_core.training.optimizers import Optimizer
from distill_core.training.run_state import Layout
from distill_core.training.step import Outputs, TrainState, Update

WIDTH = 3


@dataclasses.dataclass(frozen=True)
class Regression:
    def __call__(self, params, model_state, frozen, batch, key):
        noise = frozen["noise"] * jax.random.normal(key, batch["x"].shape)
        predicted = (batch["x"] + noise) @ params["w"] + params["b"]
        return Outputs(jnp.square(predicted - batch["y"]), batch["weight"], model_state, {})


def update(learning_rate: float) -> Update:
    return Update(
        Regression(), Optimizer(optimizer="adam", learning_rate=learning_rate, num_steps=1)
    )


def batch_at(step: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(step).normal(size=(8, WIDTH)).astype(np.float32)
    return {"x": x, "y": x.sum(1), "weight": np.ones(8, np.float32)}


def fresh_state(learning_rate: float = 0.01, *, seed: int = 7, padding: int = 0):
    params = {"w": jnp.zeros(WIDTH), "b": jnp.zeros(())}
    if padding:  # makes the checkpoint large
        params["padding"] = jax.random.normal(jax.random.key(0), (padding,))
    tx = update(learning_rate).optimizer.make()
    return TrainState.create(params=params, model_state={}, tx=tx, rng=jax.random.key(seed))


def measure(state, stopped=lambda: False):
    return {"accuracy": 1.0 - float(jnp.sum(jnp.square(state.params["w"] - 1.0)))}


def run(workdir, num_steps=12, *, learning_rate=0.01, padding=0, config=None, **settings):
    """`loop.run` of this problem; what it is given can be replaced."""
    given = {
        "step_fn": parallel.wrap(update(learning_rate), "jit", donate=True),
        "batch_fn": batch_at,
        "reads": {},
        "evaluate": measure,
        "plan": None,
        "log_every": 3,
        "eval_every": 4,
        "save_every": 2,
        **settings,
    }
    metadata = {
        "method": "tiny",
        "parts": {"model": {}},
        "config": {"learning_rate": learning_rate, "num_steps": num_steps, **(config or {})},
        "data_note": "",
        "ledger": {},
    }
    return loop.run(
        workdir,
        fresh_state(learning_rate, padding=padding),
        loop.Program(given["step_fn"], given["batch_fn"], {"noise": np.float32(0.1)}),
        loop.Checkpoints(Layout(), metadata, given["reads"]),
        num_steps=num_steps,
        cadence=loop.Cadence(given["log_every"], given["eval_every"], given["save_every"]),
        monitor=loop.Monitor(given["evaluate"], best="accuracy") if given["evaluate"] else None,
        plan=given["plan"],
    )


def contents(workdir, *, seed: int = 7) -> dict:
    """All that must not depend on how often a run was interrupted."""
    parts, train = Layout().split(fresh_state(seed=seed))
    path, metadata = checkpoint.find(workdir)
    arrays = checkpoint.restore(path, parts=parts, train=train)
    return {
        "arrays": checkpoint.digest(checkpoint.to_host(arrays)),
        # Orbax names its files at random, and a save has a random id.
        "metadata": {k: v for k, v in metadata.items() if k not in ("files", "checksum", "id")},
        "metrics": (epath.Path(workdir) / "metrics.jsonl").read_text().splitlines(),
    }


if __name__ == "__main__":
    cli.launch(lambda argv: run(**json.loads(argv[0])))
