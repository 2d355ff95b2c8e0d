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
)
_LONGEST, _SURE = 12, 9  # digits of a national number; from how many on its form is enough
_WORDS = re.compile(
    r"(?:\b(?:tel|tel[eé]\w*|phone\w*|mobil\w*|cell\w*|fax|call\w*|ring|text|sms|whatsapp|dial|handy|"
    r"reach\w*|num[eé]ro|portable|m[oó]vil|ruf\w*|appele\w*|bel|hotline|puh\w*|tlf|tfn|"
    r"тел\w*|звон\w*|моб\w*|τηλ\w*|κιν\w*|"
    r"(?<!order )(?<!invoice )(?<!ticket )(?<!case )(?<!part )(?<!model )(?<!serial )"
    r"(?<!tracking )(?<!reference )(?<!page )numbers?)\b|"
    r"电话|電話|手机|手機|号码|携帯|전화|휴대폰|핸드폰|هاتف|جوال|טלפון|נייד|โทร|फोन|मोबाइल)[^\n]{0,24}$",
    re.IGNORECASE,
)
_NO_NUMBER_BEFORE = re.compile(
    r"(?:[$€£¥₹#§]|\b(?:pp?|pages?|seiten?|versions?|v|sections?|chapters?|is[bs]n|doi|vol|years?|"
    r"(?:orders?|invoices?|tickets?|parts?|items?|references?|models?)(?: (?:no|number|nr|id)\b)?|"
    r"scores?|between|eur|usd|gbp)\b\.?)[ :]*$",
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
    return bool(re.fullmatch(_any_number(data), national))


def _any_number(data: PhoneMetadata) -> str:
    """An expression of all numbers of a country; one that never matches if it has none."""
    return (data.general_desc and data.general_desc.national_number_pattern) or "(?!)"


def is_announced(before: str) -> bool:
    """Whether a text ends with words that a telephone number follows."""
    return bool(_WORDS.search(before[-_TOO_FAR_BACK:]))


def is_quantity(before: str, after: str) -> bool:
    """Whether what stands between two texts is a page, a version, a price, a measure."""
    return bool(_NO_NUMBER_BEFORE.search(before[-_TOO_FAR_BACK:]) or _UNIT_AFTER.match(after))


def is_national(
    digits: str, lengths: Sequence[int], separators: Sequence[str], *, announced: bool
) -> bool:
    """Whether groups of digits are written like a number within some country.

    Args:
      digits: of all groups.
      lengths: of each group.
      separators: between them.
      announced: whether words before say so; then any groups of a sensible size are one.
    """
    size = len(digits)
    if not 7 <= size <= _LONGEST:
        return False
    trunk = digits[0] == "0" != digits[1] and size >= _SURE
    trunk = trunk and min(lengths[1:], default=size) >= 2
    begins = None if announced or trunk else _beginnings(tuple(lengths))
    if begins and not begins.match(digits):
        return False
    if not (announced or trunk or begins) or _alternates(separators):
        return False
    if announced or trunk or size >= _SURE:
        return True
    is_other = len(lengths) == 3 and is_date(digits, lengths)
    is_other = is_other or _is_range(digits, lengths, separators)
    return not (is_other or _is_amount(lengths, separators))


def is_date(digits: str, lengths: Sequence[int]) -> bool:
    """Whether three groups are day, month and year in some order.

    >>> is_date("20110512", (4, 2, 2)), is_date("5550123", (3, 2, 2))
    (True, False)
    """
    if max(lengths) > 4:
        return False
    first, second = lengths[0], lengths[0] + lengths[1]
    values = [int(digits[:first]), int(digits[first:second]), int(digits[second:])]
    if lengths[0] == 4:
        year, rest = values[0], values[1:]
    elif max(lengths[:2]) <= 2 and lengths[2] in (2, 4):
        year, rest = values[2] + 1900 * (lengths[2] == 2), values[:2]
    else:
        return False
    return 1800 <= year < 2100 and 1 <= min(rest) <= 12 and max(rest) <= 31


def _alternates(separators: Sequence[str]) -> bool:
    """21-19 21-17 or 8.30-12.15: pairs, not one number."""
    marks = [each.strip() for each in separators]
    return any(
        first in ("-", ".", "/") and first == third != second
        for first, second, third in zip(marks, marks[1:], marks[2:], strict=False)
    )


def _is_range(digits: str, lengths: Sequence[int], separators: Sequence[str]) -> bool:
    """1914-1918, 998-1002, 12.3456 or 91/275/13: two numbers, one with a decimal point, a file."""
    if len(lengths) != 2:
        return {each.strip() for each in separators} == {"/"}
    first, second = int(digits[: lengths[0]]), int(digits[lengths[0] :])
    mark = separators[0].strip()
    years = lengths[0] == 4 and 1000 <= first < 2100 and second < 2100
    near = mark in ("-", "/") and first < second < first + 1000 and digits[lengths[0]] != "0"
    return years or near or (mark in ("", ".") and tuple(lengths) != (4, 4))


def _is_amount(lengths: Sequence[int], separators: Sequence[str]) -> bool:
    """12 345 678 or 1.200.500: thousands."""
    return (
        lengths[0] <= 3 and set(lengths[1:]) == {3} and {s.strip() for s in separators} <= {"", "."}
    )


def shapes() -> set[tuple[int, ...]]:
    """The lengths of groups that some country's number is written in."""
    return set(_formats())


@functools.cache
def _beginnings(lengths: tuple[int, ...]) -> re.Pattern | None:
    """What a number may begin with whose groups have these lengths."""
    found = _formats().get(lengths)
    return re.compile("|".join(sorted(found))) if found else None


@functools.cache
def _formats() -> dict[tuple[int, ...], set[str]]:
    found: dict[tuple[int, ...], set[str]] = {}
    for region in _REGIONS.split():
        data = PhoneMetadata.metadata_for_region(region)
        assert data is not None
        trunk = data.national_prefix or ""
        for known in data.number_format:
            ranges = re.findall(r"\\d(?:\{(\d+)(?:,(\d+))?\})?", known.pattern or "")
            leading = known.leading_digits_pattern
            begin = leading[-1] if leading else _any_number(data)
            optional = known.national_prefix_optional_when_formatting
            needed = trunk and trunk in (known.national_prefix_formatting_rule or "")
            for lengths in _expanded([(int(a or 1), int(b or a or 1)) for a, b in ranges]):
                if not needed or optional:
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
    for each in made:
        if 7 <= sum(each) <= _LONGEST and len(each) > 1:
            yield each
            yield each[0], sum(each[1:])
            if len(each) > 3:  # pairs that are written together
                for i in range(len(each) - 1):
                    yield (*each[:i], each[i] + each[i + 1], *each[i + 2 :])
