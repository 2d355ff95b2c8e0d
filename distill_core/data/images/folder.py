"""A user's own folder of image files: PATH/train/CLASS/*.png, PATH/test/CLASS/*.png."""

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from etils import epath
from PIL import Image, ImageOps

from distill_core.config import InputError
from distill_core.data.images import pixels
from distill_core.data.images.dataset import Dataset, in_order, make_dataset
from distill_core.runtime import paths

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

# Pillow's modes of more than 8 bits per value, and its names for such colours in a file: converting
# them would silently clip or truncate.
_DEEP_MODES = ("I", "F")
_DEEP_COLOUR = re.compile(r";16[BLN]")
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # EXIF: width and height change places

# What pillow raises for a damaged file, depending on its format and on where the damage is.
_DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

# Hides the latency of disks and networks; cached small files decode no faster.
_THREADS = 4


def load(path: str, memory: int | None = None) -> Dataset:
    """Reads `folder:PATH` as uint8 [N, H, W, C], every file decoded once; see `pixels.room`.

    The classes are the folders of PATH/train, sorted, as numbers if all are; PATH/test may lack
    some, but not add any. All images must have one size, after their EXIF orientation is applied.
    C is 1 if every image is grey, else 3: grey ones become RGB and an alpha channel is dropped.
    Other file types than `SUFFIXES` are ignored, as are names that start with a dot. Examples are
    in the order of `by_name`, whatever their classes.
    """
    name = f"folder:{path}"
    root = paths.expand("dataset", path, given=name)
    classes = in_order([folder.name for folder in class_folders(name, root / "train")])
    files = {which: _files(name, root / which, classes) for which in ("train", "test")}
    train, test = read(name, files, memory=memory)
    record = records(files["train"])
    return make_dataset(name, train, test, classes=classes, record=record, channels_last=True)


def by_name(files: Iterable[tuple[epath.Path, int]]) -> list[tuple[epath.Path, int]]:
    """(file, label) sorted by the file's own name, then by class.

    So that a file which moves to another class, one changed label, keeps its place and all others
    keep theirs. Only among files of one name in several classes does the label decide.
    """
    return sorted(files, key=lambda each: (each[0].name, each[1]))


def records(files: Sequence[tuple[epath.Path, int]]) -> np.ndarray:
    """`Split.record`, int32 [N]: the rank of each file's name, whatever its class."""
    _, rank = np.unique([file.name for file, _ in files], return_inverse=True)
    return rank.astype(np.int32)


def class_folders(name: str, parent: epath.Path) -> list[epath.Path]:
    """The class folders of one split, sorted."""
    if not parent.is_dir():
        message = f"must hold train/CLASS/ and test/CLASS/, and {parent} is not a folder"
        raise InputError("dataset", name, message)
    found = [p for p in parent.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if not found:
        raise InputError("dataset", name, f"{parent} must hold a folder per class, and holds none")
    return sorted(found, key=lambda folder: folder.name)


def images_in(name: str, folder: epath.Path) -> list[epath.Path]:
    """The image files of one folder, sorted."""
    found = [
        file
        for file in (folder.iterdir() if folder.is_dir() else ())
        if file.name.lower().endswith(SUFFIXES) and not file.name.startswith(".")
    ]
    if not found:
        message = f"{folder} must hold images ({', '.join(SUFFIXES)}), and holds none"
        raise InputError("dataset", name, message)
    return sorted(found, key=lambda file: file.name)


def read(
    name: str,
    files: Mapping[str, Sequence[tuple[epath.Path, int]]],
    *,
    mode: Literal["L", "RGB"] | None = None,
    memory: int | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(uint8 [N, H, W, C], int32 [N]) of each split, from its (file, label) pairs.

    `mode` is grey (C = 1) or colour (C = 3); by default grey if every image is. Beyond `memory`
    bytes a split is on disk, see `pixels.room`.
    """
    flat = [file for split in files.values() for file, _ in split]
    with ThreadPoolExecutor(_THREADS) as pool:
        headers = list(pool.map(lambda file: _header(name, file), flat))
        if mode is None:
            mode = "L" if all(grey for _, grey in headers) else "RGB"
        size = headers[0][0]
        for file, (other, _) in zip(flat, headers, strict=True):
            if other != size:
                message = (
                    f"all images must have one size: {flat[0]} is {size[0]}x{size[1]} "
                    f"and {file} is {other[0]}x{other[1]}"
                )
                raise InputError("dataset", name, message)
        shapes = [(len(split), size[1], size[0], len(mode)) for split in files.values()]
        rooms = [pixels.room(shape, memory) for shape in shapes]
        each = zip(files.values(), rooms, strict=True)
        return [_decode(name, pool, split, images, mode) for split, images in each]


def _files(name: str, parent: epath.Path, classes: list[str]) -> list[tuple[epath.Path, int]]:
    """(file, label) of one split."""
    result = []
    for folder in class_folders(name, parent):
        if folder.name not in classes:
            message = f"{folder} is a class that the train split does not have"
            raise InputError("dataset", name, message)
        label = classes.index(folder.name)
        result += [(file, label) for file in images_in(name, folder)]
    return by_name(result)


def _header(name: str, file: epath.Path) -> tuple[tuple[int, int], bool]:
    """(width, height) and whether the image is grey; reads no pixels."""
    try:
        with file.open("rb") as stream, Image.open(stream) as image:
            size, mode = image.size, image.mode
            stored = str(image.tile[0][3]) if image.tile else ""
            # A PNG would be decoded to look for EXIF at its end; `_decode` compares sizes again.
            exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
            size = (size[1], size[0]) if exif.get(_ORIENTATION) in _TURNED else size
    except _DAMAGED as error:
        raise InputError("dataset", name, f"{file} cannot be read as an image") from error
    if mode.split(";")[0] in _DEEP_MODES or _DEEP_COLOUR.search(stored):
        shown = mode if mode.split(";")[0] in _DEEP_MODES else stored
        message = f"images must have 8 bits per value, and {file} has more (mode {shown})"
        raise InputError("dataset", name, message)
    return size, mode in ("L", "LA", "1")


def _decode(
    name: str,
    pool: ThreadPoolExecutor,
    files: Sequence[tuple[epath.Path, int]],
    images: np.ndarray,
    mode: str,
) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [N, H, W, C], int32 [N]) of one split; fills `images`."""
    height, width = images.shape[1:3]

    def decode(i: int) -> None:
        file = files[i][0]
        try:
            with file.open("rb") as stream, Image.open(stream) as image:
                upright = ImageOps.exif_transpose(image)
                if upright.size != (width, height):
                    found = f"{upright.size[0]}x{upright.size[1]}"
                    message = f"all images must have one size, {width}x{height}; {file} is {found}"
                    raise InputError("dataset", name, message)
                images[i] = np.asarray(upright.convert(mode)).reshape(images.shape[1:])
        except InputError:
            raise
        except _DAMAGED as error:
            raise InputError("dataset", name, f"{file} cannot be read as an image") from error

    # list() so that an error in a thread is raised here, the first file's first.
    list(pool.map(decode, range(len(files))))
    return images, np.array([label for _, label in files], np.int32)
