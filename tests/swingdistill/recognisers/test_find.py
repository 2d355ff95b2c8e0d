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
    + ["born 1 ", "1 May ", "token ", "gb29 ", "aA1", "-----BEGIN PRIVATE KEY-----", "?key=", "é"],
)
def test_no_text_makes_the_expressions_backtrack_for_long(piece):
    find("call 555-0123")  # what is read once
    text = (piece * 100_000)[:100_000]
    start = time.process_time()
    find(text)
    assert time.process_time() - start < 10.0  # minutes if the time were quadratic
