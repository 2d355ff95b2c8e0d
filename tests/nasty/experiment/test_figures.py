"""The figures are drawn from arrays, show what they are given, and leave no global state."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from distill_core.experiment.report import Row
from nasty.experiment import figures

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look at what is in them."""
    saved = []
    save = Figure.savefig

    def keep(self, *args, **kwargs):
        saved.append(self)
        assert kwargs["dpi"] == 150
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def draw_response(path, rng, n=2, classes=CIFAR, channels=(3,), labels=(3, 5)):
    logits = rng.normal(size=(2, n, len(classes))) * 8
    images = rng.integers(0, 256, (n, 8, 8, *channels), dtype=np.uint8)
    figures.logit_response(path, images, logits[0], logits[1], labels, classes, 4.0)
    return logits


def test_response_shows_softened_probabilities_and_the_true_class(tmp_path, rng, drawn):
    path = tmp_path / "new" / "response.png"
    logits = draw_response(path, rng)
    assert is_png(path)
    axes = np.array(drawn[0].axes).reshape(2, 3)
    for row, label in enumerate((3, 5)):
        for column in range(2):
            bars = axes[row, 1 + column].patches
            odds = np.exp(logits[column, row] / 4)
            heights = [bar.get_height() for bar in bars]
            np.testing.assert_allclose(heights, odds / odds.sum(), rtol=1e-9)
            highlighted = [bar.get_facecolor() != bars[label - 1].get_facecolor() for bar in bars]
            assert np.flatnonzero(highlighted).tolist() == [label]
            text = axes[row, 1 + column].texts[0].get_text()
            assert text == f"predicts {CIFAR[logits[column, row].argmax()]}"
        assert axes[row, 1].get_ylim() == axes[row, 2].get_ylim()


@pytest.mark.parametrize("channels", [(), (1,)])
def test_response_takes_grey_images_and_extreme_logits(tmp_path, rng, channels):
    path = tmp_path / "response.png"
    images = rng.random((1, 8, 8, *channels))
    logits = np.array([[1e4, -1e4, -np.inf]])
    assert figures.logit_response(path, images, logits, np.zeros((1, 3)), [0], "abc", 20.0)
    assert is_png(path)


def test_response_takes_a_hundred_classes(tmp_path, rng):
    draw_response(tmp_path / "response.png", rng, classes=[f"class {i}" for i in range(100)])
    assert is_png(tmp_path / "response.png")


def test_response_refuses_what_does_not_fit(tmp_path, rng):
    with pytest.raises(ValueError, match="1 to 12 inputs"):
        draw_response(tmp_path / "response.png", rng, n=13)
    with pytest.raises(ValueError, match=r"logits \[N, 9\]"):
        logits = np.zeros((2, 10))
        images = np.zeros((2, 8, 8))
        figures.logit_response(tmp_path / "a", images, logits, logits, [0, 1], CIFAR[:9], 4.0)
    assert not list(tmp_path.iterdir())


def panels(rng, classes):
    labels = np.arange(3 * classes) % classes
    return [
        figures.Panel(
            f"{what}, {whose} teacher",
            rng.normal(size=(len(labels), 2)),
            labels,
            0.986,
            0.25 if whose == "nasty" else None,
        )
        for what in ("Features", "Logits")
        for whose in ("normal", "nasty")
    ]


def test_embeddings_carry_their_numbers_and_every_point(tmp_path, rng, drawn):
    path = figures.embedding_figure(tmp_path / "embedding.png", panels(rng, 10), CIFAR)
    assert is_png(path)
    numbers = [axis.texts[0].get_text() for axis in drawn[0].axes]
    assert numbers[0] == "linear probe 98.6%"
    assert numbers[1] == "linear probe 98.6%   CKA with normal 0.25"
    for axis in drawn[0].axes:
        assert sum(len(dots.get_offsets()) for dots in axis.collections) == 30
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list(CIFAR)


def test_embeddings_of_many_classes_grey_the_rest(tmp_path, rng, drawn):
    names = [f"class {i}" for i in range(100)]
    figures.embedding_figure(tmp_path / "embedding.png", panels(rng, 100), names)
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["others", *names[:10]]
    assert sum(len(dots.get_offsets()) for dots in drawn[0].axes[0].collections) == 300


def test_embeddings_need_four_panels(tmp_path, rng):
    with pytest.raises(ValueError, match="got 3"):
        figures.embedding_figure(tmp_path / "embedding.png", panels(rng, 10)[:3], CIFAR)


def test_arms_show_every_seed_and_the_mean(tmp_path, drawn):
    rows = [
        Row("student_alone", {}, {"accuracy": [0.9, 0.92, 0.94]}),
        Row("student_of_nasty", {}, {"accuracy": [0.7]}),
        Row("diverged", {}, {"accuracy": [float("nan")]}),
        Row("no_accuracy", {}, {"perplexity": [3.0]}),
    ]
    path = figures.arm_accuracies(tmp_path / "arms.png", rows)
    assert is_png(path)
    axis = drawn[0].axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "student alone",
        "student of nasty",
        "diverged",
    ]
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots[0].get_xdata(), [90, 92, 94])
    means = [line for line in axis.lines if line.get_marker() == "|"]
    np.testing.assert_allclose(means[0].get_xdata(), [92])
    with pytest.raises(ValueError, match="accuracy"):
        figures.arm_accuracies(tmp_path / "none.png", rows[-1:])


def test_figures_leave_no_style_behind(tmp_path, rng):
    with matplotlib.rc_context({"font.size": 13, "axes.titleweight": "light"}):
        before = dict(matplotlib.rcParams)
        draw_response(tmp_path / "response.png", rng)
        assert dict(matplotlib.rcParams) == before
