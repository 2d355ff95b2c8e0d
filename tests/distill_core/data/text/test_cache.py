"""Rows of tokens on disk: as in memory, written once, and gone on with after a kill."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.data import columns
from distill_core.data.text import cache, files, tasks, tokenizers
from distill_core.data.text.corpus import load_corpus

LENGTH = 8
SHARD = 5 * 16 * LENGTH  # bytes of five rows


@pytest.fixture
def text(tmp_path):
    """A file of lines, some longer than many rows."""
    rng = random.Random(0)
    lines = [" ".join(rng.choices("abcdefg", k=k)) for k in [3, 150, 7, 8, 1, 90, 2, 5] * 4]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def words():
    return tokenizers.train_words(["a b c d e f g"], vocab_size=40)


def streamed(text, tmp_path):
    return load_corpus(f"text:{text}", memory=0, cache=str(tmp_path / "cache"))


def tokenised(text, tmp_path, words):
    lines = cache.Lines(streamed(text, tmp_path).train, words, "language", LENGTH)
    return cache.tokenised(tmp_path / "cache", lines, of="training")[0]


@pytest.fixture
def encoding(monkeypatch):
    """`encoding(call)` has it called with each example that is encoded."""
    encode = cache.Lines.encode

    def encoding(call):
        monkeypatch.setattr(cache.Lines, "encode", lambda *a: (call(a[1]), encode(*a))[1])

    return encoding


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(columns, "_SHARD_BYTES", SHARD)
    monkeypatch.setattr(tasks, "_CHUNK", 3 * LENGTH)


def expected(text, words):
    lines = [tasks.encode(e, words, "language") for e in load_corpus(f"text:{text}").train]
    return tasks.to_rows(lines, words, LENGTH)[0]


def assert_equal(rows, whole):
    assert list(rows) == list(whole)
    for name, array in whole.items():
        np.testing.assert_array_equal(rows[name][:], array, err_msg=name)


def test_rows_on_disk_are_those_in_memory(text, tmp_path, words, small_shards, encoding):
    assert_equal(tokenised(text, tmp_path, words), expected(text, words))
    encoding(lambda example: pytest.fail("encoded again"))
    assert_equal(tokenised(text, tmp_path, words), expected(text, words))


@pytest.mark.parametrize("killed_at", [1, 2, 3, 4, 6, 7, 10, 14, 22, 28])
def test_whoever_is_interrupted_goes_on_after_the_last_whole_shard(
    text, tmp_path, words, small_shards, encoding, killed_at
):
    encoded = []

    def call(example):
        encoded.append(example.text)
        if len(encoded) == killed_at:
            raise KeyboardInterrupt

    encoding(call)
    with pytest.raises(KeyboardInterrupt):
        tokenised(text, tmp_path, words)
    first, killed_at = list(encoded), 0
    encoded.clear()
    assert_equal(tokenised(text, tmp_path, words), expected(text, words))
    lines = [example.text for example in load_corpus(f"text:{text}").train]
    assert encoded == lines[len(lines) - len(encoded) :]
    if len(first) > 10:
        assert len(first) + len(encoded) < len(lines) + 10, "most is not done again"


CHILD = """
import sys, time
from distill_core.data import columns
from distill_core.data.text import cache, tasks, tokenizers
from distill_core.data.text.corpus import load_corpus
columns._SHARD_BYTES, tasks._CHUNK = {shard}, {chunk}
words = tokenizers.train_words(["a b c d e f g"], vocab_size=40)
corpus = load_corpus("text:{text}", memory=0, cache="{folder}/cache")
count, encode = 0, cache.Lines.encode
def slow(*args):
    global count
    count += 1
    if count > 20:
        print("slow", flush=True)
        time.sleep(600)
    return encode(*args)
cache.Lines.encode = slow
lines = cache.Lines(corpus.train, words, "language", {length})
cache.tokenised("{folder}/cache", lines, of="training")
"""


def test_a_tokenisation_that_is_killed_goes_on(text, tmp_path, words, small_shards, encoding):
    program = CHILD.format(text=text, folder=tmp_path, length=LENGTH, shard=SHARD, chunk=3 * LENGTH)
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "slow\n"
        child.send_signal(signal.SIGKILL)
    (folder,) = (tmp_path / "cache").glob("*/private/rows")
    assert not columns.is_whole(folder) and len(list(folder.glob("*.array_record"))) > 5
    encoded = []
    encoding(encoded.append)
    assert_equal(tokenised(text, tmp_path, words), expected(text, words))
    assert len(encoded) < 15, "of 30 lines, 20 were done, and most of them in whole shards"


def test_a_changed_file_is_noticed_and_an_unchanged_one_not_read(text, tmp_path, monkeypatch):
    before = streamed(text, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files, "_digest", lambda file: pytest.fail("read again"))
        assert streamed(text, tmp_path) == before
    content = text.read_text()
    text.write_text(content.replace("a", "b", 1))
    os.utime(text, ns=(time.time_ns(), time.time_ns()))
    changed = streamed(text, tmp_path)
    assert changed.digest != before.digest and len(changed.train) == len(before.train)
    text.write_text(content)
    assert streamed(text, tmp_path).digest == before.digest
    for path in (tmp_path / "cache" / "private").rglob("*.json"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_changes_under_a_run_is_refused(text, tmp_path, words):
    lines = cache.Lines(streamed(text, tmp_path).train, words, "language", LENGTH)
    os.utime(text, ns=(1, 1))
    with pytest.raises(InputError, match=f"^dataset: got 'text:{text}'; changed while"):
        cache.tokenised(tmp_path / "cache", lines, of="training")


def test_another_processes_directory_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(columns.parallel, "is_main", lambda: False)
    monkeypatch.setattr(columns.parallel, "from_main", lambda _: np.array(True))  # it is written
    with pytest.raises(InputError, match="^text_cache: .*all processes see"):
        cache.beside(tmp_path / "x", "y", {"values": np.float32}, 3, list)
