"""Networks, data and stored logits that meet: classes agree by name, or nothing is computed."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from distill_core import data, distill, evaluate, train
from distill_core import load_model as load
from distill_core.config import InputError
from distill_core.data.text import tokenizers
from distill_core.models.network import Network, text_network
from distill_core.runtime import cli
from distill_core.training import fits
from nasty import attack
from nasty import train as nasty_train

NAMES = ("cat", "dog", "eel")
SETTINGS = {
    "model": "cnn",
    "model_kwargs": {"widths": (4,), "hidden": 8, "norm": "none"},
    "learning_rate": 0.05,
    "batch_size": 16,
    "num_validation": 8,
    "num_steps": 12,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One data set under several names of its classes, a network of it, and its stored logits."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    labels = {"train": rng.integers(0, 3, 60), "test": rng.integers(0, 3, 30)}
    images = {
        split: (rng.integers(0, 60, (len(y), 8, 8, 1)) + 90 * y[:, None, None, None])
        for split, y in labels.items()
    }
    orders = {"data": NAMES, "turned": ("eel", "cat", "dog"), "other": ("cat", "dog", "fox")}
    for name, classes in {**orders, "unnamed": None}.items():
        arrays = {}
        for split, y in labels.items():
            arrays[f"x_{split}"] = images[split].astype(np.uint8)
            turned = y if name != "turned" else np.array([classes.index(NAMES[k]) for k in y])
            arrays[f"y_{split}"] = turned
        named = {} if classes is None else {"classes": np.array(classes)}
        np.savez(folder / f"{name}.npz", **arrays, **named)
    settings = {**SETTINGS, "num_steps": 80, "dataset": f"npz:{folder}/data.npz"}
    train.train_and_evaluate(settings, folder / "net")
    for name in ("data", "turned"):
        evaluate.evaluate_checkpoint(
            folder / "net",
            dataset=f"npz:{folder}/{name}.npz",
            split="train",
            logits_out=folder / f"logits_{name}.npz",
        )
    return folder


def leaves(workdir):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(load(workdir).variables)]


def test_evaluate_maps_the_same_names_in_another_order(place, capsys):
    found = {
        name: evaluate.evaluate_checkpoint(place / "net", dataset=f"npz:{place}/{name}.npz")
        for name in ("data", "turned")
    }
    printed = capsys.readouterr().out
    assert found["data"]["accuracy"] > 0.8
    assert found["turned"] == found["data"]
    assert printed.count("\n") == 1
    assert "classes in another order: labels are mapped (class 0 is 'cat', in npz:" in printed


def test_other_names_are_refused_by_the_first(place, capsys):
    with pytest.raises(InputError) as error:
        evaluate.evaluate_checkpoint(place / "net", dataset=f"npz:{place}/other.npz")
    message = str(error.value)
    assert message.startswith(f"checkpoint: got '{place}/net'; calls class 2 'eel', which is no ")
    assert f"class of npz:{place}/other.npz, which has 'fox'; the class names" in message
    flags = [f"--checkpoint={place}/net", f"--dataset=npz:{place}/other.npz"]
    assert cli.exit_code(evaluate.main, flags) == 2


def test_classes_without_names_pass_with_a_line(place, capsys):
    found = evaluate.evaluate_checkpoint(place / "net", dataset=f"npz:{place}/unnamed.npz")
    line = f"npz:{place}/unnamed.npz has no class names: classes are matched by number"
    assert capsys.readouterr().out.startswith(line)
    assert found["accuracy"] > 0.8


def test_numbers_that_a_network_was_trained_on_need_no_line(place, tmp_path, capsys):
    path = f"npz:{place}/unnamed.npz"
    train.train_and_evaluate({**SETTINGS, "dataset": path, "num_steps": 1}, tmp_path)
    assert load(tmp_path).network.classes == ("0", "1", "2")
    capsys.readouterr()
    evaluate.evaluate_checkpoint(tmp_path)
    assert capsys.readouterr().out == ""
    evaluate.evaluate_checkpoint(tmp_path, dataset=f"npz:{place}/other.npz")
    line = f"checkpoint {tmp_path} has no class names: classes are matched by number"
    assert capsys.readouterr().out.startswith(line)


RUNS = {
    "distill": (distill, {"teacher": "net", "alpha": 0.5}),
    "nasty": (nasty_train, {"adversary": "net", "omega": 0.01, "temperature": 4.0}),
    "kd": (attack, {"teacher": "net", "attack": "kd", "alpha": 0.5}),
    "averager": (attack, {"teacher": "net", "attack": "averager", "alpha": 0.5}),
}


@pytest.mark.parametrize("name", RUNS)
def test_who_learns_from_a_network_takes_its_order(place, tmp_path, name):
    """Bitwise the same weights, whatever the order of the data set's classes."""
    binary, given = RUNS[name]
    given = {k: str(place / v) if v == "net" else v for k, v in given.items()}
    given = {**SETTINGS, **given, "num_steps": 3}
    if binary is nasty_train:
        given["check_nastiness"] = False
    for order in ("data", "turned"):
        settings = {**given, "dataset": f"npz:{place}/{order}.npz"}
        binary.train_and_evaluate(settings, tmp_path / order)
    assert load(tmp_path / "turned").network.classes == tuple(NAMES)
    for ours, theirs in zip(leaves(tmp_path / "data"), leaves(tmp_path / "turned"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(InputError, match="calls class 2 'eel', which is no class of npz:"):
        binary.train_and_evaluate(
            {**given, "dataset": f"npz:{place}/other.npz"}, tmp_path / "other"
        )
    assert not (tmp_path / "other").exists()


def test_stored_logits_know_their_classes(place, tmp_path, capsys):
    def read(file, name):
        dataset = data.load_dataset(f"npz:{place}/{name}.npz")
        hp = types.SimpleNamespace(teacher=f"npz:{file}")
        return distill._stored_logits(hp, tmp_path / "run", dataset)[0]

    for name in ("data", "turned"):
        with np.load(place / f"logits_{name}.npz") as stored:
            assert stored["classes"].tolist() == list(NAMES)
    stored = np.load(place / "logits_data.npz")
    found = read(place / "logits_data.npz", "turned")
    np.testing.assert_array_equal(found, stored["logits"][:, [2, 0, 1]])
    with pytest.raises(InputError, match="^teacher: .*calls class 2 'eel', which is no class of"):
        read(place / "logits_data.npz", "other")
    capsys.readouterr()
    np.savez(tmp_path / "bare.npz", logits=stored["logits"], labels=stored["labels"])
    np.testing.assert_array_equal(read(tmp_path / "bare.npz", "data"), stored["logits"])
    assert "bare.npz has no class names: classes are matched by number" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("turned", "same classes in another order: class 0 is 'cat', in the run 'eel'"),
        ("other", "calls class 2 'eel', which is no class of the run, which has 'fox'"),
    ],
)
def test_first_weights_of_other_classes_are_refused(place, tmp_path, name, message):
    settings = {**SETTINGS, "dataset": f"npz:{place}/{name}.npz", "init_from": f"{place}/net"}
    with pytest.raises(InputError, match=f"^init_from: .*{message}"):
        train.train_and_evaluate(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_first_weights_bring_the_constants_that_they_were_trained_with(tmp_path):
    """The same images as another source: its constants would make the network see other pixels."""
    digits = data.load_dataset("digits")
    arrays = {}
    for split in ("train", "test"):
        part = getattr(digits, split)
        arrays |= {f"x_{split}": part.images, f"y_{split}": part.labels}
    np.savez(tmp_path / "digits.npz", **arrays, classes=np.array(digits.classes))
    settings = {**SETTINGS, "num_steps": 30, "dataset": "digits"}
    first = train.train_and_evaluate(settings, tmp_path / "first")
    settings |= {"dataset": f"npz:{tmp_path}/digits.npz", "init_from": str(tmp_path / "first")}
    settings |= {"num_steps": 1, "learning_rate": 1e-9}
    again = train.train_and_evaluate(settings, tmp_path / "again")
    assert load(tmp_path / "again").network.mean == digits.mean
    assert again["accuracy"] == first["accuracy"]
    # The run goes on with them, also where the first weights are no longer there.
    (tmp_path / "first").rename(tmp_path / "moved")
    train.train_and_evaluate({**settings, "num_steps": 2}, tmp_path / "again")
    assert load(tmp_path / "again").network.mean == digits.mean


def test_first_weights_of_another_vocabulary_are_refused(capsys):
    """As large, but its token 20 is another word: shapes do not tell."""

    def described(lines):
        tokenizer = tokenizers.train_words(lines, vocab_size=30)
        return text_network(tokenizer, 8, model="transformer", model_kwargs={})

    cats, dogs = described(["a cat sat on a mat"]), described(["a dog ran in a yard"])
    assert cats.num_classes == dogs.num_classes
    fits.check_start("init_from", "runs/cats", cats, cats)
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="^init_from: got 'runs/cats'; has another tokenizer"):
        fits.check_start("init_from", "runs/cats", cats, dogs)
    fits.check_start("init_from", "runs/cats", dataclasses.replace(cats, tokenizer=None), dogs)
    assert capsys.readouterr().out.startswith("init_from runs/cats has no tokenizer: its tokens")
    with pytest.raises(InputError, match="^init_from: got 'runs/cats'; is a language model"):
        fits.check_start("init_from", "runs/cats", cats, Network("cnn", 3, classes=("a",)))
