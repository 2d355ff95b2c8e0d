"""Procedural images: what they look like, in numbers, and what decides each of them."""

import numpy as np
import pytest
from scipy import ndimage

from distill_core.config import InputError
from distill_core.data.images import procedural

ALL = {"strokes": 1.0, "shapes": 1.0, "noise": 1.0}


def draw(kind, num, *, seed=0, size=28, channels=1, extent=None):
    weights = ALL if kind == "mixture" else {kind: 1.0}
    settings = {"size": size, "channels": channels, "weights": weights, "extent": extent}
    return procedural.mixture(seed, num, **settings)


each = pytest.mark.parametrize("kind", [*ALL, "mixture"])


@each
@pytest.mark.parametrize("size", [4, 8, 28, 33])
def test_images_are_float32_in_the_unit_interval(kind, size):
    images = draw(kind, 70, size=size)
    assert (images.shape, images.dtype) == ((70, size, size, 1), np.float32)
    assert images.min() >= 0 and 0.7 < images.max() <= 1
    assert np.all(images.std((1, 2, 3)) > 0.01), "an image is blank"
    assert draw(kind, 0, size=size).shape == (0, size, size, 1)


@each
def test_an_image_is_a_function_of_seed_and_index_whatever_the_number(kind):
    channels = 3 if kind in ("noise", "mixture") else 1
    many = draw(kind, 300, channels=channels)
    for num in (1, 127, 128, 129):
        np.testing.assert_array_equal(draw(kind, num, channels=channels), many[:num])
    other = draw(kind, 300, seed=1, channels=channels)
    assert len(np.unique(np.concatenate([many, other]).reshape(600, -1), axis=0)) == 600


@pytest.mark.parametrize("kind", ["strokes", "shapes"])
def test_the_size_changes_the_resolution_alone(kind):
    large = draw(kind, 100, size=56)
    small = large.reshape(100, 28, 2, 28, 2, 1).mean((2, 4))
    error = np.abs(small - draw(kind, 100)).mean((1, 2, 3))
    assert error.mean() < 0.01
    assert error.max() < 0.06


def components(image, structure=None):
    return ndimage.label(image > 0.4, structure)[1]


def spans(images):
    """Width and height of what is brighter than 0.05, as parts of the image's side."""
    lit = images[..., 0] > 0.05
    return tuple(
        np.array([np.ptp(np.flatnonzero(row)) + 1 for row in lit.any(axis)]) / lit.shape[1]
        for axis in (1, 2)
    )


def test_strokes_look_like_writing():
    images = draw("strokes", 400, size=56)
    lit = images[..., 0] > 0.4
    pieces = np.array([components(image, np.ones((3, 3))) for image in images[..., 0]])
    assert np.mean(pieces == 1) > 0.85
    assert pieces.max() <= 3, "no more than there are strokes"
    # Thin lines: no point of the ink is far from the paper, but where strokes cross.
    depth = np.array([ndimage.distance_transform_edt(each).max() for each in lit]) / 56
    assert 0.03 < np.median(depth) < 0.09
    assert np.quantile(depth, 0.95) < 0.16
    assert np.quantile(lit.mean((1, 2)), 0.02) > 0.03
    assert np.quantile(lit.mean((1, 2)), 0.98) < 0.4
    width, height = spans(images)
    assert np.mean(height > width) > 0.8, "writing stands"
    holes = np.array([components(1 - image) > 1 for image in images[..., 0]])
    assert 0.15 < holes.mean() < 0.6, "some lines close, as those of 0, 6, 8 and 9"
    assert images[:, [0, -1]].mean() < 0.01, "the ink keeps off the border"


def test_shapes_look_like_silhouettes():
    images = draw("shapes", 400, size=56)[..., 0]
    solid = images > 0.02
    sizes = [np.bincount(ndimage.label(each)[0].ravel())[1:] for each in solid]
    share = np.array([each.max() / each.sum() for each in sizes])
    assert np.mean(share > 0.8) > 0.85, "one thing an image"
    area = solid.mean((1, 2))
    assert np.mean((area > 0.1) & (area < 0.85)) > 0.9
    depth = np.array([ndimage.distance_transform_edt(each).max() for each in solid]) / 56
    assert np.median(depth) > 0.12, "filled"
    # Alike left and right, up to a turn, a shift and the texture, in about half of them.
    shifted = [np.roll(solid[..., ::-1], shift, 2) for shift in range(-6, 7)]
    mirrored = np.max([(solid == each).mean((1, 2)) for each in shifted], axis=0)
    assert 0.35 < np.mean(mirrored > 0.9) < 0.85
    spread = np.array([image[each].std() for image, each in zip(images, solid, strict=True)])
    assert np.quantile(spread, 0.1) > 0.015, "textured"


@pytest.mark.parametrize("kind", ["strokes", "shapes"])
def test_the_extent_is_that_of_the_longer_side(kind):
    little, large = (draw(kind, 200, extent=extent) for extent in ((0.3, 0.35), (0.9, 0.95)))
    for images, longer in ((little, 0.325), (large, 0.925)):
        found = np.median(np.maximum(*spans(images)))
        assert longer - 0.04 < found < longer + 0.09


def test_noise_has_every_smoothness_and_likeness_of_channels():
    images = draw("noise", 300, size=32, channels=3)
    centred = images - images.mean((1, 2), keepdims=True)
    power = np.square(centred).mean((1, 2, 3))
    beside = (centred[:, :, 1:] * centred[:, :, :-1]).mean((1, 2, 3)) / power
    assert np.quantile(beside, 0.1) < 0.85
    assert np.quantile(beside, 0.9) > 0.97
    colours = (centred[..., 0] * centred[..., 1]).mean((1, 2)) / power
    assert np.quantile(colours, 0.1) < 0.3
    assert np.quantile(colours, 0.9) > 0.8


def test_a_mixture_takes_each_image_from_its_kind_by_weights_up_to_a_factor():
    def mixed(weights):
        return procedural.mixture(0, 600, size=8, channels=1, weights=weights)

    found = mixed({"shapes": 2, "strokes": 6, "noise": 4})
    alone = (draw(kind, 600, size=8) for kind in ("shapes", "strokes", "noise"))
    same = np.stack([np.all(found == each, axis=(1, 2, 3)) for each in alone])
    np.testing.assert_array_equal(same.sum(0), 1)
    np.testing.assert_allclose(same.mean(1), [1 / 6, 1 / 2, 1 / 3], atol=0.06)
    two = mixed({"shapes": 2, "strokes": 6, "noise": 0})
    np.testing.assert_array_equal(two, mixed({"strokes": 0.75, "shapes": 0.25}))
    np.testing.assert_array_equal(procedural.strokes(0, 9, size=8), draw("strokes", 9, size=8))


def test_drawings_with_several_channels_are_coloured():
    weights = {"strokes": 1, "shapes": 1}
    images = procedural.mixture(0, 200, size=28, channels=3, weights=weights)
    grey = procedural.mixture(0, 200, size=28, channels=1, weights=weights)
    assert images.min() >= 0
    assert images.max() <= 1
    for image, drawing in zip(images, grey, strict=True):
        line = np.stack([np.ones(28 * 28), drawing.ravel()], 1)
        colours, *_ = np.linalg.lstsq(line, image.reshape(-1, 3).astype(np.float64))
        np.testing.assert_allclose(line @ colours, image.reshape(-1, 3), atol=1e-4)
    corners = images[:, 0, 0]
    assert corners.std(0).min() > 0.2, "backgrounds differ"
    assert np.abs(corners[:, 0] - corners[:, 1]).mean() > 0.2, "and are colours"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("seed", -1), ("seed", 0.5), ("num", -1), ("num", True), ("size", 3), ("channels", 0)],
        *[("weights", {}), ("weights", {"strokes": 0}), ("weights", {"strokes": 1, "shapes": -1})],
        *[("weights", {"strokes": np.nan}), ("weights", {"letters": 1})],
        *[("extent", each) for each in ((0.5, 0.4), (0.0, 0.4), (0.5, 1.1), (0.5,))],
    ],
)
def test_wrong_settings_are_refused(field, value):
    settings = {"seed": 0, "num": 2, "size": 8, "channels": 1, "weights": ALL, field: value}
    with pytest.raises(InputError, match=f"^{field}: "):
        procedural.mixture(settings.pop("seed"), settings.pop("num"), **settings)
