"""Groups of digits: cards, national numbers, telephone numbers, addresses, and runs of digits.

The groups between one separator and the next are read as a chain; every stretch of up to nine
groups is looked up by the lengths of its groups, the longest first.
"""

import functools
import itertools
import re

from stdnum import ean, isbn, luhn

from swingdistill.recognisers import national, telephone

KINDS = ("card", "national number", "telephone", "IP address", "digits")
RUN = 5  # digits in a row that are private whatever they mean

Span = tuple[int, int, str]

SEPARATOR = r"(?: {1,2}[-./()]{0,2} {0,2}|[-./()]{1,2} {0,2})"
_CHAIN = re.compile(rf"[+(]{{0,2}}[0-9]++(?:{SEPARATOR}[0-9]++)*+")
_GROUP = re.compile("[0-9]+")
_EXTENSION = re.compile(r" {0,2}(?:x|ext\.?|extension|#) {0,2}[0-9]{1,6}(?![0-9])", re.IGNORECASE)
_MOST = 9  # groups of one number
_CARDS = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 3, 3, 3), (4, 4, 4, 1)}
_NO_ADDRESS = re.compile(r"\b(?:v|ver|versions?|releases?|build|sections?|chapters?)\.? *$", re.I)
_ACCOUNT = re.compile(
    r"\b(?:account|acct|a/c|konto\w*|customer|member|patient|passport|licen[cs]e|policy|pin|id)\b"
    r"(?: (?:no\b\.?|number|nr\b\.?|is|id)){0,3}[:#(\[ ]{0,4}$",
    re.IGNORECASE,
)
_ISBN = re.compile(r"\b(?:isbn|ean|issn)(?:-?1[03])?:? *$", re.IGNORECASE)


def find(text: str) -> list[Span]:
    """(start, end, kind) of each private stretch of digits, of which `text` has ASCII ones."""
    found: list[Span] = []
    for match in _CHAIN.finditer(text):
        if match.end() - match.start() >= RUN:
            found += _Chain(text, match).find()
    return found


class _Chain:
    """Groups of digits with separators between them."""

    def __init__(self, text: str, match: re.Match):
        self.text = text
        self.groups = [m.span() for m in _GROUP.finditer(text, *match.span())]
        self.lengths = [end - start for start, end in self.groups]
        self.separators = [
            text[end:start] for (_, end), (start, _) in itertools.pairwise(self.groups)
        ]
        self.marks = [each.strip() for each in self.separators]
        self.start = match.start()
        self.announced: bool | None = None  # not looked at yet
        self.plus = "+" in text[match.start() : self.groups[0][0]]

    def find(self) -> list[Span]:
        found, i = [], 0
        while i < len(self.groups):
            span, taken = self._international(i) or self._spelt(i) or self._longest(i)
            if span:
                found.append(span)
            i += taken
        return found

    def _digits(self, i: int, k: int) -> str:
        return "".join(self.text[start:end] for start, end in self.groups[i : i + k])

    def _span(self, i: int, k: int, kind: str) -> Span:
        start, end = self.groups[i][0], self.groups[i + k - 1][1]
        if kind == "telephone":
            start = self.start if i == 0 else start - (self.text[start - 1] == "(")
            if extension := _EXTENSION.match(self.text, end):
                end = extension.end()
        return start, end, kind

    def _sizes(self, i: int, most: int) -> list[int]:
        """How many groups from the i-th on may be one number of at most that many digits."""
        totals = itertools.accumulate(self.lengths[i : i + _MOST])
        return [k for k, total in enumerate(totals, 1) if total <= most][::-1]

    def _international(self, i: int):
        plus, start = i == 0 and self.plus, self.groups[i][0]
        if not (plus or self.text.startswith("00", start, start + self.lengths[i])):
            return None
        if not plus and self._digits(i, 2)[2:3] in ("", "0"):
            return None
        fits = []
        for k in self._sizes(i, 15 if plus else 17):
            number = self._digits(i, k)[0 if plus else 2 :]
            if len(number) >= 7:
                fits.append(k)
                if telephone.is_international(number):
                    return self._span(i, k, "telephone"), k
        # A number of no known plan: all of it.
        return (self._span(i, fits[0], "telephone"), fits[0]) if plus and fits else None

    def _spelt(self, i: int):
        """Single digits with one separator: 4 8 2 1 0 7."""
        if self.lengths[i] != 1:
            return None
        mark = self.marks[i] if i < len(self.marks) else None
        if mark not in ("", "-"):
            return None
        j = i
        while j < len(self.marks) and self.lengths[j + 1] == 1 and self.marks[j] == mark:
            j += 1
        size = j + 1 - i
        if size < RUN:
            return None
        return self._span(i, size, _named(self._digits(i, min(size, 20)))), size

    def _longest(self, i: int):
        """(span or None, groups that are done with) of the longest number that begins here."""
        public, first = self._public(i), self.groups[i][0]
        zero = self.text[first] == "0" != self.text[first + 1 : first + 2]
        for k in self._sizes(i, 19):
            if k <= public:
                break
            rare = k > 1 and k < len(self.groups) and not zero and not self._is_announced(i)
            if rare and tuple(self.lengths[i : i + k]) not in _shapes():
                continue
            if (kind := self._kind(i, k)) and not (public and kind == "telephone"):
                return self._span(i, k, kind), k
        if public:
            return None, public
        run = self.lengths[i] >= RUN
        return (self._span(i, 1, "digits") if run else None), 1

    def _public(self, i: int) -> int:
        """How many groups are a date or the number of a book."""
        marks = self.marks[i : i + 4]
        joined = len(marks) > 1 and marks[0] == marks[1] != "" and marks[2:3] != marks[:1]
        if joined and telephone.is_date(self._digits(i, 3), self.lengths[i : i + 3]):
            return 3
        named = not i and _ISBN.search(
            self.text[max(self.groups[0][0] - 10, 0) : self.groups[0][0]]
        )
        hyphens = marks.count("-")
        for k in self._sizes(i, 13) if named or hyphens >= 3 else ():
            number, end = self._digits(i, k), self.groups[i + k - 1][1]
            tail = self.text[end : end + 2].lstrip("- ")[:1]
            if named and (ean.is_valid(number) or isbn.is_valid(number)):
                return k
            if named and isbn.is_valid(number + tail):  # an X for its last digit
                return k
            form = (k, len(number)) in ((5, 13), (4, 10)) and self.lengths[i + k - 1] == 1
            if form and hyphens >= k - 1 and isbn.is_valid(number):
                return k
        return 0

    def _kind(self, i: int, k: int) -> str | None:
        text, shape = self.text, tuple(self.lengths[i : i + k])
        start, end = self.groups[i][0], self.groups[i + k - 1][1]
        if k == 1:
            if shape[0] < RUN:
                return None
            return "telephone" if self._is_telephone(i, 1) else _named(text[start:end])
        if text[start - 1 : start].isalpha() or text[end : end + 1].isalpha():
            return None
        whole = k == len(self.groups)
        if (whole or shape in _CARDS) and _is_card(self._digits(i, k)):
            return "card"
        if whole and k == 4 and self._is_address():
            return "IP address"
        fours = min(shape) == 4 == max(shape)
        years = fours and all(1800 <= int(text[s:e]) < 2100 for s, e in self.groups[i : i + k])
        if not years and national.is_national(self._digits(i, k), shape):
            return "national number"
        if whole and sum(shape) >= RUN and _ACCOUNT.search(text[max(start - 40, 0) : start]):
            return "digits"
        return "telephone" if not years and self._is_telephone(i, k) else None

    def _is_telephone(self, i: int, k: int) -> bool:
        marks = self.separators[i : i + k - 1]
        around = self.separators[max(i - 1, 0) : i] + self.separators[i + k - 1 : i + k]
        if any(" " not in each and each != "/" for each in around):
            return False  # 11 17-12 of 21-11 17-12: what is joined closely is not torn
        start, end = self.groups[i][0], self.groups[i + k - 1][1]
        if end - start < 13 and {each.strip() for each in around} & {m.strip() for m in marks}:
            return False  # a few of a list of numbers
        announced = self._is_announced(i)
        lengths = self.lengths[i : i + k]
        if not telephone.is_national(self._digits(i, k), lengths, marks, announced=announced):
            return False
        before, after = self.text[max(start - 40, 0) : start], self.text[end : end + 14]
        if re.match(r"[.,][0-9]", after):
            return False
        return announced or not telephone.is_quantity(before.rstrip("( "), after)

    def _is_announced(self, i: int) -> bool:
        """Whether words before the chain say that a telephone number follows, not too far back."""
        if self.announced is None:
            self.announced = telephone.is_announced(self.text[max(self.start - 40, 0) : self.start])
        return self.announced and self.groups[i][0] - self.start < 24

    def _is_address(self) -> bool:
        """Four numbers up to 255 with dots between them, and no version."""
        if set(self.marks) != {"."}:
            return False
        start = self.groups[0][0]
        small = all(int(self.text[s:e]) <= 255 for s, e in self.groups)
        return small and not _NO_ADDRESS.search(self.text[max(start - 12, 0) : start])


@functools.cache
def _shapes() -> frozenset[tuple[int, ...]]:
    """Lengths of groups that some number is written in."""
    return frozenset(_CARDS | national.shapes() | telephone.shapes())


def _named(digits: str) -> str:
    """The kind of at least five digits in a row."""
    if _is_card(digits):
        return "card"
    return "national number" if national.is_national(digits, (len(digits),)) else "digits"


def _is_card(digits: str) -> bool:
    return 13 <= len(digits) <= 19 and digits[0] in "23456" and luhn.is_valid(digits)
