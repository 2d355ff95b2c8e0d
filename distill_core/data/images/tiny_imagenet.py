"""Tiny-ImageNet as it is distributed: its validation labels are in a file, not in folders.

    PATH/train/WNID/images/*.JPEG  PATH/val/images/*.JPEG  PATH/val/val_annotations.txt
    PATH/words.txt  (WNID, a tab, names)

The folder of test images has no labels and is not read.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from etils import epath

from distill_core.config import InputError
from distill_core.data.images import folder
from distill_core.data.images.dataset import Dataset, make_dataset
from distill_core.runtime import paths

# Of pixels in [0, 1], as used in the literature.
MEAN = (0.4802, 0.4481, 0.3975)
STD = (0.2302, 0.2265, 0.2262)

NOTE = "the validation set stands in for the test split"
_ANNOTATIONS = "val_annotations.txt"
_ANNOTATION = "FILE, WNID and 4 numbers, separated by tabs"


def recognises(path: str) -> bool:
    """Whether a folder has this layout: `images` in `val` and in a class of `train`.

    One with class folders in `test` is a user's own.
    """
    root = paths.expand("dataset", path, given=f"folder:{path}")
    if not ((root / "val" / "images").is_dir() and (root / "train").is_dir()):
        return False
    test = root / "test"
    if test.is_dir() and not (test / "images").is_dir():
        return False
    return any((each / "images").is_dir() for each in (root / "train").iterdir())


def load(path: str, memory: int | None = None) -> Dataset:
    """Reads `folder:PATH` as uint8 [N, 64, 64, 3]; grey images become RGB.

    The classes are the folders of PATH/train, sorted, under their first name in words.txt: with the
    WNID if two would have the same, and the WNID alone if there is none. The test split is the
    validation set, as the note says. Training examples are in the order of `folder.by_name`.
    """
    name = f"folder:{path}"
    root = paths.expand("dataset", path, given=name)
    wnids = [each.name for each in folder.class_folders(name, root / "train")]
    train = folder.by_name(
        (file, label)
        for label, wnid in enumerate(wnids)
        for file in folder.images_in(name, root / "train" / wnid / "images")
    )
    files = {"train": train, "test": _validation(name, root / "val", wnids)}
    splits = folder.read(name, files, mode="RGB", memory=memory)
    made = make_dataset(
        name,
        *splits,
        classes=_names(name, root / "words.txt", wnids),
        mean=MEAN,
        std=STD,
        record=folder.records(train),
        channels_last=True,
    )
    return dataclasses.replace(made, note=NOTE)


def _validation(
    name: str, parent: epath.Path, wnids: Sequence[str]
) -> list[tuple[epath.Path, int]]:
    """(file, label) of the validation set, from its annotations."""
    path = parent / _ANNOTATIONS
    if not path.exists():
        message = f"needs {path}, which holds the labels of {parent / 'images'}"
        raise InputError("dataset", name, message)
    files = {file.name: file for file in folder.images_in(name, parent / "images")}
    known = {wnid: label for label, wnid in enumerate(wnids)}
    labels: dict[str, int] = {}
    for number, line in enumerate(_lines(name, path), 1):
        fields = line.split("\t")
        where = f"line {number} of {path}"
        if len(fields) != 6 or not all(fields):
            raise InputError("dataset", name, f"{where} must be {_ANNOTATION}, and is {line!r}")
        file, wnid = fields[:2]
        if wnid not in known:
            message = f"{where} names {wnid}, a class that the train split does not have"
            raise InputError("dataset", name, message)
        if file not in files:
            message = f"{where} names {file}, which is not in {parent / 'images'}"
            raise InputError("dataset", name, message)
        if file in labels:
            raise InputError("dataset", name, f"{where} names {file}, as a line before it does")
        labels[file] = known[wnid]
    for file in files:
        if file not in labels:
            raise InputError("dataset", name, f"{files[file]} has no line in {path}")
    return [(files[file], labels[file]) for file in files]


def _names(name: str, path: epath.Path, wnids: Sequence[str]) -> list[str]:
    """Names of the classes."""
    words = {}
    for line in _lines(name, path) if path.exists() else ():
        wnid, _, text = line.partition("\t")
        words[wnid] = text.partition(",")[0].strip()
    found = [words.get(wnid) or wnid for wnid in wnids]
    count = Counter(found)
    return [
        f"{called} ({wnid})" if count[called] > 1 else called
        for called, wnid in zip(found, wnids, strict=True)
    ]


def _lines(name: str, path: epath.Path) -> list[str]:
    """Without line ends and empty lines at the end."""
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("dataset", name, f"{path} cannot be read as text") from error
