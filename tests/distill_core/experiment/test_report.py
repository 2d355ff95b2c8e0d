"""results.json, the console and the page say what was measured, and nothing else."""

import datetime
import html.parser
import io
import json
import os
import re
import shlex
import subprocess
import sys
import types

import numpy as np
import pytest
from matplotlib.figure import Figure as Drawn
from rich.console import Console

from distill_core.experiment import plotting, report
from distill_core.experiment.report import Figure, Gate, Report, Row, Table

PRIVACY = {"privacy_unit": "record", "adjacency": "add-or-remove", "delta": 1e-5}
ROWS = [
    Row("teacher_normal", {"omega": 0.04}, {"accuracy": [0.98, 0.99, 1.0]}, "trained plainly"),
    Row("private", PRIVACY, {"accuracy": [0.9] * 3, "epsilon": [3.0] * 3}, "protects records"),
]


def made(**changes):
    given = {
        "method": "nasty",
        "dataset": "digits",
        "title": "Nasty teacher",
        "summary": "Something was found.",
        "rows": ROWS,
        "num_test": 360,
        "metrics": ["accuracy", "epsilon", "not_measured"],
        "gates": [
            Gate("kept", np.bool_(True), np.float32(0.5), "at most 2"),
            Gate("gap", False, 3.0, "at least 5"),
        ],
        "settings": {"seeds": (1, 2)},
        "minutes": 1.5,
        "environment": {"command": "python -m nasty.experiment --config x", "device_kind": "cpu"},
    }
    return Report(**(given | changes))


def results(given):
    text = report.results_json(given)
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"bare {name}"))


def printed(given, width=80):
    out = io.StringIO()
    report.print_tables(given, Console(file=out, width=width))
    return out.getvalue()


def png(path):
    return plotting.save(Drawn(figsize=(2, 1)), path)


def fail(path):
    raise ValueError("no such colour")


def test_summary_has_the_sample_deviation():
    summary = report.summarize([1, 2.0, np.float32(3.0), 6.0])
    assert summary["std"] == pytest.approx((14 / 3) ** 0.5)
    assert (summary["mean"], summary["n"], summary["values"]) == (3.0, 4, [1.0, 2.0, 3.0, 6.0])
    assert report.summarize([0.5]) == {"mean": 0.5, "std": 0.0, "n": 1, "values": [0.5]}
    with pytest.raises(ValueError, match="at least one run"):
        report.summarize([])


def test_results_follow_the_schema():
    got = results(made(fields={"trend": [1, (2, 3)]}))
    assert {"method", "dataset", "rows", "gates", "environment"} < set(got)
    assert (got["settings"], got["minutes"], got["trend"]) == ({"seeds": [1, 2]}, 1.5, [1, [2, 3]])
    first, second = got["rows"]
    assert list(first) == ["arm", "settings", "metrics"]
    assert first["arm"] == "teacher_normal" and first["settings"] == {"omega": 0.04}
    values = {"values": [0.98, 0.99, 1.0], "n": 3}
    spread = {"mean": pytest.approx(0.99), "std": pytest.approx(0.01)}
    assert first["metrics"]["accuracy"] == values | spread
    assert second["settings"] == PRIVACY
    gate = {"name": "kept", "passed": True, "value": 0.5, "needed": "at most 2"}
    assert got["gates"][0] == gate


def test_results_write_what_is_not_finite_as_null():
    values = [float("nan"), float("inf"), 1.0]
    settings = {"clip": np.float32("nan"), "sizes": np.array([1.0, np.inf])}
    (row,) = results(made(rows=[Row("a", settings, {"perplexity": values}, "an arm")]))["rows"]
    assert row["metrics"]["perplexity"]["values"] == [None, None, 1.0]
    assert row["metrics"]["perplexity"]["mean"] is None
    assert row["settings"] == {"clip": None, "sizes": [1.0, None]}


@pytest.mark.parametrize("missing", PRIVACY)
def test_epsilon_without_its_meaning_is_refused(missing):
    settings = {name: value for name, value in PRIVACY.items() if name != missing}
    with pytest.raises(ValueError, match=f"'private' has epsilon but no {missing}"):
        made(rows=[Row("private", settings, {"epsilon": [1.0]}, "an arm")])


def test_an_arm_that_is_not_explained_is_refused():
    with pytest.raises(ValueError, match="'mask' does not say what it is"):
        made(rows=[Row("mask", {}, {"accuracy": [0.5]}, "")])


def test_the_console_shows_percent_and_deviation():
    text = printed(made(title="Nasty [bold]", warning="nothing is claimed"))
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
    assert lines["teacher_normal"] == ["99.0%", "±1.0", "–", "trained", "plainly"]
    assert lines["private"] == ["90.0%", "±0.0", "3.00", "±0.00", "protects", "records"]
    assert "Nasty [bold]" in text  # a title is text, not markup
    caption = " ".join(text.split())
    assert "over 3 runs" in caption and "per record, add-or-remove, δ = 1e-05" in caption
    assert "MISSED  gap: 3.0, needed at least 5\nnothing is claimed" in text
    uneven = printed(made(rows=[*ROWS, Row("once", {}, {"accuracy": [0.5]}, "a trial")]))
    assert re.search(r"once +50\.0% +– +1 +a trial *\n", uneven)  # no ± for a single run


def test_arms_of_a_wide_table_and_of_others_are_explained_below_it():
    wide = [Row(row.arm, row.settings, {**row.metrics, "loss": [1.0]}, row.about) for row in ROWS]
    about = {"htc": "softens the teacher", "none": "the normal teacher"}
    fought = Table("Attacks", ["attack", "none"], [["htc", "93.6"]], about=about)
    given = made(rows=wide, metrics=["accuracy", "epsilon", "loss"], tables=[fought])
    text = printed(given)
    places = [text.index(words) for words in (
        "δ = 1e-05", "teacher_normal  trained plainly", "private         protects records",
        "Attacks", "htc   softens the teacher", "none  the normal teacher", "passed",
    )]  # fmt: skip
    assert places == sorted(places)
    page = Page(report.html(given, [])).words
    for words in (
        "teacher_normaltrained plainly",
        "htcsoftens the teacher",
        "nonethe normal teacher",
    ):
        assert words in page


@pytest.mark.parametrize(
    ("num_test", "values", "shown"),
    [
        (60, [0.98333], "98%"),
        (360, [0.98333], "98.3%"),  # one image is 0.28%
        (1_000, [0.98333], "98.3%"),
        (10_000, [0.98333], "98.33%"),
        (47_544, [0.98333], "98.33%"),
        (10_000, [0.8, 0.84], "82.0% ±2.8"),  # no digit finer than the spread's second
        (10_000, [0.5, 0.9], "70% ±28"),
        (10_000, [0.8, 0.8], "80.00% ±0.00"),
    ],
)
def test_rates_have_no_digit_finer_than_an_example_or_the_spread_shows(num_test, values, shown):
    given = made(rows=[Row("a", {}, {"accuracy": values}, "an arm")], num_test=num_test)
    assert f"{shown} " in printed(given)
    assert shown in Page(report.html(given, [])).words.replace("\n", "")
    assert results(given)["rows"][0]["metrics"]["accuracy"]["values"] == values  # all digits


class Page(html.parser.HTMLParser):
    """Tags and text of a page whose every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        del attrs
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_the_page_loads_nothing_and_says_everything(tmp_path, capsys):
    figures = [
        Figure("Drawn.", "figures/a.png", png),
        Figure("By a stage.", "runs/b.png"),
        Figure("Left out.", "figures/c.png", fail),
        Figure("Never drawn.", "runs/d.png"),
    ]
    png(tmp_path / "runs/b.png")
    tables = [Table("Scorers", ["scorer", "recall"], [["rules", None]]), Table("Empty", ["a"], [])]
    sections = [("Samples", "<b>shaded</b>")]
    report.publish(
        made(figures=figures, tables=tables, sections=sections, notes=["Ours."]), tmp_path
    )
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?://|//\w|@import|url\(|<(script|link)", text)
    assert text.count('src="data:image/png;base64,') == 2
    page = Page(text)
    for words in (
        *(
            "Nasty teacher",
            "Something was found.",
            "Criteria: 1 of 2 passed",
            "measured 3, needed at least 5",
        ),
        *("99.0%", "±1.0", "per record, add-or-remove, δ = 1e-05", "omega = 0.04", "private"),
        *("trained plainly", "protects records", "over 360 test", "seeds", "(1, 2)"),
        *("Drawn.", "By a stage.", "Scorers", "shaded", "Ours.", "took 1.5 minutes"),
        *("python -m nasty.experiment", "device kind"),
    ):
        assert words in page.words, words
    assert "details" not in page.tags  # settings are open
    assert not re.search("Left out|Never drawn|Empty|not measured", page.words)
    out, err = capsys.readouterr()
    assert f"report: {tmp_path}/report.html" in out
    assert err == f"{tmp_path}/figures/c.png: picture left out: ValueError: no such colour\n"


def test_the_page_shows_markup_as_text(tmp_path):
    evil = "<script>alert('\"&')</script>"
    given = made(
        title=evil,
        summary=evil,
        rows=[Row(evil, {evil: evil}, {evil: [0.5]}, evil)],
        metrics=[evil],
        gates=[Gate(evil, True, evil, evil)],
        notes=[evil],
        tables=[Table(evil, [evil, evil], [[evil, evil]], about={evil: "about"})],
        environment={evil: evil},
        settings={evil: evil},
    )
    page = Page(report.html(given, [(evil, b"")]))
    assert "script" not in page.tags
    assert page.words.count(evil) == 2 + 1 + 3 + (1 + 1 + 2) + 4 + 1 + 5 + 1 + 2 + 2


def test_results_are_written_before_anything_is_drawn(tmp_path):
    def draw(path):
        found = json.loads((tmp_path / "results.json").read_text())
        about = {"date", "commit", "command", "project", "jax", "device_kind", "cpu", "cores"}
        assert found["environment"].keys() > about
        return png(path)

    figures = [Figure("Drawn.", "figures/a.png", draw)]
    report.publish(made(figures=figures, environment=report.environment()), tmp_path)
    assert (tmp_path / "report.html").read_text().count("data:image/png") == 1


def test_a_result_tells_its_date_and_the_command_that_was_typed(monkeypatch):
    made_at = re.fullmatch(r"(\d{4}-\d\d-\d\d \d\d:\d\d) UTC", report.environment()["date"])
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(f"{made_at[1]}Z")
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=5)
    # Neither pytest's nor a notebook's command says anything, nor does where Python lies.
    assert report.environment()["command"] == "called from Python"
    main = types.SimpleNamespace(__spec__=types.SimpleNamespace(name="nasty.experiment.__main__"))
    monkeypatch.setitem(sys.modules, "__main__", main)
    typed = ["-m", "nasty.experiment", "--config.scorers=('rules',)"]
    monkeypatch.setattr(sys, "orig_argv", ["/home/ann/bin/python", *typed])
    told = report.environment()["command"]
    assert told.startswith("python -m nasty.experiment ") and shlex.split(told)[1:] == typed


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_result_tells_the_commit_of_the_checkout_and_whether_files_were_changed(
    tmp_path, monkeypatch
):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # of a hook that runs the tests
    package = tmp_path / "checkout" / "report.py"
    package.parent.mkdir()
    package.write_text("")
    monkeypatch.setattr(report, "__file__", str(package))
    assert report.environment()["commit"].startswith("no checkout, version ")
    git(package.parent, "init", "--quiet")
    (package.parent / "notes").write_text("")
    git(package.parent, "add", "notes")
    git(package.parent, "commit", "--quiet", "-m", "of another project")
    assert report.environment()["commit"].startswith("no checkout, version ")
    git(package.parent, "add", "report.py")
    git(package.parent, "commit", "--quiet", "-m", "of ours")
    commit = git(package.parent, "rev-parse", "HEAD")
    assert report.environment()["commit"] == commit
    package.write_text("changed = True")
    assert report.environment()["commit"] == f"{commit}, with uncommitted changes"
