"""The figures' common look holds while one is drawn, and a figure is written where it should be."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from distill_core.experiment import plotting


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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["cost $5", "$a_b^{$", "猫", "_hidden", "<script>"])
def test_a_name_is_drawn_as_text_and_never_as_a_formula(tmp_path, name):
    with plotting.style():
        axis = (figure := Figure(figsize=(3, 2), layout="constrained")).subplots()
        axis.set_title(name)
        axis.plot([0, 1], label=plotting.legend_label(name))
        axis.set_xticks([0, 1], [name, name])
        legend = axis.legend()
        assert plotting.save(figure, tmp_path / "figure.png").is_file()
    assert legend.get_texts()[0].get_text().strip() == name


def test_a_picture_that_fails_costs_one_line_and_leaves_the_old_file(tmp_path, capsys, monkeypatch):
    path = tmp_path / "figure.png"
    before = plotting.save(Figure(figsize=(2, 1)), path).read_bytes()
    assert plotting.attempt(lambda path, *, size: path, path, size=3) == path

    def full(*_, **__):
        raise OSError(28, "No space left\non device")

    monkeypatch.setattr(Figure, "savefig", full)
    figure = Figure(figsize=(2, 1))
    assert plotting.attempt(lambda path: plotting.save(figure, path), path) is None
    assert path.read_bytes() == before
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"{path}: picture left out: OSError: " in line


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_of_any_number_of_channels_have_pixels_to_show(dtype):
    for channels in (1, 2, 3, 4, 8):
        image = np.arange(6 * channels).reshape(2, 3, channels).astype(dtype)
        shown = plotting.pixels(image)
        assert shown.dtype == dtype
        assert shown.shape == ((2, 3, 3) if channels == 3 else (2, 3))
    np.testing.assert_array_equal(plotting.pixels(image), image.mean(2).astype(dtype))
    assert plotting.pixels(image[..., 0]).shape == (2, 3)
    assert plotting.pixels(image[:1, :1, :1]).shape == (1, 1)
