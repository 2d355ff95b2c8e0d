"""Weights out of a file that PyTorch wrote: a network with its preprocessing, and refused files."""

import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import distill_core
from distill_core.config import InputError
from distill_core.models import CNN, apply_model, checks, create_model
from distill_core.models.foreign.torch_weights import convert, load_torch

_SPEC = {
    "model": "cnn",
    "model_kwargs": {"widths": [3, 4], "hidden": 6},
    "input_shape": [8, 12, 2],
    "mean": [0.4, 0.5],
    "std": [0.2, 0.3],
    "classes": ["cat", "dog", "ship"],
}


def _state_dict():
    """The CNN's of `_SPEC`, under PyTorch's names, with PyTorch's shapes."""
    rng = np.random.default_rng(0)
    layers = {"conv1": (3, 2, 3, 3), "conv2": (4, 3, 3, 3), "fc1": (6, 4 * 2 * 3), "fc2": (3, 6)}
    tensors = {}
    for name, shape in layers.items():
        tensors[f"{name}.weight"] = rng.normal(size=shape)
        tensors[f"{name}.bias"] = rng.normal(size=shape[0])
    for name, width in {"bn1": 3, "bn2": 4, "fcbn1": 6}.items():
        for kind in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{name}.{kind}"] = rng.uniform(0.5, 1.5, width)
    counts = {f"{name}.num_batches_tracked": np.int64(3) for name in ("bn1", "bn2", "fcbn1")}
    return {name: value.astype(np.float32) for name, value in tensors.items()} | {
        name: np.array(value) for name, value in counts.items()
    }


def _write(folder, tensors=None, spec=_SPEC, **changes):
    file = folder / "teacher.safetensors"
    save_file(_state_dict() if tensors is None else tensors, file)
    if spec is not None:
        (folder / "teacher.json").write_text(json.dumps({**spec, **changes}))
    return file


def test_load_model_gives_the_network_with_its_preprocessing(tmp_path):
    loaded = distill_core.load_model(_write(tmp_path))
    assert loaded.network.to_json() == {**_SPEC, "num_classes": 3}
    assert loaded.tokenizer is None
    images = np.random.default_rng(1).uniform(size=(5, 8, 12, 2)).astype(np.float32)
    module = CNN(3, (3, 4), 6)
    variables = convert(module, (8, 12, 2), _state_dict())
    mean, std = (np.float32(_SPEC[name]).reshape(1, 1, 1, 2) for name in ("mean", "std"))
    wanted = apply_model(module, variables, (images - mean) / std, train=False)
    found = jax.jit(loaded.apply)(loaded.variables, images)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert loaded.metadata["parts"] == {"model": loaded.network.to_json()}
    assert loaded.metadata["method"] == "torch"
    device = jax.devices()[1]
    placed = distill_core.load_model(
        _write(tmp_path), sharding=jax.sharding.SingleDeviceSharding(device)
    )
    assert {leaf.device for leaf in jax.tree.leaves(placed.variables)} == {device}
    jax.tree.map(np.testing.assert_array_equal, placed.variables, loaded.variables)


def test_the_description_may_be_in_the_header(tmp_path):
    beside = load_torch(_write(tmp_path))
    file = tmp_path / "alone.safetensors"
    save_file(_state_dict(), file, metadata={"spec": json.dumps(_SPEC), "format": "pt"})
    network, variables = load_torch(str(file))
    assert network == beside[0]
    jax.tree.map(np.testing.assert_array_equal, variables, beside[1])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(tmp_path, dtype):
    tensors = {name: value.astype(dtype) for name, value in _state_dict().items() if value.ndim}
    _, variables = load_torch(_write(tmp_path, tensors))
    kernel = variables["params"]["Conv_0"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(
        kernel, tensors["conv1.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    )


def _resnet18_names():
    """Of every tensor of a resnet18 PyTorch's name and shape."""
    shapes = {"conv1.weight": (64, 3, 3, 3), "linear.weight": (5, 512), "linear.bias": (5,)}
    norms, inputs = {"bn1": 64}, 64
    for stage in (1, 2, 3, 4):
        width = 32 * 2**stage
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, inputs, 3, 3)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            norms |= {f"{name}.bn1": width, f"{name}.bn2": width}
            if inputs != width:
                shapes[f"{name}.shortcut.0.weight"] = (width, inputs, 1, 1)
                norms[f"{name}.shortcut.1"] = width
            inputs = width
    for name, width in norms.items():
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{kind}"] = (width,)
    return shapes


def _torchvision(name):
    return name.replace("linear.", "fc.").replace("shortcut", "downsample")


def _pytorch_cifar100(name):
    for theirs, ours in [
        (r"^conv1\.", "conv1.0."),
        (r"^bn1\.", "conv1.1."),
        (r"\.conv1\.w", ".residual_function.0.w"),
        (r"\.bn1\.", ".residual_function.1."),
        (r"\.conv2\.w", ".residual_function.3.w"),
        (r"\.bn2\.", ".residual_function.4."),
        (r"^layer(\d)", lambda found: f"conv{int(found[1]) + 1}_x"),
        (r"^linear", "fc"),
    ]:
        name = re.sub(theirs, ours, name)
    return name


@pytest.mark.parametrize(
    "rename",
    [str, "module.{}".format, _torchvision, _pytorch_cifar100],
    ids=["reference", "data_parallel", "torchvision", "pytorch-cifar100"],
)
def test_resnets_under_every_common_name(rename):
    module = create_model("resnet18", num_classes=5)
    tensors = {name: np.full(shape, 1.0, np.float32) for name, shape in _resnet18_names().items()}
    tensors["layer3.0.shortcut.0.weight"] *= 2
    tensors["layer4.1.bn2.running_var"] *= 3
    renamed = {rename(name): value for name, value in tensors.items()}
    assert rename is str or renamed.keys() != tensors.keys()
    variables = convert(module, (32, 32, 3), renamed)
    assert variables["params"]["BasicBlock_4"]["Conv_2"]["kernel"].mean() == 2
    assert variables["batch_stats"]["BasicBlock_7"]["BatchNorm_1"]["var"].mean() == 3
    renamed[rename("layer2.1.conv2.weight")] = np.zeros((128, 128, 1, 1), np.float32)
    named = re.escape(f"tensor {rename('layer2.1.conv2.weight')} is [128, 128, 1, 1]; [128, 128, 3")
    with pytest.raises(InputError, match=named):
        convert(module, (32, 32, 3), renamed)


def _refused(file, named, **options):
    with pytest.raises(InputError, match=named):
        distill_core.load_model(file, **options)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "resnet18", "model_kwargs": {}}, "conv1.weight is .3, 2, 3, 3.; .64, 2, 3, 3."),
        ({"model": "shufflenetv2", "model_kwargs": {}}, "has no tensor pre.0.weight"),
        ({"model_kwargs": {"widths": [3], "hidden": 6}}, "fc1.weight is .6, 24.; .6, 72."),
        ({"input_shape": [12, 12, 2]}, "fc1.weight is .6, 24.; .6, 36."),
        ({"classes": ["cat"]}, "fc2.weight is .3, 6.; .1, 6."),
        *[({"model": name}, f"has model '{name}'") for name in ("transformer", "os:system")],
        *[({"model_kwargs": each}, "model_kwargs") for each in ({"depth": 3}, {"widths": "ab"})],
        ({"model_kwargs": {"norm": "group"}}, "its norm is 'group'"),
        ({"mean": [0.5]}, "teacher.json .*has mean .0.5.; .*one number per channel"),
        ({"std": [0.0, 1.0]}, "has std .0.0, 1.0.; .*one positive number per channel"),
        ({"input_shape": [8, 12]}, "has input_shape .8, 12."),
        *[({"classes": each}, "has classes ") for each in (3, ["a", "b", "a"], [0, 1, 2])],
        ({"mean": [124.0, 116.0]}, "mean must lie in"),
        ({"std": [58.4, 57.1]}, "by 255"),
        ({"lr": 0.1}, "teacher.json .*has lr"),
    ],
)
def test_another_networks_description_is_refused(tmp_path, changes, named):
    _refused(_write(tmp_path, **changes), f"^checkpoint: .*{tmp_path}.*{named}")


@pytest.mark.parametrize(
    ("name", "tensor", "named"),
    [
        ("fc3.weight", np.zeros((3, 6), np.float32), "fc3.weight is not one of a CNN's"),
        ("module.fc2.bias", np.zeros(3, np.float32), "fc2.bias and module.fc2.bias "),
        ("fc2.bias", np.zeros(3, np.int64), "fc2.bias is I64"),
        ("fc2.bias", np.float32([0, np.nan, 1]), "fc2.bias holds NaN"),
        ("fc2.bias", np.float32([0, np.inf, 1]), "fc2.bias holds NaN"),
        ("bn2.running_var", None, "has no tensor bn2.running_var"),
    ],
)
def test_wrong_tensors_are_refused_by_name(tmp_path, name, tensor, named):
    tensors = {**_state_dict(), name: tensor}
    file = _write(tmp_path, {k: v for k, v in tensors.items() if v is not None})
    _refused(file, f"^checkpoint: .*tensors? {named}" if tensor is not None else named)


@pytest.mark.parametrize(
    ("described", "named"),
    [
        *[(None, "teacher.json must lie beside it"), ("{", "teacher.json .*cannot be read")],
        *[("[1]", "teacher.json .*names and values"), ("{}", "teacher.json .*lacks model")],
    ],
)
def test_a_file_that_nothing_describes_is_refused(tmp_path, described, named):
    file = _write(tmp_path, spec=None)
    if described:
        (tmp_path / "teacher.json").write_text(described)
    _refused(file, f"^checkpoint: .*{named}")


def test_what_is_no_such_file_is_refused(tmp_path):
    file = _write(tmp_path)
    _refused(file, "^part: ", part="student")
    _refused(file, "^step: ", step=3)
    with pytest.raises(InputError, match="CNN.*; its norm is 'none'"):
        convert(CNN(3, norm="none"), (8, 8, 1), load_file(file))
    with pytest.raises(InputError, match="PyTorch weights can be converted for CNN, MobileNetV2"):
        convert(checks, (8, 8, 1), {})
    file.write_bytes(file.read_bytes()[:500])
    _refused(file, "^checkpoint: .*cannot be read")
