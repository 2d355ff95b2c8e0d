"""Labelled images in memory, and the checks that every source of them shares."""

import dataclasses
import hashlib
from collections.abc import Collection, Sequence

import numpy as np

from distill_core.config import InputError
from distill_core.data.images import pixels
from distill_core.runtime import strict_json

_ROUNDING = 1e-5  # errors of arithmetic on floats in [0, 1], such as standardising and back


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Labelled images, read-only: uint8 or float32 in [0, 1] [N, H, W, C], and int32 [N].

    `index` int32 [N] is each example's place in the split as it was loaded, which never depends on
    labels. `record` int32 [N] is by default the same; examples that share a number belong together
    (files of one name), since only their labels tell them apart.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray = None  # pyright: ignore[reportAssignmentType]: set in __post_init__
    record: np.ndarray = None  # pyright: ignore[reportAssignmentType]: likewise

    def __post_init__(self):
        if self.index is None:
            object.__setattr__(self, "index", np.arange(len(self.labels), dtype=np.int32))
        if self.record is None:
            object.__setattr__(self, "record", self.index)
        for field in ("images", "labels", "index", "record"):
            array = getattr(self, field).view()  # a view: the caller's own array stays writeable
            array.flags.writeable = False
            object.__setattr__(self, field, array)

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Two splits, the class names, and the constants to standardise pixels by.

    `mean` and `std` have one value per channel, for pixels in [0, 1]; they are public constants,
    never computed from the data that is loaded. `note` says what must be known about numbers that
    come from this data; "" if nothing. `named` is False where the source does not name its classes,
    so that `classes` are numbers.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str = ""
    named: bool = True
    read_as: str = dataclasses.field(default="", repr=False)  # fingerprint before `reordered`

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    def reordered(self, order: Sequence[int]) -> "Dataset":
        """The same examples with their classes in another order.

        Args:
          order: class i becomes number `order[i]`; a permutation.

        Returns:
          The data set with its labels and class names renumbered.
        """
        classes, numbers = list(self.classes), np.asarray(order, np.int32)
        for name, place in zip(self.classes, order, strict=True):
            classes[place] = name
        train, test = (
            dataclasses.replace(split, labels=numbers[split.labels])
            for split in (self.train, self.test)
        )
        return dataclasses.replace(
            self, train=train, test=test, classes=tuple(classes), read_as=self.fingerprint()
        )

    def fingerprint(self) -> str:
        """SHA-256 of all images, labels, classes, and the constants that standardise pixels.

        Always of the data as it was read, before `reordered`. It confirms a guess of the data, so
        it must stay in `private/`.
        """
        if self.read_as:
            return self.read_as
        sha = hashlib.sha256(
            strict_json.encode([self.mean, self.std, self.classes, self.named]).encode()
        )
        for split in (self.train, self.test):
            for array in (split.images, split.labels):
                sha.update(f"{array.dtype}{array.shape};".encode())
                sha.update(np.ascontiguousarray(array).view(np.uint8).data)
        return sha.hexdigest()


def make_dataset(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    classes: Sequence[str],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    record: np.ndarray | None = None,
    channels_last: bool = False,
) -> Dataset:
    """Checks what a source has read and makes a `Dataset` of it.

    Args:
      name: the name as the user gave it, for messages.
      train: (images, labels): uint8 or floating images in [0, 1] [N, H, W, C], integer labels [N].
      test: the same.
      classes: class names; labels index them.
      mean, std: one value per channel, for pixels in [0, 1]; by default 0.5.
      record: of the train split, see `Split`.
      channels_last: whether the source says that channels are the last axis. Otherwise images with
        at least as many channels as rows or columns are refused (up to 4 channels: those of 1 or 3
        rows and more channels), since their channels may come first, or they are volumes.
    """
    name, classes = readable(name), tuple(map(readable, classes))
    if len(classes) < 2:
        raise InputError("dataset", name, f"needs at least 2 classes, and has {len(classes)}")
    for twice in (c for i, c in enumerate(classes) if c in classes[:i]):
        raise InputError("dataset", name, f"class names must be distinct; {twice!r} occurs twice")
    splits = []
    for which, (images, labels) in (("train", train), ("test", test)):
        images = _checked_images(name, which, images)
        if not channels_last:
            _check_channels(name, which, images.shape)
        labels = _checked_labels(name, which, labels, images, len(classes))
        splits.append(Split(images, labels, record=record if which == "train" else None))  # pyright: ignore[reportArgumentType]
    shapes = [split.images.shape[1:] for split in splits]
    if shapes[0] != shapes[1]:
        message = f"test images must be {shapes[0]} as the train images are, and are {shapes[1]}"
        raise InputError("dataset", name, message)
    half = (0.5,) * shapes[0][-1]
    mean, std = (half if each is None else tuple(each) for each in (mean, std))
    if (wrong := wrong_constants(mean, std)) is not None:
        raise InputError("dataset", name, wrong)
    return Dataset(name, *splits, classes=classes, mean=mean, std=std)


def in_order(names: Collection[str]) -> list[str]:
    """Class names sorted, as numbers if all are.

    >>> in_order({"10", "9", "1"}), in_order({"b", "10", "9"})
    (['1', '9', '10'], ['10', '9', 'b'])
    """
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if numbers else None)


def wrong_constants(mean: Sequence[float], std: Sequence[float]) -> str | None:
    """An error message if these cannot be the mean and std of pixels in [0, 1]; else None."""
    if all(0 <= value <= 1 for value in mean) and all(0 < value <= 1 for value in std):
        return None
    return (
        f"mean must lie in [0, 1] and std in (0, 1], for pixels in [0, 1], and are {list(mean)} "
        f"and {list(std)}; divide those of pixels in [0, 255] by 255"
    )


def readable(name: str) -> str:
    r"""A name that can be printed, drawn and stored in any file.

    Where a file's name is not UTF-8, Python represents its bytes by surrogates; such a name is read
    as Latin-1. Other surrogates become escapes.

    >>> readable(b"Gr\xf6\xdfe".decode("utf-8", "surrogateescape"))
    'Größe'
    """
    try:
        name.encode()
        return name
    except UnicodeEncodeError:
        pass
    try:
        return name.encode("utf-8", "surrogateescape").decode("latin-1")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode()


def hold_out(split: Split, num: int, seed: int) -> tuple[Split, Split]:
    """Holds examples out, such as for validation.

    The choice is uniform over examples, whatever their class, and a pure function of the seed,
    `num` and the length of the split; both parts keep the order of the split.

    Args:
      split: N examples.
      num: how many are held out, less than N.
      seed: of the choice, at least 0.

    Returns:
      (rest, held out), of N − `num` and `num` examples.

    Raises:
      InputError: on `num_validation`, there are too few examples.
    """
    if num >= len(split):
        allowed = f"must be less than the {len(split):,} training examples"
        raise InputError("num_validation", num, allowed)
    if num == 0:
        return split, _rows(split, np.zeros(len(split), bool))
    # A spawn key of its own: the order of an epoch (sampling.py) comes from the same seed.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, 1)))
    held = np.zeros(len(split), bool)
    held[rng.permutation(len(split))[:num]] = True
    return _rows(split, ~held), _rows(split, held)


def _rows(split: Split, rows) -> Split:
    images = pixels.some(split.images, rows)
    return Split(images, split.labels[rows], split.index[rows], split.record[rows])


def _checked_images(name: str, which: str, images: np.ndarray) -> np.ndarray:
    """The images as uint8 or float32 [N, H, W, C]."""
    if images.ndim != 4:
        message = f"{which} images must have the shape [N, H, W, C], and have {images.shape}"
        raise InputError("dataset", name, message)
    if len(images) == 0:
        raise InputError("dataset", name, f"the {which} split must not be empty")
    if images.dtype == np.uint8:
        if images.max() == 1 and images.min() == 0:
            message = f"{which} images must have values from 0 to 255, and have only 0 and 1"
            raise InputError("dataset", name, f"{message}; scale them")
        return images
    if not np.issubdtype(images.dtype, np.floating):
        message = f"{which} images must be uint8 or floats in [0, 1], and are {images.dtype}"
        raise InputError("dataset", name, message)
    low, high = images.min(), images.max()
    if np.isnan(low):
        where = int(np.argmax(np.isnan(images).any(axis=(1, 2, 3))))
        message = f"{which} images that are floats must lie in [0, 1], and image {where} holds NaN"
        raise InputError("dataset", name, message)
    if 0 == low < high <= 1 / 255:
        message = f"{which} images are at most {high:g}: they were divided by 255 twice"
        raise InputError("dataset", name, message)
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        message = (
            f"{which} images that are floats must lie in [0, 1], and lie in [{low:g}, {high:g}]; "
            "scale them, or store uint8"
        )
        raise InputError("dataset", name, message)
    images = images.astype(np.float32, copy=False)
    return images if low >= 0 and high <= 1 else images.clip(0, 1)


def _check_channels(name: str, which: str, shape: Sequence[int]):
    """Refuses images whose last axis is unlikely to be the channels."""
    height, width, channels = shape[1:]
    least = min(height, width)
    if channels < least or height == width == 1:
        return
    if channels <= 4 and not (height in (1, 3) and height < channels):
        return
    message = (
        f"{which} images must be [N, H, W, C] with the channels last, and are {tuple(shape)}: "
        f"{channels} channels of {height}x{width} pixels? If the channels come first, store "
        "x.transpose(0, 2, 3, 1); if they are last, say so: an .npz by an array layout='NHWC'"
    )
    raise InputError("dataset", name, message)


def _checked_labels(
    name: str, which: str, labels: np.ndarray, images: np.ndarray, num_classes: int
) -> np.ndarray:
    """The labels as int32 [N]."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        message = (
            f"{which} labels must be integers of the shape [N], "
            f"and are {labels.dtype} of the shape {labels.shape}; of one-hot labels take the argmax"
        )
        raise InputError("dataset", name, message)
    if len(labels) != len(images):
        message = (
            f"the {which} split must have one label per image, "
            f"and has {len(images):,} images and {len(labels):,} labels"
        )
        raise InputError("dataset", name, message)
    low, high = labels.min(), labels.max()
    if low < 0 or high >= num_classes:
        message = (
            f"{which} labels must lie in 0 to {num_classes - 1}, and lie in {low} to {high}; "
            f"there are {num_classes} classes"
        )
        raise InputError("dataset", name, message)
    return labels.astype(np.int32, copy=False)
