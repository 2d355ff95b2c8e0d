"""A PNG comes of every figure, whatever the images and classes; what is compared has one scale."""

import contextlib

import numpy as np
import pytest
from matplotlib.figure import Figure

from nasty.experiment import figures

DIGITS = [str(k) for k in range(10)]
MANY = [f"class {i}" for i in range(100)]


@pytest.mark.parametrize(("channels", "classes"), [((), DIGITS), ((1,), MANY), ((8,), DIGITS)])
def test_every_figure_is_a_picture(tmp_path, channels, classes):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 2, len(classes))) * 8
    logits[0, 0, :3] = 1e4, -1e4, -np.inf
    images = rng.integers(0, 256, (2, 8, 8, *channels), dtype=np.uint8)
    labels = np.arange(3 * len(classes)) % len(classes)
    points = rng.normal(size=(len(labels), 2))
    panels = [
        figures.Panel(name, points, labels, 0.986, cka)
        for name, cka in zip("abcd", [None, 0.5] * 2, strict=True)
    ]
    made = {kind: rng.random((len(labels), 8, 8, 1)) for kind in ("normal", "nasty")}
    path = tmp_path / "new" / "figure.png"
    for drawn in (
        lambda: figures.logit_response(path, images, *logits, [3, 5], classes, 4.0),
        lambda: figures.embedding_figure(path, panels, classes),
        lambda: figures.inversion_grid(path, made, labels, classes),
    ):
        assert drawn() == path
        assert path.read_bytes().startswith(b"\x89PNG")
        path.unlink()


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.float32, 1)])
def test_softened_answers_share_one_scale_and_images_one_of_grey(
    tmp_path, monkeypatch, dtype, white
):
    drawn = Figure()
    monkeypatch.setattr(figures, "drawing", lambda *_: contextlib.nullcontext(drawn))
    images = np.zeros((2, 8, 8), dtype)
    images[0] += white
    images[1, 0, 0] = white // 5  # a dark image is not stretched to white
    logits = np.array([[[9.0, 0, 0], [0, 1, 0]], [[0, 2, 0], [0, 0, 0]]])
    figures.logit_response(tmp_path / "a.png", images, *logits, [0, 1], DIGITS[:3], 4.0)
    bars = [axis for axis in drawn.axes if axis.patches]
    pictures = [axis.images[0] for axis in drawn.axes if axis.images]
    assert len(bars) == 4 and len({axis.get_ylim() for axis in bars}) == 1
    assert [picture.get_clim() for picture in pictures] == [(0, white)] * 2
