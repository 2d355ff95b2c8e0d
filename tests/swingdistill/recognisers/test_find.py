"""What the recognisers find in a text, what they leave alone, and how long that takes."""

import itertools
import time

import pytest

from swingdistill.recognisers.find import KINDS, find

# `*` stands for each separator in turn.
SEPARATORS = (" ", "\u00a0", "\u2009", "-", "\u2013", "\u2011", " - ", " @-@ ")


def stretches(text, **settings):
    return [(text[each.start : each.end], each.kind) for each in find(text, **settings)]


@pytest.mark.parametrize(
    ("text", "private", "kind"),
    [
        ("write to ann.lee+x@mail.example.org today", "ann.lee+x@mail.example.org", "e-mail"),
        ("an 用户@例え.テスト schreiben", "用户@例え.テスト", "e-mail"),
        ("mail ann [at] example [dot] org", "ann [at] example [dot] org", "e-mail"),
        ("an ann＠example．org schreiben", "ann＠example．org", "e-mail"),
        ("call +44 (0)20 7946 0958 or ask", "+44 (0)20 7946 0958", "telephone"),
        ("he left (212) 555-0123 ext. 12", "(212) 555-0123 ext. 12", "telephone"),
        ("01 23 45 67 89 répond", "01 23 45 67 89", "telephone"),
        ("0044 20 7946 0958 rang", "0044 20 7946 0958", "telephone"),
        ("pay 4111 1111 1111 1111 now", "4111 1111 1111 1111", "card"),
        ("pay 378282246310005 now", "378282246310005", "card"),
        ("to DE89 3704 0044 0532 0130 00 is", "DE89 3704 0044 0532 0130 00", "IBAN"),
        ("to gb29nwbk60161331926819", "gb29nwbk60161331926819", "IBAN"),
        ("CPF 390.533.447-05 ok", "390.533.447-05", "national number"),
        ("DNI 12345678Z ok", "12345678Z", "national number"),
        ("hetu 131052-308T ok", "131052-308T", "national number"),
        ("from 192.0.2.17 came", "192.0.2.17", "IP address"),
        ("from 2001:db8::17, it", "2001:db8::17", "IP address"),
        ("is 00:00:5e:00:53:af up", "00:00:5e:00:53:af", "MAC address"),
        ("She was born on 12 May 1980 in", "12 May 1980", "date of birth"),
        ("DOB: 1980-05-12.", "1980-05-12", "date of birth"),
        ("(12.05.1980, geboren in Ulm)", "12.05.1980", "date of birth"),
        ("see ftp://ann:s3cret@example.org/x", "ftp://ann:s3cret@example.org/x", "URL"),
        ("get /x?token=abcd1234&y=1", "abcd1234", "URL"),
        ("use AKIAIOSFODNN7EXAMPLE now", "AKIAIOSFODNN7EXAMPLE", "key"),
        ("K=3f9aC1b8Zk20Qx7RtY51Lm is", "3f9aC1b8Zk20Qx7RtY51Lm", "key"),
        ("password: hunter2!", "hunter2", "key"),
        ("order 48213 came", "48213", "digits"),
        ("my account number is 1458-1630 ok", "1458-1630", "digits"),
        ("my id is 4 8 2 1 0 7 thanks", "4 8 2 1 0 7", "digits"),
        ("मेरा कोड ४८२१३ है", "४८२१३", "digits"),
        ("ann@localhost wrote", "ann@localhost", "e-mail"),
        ('to "ann lee"@example.org', '"ann lee"@example.org', "e-mail"),
        ("an hans(a)example.de bitte", "hans(a)example.de", "e-mail"),
        ("ann arroba example punto org", "ann arroba example punto org", "e-mail"),
        ("dni 12.345.678-Z ok", "12.345.678-Z", "national number"),
        ("NRIC S1234567D ok", "S1234567D", "national number"),
        ("Passport X1234567 ok", "X1234567", "national number"),
        ("host ::1 is up", "::1", "IP address"),
        ("mac 001A2B3C4D5E is up", "001A2B3C4D5E", "MAC address"),
        ("IBANDE89370400440532013000", "DE89370400440532013000", "IBAN"),
        ("https://example.org/reset?code=8fk2Lq0", "8fk2Lq0", "URL"),
        ("https://example.org/r/3f9aC1b8Zk20Qx7RtY51Lm", "3f9aC1b8Zk20Qx7RtY51Lm", "URL"),
        ("https://hooks.slack.com/services/T0/B0/abcDEF123", "T0/B0/abcDEF123", "URL"),
        ("license XJ4K-9F2M-77QP-LZ3D ok", "XJ4K-9F2M-77QP-LZ3D", "key"),
        ("PIN 4921 ok", "4921", "key"),
    ],
)
def test_each_kind_is_found_whole_and_named(text, private, kind):
    assert stretches(text) == [(private, kind)]
    assert kind in KINDS


@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize(
    ("number", "kind"),
    [
        ("212*555*0123", "telephone"),
        ("4111*1111*1111*1111", "card"),
        ("DE89*3704*0044*0532*0130*00", "IBAN"),
        ("943*476*5919", "national number"),
    ],
)
def test_any_separator_that_a_person_or_a_tokenizer_writes_is_one(number, kind, separator):
    written = number.replace("*", separator)
    assert stretches(f"it is {written} .") == [(written, kind)]


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("卡号4111 1111 1111 1111有效期", "4111 1111 1111 1111"),
        ("電話は090-1234-5678です", "090-1234-5678"),
        ("전화번호는 010-1234-5678입니다", "010-1234-5678"),
        ("マイナンバー1234 5678 9018です", "1234 5678 9018"),
        ("IP地址203.0.113.7访问", "203.0.113.7"),
        ("密码：abcd1234", "abcd1234"),
        ("1990年1月2日生まれ", "1990年1月2日"),
        ("Tel0171 1234567Fax", "0171 1234567"),
        ("a536-90-4399", "536-90-4399"),
    ],
)
def test_a_letter_beside_a_number_does_not_hide_it(text, private):
    assert [found for found, _ in stretches(text)] == [private]


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("net 203.0.113.0/24", ["203.0.113.0"]),
        ("IP:203.0.113.7:443", ["203.0.113.7"]),
        ("203.0.113.7-203.0.113.9", ["203.0.113.7", "203.0.113.9"]),
        ("10.0.0.1 10.0.0.2 443", ["10.0.0.1", "10.0.0.2"]),
        ("pid 4321 203.0.113.7", ["203.0.113.7"]),
        ("2023-01-02 0171 1234567", ["0171 1234567"]),
        ("0171 1234567 2023-01-02", ["0171 1234567"]),
    ],
)
def test_numbers_beside_others_are_found_whole(text, private):
    assert [found for found, _ in stretches(text)] == private


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("pw is Tr0ub4dor&3", "Tr0ub4dor&3"),
        ("passwort: Sommer2024!", "Sommer2024"),
        ("mot de passe : azerty12", "azerty12"),
        ("contraseña: Gato1234", "Gato1234"),
        ("a senha é flamengo", "flamengo"),
        ("пароль: kotik77", "kotik77"),
        ("my wifi password is sunflower", "sunflower"),
        ("password for the router: sunflower", "sunflower"),
        ("DB_PASSWORD=sunflower", "sunflower"),
        ('{"password": "correct horse"}', "correct horse"),
        ("passphrase: correct horse battery staple", "correct horse battery staple"),
    ],
)
def test_a_password_is_what_follows_the_word_for_it(text, private):
    assert stretches(text) == [(private, "key")]


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("ur. 12.03.1984 w Łodzi", "12.03.1984"),
        ("syntymäaika 12.3.1984", "12.3.1984"),
        ("narozen 12. 3. 1984", "12. 3. 1984"),
        ("urodzona 12 marca 1984", "12 marca 1984"),
        ("született 1984. március 12-én", "1984. március 12"),
        ("born in March 1984", "March 1984"),
        ("born 3 May 1920, died 4 June 1990", "3 May 1920"),
    ],
)
def test_births_are_told_in_many_languages(text, date):
    assert stretches(text) == [(date, "date of birth")]


@pytest.mark.parametrize("separator", ["_", ",", ":", "|", "~", "\n"])
@pytest.mark.parametrize(
    ("groups", "kind"), [("4111 1111 1111 1111", "card"), ("DE89 3704 0044 0532 0130 00", "IBAN")]
)
def test_where_a_checksum_holds_marks_of_lists_and_line_breaks_are_separators(
    groups, kind, separator
):
    written = groups.replace(" ", separator)
    assert stretches(f"pay {written} now") == [(written, kind)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "on 2011-05-12 at 10:30 I paid 1999 for 3 of 12 in 1914-1918",
        "section 4.2.1 of volume 3, pages 998-1002, costs $1,200.50",
        "won 6-4 6-3, then 21-19 21-17 21-15",
        "version 10.0.0.1 of kernel 5.15.0-91",
        "ISBN 978-0-306-40615-7, or 0-306-40615-2",
        "ISBN 9780306406157",
        "the summers of 1982 1986 1990",
        "12 345 678 inhabitants on 1.200.500 km",
        "std::vector of a::b, and @ann at 5 pm",
        "he was born in 1980",
        "a password is a word; the token: none",
        "1 @,@ 234 in 2011 @-@ 12",
        "the state-of-the-art of-this-and-that_under_scored_names_2020",
        "pi is 3.14159265, ln 2 is 0.693147",
        "100 200 300 400",
        "Order no. 100-200-300",
        "Figure 4.2.1.3 and version 1.2.3.4",
        "x[::2] and y[1::2]",
        "born in Paris and died on 3 May 1990",
        "born in Ulm 1980",
        "the password is required, the password is wrong, the password is not here",
        "password: required",
        "to 150p/MsgrcvdHG/Suite342/2Lands/Row/W1J6HL",
        "4000, 4100, 4200, 4300",
        "1_000_000 items",
    ],
)
def test_what_only_looks_private_is_left_alone(text):
    assert stretches(text) == []


def test_a_wrong_checksum_is_no_card_and_no_iban():
    assert ("4111 1111 1111 1112", "card") not in stretches("pay 4111 1111 1111 1112")
    assert stretches("DE88 3704 0044 0532 0130 00")[0][1] != "IBAN"


def test_the_users_expressions_come_beside_the_kinds_and_carry_their_own_name():
    found = stretches("ticket AB-77 of 48213", extra=[r"[A-Z]{2}-\d+", r"x*"])
    assert found == [("AB-77", r"expression '[A-Z]{2}-\\d+'"), ("48213", "digits")]


def test_stretches_are_in_order_and_none_is_within_another():
    text = "ann@example.org or bob@example.org or 212-555-0123 or 4111 1111 1111 1111"
    found = find(text)
    assert [each.kind for each in found] == ["e-mail", "e-mail", "telephone", "card"]
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    assert {each.score for each in found} == {1.0}


@pytest.mark.parametrize(
    "piece",
    ["1", "1 ", "1-", "12 ", "00-", "+1 (", "a.", "a@", "@a.", "1:", "://", "a://b:", "at dot "]
    + ["born 1 ", "1 May ", "token ", "gb29 ", "aA1", "-----BEGIN PRIVATE KEY-----", "?key=", "é"]
    + [
        "password ",
        "password is ",
        "password for the ",
        'pw "',
        "pin ",
        "1_000",
        "1.1.1.1 ",
        "4111,",
    ]
    + ["a(a)b.", "passport A12 ", "A1B2-C3D4-", "0.12345 ", "*1. ", "生", "seed phrase: abc "],
)
def test_no_text_makes_the_expressions_backtrack_for_long(piece):
    find("call 555-0123")  # what is read once
    text = (piece * 100_000)[:100_000]
    start = time.process_time()
    find(text)
    assert time.process_time() - start < 10.0  # minutes if the time were quadratic
