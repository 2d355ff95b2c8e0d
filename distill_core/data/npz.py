"""Arrays of a user's own in one `.npz` file, as Keras and MedMNIST write them."""

import zipfile

import numpy as np
from etils import epath

from distill_core.config import InputError
from distill_core.data.dataset import Dataset, make_dataset

_KERAS = ("x_train", "y_train", "x_test", "y_test")
_MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")


def load(path: str) -> Dataset:
    """Reads `npz:PATH`.

    The keys are `x_train, y_train, x_test, y_test` or `train_images, train_labels, test_images,
    test_labels`. Images are uint8 or floats in [0, 1], [N, H, W, C] or [N, H, W]; labels are
    integers, [N] or [N, 1]. An optional array `classes` names the classes; without it there are as
    many as the largest label of the train split says. Other keys are ignored.

    Raises:
      InputError: on `dataset`: no such file, not an `.npz`, keys that miss, and what
        `make_dataset` refuses.
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
    else:
        classes = ["0", "1"]  # no labels to count: make_dataset says what is wrong with them
    return make_dataset(
        name, (_with_channels(x_train), y_train), (_with_channels(x_test), y_test), classes=classes
    )


def _read(name: str, path: str) -> dict[str, np.ndarray]:
    """Every array of the file that could be one of ours."""
    file = epath.Path(path).expanduser()
    if not file.is_file():
        raise InputError("dataset", name, "must be an existing .npz file")
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            wanted = {*_KERAS, *_MEDMNIST, "classes"}
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
    return name.decode() if isinstance(name, bytes) else str(name)
