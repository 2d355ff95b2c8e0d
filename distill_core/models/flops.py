"""Counts a function's floating-point operations from its jaxpr.

XLA's own count leaves out library calls: on a GPU cuDNN's convolutions, nearly all of an image
network's work.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def count_flops(function: Callable, *args: Any) -> float:
    """Multiplications and additions of the convolutions and matrix products in `function(*args)`.

    One multiply-add is two operations. Products with padding or a dilation's zeros do not count, so
    that a small image's convolutions have fewer than the usual height × width × kernel; nor do
    elementwise operations. A loop counts as often as it runs if that is known, otherwise once; of
    branches the longest counts. `args` may be arrays or `jax.ShapeDtypeStruct`.

    >>> count_flops(lambda a, b: a @ b, np.zeros((2, 3)), np.zeros((3, 5)))
    60.0
    """
    return _of(jax.make_jaxpr(function)(*args).jaxpr)


def _of(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            left, right = (v.aval.shape for v in equation.invars)
            total += _product(left, right, params)
        elif name == "conv_general_dilated":
            image, kernel = (v.aval.shape for v in equation.invars)
            total += _convolution(image, kernel, equation.outvars[0].aval.shape, params)
        elif name == "cond":
            total += max(_of(branch.jaxpr) for branch in params["branches"])
        else:
            inner = [each for value in params.values() for each in _jaxprs(value)]
            total += params.get("length", 1) * sum(map(_of, inner))
    return total


def _jaxprs(value: Any) -> list[Any]:
    """The jaxprs in an equation's parameter."""
    found = value if isinstance(value, tuple | list) else [value]
    found = [getattr(each, "jaxpr", each) for each in found]
    return [each for each in found if hasattr(each, "eqns")]


def _product(left: tuple, right: tuple, params: dict[str, Any]) -> float:
    # Every entry on the left is multiplied with each free index on the right.
    (_, summed), (_, batch) = params["dimension_numbers"]
    free = [size for axis, size in enumerate(right) if axis not in (*summed, *batch)]
    return 2.0 * math.prod(left) * math.prod(free)


def _convolution(image: tuple, kernel: tuple, out: tuple, params: dict[str, Any]) -> float:
    axes = params["dimension_numbers"]
    hits = 1.0
    for i, (one, of_kernel, of_out) in enumerate(
        zip(axes.lhs_spec[2:], axes.rhs_spec[2:], axes.out_spec[2:], strict=True)
    ):
        hits *= _hits(
            image[one],
            kernel[of_kernel],
            out[of_out],
            stride=params["window_strides"][i],
            low=params["padding"][i][0],
            image_dilation=params["lhs_dilation"][i],
            kernel_dilation=params["rhs_dilation"][i],
        )
    # The kernel's inputs are those of one group.
    inputs, outputs = kernel[axes.rhs_spec[1]], out[axes.out_spec[1]]
    batch = out[axes.out_spec[0]]
    return 2.0 * batch * inputs * outputs * hits


def _hits(
    size: int, kernel: int, out: int, *, stride: int, low: int, image_dilation: int,
    kernel_dilation: int,
) -> int:  # fmt: skip
    """Pairs of output and kernel positions, along one axis, that read a value of the image."""
    place = np.arange(out)[:, None] * stride + np.arange(kernel) * kernel_dilation - low
    inside = (place >= 0) & (place <= (size - 1) * image_dilation)
    return int(np.sum(inside & (place % image_dilation == 0)))
