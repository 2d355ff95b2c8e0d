"""A small text, settings of runs on it that take no time, and networks that nobody trained."""

import random

import jax
import numpy as np
import pytest

from distill_core import checkpoint, config
from distill_core.models.network import text_network
from distill_core.training import run_state
from swingdistill import private_text, train

WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "big", "old")
NUM_LINES = {"train": 60, "valid": 8, "test": 8}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Three files of text, and the same with labels in `labelled`."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "labelled").mkdir()
    rng = random.Random(0)
    for split, num in NUM_LINES.items():
        lines = [" ".join(rng.choices(WORDS, k=rng.randint(3, 8))) + " ." for _ in range(num)]
        (folder / f"{split}.txt").write_text("\n".join(lines))
        labelled = "\n".join(f"{i % 3}\t{line}" for i, line in enumerate(lines))
        (folder / "labelled" / f"{split}.tsv").write_text(labelled)
    return folder


@pytest.fixture(scope="session")
def settings(folder):
    """`settings(…)`, for `swingdistill.train`; one set of them where it can be, to compile once."""

    def settings(**changes):
        base = {
            "dataset": f"text:{folder}",
            "length": 16,
            "vocab_size": 40,
            "canaries_per_level": 2,
            "canary_levels": (1, 4),
            "num_decoys": 10,
            "model": "transformer",
            "model_kwargs": {"width": 16, "num_layers": 1, "num_heads": 2},
            "optimizer": "adam",
            "learning_rate": 0.01,
            "batch_size": 8,
            "num_steps": 4,
            "eval_batch_size": 8,
            "log_every": 1,
        }
        return {**base, **changes}

    return settings


@pytest.fixture(scope="session")
def values(settings):
    """`values(…)`: all fields of a run, as validated."""
    return lambda **changes: config.validate(settings(**changes), train.Settings)


@pytest.fixture(scope="session")
def untrained(values):
    """`untrained(workdir, seed, …)` writes a language model of random weights; gives its path."""

    def untrained(workdir, seed, **changes):
        hp = values(**changes)
        network = text_network(
            private_text.get_tokenizer(hp),
            hp.length,
            model=hp.model,
            model_kwargs=hp.model_kwargs,
        )
        rng = np.random.default_rng(seed)

        def draw(path, leaf):  # wide, or all networks would find all tokens equally likely
            is_scale = jax.tree_util.keystr(path).endswith("['scale']")
            return np.float32(1.0 * is_scale + rng.normal(scale=0.3, size=leaf.shape))

        params = jax.tree_util.tree_map_with_path(draw, network.shapes()["params"])
        parts = {"model": {"params": params, "model_state": {}}}
        method = "swingdistill.train"
        metadata, _ = run_state.describe(hp, workdir, method=method, network=network, reads={})
        so_far = {"pending": [], "last_loss": None, "best": None, "evaluated": True}
        metadata |= so_far
        train = {"step": np.int32(0)}
        checkpoint.save(workdir, 0, parts=parts, train=train, metadata=metadata).wait()
        return str(workdir)

    return untrained


@pytest.fixture(scope="session")
def teacher(untrained, tmp_path_factory):
    """The path of a checkpoint."""
    return untrained(tmp_path_factory.mktemp("teacher"), 1)


@pytest.fixture(scope="session")
def reference(untrained, tmp_path_factory):
    """The path of a checkpoint."""
    return untrained(tmp_path_factory.mktemp("reference"), 2)
