"""The figures' common look holds while one is drawn, and a figure is written where it should be."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from distill_core.experiment import plotting


def size(path):
    """Of a PNG, in dots."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_a_drawing_is_a_png_and_its_look_is_gone_afterwards_even_after_an_error(tmp_path):
    before = dict(matplotlib.rcParams)
    with plotting.drawing(tmp_path / "new" / "figure.png", 2) as figure:
        figure.subplots()
        assert matplotlib.rcParams["axes.titleweight"] == "bold"
    assert size(tmp_path / "new" / "figure.png") == (1080, 300)
    with pytest.raises(RuntimeError), plotting.drawing(tmp_path / "none.png", 2):
        raise RuntimeError
    assert not (tmp_path / "none.png").exists()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["cost $5", "$a_b^{$", "猫", "_hidden", "<script>"])
def test_a_name_is_drawn_as_text_and_never_as_a_formula(tmp_path, name):
    series = {name: [[0.5, 0.6], [], [float("nan")]], "other": [[0.5]] * 3}
    path = plotting.accuracies(tmp_path / "a.png", [name] * 3, series, reference=0.5)
    width, height = size(path)
    assert width == 1080 and 300 < height < 600
    with plotting.drawing(tmp_path / "b.png", 3) as figure:
        plotting.sweep(axis := figure.subplots(), [name, "1", "2"], series)
        legend = axis.legend()
    assert size(tmp_path / "b.png") == (1080, 450)
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


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_images_of_any_number_of_channels_have_pixels_to_show(channels):
    image = np.arange(6 * channels, dtype=np.uint8).reshape(2, 3, channels)
    expected = image if channels == 3 else image.mean(2).astype(np.uint8)
    np.testing.assert_array_equal(plotting.pixels(image), expected)
