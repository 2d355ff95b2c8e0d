"""results.json, the console table and the HTML page say what was measured, and nothing else."""

import html.parser
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from distill_core.experiment import report
from distill_core.experiment.report import Gate, Row

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
    summary = report.summarize([1, 2.0, np.float32(3.0), 6.0])
    assert summary["std"] == pytest.approx((14 / 3) ** 0.5)
    assert (summary["mean"], summary["n"], summary["values"]) == (3.0, 4, [1.0, 2.0, 3.0, 6.0])


def test_summary_of_one_of_none_and_of_infinities():
    assert report.summarize([0.5]) == {"mean": 0.5, "std": 0.0, "n": 1, "values": [0.5]}
    assert report.summarize([float("inf"), 1.0])["mean"] == float("inf")
    with pytest.raises(ValueError, match="at least one run"):
        report.summarize([])


def test_results_follow_the_schema(tmp_path):
    got = write_results(tmp_path / "new" / "results.json", rows(), extra={"trend": [1, (2, 3)]})
    assert list(got) == ["method", "dataset", "rows", "gates", "environment", "trend"]
    first, second = got["rows"]
    assert list(first) == ["arm", "settings", "metrics"]
    assert first["arm"] == "teacher_normal" and first["settings"] == {"omega": 0.04}
    accuracy = first["metrics"]["accuracy"]
    assert accuracy == {"mean": pytest.approx(0.99), "std": pytest.approx(0.01), "n": 3} | {
        "values": [0.98, 0.99, 1.0]
    }
    assert second["settings"] == PRIVACY
    gate = {"name": "gap", "passed": True, "value": 0.5, "needed": "at least 0.05"}
    assert got["gates"] == [gate]
    assert got["trend"] == [1, [2, 3]]


def test_results_write_what_is_not_finite_as_null(tmp_path):
    values = [float("nan"), float("inf"), 1.0]
    settings = {"clip": np.float32("nan"), "sizes": np.array([1.0, np.inf])}
    got = write_results(tmp_path / "results.json", [Row("a", settings, {"perplexity": values})])
    assert got["rows"][0]["metrics"]["perplexity"]["values"] == [None, None, 1.0]
    assert got["rows"][0]["metrics"]["perplexity"]["mean"] is None
    assert got["rows"][0]["settings"] == {"clip": None, "sizes": [1.0, None]}


@pytest.mark.parametrize("missing", PRIVACY)
def test_epsilon_without_its_meaning_is_refused(tmp_path, missing):
    settings = {name: value for name, value in PRIVACY.items() if name != missing}
    row = Row("private", settings, {"epsilon": [1.0]})
    with pytest.raises(ValueError, match=f"'private' has epsilon but no {missing}"):
        write_results(tmp_path / "results.json", [row])
    with pytest.raises(ValueError, match=missing):
        write_html(tmp_path / "report.html", tmp_path, rows=[row])
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".png"] == []


def test_extra_cannot_replace_a_field(tmp_path):
    with pytest.raises(ValueError, match="rows"):
        write_results(tmp_path / "results.json", rows(), extra={"rows": []})


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(path, rows())
    before = path.read_text()
    monkeypatch.setattr(type(report.epath.Path(path)), "replace", _cut_short)
    with pytest.raises(OSError, match="cut short"):
        write_results(path, [])
    assert path.read_text() == before


def _cut_short(*_):
    raise OSError("cut short")


def test_environment_names_versions_and_devices():
    environment = report.environment()
    assert {"python", "jax", "flax", "device_kind", "device_count", "cpu", "cores", "platform"} < (
        set(environment)
    )
    assert environment["device_count"] >= 1 and environment["cores"] >= 1
    assert environment["project"]
    json.dumps(environment)


def test_table_shows_percent_and_deviation():
    text = printed(report.console_table(rows(), ["accuracy", "epsilon"], "Nasty [bold]"))
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
    assert lines["teacher_normal"] == ["99.0%", "±1.0", "–"]
    assert lines["private"] == ["90.0%", "±0.0", "3.00", "±0.00"]
    assert "Nasty [bold]" in text  # a title is text, not markup
    caption = " ".join(text.split())
    assert "over 3 runs" in caption and "per record, add-or-remove, δ = 1e-05" in caption


def test_table_counts_runs_where_they_differ():
    uneven = [*rows(), Row("once", {}, {"accuracy": [0.5]})]
    text = printed(report.console_table(uneven, ["accuracy"], "Uneven"))
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
    assert lines["once"] == ["50.0%", "1"]  # no ± for a single run
    assert lines["private"][-1] == "3"


def test_table_fits_80_columns_with_six_metrics():
    names = ["perplexity", "digit_perplexity", "exposure_1", "exposure_10", "exposure_100"]
    names.append("worst_exposure_100")
    arms = [
        Row(arm, {}, {name: [11.25, 31.5, 20.0] for name in names})
        for arm in ("student_ce", "ce_dropped")
    ]
    text = printed(report.console_table(arms, names, "Swing"))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("20.92") == 2 * len(names) and "…" not in text
    assert "ce_dropped" in text and "perplexity" in text


class Page(html.parser.HTMLParser):
    """Every tag closed in order, every address a document loads from, and the visible text."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.alts, self.text, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attrs = dict(attrs)
        self.sources += [attrs[name] for name in ("src", "href", "srcset") if name in attrs]
        if tag == "img":
            self.alts.append(attrs.get("alt"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def test_page_loads_nothing_and_holds_its_figures(tmp_path):
    text = write_html(tmp_path / "report.html", tmp_path)
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert not re.search(r"https?://|//\w|@import|url\(|<script", text)
    assert [source[:22] for source in page.sources] == ["data:image/png;base64,"]
    assert page.alts == ["Accuracy of every arm"]
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_page_says_results_and_gates_in_words(tmp_path):
    text = " ".join(Page(write_html(tmp_path / "report.html", tmp_path)).text)
    for words in ("99.00%", "±1.00", "per record, add-or-remove, δ = 1e-05", "omega = 0.04"):
        assert words in text
    assert "1 of 2 passed" in text and "measured 3, needed at least 5" in text
    assert text.count("missed") == 1
    for words in ("First.", "Second.", "A note.", "python -m nasty.experiment", "device kind"):
        assert words in text


def test_page_shows_markup_as_text(tmp_path):
    evil = "<script>alert('\"&')</script>"
    text = write_html(
        tmp_path / "report.html",
        tmp_path,
        title=evil,
        summary=evil,
        rows=[Row(evil, {evil: evil}, {evil: [0.5]})],
        metrics=[evil],
        gates=[Gate(evil, True, evil, evil)],
        figures=[(evil, tmp_path / "figure.png")],
        notes=[evil],
        environment={evil: evil},
        command=evil,
        sections=[(evil, "<p>ours</p>")],
        extra_tables=[(evil, [evil, evil], [[evil, evil]])],
    )
    page = Page(text)
    assert "script" not in page.tags and page.alts == [evil]
    assert "".join(page.text).count(evil) == 17 + 1 + 5


def test_page_leaves_empty_sections_out(tmp_path):
    text = write_html(tmp_path / "report.html", tmp_path, gates=[], figures=[], notes=[])
    assert not any(heading in "".join(Page(text).text) for heading in ("Gates", "Figures", "Notes"))


def test_page_shows_more_tables_and_then_sections_after_the_figures(tmp_path):
    text = write_html(
        tmp_path / "report.html",
        tmp_path,
        sections=[("Samples", "<p><b>shaded</b> text</p>")],
        extra_tables=[("Scorers", ["scorer", "recall"], [["rules", "0.94"], ["oracle", None]])],
    )
    page = Page(text)
    words = [word for word in page.text if word.strip()]
    order = ["Figures", "Scorers", "scorer", "recall", "rules", "0.94", "oracle", "–", "Samples"]
    assert [word for word in words[words.index("Figures") :] if word in order] == order
    assert words.index("Samples") < words.index("shaded") < words.index("Notes")
    assert page.tags.count("b") == 1  # a section's HTML is HTML


def test_page_without_more_tables_or_sections_has_no_heading_for_them(tmp_path):
    empty = [("Scorers", ["scorer"], [])]
    text = write_html(
        tmp_path / "report.html", tmp_path, extra_tables=empty, sections=[("Samples", "")]
    )
    words = "".join(Page(text).text)
    assert not any(heading in words for heading in ("Further", "Scorers", "Samples"))


def test_a_row_that_does_not_fit_its_head_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Scorers: got a row of 1 cells; the head has 2"):
        write_html(
            tmp_path / "report.html",
            tmp_path,
            extra_tables=[("Scorers", ["scorer", "recall"], [["rules"]])],
        )
