"""Text to token ids: whole words or byte pairs, every digit a token of its own unless asked.

Digits stay single so that a number's tokens are its digits: exposure ranks all numbers of a length,
and a score can fall on each digit. Both kinds run on the `tokenizers` library.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers

from distill_core.config import InputError
from distill_core.runtime import strict_json

KINDS = ("pad", "unk", "bos", "eos")
SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>")
GPT2_SPECIAL = "<|endoftext|>"  # the only special token of GPT-2
DIGITS = tuple("0123456789")
# Source of a vocabulary's words: one made from private lines reveals words of theirs.
TRAINING_TEXT, PUBLIC_TEXT, ELSEWHERE = "training text", "public text", "elsewhere"
NUM_BYTES = 256

# A digit, a word (with WikiText's `@-@` and the apostrophes of "don't" and "'s"), or a sign.
_WORD = Regex(r"\d|@[-.,]@|['’]?[^\W\d]+(?:['’][^\W\d]+)*|[^\w\s]")


_SPACE = re.compile(r"\s")


class Tokenizer:
    """A trained tokenizer; `train_words`, `train_byte_pairs` or `from_json` make one.

    The text `<unk>` gives `unk_id`; the texts `<pad>`, `<bos>` and `<eos>` are ordinary text, so no
    input can forge those tokens, and `encode` adds none of them.

    Tokenizers from elsewhere name their own special tokens; without names, all four are
    `<|endoftext|>` if it is a token and one of the four is none. Their texts may give the special
    tokens, and digits may share a token.

    Attributes:
      vocab_size: number of tokens, whose ids are 0 to vocab_size − 1.
      special_tokens: names of `pad`, `unk`, `bos` and `eos` where they were given, otherwise {}.
      pad_id, bos_id, eos_id: ids of these; where only `eos` is named, it is all three.
      unk_id: of unknown text; None if there is no such token.
      made_from: `TRAINING_TEXT` of a run, `PUBLIC_TEXT` if its user says that it is public, or
        `ELSEWHERE`. Not in `to_json`; it travels in checkpoints, and from teacher to student.
      chat_templates: Jinja templates of dialogues by name, "default" among them, of a tokenizer
        from Hugging Face; travels likewise. Never run here.
      eos_ids: tokens of which any ends a generated text, where they are others than `eos_id` alone;
        () otherwise. Travels likewise.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        made_from: str = ELSEWHERE,
        special_tokens: Mapping[str, str | None] | None = None,
        *,
        chat_templates: Mapping[str, str] | None = None,
        eos_ids: Sequence[int] = (),
    ):
        self.made_from, self.special_tokens = made_from, dict(special_tokens or {})
        self.chat_templates, self.eos_ids = dict(chat_templates or {}), tuple(eos_ids)
        vocab = inner.get_vocab()
        _check_ids(vocab)
        # A file's own would truncate texts, pad them, or split one text differently every time.
        if inner.truncation or inner.padding or getattr(inner.model, "dropout", None):
            state = json.loads(inner.to_str())
            state["model"].pop("dropout", None)
            inner = tokenizers.Tokenizer.from_str(strict_json.encode(state))
            inner.no_truncation()
            inner.no_padding()
        names = self.special_tokens or _usual_names(vocab)
        eos = names.get("eos") or "no end of text"
        ids = {}
        for kind in KINDS:
            token = names.get(kind) or (eos if kind != "unk" else None)
            if token is not None and token not in vocab:
                raise InputError("tokenizer", token, f"is to be {kind}, and must be a token of it")
            ids[kind] = None if token is None else vocab[token]
        self._inner, self._loses = inner, _loses_unknown_text(inner)
        self.pad_id, self.bos_id, self.eos_id = (ids[kind] or 0 for kind in ("pad", "bos", "eos"))
        self.unk_id: int | None = ids["unk"]
        self.vocab_size = inner.get_vocab_size()

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32 [L]; refuses text that the tokenizer would lose."""
        return np.array(self._encode(text).ids, np.int32)

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids, int32 [L], and the characters of each, int32 [L, 2]: [start, end).

        Spaces around a token are not part of it. A character of several bytes may belong to several
        byte-pair tokens.
        """
        encoding = self._encode(text)
        offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
        return np.array(encoding.ids, np.int32), _without_spaces(text, offsets)

    def _encode(self, text: str) -> tokenizers.Encoding:
        allowed = "has no token, and there is none for unknown text (unk_token): it would be lost"
        try:
            encoding = self._inner.encode(text, add_special_tokens=False)
        except Exception:  # the library raises a bare Exception
            raise InputError("tokenizer", text[:40], f"something in this text {allowed}") from None
        if self._loses:
            there = {i for start, end in encoding.offsets for i in range(start, end)}
            if any(not (i in there or sign.isspace()) for i, sign in enumerate(text)):
                alone = (s for s in text if not (s.isspace() or self._inner.encode(s).ids))
                raise InputError("tokenizer", next(alone, text[:40]), allowed)
        return encoding

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids [L], without `<pad>`, `<bos>` and `<eos>`.

        Byte pairs give the text back exactly; words are joined by single spaces, digits too.
        """
        dropped = {self.pad_id, self.bos_id, self.eos_id}
        kept = [int(i) for i in ids if int(i) not in dropped]
        return self._inner.decode(kept, skip_special_tokens=False)

    def token(self, id: int) -> str:
        """A token's own spelling, which byte pairs encode."""
        return str(self._inner.id_to_token(id))

    def to_json(self) -> str:
        """The input of `from_json`; equal for equal tokenizers."""
        return self._inner.to_str()

    @classmethod
    def from_json(
        cls,
        text: str,
        made_from: str = ELSEWHERE,
        special_tokens: Mapping[str, str | None] | None = None,
        *,
        chat_templates: Mapping[str, str] | None = None,
        eos_ids: Sequence[int] = (),
    ) -> "Tokenizer":
        """The tokenizer that `to_json` wrote, with what else is known of it (see the attributes).

        Refuses text whose added tokens have other ids than the library gives them, which numbers
        them without gaps.
        """
        try:
            inner = tokenizers.Tokenizer.from_str(text)
            added = {
                each["content"]: each["id"] for each in json.loads(text).get("added_tokens", ())
            }
        except Exception as error:  # the library raises a bare Exception
            raise InputError("tokenizer", text[:40], f"cannot be read ({error})") from None
        for token, i in added.items():
            if inner.token_to_id(token) != i:
                allowed = f"its id is {i}, where the next free one is {inner.token_to_id(token)}"
                raise InputError("tokenizer", token, allowed)
        also = {"chat_templates": chat_templates, "eos_ids": eos_ids}
        return cls(inner, made_from, special_tokens, **also)


def num_shared(first: Tokenizer, second: Tokenizer) -> int:
    """How many ids, from 0 on, are the same token for both.

    Added tokens may differ, and which of them begin and end a line. Raises ValueError, with the
    first token that differs (the first tokenizer's, then the second's), if they write ordinary text
    in other tokens.
    """
    tables = [
        {i: token for token, i in each._inner.get_vocab().items()} for each in (first, second)
    ]
    most = max(map(len, tables))
    shared = next((i for i in range(most) if tables[0].get(i) != tables[1].get(i)), most)
    states = [json.loads(each.to_json()) for each in (first, second)]
    parts = ("model", "normalizer", "pre_tokenizer")
    apart = next((part for part in parts if states[0].get(part) != states[1].get(part)), None)
    ends = max(id for each in (first, second) for id in (each.bos_id, each.eos_id))
    if not apart and ends < shared:
        return shared
    if shared < most:
        names = [repr(table[shared]) if shared in table else "no token" for table in tables]
        raise ValueError(f"token {shared} is {names[0]} and {names[1]}")
    raise ValueError(f"the tokens are the same, but not the {apart} that makes them of text")


def train_words(lines: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A word-level tokenizer: the most frequent words and signs, each digit by itself.

    Case is kept. Every ASCII digit is a token even if the text has none; rarer words become
    `<unk>`. Ties are broken alphabetically, so the result depends on the counts alone. `vocab_size`
    is the most tokens it may have, including the 4 special ones and the 10 digits.
    """
    fixed = SPECIALS + DIGITS
    if vocab_size <= len(fixed):
        raise InputError("vocab_size", vocab_size, f"must be above {len(fixed)} for words")
    counter = _word_tokenizer({SPECIALS[1]: 0})
    everything = np.iinfo(np.int32).max
    trainer = trainers.WordLevelTrainer(vocab_size=everything, show_progress=False)
    counter.train_from_iterator(lines, trainer)
    by_count = sorted(counter.get_vocab().items(), key=lambda item: item[1])
    words = [word for word, _ in by_count if word not in fixed]
    if not words:
        raise InputError("lines", "text without a word", "must hold words to train on")
    vocab = (*fixed, *words)[:vocab_size]
    return Tokenizer(_word_tokenizer({word: i for i, word in enumerate(vocab)}))


def train_byte_pairs(
    lines: Iterable[str], *, vocab_size: int, merge_digits: bool = False
) -> Tokenizer:
    """A byte-pair tokenizer, which encodes any text without loss.

    GPT-2's pre-tokenisation, with each digit split off unless `merge_digits`; merges need a pair
    seen twice. `vocab_size` is the most tokens it may have, including the 4 special ones and the
    256 bytes.
    """
    least = len(SPECIALS) + NUM_BYTES
    if vocab_size < least:
        raise InputError("vocab_size", vocab_size, f"must be at least {least} for byte pairs")
    inner = tokenizers.Tokenizer(models.BPE(unk_token=SPECIALS[1]))
    splits = [] if merge_digits else [pre_tokenizers.Digits(individual_digits=True)]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    inner.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    inner.decoder = decoders.ByteLevel()
    lines = iter(lines)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise InputError("lines", "no text", "must hold text to train on")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator(itertools.chain([first], lines), trainer)
    return Tokenizer(_only_unknown_is_special(inner))


def _word_tokenizer(vocab: dict[str, int]) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=SPECIALS[1]))
    inner.pre_tokenizer = pre_tokenizers.Split(_WORD, "removed", invert=True)
    inner.add_special_tokens([SPECIALS[1]])
    return inner


def _check_ids(vocab: dict[str, int]):
    """Refuses ids with gaps or shared by tokens: each id is a row of an embedding."""
    taken: dict[int, str] = {}
    for token, i in sorted(vocab.items(), key=lambda each: each[1]):
        if i != len(taken):
            there = f"and {taken[i]!r} has it too" if i in taken else f"and none has {len(taken)}"
            allowed = f"its id is {i}, {there}; ids must be 0 to {len(vocab) - 1}"
            raise InputError("tokenizer", token, allowed)
        taken[i] = token


def _loses_unknown_text(inner: tokenizers.Tokenizer) -> bool:
    """Whether a character that hardly any vocabulary has gives no token, or an error."""
    try:
        return not inner.encode("\ua66e", add_special_tokens=False).ids
    except Exception:  # the library raises a bare Exception
        return True


def _usual_names(vocab: Mapping[str, int]) -> dict[str, str]:
    names = SPECIALS
    if GPT2_SPECIAL in vocab and not vocab.keys() >= set(SPECIALS):
        names = (GPT2_SPECIAL,) * len(SPECIALS)
    return dict(zip(KINDS, names, strict=True))


def _without_spaces(text: str, offsets: np.ndarray) -> np.ndarray:
    """[start, end) of each token without the spaces at its ends, empty where it is all spaces."""
    size = len(text)
    place = np.arange(size)
    space = np.zeros(size, bool)
    space[[found.start() for found in _SPACE.finditer(text)]] = True
    following = np.minimum.accumulate(np.append(np.where(space, size, place), size)[::-1])[::-1]
    preceding = np.maximum.accumulate(np.append(0, np.where(space, 0, place + 1)))
    start = np.minimum(following[offsets[:, 0]], offsets[:, 1])
    return np.stack([start, np.maximum(preceding[offsets[:, 1]], start)], axis=1).astype(np.int32)


def _only_unknown_is_special(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy that does not parse `<pad>`, `<bos>` and `<eos>` from the text."""
    state = json.loads(inner.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] == SPECIALS[1]]
    return tokenizers.Tokenizer.from_str(strict_json.encode(state))
