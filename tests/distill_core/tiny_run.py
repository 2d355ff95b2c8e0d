"""A run that takes no time to compile: linear regression by Adam, with a noise that needs the key.

As a program it is a binary: `python tests/distill_core/tiny_run.py '{"workdir": …}'`.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from distill_core import checkpoint
from distill_core.runtime import cli, parallel
from distill_core.training import loop
from distill_core.training import step as training

WIDTH = 3


@functools.cache
def _compiled(learning_rate: float):
    tx = optax.adam(learning_rate)

    def loss_fn(params, model_state, frozen, batch, key):
        noise = frozen["noise"] * jax.random.normal(key, batch["x"].shape)
        predicted = (batch["x"] + noise) @ params["w"] + params["b"]
        return jnp.square(predicted - batch["y"]), batch["weight"], model_state, {}

    return parallel.wrap(training.make_train_step(loss_fn, tx), "jit", donate=True), tx


def batch_at(step: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(step).normal(size=(8, WIDTH)).astype(np.float32)
    return {"x": x, "y": x.sum(1), "weight": np.ones(8, np.float32)}


def fresh_state(learning_rate: float = 0.01, *, seed: int = 7, padding: int = 0):
    params = {"w": jnp.zeros(WIDTH), "b": jnp.zeros(())}
    if padding:  # makes the checkpoint large
        params["padding"] = jax.random.normal(jax.random.key(0), (padding,))
    tx = _compiled(learning_rate)[1]
    return training.TrainState.create(
        params=params, model_state={}, tx=tx, rng=jax.random.key(seed)
    )


def split(state):
    parts = {"model": {"params": state.params, "model_state": state.model_state}}
    return parts, {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}


def merge(state, parts, train):
    return state.replace(**parts["model"], **train)


def measure(state, stopped=lambda: False):
    return {"accuracy": 1.0 - float(jnp.sum(jnp.square(state.params["w"] - 1.0)))}


def run(workdir, num_steps=12, *, learning_rate=0.01, padding=0, config=None, **settings):
    """`loop.run` of this problem; every argument of it can be replaced."""
    arguments = {
        "workdir": workdir,
        "num_steps": num_steps,
        "state": fresh_state(learning_rate, padding=padding),
        "step_fn": _compiled(learning_rate)[0],
        "frozen": {"noise": np.float32(0.1)},
        "batch_fn": batch_at,
        "metadata": {
            "method": "tiny",
            "parts": {"model": {}},
            "config": {"learning_rate": learning_rate, "num_steps": num_steps, **(config or {})},
            "data_note": "",
            "ledger": {},
        },
        "reads": {},
        "layout": loop.Layout(split, merge),
        "evaluate": measure,
        "best": "accuracy",
        "log_every": 3,
        "eval_every": 4,
        "save_every": 2,
    }
    return loop.run(**{**arguments, **settings})


def contents(workdir, *, seed: int = 7) -> dict:
    """All that must not depend on how often a run was interrupted."""
    parts, train = split(fresh_state(seed=seed))
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
