"""Text that stays in files gives, bit by bit, the run of the same text in memory."""

import json

import numpy as np
import pytest

from distill_core import checkpoint
from distill_core.config import InputError
from swingdistill import evaluate, private_text, targets, train

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
            items.append(json.dumps({**item, "spans": [[2, 6, 0.75, "name"]] if i % 4 == 0 else []}))
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
        models = train._models(hp)
        tokenizer, texts, models, _ = train._text(hp, models)
        text = private_text.to_rows(hp, texts.train, tokenizer)
        public = private_text.to_rows(hp, texts.validation, tokenizer, of="validation")
        scores = train._scores(hp, hp.scorers, text, public, models)
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
