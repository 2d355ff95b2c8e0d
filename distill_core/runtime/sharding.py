"""How arrays are split over a mesh, by one rule, and how a step works with what is split.

A mesh has the axis `data`, over which batches are split, too, and maybe the axis `model`. Weights
split over `data` are put together again where a layer uses them (fully sharded data parallelism);
those split over `model` never are: each device computes its heads, its part of an MLP, and the
logits of its part of the vocabulary. In all other modes than a mesh the functions for steps do
nothing: a step sees whole parameters, and its device's rows or all of them.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from distill_core.runtime.collectives import AXIS, all_sum, is_bound, sum_along, whole_along

PyTree = Any
MODEL = "model"
_TABLE = "lm_head"  # a name by which `split` knows a table [V, D]
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
    count = sizes.get(AXIS, 1)
    free = [i for i, each in enumerate(shape) if found[i] is None and each % count == 0]
    if count > 1 and free:
        found[max(free, key=lambda i: shape[i])] = AXIS
    return tuple(found)


def name_of(path: Any) -> str:
    """A leaf's path in a tree, such as `params/wte`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def per_device(
    function: Callable,
    split: tuple[PyTree, ...],
    whole: tuple[PyTree, ...] = (),
    tables: tuple[PyTree, ...] = (),
    *,
    result: str,
) -> PyTree:
    """`function(*split, *whole, *tables)`, by each device on its rows of `split`; inside a step.

    In the mode "mesh" XLA divides a step up by itself, and gathers all devices' rows where the code
    sorts or loops over them. This says how to divide it instead. In all other modes the code sees
    its device's rows anyway, and this is a plain call.

    Args:
      function: pure; may sum over the devices (`collectives`).
      split: trees of arrays `[B, ...]`, or None.
      whole: trees of arrays that every device has.
      tables: embeddings `[V, D]`, or None; over a mesh a device has its part along `table_axis`.
      result: what the mesh makes of the devices' results: "rows" `[b, ...]` are put together,
        "sum" adds them up, and "same" takes them for equal.
    """
    if not _is_split():
        return function(*split, *whole, *tables)

    def own(*args):
        found = function(*args)
        return all_sum(found) if result == "sum" else found

    of_tables = tuple(_only(AXIS, _split_of({_TABLE: table})[_TABLE]) for table in tables)
    rows, all_of_it = PartitionSpec(AXIS), PartitionSpec()
    specs = ((rows,) * len(split), (all_of_it,) * len(whole), of_tables)
    out = rows if result == "rows" else all_of_it
    return _by_device(own, sum(specs, ()), out)(*split, *whole, *tables)


def table_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of a table `[V, D]` that `per_device` gives each device a part of; None: all."""
    if not _is_split():
        return None
    found = split(_TABLE, shape, dict(jax.sharding.get_abstract_mesh().shape))
    return found.index(AXIS) if AXIS in found else None


def with_whole(function: Callable, params: PyTree, *rows: PyTree, dtype: str) -> jax.Array:
    """`function(params, *rows)` `[B, ...]` of a layer; over a mesh its parameters are whole only
    meanwhile (fully sharded data parallelism).

    Each device puts them together when its rows are there, not before, and in the backward pass
    again; otherwise XLA may do so for all layers at once, and hold the whole network. Gradients are
    summed and split at once. What is split over `model` stays split.

    Args:
      function: pure; sees its device's rows.
      params: tree whose leaves are named as `split` knows them.
      rows: trees of arrays `[B, ...]`, or None.
      dtype: in which parameters are sent; what the layer rounds them to anyway.
    """
    if not _is_split():
        return function(params, *rows)
    split = _split_of(params)

    def here(params, *rows):
        return function(_whole(params, split, dtype, after=rows), *rows)

    again = jax.checkpoint(here, policy=_is_kept)
    rows_of = PartitionSpec(AXIS)
    return _by_device(again, (_only(AXIS, split), *[rows_of] * len(rows)), rows_of)(params, *rows)


def whole_table(table: jax.Array, axis: int | None, dtype: Any) -> jax.Array:
    """In `per_device`, a table `[V, D]` of which the device has a part along `axis`, put together.

    Still split by vocabulary over `model`, if that divides it.
    """
    if axis is None:
        return table
    return _whole(table, _split_of_table(table, axis), dtype)


def part_of_sum(table: jax.Array, axis: int | None) -> jax.Array:
    """In `per_device`, the device's part along `axis` of the sum of whole tables `[V, D]`."""
    split = _split_of_table(table, axis)
    here = functools.partial(sum_along, axis=axis)
    if _devices_of_model() == 1 or axis is None:
        return here(table)
    of_model = _only(MODEL, split)
    return _by_device(here, (of_model,), of_model, axis=MODEL)(table)


def _split_of_table(table: jax.Array, axis: int | None) -> PartitionSpec:
    count = _devices_of_model()
    split = [MODEL if count > 1 and table.shape[0] % count == 0 else None, None]
    if axis is not None:
        split[axis] = AXIS
    return PartitionSpec(*split)


def _whole(parts: PyTree, split: PyTree, dtype: Any, after: PyTree = ()) -> PyTree:
    """A device's parts of arrays, put together over `data` once `after` is there.

    Those that are split are sent in a floating `dtype`.
    """
    together = functools.partial(_together, split, dtype)
    if _devices_of_model() == 1:
        return together(parts, after)
    # For each device of `model` by itself: XLA would put its parts together, too.
    specs = _only(MODEL, split)
    of_model = _by_device(together, (specs, PartitionSpec()), specs, axis=MODEL)
    return of_model(parts, after)


def _together(split: PyTree, dtype: Any, parts: PyTree, after: PyTree) -> PyTree:
    parts, _ = jax.lax.optimization_barrier((parts, jax.lax.stop_gradient(after)))

    def one(leaf, spec):
        if AXIS not in spec:
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            leaf = leaf.astype(dtype)
        return whole_along(leaf, tuple(spec).index(AXIS))

    return jax.tree.map(one, parts, split)


def _split_of(tree: PyTree) -> PyTree:
    """The leaves' specs, by `split`; None has none."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)

    def of(path, leaf):
        return PartitionSpec(*split(name_of(path), leaf.shape, sizes))

    return jax.tree_util.tree_map_with_path(of, tree)


def _only(axis: str, specs: PyTree) -> PyTree:
    """Specs that tell of one axis of the mesh alone."""

    def only(spec):
        return PartitionSpec(*(each if each == axis else None for each in spec))

    return jax.tree.map(only, specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def _by_device(
    function: Callable, in_specs: PyTree, out_specs: PyTree, *, axis: str = AXIS
) -> Callable:
    # By one axis of the mesh alone: what is split over another is XLA's business.
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names={axis}, check_vma=False
    )


def gathered(params: PyTree, dtype: str = "float32") -> PyTree:
    """A network's parameters, put together over `data` for a network that does not do so itself,
    layer by layer (`with_whole`); for use in a step. Gradients are split again.

    `dtype` is what the network rounds them to. In all other modes than a mesh they stay as they
    are.
    """
    if not is_over_mesh():
        return params

    def gather(leaf, split):
        if AXIS not in split:
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            leaf = leaf.astype(dtype)
        whole = PartitionSpec(*(None if each == AXIS else each for each in split))
        return _gather(split, whole, leaf)

    return jax.tree.map(gather, params, _split_of(params))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(split: PartitionSpec, whole: PartitionSpec, x: jax.Array) -> jax.Array:
    del split
    return jax.lax.with_sharding_constraint(x, whole)


def _gather_forward(split: PartitionSpec, whole: PartitionSpec, x: jax.Array):
    return _gather(split, whole, x), None


def _gather_backward(split: PartitionSpec, whole: PartitionSpec, _, cotangent: jax.Array):
    del whole
    return (jax.lax.with_sharding_constraint(cotangent, split),)


_gather.defvjp(_gather_forward, _gather_backward)


def gathering_again(function: Callable) -> Callable:
    """`function` such that its gradient gathers parameters again rather than keep them whole."""
    return jax.checkpoint(function, policy=_is_kept) if is_over_mesh() else function


def _is_kept(primitive: Any, *_, **__) -> bool:
    return primitive.name not in ("sharding_constraint", "optimization_barrier", "all_gather")


def by_heads(x: jax.Array) -> jax.Array:
    """`[B, L, H, d]`, over a mesh with the heads split over `model` if it divides them."""
    if (spec := _spec_of_heads(x)) == PartitionSpec():
        return x
    rows = None if is_bound() else AXIS
    return jax.lax.with_sharding_constraint(x, PartitionSpec(rows, *spec[1:]))


def per_head(function: Callable, heads: Sequence[jax.Array], whole: PyTree) -> jax.Array:
    """`function(*heads, whole)` of arrays `[B, L, H, d]`, for a kernel that XLA cannot divide up.

    Over a mesh each device of `model` computes its own heads, if it divides the number of each.
    For use in `per_device`.
    """
    if _devices_of_model() == 1:
        return function(*heads, whole)
    specs = [_spec_of_heads(x) for x in heads]
    if PartitionSpec() in specs:
        specs = [PartitionSpec()] * len(specs)
    own = _by_device(function, (*specs, PartitionSpec()), specs[0], axis=MODEL)
    return own(*heads, whole)


def _spec_of_heads(x: jax.Array) -> PartitionSpec:
    count = _devices_of_model()
    if count == 1 or x.shape[2] % count:
        return PartitionSpec()
    return PartitionSpec(None, None, MODEL)


def _devices_of_model() -> int:
    return dict(jax.sharding.get_abstract_mesh().shape).get(MODEL, 1)


def _is_split() -> bool:
    """Whether batches are split over a mesh, which may have one device along `data`."""
    return is_over_mesh() and dict(jax.sharding.get_abstract_mesh().shape)[AXIS] > 1


def is_over_mesh() -> bool:
    """Whether the code being traced sees whole arrays, split over a mesh."""
    return not is_bound() and AXIS in jax.sharding.get_abstract_mesh().axis_names
