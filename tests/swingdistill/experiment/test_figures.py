"""Every figure becomes a picture, and sample texts HTML in which markup is text."""

import numpy as np
from PIL import Image

from swingdistill.experiment import figures
from swingdistill.experiment.samples import shaded_html


def test_every_figure_is_drawn(tmp_path):
    rng = np.random.default_rng(0)
    exposures = {f"long_name_{i}": {n: rng.uniform(0, 20, 5) for n in (100, 1)} for i in range(12)}
    curves = {
        "constant temperature": {0.5: (16.0, 31.0), 2.0: (9.0, 34.0)},
        "swing": {0.5: (4.0, float("inf")), 2.0: (2.0, 32.0)},
    }
    quality = {
        "rules": {"10": {"recall": 0.8, "auc": 0.95}, "1": {"recall": None, "auc": 0.5}},
        "surprisal": {"10": {"recall": 0.5, "auc": 0.7}, "1": {"recall": 0.25, "auc": 0.5}},
    }
    for path in (
        figures.exposure_by_repetition(tmp_path / "new" / "a.png", exposures, ceiling=19.9),
        figures.budget_curves(tmp_path / "b.png", curves),
        figures.scorer_quality(tmp_path / "c.png", quality),
    ):
        with Image.open(path) as picture:
            assert (picture.format, picture.width) == ("PNG", 1080)


def test_sample_texts_show_every_token_with_its_temperature_and_markup_as_text():
    evil = "<script>alert('\"&')</script>"
    tokens = [["my", 0.0, 2.0], [evil, 0.5, 8.5], [" ", 1.0, 16.0]]
    page = shaded_html([{"title": evil, "tokens": tokens}])
    assert "<script" not in page and "http" not in page
    for shown in (
        "&lt;script",
        '--s:0.50">',
        "<small>T 8.5</small>",
        "␣",
        "where there is none, T 2.",
    ):
        assert shown in page
    assert "<small>T 2<" not in page
