"""Words and byte pairs, digits one by one."""

import json

import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.data.text.tokenizers import Tokenizer, train_byte_pairs, train_words

LINES = [
    "the cat sat on the mat .",
    "don't call the number 281265 , call 555-0147 !",
    " = Homarus gammarus = ",
    "the <unk> weighs 12 @.@ 5 kg <unk> .",
    "mail anna_kim@example.com , naïve cat",
    "281265 again , 281265 and 281265",
]
KINDS = {"words": train_words, "byte pairs": train_byte_pairs}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param](LINES, vocab_size=300)


@pytest.fixture(scope="module")
def words():
    return train_words(LINES, vocab_size=100)


@pytest.fixture(scope="module")
def byte_pairs():
    return train_byte_pairs(LINES, vocab_size=300)


def _pieces(tokenizer, text):
    return [text[start:end] for start, end in tokenizer.encode_with_offsets(text)[1]]


def test_a_word_level_tokenizer_writes_words_signs_and_digits(words):
    text = "don't call 281265, the\tcat weighs 12 @.@ 5"
    expected = "don't call 2 8 1 2 6 5 , the cat weighs 1 2 @.@ 5"
    assert " ".join(_pieces(words, text)) == expected
    assert words.decode(words.encode(text)) == expected
    assert _pieces(words, "o'clock 'tis x²½日本") == ["o'clock", "'tis", "x", "²", "½", "日本"]


def test_every_digit_is_one_token_of_its_own(tokenizer):
    digits = [tokenizer.encode(f"x{digit}")[-1] for digit in range(10)]
    assert len({*digits, tokenizer.unk_id}) == 11
    for text in ("call 9081726354now", "281265", "00112233 281265281265"):
        found = [digits.index(i) for i in tokenizer.encode(text).tolist() if i in digits]
        assert "".join(map(str, found)) == "".join(filter(str.isdigit, text))


def test_offsets_cover_the_text(tokenizer):
    for text in (*LINES, ""):
        ids, offsets = tokenizer.encode_with_offsets(text)
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
        assert ids.dtype == offsets.dtype == np.int32
        assert offsets.shape == (len(ids), 2)
        covered = np.zeros(len(text), bool)
        for start, end in offsets:
            covered[start:end] = True
        np.testing.assert_array_equal(covered, [not letter.isspace() for letter in text])
        assert np.all(ids < tokenizer.vocab_size)
    assert tokenizer.vocab_size <= 300


def test_byte_pairs_give_any_text_back(byte_pairs):
    for text in (*LINES, "日本 ½ <pad> <eos>  two  spaces\n\ttab", ""):
        ids = byte_pairs.encode(text)
        assert byte_pairs.decode(ids) == text
        assert "<unk>" in text or byte_pairs.unk_id not in ids
    assert "the" in _pieces(byte_pairs, "on the mat")  # frequent
    assert len(byte_pairs.encode("zqxj")) == 4


def test_the_most_frequent_words_stay():
    lines = ["c b a"] * 2 + ["a", "d d d"]
    tokenizer = train_words(lines, vocab_size=14 + 3)
    assert tokenizer.vocab_size == 17
    assert tokenizer.unk_id not in tokenizer.encode("0123456789")  # though the text has none
    # a and d three times, b and c twice: b is before c in the alphabet.
    assert tokenizer.decode(tokenizer.encode("a b c d")) == "a b <unk> d"


def test_training_depends_on_the_text_alone(tokenizer):
    train = KINDS["words" if tokenizer.vocab_size < 200 else "byte pairs"]
    assert train(iter(LINES[::-1]), vocab_size=300).to_json() == tokenizer.to_json()
    assert train(LINES[1:], vocab_size=300).to_json() != tokenizer.to_json()


def test_special_tokens_cannot_be_forged(tokenizer):
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id}
    assert len(special) == 4
    ids = set(tokenizer.encode("a <pad> b <bos> c <eos>").tolist())
    assert not ids & (special - {tokenizer.unk_id})
    assert list(tokenizer.encode("<unk>")) == [tokenizer.unk_id]
    around = [tokenizer.bos_id, *tokenizer.encode("the cat"), tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode(np.array(around)) == "the cat"


def test_travels_as_json(tokenizer):
    text = json.loads(json.dumps({"tokenizer": tokenizer.to_json()}))["tokenizer"]
    copy = Tokenizer.from_json(text)
    assert copy.to_json() == tokenizer.to_json()
    for line in LINES:
        np.testing.assert_array_equal(copy.encode(line), tokenizer.encode(line))
        assert copy.decode(copy.encode(line)) == tokenizer.decode(tokenizer.encode(line))
    for wrong in ("{}", tokenizer.to_json().replace("<bos>", "<cls>")):
        with pytest.raises(InputError, match="^tokenizer: "):
            Tokenizer.from_json(wrong)


@pytest.mark.parametrize(("kind", "least"), [("words", 15), ("byte pairs", 260)])
def test_refuses_a_vocabulary_without_room_and_no_text(kind, least):
    assert KINDS[kind](LINES, vocab_size=least).vocab_size == least
    with pytest.raises(InputError, match="^vocab_size: "):
        KINDS[kind](LINES, vocab_size=least - 1)
    for nothing in ([], ["", "  "]):
        with pytest.raises(InputError, match="^lines: "):
            KINDS[kind](nothing, vocab_size=300)
