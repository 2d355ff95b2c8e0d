"""Standard JSON: numbers that are not finite are written as null, never as NaN or Infinity."""

import json
import math
from collections.abc import Mapping
from typing import Any


def encode(value: Any, **options: Any) -> str:
    """`json.dumps` with its options, for every file that we write; TypeError as there."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
