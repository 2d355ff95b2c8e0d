"""Whether groups of digits are a telephone number, by the formats that `phonenumbers` knows."""

import functools
import re
from collections.abc import Iterator, Sequence

import phonenumbers
from phonenumbers import PhoneMetadata

# Whose national formats are known; international ones of all countries are.
_REGIONS = (
    "US GB DE FR IT ES NL BE CH AT PT IE DK NO SE FI IS PL CZ SK HU RO BG GR HR SI LT LV EE UA RU "
    "TR IL AE SA EG ZA NG KE MA IN PK BD CN JP KR TW HK SG MY TH VN ID PH AU NZ BR AR CL CO MX PE"
).split()
_LONGEST, _SURE = 12, 9  # digits of a national number; from how many on its form is enough
_WORDS = re.compile(
    r"\b(?:tel|tel[eé]\w*|phone\w*|mobil\w*|cell\w*|fax|call\w*|ring|text|sms|whatsapp|dial|handy|"
    r"reach\w*|numbers?|num[eé]ro|portable|m[oó]vil|ruf\w*|appele\w*|bel|hotline)\b[^\n]{0,24}$",
    re.IGNORECASE,
)
_NO_NUMBER_BEFORE = re.compile(
    r"(?:[$€£¥₹#§]|\b(?:pp?|pages?|seiten?|versions?|v|sections?|chapters?|is[bs]n|doi|vol|years?|"
    r"orders?|invoices?|scores?|between|eur|usd|gbp)\b\.?)[ :]*$",
    re.IGNORECASE,
)
_UNIT_AFTER = re.compile(
    r"[ -]{0,2}(?:[%$€£¥°]|(?:[kcm]?m|k?g|[kmgt]b|k?w|hz|euros?|eur|usd|dollars?|pounds?|people|"
    r"inhabitants|copies|votes|tons?|tonnes?|units?|miles|feet|acres|hectares|shares|followers|"
    r"views|million|billion|points?|km²|m²)\b)",
    re.IGNORECASE,
)
_TOO_FAR_BACK = 40


def is_international(digits: str) -> bool:
    """Whether digits after a `+` or `00` are a calling code and a number of that country."""
    for size in (1, 2, 3):
        regions = phonenumbers.COUNTRY_CODE_TO_REGION_CODE.get(int(digits[:size] or 0))
        if regions and digits[0] != "0":
            national = digits[size:]
            written = (national, national[1:]) if national[:1] == "0" else (national,)
            return any(_of_region(region, each) for region in regions for each in written)
    return False


def _of_region(region: str, national: str) -> bool:
    data = PhoneMetadata.metadata_for_region(region)
    if data is None:  # satellites and other networks that are no country's
        return len(national) >= 7
    return bool(re.fullmatch(data.general_desc.national_number_pattern or "(?!)", national))


def is_national(
    digits: str, lengths: Sequence[int], separators: Sequence[str], before: str, after: str
) -> bool:
    """Whether groups of digits are written like a number within some country.

    Args:
      digits: of all groups.
      lengths: of each group.
      separators: between them.
      before, after: the text on either side.
    """
    size = len(digits)
    if not 7 <= size <= _LONGEST or _alternates(separators):
        return False
    before = before[-_TOO_FAR_BACK:]
    if _WORDS.search(before):
        return True
    if _NO_NUMBER_BEFORE.search(before) or _UNIT_AFTER.match(after):
        return False
    if digits[0] == "0" and digits[1] != "0" and size >= _SURE and min(lengths[1:], default=size) >= 2:
        return True
    if size < _SURE and (_is_range(digits, lengths, separators) or _is_amount(lengths, separators)):
        return False
    begins = _beginnings(tuple(lengths))
    return begins is not None and bool(begins.match(digits))


def _alternates(separators: Sequence[str]) -> bool:
    """21-19 21-17: pairs, not one number."""
    marks = [each.strip() for each in separators]
    return any(
        marks[i] and not marks[i + 1] and marks[i] == marks[i + 2] and marks[i] not in "()"
        for i in range(len(marks) - 2)
    )


def _is_range(digits: str, lengths: Sequence[int], separators: Sequence[str]) -> bool:
    """1914-1918, 998-1002 or 12.3456: two numbers, or one with a decimal point."""
    if len(lengths) != 2:
        return False
    first, second = int(digits[: lengths[0]]), int(digits[lengths[0] :])
    mark = separators[0].strip()
    years = all(1000 <= each < 2100 for each in (first, second)) and lengths[0] == 4
    near = mark in ("-", "/") and first < second < first + 1000 and digits[lengths[0]] != "0"
    return years or near or (mark in ("", ".") and tuple(lengths) != (4, 4))


def _is_amount(lengths: Sequence[int], separators: Sequence[str]) -> bool:
    """12 345 678 or 1.200.500: thousands."""
    return lengths[0] <= 3 and set(lengths[1:]) == {3} and {s.strip() for s in separators} <= {"", "."}


@functools.cache
def _beginnings(lengths: tuple[int, ...]) -> re.Pattern | None:
    """What a number may begin with whose groups have these lengths."""
    found = _formats().get(lengths)
    return re.compile("|".join(sorted(found))) if found else None


@functools.cache
def _formats() -> dict[tuple[int, ...], set[str]]:
    found: dict[tuple[int, ...], set[str]] = {}
    for region in _REGIONS:
        data = PhoneMetadata.metadata_for_region(region)
        assert data is not None
        trunk = data.national_prefix or ""
        for known in data.number_format:
            ranges = re.findall(r"\\d(?:\{(\d+)(?:,(\d+))?\})?", known.pattern)
            leading = known.leading_digits_pattern
            begin = leading[-1] if leading else data.general_desc.national_number_pattern
            for lengths in _expanded([(int(a or 1), int(b or a or 1)) for a, b in ranges]):
                found.setdefault(lengths, set()).add(f"(?:{begin})")
                if trunk:
                    joined = (len(trunk) + lengths[0], *lengths[1:])
                    for each in (joined, (len(trunk), *lengths)):
                        found.setdefault(each, set()).add(f"{trunk}(?:{begin})")
    return found


def _expanded(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, ...]]:
    """All lengths of groups within ranges that make a number of a sensible size."""
    made: list[tuple[int, ...]] = [()]
    for low, high in ranges:
        made = [(*m, n) for m in made for n in range(low, min(high, _LONGEST) + 1)]
    return (each for each in made if 7 <= sum(each) <= _LONGEST and len(each) > 1)
