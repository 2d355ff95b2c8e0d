"""Training on text by labels alone; privately a record is a line, with a row of its own."""

import json
import random

import numpy as np
import pytest

from distill_core import checkpoint, load_model, train
from distill_core.config import InputError
from distill_core.data.text import tasks as text_tasks
from distill_core.data.text import tokenizers
from distill_core.data.text.corpus import Example
from distill_core.privacy import ledger
from distill_core.training import language, plain_text

WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "big", "old")
LENGTH = 6
DP = {"epsilon": 8.0, "delta": 1e-3, "norm": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three files of text, and a tokenizer of other text."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    for split, num in {"train": 60, "valid": 8, "test": 8}.items():
        lines = [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) + " ." for _ in range(num)]
        (folder / f"{split}.txt").write_text("\n".join(lines))
    public = tokenizers.train_words([" ".join(WORDS) + " ."], vocab_size=40)
    (folder / "tokenizer.json").write_text(public.to_json())
    return folder


@pytest.fixture(scope="module")
def fit(folder):
    """`fit(workdir, …)` trains on the text."""

    def fit(workdir, **changes):
        kwargs = {"width": 16, "num_layers": 1, "num_heads": 2}
        settings = {"dataset": f"text:{folder}", "length": LENGTH, "num_steps": 4, "log_every": 1}
        settings |= {"model": "transformer", "model_kwargs": kwargs, "batch_size": 8}
        settings |= {"optimizer": "adam", "learning_rate": 0.02, "eval_batch_size": 8}
        return train.train_and_evaluate({**settings, **changes}, workdir)

    return fit


def test_every_row_is_one_line_and_what_does_not_fit_is_left_out():
    tokenizer = tokenizers.train_words(["a b c d e f g"], vocab_size=30)
    texts = ("a b", "c d e f g a b c", "d", "a b c d e")
    lines = [text_tasks.encode(Example(text), tokenizer, "language") for text in texts]
    arrays, fill = text_tasks.line_rows(lines, tokenizer, LENGTH)
    assert {name: array.shape for name, array in arrays.items()} == dict.fromkeys(
        ("tokens", "labels", "segments", "weights"), (4, LENGTH)
    )
    packed, _ = text_tasks.to_rows(lines[1:2], tokenizer, LENGTH)
    for name in ("tokens", "labels"):  # the line that is too long: the first row of it
        np.testing.assert_array_equal(arrays[name][1], packed[name][0])
    for row, text in ((0, "a b"), (2, "d"), (3, "a b c d e")):
        ids = tokenizer.encode(text)
        n = len(ids) + 1
        np.testing.assert_array_equal(arrays["tokens"][row, :n], [tokenizer.bos_id, *ids])
        np.testing.assert_array_equal(arrays["labels"][row, :n], [*ids, tokenizer.eos_id])
        assert (arrays["segments"][row, :n] == row).all() and (
            arrays["segments"][row, n:] == -1
        ).all()
        np.testing.assert_array_equal(arrays["weights"][row], np.arange(LENGTH) < n)
    filled = fill([np.arange(len(line.weights)) for line in lines])
    np.testing.assert_array_equal(filled[1], np.arange(LENGTH))
    np.testing.assert_array_equal(filled[2], [0, 1, 0, 0, 0, 0])


@pytest.mark.parametrize(
    "segments",
    [[[0, 0, 1, -1], [2, 2, 2, 2]], [[0, 0, 0, 0], [0, 0, 1, -1]], [[3, 3, -1, -1], [3, 3, 3, 3]]],
)
def test_rows_that_are_not_lines_are_refused_where_lines_are_claimed(segments):
    with pytest.raises(ValueError, match="^rows: got several lines in a row, or a line in several"):
        language._check_lines(np.array(segments))


def test_plain_training_learns_and_resumes(fit, tmp_path):
    result = fit(tmp_path / "run")
    assert set(result) == {"perplexity", "accuracy", "id"}
    assert fit(tmp_path / "more", num_steps=30)["perplexity"] < 0.9 * result["perplexity"]
    fit(tmp_path / "cut", num_steps=2)
    assert fit(tmp_path / "cut")["perplexity"] == result["perplexity"]
    ends = [load_model(tmp_path / name).variables for name in ("cut", "run")]
    assert checkpoint.digest(ends[0]) == checkpoint.digest(ends[1])
    assert load_model(tmp_path / "run").tokenizer is not None


def test_the_best_validation_step_counts_where_the_run_says_so(fit, tmp_path):
    # With a rate this high later steps are worse.
    given = {"num_steps": 12, "eval_every": 2, "save_every": 4, "learning_rate": 0.3}
    last, best = (fit(tmp_path / use, use=use, **given) for use in ("last", "best"))
    rows = map(json.loads, (tmp_path / "best" / "metrics.jsonl").read_text().splitlines())
    losses = {row["step"]: row["cross_entropy"] for row in rows if row["split"] == "validation"}
    chosen = min(losses, key=losses.__getitem__)
    assert chosen < 12 and load_model(tmp_path / "best").metadata["step"] == chosen
    assert load_model(tmp_path / "last").metadata["step"] == 12
    assert load_model(tmp_path / "best", step=12).metadata["step"] == 12
    assert load_model(tmp_path / "best" / "checkpoints" / "12").metadata["step"] == 12
    assert load_model(tmp_path / "best").metadata["id"] == best["id"] != last["id"]


def test_json_lines_train_as_the_same_text_does_and_their_spans_are_not_read(fit, folder, tmp_path):
    for split in ("train", "valid", "test"):
        texts = (folder / f"{split}.txt").read_text().splitlines()
        items = [json.dumps({"text": text, "spans": [[0, 2]]}) for text in texts]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(items))
    found = fit(tmp_path / "json", dataset=f"jsonl:{tmp_path}")
    assert found["perplexity"] == fit(tmp_path / "text")["perplexity"]


def test_a_checkpoint_says_what_its_vocabulary_was_made_from(fit, folder, tmp_path):
    for name, changes, told in (
        ("own", {}, "training text"),
        (
            "public",
            {"public_text": True, "tokenizer": "byte_pairs", "vocab_size": 300},
            "public text",
        ),
        ("file", {"tokenizer": str(folder / "tokenizer.json")}, "elsewhere"),
        ("from own", {"tokenizer": str(tmp_path / "own")}, "training text"),
    ):
        fit(tmp_path / name, num_steps=1, **changes)
        assert load_model(tmp_path / name).network.tokenizer_from == told
    with pytest.raises(InputError, match="^tokenizer: got .*; with dp must not be made from train"):
        fit(tmp_path / "private", dp=DP, tokenizer=str(tmp_path / "own"))


def test_private_training_claims_for_a_line(fit, folder, tmp_path):
    result = fit(tmp_path / "run", dp=DP, tokenizer=str(folder / "tokenizer.json"))
    assert 7.9 < result["epsilon"] <= 8.0
    assert (result["privacy_unit"], result["adjacency"]) == ("record", "zero-out")
    metadata = checkpoint.find(tmp_path / "run")[1]
    (entry,) = ledger.charged(metadata["ledger"])
    assert (entry.count, entry.sampling_rate) == (4, 8 / 60)  # 60 lines
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {frozenset(row) for row in rows if row["split"] == "train"} == {
        frozenset({"step", "split", "grad_norm"})
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dp": DP}, "tokenizer: got 'words'; with dp must be a PATH: a vocabulary made of pr"),
        ({"crop_padding": 2}, "crop_padding: got 2; belongs to images, not to text:"),
        ({"num_validation": 2}, "num_validation: got 2; belongs to images, not to text:"),
        ({"tokenizer": "nowhere"}, "tokenizer: got 'nowhere'; does not exist"),
        ({"dataset": "digits"}, "length: got 6; belongs to text, not to digits"),
    ],
)
def test_what_does_not_fit_is_refused(fit, tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        fit(tmp_path / "run", **changes)
    assert str(error.value).startswith(message)
    assert not (tmp_path / "run").exists()


def test_text_that_stays_in_files_is_learnt_as_that_in_memory(fit, folder, tmp_path, monkeypatch):
    found = {}
    for memory in (2, 0):
        given = {"text_memory": memory, "text_cache": str(tmp_path / "cache")}
        result = fit(tmp_path / str(memory), **given)
        variables = load_model(tmp_path / str(memory)).variables
        found[memory] = {**result, "id": checkpoint.digest(variables)}
    assert found[0] == found[2]
    assert len(list((tmp_path / "cache").glob("*/private/rows"))) == 3
    with monkeypatch.context() as patch:
        for name in ("tasks.encode", "tokenizers.train_words", "files._digest"):
            patch.setattr(f"distill_core.data.text.{name}", lambda *_, **__: pytest.fail("again"))
        assert fit(tmp_path / "again", **given)["perplexity"] == found[2]["perplexity"]
    monkeypatch.setattr(plain_text, "_HELD", 0)
    for field, value in (("dp", DP), ("data_on_device", True)):
        with pytest.raises(InputError, match=f"^{field}: .*text_memory"):
            fit(tmp_path / "run", **given, **{field: value}, tokenizer=f"{folder}/tokenizer.json")
