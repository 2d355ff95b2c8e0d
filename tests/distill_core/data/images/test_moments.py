"""Class moments in one release: what a record moves, the noise, and the images drawn from them."""

import dataclasses
import io
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.fft
import scipy.stats

from distill_core.config import InputError
from distill_core.privacy import discrete_gaussian, ledger
from dpdfd.priors import moments as moments_lib
from dpdfd.priors.moments import Moments, draw, record_sums, release

SIDE, SIZE, CLASSES = 8, 5, 3
EXTREMES = {
    "white": np.full((SIDE, SIDE, 1), 255, np.uint8),
    "black": np.zeros((SIDE, SIDE, 1), np.uint8),
    "one pixel": np.pad(np.full((1, 1, 1), 255, np.uint8), ((2, 5), (3, 4), (0, 0))),
    "one faint pixel": np.pad(np.full((1, 1, 1), 1, np.uint8), ((0, 7), (0, 7), (0, 0))),
    "stripes": np.tile(np.array([255, 0], np.uint8), (SIDE, 4))[..., None],
    "noise": np.random.default_rng(9).integers(0, 256, (SIDE, SIDE, 1), np.uint8),
}


def private(num=40, channels=1, seed=0):
    """Images with a different mean in every class, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % CLASSES
    images = rng.normal(60 + 60 * labels[:, None, None, None], 40, (num, SIDE, SIDE, channels))
    return np.clip(images, 0, 255).astype(np.uint8), labels


def sums(images, labels, norm=3.0, live=None):
    return record_sums(images, labels, num_classes=CLASSES, size=SIZE, norm=norm, live=live)


def released(images, labels, multiplier=0.5, seed=3, **kw):
    settings = {"num_classes": CLASSES, "size": SIZE, "norm": 3.0, **kw}
    random = np.random.default_rng(seed).bytes
    return release(images, labels, noise_multiplier=multiplier, random=random, **settings)


@pytest.fixture
def no_noise(monkeypatch):
    monkeypatch.setattr(discrete_gaussian, "sample", lambda std, size, _: np.zeros(size, np.int64))


def distance_squared(one, other, dims=SIZE * SIZE):
    """Of two vectors a·e_y, b·e_y⊗v, c·e_y⊗vvᵀ, an exact fraction."""
    moved = one.astype(object) - other
    row, column = np.triu_indices(dims)
    twice = np.where(row == column, 1, 2).astype(object)
    count, mean = (moved[:, 0] ** 2).sum(), (moved[:, 1 : dims + 1] ** 2).sum()
    second = (moved[:, dims + 1 :] ** 2 * twice).sum()
    return (Fraction(count, 10) + Fraction(2 * mean, 5)) / 4**16 + Fraction(second, 2) / 4**32


# -- what a record moves -----------------------------------------------------------------------


@pytest.mark.parametrize("norm", [1e-3, 3.0, 8.0, 1e3])
@pytest.mark.parametrize("kind", EXTREMES)
def test_a_masked_record_moves_the_sums_by_at_most_the_sensitivity_exactly(kind, norm):
    images, labels = private()
    images[7] = EXTREMES[kind]
    live = np.arange(len(labels)) != 7
    before, after = sums(images, labels, norm), sums(images, labels, norm, live)
    moved = distance_squared(before, after)
    assert moved <= moments_lib.SENSITIVITY**2
    if kind == "black":
        assert moved == Fraction(1, 10)  # it counts, and adds nothing else
    if kind == "white" and norm < 8:
        assert moved > 0.999, "the bound is reached"


@pytest.mark.parametrize("norm", [0.01, 3.0])
def test_a_replaced_record_moves_the_sums_by_at_most_twice_as_much(norm):
    images, labels = private()
    found = []
    for image in EXTREMES.values():
        for label in range(CLASSES):
            images[7], labels[7] = image, label
            found.append(sums(images, labels, norm))
    apart = [distance_squared(one, other) for one in found for other in found[:3]]
    assert max(apart) <= moments_lib.SENSITIVITY_REPLACE_ONE**2
    assert max(apart) > 1.99, "white in another class"


def test_of_a_masked_record_neither_image_nor_label_matters():
    images, labels = private()
    live = np.arange(len(labels)) != 7
    before = sums(images, labels, live=live)
    images[7], labels[7] = 255, 2
    np.testing.assert_array_equal(sums(images, labels, live=live), before)
    images, labels = images[live], labels[live]
    np.testing.assert_array_equal(sums(images, labels), before)


def test_sums_do_not_depend_on_the_order_of_records():
    images, labels = private(num=5000)
    order = np.random.default_rng(0).permutation(5000)
    np.testing.assert_array_equal(sums(images[order], labels[order]), sums(images, labels))


# -- the noise ---------------------------------------------------------------------------------


@pytest.mark.parametrize("multiplier", [0.01, 7.0, moments_lib.MOST_NOISE])
def test_every_number_has_at_least_the_noise_that_is_charged(monkeypatch, multiplier):
    asked, real = {}, discrete_gaussian.sample

    def sample(std, size, random):
        asked[std] = size
        return real(std, size, random)

    monkeypatch.setattr(discrete_gaussian, "sample", sample)
    released(*private(), multiplier)
    dims = SIZE * SIZE
    expected = {
        math.sqrt(10) * 2**16: 1,
        math.sqrt(2.5) * 2**16: dims,
        math.sqrt(2) * 2**32: dims,
        2**32: dims * (dims - 1) // 2,
    }
    pairs = zip(sorted(asked.items()), sorted(expected.items()), strict=True)
    for (std, size), (per_unit, count) in pairs:
        least = per_unit * multiplier / moments_lib.SENSITIVITY
        assert least < std < least * (1 + 1e-9)
        assert size == CLASSES * count
    ledger.Entry("gaussian", multiplier, moments_lib.SENSITIVITY, 1, "record", ledger.ZERO_OUT)


def of_black_images(classes, size):
    """What is left is noise: 500 records in each class, norm 3, noise multiplier 2."""
    return release(
        np.zeros((500 * classes, SIDE, SIDE, 1), np.uint8),
        np.arange(500 * classes) % classes,
        num_classes=classes,
        size=size,
        norm=3.0,
        noise_multiplier=2.0,
        random=np.random.default_rng(5).bytes,
    )


def test_noise_is_gaussian_of_the_multiple_of_the_sensitivity():
    found = of_black_images(classes=20, size=8)
    means = found.means * found.counts[:, None] / 3
    seconds = found.covariances + found.means[:, :, None] * found.means[:, None]
    seconds = seconds * found.counts[:, None, None] / 9
    upper = np.triu_indices(64, 1)
    for noise, std in (
        (of_black_images(classes=400, size=1).counts - 500, 2 / math.sqrt(0.1)),
        (means, 2 / math.sqrt(0.4)),
        (np.diagonal(seconds, axis1=1, axis2=2), 2 / math.sqrt(0.5)),
        (seconds[:, *upper], 2.0),
    ):
        noise = noise.ravel() / std
        assert scipy.stats.kstest(noise, "norm").pvalue > 0.01
        for wrong in (0.7, 1.4):
            assert scipy.stats.kstest(noise * wrong, "norm").pvalue < 0.01
    np.testing.assert_allclose(found.noise, 9 * 2.0 / found.counts)
    np.testing.assert_array_equal(found.covariances, found.covariances.swapaxes(1, 2))


def test_eigenvalues_of_noise_alone_end_at_the_edge():
    found = of_black_images(classes=20, size=8)
    edges = 2 * found.noise * math.sqrt(64)
    np.testing.assert_allclose(np.linalg.eigvalsh(found.covariances)[:, -1] / edges, 1, atol=0.15)


def test_noise_is_fresh_unless_the_bytes_are_given():
    settings = {"num_classes": CLASSES, "size": SIZE, "norm": 3.0, "noise_multiplier": 1.0}
    first, second = (release(*private(), **settings) for _ in range(2))
    assert (first.counts != second.counts).all()
    one, same = (released(*private()) for _ in range(2))
    assert one.to_bytes() == same.to_bytes()


# -- what is released --------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", [3.0, 100.0])
def test_without_noise_moments_are_those_of_the_clipped_coefficients(no_noise, channels, norm):
    images, labels = private(num=400, channels=channels)
    found = released(images, labels, norm=norm)
    assert found.image_shape == (SIDE, SIDE, channels)
    coefficients = scipy.fft.dctn(images / 255, axes=(1, 2), norm="ortho")[:, :SIZE, :SIZE]
    v = coefficients.reshape(len(images), -1)
    norms = np.linalg.norm(v, axis=1, keepdims=True)
    assert (norms > 3).any() and (norms < 100).all()
    v = v * np.minimum(1, norm / norms)
    unit = norm / 2**16  # to which coefficients are rounded
    for label in range(CLASSES):
        mine = v[labels == label]
        assert found.counts[label] == len(mine)
        np.testing.assert_allclose(found.means[label], mine.mean(0), atol=unit)
        cov = np.cov(mine.T, bias=True)
        np.testing.assert_allclose(found.covariances[label], cov, atol=4 * unit * norms.max())


def test_a_class_of_few_records_is_drawn_like_all_records(no_noise):
    images, labels = private(num=400)
    labels[labels == 2] = 1
    labels[0] = 2
    found = released(images, labels)
    together = released(images, np.zeros_like(labels), num_classes=1)
    np.testing.assert_array_equal(found.counts, [133, 266, 1])
    np.testing.assert_allclose(found.means[2], together.means[0])
    # Three classes' noise lies on all records together.
    np.testing.assert_allclose(found.noise[2], together.noise[0] * math.sqrt(3))
    np.testing.assert_allclose(found.covariances[2], together.covariances[0], atol=1e-12)
    assert np.abs(found.means[:2] - together.means[0]).max() > 0.1


@pytest.mark.parametrize("multiplier", [1e-3, 0.3, 30.0, moments_lib.MOST_NOISE])
@pytest.mark.parametrize("alive", [0, 1, 2, 40])
def test_whatever_is_released_images_are_in_the_unit_interval(multiplier, alive):
    images, labels = private()
    labels[labels == 2] = 0  # class 2 is empty
    for seed in range(4):
        live = np.arange(len(labels)) < alive
        found = released(images, labels, multiplier, seed, live=live)
        for value in (found.counts, found.means, found.covariances, found.noise):
            assert np.isfinite(value).all()
        drawn = draw(found, seed, np.arange(30) % CLASSES)
        assert drawn.min() >= 0 and drawn.max() <= 1  # so none is NaN


def test_moments_survive_as_bytes():
    found = released(*private(channels=3))
    again = Moments.from_bytes(found.to_bytes())
    for field in dataclasses.fields(Moments):
        one, other = getattr(found, field.name), getattr(again, field.name)
        assert type(one) is type(other)
        np.testing.assert_array_equal(one, other)
    labels = np.arange(9) % CLASSES
    np.testing.assert_array_equal(draw(found, 0, labels), draw(again, 0, labels))


class Pickled:
    """Fails the test where it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def stored(**changed):
    buffer = io.BytesIO()
    given = {**dataclasses.asdict(released(*private())), **changed}
    np.savez(buffer, **{name: value for name, value in given.items() if value is not None})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "changed",
    [
        {"means": None},
        {"means": np.zeros((CLASSES, 4))},
        {"counts": np.zeros(2)},
        {"covariances": np.zeros((CLASSES, 25, 24))},
        {"noise": np.zeros(CLASSES, np.float32)},
        {"counts": np.array([Pickled()])},
        {"size": 9},
        {"image_shape": np.array([8, 8])},
        {"image_shape": np.array([8, 9, 1])},
    ],
)
def test_bytes_of_something_else_are_refused(changed):
    with pytest.raises(InputError, match="^moments: .* with counts, means"):
        Moments.from_bytes(stored(**changed))


@pytest.mark.parametrize("data", [b"", b"moments", b"PK\x03\x04", b"\x93NUMPY"])
def test_bytes_of_no_archive_are_refused(data):
    with pytest.raises(InputError, match="^moments: "):
        Moments.from_bytes(data)


# -- drawing -----------------------------------------------------------------------------------


def gaussians(noise=0.0):
    """Two Gaussians over 2 × 2 coefficients of 6 × 6 pixels, far from black and white."""
    means = np.array([[3.0, 0.2, -0.1, 0.0], [2.5, -0.2, 0.0, 0.1]])
    rng = np.random.default_rng(2)
    factors = rng.normal(0, 0.06, (2, 4, 4))
    covariances = factors @ factors.swapaxes(1, 2) + 0.004 * np.eye(4)
    return Moments(np.full(2, 100.0), means, covariances, np.full(2, noise), 2, (6, 6, 1))


def coefficients(images, size):
    return scipy.fft.dctn(images, axes=(1, 2), norm="ortho")[:, :size, :size].reshape(
        len(images), -1
    )


def test_draws_have_the_mean_and_covariance_of_their_class():
    moments = gaussians()
    labels = np.random.default_rng(0).integers(0, 2, 40_000)
    images = draw(moments, 7, labels)
    assert (images.shape, images.dtype) == ((40_000, 6, 6, 1), np.float32)
    assert images.min() > 0 and images.max() < 1, "none is cut off in this test"
    for label in range(2):
        v = coefficients(images[labels == label], 2)
        np.testing.assert_allclose(v.mean(0), moments.means[label], atol=0.01)
        np.testing.assert_allclose(np.cov(v.T), moments.covariances[label], atol=0.002)
    assert np.abs(moments.covariances[0] - moments.covariances[1]).max() > 0.004
    higher = scipy.fft.dctn(images[:9], axes=(1, 2), norm="ortho")
    higher[:, :2, :2] = 0
    np.testing.assert_allclose(higher, 0, atol=1e-6)


def test_eigenvalues_that_noise_explains_are_dropped_and_others_shrunk():
    moments = gaussians(noise=0.005)  # the edge is 2·0.005·√4 = 0.02
    covariances = np.stack([np.diag([0.05, 0.0199, 0.0201, -1.0])] * 2)
    moments = dataclasses.replace(moments, covariances=covariances)
    v = coefficients(draw(moments, 0, np.zeros(40_000, int)), 2)
    # (0.05 + √(0.05² − 0.02²))/2; (0.0201 + √(0.0201² − 0.02²))/2
    expected = [0.047913, 0, 0.011051, 0]
    np.testing.assert_allclose(np.cov(v.T), np.diag(expected), atol=0.001)
    np.testing.assert_allclose(
        v[:, [1, 3]], moments.means[:1].repeat(40_000, 0)[:, [1, 3]], atol=1e-5
    )


def test_an_image_is_drawn_again_from_its_class_alone(no_noise):
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    images, labels = np.tile(image, (300, 1, 1, 1)), np.arange(300) % CLASSES
    found = released(images, labels, 1e-3, size=SIDE, norm=20.0)
    found = dataclasses.replace(found, covariances=np.zeros_like(found.covariances))
    np.testing.assert_allclose(draw(found, 0, labels[:3]) * 255, images[:3], atol=0.5)


def test_an_image_depends_on_seed_index_and_label_alone():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (600, 28, 28, 1), np.uint8)
    found = released(images, np.arange(600) % CLASSES, 1e-3, size=10, norm=14.0)
    labels = rng.integers(0, CLASSES, 2100)
    many = draw(found, 0, labels)
    for num in (0, 1, 3, 129, 2048, 2049):
        np.testing.assert_array_equal(draw(found, 0, labels[:num]), many[:num])
    others = np.where(np.arange(2100) % 5 == 0, labels, 1)
    np.testing.assert_array_equal(draw(found, 0, others)[::5], many[::5])
    other = draw(found, 1, labels)
    assert len(np.unique(np.concatenate([many, other]).reshape(4200, -1), axis=0)) == 4200


def test_images_are_the_same_whichever_way_eigenvectors_point(monkeypatch):
    moments, labels, real = gaussians(), np.arange(6) % 2, np.linalg.eigh
    before = draw(moments, 0, labels)

    def turned(matrix):
        values, vectors = real(matrix)
        return values, vectors * [-1, 1, -1, -1]

    monkeypatch.setattr(np.linalg, "eigh", turned)
    np.testing.assert_allclose(draw(moments, 0, labels), before, atol=1e-6)


# -- wrong inputs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("size", {"size": 9}),
        ("size", {"size": 0}),
        ("size", {"size": 2.0}),
        ("norm", {"norm": 0.0}),
        ("norm", {"norm": math.inf}),
        ("norm", {"norm": math.nan}),
        ("noise_multiplier", {"multiplier": 0.0}),
        ("noise_multiplier", {"multiplier": math.nan}),
        ("noise_multiplier", {"multiplier": 1.1e4}),
        ("num_classes", {"num_classes": 0}),
        ("images", {"images": np.zeros((40, 8, 8, 1), np.float32)}),
        ("images", {"images": np.zeros((40, 8, 8), np.uint8)}),
        ("images", {"images": np.zeros((40, 8, 9, 1), np.uint8)}),
        ("images", {"images": np.zeros((0, 8, 8, 1), np.uint8), "labels": np.zeros(0, int)}),
        ("labels", {"labels": np.zeros(39, int)}),
        ("labels", {"labels": np.zeros(40)}),
        ("labels", {"labels": np.zeros((40, 1), int)}),
        ("labels", {"labels": np.full(40, 3)}),
        ("labels", {"labels": np.full(40, -1)}),
        ("live", {"live": np.ones(39, bool)}),
        ("live", {"live": np.ones(40, int)}),
    ],
)
def test_wrong_inputs_are_refused_by_name(field, changed):
    images, labels = private()
    given = {"images": images, "labels": labels, **changed}
    with pytest.raises(InputError) as error:
        released(given.pop("images"), given.pop("labels"), **given)
    assert error.value.field == field


def test_more_records_than_are_summed_exactly_are_refused():
    images = np.broadcast_to(np.uint8(0), ((1 << 21) + 1, 1, 1, 1))
    with pytest.raises(InputError, match="^images: got '2,097,153'; must be at most 2,097,152"):
        released(images, np.broadcast_to(0, len(images)), size=1)


@pytest.mark.parametrize(
    ("field", "seed", "labels"),
    [
        ("seed", -1, np.zeros(3, int)),
        ("labels", 0, np.array([0, 2])),
        ("labels", 0, np.array([0, -1])),
        ("labels", 0, np.zeros(3)),
    ],
)
def test_wrong_draws_are_refused_by_name(field, seed, labels):
    with pytest.raises(InputError) as error:
        draw(gaussians(), seed, labels)
    assert error.value.field == field
