"""Private stretches of a fixed form that hold more than digits: addresses, keys, IBANs, births."""

import functools
import ipaddress
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator

from stdnum import iban, numdb

from swingdistill.recognisers import national

KINDS = ("URL", "e-mail", "IP address", "MAC address", "IBAN", "key", "date of birth")

Span = tuple[int, int, str]

_SEP = r"(?: {0,2}[-./]? {0,2})"

# Whatever mail servers take, also outside ASCII, but what surrounds an address in a sentence.
_LOCAL = r"[^\s@<>()\[\]{},;:\"“”„«»|\\=…]"
_HOST = r"[^\s@<>()\[\]{},;:\"'“”„«»|\\=…/?!#&*]"
_EMAIL = re.compile(rf"(?<!{_LOCAL}){_LOCAL}{{1,256}}+ ?@ ?({_HOST}{{1,255}}+|\[[0-9a-fA-F.:]+\])")
_SPELT_EMAIL = re.compile(
    r"(?<![\w.+-])[\w.+-]{1,64} ?(?:[\[({<] ?at ?[\])}>]|\bat\b|@) ?[\w-]{1,63}"
    r"(?:(?: ?[\[({<] ?dot ?[\])}>] ?| dot |"
    r" \. (?=(?:com|org|net|edu|gov|io|co|info|uk|de|fr|example)\b)|\.)[\w-]{1,63}){1,5}",
    re.IGNORECASE,
)
_SPELT = re.compile(r"\bdot\b| \. |[\[({<] ?at ?[\])}>]", re.IGNORECASE)

_CREDENTIALS = re.compile(
    r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/?#@<>\"]{1,256}+@[^\s<>\"]{1,2000}+"
)
_QUERY = re.compile(
    r"[?&;](?:[\w-]{0,20}[_-])?(?:token|key|apikey|auth|sig|signature|password|passwd|pwd|secret|"
    r"session|sessionid|sid|credential)=([^\s&#\"'<>;]{4,512})",
    re.IGNORECASE,
)

_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:.]{4,45}+(?![0-9A-Za-z])")
_COLON = " {0,2}[:-] {0,2}"
_MAC = re.compile(
    rf"(?<![0-9A-Za-z:-])(?:[0-9A-F]{{2}}(?:{_COLON}[0-9A-F]{{2}}){{5}}|"
    r"[0-9A-F]{4}\.[0-9A-F]{4}\.[0-9A-F]{4})(?![0-9A-Za-z:-])",
    re.IGNORECASE,
)

_IBAN = re.compile(r"(?<![A-Za-z0-9])([A-Za-z]{2})[ -]{0,5}[0-9]{2}(?=[ ./-]{0,5}[A-Za-z0-9])")
_IBAN_PLACE = re.compile(r"[ ./-]{0,5}([A-Za-z0-9])")

# National numbers with letters: how they are written, and stdnum's module.
_LETTERED = (
    (r"[0-9]{8}%[A-Z]", "es.dni"),
    (r"[XYZ]%[0-9]{7}%[A-Z]", "es.nie"),
    (r"[A-Z]{3}%[A-Z]{3}%[0-9LMNP-V]{2}[A-EHLMPRST][0-9LMNP-V]{2}%[A-Z][0-9LMNP-V]{3}[A-Z]",
     "it.codicefiscale"),
    (r"[0-9]{6} {0,2}[-+A-FU-Y] {0,2}[0-9]{3}[0-9A-Y]", "fi.hetu"),
    (r"[0-9]{7}%[A-W][A-IW]?", "ie.pps"),
    (r"[A-Z]{4}%[0-9]{6}%[HMX][A-Z]{5}%[0-9A-Z][0-9]", "mx.curp"),
    (r"[0-9]{17}X", "cn.ric"),
    (r"[0-9]{1,2}\.?[0-9]{3}\.?[0-9]{3}%K", "cl.rut"),
    (r"[12]%[0-9]{2}%[0-9]{2}%2[AB]%[0-9]{3}%[0-9]{3}%[0-9]{2}", "fr.nir"),
    (r"[A-Z]{5}[0-9]{4}[A-Z]", "in_.pan"),
    (r"[A-CEGHJ-PRSTW-Z][A-CEGHJ-NPRSTW-Z]%[0-9]{2}%[0-9]{2}%[0-9]{2}%[A-D]", ""),  # British
)  # fmt: skip
_NATIONAL = [
    (re.compile(rf"(?<![A-Z0-9]){form.replace('%', _SEP)}(?![A-Z0-9])", re.IGNORECASE), module)
    for form, module in _LETTERED
]

_PREFIXED = re.compile(
    r"(?<![A-Za-z0-9_])(?:sk-[\w-]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|gl[a-z]{2,5}-[\w.-]{16,}|"
    r"x(?:ox[a-z]|app)-[\w-]{10,}|A(?:KI|SI|RO|ID|GP)A[A-Z0-9]{12,}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|"
    r"GOCSPX-[\w-]{20,}|SG\.[\w-]{16,}\.[\w-]{16,}|(?:sk|pk|rk)_(?:live|test)_\w{10,}|whsec_[\w+/]{16,}|"
    r"npm_\w{30,}|pypi-[\w-]{16,}|hf_\w{20,}|dckr_pat_[\w-]{20,}|shp[a-z]{2}_\w{20,}|"
    r"eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?|do[oprt]_v1_\w{20,}|key-[0-9a-z]{24,}|(?:SK|AC)[0-9a-f]{32}|"
    r"(?:lin|ntn|fig|rpa|tfp|dop|nfp)_\w{20,}|PMAK-[\w-]{20,}|glsa_\w{20,}|sq0[a-z]{3}-[\w-]{20,}|"
    r"EAA\w{30,}|AGE-SECRET-KEY-1\w{20,}|secret_\w{30,}|[0-9]{8,10}:[\w-]{35})(?![\w-])"
)
_BLOCK = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:.{0,20000}?-----END[A-Z -]{0,40}-----)?", re.S
)
_SECRET = re.compile(
    r"(?:api[ _-]?key|secret(?:[ _-]?key)?|access[ _-]?key|token|passwd|password|passphrase|pwd|"
    r"passcode|bearer|credentials?)[\"']?(?: {0,3}[:=] {0,3}| (?:is )?)[\"'`]?"
    r"([^\s\"'`,;<>&]{6,512})",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"(?<![\w+/.@-])[A-Za-z0-9+/_-]{20,512}+={0,2}")

_HEX = re.compile("[0-9a-fA-F-]+")

_MONTH = (
    r"(?:jan|feb|mar|mär|mrt|apr|may|mai|maj|mei|mag|jun|jul|giu|lug|juin|aug|ago|aoû|aou|sep|set|oct|"
    r"okt|out|ott|nov|dec|dez|déc|dic|fév|fev|avr|abr|ene|gen|mei|maa)[^\W\d_]{0,7}\.?"
)
_DATE = re.compile(
    r"(?<![0-9])(?:[0-9]{1,2} {0,2}[-./ ] {0,2}[0-9]{1,2} {0,2}[-./ ] {0,2}(?:[0-9]{4}|'?[0-9]{2})|"
    r"[0-9]{4} {0,2}[-./ ] {0,2}[0-9]{1,2} {0,2}[-./ ] {0,2}[0-9]{1,2}|"
    rf"[0-9]{{1,2}}(?:st|nd|rd|th|er|º|ª|\.)?[ -]{{0,2}}(?:of |de )?{_MONTH},?[ -]{{0,2}}"
    r"(?:del? |of )?"
    r"(?:[0-9]{4}|'[0-9]{2}|[0-9]{2})|"
    rf"{_MONTH} {{0,2}}[0-9]{{1,2}}(?:st|nd|rd|th)?,? {{0,2}}(?:of )?(?:[0-9]{{4}}|'[0-9]{{2}})|"
    r"[0-9]{4} ?[年년] ?[0-9]{1,2} ?[月월] ?[0-9]{1,2} ?[日일]|[0-9]{8})(?![0-9])",
    re.IGNORECASE,
)
_BORN = re.compile(  # of small letters
    r"\b(?:born\b|(?:date of )?birth|d\.? ?o\.? ?b\b|geb(?:oren|urt|oorte|\b)|"
    r"n[ée]{1,2}e? (?:le|en)\b|naissance|naci[dóom]|nat[oa] (?:il|a|nel)\b|nasci(?:t|d|mento)|"
    r"født|född|роди|рожд)|生年月日|誕生日|出生|生日|생년월일"
)
_AFTER, _BEFORE = 60, 30  # characters from a word of birth to its date, after it and before it


def find(text: str) -> Iterator[Span]:
    """(start, end, kind) of each stretch; `text` has ASCII digits, dashes and spaces."""
    if "@" in text:
        yield from _urls(text)
        yield from _emails(text)
    if "=" in text and ("?" in text or "&" in text):
        yield from ((*m.span(1), "URL") for m in _QUERY.finditer(text))
    if _SPELT.search(text):
        for match in _SPELT_EMAIL.finditer(text):
            if _SPELT.search(match.group()):
                yield *match.span(), "e-mail"
    if ":" in text:
        yield from _ipv6(text)
    yield from ((*m.span(), "MAC address") for m in _MAC.finditer(text))
    yield from _ibans(text)
    for pattern, module in _NATIONAL:
        for match in pattern.finditer(text):
            if not module or national.is_number(module, match.group().replace(" ", "")):
                yield *match.span(), "national number"
    yield from _keys(text)
    yield from _births(text)


def _urls(text: str) -> Iterator[Span]:
    if "://" in text:
        yield from ((*m.span(), "URL") for m in _CREDENTIALS.finditer(text))


def _emails(text: str) -> Iterator[Span]:
    for match in _EMAIL.finditer(text):
        host = match[1].rstrip(".-_")
        last = host.rpartition(".")[2]
        if host[:1] == "[" or ("." in host and any(c.isalpha() for c in last)):
            start = match.start() + (len(match[0]) - len(match[0].lstrip("'*`~.")))
            if text[start] != "@":
                yield start, match.start(1) + len(host), "e-mail"


def _ipv6(text: str) -> Iterator[Span]:
    for match in _IPV6.finditer(text):
        written = match.group().rstrip(".:") if not match.group().endswith("::") else match.group()
        if written.count(":") < 2 or not any(c.isdigit() for c in written):
            continue
        try:
            ipaddress.IPv6Address(written)
        except ValueError:
            continue
        yield match.start(), match.start() + len(written), "IP address"


def _ibans(text: str) -> Iterator[Span]:
    for match in _IBAN.finditer(text):
        number, end, size = "", match.start(), _iban_size(match[1].upper())
        while len(number) < size and (place := _IBAN_PLACE.match(text, end)):
            number, end = number + place[1], place.end()
        if size and len(number) == size and iban.is_valid(number, check_country=False):
            yield match.start(), end, "IBAN"


@functools.cache
def _iban_size(country: str) -> int:
    """Characters of a country's numbers, 0 if it has none."""
    known = numdb.get("iban").info(country)[0][1].get("bban", "")
    return 4 + sum(map(int, re.findall("[0-9]+", known))) if known else 0


def _keys(text: str) -> Iterator[Span]:
    for pattern in (_PREFIXED, _BLOCK) if len(text) > 12 else ():
        yield from ((*m.span(), "key") for m in pattern.finditer(text))
    for match in _SECRET.finditer(text):
        value = match[1].rstrip(".!?)")
        if any(not c.isalpha() and c not in "-_/.:" for c in value):
            yield match.start(1), match.start(1) + len(value), "key"
    for match in _TOKEN.finditer(text):
        if _is_random(match.group()):
            yield *match.span(), "key"


def _is_random(token: str) -> bool:
    """Whether a token of 20 characters or more is drawn rather than made of words and numbers.

    It changes between letters and digits often, or between capitals and small letters, and its
    characters are spread: 3 bits each for hexadecimal ones, 3.5 for others.
    """
    kinds = [0 if c.isdigit() else 1 if c.islower() else 2 for c in token if c.isalnum()]
    turns = sum(a != b for a, b in itertools.pairwise(kinds))
    if kinds.count(0) < 2 or turns < len(kinds) // 4:
        return False
    entropy = -sum(n * math.log2(n / len(token)) for n in Counter(token).values()) / len(token)
    return entropy >= (3.0 if _HEX.fullmatch(token) else 3.5)


def _births(text: str) -> Iterator[Span]:
    small = text.lower()
    for match in _BORN.finditer(small if len(small) == len(text) else text):
        low, high = match.start() - _BEFORE, match.end() + _AFTER
        after = _DATE.search(text, match.end(), high)
        before = list(_DATE.finditer(text, max(low, 0), match.start())) if not after else []
        for date in [after] if after else before[-1:]:
            yield *date.span(), "date of birth"
