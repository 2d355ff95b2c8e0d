"""Zero-out adjacency, on the steps that private training really makes.

Masking a record, whether or not it was drawn, is what neighbours differ in: the clipped sum moves
by at most C, and not at all where it was not drawn.
"""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core import train
from distill_core.config import InputError
from distill_core.data.text import tokenizers
from distill_core.privacy.per_example import SLACK
from distill_core.runtime import parallel
from distill_core.training import dp_sgd, loop

N, B, NORM = 60, 16, 0.7
WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "big", "old")
RUN = {"optimizer": "sgd", "learning_rate": 1.0, "momentum": 0.0, "batch_size": B, "num_steps": 3}


class SeenError(Exception):
    """The step is made; nothing else of the run is wanted."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Settings of a run on images that are cropped, flipped and turned, several copies each."""
    path = tmp_path_factory.mktemp("data") / "data.npz"
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", N), ("test", 6)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
        arrays[f"y_{split}"] = rng.integers(0, 3, count)
    np.savez(path, **arrays)
    network = {"widths": (4,), "hidden": 8, "norm": "none"}
    moved = {"crop_padding": 2, "flip": True, "rotation": 20.0}
    return {"dataset": f"npz:{path}", "model": "cnn", "model_kwargs": network, **moved, **RUN}


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """Settings of a run on lines of text."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    for split, num in {"train": N, "valid": 4, "test": 4}.items():
        text = [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(num)]
        (folder / f"{split}.txt").write_text("\n".join(text))
    public = tokenizers.train_words([" ".join(WORDS)], vocab_size=40)
    (folder / "tokenizer.json").write_text(public.to_json())
    network = {"width": 16, "num_layers": 1, "num_heads": 2}
    text = {"dataset": f"text:{folder}", "tokenizer": str(folder / "tokenizer.json"), "length": 6}
    return {**text, "model": "transformer", "model_kwargs": network, **RUN}


@pytest.fixture
def clipped_sum(tmp_path, monkeypatch):
    """`clipped_sum(settings, step, masked, mode)`: (the step's sum before noise, who was drawn)."""
    drawn, runs = [], iter(range(10**6))

    def first_step(workdir, state, program, checkpoints, *, plan, **_):
        plan, step = plan(0), at[0]
        frozen = {**plan.frozen, "dp": {**plan.frozen["dp"], "noise_multiplier": jnp.float32(0)}}
        before = jax.device_get(state.params)  # the step gives its memory away
        state, frozen = (parallel.place(tree, program.mode) for tree in (state, frozen))
        state = program.step_fn(state, frozen, program.batch_fn(step))[0]
        after = jax.device_get(state.params)
        moved = jax.tree.map(lambda a, b: np.ravel(a - b).astype(np.float64) * B, before, after)
        found.append(np.concatenate(jax.tree.leaves(moved)))
        raise SeenError

    draw = dp_sgd.poisson.draw

    def noted(*args):
        drawn.append(draw(*args))
        return drawn[-1]

    monkeypatch.setattr(loop, "run", first_step)
    monkeypatch.setattr(dp_sgd.poisson, "draw", noted)
    at, found = [0], []

    def clipped_sum(settings, step, masked, mode):
        rows, at[0] = tmp_path / "masked.npy", step
        np.save(rows, np.array(masked, np.int64))
        copies = 1 if settings["model"] == "transformer" else 3
        dp = {"epsilon": 8.0, "delta": 1e-3, "norm": NORM, "augmentations": copies, "seed": 1}
        with pytest.raises(SeenError):
            train.train_and_evaluate(
                {**settings, "dp": {**dp, "masked": str(rows)}},
                tmp_path / f"run{next(runs)}",
                parallel=mode,
            )
        return found[-1], set(drawn[-1].tolist())

    return clipped_sum


@pytest.mark.parametrize(("kind", "mode"), [("images", "shard_map"), ("lines", "pmap")])
def test_masking_a_record_moves_the_sum_by_its_norm_if_it_was_drawn_and_else_by_nothing(
    kind, mode, clipped_sum, request
):
    settings = request.getfixturevalue(kind)
    whole, drawn = clipped_sum(settings, 1, [], mode)
    assert 5 < len(drawn) < N - 5
    moves = {}
    for record in (min(drawn), min(set(range(N)) - drawn)):
        other, same = clipped_sum(settings, 1, [record], mode)
        assert same == drawn
        moves[record] = np.linalg.norm(whole - other)
    assert all(moves[record] == 0.0 for record in moves if record not in drawn)
    found = [moves[record] for record in moves if record in drawn]
    assert max(found) <= NORM * (1 + SLACK)
    assert min(found) > 0.5 * NORM, "gradients of an untrained network are long: they are clipped"


def test_all_masked_is_nothing_at_all(clipped_sum, images):
    nothing, drawn = clipped_sum(images, 2, range(N), "pmap")
    assert drawn and not nothing.any()


@pytest.mark.parametrize("rows", [[N], [-1], [0.5], [[1]], "text", None])
def test_a_mask_that_is_no_list_of_rows_is_refused_in_one_line(images, tmp_path, rows):
    path = tmp_path / "masked.npy"
    if rows == "text":
        path.write_text("1 2 3")
    elif rows is not None:
        np.save(path, np.array(rows))
    dp = {"epsilon": 8.0, "delta": 1e-3, "norm": NORM, "masked": str(path)}
    with pytest.raises(InputError, match=r"^dp.masked: got .*; must be a .npy file of integers in"):
        train.train_and_evaluate({**images, "dp": dp}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
