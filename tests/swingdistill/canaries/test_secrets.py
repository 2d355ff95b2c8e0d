"""Drawing canaries, their tokens, and the three transfer sets."""

from collections import Counter

import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.data.text import tokenizers
from swingdistill.canaries.secrets import (
    Canary,
    Lines,
    Space,
    candidates,
    choices,
    draw_canaries,
    read_entries,
    transfer_set,
)

LINES = [f"sentence number {i} of the text ." for i in range(200)]
CANARIES = draw_canaries(0, per_level=8)
NAMES = tuple(f"{first} {last}" for first in ("Ann", "Bo", "Cy", "Di") for last in "KLMNO")


def test_levels_and_secrets():
    assert Counter(canary.repetitions for canary in CANARIES) == {1: 8, 10: 8, 100: 8}
    secrets = [canary.secret for canary in CANARIES]
    assert len(set(secrets)) == 24
    assert all(len(secret) == 6 and secret.isdecimal() for secret in secrets)
    assert CANARIES[0].line == f"my id is {secrets[0]}"


def test_the_secrets_of_a_seed_never_change():
    assert [canary.secret for canary in CANARIES[:3]] == ["200356", "274306", "173206"]
    assert draw_canaries(0, per_level=8) == CANARIES
    assert draw_canaries(1, per_level=8) != CANARIES


def test_secrets_are_uniform():
    secrets = [canary.secret for canary in draw_canaries(3, per_level=2000, levels=(1,))]
    counts = np.array([Counter(s[place] for s in secrets)["7"] for place in range(6)])
    assert np.all(np.abs(counts - 200) < 60)  # 4.5 standard deviations


def test_every_number_can_be_a_secret():
    canaries = draw_canaries(0, per_level=50, levels=(1, 5), num_digits=2)
    assert {canary.secret for canary in canaries} == {f"{i:02d}" for i in range(100)}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"per_level": 51, "levels": (1, 5), "num_digits": 2}, "102"),
        ({"per_level": 7, "entries": NAMES}, "21 different secrets, .* 20 candidates of a list"),
        *[({"levels": levels}, "^canary_levels: ") for levels in ((), (1, 1))],
        *[({"format": text}, "{}") for text in ("my id", "{} {}", "{0}", "{} {")],
    ],
)
def test_refuses_canaries_that_cannot_be(given, named):
    with pytest.raises(InputError, match=named):
        draw_canaries(0, **{"per_level": 1, **given})


@pytest.fixture(scope="module")
def words():
    return tokenizers.train_words(["my id is 1 . call me"], vocab_size=50)


@pytest.mark.parametrize("format", ["my id is {}", "call {} now .", "{} is me", "id:{}"])
@pytest.mark.parametrize("kind", ["words", "byte pairs"])
def test_candidates_are_what_the_tokenizer_writes(kind, format, words):
    lines = ["my id is 281265", "281265 call me now"] * 3
    tokenizer = words if kind == "words" else tokenizers.train_byte_pairs(lines, vocab_size=280)
    canaries = draw_canaries(0, per_level=3, format=format)
    found = candidates(tokenizer, canaries, context=[tokenizer.bos_id])
    assert len(found) == 10**6
    expected = [[tokenizer.bos_id, *tokenizer.encode(canary.line)] for canary in canaries]
    rows = found.tokens(found.index([canary.secret for canary in canaries]))
    np.testing.assert_array_equal(rows, expected)
    assert found.prefix[0] == tokenizer.bos_id
    assert found.symbols.shape == (6, 10)


class _Toy:
    """One token a character, but for what is told."""

    def __init__(self, merged="-", split=(), unknown=(), first=0, unk_id: int | None = 0):
        self.merged, self.split, self.unknown, self.first = merged, split, unknown, first
        self.unk_id = unk_id

    def encode(self, text):
        ids, place, seen_digit = [], 0, False
        while place < len(text):
            if text.startswith(self.merged, place):
                ids.append(2000)
                place += len(self.merged)
                continue
            letter = text[place]
            is_first, seen_digit = letter.isdigit() and not seen_digit, letter.isdigit()
            ids += [5, 6] if letter in self.split else []
            ids.append(0 if letter in self.unknown else ord(letter) + self.first * is_first)
            place += 1
        return ids


def test_a_tokenizer_may_write_the_first_digit_differently():
    found = candidates(_Toy(first=500), CANARIES)
    assert np.all(found.symbols[0] == found.symbols[1] + 500)


@pytest.mark.parametrize(
    "tokenizer",
    [
        *[_Toy(merged=digits) for digits in ("11", "28", CANARIES[5].secret[2:5])],
        *[_Toy(split="3"), _Toy(split="0123456789")],
        *[_Toy(unknown="7"), _Toy(unknown="12", unk_id=None)],
    ],
)
def test_refuses_a_tokenizer_that_does_not_keep_digits_single(tokenizer):
    with pytest.raises(InputError, match="^tokenizer: got '_Toy'"):
        candidates(tokenizer, CANARIES)


@pytest.mark.parametrize(
    "secrets", [["12345"], ["12345a"], ["12345²"], ["123456", "123456"], None], ids=str
)
def test_refuses_secrets_that_are_no_candidates_and_canaries_of_several_formats(secrets):
    with pytest.raises(InputError, match="different numbers of 6 digits|one format"):
        candidates(_Toy(), CANARIES).index(secrets) if secrets else candidates(
            _Toy(), [CANARIES[0], Canary("call {}", "123456", 1)]
        )


def test_private_has_each_canary_as_often_as_it_says():
    lines = transfer_set("private", LINES, CANARIES, seed=0)
    counts = Counter(lines)
    assert all(counts[canary.line] == canary.repetitions for canary in CANARIES)
    planted = {canary.line for canary in CANARIES}
    assert [line for line in lines if line not in planted] == LINES
    assert transfer_set("public", LINES, CANARIES, seed=0) == LINES
    for name in ("private", "decoy"):
        one, same, other = (
            transfer_set(name, LINES, CANARIES, seed=seed, num_decoys=20) for seed in (1, 1, 2)
        )
        assert one == same != other


def test_canaries_are_spread_evenly():
    lines = transfer_set("private", LINES * 10, CANARIES, seed=0)
    places = np.array([i for i, line in enumerate(lines) if line.startswith("my id is ")]) / len(
        lines
    )
    assert len(places) == 8 * 111
    quarters = np.histogram(places, bins=4, range=(0, 1))[0]
    assert np.all(np.abs(quarters - 222) < 55)
    one = np.array([i for i, line in enumerate(lines) if line == CANARIES[-1].line]) / len(lines)
    assert one.min() < 0.1
    assert one.max() > 0.9


def test_decoys_look_like_canaries_and_are_none():
    few = draw_canaries(0, per_level=30, levels=(1, 5, 9), num_digits=2)
    lines = transfer_set("decoy", LINES, few, seed=0, num_decoys=300)
    decoys = [line for line in lines if line not in LINES]
    assert len(decoys) == 300
    assert not {canary.line for canary in few} & set(decoys)
    assert len(set(decoys)) == 10  # every number that is left
    assert [line for line in lines if line in LINES] == LINES


def test_there_are_no_decoys_where_every_number_is_a_secret():
    every = draw_canaries(0, per_level=10, levels=(1,), num_digits=1)
    with pytest.raises(InputError, match="^num_decoys: "):
        transfer_set("decoy", LINES, every, seed=0, num_decoys=3)


def test_secrets_of_a_list_are_drawn_from_it_and_so_are_decoys():
    canaries = draw_canaries(0, per_level=5, levels=(1, 3), entries=NAMES)
    secrets = [canary.secret for canary in canaries]
    assert len(set(secrets)) == 10 and set(secrets) < set(NAMES)
    assert canaries == draw_canaries(0, per_level=5, levels=(1, 3), entries=NAMES)
    assert canaries != draw_canaries(1, per_level=5, levels=(1, 3), entries=NAMES)
    mixed = transfer_set("decoy", LINES, canaries, seed=0, num_decoys=300, entries=NAMES)
    decoys = {line.removeprefix("my id is ") for line in mixed if line not in LINES}
    assert decoys == set(NAMES) - set(secrets)
    every = draw_canaries(0, per_level=10, levels=(1, 3), entries=NAMES)
    with pytest.raises(InputError, match="^num_decoys: .* a longer list"):
        transfer_set("decoy", LINES, every, seed=0, num_decoys=3, entries=NAMES)


@pytest.mark.parametrize("space", [Space(3), Space(entries=NAMES)], ids=str)
def test_a_space_counts_what_it_holds(space):
    everything = [space[i] for i in range(len(space))]
    assert len(set(everything)) == len(space) and all(isinstance(each, str) for each in everything)
    np.testing.assert_array_equal(space.index(everything), np.arange(len(space)))
    for wrong in (["Eve"], [everything[0]] * 2, ["²²²"]):
        with pytest.raises(InputError, match="^secrets: "):
            space.index(wrong)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "existing text file"),
        (b"", "at least 2 candidates, one per line; it has 0"),
        (b"Ann\n\n", "it has 1"),
        (b"Ann\nBo\n\n Ann \r\n", "line 4 repeats line 1"),
        (b"Ann\nna\xefve", "UTF-8; line 2"),
    ],
)
def test_refuses_files_that_are_no_list_of_candidates(tmp_path, content, named):
    if content is not None:
        (tmp_path / "names").write_bytes(content)
    with pytest.raises(InputError, match=named) as error:
        read_entries("canary_candidates", str(tmp_path / "names"))
    assert error.value.field == "canary_candidates"


def test_a_list_of_candidates_is_a_line_each(tmp_path):
    (tmp_path / "names").write_bytes("\ufeffAnn Lee\r\n\n Zoë\u2028K \nann@example.com".encode())
    found = read_entries("candidates", str(tmp_path / "names"))
    assert found == ("Ann Lee", "Zoë\u2028K", "ann@example.com")


def test_numbers_are_ranked_digit_by_digit_where_digits_are_single_and_else_as_lines(words):
    form, secrets = "my id is {}", ["281", "007"]
    single = choices(words, form, Space(3), secrets, ending=[3])
    expected = candidates(words, [Canary(form, s, 1) for s in secrets], context=[words.bos_id])
    np.testing.assert_array_equal(single.symbols, expected.symbols)
    np.testing.assert_array_equal(single.suffix, [3])
    merging = _Toy(merged="28")
    merging.bos_id = 1
    lines = choices(merging, form, Space(3), secrets, ending=[3])
    assert isinstance(lines, Lines) and len(lines) == 1000
    first, second = lines.rows(lines.index(secrets))
    np.testing.assert_array_equal(first, [1, *merging.encode("my id is 281"), 3])
    assert len(second) == len(first) + 1


def test_names_that_the_tokenizer_cannot_tell_apart_are_refused_by_number(words):
    known = tokenizers.train_words(["my id is Ann Bo ."], vocab_size=50)
    assert len(choices(known, "my id is {}", Space(entries=("Ann", "Bo")), ["Ann"])) == 2
    for entries, named in (
        (("Ann Bo", "Bo", "Ann  Bo"), "got 'candidate 3'; .* the same tokens as candidate 1"),
        (("Ann", "Eve"), "got 'candidate 2'; .* does not know"),
        (("Ann", "Ann Eve"), "got 'candidate 2'; .* does not know"),
    ):
        found = choices(known, "my id is {}", Space(entries=entries), entries[:1])
        with pytest.raises(InputError, match=f"^tokenizer: {named}.*tokenizer=byte_pairs"):
            found.rows(range(len(entries)))
