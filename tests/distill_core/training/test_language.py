"""A language model's run: it learns, resumes bit by bit, and does not see how it is spread."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from distill_core import config
from distill_core import load_model as load
from distill_core.config import InputError
from distill_core.data.text import tasks as text_tasks
from distill_core.data.text import tokenizers
from distill_core.data.text.corpus import Example
from distill_core.losses import cross_entropy
from distill_core.models.network import Network, text_network
from distill_core.runtime import parallel
from distill_core.step import NextTokens
from distill_core.training import language

LENGTH = 8
TEXT = ("the cat sat on the mat .", "a dog ran .", "the dog sat on a cat .", "the mat ran !")
HP = {
    "model": "transformer",
    "model_kwargs": {"width": 16, "num_layers": 1, "num_heads": 2},
    "learning_rate": 0.3,
    "batch_size": 16,
    "num_steps": 6,
    "eval_batch_size": 16,
    "log_every": 2,
    "eval_every": 4,
    "save_every": 3,
}


@config.settings
class Settings(
    config.Device, config.Update, config.Start, config.Run, config.Optimizer, config.Model
):
    pass


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Cross-entropy times a number on the frozen side."""

    network: Network

    def __call__(self, params, model_state, frozen, batch, key):
        found = NextTokens(self.network)(params, model_state, frozen, batch, key)
        return found._replace(values=found.values * frozen["scale"])


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train_words(TEXT, vocab_size=40)


@pytest.fixture(scope="module")
def rows(tokenizer):
    """A line a row, 24 of them, of unequal weights: some count little, some tokens not at all."""
    lines = [text_tasks.encode(Example(text), tokenizer, "language") for text in TEXT * 6]
    arrays, _ = text_tasks.to_rows(lines, tokenizer, LENGTH)
    rng = np.random.default_rng(0)
    shape = arrays["weights"].shape
    weights = rng.uniform(0, 2, shape) * (rng.uniform(size=shape) < 0.6)
    assert shape == (24, LENGTH) and (weights == 0).any()
    return {**arrays, "weights": (arrays["weights"] * weights).astype(np.float32)}


@pytest.fixture(scope="module")
def fit(tokenizer, rows, tmp_path_factory):
    """`fit("run", …)` trains the network in a folder `run`, which it returns."""
    folder = tmp_path_factory.mktemp("runs")

    def fit(name, *, mode=None, rows=rows, reads=None, **changes):
        hp = config.validate({**HP, **changes}, Settings)
        network = dataclasses.replace(_network(tokenizer), compute_dtype=hp.compute_dtype)
        held = {name: array[:5] for name, array in rows.items()}
        run = language.Run(hp, folder / name, "test", network, rows, held, mode)
        language.train(
            run,
            Scaled(network),
            frozen={"scale": np.float32(1.0)},
            reads=reads or {"dataset": "these lines"},
        )
        return folder / name

    return fit


def _network(tokenizer):
    return text_network(tokenizer, LENGTH, model=HP["model"], model_kwargs=HP["model_kwargs"])


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(fit):
    return fit("straight")


def test_training_lowers_the_loss_and_is_logged(straight):
    train = [row for row in metrics(straight) if row["split"] == "train"]
    held = [row for row in metrics(straight) if row["split"] == "validation"]
    assert [row["step"] for row in train] == [2, 4, 6]
    assert [row["step"] for row in held] == [4, 6]
    assert set(train[0]) == {"step", "split", "loss", "accuracy", "grad_norm"}
    assert set(held[0]) == {"step", "split", "cross_entropy", "accuracy"}
    assert train[0]["loss"] > train[1]["loss"] > train[2]["loss"]
    assert train[0]["loss"] - train[2]["loss"] > 0.2


def test_what_is_measured_is_the_weighted_mean_over_tokens(straight, rows):
    """By hand: every line by itself, without the mask that tells lines of one row apart."""
    loaded, five = load(straight), {name: array[:5].copy() for name, array in rows.items()}
    digits = np.zeros(five["tokens"].shape, bool)
    digits[1, 2] = digits[3, 1] = True
    five["weights"][1, 2], five["weights"][3, 1] = 0.5, 1.5
    classes = {"class_some": digits, "class_none": np.zeros_like(digits)}
    found = language.measure(loaded, {**five, **classes}, batch_size=3)
    logits = jax.jit(loaded.apply)(loaded.variables, five["tokens"])  # a line a row
    values = np.asarray(cross_entropy(logits, five["labels"]), np.float64)
    weights = five["weights"]
    right = np.argmax(logits, axis=-1) == five["labels"]
    expected = {
        "cross_entropy": np.average(values, weights=weights),
        "accuracy": np.average(right, weights=weights),
        "cross_entropy_some": (0.5 * values[1, 2] + 1.5 * values[3, 1]) / 2.0,
    }
    assert math.isnan(found.pop("cross_entropy_none"))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_run_that_stopped_in_the_middle_ends_bit_by_bit_as_one_that_did_not(fit, straight):
    """It stops at a step that is logged and evaluated anyway; else it has these lines, too."""
    stopped = fit("stopped", num_steps=4)
    before = load(stopped).metadata
    assert fit("stopped") == stopped
    ended, whole = load(stopped), load(straight)
    assert (before["step"], ended.metadata["step"]) == (4, 6)
    for one, other in zip(
        jax.tree.leaves(ended.variables), jax.tree.leaves(whole.variables), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert len({ended.metadata["id"], whole.metadata["id"], before["id"]}) == 3
    logs = [(folder / "metrics.jsonl").read_bytes() for folder in (stopped, straight)]
    assert logs[0] == logs[1]


def test_how_batches_reach_the_devices_changes_no_number(fit, straight):
    """Several steps at once, data on the devices, blocks computed again."""
    how = {"steps_per_dispatch": 2, "data_on_device": True, "save_every": 4}
    for other in (fit("fed", **how), fit("fed and stopped", **how, num_steps=4)):
        other = fit(other.name, **how)
        for one, two in zip(
            jax.tree.leaves(load(straight).variables),
            jax.tree.leaves(load(other).variables),
            strict=True,
        ):
            np.testing.assert_allclose(two, one, rtol=0, atol=1e-6)


def test_bfloat16_reaches_every_product_but_the_sums_and_resumes_bit_by_bit(fit, straight):
    whole = load(fit("bfloat16", compute_dtype="bfloat16"))
    fit("bfloat16 stopped", compute_dtype="bfloat16", num_steps=4)
    resumed = load(fit("bfloat16 stopped", compute_dtype="bfloat16"))
    assert whole.network.compute_dtype == "bfloat16"
    tokens = np.zeros((2, LENGTH), np.int32)
    assert whole.network.hidden(whole.variables, tokens)[0].dtype == jax.numpy.bfloat16
    difference = 0.0
    for one, two, exact in zip(
        *(jax.tree.leaves(each.variables) for each in (whole, resumed, load(straight))), strict=True
    ):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, two)
        difference = max(difference, np.abs(one - exact).max())
    assert 1e-5 < difference < 0.1


def test_ancestors_are_kept_by_id(fit, straight):
    parent = load(straight)
    child = load(fit("child", reads={"teacher": parent}))
    (ancestor,) = child.metadata["ledger"]["ancestors"]
    assert ancestor == {name: parent.metadata[name] for name in ("id", "ledger")}
    assert parent.metadata["ledger"]["ancestors"] == []


@pytest.fixture(scope="module")
def one_device(fit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 1)
        return fit("one device")


@pytest.mark.parametrize("mode", ["pmap", "shard_map"])
def test_a_mode_on_eight_devices_trains_as_one_device_does(fit, rows, straight, one_device, mode):
    # Rows of unequal weight: a mean of the devices' means would be another one.
    batch = rows["weights"][:16].reshape(8, -1).sum(1)
    assert batch.max() > 1.3 * batch.min()
    assert jax.device_count() == 8
    spread = straight if mode == parallel.choose_mode() else fit(mode, mode=mode)
    for one, other in zip(
        jax.tree.leaves(load(spread).variables),
        jax.tree.leaves(load(one_device).variables),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)
    for found, expected in zip(metrics(spread), metrics(one_device), strict=True):
        assert found.pop("split") == expected.pop("split")
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_batch_that_the_devices_cannot_share_is_refused_before_anything_is_written(fit, straight):
    with pytest.raises(InputError, match="batch_size: got 12; must be divisible by the 8"):
        fit("uneven", batch_size=12)
    assert not (straight.parent / "uneven").exists()
