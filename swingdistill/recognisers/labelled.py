"""A generated, labelled set of sentences to measure recognisers on: private stretches, and what
only looks private.

Nothing in it is made by the recognisers' expressions. Telephone numbers are the examples of
`phonenumbers` in its own formats, and habits of writing by hand; checksums are met by drawing until
`python-stdnum` agrees. Numbers are from reserved ranges where there are any (555-01xx, 7946 0xxx,
documentation addresses, example.org), else drawn: they are nobody's that we know of.

Habits, separators and sentences fall into two splits. The recognisers were written with
`development` in sight; `test` was held out until they stood, and what it then showed was mended in
a few rounds. What is reported is measured on `test`.
"""

import dataclasses
import importlib
import ipaddress
import random
import re
import string
from collections.abc import Callable, Sequence
from typing import TypeVar

import phonenumbers
from stdnum import luhn, numdb
from stdnum.iso7064 import mod_97_10

SPLITS = ("development", "test")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A sentence with one private stretch, or with none.

    Attributes:
      text: the sentence.
      form: which country's or habit's way of writing, or which sort of public number.
      kind: of `find.KINDS`; "" where nothing is private.
      start, end: the stretch in characters.
    """

    text: str
    form: str
    kind: str = ""
    start: int = 0
    end: int = 0


def labelled(split: str = "test", *, seed: int = 0, each: int = 20) -> list[Labelled]:
    """Sentences of every form of private stretch, and as many without any.

    Args:
      split: of `SPLITS`.
      seed: of the draws.
      each: sentences per form.
    """
    draw = _Draw(random.Random(f"{split} {seed}"), SPLITS.index(split))
    found = []
    for kind, forms in _PRIVATE.items():
        for form, write in forms.items():
            found += [draw.private(kind, form, write) for _ in range(each)]
    public = -(-len(found) // len(_PUBLIC))
    found += [draw.public(form, write) for form, write in _PUBLIC.items() for _ in range(public)]
    return found


class _Draw:
    """A generator of random numbers, and which half of every list of habits it may draw from."""

    def __init__(self, rng: random.Random, half: int):
        self.rng, self.half = rng, half

    def of(self, habits: Sequence[T]) -> T:
        """One of this split's habits; of the only one where there is no other."""
        return self.rng.choice(habits[self.half :: 2] or habits)

    def any(self, choices: Sequence):
        return self.rng.choice(choices)

    def filled(self, form: str) -> str:
        """`#` is a digit, `%` one of 1 to 9, `&` a capital, `^` a small letter, `~` hexadecimal;
        `yy`, `mm`, `dd` and `YYYY` are a date's."""
        rng = self.rng
        parts = {
            "YYYY": str(rng.randint(1930, 1999)),
            "yy": f"{rng.randint(30, 99)}",
            "mm": f"{rng.randint(1, 12):02}",
            "dd": f"{rng.randint(1, 28):02}",
            "#": string.digits,
            "%": "123456789",
            "&": string.ascii_uppercase,
            "^": string.ascii_lowercase,
            "~": "0123456789abcdef",
        }
        return re.sub(
            "YYYY|yy|mm|dd|[#%&^~]",
            lambda m: rng.choice(parts[m[0]]) if len(m[0]) == 1 else parts[m[0]],
            form,
        )

    def separated(self, written: str) -> str:
        """With other spaces and dashes than an editor's, now and then."""
        if self.rng.random() < 0.5:
            return written
        space = self.of((" ", "\u00a0", "\u2009", "\u202f", "\u2007", "\u2002", " ", "  "))
        dash = self.of(("\u2013", "\u2011", "\u2010", "\u2014", " - ", "\u2212", " @-@ ", "\u2012"))
        if self.rng.random() < 0.1:
            written = re.sub("[0-9]", lambda m: chr(ord(m[0]) + 0xFEE0), written)
        return re.sub(r"(?<=\w)-(?=\w)", dash, written.replace(" ", space))

    def private(self, kind: str, form: str, write: Callable[["_Draw"], str]) -> Labelled:
        written = write(self)
        if kind in _SEPARATED:
            written = self.separated(written)
        before, _, after = self.of(_SENTENCES_OF_FORM.get(form, _SENTENCES[kind])).partition("{}")
        start = len(before)
        return Labelled(f"{before}{written}{after}", form, kind, start, start + len(written))

    def public(self, form: str, write: Callable[["_Draw"], str]) -> Labelled:
        return Labelled(write(self), form)


_SEPARATED = {"telephone", "card", "IBAN", "national number", "digits", "MAC address"}
_SENTENCES = {
    "e-mail": (
        "write to {} today", "Her address, {}, bounced.", "<{}>", "From: {}", "{} is taken",
        "cc {}; bcc nobody", "Please ask ({}) first.", "send it to {}, please",
    ),
    "telephone": (
        "call {} before 10:30", "Tel. {}", "You find her under {}.", "He left {} and hung up",
        "{} is what she gave us in 1999", "phone: {}, room 12", "my number is {}, ask for Ann",
        "ring {} on 12 May", "the old one, {}, is dead", "mobile {} or by post",
    ),
    "card": (
        "pay with {} now", "card {} exp 09/27", "{} was declined twice", "Charge {}, please.",
        "my Visa is {}", "no. {}, valid until 11/28",
    ),
    "IBAN": (
        "transfer it to {} by Monday", "IBAN: {}", "{} is his account", "My account ({}) is new.",
        "from {}, 250.00 EUR", "iban {} bic ABCDEF2A",
    ),
    "national number": (
        "her number is {}", "ID {} was issued in 2011", "{} belongs to the patient",
        "He wrote {} on the form.", "no. {}, see page 12", "insured under {} since 1998",
    ),
    "IP address": (
        "login from {} failed", "{} was blocked", "ping {}", "server at {}, port 443",
        "[{}] GET /", "the host {} is down",
    ),
    "MAC address": (
        "device {} joined", "ether {} txqueuelen 1000", "{} has a lease", "MAC: {}",
        "the card ({}) is old", "hw addr {}",
    ),
    "date of birth": (
        "She was born on {} in Ulm.", "DOB: {}", "date of birth {}", "born {}, died young",
        "Geburtsdatum: {}", "geboren am {} in Wien", "née le {} à Lyon", "date de naissance : {}",
        "nacido el {} en Lima", "fecha de nacimiento: {}", "birthday: {}", "nato il {} a Roma",
        "his birth date is {}", "(b. as Ann Lee; born {})",
    ),
    "URL": (
        "clone {} first", "see {}", "{} works", "DATABASE={}", "try {} instead", "go to {} now",
    ),
    "key": (
        "use {} for now", "KEY={}", "the token {} leaked", "export K='{}'", "{} expired",
        "he committed {} by mistake",
    ),
    "digits": (
        "my id is {}", "account {} is closed", "{} opens the door", "ticket no. {}, thanks",
        "code {} expired", "he typed {} twice",
    ),
}  # fmt: skip

# Of forms that are private after a word for them only, or in text of another kind.
_SENTENCES_OF_FORM = {
    "text without spaces": (
        "卡号{}有效期", "カード番号{}です", "番号は{}です", "号码是{}谢谢", "번호는 {}입니다",
        "请记{}吧",
        "我的是{}，谢谢", "連絡先は{}まで",
    ),
    "touched by words": ("Tel{}Fax", "Mob.{}please", "Phone{}Email", "tel{}or"),
    "beside a date": (
        "2023-01-02 {}", "12.03.2023 {}", "{} 2023-01-02", "2023-01-02 12:30 {}",
        "02/01/2023 {} rang",
        "{} 12.03.2023",
    ),
    "in a list": (
        "net {}/24", "IP:{}/24", "{} 443", "pid 4321 {}", "{}:8080 open", "IP地址{}访问",
        "{}, port 22, up", "route {}/12 via eth0",
    ),
    "bare": ("mac {}", "MAC: {}", "hw addr {}", "bssid {}", "MAC={}", "mac address is {}"),
    "passport": (
        "Passport {}", "passport no. {}", "Reisepass {}", "Passport number: {}", "passeport n° {}",
        "my passport is {}", "pasaporte {}",
    ),
    "in other languages": (
        "ur. {} w Gdyni", "syntymäaika {}", "narozen {}", "data urodzenia: {}",
        "född den {} i Umeå",
        "дата рождения: {}", "doğum tarihi: {}", "fødselsdato {}", "születési dátum: {}",
        "né(e) le {}",
        "生年月日は{}です", "(b. {})",
    ),
    "secret in the address": (
        "https://example.org/reset?code={}", "https://example.org/a?otp={}&b=1",
        "https://example.com/cb#access_token={}", "https://example.com/x?y=2&code={}",
    ),
    "password": (
        "pw is {}", "passwort: {}", "mot de passe : {}", "contraseña: {}", "my wifi password is {}",
        "Das Kennwort lautet {}", "la password è {}", "hasło: {}", "пароль: {}", "a senha é {}",
        "het wachtwoord is {}", "Password for the router: {}", "DB_PASSWORD={}", '"pwd":"{}"',
        "密码：{}", "パスワードは{}",
    ),
    "PIN": (
        "PIN {}", "PIN: {}", "my pin is {}", "your verification code is {}", "OTP {}",
        "door code: {}",
        "pin code {}", "access code is {}",
    ),
}  # fmt: skip


def _written(*habits: str) -> Callable[[_Draw], str]:
    return lambda draw: draw.filled(draw.of(habits))


def _checked(module: str, *habits: str) -> Callable[[_Draw], str]:
    """Drawn until stdnum finds the checksum right."""

    def write(draw: _Draw) -> str:
        is_valid, habit = importlib.import_module(f"stdnum.{module}").is_valid, draw.of(habits)
        while True:
            written = draw.filled(habit)
            if is_valid(re.sub("[ ./]", "", written)) or is_valid(written):
                return written

    return write


# Telephone numbers

_BY_HAND = {
    "US": (
        "(###) 555-01##", "%##-555-01##", "%##.555.01##", "1-%##-555-01##", "%## 555 01##",
        "(%##)555-01##", "+1 %## 555-01##", "%##/555-01##", "555-01##", "+1.%##.555.01##",
    ),
    "GB": (
        "020 7946 0###", "(020) 7946 0###", "020-7946-0###", "+44 (0)20 7946 0###",
        "07700 900 ###", "07700 900###", "0113 496 0###", "0044 20 7946 0###", "07700-900-###",
        "(0)20 7946 0###",
    ),
    "FR": (
        "01.99.00.##.##", "01 99 00 ## ##", "06-39-98-##-##", "+33 (0)1 99 00 ## ##",
        "+33 6 39 98 ## ##", "0033 1 99 00 ## ##", "01/99/00/##/##", "01 99 00 #### ",
    ),
    "DE": (
        "030/23125 ###", "(030) 23125-###", "030 23125###", "030 - 23 12 5# ##",
        "0049 30 23125###", "+49 (30) 23125 ###", "0152 28817###", "0152/28817 ###",
    ),
    "ES": (
        "6## ### ###", "91 ### ## ##", "6## ## ## ##", "+34 9## ### ###", "(91) ### ## ##",
        "0034 6########", "6##-###-###", "91#.##.##.##",
    ),
    "IT": (
        "06 ######%#", "333 ### ####", "02-########", "+39 06 ########", "333/#######",
        "0039 333 #######", "333.###.####", "(06) ########",
    ),
    "NL": (
        "020-#######", "06-########", "020 ### ## ##", "06 ## ## ## ##", "+31 (0)20 ### ####",
        "+31 6 ########", "(020) ### ####", "0031 20 #######",
    ),
    "CH": (
        "044 668 ## ##", "079 ### ## ##", "+41 (0)44 668 ## ##", "+41 79 ### ## ##",
        "0041 44 668 ## ##", "044/668 ## ##", "079-###-##-##", "(044) 668 ## ##",
    ),
    "SE": (
        "08-465 004 ##", "070-174 06 ##", "+46 8 465 004 ##", "0701 740 6##",
        "08-46 50 04 ##", "0046 8 465004##", "031-390 06 ##", "+46 (0)70-174 06 ##",
    ),
    "DK": (
        "32 ## ## ##", "+45 32 ## ## ##", "3212####", "+45 3212 ####", "32 12 ## ##",
        "0045 32 ## ## ##", "32 12 ####", "32-12-##-##",
    ),
    "PL": (
        "22 ### ## ##", "501 ### ###", "+48 22 ### ## ##", "501-###-###",
        "(22) ### ## ##", "+48 501 ### ###", "22 #######", "0048 501######",
    ),
    "BR": (
        "(11) 9####-####", "11 9####-####", "+55 11 9####-####", "(11) 3###-####",
        "011 3### ####", "(011) 9#### ####", "+55 (11) 3### ####", "11 3###.####",
    ),
    "IN": (
        "98### #####", "+91 98### #####", "098########", "+91-98##-######",
        "022 2### ####", "(022) 2### ####", "98## ## ## ##", "+91 22 2### ####",
    ),
    "CN": (
        "138 #### ####", "010-6### ####", "+86 138 #### ####", "(010) 6### ####",
        "138-####-####", "0086 138########", "0755-2### ####", "+86 10 6### ####",
    ),
    "JP": (
        "03-####-####", "090-####-####", "+81 3 #### ####", "(03) #### ####",
        "03 (####) ####", "+81-90-####-####", "06-6###-####", "080 #### ####",
    ),
    "AU": (
        "(02) 5550 ####", "0491 570 ###", "+61 2 5550 ####", "02 5550 ####",
        "02-5550-####", "+61 491 570 ###", "04 9157 0###", "0061 2 5550 ####",
    ),
    "RU": (
        "8 (495) ###-##-##", "+7 (495) ###-##-##", "8-495-###-##-##", "+7 495 ### ## ##",
        "8 916 ### ## ##", "8(916)###-##-##", "+7-916-###-##-##", "8 916 ### ####",
    ),
    "TR": (
        "0212 ### ## ##", "(0212) ### ## ##", "+90 212 ### ## ##", "0 532 ### ## ##",
        "0532 ### ####", "+90 (532) ### ## ##", "0212-###-##-##", "0090 212 ### ## ##",
    ),
}  # fmt: skip


def _by_hand(region: str) -> Callable[[_Draw], str]:
    return lambda draw: draw.filled(draw.of(_BY_HAND[region])).strip()


def _by_library(region: str) -> Callable[[_Draw], str]:
    """An example number with its last digits drawn, in one of the library's formats."""

    def write(draw: _Draw) -> str:
        sorts = (phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE)
        example = phonenumbers.example_number_for_type(region, draw.any(sorts))
        assert example is not None and example.national_number is not None
        example.national_number += draw.rng.randint(-20, 20)
        forms = phonenumbers.PhoneNumberFormat
        form = draw.any((forms.NATIONAL, forms.INTERNATIONAL, forms.NATIONAL, forms.E164))
        if draw.half and draw.rng.random() < 0.25:
            other = "DE" if region != "DE" else "FR"
            return phonenumbers.format_out_of_country_calling_number(example, other)
        return phonenumbers.format_number(example, form)

    return write


# Cards, accounts, national numbers


def _card(prefix: str, size: int, *groups: str) -> Callable[[_Draw], str]:
    """Digits with Luhn's check digit, in groups of so many."""

    def write(draw: _Draw) -> str:
        digits = draw.filled(prefix + "#" * (size - len(prefix) - 1))
        return _grouped(digits + luhn.calc_check_digit(digits), draw.of(groups))

    return write


def _grouped(text: str, form: str) -> str:
    """`4 4 6` or `4-4-6` groups of a text; what is left over comes last; `0` keeps it whole."""
    mark, sizes = ("-" if "-" in form else " "), [int(n) for n in re.findall(r"\d+", form)]
    parts = []
    while text:
        size = sizes.pop(0) if sizes else len(text)
        size = size or len(text)
        parts.append(text[:size])
        text = text[size:]
    return mark.join(parts)


def _whole_iban(draw: _Draw, country: str) -> str:
    known = numdb.get("iban").info(country)[0][1]["bban"]
    kinds = {"n": "#", "a": "&", "c": "#"}
    form = "".join(kinds[k] * int(n) for n, k in re.findall(r"(\d+)!(\w)", known))
    rest = draw.filled(form)
    return country + mod_97_10.calc_check_digits(rest + country) + rest


def _iban(country: str) -> Callable[[_Draw], str]:
    def write(draw: _Draw) -> str:
        whole = _whole_iban(draw, country)
        fours = "4 4 4 4 4 4 4 4 4"
        written = _grouped(whole, draw.of((fours, "0", fours.replace(" ", "-"), "2 2 4 4 4 4 4 4")))
        return written.lower() if draw.rng.random() < 0.1 else written

    return write


_NATIONAL = {
    "us.ssn": ("###-##-####", "### ## ####"),
    "ca.sin": ("### ### ###", "###-###-###", "#########"),
    "mx.curp": ("&&&&yymmddHDF&&&##", "&&&&yymmddMJC&&&##"),
    "br.cpf": ("###.###.###-##", "###########", "### ### ### ##", "#########-##"),
    "ar.cuit": ("20-########-#", "27########-#", "20 ######## #"),
    "cl.rut": ("%#.###.###-#", "%#######-#", "%#.###.###-K"),
    "gb.nhs": ("### ### ####", "##########", "###-###-####"),
    "gb nino": ("AB ## ## ## C", "JG######A", "JG ## ## ## D"),
    "ie.pps": ("#######&", "#######&A"),
    "fr.nir": ("2 yy mm 75 ### ### ##", "1yymm69########", "1 yy mm 13 ### ###  ##"),
    "de.idnr": ("%# ### ### ###", "%##########"),
    "at.vnr": ("%### ddmmyy", "%###ddmmyy"),
    "ch.ssn": ("756.####.####.##", "756 #### #### ##", "756##########"),
    "nl.bsn": ("#########", "#### ## ###"),
    "be.nn": ("yy.mm.dd-###.##", "yy.mm.dd ###-##", "yymmdd-###-##"),
    "es.dni": ("########&", "########-&", "######## &"),
    "es.nie": ("X#######&", "Y-#######-&", "X-#######&"),
    "it.codicefiscale": ("BNCMRA##E##H###&", "RSSLCU##A##F###&", "VRD GPP ##T## L###&"),
    "se.personnummer": ("yymmdd-####", "YYYYmmdd-####", "yymmdd####"),
    "no.fodselsnummer": ("ddmmyy #####", "ddmmyy#####"),
    "fi.hetu": ("ddmmyy-###&", "ddmmyy-####"),
    "ee.ik": ("3yymmdd####", "4yymmdd####"),
    "lv.pvn": ("ddmmyy-1####", "ddmmyy-2####"),
    "pl.pesel": ("yymmdd#####",),
    "cz.rc": ("yymmdd/####", "yymmdd####"),
    "ro.cnp": ("1yymmdd######", "2yymmdd######"),
    "bg.egn": ("yymmdd####",),
    "hr.oib": ("###########",),
    "gr.amka": ("ddmmyy#####",),
    "tr.tckimlik": ("%##########",),
    "za.idnr": ("yymmdd#######", "yymmdd #### ###", "yymmdd #### ## #"),
    "in_.aadhaar": ("%### #### ####", "%###-####-####", "%###########"),
    "in_.pan": ("&&&P&####&", "&&&C&####&"),
    "cn.ric": ("110101YYYYmmdd####", "310101YYYYmmdd###X", "110101 YYYYmmdd ####"),
    "kr.rrn": ("yymmdd-1######", "yymmdd-2######"),
    "th.pin": ("%-####-#####-##-#", "% #### ##### ## #", "%############"),
    "my.nric": ("yymmdd-10-####", "yymmdd-14-####"),
    "au.tfn": ("### ### ###", "#########"),
}


# Addresses on the net, and keys


def _ipv6(draw: _Draw) -> str:
    tail = draw.rng.getrandbits(draw.any((16, 32, 64, 80)))
    address = ipaddress.IPv6Address(int(ipaddress.IPv6Address("2001:db8::")) + tail)
    return draw.of((str(address), address.exploded, str(address).upper(), str(address)))


def _random(alphabet: str, *sizes: int) -> Callable[[_Draw], str]:
    return lambda draw: "".join(draw.rng.choices(alphabet, k=draw.any(sizes)))


_LETTERS = string.ascii_letters + string.digits


def _prefixed(*prefixes: tuple[str, int]) -> Callable[[_Draw], str]:
    def write(draw: _Draw) -> str:
        prefix, size = draw.any(prefixes[draw.half :: 2])
        alphabet = string.ascii_uppercase + "234567" if prefix.isupper() else _LETTERS
        return prefix + "".join(draw.rng.choices(alphabet, k=size))

    return write


def _jwt(draw: _Draw) -> str:
    parts = ("".join(draw.rng.choices(_LETTERS + "-_", k=k)) for k in (30, 60, 43))
    return "eyJ" + ".".join(parts)


_PRIVATE: dict[str, dict[str, Callable[[_Draw], str]]] = {
    "e-mail": {
        "plain": _written(
            "^^^.^^^@example.org", "^^^^@mail.example.com", "^^^^+^^@example.co.uk",
            "^^_^^##@example.net", "&^^^.&^^@EXAMPLE.ORG", "o'^^^^@example.org",
        ),
        "international": _written(
            "用户@例え.テスト", "анна.^^@пример.example", "j^^ö@exämple.example",
            "πέτρος@παράδειγμα.example",
            "^^^@xn--r8jz45g.example", "अजय@उदाहरण.example",
        ),
        "spelt": _written(
            "^^^^ at example dot org", "^^^^ [at] example [dot] com",
            "^^^.^^^ (at) example (dot) org",
            "^^^ AT mail DOT example DOT com", "^^^^ @ example.org", "^^^^@ example . org",
            "^^^^(a)example.de", "^^^^ (ä) example.de", "^^^ arroba example punto org",
            "^^^ ät example punkt de",
        ),
        "within a net": _written(
            "^^^^@localhost", "root@localhost", "^^^@mailhost", "^^^@db0#", "^^^@web-##",
            "^^^^@intranet",
        ),
        "quoted": _written(
            '"^^^ ^^^^"@example.org', '"^^^ ^^^"@example.com', '"&^^ &^^^"@mail.example.net',
            '"^^. ^^^"@example.org',
        ),
    },
    "telephone": {
        **{f"{region}, library": _by_library(region) for region in _BY_HAND},
        **{f"{region}, by hand": _by_hand(region) for region in _BY_HAND},
        "text without spaces": _written(
            "090-####-####", "138 #### ####", "010-####-####", "03-####-####", "139-####-####",
            "080 #### ####",
        ),
        "touched by words": _written("0171 %######", "0171-%######", "030 23125###",
        "07700 900###"),
        "beside a date": _written(
            "0171 %######", "(212) 555-01##", "030 23125###", "+49 171 %######", "212-555-01##",
        ),
    },
    "card": {
        "16 digits": _card("4", 16, "4 4 4 4", "4-4-4-4", "0", "4 4 8"),
        "mastercard": _card("5#", 16, "4-4-4-4", "4 4 4 4", "8 8", "0"),
        "15 digits": _card("37", 15, "4 6 5", "0", "4-6-5", "4 6 5"),
        "19 digits": _card("6", 19, "4 4 4 4 3", "0"),
        "spelt": lambda draw: " ".join(_card("4", 16, "0")(draw)),
        "other separators": lambda draw: draw.of(("_", ",", "|", ":", "~", "\n")).join(
            _card("4", 16, "4 4 4 4")(draw).split()
        ),
        "text without spaces": _card("4", 16, "4 4 4 4", "4-4-4-4"),
    },
    "IBAN": {
        **{c: _iban(c) for c in ("DE", "GB", "FR", "NL", "CH", "ES", "IT", "NO", "MT", "SA")},
        "other separators": lambda draw: draw.of(("_", "|", ",", "~", ":", "\n")).join(
            re.findall(".{1,4}", _whole_iban(draw, "DE"))
        ),
    },
    "national number": {
        name: _written(*habits) if " " in name else _checked(name, *habits)
        for name, habits in _NATIONAL.items()
    }
    | {
        "of Singapore": _written("S#######&", "T#######&", "G#######&", "F#######&"),
        "passport": _written("&#######", "&&#######", "&########", "&#&###&##"),
    },
    "IP address": {
        "version 4": _written("192.0.2.%#", "198.51.100.%#", "203.0.113.1##", "192.0.2.%"),
        "in a list": _written("192.0.2.%#", "198.51.100.%#", "203.0.113.%", "10.0.1.1##"),
        "version 6": _ipv6,
    },
    "MAC address": {
        "six pairs": _written(
            "00:00:5e:00:53:~~", "00-00-5E-00-53-#A", "0000.5e00.53~~", "00:00:5E:##:53:A#",
        ),
        "bare": _written("00005e0053~~", "001A2B3C4D##", "0a1b2c3d~~~~", "3C22FBAA####"),
    },
    "date of birth": {
        "numeric": _written(
            "dd.mm.YYYY", "YYYY-mm-dd", "mm/dd/YYYY", "dd/mm/YYYY", "dd-mm-YYYY", "dd.mm.yy"),
        "in words": _written(
            "dd May YYYY", "May dd, YYYY", "dd. März YYYY", "2nd of June YYYY", "dd mai YYYY",
            "dd de octubre de YYYY", "October dd YYYY", "dd Dec. YYYY", "dd luglio YYYY",
            "3 Sept YYYY", "dd marca YYYY", "dd. června YYYY", "May YYYY", "October YYYY",
            "dd мая YYYY",
            "dd Mayıs YYYY",
        ),
        "in other languages": _written("dd.mm.YYYY", "%. %. YYYY", "YYYY-mm-dd", "dd/mm/YYYY"),
    },
    "URL": {
        "user and password": _written(
            "https://^^^:^^##^@example.org/x", "postgres://^^^^:^#^#^#@db.example.org:5432/^^^",
            "ftp://^^^^:^^^^!#@192.0.2.1/", "redis://:^^##^^##@example.com:6379/0",
            "mongodb+srv://^^^:^#^#@c0.example.net/db?w=1", "http://^^:p!^^##@example.org",
        ),
        "secret in the address": _written("^#^#&&#", "%#####", "&^^#&^#^##", "########"),
    },
    "key": {
        "prefixed": _prefixed(
            ("sk-", 48), ("ghp_", 36), ("AKIA", 16), ("xoxb-", 40), ("AIza", 35), ("glpat-", 20),
            ("sk_live_", 24), ("hf_", 34), ("npm_", 36), ("sk-proj-", 60), ("github_pat_", 60),
            ("ASIA", 16), ("SG.abcdefghijklmnop1234.", 43), ("dop_v1_", 64), ("shpat_", 32),
            ("sk-ant-api03-", 80),
        ),
        "token with three parts": _jwt,
        "hexadecimal": _random("0123456789abcdef", 32, 40, 64),
        "base 64": _random(_LETTERS + "+/", 32, 40, 44, 88),
        "letters and digits": _random(_LETTERS, 24, 32, 40),
        "password": _written(
            "^^^^^##", "&^^^^^####", "sunflower", "blumentopf", "&^#^^#^^&#", "^^^^-^^^^-##",
            "azertyuiop",
            "kotik##",
        ),
        "PIN": _written("####", "%#####", "## ##", "### ###"),
        "licence": _written("&#&#-#&#&-##&&-&&##", "&#&&#-#&&#&-&##&&-&&#&#", "^#^#-#^#^-##^^-^^##",
                            "#&&#-&##&-#&#&-&#&#-&&##"),
    },
    "digits": {
        "run": lambda draw: draw.filled("%" + "#" * draw.any((4, 5, 6, 7, 8, 9, 11))),
        "spelt": lambda draw: draw.of((" ", "-",
        " ")).join(draw.filled("#" * draw.any((5, 6, 8, 10)))),
    },
}  # fmt: skip


def _sentence(*habits: str) -> Callable[[_Draw], str]:
    """Habits in which `{low..high}` is a number between."""
    return lambda draw: re.sub(
        r"\{(\d+)\.\.(\d+)\}",
        lambda match: str(draw.rng.randint(int(match[1]), int(match[2]))),
        draw.of(habits),
    )


_BOOKS = ("978-0-###-#####-#", "978-3-16-######-#", "978-1-4#####-##-#", "979-8-####-####-#")


def _book(draw: _Draw) -> str:
    before, mark = draw.of((("ISBN ", ""), ("ISBN ", "-"), ("See ", "-"), ("ISBN: ", "-")))
    number = _checked("isbn", *_BOOKS)(draw)
    return f"{before}{number if mark else number.replace('-', '')}, 2nd edition"


_PUBLIC: dict[str, Callable[[_Draw], str]] = {
    "order number": _sentence(
        "order PO-{1000..9999} has shipped", "invoice {1..999}/{10..24} is due",
        "order #{1000..9999}",
        "ticket ABC-{100..9999} was closed", "case no. {10..99}-{100..999}",
        "item {100..999}-{10..99}",
        "lot B{100..999}-{1..9}", "reference {10..99}/{100..999}/{10..24}",
    ),
    "version": _sentence(
        "version {1..20}.{0..30}.{0..99} is out", "runs on v{1..9}.{0..9}.{0..9}.{100..999}",
        "Python 3.{8..14}.{0..9}", "upgrade from {1..9}.{10..20} to {21..30}.{0..9}.{0..9}",
        "kernel {4..6}.{0..20}.{0..200}-{10..90}-generic", "build {1..9}.{0..9}.{0..9999}",
        "numpy>={1..2}.{0..30}",
        "version {1..20}.{0..30}.{0..9}.{0..99}",
    ),
    "years": _sentence(
        "from {1850..1930} to {1931..2020}", "the war of {1850..1900}-{1901..1950}",
        "in {1950..1980}, {1981..1990} and {1991..2020}", "the {1900..2000}/{10..99} season",
        "{1900..1950}\u2013{1951..2020} in office",
        "summers of {1950..1980} {1981..1990} {1991..2020}",
        "({1800..1850} @-@ {1851..1920})", "the class of {1950..2020}",
    ),
    "score": _sentence(
        "won 6-{0..4} 6-{0..4}", "beat them {80..120}-{70..99}",
        "{10..21}-{10..21} {10..21}-{10..21} {10..21}-{10..21}",
        "drew {0..4}:{0..4} ({0..2}:{0..2})", "a {20..49} @-@ {0..19} win",
        "quarters of {10..40}, {10..40}, {10..40}",
        "led {1..9}\u2013{0..9} at half time", "6-4, 3-6, 7-6({0..9})",
    ),
    "price": _sentence(
        "costs ${1..999},{100..999}.{10..99}", "for €{1..99}.{100..999},{10..99}",
        "{10..99} {100..999} € in all",
        "paid £{100..999} and ¥{1000..9999}", "USD {1..9},{100..999},{100..999}",
        "{1..9} @,@ {100..999} dollars",
        "{100..999}.{10..99} EUR a month", "at {1..9}'{100..999}.{10..99} CHF",
    ),
    "measurement": _sentence(
        "{100..999} @,@ {100..999} inhabitants", "{1..9}.{10..9999} kg", "{10..99} x {10..99} cm",
        "{1..9} @.@ {1..99} km away", "{1..99} {100..999} people",
        "at {10..99}.{1000..9999}, {10..99}.{1000..9999}",
        "between {100..999} and {1000..9999} m", "{1..8} {100..999} {100..999} inhabitants",
    ),
    "time": _sentence(
        "at {10..23}:{10..59}:{10..59}", "from {8..11}.30-{12..19}.15",
        "{10..23}:{10..59} to {10..23}:{10..59}",
        "in {1..59}:{10..59}.{10..99}", "{8..11}:30\u2013{12..19}:45 daily",
        "open {7..11}-{13..20} h",
        "T{10..23}:{10..59}:{10..59}Z", "a run of {1..2}h{10..59}m{10..59}s",
    ),
    "book": _book,
    "date": _sentence(
        "on {2000..2024}-0{1..9}-{10..28}", "on {10..28}.0{1..9}.{2000..2024}",
        "by {10..12}/{10..28}/{2000..2024}",
        "on {1..28} June {1900..2020}", "since {10..28}/{10..12}/{10..24}",
        "May {1..28}, {1900..2020}",
        "signed {10..28}-{10..12}-{2000..2024}", "{2000..2024}/{10..12}/{10..28} {10..23}:{10..59}",
    ),
    "pages": _sentence(
        "pp. {100..400}-{401..900}", "pages {10..49}\u2013{50..99}",
        "see {1..9}.{1..9}.{1..9} and fig. {1..20}",
        "vol. {1..30} ({1..4}), {1000..1400}-{1401..1999}", "chapter {1..9}, p. {100..999}",
        "{1000..1040}-{1041..1099}, {2000..2040}-{2041..2099}", "lines {10..99}-{100..999}",
        "Matthew {1..28}:{1..9}-{10..30}",
    ),
    "name with numbers": _sentence(
        "an A{319..350}-{100..900} of flight BA {100..2000}", "IMG_{1000..9999}.JPG",
        "the B{1..99} to exit {1..99}",
        "room {100..999}, floor {1..9}", "RFC {1000..9999}", "a {100..999}-{10..99} CPU",
        "Boeing 7{1..8}7-{100..900}",
        "M{1..9}A{1..9} and T-{34..90}",
    ),
    "statistics": _sentence(
        "p < 0.0{10..99}, n = {100..999}", "{10..99}.{10..99}% of {1..9},{100..999}",
        "mean {1..9}.{100..999} \u00b1 0.{10..99}",
        "0.{1000..9999} 0.{1000..9999} 0.{1000..9999}", "{1..9}/{10..99} and {1..9}:{10..99}",
        "{100..120} {90..99} {80..89} {70..79}", "rows of {10..99} {10..99} {10..99}",
        "ranks {1..9}, {10..19}, {20..29}, {30..39}",
    ),
    "code": _sentence(
        "std::vector<int> a::b c::d", "commit a{0..9}b{0..9}c{0..9}d",
        "#ff{10..99}{10..99} and #a{0..9}b{0..9}c{0..9}", "x[{10..99}:{100..999}] = {1..9}e-{1..9}",
        "see https://example.org/a/{100..999}?page={1..99}", "@ann and @bob at {1..9} pm",
        "key = value; token count: {100..999}",
        "the state-of-the-art of-this-and-that_under_scored_names {1..9}",
    ),
    "decimal number": _sentence(
        "pi is 3.14159265", "0.69{1000..9999}", "e is 2.71828{100..999}",
        "{0..9}.{100000..999999} of it",
        "loss 0.{10000..99999} 0.{10000..99999}", "phi = 1.618{1000..9999}",
    ),
    "round numbers": _sentence(
        "100 200 300 400", "Order no. 100-200-300", "250 500 750 1000",
        "part no. {100..999}-{1000..2999}",
        "steps of 200 400 600", "order no. {100..999}-{100..999}",
    ),
    "section": _sentence(
        "Figure {1..9}.{1..9}.{1..9}.{1..9}", "Table {1..9}.{1..9}.{1..9}.{1..9} shows",
        "clause {10..20}.{1..9}.{1..9}.{1..9}", "section {1..9}.{1..9}.{1..9}.{1..9} of it",
        "see {1..9}.{1..9}.{1..9}.{1..9}", "Fig. {1..9}.{1..9}.{1..9}.{1..9}",
    ),
    "word for a secret": _sentence(
        "the password is required", "password: required",
        "the password is wrong since {2000..2024}",
        "your password has expired", "Das Passwort ist falsch",
        "the token is passed on to {2..99} people",
        "le mot de passe est incorrect", "a password must be {8..12} letters long",
        "PIN is required",
        "the passcode is not here",
    ),
    "other date": _sentence(
        "born in Paris and died on {1..28} May {1950..2020}", "died {1..28} June {1950..2020}",
        "born in Rome, killed on {1..28} May {1950..2020}", "born in Ulm {1920..1980}",
        "He was born in Leeds. On {1..28} May {1950..2020} it rained",
        "born here, married on {1..28} June {1950..2020}",
    ),
    "path": _sentence(
        "reply {100..150}p/MsgrcvdHG/Suite{100..400}/2Lands/Row/W1J6HL",
        "{2000..2024}-Q1_report-v{1..9}_final{1..9}",
        "docs/{2000..2024}-10-{10..28}_report_final_v{1..9}.pdf",
        "src/model_v2/layer_{1..9}/block_{10..99}/conv",
        "txt to {1000..8999}/150p/wk T&Cs SAE PO", "vit-large-patch{10..16}-{100..300}-in21k",
    ),
    "sentence": _sentence(
        "A password is a word that nobody should guess.", "He was born in {1900..1990} in Bern.",
        "Call me when you are there.", "The phone has 5 keys and {2..9} lights.",
        "Twelve of 30 came by train in {1950..2000}.", "The token is passed on to the next.",
        "They met at dot on the map at noon.", "My number is up, and it is {2..99}.",
    ),
}  # fmt: skip
