"""What a run reads is known by content: no binary resumes on something else; it says on what."""

import shutil

import numpy as np
import pytest

from distill_core import distill, evaluate, train
from distill_core.config import InputError
from distill_core.runtime import parallel
from dpdfd import train as conversion
from dpdfd.ensemble import training as ensemble
from nasty import attack
from nasty import train as nasty_train
from swingdistill import train as swing

NETWORK = {"model": "cnn", "model_kwargs": {"widths": (2,), "hidden": 4, "norm": "none"}}
SKEPTICAL = {"model": "nasty.attacks.skeptical:SkepticalCNN", "model_kwargs": {}}
RIDGE = {
    "model": "dpdfd.features:FeatureRidge",
    "model_kwargs": {"num_random": 8},
    "copies": 0,
}
TEXT = {
    "length": 8, "model": "transformer", "optimizer": "adam",
    "model_kwargs": {"width": 8, "num_layers": 1, "num_heads": 2},
}  # fmt: skip
NASTY = {"temperature": 4.0, "omega": 0.2, "check_nastiness": False}
GENERATOR = {"width": 2, "latent_size": 4, "norm": "none"}
# Name -> binary, its settings, and the fields that name what it learns from.
IMAGES = {
    "train": (train, {"num_validation": 8}, ()),
    "dp": (train, {"dp": {"epsilon": 5.0, "delta": 1e-3, "norm": 0.5}}, ()),
    "distill": (distill, {}, ("teacher",)),
    "stored": (distill, {"teacher": "npz"}, ("teacher",)),
    "nasty": (nasty_train, NASTY, ("adversary",)),
    "head": (nasty_train, {**NASTY, "train_only_head": True}, ("adversary", "init_from")),
    "cmim": (nasty_train, {"defence": "cmim"}, ()),
    "averager": (attack, {"attack": "averager"}, ("teacher",)),
    "scm": (attack, {"attack": "scm", "num_intermediates": 1}, ("teacher",)),
    "skeptical": (attack, {"attack": "skeptical", **SKEPTICAL}, ("teacher",)),
    "ensemble": (ensemble, {**RIDGE, "num_teachers": 2}, ()),
    "convert": (conversion, {"privacy_unit": "none", "generator": GENERATOR}, ("teacher",)),
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Eight cost more to compile."""
    monkeypatch.setattr(parallel, "choose_mode", lambda mode=None: mode or "jit")


def _save(path, *, size=8, num=48, classes=3, label=None, test_pixel=None):
    draw = np.random.default_rng(0)
    arrays = {"classes": np.array([f"class {k}" for k in range(classes)])}
    for split in ("train", "test"):
        arrays[f"x_{split}"] = draw.integers(0, 256, (num, size, size, 1)).astype(np.uint8)
        arrays[f"y_{split}"] = np.arange(num) % classes
    if label is not None:
        arrays["y_train"][0] = label
    if test_pixel is not None:
        arrays["x_test"][0, 0, 0, 0] = test_pixel
    np.savez(path, **arrays)


def _refused(run, workdir, field):
    """That it is, in one line on this field, and leaves all as it is."""
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    with pytest.raises(InputError) as error:
        run()
    assert (error.value.field, "the data changed" in str(error.value)) == (field, True), error.value
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


@pytest.fixture
def source(tmp_path):
    """A data set of images."""
    _save(tmp_path / "data.npz")
    return f"npz:{tmp_path / 'data.npz'}"


def _settings(source, **changes):
    common = {"learning_rate": 0.05, "batch_size": 8, "num_steps": 1, "dataset": source}
    return {**common, **NETWORK, **changes}


@pytest.mark.parametrize("name", IMAGES)
def test_images_and_teachers(name, source, tmp_path):
    binary, own, fields = IMAGES[name]
    if fields:
        for folder, seed in (("teacher", 0), ("other", 1)):
            train.train_and_evaluate(_settings(source, seed=seed), tmp_path / folder)
            path = tmp_path / f"{folder}.npz"
            evaluate.evaluate_checkpoint(tmp_path / folder, split="train", logits_out=path)
    where = f"npz:{tmp_path / 'teacher.npz'}" if name == "stored" else str(tmp_path / "teacher")
    settings = _settings(source, **{**own, **dict.fromkeys(fields, where)})
    workdir = tmp_path / "run"
    result = binary.train_and_evaluate(settings, workdir)

    def again():
        return binary.train_and_evaluate(settings, workdir)

    assert again()["id"] == result["id"]
    for change in ({"label": 1}, {"test_pixel": 3}, {"size": 10}, {"num": 24}, {"classes": 4}):
        _save(tmp_path / "data.npz", **change)
        _refused(again, workdir, "dataset")
    _save(tmp_path / "data.npz")
    assert again()["id"] == result["id"]
    if fields:
        for path in (tmp_path / "teacher", tmp_path / "teacher.npz"):
            shutil.move(path, tmp_path / f"old_{path.name}")
            shutil.move(tmp_path / path.name.replace("teacher", "other"), path)
        _refused(again, workdir, fields[0])


def test_masked_records(source, tmp_path):
    np.save(tmp_path / "masked.npy", np.array([1, 2]))
    dp = {"epsilon": 5.0, "delta": 1e-3, "norm": 0.5, "masked": str(tmp_path / "masked.npy")}
    settings = _settings(source, dp=dp)
    train.train_and_evaluate(settings, tmp_path / "run")
    np.save(tmp_path / "masked.npy", np.array([1, 3]))
    _refused(lambda: train.train_and_evaluate(settings, tmp_path / "run"), tmp_path / "run", "dp")


def _lines(folder, word="one"):
    folder.mkdir(exist_ok=True)
    for split, count in (("train", 40), ("valid", 8), ("test", 8)):
        lines = [f"the {k % 7} cats sat on {k % 3} mats" for k in range(count)]
        lines[3] = f"the {word} dog"
        (folder / f"{split}.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("binary", [train, swing])
def test_text_and_tokenizers(binary, tmp_path):
    _lines(tmp_path / "text")
    settings = _settings(f"text:{tmp_path / 'text'}", **TEXT)
    workdir = tmp_path / "run"
    if binary is swing:
        swing.train_and_evaluate(settings, tmp_path / "teacher")
        settings |= {"teacher": str(tmp_path / "teacher"), "scorers": ("rules",)}
    result = binary.train_and_evaluate(settings, workdir)

    def again():
        return binary.train_and_evaluate(settings, workdir)

    assert again()["id"] == result["id"]
    for word in ("two", "brand new"):
        _lines(tmp_path / "text", word)
        _refused(again, workdir, "dataset")
    _lines(tmp_path / "text")
    if binary is swing:
        shutil.rmtree(tmp_path / "teacher")
        swing.train_and_evaluate({**settings, "teacher": None, "seed": 1}, tmp_path / "teacher")
        _refused(again, workdir, "teacher")


def test_a_tokenizer_in_a_file(tmp_path):
    from distill_core.data.text import tokenizers

    def write(*texts):
        made = tokenizers.train_words(texts, vocab_size=40)
        (tmp_path / "tokenizer.json").write_text(made.to_json())

    _lines(tmp_path / "text")
    write("the cats sat on mats")
    tokenizer = {"tokenizer": str(tmp_path / "tokenizer.json")}
    settings = _settings(f"text:{tmp_path / 'text'}", **TEXT, **tokenizer)
    train.train_and_evaluate(settings, tmp_path / "run")
    write("the dogs sat on mats")
    _refused(
        lambda: train.train_and_evaluate(settings, tmp_path / "run"), tmp_path / "run", "tokenizer"
    )
