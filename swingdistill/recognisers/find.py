"""`find`: the private stretches of a text, by form and checksum.

What recognisers miss is taught to a student, so they are wide rather than narrow; what they may
cost in precision is measured on `labelled` (see `quality`). All expressions run in linear time.
Our own work: the paper's abstract says nothing of how private tokens are recognised.
"""

import re
import unicodedata
from collections.abc import Iterable

from distill_core.data.text.lines import Span
from swingdistill.recognisers import births, digits, forms, keys

KINDS = tuple(dict.fromkeys(keys.KINDS + forms.KINDS + births.KINDS + digits.KINDS))

# Without one of these there is nothing to find.
_ANYTHING = re.compile(
    rf"[\d@:=>＠：＝]|{keys.PASSWORD}|[\[({{{{<] ?(?:[aä]|{forms.AT}) ?[\])}}}}>]|"
    rf"\b{forms.AT}\b.{{1,80}}\b{forms.DOT}\b",
    re.IGNORECASE,
)
_TOKENIZED = re.compile(r" @([-,.])@ ")  # WikiText's separators within words


def _same() -> dict[int, str]:
    """Characters that are written for an ASCII one, each for one."""
    same = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full width
    for code in range(0x80, 0x1FBFA):
        if (value := unicodedata.decimal(chr(code), None)) is not None:
            same[code] = str(value)
        elif unicodedata.category(chr(code)) in ("Zs", "Cf"):
            same[code] = " "
        elif unicodedata.category(chr(code)) == "Pd":
            same[code] = "-"
    same |= dict.fromkeys(map(ord, "\u2212\u2043\u00ad"), "-")
    same |= dict.fromkeys(map(ord, "\u00b7\u2022\u2024\u2027\u2219\u22c5\u3002\u30fb"), ".")
    return same | dict.fromkeys(map(ord, "\u2044\u2215"), "/") | {ord("\t"): " "}


_SAME = _same()


def find(text: str, *, extra: Iterable[str] = ()) -> list[Span]:
    """The private stretches of a text in order, each with its narrowest kind.

    Args:
      text: any text; separators may be spaces, dashes and dots of all widths, also as WikiText
        writes them (` @-@ `), and digits may be of any script.
      extra: the user's own regular expressions, read on the text as it is; their kind is
        `expression '…'`.

    Returns:
      stretches of `KINDS` with score 1, none within another, and all matches of the expressions.

    >>> find("mail ann@example.org or call 555-0123")
    [Span(start=5, end=20, score=1.0, kind='e-mail'),
     Span(start=29, end=37, score=1.0, kind='telephone')]
    """
    found = []
    if _ANYTHING.search(text):
        plain = _plain(text)
        found = _outermost([s for each in (keys, forms, births, digits) for s in each.find(plain)])
    own = [
        Span(*match.span(), 1.0, kind_of(pattern))
        for pattern in extra
        for match in re.finditer(pattern, text)
        if match.group()
    ]
    return sorted(found + own) if own else found


def kind_of(expression: str) -> str:
    """The kind of what a user's expression matches."""
    return f"expression {expression!r}"


def _plain(text: str) -> str:
    """As long as the text, with ASCII for whatever is written for it."""
    if not text.isascii() or "\t" in text:
        text = text.translate(_SAME)
    return _TOKENIZED.sub(r"  \1  ", text) if "@" in text else text


def _outermost(spans: list[tuple[int, int, str]]) -> list[Span]:
    """Spans that are in no other one; of equal ones the first given."""
    found, reached = [], 0
    for start, end, kind in sorted(spans, key=lambda span: (span[0], -span[1])):
        if end > reached:
            found.append(Span(start, end, 1.0, kind))
            reached = end
    return found
