"""Text that stays in files gives, bit by bit, the run of the same text in memory."""

import json
import shutil

import numpy as np
import pytest

from distill_core import checkpoint
from distill_core.config import InputError
from distill_core.training import plain_text
from swingdistill import evaluate, private_text, targets, train
from swingdistill.scorers import scoring

CASES = {
    "language": {},
    "all scorers": {"scorers": ("rules", "spans", "oracle", "divergence", "differential")},
    "surprisal": {"scorers": ("surprisal",), "half": "second", "num_train": 20},
    "mask": {"scorers": ("spans", "rules"), "variant": "mask"},
    "decoys": {"scorers": ("rules",), "transfer_set": "decoy", "noise_everywhere": True},
    "generation": {"task": "generation", "scorers": ("rules", "oracle"), "length": 12},
    "classification": {"task": "classification", "scorers": ("spans", "divergence")},
}


@pytest.fixture(scope="module")
def corpus(folder, tmp_path_factory):
    """Labelled lines with private spans, the training text in two files of a directory."""
    place = tmp_path_factory.mktemp("corpus")
    (place / "train").mkdir()
    for split in ("train", "valid", "test"):
        items = []
        for i, line in enumerate((folder / f"{split}.txt").read_text().splitlines()):
            line += f" 555-01{i:02d}" if i % 5 == 0 else ""
            item = {"text": line * (6 if i == 3 else 1), "label": i % 3}
            items.append(
                json.dumps({**item, "spans": [[2, 6, 0.75, "name"]] if i % 4 == 0 else []})
            )
        middle = len(items) // 2
        if split == "train":
            (place / "train" / "a.jsonl").write_text("\n".join(items[:middle]))
            (place / "train" / "b.jsonl").write_text("\n".join(items[middle:]))
        else:
            (place / f"{split}.jsonl").write_text("\n".join(items))
    return place


@pytest.fixture
def made(values, corpus, tmp_path, teacher, reference):
    """`made(memory, …)`: rows with scores and noise, and the rows of the test text."""

    def made(memory, **changes):
        hp = values(
            dataset=f"jsonl:{corpus}",
            teacher=teacher,
            reference=reference,
            text_cache=str(tmp_path / "cache"),
            text_memory=memory,
            quantiles=(0.25, 0.75),
            **changes,
        )
        models = train.load_models(hp)
        tokenizer, texts, models, _ = train.load_text(hp, models)
        text = private_text.to_rows(hp, texts.train, tokenizer)
        public = private_text.to_rows(hp, texts.validation, tokenizer, of="validation")
        scores = train.score(hp, hp.scorers, text, public, models)
        rows, _ = targets.with_noise(hp, text.rows, scores)
        judged = evaluate.test_rows(hp, texts.test, tokenizer)
        return text, rows, judged, evaluate.recall_of_rules(hp, texts.test, tokenizer, judged)

    return made


@pytest.mark.parametrize("case", CASES)
def test_rows_scores_noise_and_test_text_are_the_same(case, made, monkeypatch, capsys):
    monkeypatch.setattr("distill_core.data.text.tasks._CHUNK", 5 * 16)
    monkeypatch.setattr("distill_core.data.columns._SHARD_BYTES", 3000)
    whole, streamed = made(64, **CASES[case]), made(0, **CASES[case])
    assert (whole[0].folder is None, streamed[0].folder is None) == (True, False)
    for ours, theirs in zip(whole[1:3], streamed[1:3], strict=True):
        assert list(ours) == list(theirs)
        for name, array in ours.items():
            assert not isinstance(theirs[name], np.ndarray)
            np.testing.assert_array_equal(theirs[name][:], array, err_msg=name)
            assert theirs[name].shape == array.shape and theirs[name][:].dtype == array.dtype
    assert whole[3] == streamed[3]
    said = [line for line in capsys.readouterr().out.splitlines() if "tokens found" in line]
    assert said[: len(said) // 2] == said[len(said) // 2 :]


@pytest.fixture
def given(settings, corpus, tmp_path, teacher, reference):
    """`given(…)`: settings of a Swing run whose text stays in its files."""
    shutil.copytree(corpus, tmp_path / "text")

    def given(**changes):
        base = settings(
            dataset=f"jsonl:{tmp_path}/text",
            teacher=teacher,
            reference=reference,
            noise_seed=0,
            text_memory=0,
            text_cache=str(tmp_path / "cache"),
        )
        return {**base, **changes}

    return given


def test_a_run_learns_the_same_from_memory_and_from_the_cache(given, tmp_path, monkeypatch):
    runs = {}
    for memory in (64, 0):
        result = train.train_and_evaluate(given(text_memory=memory), tmp_path / str(memory))
        loaded = checkpoint.load_model(tmp_path / str(memory))
        runs[memory] = {k: v for k, v in result.items() if k != "id"}, loaded.variables
    assert runs[0][0] == runs[64][0]
    assert checkpoint.digest(runs[0][1]) == checkpoint.digest(runs[64][1])

    def fail(*_):
        pytest.fail("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "_in_rows", fail)
        patch.setattr(scoring.recognisers, "find", fail)
        patch.setattr("distill_core.data.text.tasks.encode", fail)
        patch.setattr("distill_core.data.text.tokenizers.train_words", fail)
        again = train.train_and_evaluate(given(), tmp_path / "again")
    assert {k: v for k, v in again.items() if k != "id"} == runs[0][0]
    found = evaluate.evaluate_checkpoint(tmp_path / "again", num_samples=20)
    assert found["perplexity"] == runs[0][0]["perplexity"]


@pytest.mark.parametrize("place", ["train/b.jsonl", "valid.jsonl"])
def test_a_changed_file_is_noticed(given, tmp_path, place):
    train.train_and_evaluate(given(scorers=("rules",)), tmp_path / "run")
    before = set((tmp_path / "cache").iterdir())
    path = tmp_path / "text" / place
    path.write_text(path.read_text().replace("the", "cat", 1))
    with pytest.raises(InputError, match="^dataset: .*the data changed since this run began"):
        train.train_and_evaluate(given(scorers=("rules",), num_steps=5), tmp_path / "run")
    train.train_and_evaluate(given(scorers=("rules",)), tmp_path / "other")
    assert len(set((tmp_path / "cache").iterdir()) - before) == 1


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("epsilon", {"epsilon": 8.0, "entries": 5}),
        ("data_on_device", {"data_on_device": True}),
        ("dp", {"dp": {"epsilon": 8.0, "delta": 1e-5, "norm": 1.0}, "teacher": None}),
    ],
)
def test_what_needs_all_of_a_long_text_is_refused(
    given, values, tmp_path, field, changes, monkeypatch
):
    monkeypatch.setattr(plain_text, "_HELD", 0)
    changes = {"noise_seed": None, "reference": None, "scorers": ("rules",), **changes}
    if field == "epsilon":
        changes["reference"] = given()["reference"]
    if field == "dp":
        (tmp_path / "words.json").write_text(private_text.get_tokenizer(values()).to_json())
        changes |= {"tokenizer": str(tmp_path / "words.json")}
    with pytest.raises(InputError, match=f"^{field}: .*larger than 0 MiB: raise text_memory"):
        train.train_and_evaluate(given(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_all_that_is_kept_of_a_text_is_for_its_owner_alone(given, tmp_path):
    train.train_and_evaluate(given(scorers=("rules",)), tmp_path / "run")
    for path in [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]:
        if path.is_dir():
            assert path.stat().st_mode & 0o777 == 0o700
        else:
            assert "private" in path.relative_to(tmp_path / "cache").parts


def test_a_preview_shows_streamed_lines(given, capsys):
    train.preview(given(scorers=("spans", "rules")))
    assert "scores of spans and rules" in capsys.readouterr().out
