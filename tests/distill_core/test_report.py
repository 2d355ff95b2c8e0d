"""results.json, the console table and the HTML page say what was measured, and nothing else."""

import html.parser
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from distill_core import report
from distill_core.report import Gate, Row

PRIVACY = {"privacy_unit": "record", "adjacency": "add-or-remove", "delta": 1e-5}
# The smallest PNG: one transparent pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
)


def rows():
    return [
        Row("teacher_normal", {"omega": 0.04}, {"accuracy": [0.98, 0.99, 1.0]}),
        Row("private", PRIVACY, {"accuracy": [0.9, 0.9, 0.9], "epsilon": [3.0, 3.0, 3.0]}),
    ]


def write_results(path, rows, **changes):
    given = {
        "method": "nasty",
        "dataset": "digits",
        "rows": rows,
        "gates": [Gate("gap", np.bool_(True), np.float32(0.5), "at least 0.05")],
        "environment": {"python": "3"},
    }
    report.write_results(path, **(given | changes))
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"bare {name}"))


def write_html(path, tmp_path, **changes):
    (tmp_path / "figure.png").write_bytes(PNG)
    given = {
        "title": "Nasty teacher",
        "summary": "First.\n\nSecond.",
        "rows": rows(),
        "metrics": ["accuracy", "epsilon"],
        "gates": [Gate("kept", True, 1.1, "at most 2"), Gate("gap", False, 3.0, "at least 5")],
        "figures": [("Accuracy of every arm", tmp_path / "figure.png")],
        "notes": ["A note."],
        "environment": {"device_kind": "cpu"},
        "command": "python -m nasty.experiment",
    }
    report.write_html(path, **(given | changes))
    return path.read_text()


def printed(table, width=80):
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def test_summary_has_the_sample_deviation():
    summary = report.summarize([1.0, 2.0, 3.0, 6.0])
    assert summary == {"mean": 3.0, "std": pytest.approx(14 / 3) ** 0.5, "n": 4} | {
        "values": [1.0, 2.0, 3.0, 6.0]
    } or summary["std"] == pytest.approx((14 / 3) ** 0.5)
