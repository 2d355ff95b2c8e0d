"""Image data by name: `load_dataset("digits")`, `"tfds:NAME"`, `"npz:PATH"`, `"folder:PATH"`."""

from collections.abc import Mapping

from distill_core.config import InputError
from distill_core.data.images.dataset import Dataset, Split, hold_out

__all__ = ["Dataset", "Split", "hold_out", "load_dataset", "split_name"]

# What follows the colon, by kind; None where nothing does.
KINDS: dict[str, str | None] = {"digits": None, "tfds": "NAME", "npz": "PATH", "folder": "PATH"}


def split_name(name: str, kinds: Mapping[str, str | None] = KINDS) -> tuple[str, str]:
    """Splits a name into (kind, path); the path is "" for a kind without one.

    Args:
      name: of a data set, such as `digits` or `npz:PATH`.
      kinds: what follows the colon, by kind; None where nothing does.

    Returns:
      (kind, path).

    Raises:
      InputError: on `dataset`, no such kind, or a path that is missing or not due.

    >>> split_name("tfds:cifar10")
    ('tfds', 'cifar10')
    """
    kind, colon, path = name.partition(":")
    if kind not in kinds or bool(path) != (kinds[kind] is not None) or (colon and not path):
        known = ", ".join(k if what is None else f"{k}:{what}" for k, what in kinds.items())
        raise InputError("dataset", name, f"must be one of {known}")
    return kind, path


def load_dataset(name: str, *, data_dir: str | None = None, memory: int | None = None) -> Dataset:
    """Loads a whole data set of labelled images into memory, or what is too large onto disk.

    One that is slow to decode is kept until another is loaded or its files change.

    Args:
      name: `digits` (scikit-learn's, embedded), `tfds:NAME` (a prepared directory, read without
        TensorFlow; NAME as TensorFlow Datasets writes it), `npz:PATH` (arrays as Keras or MedMNIST
        write them) or `folder:PATH` (PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, or
        Tiny-ImageNet as it is distributed).
      data_dir: where `tfds:NAME` was prepared; by default `$TFDS_DATA_DIR`, else
        `~/tensorflow_datasets`. Other kinds ignore it.
      memory: MiB up to which a split of `tfds:NAME` or `folder:PATH` is held in memory, else in a
        file on disk (`images.pixels`); None: always.

    Returns:
      Both splits as uint8 or float32 images [N, H, W, C] with int32 labels [N], the class names,
      and the constants to standardise by. A non-empty `note` belongs beside every number that comes
      from the data.

    Raises:
      InputError: on `dataset` or `data_dir`, if the data is missing, unreadable or inconsistent.
    """
    kind, path = split_name(name)
    room = None if memory is None else memory * 2**20
    # Each source is imported on use: scikit-learn and tensorflow_datasets are slow to import.
    if kind == "digits":
        from distill_core.data.images import digits

        return digits.load()
    if kind == "tfds":
        from distill_core.data.images import tfds_source

        return tfds_source.load(path, data_dir, room)
    if kind == "npz":
        from distill_core.data.images import npz

        return npz.load(path)
    from distill_core.data.images import folder, tiny_imagenet
    from distill_core.data.images.memory import remembered

    source = tiny_imagenet if tiny_imagenet.recognises(path) else folder
    return remembered(name, path, lambda: source.load(path, room))
