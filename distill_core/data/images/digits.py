"""scikit-learn's handwritten digits: 1,797 real images of 8×8 pixels, part of the package."""

import base64
from typing import Any

import numpy as np

from distill_core.data.images.dataset import Dataset, make_dataset

# Of the train split's pixels in [0, 1]; computed once.
MEAN = (0.3059,)
STD = (0.3764,)

# The test split as a bit mask: 36 images per class, drawn once. A constant, since in a split drawn
# by class a changed label would move other images.
_TEST_ROWS = (
    "EQQQAAoQhQpmgAAEIICwAQRBwWgQQSoAkFIAUYCCAADOB8ABAcABDCAAAQKVFBAAAwAAARCFMAEVwgtEloEEGoYAQMUk"
    "okAiYE2gwAxqYICBAaAAAN4IAAEEAAEIQSAYAEABCFkAADgICNAgCQFySUICQMAIAhipAFGFgQAAAAgIQJIBEgCUlEJA"
    "IECCtAGACoQANAAEACgCQRAFwMhggNAwCVUICgBBIBQgBCiAASCK0VAAAwgAyBACGAQiCAUQIIBBBBEJBCIJQAISQAAQ"
    "MQADCAJCCgAASEgBACACA4CY"
)


def load() -> Dataset:
    """Reads `digits`: uint8 [N, 8, 8, 1], 1,437 for training and 360 for testing.

    scikit-learn's values of 0 to 16 become 0 to 255 (value · 255 / 16, rounded). The data has no
    published split; this one is ours.
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
        classes=list("0123456789"),
        mean=MEAN,
        std=STD,
    )
