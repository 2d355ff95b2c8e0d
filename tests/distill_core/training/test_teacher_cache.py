"""A cache holds what its teacher says, goes on where it was stopped, and serves no other text."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from distill_core import checkpoint, coarse, evaluate, train
from distill_core.config import InputError
from distill_core.data import columns
from distill_core.data.text import corpus, tasks
from distill_core.runtime import cli
from distill_core.training import teacher_cache

K = 5
WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "big", "old")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A text, and two language models of it."""
    place, rng = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    (place / "text").mkdir()
    for split, num in (("train", 300), ("valid", 5), ("test", 5)):
        lines = [" ".join(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(num)]
        (place / "text" / f"{split}.txt").write_text("\n".join(lines))
    for name, seed in (("run", 1), ("other", 2)):
        settings = {
            "dataset": f"text:{place}/text",
            "length": 16,
            "model": "transformer",
            "model_kwargs": {"width": 16, "num_layers": 1, "num_heads": 2},
            "learning_rate": 0.1,
            "batch_size": 16,
            "num_steps": 2,
            "seed": seed,
        }
        train.train_and_evaluate(settings, place / name)
    return place


def write(place, folder, **changes):
    return evaluate.write_teacher_cache(
        place / "run", folder, **{"top_k": K, "dtype": "float32", **changes}
    )


def rows_of(place, length=16):
    tokenizer = checkpoint.load_model(place / "run").tokenizer
    lines = corpus.load_corpus(f"text:{place}/text").train
    encoded = [tasks.encode(line, tokenizer, "language") for line in lines]
    return tasks.to_rows(encoded, tokenizer, length)[0]


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(columns, "_SHARD_BYTES", 16 * 4 * K * 10)  # 10 rows of log-probabilities


def contents(folder):
    found = teacher_cache.read("teacher", f"cache:{folder}")
    return {name: each[:] for name, each in found.columns.items()}


@pytest.mark.parametrize("dtype", teacher_cache.DTYPES)
def test_it_holds_the_likeliest_classes_and_the_rest(place, tmp_path, dtype, capsys):
    manifest = write(place, tmp_path / "cache", dtype=dtype)
    rows, loaded = rows_of(place), checkpoint.load_model(place / "run")
    count = rows["tokens"].size
    module = loaded.network.module()
    logits = module.apply(loaded.variables, rows["tokens"], rows["segments"])
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    found = contents(tmp_path / "cache")
    order = np.argsort(-log_probs, axis=-1)
    best = np.take_along_axis(log_probs, order[..., :K], -1)
    rest = np.take_along_axis(log_probs, order[..., K:], -1)
    assert found["classes"].dtype == np.uint16 and found["log_probs"].dtype == dtype
    np.testing.assert_allclose(found["log_probs"], best, atol=4e-3 if dtype == "float16" else 1e-4)
    at = np.take_along_axis(log_probs, found["classes"].astype(int), -1)
    np.testing.assert_allclose(at, best, atol=1e-4)
    for i, heat in enumerate(coarse.TEMPERATURES):
        exact = np.log(np.exp(rest / heat).sum(-1))
        np.testing.assert_allclose(found["tails"][..., i], exact, atol=1e-4)
    mean = np.sum(np.exp(rest) * rest, -1) / np.exp(rest).sum(-1)
    np.testing.assert_allclose(found["tails"][..., -1], mean, atol=1e-4)
    counts = np.stack([(found["drawn"] == v).sum(-1) for v in range(log_probs.shape[-1])], -1)
    p = np.exp(log_probs)
    np.put_along_axis(p, order[..., :K], 0.0, -1)
    expected = coarse.DRAWS * p / p.sum(-1, keepdims=True)
    assert np.abs(counts - expected).max() < 1.01, "at equal distances of the cumulated mass"
    np.testing.assert_allclose(counts.mean((0, 1)), expected.mean((0, 1)), atol=0.05)
    assert manifest.bytes_per_token == K * (2 + np.dtype(dtype).itemsize) + 16 + 32
    printed = f"{count:,} tokens, {K} classes each in {dtype} and the tail"
    assert printed in (out := capsys.readouterr().out)
    assert f"{manifest.bytes_per_token:g} bytes per token" in out


def test_a_cache_that_was_killed_goes_on_and_is_the_same(
    place, tmp_path, small_shards, monkeypatch, capsys
):
    write(place, tmp_path / "whole")
    append, calls = columns.Writer.append, []

    def dies(self, rows):
        calls.append(self.count)
        if len(calls) == 10:  # the second column of the third batch
            raise KeyboardInterrupt
        append(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(columns.Writer, "append", dies)
        with pytest.raises(KeyboardInterrupt):
            write(place, tmp_path / "cache")
    with pytest.raises(InputError, match="unfinished"):
        teacher_cache.read("teacher", f"cache:{tmp_path}/cache")
    asked, answers = [], teacher_cache._answers

    def counted(*args):
        asked.append(args)
        return answers(*args)

    monkeypatch.setattr(teacher_cache, "_answers", counted)
    write(place, tmp_path / "cache")
    count = len(rows_of(place)["tokens"])
    assert f"goes on after 60 of {count} rows" in capsys.readouterr().out
    batches = -(-(count - 60) // 32)
    assert len(asked) == batches, "whole shards of every column are kept"
    first, second = contents(tmp_path / "whole"), contents(tmp_path / "cache")
    for name, each in first.items():
        np.testing.assert_allclose(second[name], each, atol=1e-5)
    write(place, tmp_path / "cache")
    assert len(asked) == batches
    assert "is complete already" in capsys.readouterr().out


def test_the_manifest_says_of_what_it_is(place, tmp_path):
    write(place, tmp_path / "cache")
    known = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    theirs = checkpoint.load_model(place / "run")
    assert (known["k"], known["dtype"], known["complete"]) == (K, "float32", True)
    assert (known["id"], known["ledger"]) == (theirs.metadata["id"], theirs.metadata["ledger"])
    assert known["settings"] == {"dataset": f"text:{place}/text", "length": 16}
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    stands = teacher_cache.read("teacher", f"cache:{tmp_path}/cache").model
    assert stands.network == theirs.network and stands.metadata["id"] == theirs.metadata["id"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checkpoint": "other"}, "holds a cache of another t"),
        ({"length": 8}, "holds a cache of other rows of text"),
        ({"top_k": 3}, "holds a cache of top_k 5"),
        ({"dtype": "float16"}, "holds a cache of cache_dtype float32"),
    ],
    ids=str,
)
def test_another_cache_is_not_gone_on_with(place, tmp_path, change, words):
    write(place, tmp_path / "cache")
    name = change.pop("checkpoint", "run")
    given = {"top_k": K, "dtype": "float32", **change}
    with pytest.raises(InputError, match=words) as error:
        evaluate.write_teacher_cache(place / name, tmp_path / "cache", **given)
    assert error.value.field == "teacher_cache"


def damaged(folder):
    (folder / "tails" / "column.json").unlink()


def unreadable(folder):
    (folder / "manifest.json").write_text("{")


def begun(folder):
    known = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**known, "complete": False}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (None, "has no cache"),
        (begun, "is unfinished: the command that wrote it, given again, goes on"),
        (damaged, "is damaged"),
        (unreadable, "cannot be read"),
    ],
)
def test_what_is_no_whole_cache_is_refused(place, tmp_path, spoil, words):
    if spoil is not None:
        write(place, tmp_path / "cache")
        spoil(tmp_path / "cache")
    with pytest.raises(InputError, match=words):
        teacher_cache.read("teacher", f"cache:{tmp_path}/cache")


def test_rows_of_another_text_are_refused_by_the_setting_that_differs(place, tmp_path):
    write(place, tmp_path / "cache")
    cache = teacher_cache.read("teacher", f"cache:{tmp_path}/cache")
    given = {"dataset": f"text:{place}/text", "length": 16}
    rows = rows_of(place)
    teacher_cache.check_rows(cache, "teacher", "cache:x", rows, given)
    with pytest.raises(InputError, match="must be 16, as when") as error:
        teacher_cache.check_rows(
            cache, "teacher", "cache:x", rows_of(place, 8), {**given, "length": 8}
        )
    assert error.value.field == "length"
    changed = {**rows, "tokens": np.roll(rows["tokens"], 1)}
    with pytest.raises(InputError, match="other rows of text") as error:
        teacher_cache.check_rows(cache, "teacher", "cache:x", changed, given)
    assert error.value.field == "teacher"


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--top_k=0"], "top_k"),
        (["--top_k=999"], "top_k"),
        (["--length=1"], "length"),
        (["--length=17"], "length"),
        (["--cache_dtype=int8"], "cache_dtype"),
        (["--dataset=text:nowhere"], "dataset"),
        (["--logits_out=x.npz"], "logits_out"),
    ],
    ids=str,
)
def test_what_cannot_be_written_costs_one_line(place, tmp_path, capsys, flags, field):
    given = [f"--checkpoint={place}/run", f"--teacher_cache={tmp_path}/cache", *flags]
    assert cli.exit_code(evaluate.main, given) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {field}:") and said.count("\n") == 1
    assert not (tmp_path / "cache").exists()


def test_a_text_with_canaries_is_left_to_swing(place, tmp_path, monkeypatch):
    loaded = checkpoint.load_model(place / "run")
    config = {**loaded.metadata["config"], "canaries_per_level": 2}
    changed = dataclasses.replace(loaded, metadata={**loaded.metadata, "config": config})
    monkeypatch.setattr(checkpoint, "load_model", lambda *args, **kwargs: changed)
    with pytest.raises(InputError, match=r"canaries_per_level: take python -m swingdistill\.cache"):
        write(place, tmp_path / "cache")
