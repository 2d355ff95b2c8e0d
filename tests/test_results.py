"""A table that names a file of docs/results/ shows the numbers that are in it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
# <!-- docs/results/NAME.json -->, and the table or block of text after it.
_MARKED = re.compile(r"<!-- docs/results/(\w+)\.json -->\n+((?:\|.*\n)+|```\n(?:.*\n)+?```\n)")
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w.]*\w)")


def _tables() -> list:
    """(page, file, table) of every marked table."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        pytest.param(name, table, id=f"{page.relative_to(ROOT)}: {name}")
        for page in pages
        if "_build" not in page.parts
        for name, table in _MARKED.findall(page.read_text("utf-8"))
    ]


def _numbers(value: object) -> Iterator[float]:
    """All numbers within a value of JSON."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _numbers(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def _of_arm(results: dict, arm: str) -> set[float]:
    """What a results file says of an arm."""
    found = [row for row in results["rows"] if row["arm"] == arm]
    fields = [value[arm] for value in results.values() if isinstance(value, dict) and arm in value]
    return set(_numbers(found + fields))


def _unknown(line: str, results: dict) -> list[str]:
    """The numbers of a row that are none of its arm's, as they are or in percent."""
    arms = [row["arm"] for row in results["rows"]]
    words = re.findall(r"\w+", line)
    arm = next((word for word in words if word in arms), None)
    if arm is None:
        return []
    known = _of_arm(results, arm)
    written = line.partition("|")[2].partition("|")[2] if line.startswith("|") else line
    written = re.sub(r"`[^`]*`|#.*", "", written).replace(arm, "")
    unknown = []
    for text in _NUMBER.findall(written):
        digits = len(text.partition(".")[2])
        half = 0.5 * 10**-digits * (1 + 1e-6)
        value = float(text.replace(",", ""))
        if not any(abs(value - scale * each) <= half for each in known for scale in (1, 100)):
            unknown.append(text)
    return unknown


@pytest.mark.parametrize(("name", "table"), _tables())
def test_the_numbers_of_a_table_are_those_of_its_results(name, table):
    results = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    lines = table.splitlines()
    assert any(row["arm"] in line for row in results["rows"] for line in lines)
    assert {line: _unknown(line, results) for line in lines if _unknown(line, results)} == {}


def test_a_number_that_was_not_measured_is_found():
    metrics = {"accuracy": {"mean": 0.98333, "std": 0.0056, "values": [0.98]}}
    results = {"rows": [{"arm": "kd", "metrics": metrics}], "exposure": {"kd": {"1": [3.7]}}}
    assert _unknown("| plain (`kd`) | 98.3 ± 0.6 | 3.7 |", results) == []
    assert _unknown("| plain (`kd`) | 98.4 ± 0.6 | 3.71 |", results) == ["98.4", "3.71"]
    assert _unknown(" kd   98.33% ±0.5", results) == ["0.5"]
