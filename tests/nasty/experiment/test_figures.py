"""A PNG comes of every figure, whatever the images and classes."""

import numpy as np
import pytest

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
