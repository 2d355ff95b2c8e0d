"""Groups of digits: cards, national numbers, telephone numbers, addresses, and runs of digits.

The groups between one separator and the next are read as a chain; every stretch of up to nine
groups is looked up by the lengths of its groups, the longest first.
"""

import itertools
import re

from stdnum import isbn, luhn

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
        self.start = match.start()
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
        code = self._digits(i, 1)
        plus, zeros = i == 0 and self.plus, code.startswith("00") and code != "00"
        if not (plus or zeros or code == "00"):
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
        mark = self.separators[i].strip() if i < len(self.separators) else None
        if mark not in ("", "-"):
            return None
        j = i
        while (
            j < len(self.separators)
            and self.lengths[j + 1] == 1
            and self.separators[j].strip() == mark
        ):
            j += 1
        size = j + 1 - i
        if size < RUN:
            return None
        return self._span(i, size, _named(self._digits(i, min(size, 20)))), size

    def _longest(self, i: int):
        """(span or None, groups that are done with) of the longest number that begins here."""
        public = self._public(i)
        for k in self._sizes(i, 19):
            if k <= public:
                break
            if (kind := self._kind(i, k)) and not (public and kind == "telephone"):
                return self._span(i, k, kind), k
        if public:
            return None, public
        run = self.lengths[i] >= RUN
        return (self._span(i, 1, "digits") if run else None), 1

    def _public(self, i: int) -> int:
        """How many groups are a date or the number of a book."""
        text, before = self.text, self.text[max(self.groups[i][0] - 10, 0) : self.groups[i][0]]
        marks = [each.strip() for each in self.separators[i : i + 3]]
        if len(marks) > 1 and marks[0] == marks[1] != "" and marks[2:] != marks[:1]:
            lengths = self.lengths[i : i + 3]
            if len(lengths) == 3 and telephone.is_date(self._digits(i, 3), lengths):
                return 3
        named = bool(_ISBN.search(before))
        for k in self._sizes(i, 13):
            number = self._digits(i, k)
            if len(number) < 9:
                break
            end = self.groups[i + k - 1][1]
            tail = text[end : end + 2].lstrip("- ")[:1]
            if named and (isbn.is_valid(number) or isbn.is_valid(number + tail)):
                return k
            hyphened = marks[:3] == ["-"] * 3 and self.lengths[i + k - 1] == 1
            if k == len(number) - 8 == 5 and number[:2] == "97" and isbn.is_valid(number):
                return k
            if hyphened and k == 4 and len(number) == 10 and isbn.is_valid(number):
                return k
        return 0

    def _kind(self, i: int, k: int) -> str | None:
        text, lengths = self.text, self.lengths[i : i + k]
        start, end = self.groups[i][0], self.groups[i + k - 1][1]
        if k == 1:
            if lengths[0] < RUN:
                return None
            return "telephone" if self._is_telephone(i, 1, start, end) else _named(text[start:end])
        if text[start - 1 : start].isalpha() or text[end : end + 1].isalpha():
            return None
        digits, shape = self._digits(i, k), tuple(lengths)
        if (shape in _CARDS or (k == len(self.groups) and len(digits) >= 13)) and _is_card(digits):
            return "card"
        if k == 4 and self._is_address(i):
            return "IP address"
        if all(1800 <= int(text[s:e]) < 2100 for s, e in self.groups[i : i + k]):
            return None  # years
        if national.is_national(digits, shape):
            return "national number"
        return "telephone" if self._is_telephone(i, k, start, end) else None

    def _is_telephone(self, i: int, k: int, start: int, end: int) -> bool:
        before, after = self.text[max(start - 40, 0) : start], self.text[end : end + 14]
        if re.match(r"[.,][0-9]", after):
            return False
        marks = self.separators[i : i + k - 1]
        around = self.separators[max(i - 1, 0) : i] + self.separators[i + k - 1 : i + k]
        if any(" " not in each and each != "/" for each in around):
            return False  # 11 17-12 of 21-11 17-12: what is joined closely is not torn
        if end - start < 13 and {each.strip() for each in around} & {m.strip() for m in marks}:
            return False  # a few of a list of numbers
        return telephone.is_national(
            self._digits(i, k), self.lengths[i : i + k], marks, before.rstrip("( "), after
        )

    def _is_address(self, i: int) -> bool:
        """Four numbers up to 255 with dots between them, and no version."""
        if i or len(self.groups) != 4 or any(s.strip() != "." for s in self.separators):
            return False
        start = self.groups[0][0]
        small = all(int(self.text[s:e]) <= 255 for s, e in self.groups)
        return small and not _NO_ADDRESS.search(self.text[max(start - 12, 0) : start])


def _named(digits: str) -> str:
    """The kind of at least five digits in a row."""
    if _is_card(digits):
        return "card"
    return "national number" if national.is_national(digits, (len(digits),)) else "digits"


def _is_card(digits: str) -> bool:
    return 13 <= len(digits) <= 19 and digits[0] in "23456" and luhn.is_valid(digits)
