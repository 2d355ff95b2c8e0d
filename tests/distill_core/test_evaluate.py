"""What `evaluate` says of a checkpoint is what NumPy says, over every example."""

import numpy as np
import pytest

from distill_core import evaluate, train
from distill_core import load_model as load
from distill_core.runtime import cli

TRAIN, TEST = 50, 21


@pytest.fixture(scope="module")
def place(tmp_path_factory, three_classes):
    """A folder with data and a trained network with batch norm."""
    folder = tmp_path_factory.mktemp("place")
    three_classes(folder / "data.npz", train=TRAIN, test=TEST)
    settings = {"model": "cnn", "model_kwargs": {"widths": (4,)}, "learning_rate": 0.05}
    settings |= {"dataset": f"npz:{folder}/data.npz", "batch_size": 16, "num_steps": 3}
    train.train_and_evaluate(settings, folder / "run")
    return folder


def measured(place, split="test"):
    """Logits, accuracy and cross-entropy, the last two by NumPy in double precision."""
    loaded = load(place / "run")
    arrays = np.load(place / "data.npz")
    labels = arrays[f"y_{split}"]
    logits = np.asarray(loaded.apply(loaded.variables, arrays[f"x_{split}"]), np.float64)
    log_sums = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    losses = log_sums - logits[np.arange(len(labels)), labels]
    return logits, np.mean(logits.argmax(1) == labels), losses.mean()


@pytest.mark.parametrize("batch_size", [1, 8, 21, 512])
def test_every_example_counts_once_whatever_the_batch(place, batch_size):
    found = evaluate.evaluate_checkpoint(place / "run", batch_size=batch_size)
    _, accuracy, loss = measured(place)
    assert found["accuracy"] == accuracy
    np.testing.assert_allclose(found["cross_entropy"], loss, rtol=1e-5)
    assert (found["examples"], found["note"]) == (TEST, "")


def test_the_train_split_is_whole_and_in_the_order_of_the_file(place, tmp_path):
    out = tmp_path / "logits.npz"
    found = evaluate.evaluate_checkpoint(place / "run", split="train", logits_out=out, batch_size=8)
    logits, accuracy, _ = measured(place, split="train")
    assert (found["examples"], found["accuracy"]) == (TRAIN, accuracy)
    stored = np.load(out)
    assert stored["logits"].dtype == np.float32
    np.testing.assert_allclose(stored["logits"], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(stored["labels"], np.load(place / "data.npz")["y_train"])


def test_the_binary_prints_one_line(place, tmp_path, capsys):
    out = tmp_path / "logits.npz"
    code = cli.exit_code(
        evaluate.main, [f"--checkpoint={place}/run/checkpoints/3", "--logits_out", str(out)]
    )
    printed = capsys.readouterr().out
    assert (code, printed.count("\n")) == (0, 1)
    assert printed.startswith(f"test accuracy {measured(place)[1]:.4f}  cross_entropy ")
    assert f"({TEST} examples; 8 cpu devices)" in printed
    assert np.load(out)["logits"].shape == (TEST, 3)
