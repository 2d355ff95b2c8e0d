"""Canaries: random secrets planted in the text, to measure afterwards how much of them leaks."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill_core.config import InputError
from distill_core.data.text.lines import read_numbered

FORMAT = "my id is {}"
MAX_DIGITS = 18  # a secret's place among all candidates is an int64
MAX_LINES = 50_000  # candidates, each a line by itself, that are all asked unless told otherwise
TRANSFER_SETS = ("private", "public", "decoy")
_MEND = "train with --config.tokenizer=byte_pairs, which encodes any text, or leave it out"


@dataclass(frozen=True)
class Space:
    """All that a secret may be: the numbers of some digits, or the entries of a list.

    Attributes:
      num_digits: D, of the numbers 0…0 to 9…9.
      entries: different texts, which are what it may be instead; () for numbers.
    """

    num_digits: int = 6
    entries: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.entries) or 10**self.num_digits

    def __getitem__(self, index: int) -> str:
        return self.entries[index] if self.entries else f"{index:0{self.num_digits}d}"

    def __str__(self) -> str:
        listed = f"{len(self):,} candidates of a list"
        return listed if self.entries else f"{len(self):,} numbers of {self.num_digits} digits"

    def index(self, secrets: Sequence[str]) -> np.ndarray:
        """Places of the secrets, int64 [n]; InputError if one is no candidate or is there twice."""
        places = {entry: i for i, entry in enumerate(self.entries)}
        if not self.entries:
            mine = (s for s in secrets if len(s) == self.num_digits and is_number(s))
            places = {secret: int(secret) for secret in mine}
        if len(set(secrets)) < len(secrets) or not places.keys() >= set(secrets):
            raise InputError("secrets", tuple(secrets), f"must be different ones of the {self}")
        return np.array([places[secret] for secret in secrets], np.int64)

    def draw(self, rng: random.Random) -> str:
        """A uniformly random secret."""
        if self.entries:
            return self.entries[int(rng.random() * len(self.entries))]
        return _random_number(rng, self.num_digits)


def is_number(secret: str) -> bool:
    """Whether it is of the digits 0 to 9 alone."""
    return secret.isascii() and secret.isdecimal()


@dataclass(frozen=True)
class Canary:
    """A line with a secret in it, planted `repetitions` times.

    Attributes:
      format: the line, with `{}` where the secret goes.
      secret: decimal digits, or an entry of a list.
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
          InputError: on `secrets`, if one is no candidate or is there twice.
        """
        places, base = self.symbols.shape
        known = "0123456789"[:base]
        if len(set(secrets)) < len(secrets) or any(
            len(secret) != places or not set(secret) <= set(known) for secret in secrets
        ):
            allowed = f"must be different numbers of {places} digits, each of {known}"
            raise InputError("secrets", tuple(secrets), allowed)
        return np.array([int(secret, base) for secret in secrets], np.int64)

    def beginnings(self, numbers: np.ndarray, places: int) -> np.ndarray:
        """The prefix and the first `places` digits, int32 [n, P + places], of the given numbers."""
        base = self.symbols.shape[1]
        powers = base ** np.arange(places - 1, -1, -1, dtype=np.int64)
        digits = numbers[:, None] // powers % base  # [n, places]
        before = np.broadcast_to(self.prefix, (len(numbers), len(self.prefix)))
        return np.concatenate([before, self.symbols[np.arange(places), digits]], axis=1)

    def tokens(self, indices: np.ndarray) -> np.ndarray:
        """The whole lines of some candidates, int32 [n, P + D + S]."""
        after = np.broadcast_to(self.suffix, (len(indices), len(self.suffix)))
        return np.concatenate([self.beginnings(indices, len(self.symbols)), after], axis=1)


@dataclass(frozen=True, eq=False)
class Lines:
    """Candidates as whole lines in a tokenizer's ids, for one that merges digits or for a list.

    Attributes:
      encode: text -> ids.
      format: the line, with `{}` where the secret goes.
      space: what the secret may be.
      context: ids before the line, `<bos>` at least.
      ending: ids after it. Where one candidate may begin another, as in a list of names, the end of
        the line has to count; and a classifier is asked after `<eos>`.
      unknown: the id of `<unk>`; None if it has no such token of its own.
    """

    encode: Callable[[str], Sequence[int] | np.ndarray]
    format: str
    space: Space
    context: tuple[int, ...]
    ending: tuple[int, ...] = ()
    unknown: int | None = None

    def __len__(self) -> int:
        return len(self.space)

    def index(self, secrets: Sequence[str]) -> np.ndarray:
        """Places of the secrets, int64 [n]; see `Space.index`."""
        return self.space.index(secrets)

    def rows(self, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """The lines of some candidates, int32 [L] each.

        Raises:
          InputError: on `tokenizer`, if it does not know a candidate or gives two the same tokens.
        """
        found: dict[bytes, tuple[int, np.ndarray]] = {}
        for index in map(int, indices):
            secret = self.space[index]
            ids = self.encode(self.format.format(secret))
            row = np.array([*self.context, *ids, *self.ending], np.int32)
            # By number: a candidate may be somebody's secret.
            name = f"candidate {index + 1}"
            if (other := found.setdefault(row.tobytes(), (index, row))[0]) != index:
                allowed = f"has the same tokens as candidate {other + 1}; {_MEND}"
                raise InputError("tokenizer", name, allowed)
            if self.unknown is not None and self.unknown in ids:
                allowed = f"has words that the tokenizer does not know; {_MEND}"
                raise InputError("tokenizer", name, allowed)
        return [row for _, row in found.values()]


def draw_canaries(
    seed: int,
    *,
    per_level: int,
    levels: Sequence[int] = (1, 10, 100),
    num_digits: int = 6,
    entries: Sequence[str] = (),
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
      entries: a list of different texts to draw secrets from instead of numbers.
      format: the line, with one `{}` for the secret.

    Returns:
      `per_level` canaries of the first level, then of the next.

    Raises:
      InputError: on `canary_levels`, if there is none or one twice; on `canary_format`, if it has
        not exactly one `{}`; on `canaries_per_level`, if there are fewer candidates.
    """
    if not levels or len(set(levels)) < len(levels):
        allowed = "must be at least one number of repetitions, and none twice"
        raise InputError("canary_levels", tuple(levels), allowed)
    before, slot, after = format.partition("{}")
    if not slot or set("{}") & set(before + after):
        allowed = "must have exactly one {} for the secret, and no other braces"
        raise InputError("canary_format", format, allowed)
    space, needed = Space(num_digits, tuple(entries)), per_level * len(levels)
    if needed > len(space):
        allowed = (
            f"{len(levels)} levels need {needed:,} different secrets, and there are {space}; take "
            f"fewer canaries or more {'candidates' if space.entries else 'digits'}"
        )
        raise InputError("canaries_per_level", per_level, allowed)
    rng = random.Random(f"canaries {seed}")
    secrets: dict[str, None] = {}  # a dictionary keeps the order of drawing
    while len(secrets) < needed:
        secrets[space.draw(rng)] = None
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

    def refused(secret):
        allowed = (
            f"does not write each digit of {format.format(secret)!r} as one token of its own; "
            "rank whole lines (see choices), or use a tokenizer that splits digits"
        )
        return InputError("tokenizer", type(tokenizer).__name__, allowed)

    rows = [encode(str(digit) * num_digits) for digit in range(10)]
    if len({len(row) for row in rows}) != 1:
        raise refused("0123456789"[:num_digits])
    table = np.stack(rows)  # [10, P + D + S]
    places = np.flatnonzero(np.any(table != table[:1], axis=0))
    contiguous = len(places) == num_digits and places[-1] - places[0] == num_digits - 1
    if not contiguous or any(len(set(table[:, place])) < 10 for place in places):
        raise refused("0123456789"[:num_digits])
    unknown = getattr(tokenizer, "unk_id", None)
    if unknown is not None and np.any(table[:, places] == unknown):
        raise refused(str(np.argmax(np.any(table[:, places] == unknown, axis=1))) * num_digits)
    found = Candidates(table[0, : places[0]], table[:, places].T, table[0, places[-1] + 1 :])
    # Each pair of neighbours, since a tokenizer may merge some numbers only, and the canaries.
    pairs = [(f"{pair:02d}" * num_digits)[:num_digits] for pair in range(100)]
    secrets = list(dict.fromkeys([*pairs, *(canary.secret for canary in canaries)]))
    expected = found.tokens(np.array([int(secret) for secret in secrets], np.int64))
    for secret, row in zip(secrets, expected, strict=True):
        if not np.array_equal(encode(secret), row):
            raise refused(secret)
    before = np.asarray(context, np.int32).reshape(-1)
    return Candidates(np.concatenate([before, found.prefix]), found.symbols, found.suffix)


def choices(
    tokenizer: Any,
    format: str,
    space: Space,
    secrets: Sequence[str],
    *,
    ending: Sequence[int] = (),
) -> "Candidates | Lines":
    """What secrets in lines of one format are ranked among, after `<bos>`.

    Digit by digit where the tokenizer keeps them single, which ranks millions exactly; otherwise
    as whole lines.

    Args:
      tokenizer: a `Tokenizer`, or what has its `encode`, `bos_id` and `unk_id`.
      format: the line, with `{}` where the secret goes.
      space: what a secret may be.
      secrets: those planted.
      ending: ids that follow the line and are counted in `Lines`.

    Raises:
      InputError: on `tokenizer`, if it does not know a secret or gives two the same tokens.
    """
    if not secrets:
        raise InputError("canaries", (), "must be at least one")
    context, unknown = (tokenizer.bos_id,), getattr(tokenizer, "unk_id", None)
    if not space.entries:
        canaries = [Canary(format, secret, 1) for secret in secrets]
        try:
            found = candidates(tokenizer, canaries, context=context)
        except InputError as error:
            if error.field != "tokenizer":
                raise
        else:
            suffix = np.concatenate([found.suffix, np.array(ending, np.int32)])
            return Candidates(found.prefix, found.symbols, suffix)
    unknown = None if unknown in context else unknown
    lines = Lines(tokenizer.encode, format, space, context, tuple(ending), unknown)
    lines.rows(lines.index(secrets))
    return lines


def read_entries(field: str, path: str) -> tuple[str, ...]:
    """A list of candidates from a user's file: UTF-8, one per line.

    Surrounding spaces and blank lines are dropped.

    Raises:
      InputError: on `field`: no such file, not UTF-8, fewer than 2 candidates, or one twice.
    """
    found: dict[str, int] = {}
    for number, entry in read_numbered(field, path):
        if (first := found.setdefault(entry.strip(), number)) != number:
            allowed = f"must hold different candidates; line {number} repeats line {first}"
            raise InputError(field, path, allowed)
    if len(found) < 2:
        allowed = f"must hold at least 2 candidates, one per line; it has {len(found)}"
        raise InputError(field, path, allowed)
    return tuple(found)


def transfer_set(
    name: str,
    lines: Sequence[str],
    canaries: Sequence[Canary],
    *,
    seed: int,
    num_decoys: int = 0,
    entries: Sequence[str] = (),
) -> list[str]:
    """The text that a student is distilled on, in three forms.

    - `private`: the lines with every canary at as many random places as it has repetitions. It is
      also the teacher's training text.
    - `public`: the lines alone.
    - `decoy`: the lines with `num_decoys` more at random places that have the canaries' formats
      and random numbers, or random `entries` if secrets are drawn from such a list, none of them a
      secret: soft labels there tell what the teacher knows.

    The order of the lines stays. A pure function of its arguments on every platform.

    Raises:
      InputError: on `num_decoys`, if every candidate is a secret.
    """
    given = {"seed": seed, "num_decoys": num_decoys, "entries": entries}
    added, old = planted(name, len(lines), canaries, **given), iter(lines)
    total = len(lines) + len(added)
    return [added[place] if place in added else next(old) for place in range(total)]


def planted(
    name: str,
    num_lines: int,
    canaries: Sequence[Canary],
    *,
    seed: int,
    num_decoys: int = 0,
    entries: Sequence[str] = (),
) -> dict[int, str]:
    """The lines that a `transfer_set` of so many lines adds, by their places in it, ascending."""
    rng = random.Random(f"transfer set {name} {seed}")
    if name == "private":
        added = [canary.line for canary in canaries for _ in range(canary.repetitions)]
    else:
        added = _decoys(canaries, num_decoys, rng, entries) if name == "decoy" else []
    # A random order, then random gaps: every way to mix them is equally likely.
    added = [line for _, line in sorted((rng.random(), line) for line in added)]
    taken = _sample(rng, num_lines + len(added), len(added))
    return dict(zip(sorted(taken), added, strict=True))


def _decoys(canaries, num: int, rng: random.Random, entries: Sequence[str]):
    secrets = {canary.secret for canary in canaries}
    spaces = {c.secret: Space(len(c.secret), tuple(entries)) for c in canaries}
    if any(len(secrets) >= len(space) for space in spaces.values()):
        more = "a longer list" if entries else "longer ones"
        raise InputError("num_decoys", num, f"every candidate is a secret; take {more}")
    decoys = []
    while len(decoys) < num:
        like = canaries[int(rng.random() * len(canaries))]
        secret = spaces[like.secret].draw(rng)
        if secret not in secrets:
            decoys.append(like.format.format(secret))
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
