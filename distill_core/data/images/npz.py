"""A user's own arrays in one `.npz` file, as Keras and MedMNIST write them."""

import dataclasses
import zipfile

import numpy as np

from distill_core.config import InputError
from distill_core.data.images.dataset import Dataset, make_dataset
from distill_core.runtime import paths

_KERAS = ("x_train", "y_train", "x_test", "y_test")
_MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")


def load(path: str) -> Dataset:
    """Reads `npz:PATH`.

    The keys are `x_train, y_train, x_test, y_test` or `train_images, train_labels, test_images,
    test_labels`. Images are uint8 or floats in [0, 1], [N, H, W, C] or [N, H, W]; labels are
    integers, [N] or [N, 1]. An optional array `classes` names the classes; without it they are the
    numbers from 0 to the largest label of the train split. An optional text `layout`, "NHWC", says
    that channels are last where that is in doubt, see `make_dataset`. Other keys are ignored.
    """
    name = f"npz:{path}"
    arrays = _read(name, path)
    keys = next((keys for keys in (_KERAS, _MEDMNIST) if set(keys) <= set(arrays)), None)
    if keys is None:
        found = ", ".join(sorted(arrays)) or "none"
        message = f"needs the keys {', '.join(_KERAS)} or {', '.join(_MEDMNIST)}; found {found}"
        raise InputError("dataset", name, message)
    x_train, y_train, x_test, y_test = (arrays[key] for key in keys)
    y_train, y_test = _flat(y_train), _flat(y_test)
    if "classes" in arrays:
        classes = [_text(c) for c in arrays["classes"].ravel().tolist()]
    elif np.issubdtype(y_train.dtype, np.integer) and y_train.size:
        classes = [str(label) for label in range(int(y_train.max()) + 1)]
        _check_numbers(name, y_train)
    else:
        classes = ["0", "1"]  # no labels to count: make_dataset says what is wrong with them
    layout = _text(arrays["layout"]) if "layout" in arrays else None
    if layout not in (None, "NHWC"):
        message = f"its layout is {layout!r}; must be 'NHWC': store x.transpose(0, 2, 3, 1)"
        raise InputError("dataset", name, message)
    made = make_dataset(
        name,
        (_with_channels(x_train), y_train),
        (_with_channels(x_test), y_test),
        classes=classes,
        channels_last=layout is not None,
    )
    return dataclasses.replace(made, named="classes" in arrays)


def _check_numbers(name: str, labels: np.ndarray):
    """Refuses labels that count from 1 or leave out more than every other number."""
    low, high, found = labels.min(), labels.max(), len(np.unique(labels))
    if low > 0 or 2 * found < int(high) + 1:
        message = (
            f"train labels must number the classes from 0, and are {found} numbers from {low} to "
            f"{high}; renumber them, or name all {int(high) + 1} in an array `classes`"
        )
        raise InputError("dataset", name, message)


def _read(name: str, path: str) -> dict[str, np.ndarray]:
    """Every array of the file that could be one of ours."""
    file = paths.expand("dataset", path, given=name)
    if not file.is_file():
        raise InputError("dataset", name, "must be an existing .npz file")
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            wanted = {*_KERAS, *_MEDMNIST, "classes", "layout"}
            # Keys are kept even where the array is not read: the message about keys lists them.
            return {k: archive[k] if k in wanted else np.empty(0) for k in archive.files}
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        # A pickle, a single .npy, a truncated archive: NumPy has an exception for each.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"must be an .npz of plain arrays, and cannot be read as one ({reason})"
        raise InputError("dataset", name, message) from error


def _flat(labels: np.ndarray) -> np.ndarray:
    """Labels [N, 1] as [N]."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _with_channels(images: np.ndarray) -> np.ndarray:
    """Grey images [N, H, W] as [N, H, W, 1]."""
    return images[..., None] if images.ndim == 3 else images


def _text(name: object) -> str:
    name = name.item() if isinstance(name, np.ndarray) and name.size == 1 else name
    # Bytes that are not UTF-8 are read as Latin-1 by `dataset.readable`, as in names of files.
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)
