"""Generated customer-service text."""

import hashlib
import re
from collections import Counter

from distill_core.data.text import records
from distill_core.data.text.records import LABELS, PRIVATE, generate_records

RECORDS = generate_records(2000, 0)


def test_the_records_of_a_seed_never_change():
    digest = hashlib.sha256("\n".join(record.text for record in RECORDS).encode()).hexdigest()
    assert digest[:16] == "0d977e62868fd2df"
    assert RECORDS[0].text == "Please send the invoice for the radio to pereira_anton@example.com."
    assert generate_records(50, 0) == RECORDS[:50]
    assert generate_records(50, 1) != RECORDS[:50]


def test_spans_are_the_private_fields():
    for record in RECORDS:
        assert not re.search(r"[{}]|\s\s", record.text)
        assert all(value in record.text for value in record.fields.values())
        for start, end, kind in record.spans:
            assert record.text[start:end] == record.fields[kind]
        assert list(record.spans) == sorted(record.spans)
        assert {kind for _, _, kind in record.spans} == record.fields.keys() & set(PRIVATE)


def test_nothing_private_stands_outside_a_span():
    private = re.compile(r"@|\d{4}|555")
    names = {*records.FIRST_NAMES, *records.LAST_NAMES}
    for record in RECORDS:
        rest = record.text
        for start, end, _ in reversed(record.spans):
            rest = rest[:start] + rest[end:]
        assert not private.search(rest)
        assert not names & set(re.findall(r"\w+", rest))


def test_every_kind_of_private_span_and_every_label_is_there():
    kinds = Counter(kind for record in RECORDS for _, _, kind in record.spans)
    assert kinds.keys() == set(PRIVATE)
    assert min(kinds.values()) > 150
    labels = Counter(record.label for record in RECORDS)
    assert labels.keys() == set(LABELS)
    assert min(labels.values()) > 180  # 250 are expected


def test_variety():
    assert sum(map(len, records.TEMPLATES.values())) >= 40
    assert len(set(records.FIRST_NAMES)) == len(records.FIRST_NAMES) >= 200
    assert len(set(records.LAST_NAMES)) == len(records.LAST_NAMES) >= 200
    assert len({record.text for record in RECORDS}) > 1900
    without = sum(not record.spans for record in RECORDS)
    assert 0.1 < without / len(RECORDS) < 0.3


def test_no_address_or_number_can_be_real():
    for record in RECORDS:
        if "phone" in record.fields:
            assert re.sub(r"\D", "", record.fields["phone"])[3:6] == "555"
        if "email" in record.fields:
            assert re.search(r"[@.]example(\.com|\.org|\.net)?$", record.fields["email"])
