"""Private stretches of a fixed form that hold more than digits: addresses, IBANs, documents."""

import functools
import ipaddress
import re
from collections.abc import Iterator

from stdnum import iban, numdb

from swingdistill.recognisers import national

KINDS = ("e-mail", "IP address", "MAC address", "IBAN")

Span = tuple[int, int, str]

_SEP = r"(?: {0,2}[-./]? {0,2})"

# Whatever mail servers take, also outside ASCII, but what surrounds an address in a sentence.
_LOCAL = r"[^\s@<>()\[\]{},;:\"“”„«»|\\=…]"
_HOST = r"[^\s@<>()\[\]{},;:\"'“”„«»|\\=…/?!#&*]"
_EMAIL = re.compile(
    rf"(?:(?<!{_LOCAL}){_LOCAL}{{1,256}}+|\"[^\"\n@]{{1,64}}\")"
    rf" ?@ ?({_HOST}{{1,255}}+|\[[0-9a-fA-F.:]+\])"
)
_NEAR = re.compile(  # hosts without a dot
    r"(?:localhost|localdomain|intranet|(?:mail|smtp|imap)(?:host|server)?|server|host)|"
    r"[a-z]+[a-z-]*[0-9]+[a-z0-9-]*|[a-z]+-[a-z0-9-]+",
    re.IGNORECASE,
)
_ENDS = (
    r"(?:com|org|net|edu|gov|io|co|info|example|eu|uk|de|at|ch|fr|es|it|pt|nl|be|dk|se|no|fi|pl|cz|ru|"
    r"ua|us|ca|au|br|mx|in|jp|cn)\b"
)
AT = r"(?:at|arroba|arobase|chiocciola|ät|snabel-a|ma[łl]pa|bei|zavináč|собака)"
DOT = r"(?:dot|punto|punkt|ponto|kropka|точка)"
_SPELT_EMAIL = re.compile(
    rf"(?<![\w.+-])[\w.+-]{{1,64}}(?: {DOT} [\w.+-]{{1,64}}){{0,2}}"
    rf" ?(?:[\[({{<] ?{AT} ?[\])}}>]|\b{AT}\b|@) ?[\w-]{{1,63}}"
    rf"(?:(?: ?[\[({{<] ?{DOT} ?[\])}}>] ?| {DOT} | \. (?={_ENDS})|\.)[\w-]{{1,63}}){{1,5}}|"
    rf"(?<![\w.+-])[\w.+-]{{1,64}} ?[\[({{] ?[aä] ?[\])}}] ?[\w-]{{1,63}}"
    rf"(?:\.[\w-]{{1,63}}){{0,4}}?\.{_ENDS}",
    re.IGNORECASE,
)
_SPELT = re.compile(
    rf"\b{DOT}\b| \. |[\[({{<] ?{AT} ?[\])}}>]|[\[({{] ?[aä] ?[\])}}]", re.IGNORECASE
)

_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:.]{3,45}+(?![0-9A-Za-z])")
_COLON = " {0,2}[:-] {0,2}"
_MAC = re.compile(
    rf"(?<![0-9A-Za-z:-])(?:[0-9A-F]{{2}}(?:{_COLON}[0-9A-F]{{2}}){{5}}|"
    r"[0-9A-F]{4}\.[0-9A-F]{4}\.[0-9A-F]{4})(?![0-9A-Za-z:-])",
    re.IGNORECASE,
)

_BARE_MAC = re.compile(
    r"(?:mac|hw|ether|bssid|wlan|hardware|physical)(?:[ -]?addr\w*)?[^\w\n]{0,4}(?:is |of )?"
    r"([0-9A-F]{12})(?![0-9A-Za-z])",
    re.IGNORECASE,
)

_IBAN = re.compile(
    r"(?:(?<![a-z0-9])|(?<=iban))([a-z]{2})[ _,:|~-]{0,5}[0-9]{2}(?=[ ./_,:;|~\r\n-]{0,5}[a-z0-9])",
    re.IGNORECASE | re.ASCII,
)
_IBAN_PLACE = re.compile(r"[ ./_,:;|~\r\n-]{0,5}([A-Za-z0-9])")

# National numbers with letters: how they are written, and stdnum's module.
_LETTERED = (
    (r"[0-9]{1,2}\.?[0-9]{3}\.?[0-9]{3}%[A-Z]", "es.dni"),
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
    (r"[STFGM][0-9]{7}[A-Z]", ""),  # of Singapore
)  # fmt: skip
_NATIONAL = [
    (re.compile(rf"(?<![A-Z0-9]){form.replace('%', _SEP)}(?![A-Z0-9])", re.IGNORECASE), module)
    for form, module in _LETTERED
]

_DOCUMENT = re.compile(
    r"(?<![^\W_])(?i:passport|reisepass|passeport|pasaporte|passaporto|passaporte|paspoort|paszport|"
    r"ausweis|visa|permit|licen[cs]e|führerschein|identity card|id card|id)"
    r"(?:[- ]?(?i:no\b\.?|number|nummer|nr\b\.?|n[°º]|is|:|#)){0,3}:? ?"
    r"([A-Z]{1,3}[ -]?[0-9]{2,3}(?:[ -]?[0-9A-Z]{2,4}){1,3}|[A-Z0-9]{6,20})(?![0-9A-Za-z])"
)


def find(text: str) -> Iterator[Span]:
    """(start, end, kind) of each stretch; `text` has ASCII digits, dashes and spaces."""
    if "@" in text:
        yield from _emails(text)
    if _SPELT.search(text):
        for match in _SPELT_EMAIL.finditer(text):
            if _SPELT.search(match.group()):
                yield *match.span(), "e-mail"
    if ":" in text:
        yield from _ipv6(text)
    yield from ((*m.span(), "MAC address") for m in _MAC.finditer(text))
    yield from ((*m.span(1), "MAC address") for m in _BARE_MAC.finditer(text))
    yield from _ibans(text)
    for pattern, module in _NATIONAL:
        for match in pattern.finditer(text):
            if not module or national.is_number(module, _joined(match.group())):
                yield *match.span(), "national number"
    for match in _DOCUMENT.finditer(text):
        if 5 <= sum(map(str.isdigit, match[1])) < len(match[1]):  # digits alone are found anyway
            yield *match.span(1), "national number"


def _joined(number: str) -> str:
    return number.replace(" ", "").replace(".", "")


def _emails(text: str) -> Iterator[Span]:
    for match in _EMAIL.finditer(text):
        host = match[1].rstrip(".-_")
        last = host.rpartition(".")[2]
        near = (
            "." not in host and " " not in match[0][-len(match[1]) - 2 :] and _NEAR.fullmatch(host)
        )
        if host[:1] == "[" or near or ("." in host and any(c.isalpha() for c in last)):
            start = match.start() + (len(match[0]) - len(match[0].lstrip("'*`~.")))
            if text[start] != "@":
                yield start, match.start(1) + len(host), "e-mail"


def _ipv6(text: str) -> Iterator[Span]:
    for match in _IPV6.finditer(text):
        written = match.group().rstrip(".:") if not match.group().endswith("::") else match.group()
        if written.count(":") < 2 or not any(c.isdigit() for c in written):
            continue
        if len(written) < 7 and re.search(r"[\w)\]]\[$|[,:] ?$", text[: match.start()][-3:]):
            continue  # a[1::2]
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
