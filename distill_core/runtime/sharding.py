"""How the arrays of a state are split over a mesh: one rule, for any network and optimiser.

A mesh has the axis `data`, over which batches are split, too, and maybe the axis `model`. Weights
split over `data` are put together again where a layer uses them (fully sharded data parallelism);
those split over `model` never are: each device computes its heads, its part of an MLP, and the
logits of its part of the vocabulary.
"""

import math
import re
from collections.abc import Mapping

DATA, MODEL = "data", "model"
_SMALL = 2**12  # entries below which a copy costs less than putting it together

# Matrices [in, out] of the text networks: split by columns, then by rows, so that each pair of
# products needs one sum over `model`; embeddings and heads [V, D] by vocabulary.
_COLUMNS = r"((q|k|v|gate|up)_proj|mlp_c_fc)/kernel"
_ROWS = r"((o|down)_proj|attn_c_proj|mlp_c_proj)/kernel"
_VOCABULARY = r"embed_tokens|lm_head|wte"
_SPLIT_BY_MODEL = ((re.compile(rf"(.*/)?({_COLUMNS})"), 1),
                   (re.compile(rf"(.*/)?({_ROWS}|{_VOCABULARY})"), 0))  # fmt: skip


def split(name: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[str | None, ...]:
    """The axis of the mesh that each axis of an array is split over, or None.

    Matrices that the text networks' names tell of are split over `model`. Of what is left the
    largest axis that divides is split over `data`. Vectors and arrays of less than 4,096 entries
    are whole on every device.

    Args:
      name: path of the array, such as `params/layers_0/q_proj/kernel`; an optimiser's moments end
        like their parameter.
      shape: its shape.
      sizes: devices along each axis of the mesh.

    >>> split("params/layers_0/q_proj/kernel", (512, 1024), {"data": 4, "model": 2})
    ('data', 'model')
    """
    found: list[str | None] = [None] * len(shape)
    if len(shape) < 2 or math.prod(shape) < _SMALL:
        return tuple(found)
    if sizes.get(MODEL, 1) > 1:
        for pattern, axis in _SPLIT_BY_MODEL:
            if pattern.fullmatch(name) and len(shape) == 2 and shape[axis] % sizes[MODEL] == 0:
                found[axis] = MODEL
    count = sizes.get(DATA, 1)
    free = [i for i, each in enumerate(shape) if found[i] is None and each % count == 0]
    if count > 1 and free:
        found[max(free, key=lambda i: shape[i])] = DATA
    return tuple(found)
