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
_CAPITALS_BEFORE = re.compile("(?<![A-Za-z0-9])[A-Z]{1,3}$")
_CAPITALS_AFTER = re.compile("[A-Z]{1,2}(?![A-Za-z0-9])")
_MOST = 9  # groups of one number
_CARDS = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 3, 3, 3), (4, 4, 4, 1)}
_CARD = re.compile(  # also with separators that divide lists
    r"(?<![0-9])(?<![0-9][,:;])(?:[2-6][0-9]{3}(\r?\n|[ _.,:;|~/-]{1,3})[0-9]{4}\1[0-9]{4}\1"
    r"[0-9]{1,4}(?:\1[0-9]{3})?|3[0-9]{3}(\r?\n|[ _.,:;|~/-]{1,3})[0-9]{6}\2[0-9]{4,5})"
    r"(?![0-9]|[,:;] ?[0-9])"
)
# Between digits as good as a dash, but in 1_000_000.
_LINE = re.compile(r"(?<=[0-9])[_|~](?=[0-9])")
_THOUSANDS = re.compile(r"(?<![0-9_])[0-9]{1,3}(?:_[0-9]{3})+(?![0-9_])")
_ADDRESS = re.compile(
    r"(?<![0-9.])(?:0|[1-9][0-9]{0,2})( {0,2})\.\1(?:0|[1-9][0-9]{0,2})\1\.\1(?:0|[1-9][0-9]{0,2})"
    r"\1\.\1(?:0|[1-9][0-9]{0,2})(?![0-9]|\1\.\1[0-9])"
)
_NO_ADDRESS = re.compile(
    r"(?:§|\b(?:v|ver|versions?|releases?|rev|build|firmware|sections?|chapters?|clauses?|"
    r"articles?|fig(?:ure)?s?|"
    r"tables?|pages?|appendix|items?|steps?|abb|abschnitt|kapitel|ec)\b)\.?[ :=]*$",
    re.IGNORECASE,
)
_ADDRESS_WORD = re.compile(
    r"\b(?:ip\w*|hosts?|server|ping|dns|login|addr\w*|gateway|router|net\w*|from|via)\b",
    re.IGNORECASE,
)
_ACCOUNT = re.compile(
    r"\b(?:account|acct|a/c|konto\w*|customer|member|patient|passport|licen[cs]e|"
    r"policy|pin|ssn|social(?: security)?|your code|id)\b"
    r"(?: (?:no\b\.?|number|nr\b\.?|is|id)){0,3}[:#(\[ ]{0,4}$",
    re.IGNORECASE,
)
_ISBN = re.compile(r"\b(?:isbn|ean|issn)(?:-?1[03])?:? *$", re.IGNORECASE)


def find(text: str) -> list[Span]:
    """(start, end, kind) of each private stretch of digits, of which `text` has ASCII ones."""
    found: list[Span] = []
    if "_" in text or "|" in text or "~" in text:
        kept = (
            {i for m in _THOUSANDS.finditer(text) for i in range(*m.span())} if "_" in text else ()
        )
        text = _LINE.sub(lambda m: m[0] if m.start() in kept else "-", text)
    for match in _CARD.finditer(text):
        digits = "".join(filter(str.isdigit, match.group()))
        if _is_card(digits) and not _are_years(digits):
            found.append((*match.span(), "card"))
    if text.count(".") >= 3:
        for match in _ADDRESS.finditer(text):
            if _is_address(text, match):
                found.append((*match.span(), "IP address"))
                text = f"{text[: match.start()]}{';' * len(match.group())}{text[match.end() :]}"
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
        self.digits = "".join(text[start:end] for start, end in self.groups)
        self.before = [0, *itertools.accumulate(self.lengths)]  # digits before each group
        self.separators = [
            text[end:start] for (_, end), (start, _) in itertools.pairwise(self.groups)
        ]
        self.marks = [each.strip() for each in self.separators]
        self.start = match.start()
        self.announced: bool | None = None  # not looked at yet
        self.first = 0  # the first group after the last date
        self.public: dict[int, int] = {}
        self.plus = "+" in text[match.start() : self.groups[0][0]]

    def find(self) -> list[Span]:
        found, i = [], 0
        while i < len(self.groups):
            span, taken = self._international(i) or self._spelt(i) or self._longest(i)
            if span:
                found.append(span)
            i += taken
            if not span and taken > 1:
                self.first = i
        return found

    def _digits(self, i: int, k: int) -> str:
        return self.digits[self.before[i] : self.before[min(i + k, len(self.groups))]]

    def _span(self, i: int, k: int, kind: str) -> Span:
        start, end = self.groups[i][0], self.groups[i + k - 1][1]
        if kind == "telephone":
            start = self.start if i == 0 else start - (self.text[start - 1] == "(")
            if extension := _EXTENSION.match(self.text, end):
                end = extension.end()
        elif k == 1:  # with the letters of a document: X1234567
            before = _CAPITALS_BEFORE.search(self.text, max(start - 3, 0), start)
            after = _CAPITALS_AFTER.match(self.text, end)
            start, end = before.start() if before else start, after.end() if after else end
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
                if kind != "card" and self._is_series(i, k):
                    return None, k
                return self._span(i, k, kind), k
        if public:
            return None, public
        run = self.lengths[i] >= RUN
        return (self._span(i, 1, "digits") if run else None), 1

    def _public(self, i: int) -> int:
        """How many groups are a date, a decimal number or the number of a book."""
        if i not in self.public:
            self.public[i] = self._read_public(i)
        return self.public[i]

    def _read_public(self, i: int) -> int:
        marks = self.marks[i : i + 4]
        joined = len(marks) > 1 and marks[0] == marks[1] != "" and marks[2:3] != marks[:1]
        if joined and telephone.is_date(self._digits(i, 3), self.lengths[i : i + 3]):
            return 3
        if self._is_decimal(i):
            return 2
        named = not i and _ISBN.search(
            self.text[max(self.groups[0][0] - 10, 0) : self.groups[0][0]]
        )
        hyphens = marks.count("-")
        sizes = self._sizes(i, 13) if named else (5, 4) if hyphens >= 3 else ()
        for k in sizes:
            if i + k > len(self.groups):
                continue
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
        whole = k == len(self.groups)
        if (whole or shape in _CARDS) and _is_card(self._digits(i, k)):
            return "card"
        years = min(shape) == 4 == max(shape) and _are_years(self._digits(i, k))
        if not years and national.is_national(self._digits(i, k), shape):
            around = text[max(start - 40, 0) : start], text[end : end + 14]
            if max(shape) > 4 or not telephone.is_quantity(*around):
                return "national number"
        if whole and sum(shape) >= RUN and _ACCOUNT.search(text[max(start - 40, 0) : start]):
            return "digits"
        if years or not self._is_telephone(i, k):
            return None
        touched = _is_letter(text[start - 1 : start]) or _is_letter(text[end : end + 1])
        return None if touched and sum(shape) < 9 and not self._is_announced(i) else "telephone"

    def _is_telephone(self, i: int, k: int) -> bool:
        marks = self.separators[i : i + k - 1]
        around = self.separators[i - 1 : i] if i > self.first else []
        if i + k < len(self.groups) and not self._public(i + k):
            around += self.separators[i + k - 1 : i + k]
        if any(" " not in each and each != "/" for each in around):
            return False  # 11 17-12 of 21-11 17-12: what is joined closely is not torn
        start, end = self.groups[i][0], self.groups[i + k - 1][1]
        trunk = self.text[start] == "0" and sum(self.lengths[i : i + k]) >= 9
        if (
            end - start < 13
            and not trunk
            and {each.strip() for each in around} & {m.strip() for m in marks}
        ):
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

    def _is_decimal(self, i: int) -> bool:
        """0.693147: one dot, and nothing on either side that continues a number."""
        around = self.separators[i - 1 : i] if i else []
        around += self.separators[i + 1 : i + 2]
        before, after = [*self.lengths[i : i + 2], 0][:2]
        zero = self.text[self.groups[i][0]] == "0" and before > 1
        return (
            self.separators[i : i + 1] == ["."]
            and all(" " in each for each in around)
            and before <= 3
            and after >= RUN
            and not zero
            and (before, after) not in ((3, 7), (3, 6), (2, 7), (2, 8))
            and not (self._is_announced(i) or self.plus)
        )

    def _is_series(self, i: int, k: int) -> bool:
        """100 200 300: round, and as far from one group to the next."""
        if k < 3 or min(self.lengths[i : i + k]) < 3:
            return False
        values = [int(self.text[start:end]) for start, end in self.groups[i : i + k]]
        steps = {b - a for a, b in itertools.pairwise(values)}
        return len(steps) == 1 and not any(value % 50 for value in values)


def _is_address(text: str, match: re.Match) -> bool:
    """Four numbers up to 255 that are no version; of one digit each after a word for it only."""
    before = text[max(match.start() - 40, 0) : match.start()]
    if max(map(int, _GROUP.findall(match.group()))) > 255 or _NO_ADDRESS.search(before):
        return False
    single = len(match.group()) < 8 or not re.search("[0-9]{2}", match.group())
    return not single or bool(_ADDRESS_WORD.search(before))


def _is_letter(character: str) -> bool:
    """Of a script that sets words apart: Latin, Greek, Cyrillic."""
    return character.isalpha() and (character < "\u0530" or "\u1e00" <= character < "\u2000")


def _are_years(digits: str) -> bool:
    return all(1800 <= int(digits[j : j + 4] or 0) < 2100 for j in range(0, len(digits), 4))


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
