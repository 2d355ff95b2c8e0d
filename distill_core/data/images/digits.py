"""scikit-learn's handwritten digits: 1,797 real images of 8×8 pixels, part of the package."""

import base64
from typing import Any

import numpy as np

from distill_core.data.images.dataset import Dataset, make_dataset

# Of the pixels of the train split, in [0, 1]; computed once.
MEAN = (0.3059,)
STD = (0.3764,)

# The bits of the test split's rows: 36 images of each class, drawn once. A constant, since a split
# that is drawn by class would move other images where one label changes.
_TEST_ROWS = (
    "EQQQAAoQhQpmgAAEIICwAQRBwWgQQSoAkFIAUYCCAADOB8ABAcABDCAAAQKVFBAAAwAAARCFMAEVwgtEloEEGoYAQMUk"
    "okAiYE2gwAxqYICBAaAAAN4IAAEEAAEIQSAYAEABCFkAADgICNAgCQFySUICQMAIAhipAFGFgQAAAAgIQJIBEgCUlEJA"
    "IECCtAGACoQANAAEACgCQRAFwMhggNAwCVUICgBBIBQgBCiAASCK0VAAAwgAyBACGAQiCAUQIIBBBBEJBCIJQAISQAAQ"
    "MQADCAJCCgAASEgBACACA4CY"
)


def load() -> Dataset:
    """Reads `digits`: uint8 [N, 8, 8, 1], 1,437 for training and 360 for testing.

    scikit-learn's values of 0 to 16 become 0 to 255 (value · 255 / 16, rounded). The data has no
    published split, so this one is ours: 36 images of each class are the test split.
    """
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    images = np.round(data.images * 255 / 16).astype(np.uint8)[..., None]  # [N, 8, 8, 1]
    labels = data.target
    packed = np.frombuffer(base64.b64decode(_TEST_ROWS), np.uint8)
    is_test = np.unpackbits(packed, count=len(labels)).astype(bool)
    return make_dataset(
        "digits",
        (images[~is_test], labels[~is_test]),
        (images[is_test], labels[is_test]),
        classes=[str(label) for label in range(10)],
        mean=MEAN,
        std=STD,
    )
