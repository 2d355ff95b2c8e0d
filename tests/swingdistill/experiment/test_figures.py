"""Every secret and every run is drawn, lines stand where they should, and nothing is an error."""

import math
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from swingdistill.experiment import figures

FLOOR = 1 / math.log(2)
CEILING = math.log2(10**6)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look at what is in them."""
    saved = []
    save = Figure.savefig

    def keep(self, *args, **kwargs):
        saved.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def some_exposures(arms, secrets=5):
    rng = np.random.default_rng(0)
    return {
        arm: {level: rng.uniform(0, CEILING, secrets).tolist() for level in (100, 1, 10)}
        for arm in arms
    }


def dots(axis):
    """The dots of each arm of a panel, [n, 2]; what else is drawn has no offsets."""
    return [np.asarray(c.get_offsets()) for c in axis.collections if len(c.get_offsets()) > 1]


def heights(axis):
    """Where lines across the whole panel stand."""
    return [line.get_ydata()[0] for line in axis.lines if list(line.get_xdata()) == [0, 1]]


def test_exposure_draws_every_secret_of_every_arm_in_its_level(tmp_path, drawn):
    exposures = some_exposures([f"arm_{i}" for i in range(12)])
    path = figures.exposure_by_repetition(tmp_path / "new" / "x.png", exposures, ceiling=CEILING)
    assert path == tmp_path / "new" / "x.png" and is_png(path)
    axes = drawn[0].axes
    assert [axis.get_title(loc="left") for axis in axes] == [
        "secrets planted once",
        "secrets planted 10 times",
        "secrets planted 100 times",
    ]
    for axis, level in zip(axes, (1, 10, 100), strict=True):
        columns = dots(axis)
        assert len(columns) == 12
        for place, (points, by_level) in enumerate(zip(columns, exposures.values(), strict=True)):
            np.testing.assert_allclose(points[:, 1], by_level[level])
            assert np.all(np.abs(points[:, 0] - place) < 0.5)  # no dot in its neighbour's column
            assert len(np.unique(points[:, 0])) == 5  # equal exposures stay apart
        assert heights(axis) == pytest.approx([FLOOR, CEILING])


def test_exposure_marks_the_mean_and_is_drawn_the_same_twice(tmp_path, drawn):
    exposures = {"swing": {1: [0.0, 3.0, 6.0]}}
    for name in ("a.png", "b.png"):
        figures.exposure_by_repetition(tmp_path / name, exposures, ceiling=CEILING)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    bars = [c.get_segments()[0] for c in drawn[0].axes[0].collections if hasattr(c, "get_segments")]
    np.testing.assert_allclose(bars[0][:, 1], 3.0)


def test_exposure_calls_arms_by_their_labels_or_names(tmp_path, drawn):
    exposures = some_exposures(["swing", "student_ce"])
    labels = {"swing": "Swing <ours>"}
    figures.exposure_by_repetition(tmp_path / "x.png", exposures, labels=labels, ceiling=CEILING)
    names = [label.get_text() for label in drawn[0].axes[-1].get_xticklabels()]
    assert names == ["Swing <ours>", "student ce"]


def test_exposure_leaves_out_what_was_not_measured(tmp_path, drawn):
    exposures = {
        "kd": {1: [1.0, float("nan"), 3.0], 10: [2.0, 4.0]},
        "diverged": {1: [float("nan")] * 3},
        "swing": {10: [25.0, 1.0]},
    }
    assert is_png(figures.exposure_by_repetition(tmp_path / "x.png", exposures, ceiling=CEILING))
    once, ten = drawn[0].axes
    assert [points[:, 1].tolist() for points in dots(once)] == [[1.0, 3.0]]
    assert [points[:, 1].tolist() for points in dots(ten)] == [[2.0, 4.0], [25.0, 1.0]]
    assert once.get_ylim()[1] > 25  # extrapolated beyond the ceiling, and still seen
    assert len(ten.get_xticklabels()) == 3


@pytest.mark.parametrize(
    "exposures", [{}, {"swing": {}}, {"swing": {1: []}}, {"swing": {1: [float("nan")]}}]
)
def test_exposure_needs_something_to_draw(tmp_path, exposures):
    with pytest.raises(ValueError, match="exposures: got no finite exposure"):
        figures.exposure_by_repetition(tmp_path / "x.png", exposures, ceiling=CEILING)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ceiling", [0.0, float("nan"), float("inf")])
def test_exposure_needs_a_ceiling(tmp_path, ceiling):
    with pytest.raises(ValueError, match="ceiling: got"):
        figures.exposure_by_repetition(tmp_path / "x.png", {"a": {1: [1.0]}}, ceiling=ceiling)


CURVES = {
    "constant temperature": [(0.5, 16.0, 31.0), (2.0, 9.0, 34.0), (2.0, 11.0, 36.0)],
    "swing": [(2.0, 2.0, 32.0), (0.5, 4.0, float("inf"))],
}


def test_budget_draws_every_run_and_lines_through_means(tmp_path, drawn):
    assert is_png(figures.budget_curves(tmp_path / "budget.png", CURVES))
    exposure, perplexity = drawn[0].axes
    marked = [line for line in exposure.lines if line.get_marker() in "os"]
    np.testing.assert_allclose(marked[0].get_xydata(), [(0.5, 16), (2, 9), (2, 11)])
    np.testing.assert_allclose(marked[1].get_xydata(), [(2, 2), (0.5, 4)])
    lines = [line for line in exposure.lines if line.get_marker() == "None"]
    np.testing.assert_allclose(lines[0].get_xydata(), [(0.5, 16), (2, 10)])
    np.testing.assert_allclose(lines[1].get_xydata(), [(0.5, 4), (2, 2)])
    assert heights(exposure) == pytest.approx([FLOOR]) and heights(perplexity) == []
    runs = [line.get_xydata().tolist() for line in perplexity.lines if line.get_marker() == "s"]
    assert runs == [[[2.0, 32.0]]]  # the other has no perplexity to show


def test_budget_has_less_noise_to_the_right_and_names_no_epsilon(tmp_path, drawn):
    figures.budget_curves(tmp_path / "budget.png", CURVES)
    for axis in drawn[0].axes:
        left, right = axis.get_xlim()
        assert left > 2.0 and right < 0.5 and axis.get_xscale() == "log"
        assert [label.get_text() for label in axis.get_xticklabels()] == ["0.5", "2"]
    texts = [text.get_text() for text in drawn[0].findobj(Text)]
    assert "noise scale (less noise →)" in texts
    assert not any("ε" in text or "epsilon" in text for text in texts)
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["constant temperature", "swing", "nothing learnt: 1.44 bits on average"]


def test_budget_takes_one_run_and_many_scales(tmp_path):
    assert is_png(figures.budget_curves(tmp_path / "a.png", {"swing": [(1.0, 2.0, 3.0)]}))
    many = [(10.0**k, 2.0, 3.0) for k in range(-6, 6)]
    assert is_png(figures.budget_curves(tmp_path / "b.png", {"swing": many, "other": []}))


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "need 1 to"),
        ({"swing": []}, "need 1 to"),
        ({"swing": [(0.0, 2.0, 3.0)]}, "above 0"),
        ({"swing": [(float("nan"), 2.0, 3.0)]}, "above 0"),
        ({"swing": [(1.0, 2.0)]}, "noise scale, exposure, perplexity"),
    ],
)
def test_budget_refuses_what_it_cannot_draw(tmp_path, curves, message):
    with pytest.raises(ValueError, match=message):
        figures.budget_curves(tmp_path / "budget.png", curves)


QUALITY = {
    "rules": {
        10: {"precision": 0.9, "recall": 0.8, "auc": 0.95},
        1: {"precision": None, "recall": None, "auc": float("nan")},
    },
    "surprisal": {1: {"recall": 0.25, "auc": 0.5}},
}


def test_scorers_have_a_dot_for_each_level_that_was_measured(tmp_path, drawn):
    assert is_png(figures.scorer_quality(tmp_path / "scorers.png", QUALITY))
    auc, recall = drawn[0].axes
    assert [label.get_text() for label in auc.get_yticklabels()] == ["rules", "surprisal"]
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["planted once", "planted 10 times"]
    expected = {auc: ([np.nan, 0.5], [0.95, np.nan]), recall: ([np.nan, 0.25], [0.8, np.nan])}
    for axis, (once, ten) in expected.items():
        found = [line for line in axis.lines if line.get_marker() in "os"]
        np.testing.assert_allclose(found[0].get_xdata(), once)
        np.testing.assert_allclose(found[1].get_xdata(), ten)
        rows = np.stack([line.get_ydata() for line in found])  # [levels, scorers]
        np.testing.assert_array_equal(np.round(rows), [[0, 1], [0, 1]])
        assert np.all(rows[0] < rows[1])  # levels of one scorer do not hide each other


def test_scorers_read_from_json_have_their_levels_in_order(tmp_path, drawn):
    quality = {"rules": {level: {"auc": 0.9, "recall": 0.5} for level in ("100", "10", "1")}}
    figures.scorer_quality(tmp_path / "scorers.png", quality)
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["planted once", "planted 10 times", "planted 100 times"]


def test_scorers_at_a_level_with_a_name(tmp_path, drawn):
    quality = {"rules": {"all": {"auc": 0.9, "recall": 0.5}}}
    assert is_png(figures.scorer_quality(tmp_path / "scorers.png", quality))
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["all"]


@pytest.mark.parametrize("quality", [{}, {"rules": {}}])
def test_scorers_need_a_level(tmp_path, quality):
    with pytest.raises(ValueError, match="quality: got"):
        figures.scorer_quality(tmp_path / "scorers.png", quality)


def test_figures_leave_no_style_behind(tmp_path):
    with matplotlib.rc_context({"font.size": 13}):
        before = dict(matplotlib.rcParams)
        figures.exposure_by_repetition(tmp_path / "a.png", {"a": {1: [1.0]}}, ceiling=CEILING)
        figures.budget_curves(tmp_path / "b.png", CURVES)
        figures.scorer_quality(tmp_path / "c.png", QUALITY)
        assert dict(matplotlib.rcParams) == before


def test_importing_the_module_loads_no_drawing_library():
    program = "import sys, swingdistill.experiment.figures; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)
    assert done.stdout.strip() == b"False"
