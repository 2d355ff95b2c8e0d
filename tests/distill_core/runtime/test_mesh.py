"""Parameters split over a mesh: the same numbers, a share of the memory, no needless traffic."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.models.network import Network
from distill_core.runtime import parallel, sharding
from distill_core.step import NextTokens
from distill_core.training.optimizers import Averaged, Optimizer
from distill_core.training.step import TrainState, Update
from nasty.step import Nasty
from swingdistill.step import Swing

STEPS, BATCH, LENGTH, VOCABULARY = 5, 16, 16, 512
# Not Adam, which blows up the rounding of gradients that are 0, such as a key's bias.
SGD = Optimizer(learning_rate=0.1, num_steps=10, clip_norm=1.0)
SMALL, LARGE = (
    {"num_layers": 2, "num_heads": 4, "width": 64},
    {"num_layers": 2, "num_heads": 4, "width": 96},
)


def _text(model, ours, theirs, *, batch=BATCH, vocabulary=VOCABULARY, variant="anchored"):
    """(step, make) of a Swing student with a frozen teacher and, if anchored, a reference."""
    student, teacher, reference = (
        Network(model, vocabulary, kwargs, max_length=LENGTH) for kwargs in (ours, theirs, ours)
    )
    public = reference if variant == "anchored" else None
    objective = Swing(student, teacher, public, variant, None, False, True)

    def make():
        keys = jax.random.split(jax.random.key(0), 5)
        params, _ = student.init(keys[0])
        state = TrainState.create(params=params, model_state={}, tx=SGD.make(), rng=keys[1])
        numbers = {"alpha": 0.7, "t_min": 1.0, "t_max": 16.0, "gamma": 1.0, "clip": 10.0}
        frozen = {name: jnp.float32(value) for name, value in numbers.items()}
        frozen |= {"teacher_weight": jnp.float32(0.0), "noise_key": keys[1]}
        frozen["teacher"] = {"params": teacher.init(keys[2])[0]}
        frozen["reference"] = {"params": reference.init(keys[3])[0]}
        tokens = jax.random.randint(keys[4], (batch, LENGTH), 0, vocabulary)
        scores = jnp.where(tokens < vocabulary // 5, tokens / vocabulary * 5, 0.0)
        rows = {
            "tokens": tokens,
            "labels": jnp.roll(tokens, -1, axis=1),
            "segments": jnp.zeros(tokens.shape, jnp.int32),
            "weights": jnp.ones(tokens.shape),
            "scores": scores,
            "noise_scale": (scores > 0).astype(jnp.float32),
        }
        return state, frozen, rows

    return Update(objective, SGD), make


def _images():
    """(step, make) of a nasty teacher, a ResNet, against a frozen one."""
    shape = {"input_shape": (8, 8, 3), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    network = Network("resnetc20", 10, **shape)
    optimizer = Averaged(Optimizer(learning_rate=0.01, num_steps=10), decay=0.9)

    def make():
        keys = jax.random.split(jax.random.key(0), 4)
        params, model_state = network.init(keys[0])
        tx = optimizer.make()
        state = TrainState.create(params=params, model_state=model_state, tx=tx, rng=keys[1])
        theirs, statistics = network.init(keys[2])
        numbers = {"omega": jnp.float32(0.04), "temperature": jnp.float32(4.0)}
        examples = {
            "image": jax.random.bits(keys[3], (BATCH, 8, 8, 3), jnp.uint8),
            "label": jnp.arange(BATCH) % 10,
            "index": jnp.arange(BATCH),
        }
        return state, {"adversary": {"params": theirs, **statistics}, **numbers}, examples

    return Update(Nasty(network, network), optimizer), make


GEMMA = {
    "num_kv_heads": 2, "gemma": True, "qk_norm": True, "window": 3, "full_every": 2,
    "local_rope_theta": 100.0, "query_scalar": 5,
}  # fmt: skip
CASES = {
    "gpt2": functools.partial(_text, "transformer", SMALL, LARGE),
    "llama": functools.partial(_text, "decoder", {**SMALL, "num_kv_heads": 2}, LARGE),
    "gemma": functools.partial(_text, "decoder", {**SMALL, **GEMMA}, LARGE),
    "odd": functools.partial(_text, "decoder", SMALL, LARGE, vocabulary=513, variant="swing"),
    "resnet": _images,
}


@functools.cache
def _trained(case, mode):
    """(parameters, metrics of each step) after some steps, on the host."""
    update, make = CASES[case]()
    state, frozen, batch = jax.jit(make)()
    step = jax.jit(update) if mode == "jit" else parallel.wrap(update, mode, donate=True)
    if mode != "jit":
        state, frozen = parallel.place(state, mode), parallel.place(frozen, mode)
        batch = parallel.feed(jax.device_get(batch), mode)
    metrics = []
    for _ in range(STEPS):
        state, found = step(state, frozen, batch)
        metrics.append({name: float(value) for name, value in found.items()})
    params = jax.tree.map(np.asarray, state.params)
    return params, metrics, [leaf.sharding for leaf in jax.tree.leaves(state.params)]


@pytest.mark.parametrize(
    ("case", "mode"),
    [(case, "mesh") for case in CASES]
    + [(case, "data:4,model:2") for case in ("gpt2", "llama", "gemma", "odd")],
)
def test_split_and_whole_networks_train_alike(case, mode):
    expected, wanted, _ = _trained(case, "jit")
    params, found, shardings = _trained(case, mode)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for path, want in jax.tree_util.tree_leaves_with_path(expected):
        got = dict(jax.tree_util.tree_leaves_with_path(params))[path]
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6, err_msg=name)
    assert sum(not sharding.is_fully_replicated for sharding in shardings) >= 9


SIZES = {"num_layers": 6, "num_heads": 8, "width": 256}


def _compiled(update, make, mode):
    """(bytes of arguments and temporaries per device, the program's text)."""
    compiled = parallel.lower(update, mode, jax.devices(), *jax.eval_shape(make)).compile()
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes, text


@pytest.fixture(scope="module")
def programs():
    """Mode -> what `_compiled` gives, of networks whose parameters dominate."""
    update, make = _text("decoder", SIZES, {**SIZES, "num_layers": 8}, batch=8)
    modes = ("shard_map", "mesh", "data:4,model:2")
    return {mode: _compiled(update, make, mode) for mode in modes}


@pytest.mark.parametrize("mode", ["mesh", "data:4,model:2"])
def test_a_device_needs_a_fifth_of_the_memory(programs, mode):
    """The frozen networks, too: none is ever whole on a device, or this would not hold."""
    assert programs[mode][0] < 0.2 * programs["shard_map"][0]


def _results(text, kind):
    """Shapes of the results of all collectives of a kind."""
    found = re.findall(rf"= \(?(\w+)\[([\d,]*)\]\S*.*? {kind}(?:-start)?\(", text)
    return [tuple(int(n) for n in dims.split(",") if n) for _, dims in found]


@pytest.mark.parametrize("mode", ["mesh", "data:4,model:2"])
def test_only_parameters_are_gathered(programs, mode):
    """No logits and no hidden states, which have 16 or 32 tokens per device: every gather gives a
    matrix of a layer, or its part."""
    _, make = _text("decoder", {"num_layers": 1, "num_heads": 8, "width": 256}, SMALL)
    width, hidden = 256, make()[0].params["layers_0"]["up_proj"]["kernel"].shape[1]
    sizes = {width, hidden, VOCABULARY}
    if mode != "mesh":
        sizes |= {size // 2 for size in sizes}
    gathered = _results(programs[mode][1], "all-gather")
    assert gathered and all(len(shape) == 2 and set(shape) <= sizes for shape in gathered)


def test_the_bytes_of_a_step_are_those_of_the_formula(programs):
    """As docs/devices.md has it: frozen layers once, the student's twice, each table twice."""
    _, make = _text("decoder", SIZES, {**SIZES, "num_layers": 8}, batch=8)
    state, frozen, _ = jax.eval_shape(make)
    networks = [state.params, *(frozen[name]["params"] for name in ("teacher", "reference"))]
    layers = [
        sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2) - VOCABULARY * 256
        for params in networks
    ]
    expected = 2 * layers[0] + layers[1] + layers[2] + 3 * 2 * VOCABULARY * 256
    found = _results(programs["mesh"][1], "all-gather")
    assert sum(int(np.prod(shape)) for shape in found) == expected


def test_gradients_are_summed_a_part_on_each_device(programs):
    found = _results(programs["mesh"][1], "reduce-scatter")
    layers = 6 * 7 + 2  # seven matrices of each layer; the embedding, as a table and as a head
    assert len(found) == layers
    largest = max(int(np.prod(shape)) for shape in _results(programs["mesh"][1], "all-reduce"))
    assert largest < 256 * 256  # nothing but norms and metrics


@pytest.mark.parametrize("mode", ["mesh", "data:4,model:2"])
def test_first_weights_do_not_depend_on_the_mesh(mode):
    network = Network("decoder", VOCABULARY, SMALL, max_length=LENGTH)

    def make(key):
        params, _ = network.init(key)
        return {"params": params}

    made = parallel.make(make, mode, jax.random.key(3))
    expected = make(jax.random.key(3))
    placed = parallel.shardings(expected, mode)
    for ours, theirs, where in zip(*map(jax.tree.leaves, (made, expected, placed)), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
        assert ours.sharding.is_equivalent_to(where, ours.ndim)


def test_placed_arrays_stay_where_they_are():
    tree = {"params": {"w": np.ones((64, 128), np.float32), "b": np.ones(128, np.float32)}}
    placed = parallel.place(tree, "mesh")
    again = parallel.place(placed, "mesh")
    assert again["params"]["w"] is placed["params"]["w"]
    assert {shard.data.shape for shard in placed["params"]["w"].addressable_shards} == {(64, 16)}
    assert placed["params"]["b"].sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("name", "shape", "sizes", "expected"),
    [
        ("params/w", (1000, 64), {"data": 8}, ("data", None)),
        ("params/w", (1001, 64), {"data": 8}, (None, "data")),  # the largest that divides
        ("params/w", (1001, 63), {"data": 8}, (None, None)),
        ("params/w", (8, 8), {"data": 8}, (None, None)),  # small
        ("params/b", (1 << 20,), {"data": 8}, (None,)),  # a vector
        ("params/layers_0/o_proj/kernel", (512, 256), {"data": 4, "model": 2}, ("model", "data")),
        ("opt_state/mu/h/up_proj/kernel", (64, 8192), {"data": 1, "model": 2}, (None, "model")),
        ("params/wte", (513, 64), {"data": 4, "model": 2}, (None, "data")),  # odd vocabulary
        ("params/lm_head", (512, 64), {"data": 4, "model": 2}, ("model", "data")),
        ("params/my_proj/kernel", (512, 64), {"data": 4, "model": 2}, ("data", None)),
        ("params/conv/kernel", (3, 3, 64, 128), {"data": 8}, (None, None, None, "data")),
    ],
)  # fmt: skip
def test_one_rule_says_how_an_array_is_split(name, shape, sizes, expected):
    assert sharding.split(name, shape, sizes) == expected


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("data:4", "mesh: got 'data:4'; the product must be the number of devices, 8"),
        ("data:4,model:3", "the product must be the number of devices, 8"),
        ("data:4,heads:2", "mesh: got 'data:4,heads:2'; must be data:N or data:N,model:M"),
        ("data:eight", "must be data:N"),
        ("data:4,data:2", "must be data:N"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(mode, message):
    with pytest.raises(InputError, match=re.escape(message)):
        parallel.choose_mode(mode)


def test_a_batch_is_divided_over_the_data_axis_alone():
    assert parallel.choose_mode("data:2,model:4") == "data:2,model:4"
    parallel.check_batch_size(6, "data:2,model:4")
    with pytest.raises(InputError, match="batch_size: got 7; must be divisible by the 2 devices"):
        parallel.check_batch_size(7, "data:2,model:4")
    assert parallel.local_rows(6, "data:2,model:4") == slice(0, 6)


def test_what_cannot_be_split_says_so_in_one_line():
    with pytest.raises(InputError, match="mesh: got 'data:4,model:2'; model splits networks of"):
        parallel.check_no_model("data:4,model:2")
    parallel.check_no_model("data:8")
    with pytest.raises(InputError, match="parallel: .*per-example gradients need pmap"):
        parallel.check_per_example("data:8")


def test_bfloat16_parameters_are_sent_in_half_the_bytes():
    """They are rounded before they are put together, as the layers would round them after."""
    network = Network(
        "decoder", VOCABULARY, LARGE, max_length=LENGTH, compute_dtype="bfloat16", remat=True
    )
    optimizer = Optimizer(optimizer="adamw", learning_rate=1e-3, num_steps=10)

    def make():
        params, _ = network.init(jax.random.key(0))
        state = TrainState.create(
            params=params, model_state={}, tx=optimizer.make(), rng=jax.random.key(1)
        )
        shape = (BATCH, LENGTH)
        names = {"tokens": jnp.int32, "labels": jnp.int32, "segments": jnp.int32}
        rows = {name: jnp.zeros(shape, dtype) for name, dtype in names.items()}
        return state, {}, {**rows, "weights": jnp.ones(shape)}

    step, shapes = Update(NextTokens(network), optimizer), jax.eval_shape(make)
    text = parallel.lower(step, "mesh", jax.devices(), *shapes).as_text()
    gathered = re.findall(r'"stablehlo.all_gather".*-> tensor<[\dx]*x(\w+)>', text)
    summed = re.findall(r'"stablehlo.reduce_scatter"', text)
    assert gathered and set(gathered) == {"bf16"} and summed


@pytest.mark.parametrize("mode", ["data:1,model:8", "model:8"])
@pytest.mark.parametrize("case", ["gpt2", "llama"])
def test_one_device_along_data_will_do(case, mode):
    expected, wanted, _ = _trained(case, "jit")
    params, found, _ = _trained(case, mode)
    assert found[-1] == pytest.approx(wanted[-1], rel=1e-5)
    for ours, theirs in zip(*map(jax.tree.leaves, (params, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)
