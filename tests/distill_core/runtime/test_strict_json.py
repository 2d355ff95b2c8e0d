"""No file that the project writes holds NaN or Infinity, which are no JSON."""

import json
import math

import numpy as np
import pytest

from distill_core.checkpoint import integrity
from distill_core.runtime import progress, strict_json
from distill_core.training import loop

VALUES = {"a": math.nan, "b": [1.5, -math.inf, {"c": np.float64("inf")}], "d": (math.inf, 2)}
PLAIN = {"a": None, "b": [1.5, None, {"c": None}], "d": [None, 2]}


def strictly(text):
    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_what_is_not_finite_is_null():
    assert strictly(strict_json.encode(VALUES)) == PLAIN
    assert math.isnan(VALUES["a"]), "the value itself is left alone"
    with pytest.raises(TypeError):
        strict_json.encode({"a": object()})


def test_metrics_and_metadata_are_strict(tmp_path):
    metrics = progress.MetricsFile(tmp_path / "metrics.jsonl", active=True)
    metrics.write({"step": 1, "split": "test", "accuracy": math.nan})
    metrics.flush()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert strictly(line)["accuracy"] is None
    integrity._write_metadata(tmp_path, {"pending": [{"loss": 1.0, "rare": math.nan}]})
    stored = strictly((tmp_path / integrity.METADATA).read_text())
    assert stored["pending"] == [{"loss": 1.0, "rare": None}]
    window = loop._Window(stored["pending"])
    assert window.close()["loss"] == 1.0, "a resumed run averages what was pending"
