"""Canaries: random secrets planted in the text, to measure afterwards how well they were kept."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill_core.config import InputError

FORMAT = "my id is {}"
MAX_DIGITS = 18  # a secret's place among all candidates is an int64
TRANSFER_SETS = ("private", "public", "decoy")


@dataclass(frozen=True)
class Canary:
    """A line with a secret number in it, planted `repetitions` times.

    Attributes:
      format: the line, with `{}` where the secret goes.
      secret: decimal digits.
      repetitions: how often the line is in the private text.
    """

    format: str
    secret: str
    repetitions: int

    @property
    def line(self) -> str:
        return self.format.format(self.secret)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The numbers that a secret is ranked among, as token ids.

    Attributes:
      prefix: int32 [P], what stands before the secret, `<bos>` included.
      symbols: int32 [D, A], at each place of the secret the token of each of its A digits.
      suffix: int32 [S], what follows the secret.
    """

    prefix: np.ndarray
    symbols: np.ndarray
    suffix: np.ndarray

    def __len__(self) -> int:
        places, base = self.symbols.shape
        return base**places

    def index(self, secrets: Sequence[str]) -> np.ndarray:
        """Places of the secrets, int64 [n], in the order of all candidates: as numbers in base A.

        Raises:
          InputError: on `secret`: it is none of the candidates, or twice there.
        """
        places, base = self.symbols.shape
        indices = []
        for secret in secrets:
            digits = [int(c, 36) if c.isascii() and c.isalnum() else base for c in secret]
            if len(digits) != places or max(digits) >= base:
                raise InputError("secret", secret, f"must be {places} digits below {base}")
            indices.append(int(secret, base))
            if indices.index(indices[-1]) < len(indices) - 1:
                raise InputError("secret", secret, "is there twice; secrets must differ")
        return np.array(indices, np.int64)

    def tokens(self, indices: np.ndarray) -> np.ndarray:
        """The whole lines of some candidates, int32 [n, P + D + S]."""
        places, base = self.symbols.shape
        powers = base ** np.arange(places - 1, -1, -1, dtype=np.int64)
        digits = indices[:, None] // powers[None, :] % base  # [n, D]
        secret = self.symbols[np.arange(places)[None, :], digits]
        before, after = (
            np.broadcast_to(ids, (len(indices), len(ids))) for ids in (self.prefix, self.suffix)
        )
        return np.concatenate([before, secret, after], axis=1)


def draw_canaries(
    seed: int,
    *,
    per_level: int,
    levels: Sequence[int] = (1, 10, 100),
    num_digits: int = 6,
    format: str = FORMAT,
) -> tuple[Canary, ...]:
    """Draws canaries with distinct, uniformly random secrets.

    A pure function of its arguments on every platform. A secret has to be uniform among its
    candidates: only then has the rank of a secret that was not learnt a known distribution.

    Args:
      seed: of the secrets.
      per_level: canaries per repetition level; 8 at least, 24 for a published number.
      levels: how often a canary is planted.
      num_digits: length of a secret.
      format: the line, with one `{}` for the secret.

    Returns:
      `per_level` canaries of the first level, then of the next.

    Raises:
      InputError: a size below 1, a level that is there twice, more than 18 digits, a
        format that has not exactly one `{}`, more canaries than numbers of that length.
    """
    sizes = {"per_level": per_level, "num_digits": num_digits, "levels": min(levels, default=0)}
    for field, value in sizes.items():
        if value < 1:
            raise InputError(field, value, "must be at least 1")
    if num_digits > MAX_DIGITS:
        raise InputError("num_digits", num_digits, f"must be at most {MAX_DIGITS}")
    if len(set(levels)) < len(levels):
        raise InputError("levels", tuple(levels), "must differ from one another")
    _parts(format)
    needed, available = per_level * len(levels), 10**num_digits
    if needed > available:
        allowed = (
            f"{len(levels)} levels need {needed:,} different secrets, and there are {available:,} "
            f"numbers of {num_digits} digits; take fewer canaries or more digits"
        )
        raise InputError("per_level", per_level, allowed)
    rng = random.Random(f"canaries {seed}")
    secrets: dict[str, None] = {}  # a dictionary keeps the order of drawing
    while len(secrets) < needed:
        secrets[_random_number(rng, num_digits)] = None
    repetitions = [level for level in levels for _ in range(per_level)]
    return tuple(Canary(format, s, r) for s, r in zip(secrets, repetitions, strict=True))


def candidates(
    tokenizer: Any, canaries: Sequence[Canary], *, context: Sequence[int] = ()
) -> Candidates:
    """The numbers that canaries of one format are ranked among, in a tokenizer's ids.

    Args:
      tokenizer: has `encode(text) -> ids`, ours or not.
      canaries: of one format and length.
      context: ids before the line, for example `[tokenizer.bos_id]`.

    Raises:
      InputError: on `canaries`, if formats or lengths differ; on `tokenizer`, if it does not write
        every digit as one token of its own, whatever stands beside it, or does not know a digit.
    """
    kinds = {(canary.format, len(canary.secret)) for canary in canaries}
    if len(kinds) != 1:
        raise InputError("canaries", sorted(kinds), "must have one format and one length of secret")
    ((format, num_digits),) = kinds

    def encode(secret):
        return np.asarray(tokenizer.encode(format.format(secret)), np.int32)

    def refuse(secret):
        allowed = (
            f"does not write each digit of {format.format(secret)!r} as one token of its own; use "
            "a tokenizer that splits digits, or another format"
        )
        raise InputError("tokenizer", type(tokenizer).__name__, allowed)

    rows = [encode(str(digit) * num_digits) for digit in range(10)]
    if len({len(row) for row in rows}) != 1:
        refuse("0123456789"[:num_digits])
    table = np.stack(rows)  # [10, P + D + S]
    places = np.flatnonzero(np.any(table != table[:1], axis=0))
    contiguous = len(places) == num_digits and places[-1] - places[0] == num_digits - 1
    if not contiguous or any(len(set(table[:, place])) < 10 for place in places):
        refuse("0123456789"[:num_digits])
    unknown = getattr(tokenizer, "unk_id", None)
    if unknown is not None and np.any(table[:, places] == unknown):
        refuse(str(np.argmax(np.any(table[:, places] == unknown, axis=1))) * num_digits)
    found = Candidates(table[0, : places[0]], table[:, places].T, table[0, places[-1] + 1 :])
    # Each pair of neighbours, since a tokenizer may merge some numbers only, and the canaries.
    pairs = [(f"{pair:02d}" * num_digits)[:num_digits] for pair in range(100)]
    secrets = list(dict.fromkeys([*pairs, *(canary.secret for canary in canaries)]))
    expected = found.tokens(np.array([int(secret) for secret in secrets], np.int64))
    for secret, row in zip(secrets, expected, strict=True):
        if not np.array_equal(encode(secret), row):
            refuse(secret)
    before = np.asarray(context, np.int32).reshape(-1)
    return Candidates(np.concatenate([before, found.prefix]), found.symbols, found.suffix)


def transfer_set(
    name: str,
    lines: Sequence[str],
    canaries: Sequence[Canary],
    *,
    seed: int,
    num_decoys: int = 0,
) -> list[str]:
    """The text that a student is distilled on, in three forms.

    - `private`: the lines with every canary at as many random places as it has repetitions. It is
      also the teacher's training text.
    - `public`: the lines alone.
    - `decoy`: the lines with `num_decoys` more at random places that have the canaries' formats
      and random numbers, none of them a secret: soft labels there tell what the teacher knows.

    The order of the lines stays. A pure function of its arguments on every platform.

    Raises:
      InputError: an unknown name; decoys wanted without a canary or without a number left.
    """
    rng = random.Random(f"transfer set {name} {seed}")
    if name == "private":
        added = [canary.line for canary in canaries for _ in range(canary.repetitions)]
    elif name == "public":
        added = []
    elif name == "decoy":
        added = _decoys(canaries, num_decoys, rng)
    else:
        raise InputError("transfer_set", name, f"must be one of {', '.join(TRANSFER_SETS)}")
    # A random order, then random gaps: every way to mix them is equally likely.
    added = [line for _, line in sorted((rng.random(), line) for line in added)]
    total = len(lines) + len(added)
    taken = _sample(rng, total, len(added))
    mixed, old, new = [], iter(lines), iter(added)
    return mixed + [next(new) if place in taken else next(old) for place in range(total)]


def secret_span(line: str, format: str = FORMAT) -> tuple[int, int] | None:
    """Characters [start, end) of the number in a line of that format, None for any other line.

    >>> secret_span("my id is 281265")
    (9, 15)
    """
    before, after = _parts(format)
    end = len(line) - len(after)
    if not (
        line.startswith(before) and line.endswith(after) and line[len(before) : end].isdecimal()
    ):
        return None
    return len(before), end


def _decoys(canaries, num: int, rng: random.Random) -> list[str]:
    secrets = {canary.secret for canary in canaries}
    if num < 0 or (num and not canaries):
        raise InputError("num_decoys", num, "must be at least 0, and needs canaries to imitate")
    if any(len(secrets) >= 10 ** len(canary.secret) for canary in canaries):
        raise InputError("num_decoys", num, "every number is a secret; take longer ones")
    decoys = []
    while len(decoys) < num:
        like = canaries[int(rng.random() * len(canaries))]
        number = _random_number(rng, len(like.secret))
        if number not in secrets:
            decoys.append(like.format.format(number))
    return decoys


# Only Random.random is promised to give the same numbers in every version of Python.
def _random_number(rng: random.Random, num_digits: int) -> str:
    return "".join(str(int(rng.random() * 10)) for _ in range(num_digits))


def _sample(rng: random.Random, total: int, count: int) -> set[int]:
    """`count` of range(total), uniformly (Floyd's algorithm)."""
    taken: set[int] = set()
    for last in range(total - count, total):
        place = int(rng.random() * (last + 1))
        taken.add(last if place in taken else place)
    return taken


def _parts(format: str) -> tuple[str, str]:
    before, slot, after = format.partition("{}")
    if not slot or "{" in before + after or "}" in before + after:
        raise InputError("format", format, "must have exactly one {} for the secret, and no braces")
    return before, after
