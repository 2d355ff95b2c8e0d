"""What goes out of a private run is noised, random, or the same whatever the records were.

A teacher is a function of its records and a public seed: whoever guesses a record can fit it again.
A digest of the teacher, or of the data, would then say whether the guess is right.
"""

import hashlib
import json
import os
import zlib

import jax
import numpy as np
import pytest

from distill_core import checkpoint, data, load_model, release, train
from distill_core.data.text.corpus import load_corpus
from distill_core.experiment import stages
from distill_core.runtime import parallel
from distill_core.training import inputs
from dpdfd import evaluate as conversion_evaluate
from dpdfd import train as conversion
from dpdfd.ensemble import training as ensemble
from dpdfd.fresh import Recipe
from nasty import train as nasty_train
from swingdistill import train as swing

PLAIN = {"model": "cnn", "model_kwargs": {"widths": (2,), "hidden": 4, "norm": "none"}}
RIDGE = {
    "model": "dpdfd.features:FeatureRidge",
    "model_kwargs": {"num_random": 8},
    "copies": 0,
}
CONVERT = {
    **PLAIN, "learning_rate": 0.05, "batch_size": 8, "num_steps": 4, "num_rounds": 2,
    "num_queries": 16, "save_every": 2, "log_every": 1, "delta": 1e-4, "epsilon": 5.0,
    "privacy_unit": "record_ensemble", "mechanism": "answers", "prior": {"strokes": 1.0},
    "generator": {"width": 2, "latent_size": 4, "norm": "none", "every": 0},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Eight cost more to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "choose_mode", lambda mode=None: mode or "jit")
        yield


def _save(path, changed_label):
    draw = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"x_{split}"] = draw.integers(0, 256, (96, 8, 8, 1)).astype(np.uint8)
        arrays[f"y_{split}"] = np.arange(96) % 3
    arrays["y_train"][5] = changed_label
    np.savez(path, **arrays)
    return f"npz:{path}"


def _urandom():
    """The operating system's bits, the same ones for every run."""
    count = iter(range(10**9))

    def urandom(size):
        found = b""
        while len(found) < size:
            found += hashlib.sha256(str(next(count)).encode()).digest()
        return found[:size]

    return urandom


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folders of two conversions, with all that is made of them; their records differ in one."""
    made = []
    for label in (0, 1):
        place = tmp_path_factory.mktemp("records")
        source = _save(place / "data.npz", label)
        fit = {"dataset": source, "num_teachers": 3, "learning_rate": 0.01, **RIDGE}
        ensemble.train_and_evaluate(fit, place / "private_teachers")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "urandom", _urandom())
            settings = {**CONVERT, "dataset": source, "teacher": str(place / "private_teachers")}
            run = stages.Run("student", 0, conversion.train_and_evaluate, settings, {})
            stages.Runner(place, data.load_dataset(source).fingerprint()).complete(run)
        student = stages.run_directory(place, "student", 0)
        conversion_evaluate.evaluate(
            student, out=place / "evaluated", export=place / "samples.npz",
            recipe=Recipe(num_samples=8, num_steps=2, batch_size=8),
        )  # fmt: skip
        for part in ("student", "generator"):
            release.release(student, place / f"released_{part}", part=part)
        made.append(place)
    return made


def _public(place, *names):
    """Files that others may see, by their names."""
    found = {}
    for name in names:
        for path in sorted(
            (place / name).rglob("*") if (place / name).is_dir() else [place / name]
        ):
            if path.is_file() and "private" not in path.relative_to(place).parts:
                found[str(path.relative_to(place))] = path
    return found


OF_PAIR = ("runs", "evaluated", "samples.npz", "released_student", "released_generator")


def _without_chance(value, place):
    """JSON without noised numbers, random names, the time that it took, and where it lies."""
    if isinstance(value, dict):
        chance = ("id", "files", "checksum", "seconds")
        return {k: _without_chance(v, place) for k, v in value.items() if k not in chance}
    if isinstance(value, list):
        return [_without_chance(each, place) for each in value]
    if isinstance(value, str):
        return value.replace(str(place), "HERE")
    return "a number" if isinstance(value, float) else value


def test_the_teachers_differ(pair):
    weights = [checkpoint.digest(load_model(p / "private_teachers").variables) for p in pair]
    assert weights[0] != weights[1]


def test_public_files_of_two_conversions_differ_in_noised_numbers_alone(pair):
    one, other = (_public(place, *OF_PAIR) for place in pair)
    texts = [n for n in one if n.endswith((".json", ".jsonl")) and "/checkpoints/" not in n]
    texts += [n for n in one if n.endswith("metadata.json")]
    assert len(texts) > 6 and set(texts) <= set(other)
    for name in texts:
        if "samples_per_class" in one[name].read_text():
            continue  # of the generator's samples, labelled by the student
        found = [
            [_without_chance(json.loads(line), place) for line in _documents(files[name])]
            for place, files in zip(pair, (one, other), strict=True)
        ]
        assert found[0] == found[1], name
    for name in ("released_student/card.json", "released_generator/card.json"):
        assert one[name].read_bytes() == other[name].read_bytes()
    exported = [np.load(files["samples.npz"]) for files in (one, other)]
    for name, array in exported[0].items():
        assert array.shape == exported[1][name].shape
        if array.dtype.kind == "U":
            np.testing.assert_array_equal(array, exported[1][name])


def _documents(path):
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def _checksums(*contents: bytes):
    """As digests are written down: SHA-256, and CRC in hexadecimal and decimal."""
    for content in contents:
        crc = zlib.crc32(content)
        yield from (hashlib.sha256(content).hexdigest(), f"{crc:08x}", str(crc))


def _of_images(source):
    """What is forbidden of a data set."""
    dataset = data.load_dataset(source)
    yield dataset.fingerprint()
    for split in (dataset.train, dataset.test):
        for labels in (split.labels, split.labels.astype(np.int64)):
            yield from _checksums(labels.tobytes(), split.images.tobytes() + labels.tobytes())
        yield from _checksums(split.images.tobytes())


def _of_model(path):
    """What is forbidden of a private teacher."""
    loaded = load_model(path)
    yield from (checkpoint.digest(loaded.variables), inputs.of_model(loaded))
    yield checkpoint.digest({"model": {"params": loaded.variables["params"], "model_state": {}}})
    for leaf in jax.tree.leaves(loaded.variables):
        yield from _checksums(np.asarray(leaf).tobytes())


def _assert_absent(forbidden, files):
    forbidden = set(forbidden)
    assert len(forbidden) > 3 and len(files) > 3
    for name, path in files.items():
        contents = [path.read_bytes()]
        if path.suffix == ".npz":
            contents += [array.tobytes() for array in np.load(path).values()]
            contents += [str(a).encode() for a in np.load(path).values() if a.dtype.kind == "U"]
        for content in contents:
            assert not [each for each in forbidden if each.encode() in content], name
            assert not [each for each in forbidden if len(each) == 64
                        and bytes.fromhex(each) in content], name  # fmt: skip


def test_a_conversion_holds_no_digest_of_records_or_teachers(pair):
    for place in pair:
        source = f"npz:{place / 'data.npz'}"
        forbidden = {*_of_images(source), *_of_model(place / "private_teachers")}
        _assert_absent(forbidden, _public(place, *OF_PAIR))
        remembered = stages.run_directory(place, "student", 0) / "private" / "inputs.json"
        assert forbidden & set(json.loads(remembered.read_text()).values())  # they are found


def test_a_dp_sgd_run_holds_no_digest_of_records(tmp_path):
    source = _save(tmp_path / "data.npz", 0)
    settings = {
        **PLAIN, "dataset": source, "learning_rate": 0.05, "batch_size": 8, "num_steps": 2,
        "dp": {"epsilon": 5.0, "delta": 1e-3, "norm": 0.5},
    }  # fmt: skip
    run = stages.Run("teacher", 0, train.train_and_evaluate, settings, {})
    stages.Runner(tmp_path, data.load_dataset(source).fingerprint()).complete(run)
    card = release.release(stages.run_directory(tmp_path, "teacher", 0), tmp_path / "out")
    assert card["privacy"]["epsilon"] == pytest.approx(5.0, rel=1e-2)
    _assert_absent(_of_images(source), _public(tmp_path, "runs", "out"))


def test_a_swing_student_holds_no_digest_of_lines_or_teacher(tmp_path):
    (tmp_path / "text").mkdir()
    for split, count in (("train", 40), ("valid", 8), ("test", 8)):
        lines = [f"the {k % 7} cats sat on {k % 3} mats" for k in range(count)]
        (tmp_path / "text" / f"{split}.txt").write_text("\n".join(lines))
    source = f"text:{tmp_path / 'text'}"
    settings = {
        "dataset": source, "length": 8, "model": "transformer", "optimizer": "adam",
        "model_kwargs": {"width": 8, "num_layers": 1, "num_heads": 2}, "learning_rate": 0.01,
        "batch_size": 8, "num_steps": 2,
    }  # fmt: skip
    swing.train_and_evaluate(settings, tmp_path / "teacher")
    learn = {**settings, "teacher": str(tmp_path / "teacher"), "scorers": ("rules",)}
    run = stages.Run("student", 0, swing.train_and_evaluate, learn, {})
    stages.Runner(tmp_path, load_corpus(source).fingerprint()).complete(run)
    student = stages.run_directory(tmp_path, "student", 0)
    release.release(student, tmp_path / "out", with_private_tokenizer=True)
    raw = [(tmp_path / "text" / f"{split}.txt").read_bytes() for split in ("train", "valid")]
    forbidden = {load_corpus(source).fingerprint(), *_checksums(*raw)}
    forbidden |= {*_of_model(tmp_path / "teacher")}
    _assert_absent(forbidden, _public(tmp_path, "runs", "out"))


@pytest.mark.parametrize("defence", ["nasty", "head", "cmim"])
def test_a_defended_teachers_release_is_that_of_a_plain_one(defence, tmp_path):
    """Byte for byte, where the weights are the same."""
    settings = {**PLAIN, "dataset": "digits", "learning_rate": 0.05, "batch_size": 8}
    settings["num_steps"] = 1
    train.train_and_evaluate(settings, tmp_path / "plain")
    plain, own = str(tmp_path / "plain"), {"temperature": 4.0, "omega": 0.2, "adversary": ""}
    own = {**own, "adversary": plain, "check_nastiness": False}
    if defence == "head":
        own |= {"train_only_head": True, "init_from": plain}
    if defence == "cmim":
        own = {"defence": "cmim"}
    nasty_train.train_and_evaluate({**settings, **own}, tmp_path / "nasty")
    loaded, about = load_model(tmp_path / "nasty"), checkpoint.find(tmp_path / "plain")[1]
    parts = {"model": {"params": loaded.variables["params"], "model_state": {}}}
    state = {"step": np.int32(0)}
    checkpoint.save(tmp_path / "as_plain", 0, parts=parts, train=state, metadata=about).wait()
    for name in ("nasty", "as_plain"):
        release.release(tmp_path / name, tmp_path / f"{name}_out")
    for path in (tmp_path / "nasty_out").iterdir():
        content = path.read_bytes()
        assert content == (tmp_path / "as_plain_out" / path.name).read_bytes()
        for word in (b"nasty", b"adversar", b"cmim", b"omega", b"distill"):
            assert word not in content.lower(), (word, path.name)
