"""Files from elsewhere: what they hold beside what was wanted is cleared, or refused by name."""

import json
import types

import jax
import numpy as np
import pytest
import tokenizers
from scipy import special

import distill_core
from distill_core import checkpoint, distill
from distill_core.config import InputError
from distill_core.data import load_dataset
from distill_core.data.text.tokenizers import SPECIALS, Tokenizer, train_words
from distill_core.models.network import Network
from distill_core.training import plain_text

LINES = ["the cat sat", "on the mat, 12 times"]
NETWORK = {
    "model": "cnn",
    "model_kwargs": {"widths": [2], "hidden": 4, "norm": "none"},
    "num_classes": 3,
    "input_shape": [4, 4, 1],
    "mean": [0.5],
    "std": [0.25],
    "classes": ["a", "b", "c"],
}


@pytest.mark.parametrize("state", ["truncation", "padding"])
def test_a_tokenizers_truncation_and_padding_are_cleared(tmp_path, state):
    clean = train_words(LINES, vocab_size=40)
    inner = tokenizers.Tokenizer.from_str(clean.to_json())
    if state == "truncation":
        inner.enable_truncation(2)
    else:
        inner.enable_padding(length=50)
    (tmp_path / "tokenizer.json").write_text(inner.to_str())
    for found in (
        Tokenizer(inner),
        plain_text.stored_tokenizer(str(tmp_path / "tokenizer.json"), private=False),
    ):
        for line in LINES:
            np.testing.assert_array_equal(found.encode(line), clean.encode(line))
        assert found.to_json() == clean.to_json()
    assert inner.truncation or inner.padding, "the caller's own tokenizer was changed"


def test_ids_with_holes_and_ids_of_two_tokens_are_refused_by_token(tmp_path):
    text = train_words(LINES, vocab_size=40).to_json()
    state = json.loads(text)
    vocab = state["model"]["vocab"]
    last = max(vocab, key=vocab.get)
    vocab[last] += 7
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(state))
    named = f"{last!r} its id is {vocab[last]}, and none has {len(vocab) - 1}"
    with pytest.raises(InputError, match=f"^tokenizer: got '{path}'; .*{named}"):
        plain_text.stored_tokenizer(str(path), private=False)
    state = json.loads(text)
    state["model"]["vocab"] |= {"cat": state["model"]["vocab"]["mat"]}
    with pytest.raises(InputError, match="^tokenizer: got '(cat|mat)'"):
        Tokenizer.from_json(json.dumps(state))


def test_an_added_tokens_id_is_the_files_or_is_refused():
    state = json.loads(train_words(LINES, vocab_size=40).to_json())
    free = len(state["model"]["vocab"])
    added = {**state["added_tokens"][0], "content": "<extra>", "id": free}
    state["added_tokens"].append(added)
    assert Tokenizer.from_json(json.dumps(state)).vocab_size == free + 1
    added["id"] += 3
    with pytest.raises(InputError, match=f"^tokenizer: got '<extra>'; .*{free + 3}.*{free}"):
        Tokenizer.from_json(json.dumps(state))


def byte_free_pairs(**options):
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(**options))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=60, special_tokens=list(SPECIALS), show_progress=False
    )
    inner.train_from_iterator(LINES, trainer)
    return inner


def test_byte_pairs_dropout_is_cleared():
    state = json.loads(byte_free_pairs(unk_token="<unk>").to_str())
    state["model"]["dropout"] = 0.9
    found = Tokenizer.from_json(json.dumps(state))
    clean = Tokenizer(byte_free_pairs(unk_token="<unk>"))
    for _ in range(20):
        np.testing.assert_array_equal(found.encode(LINES[0]), clean.encode(LINES[0]))


def test_text_without_a_token_is_not_lost():
    found = Tokenizer(byte_free_pairs())
    assert len(found.encode("the cat"))
    for read in (found.encode, found.encode_with_offsets):
        with pytest.raises(InputError, match="^tokenizer: got 'ä'"):
            read("the cät sat")
    with_unknown = Tokenizer(byte_free_pairs(unk_token="<unk>"))
    assert with_unknown.unk_id in with_unknown.encode("the cät sat")
    pieces = [(token, -1.0) for token in (*SPECIALS, "the", "cat")]
    with pytest.raises(InputError, match="^tokenizer: got 'a dog'"):
        Tokenizer(tokenizers.Tokenizer(tokenizers.models.Unigram(pieces))).encode("a dog")


def weights():
    params, model_state = Network.from_json(NETWORK).init(jax.random.key(0))
    return checkpoint.to_host({"params": params, "model_state": model_state})


def load(folder, parts, network=NETWORK):
    """What `load_model` makes of a checkpoint of these weights and this network."""
    metadata = {"method": "test", "parts": {"model": network}}
    train = {"step": np.int32(1)}
    checkpoint.save(folder, 1, parts={"model": parts}, train=train, metadata=metadata).wait()
    return distill_core.load_model(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused_by_leaf(tmp_path, value):
    parts = weights()
    kernel = np.array(parts["params"]["Dense_0"]["kernel"])
    kernel[0, 0] = value
    parts["params"]["Dense_0"]["kernel"] = kernel
    with pytest.raises(InputError, match="^checkpoint: .*leaf params/Dense_0/kernel"):
        load(tmp_path, parts)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        *[(network, "describes no network") for network in ([], {}, {"model": 3})],
        ({"model": "cnn", "model_kwargs": ["a"]}, "describes no network"),
        *[({**NETWORK, "std": [std]}, "mean must lie in") for std in (0.0, 64.0)],
        ({**NETWORK, "mean": [127.5], "std": [63.0]}, "mean must lie in"),
        *[({**NETWORK, "mean": mean}, "do not agree") for mean in ([np.nan], [0.5, 0.5], ["a"])],
        ({**NETWORK, "classes": ["a", "b"]}, "do not agree"),
        ({**NETWORK, "num_classes": "3"}, "do not agree"),
    ],
)
def test_a_checkpoint_that_describes_no_possible_network_is_refused(tmp_path, network, reason):
    with pytest.raises(InputError, match=f"^checkpoint: .*{reason}"):
        load(tmp_path, weights(), network)


@pytest.mark.parametrize(
    ("row", "dtype", "reason"),
    [
        ([0, np.nan], np.float32, "row 7"),
        ([0, np.inf], np.float64, "row 7"),
        ([0, 1e300], np.float64, "row 7"),
        ([-np.inf, -np.inf], np.float32, "row 7"),
        ([0, 1], np.int64, "int64"),
        ([0, 1], np.complex64, "complex64"),
        (None, np.float32, "probabilities"),
        ([0, -np.inf], np.float32, None),
        ([0, 1], np.float64, None),
        ([0, 1], np.float16, None),
    ],
)
def test_stored_logits_are_refused_by_row_and_probabilities_are_none(tmp_path, row, dtype, reason):
    digits = load_dataset("digits")
    logits = np.zeros((len(digits.train), digits.num_classes))
    if row:
        logits[7, :] = row[1]
        logits[7, 0] = row[0]
    else:
        logits = special.softmax(np.random.default_rng(0).normal(size=logits.shape), axis=1)
    np.savez(tmp_path / "logits.npz", logits=logits.astype(dtype))
    hp = types.SimpleNamespace(teacher=f"npz:{tmp_path}/logits.npz")
    run = tmp_path / "run"
    if reason is None:
        assert distill._stored_logits(hp, run, digits)[0].dtype == np.float32
        return
    with pytest.raises(InputError, match=f"^teacher: .*{reason}"):
        distill._stored_logits(hp, run, digits)
    if row is None:  # but their logarithms are
        np.savez(tmp_path / "logits.npz", logits=np.log(logits))
        assert distill._stored_logits(hp, run, digits)[0].shape == logits.shape
