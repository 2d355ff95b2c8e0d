"""How steps reach the device, and in what numbers they compute: what it changes, and what not."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core import distill, train
from distill_core import load_model as load
from distill_core.config import InputError
from distill_core.models.network import Network
from distill_core.training import classification, loop

NUM_STEPS = 10


def settings(**changes):
    given = {"dataset": "digits", "crop_padding": 1, "flip": True}
    given |= {"model": "cnn", "model_kwargs": {"widths": (4,), "hidden": 8}}
    given |= {"learning_rate": 0.05, "batch_size": 16, "num_steps": NUM_STEPS}
    return {**given, "log_every": 4, "eval_every": 4, "save_every": 4, **changes}


def run(folder, **changes):
    """The final parameters and every logged line."""
    parallel = changes.pop("parallel", None)
    train.train_and_evaluate(settings(**changes), folder, parallel=parallel)
    return load(folder).variables, (folder / "metrics.jsonl").read_text().splitlines()


def differ(a, b):
    return max(
        float(np.abs(x - y).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    ("changes", "parallel"),
    [
        ({"steps_per_dispatch": 4, "data_on_device": True}, None),
        ({"steps_per_dispatch": 2}, "shard_map"),
        ({"data_on_device": True}, "mesh"),
    ],
)
def test_dispatch_changes_no_number(plain, tmp_path, changes, parallel):
    variables, lines = run(tmp_path, **changes, parallel=parallel)
    assert differ(variables, plain[0]) < 1e-5
    assert [line.split(",")[0] for line in lines] == [line.split(",")[0] for line in plain[1]]


def test_data_on_the_device_with_stored_logits_changes_no_number(plain, tmp_path):
    train.train_and_evaluate(settings(), tmp_path / "teacher")
    found = []
    for resident in (False, True):
        own = {"teacher": str(tmp_path / "teacher"), "temperature": 4.0, "alpha": 0.5}
        own |= {"crop_padding": 0, "flip": False, "data_on_device": resident}
        place = tmp_path / f"student{resident}"
        distill.train_and_evaluate(settings(**own), place)
        found.append(load(place).variables)
    assert differ(*found) < 1e-6


def test_a_run_stopped_between_dispatches_goes_on_to_the_same_network(plain, tmp_path):
    run(tmp_path, num_steps=3)
    variables, lines = run(tmp_path, steps_per_dispatch=4, data_on_device=True)
    assert differ(variables, plain[0]) < 1e-5
    assert len(lines) == len(plain[1]) + 1  # it had logged at its own end, too


def test_divergence_inside_a_dispatch_is_told_by_its_step():
    window = loop._Window()
    window.add(4, {"loss": np.array([1.0, np.nan, 1.0, 1.0])})
    with pytest.raises(loop.DivergedError, match="at step 2: .* last finite loss 1"):
        window.fetch()


@pytest.mark.parametrize("name", ["log_every", "eval_every", "save_every"])
def test_dispatches_that_step_over_an_end_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=f"steps_per_dispatch: got 4; must divide {name}, 6"):
        train.train_and_evaluate(settings(steps_per_dispatch=4, **{name: 6}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(plain, tmp_path):
    variables, _ = run(tmp_path, compute_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    assert 1e-4 < differ(variables, plain[0]) < 0.3
    model = load(tmp_path)
    assert model.network.compute_dtype == "bfloat16"
    logits = model.apply(model.variables, np.zeros((2, 8, 8, 1), np.uint8))
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("name", ["cnn", "resnetc20", "shufflenetv2"])
def test_bfloat16_reaches_every_product_of_a_network(name):
    constants = {"mean": [0.5] * 3, "std": [0.25] * 3}
    network = Network(name, 10, input_shape=(32, 32, 3), **constants, compute_dtype="bfloat16")
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8)
    program = jax.jit(functools.partial(network.apply, train=True)).lower(network.shapes(), images)
    lines = [x for x in program.as_text().splitlines() if re.search("convolution|dot_general", x)]
    assert len(lines) > 3
    for line in lines:  # … : (tensor<2x32x32x3xbf16>, tensor<3x3x3x16xbf16>) -> tensor<…>
        assert re.search(r": \(tensor<\w+xbf16>, tensor<\w+xbf16>\) ->", line), line


def test_a_smaller_share_of_the_data_lies_in_a_larger_one():
    base = {"dataset": "digits", "data_dir": None, "num_validation": 100}
    found = {}
    for share in (0.1, 0.5, 1.0):
        dataset, splits = classification.load_splits(
            types.SimpleNamespace(**base, train_share=share)
        )
        rest = len(dataset.train) - 100
        assert len(splits.train) == round(share * rest)
        assert len(splits.validation) == 100
        found[share] = set(splits.train.index.tolist())
        assert not found[share] & set(splits.validation.index.tolist())
    assert found[0.1] < found[0.5] < found[1.0]
