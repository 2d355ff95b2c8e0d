"""The figures' common look holds while one is drawn, and a figure is written where it should be."""

import matplotlib
import pytest
from matplotlib.figure import Figure

from distill_core import plotting


def test_style_is_gone_afterwards_even_after_an_error():
    before = dict(matplotlib.rcParams)
    with pytest.raises(RuntimeError), plotting.style():
        assert matplotlib.rcParams["axes.titleweight"] == "bold"
        assert not matplotlib.rcParams["axes.spines.top"]
        raise RuntimeError
    assert dict(matplotlib.rcParams) == before


def test_save_makes_the_folder_and_a_png(tmp_path):
    path = plotting.save(Figure(figsize=(2, 1)), tmp_path / "new" / "figure.png")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert (int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")) == (300, 150)


def test_a_class_is_told_by_its_colour_or_its_marker_alone():
    assert len(set(plotting.PALETTE)) == len(plotting.MARKERS) == len(set(plotting.MARKERS)) == 10
