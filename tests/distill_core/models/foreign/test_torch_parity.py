"""Our image networks and the same networks in PyTorch: equal logits, equal batch statistics."""

import importlib.util
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_core.config import InputError
from distill_core.models import (
    CNN,
    MobileNetV2,
    ResNet,
    ResNetC,
    ResNeXt,
    ShuffleNetV2,
    apply_model,
    init_model,
)
from distill_core.models.foreign.torch_layout import layers
from distill_core.models.foreign.torch_weights import convert
from distill_core.models.resnet import Bottleneck

torch = pytest.importorskip("torch")
_FILE = Path(__file__).parents[4] / "benchmarks" / "torch_networks.py"
_SPEC = importlib.util.spec_from_file_location("torch_networks", _FILE)
torch_networks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(torch_networks)

_CLASSES, _SHAPE = 7, (16, 24, 3)
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (2, 24, 1, 1), (3, 16, 2, 2))
_RESNEXT = {"cardinality": 4, "base_width": 6, "widen_factor": 2}
_SHUFFLE = ((12, 20, 28), (2, 3, 1), 32)
# Ours, PyTorch's, and some of the reference code's names of its layers.
_PAIRS = {
    "cnn": (
        CNN(_CLASSES, widths=(3, 4, 5), hidden=6),
        torch_networks.cnn((3, 4, 5), 6, pixels=2 * 3),
        "conv1 bn1 conv3 bn3 fc1 fcbn1 fc2",
    ),
    "resnet of basic blocks": (
        ResNet(_CLASSES, stage_sizes=(2, 1)),
        torch_networks.resnet((2, 1), 1),
        "conv1 bn1 layer1.1.conv2 layer1.1.bn2 layer2.0.shortcut.0 layer2.0.shortcut.1 linear",
    ),
    "resnet of bottlenecks": (
        ResNet(_CLASSES, stage_sizes=(2, 1), block=Bottleneck),
        torch_networks.resnet((2, 1), 4),
        "layer1.0.conv3 layer1.0.bn3 layer1.0.shortcut.0 layer2.0.conv1",
    ),
    "resnetc": (
        ResNetC(_CLASSES, blocks_per_stage=2),
        torch_networks.resnetc(2),
        "conv1 layer1.0.bn1 layer1.1.conv2 layer2.0.downsample.0 layer3.1.bn2 bn fc",
    ),
    "resnext": (
        ResNeXt(_CLASSES, blocks_per_stage=2, **_RESNEXT),
        torch_networks.resnext(2, *_RESNEXT.values()),
        "conv_1_3x3 bn_1 stage_1.stage_1_bottleneck_0.conv_reduce classifier "
        "stage_1.stage_1_bottleneck_1.bn_reduce stage_2.stage_2_bottleneck_1.conv_conv "
        "stage_2.stage_2_bottleneck_1.bn stage_3.stage_3_bottleneck_0.conv_expand "
        "stage_3.stage_3_bottleneck_0.bn_expand stage_3.stage_3_bottleneck_0.shortcut.shortcut_bn "
        "stage_2.stage_2_bottleneck_0.shortcut.shortcut_conv",
    ),
    "mobilenetv2": (
        MobileNetV2(_CLASSES, stages=_STAGES, head=48),
        torch_networks.mobilenetv2(_STAGES, 48),
        "pre.0 pre.1 stage1.residual.0 stage2.1.residual.4 stage3.residual.6 stage4.0.residual.7 "
        "conv1.0 conv1.1 conv2",
    ),
    "shufflenetv2": (
        ShuffleNetV2(_CLASSES, *_SHUFFLE),
        torch_networks.shufflenetv2(*_SHUFFLE),
        "pre.0 pre.1 stage2.0.residual.0 stage2.0.residual.3 stage2.0.residual.6 "
        "stage2.0.shortcut.0 stage2.0.shortcut.3 stage3.2.residual.5 stage4.0.shortcut.2 "
        "conv5.0 conv5.1 fc",
    ),
}


def _randomise(network):
    """Norms that do something, and kernels that preserve the images' variance."""
    with torch.no_grad():
        for module in network.modules():
            if hasattr(module, "running_var"):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.uniform_(-0.5, 0.5)
            elif hasattr(module, "weight"):
                module.weight.mul_(6**0.5)  # to a variance of 2 / fan_in


def _state_dict(ours, theirs):
    """PyTorch's tensors under the reference code's names: both have the same order of layers."""
    params, _ = jax.eval_shape(lambda key: init_model(ours, key, _SHAPE), jax.random.key(0))
    parts = [module for module in theirs.modules() if list(module.parameters(recurse=False))]
    return {
        f"{name}.{kind}": value.numpy().copy()
        for (name, _), part in zip(layers(ours, params), parts, strict=True)
        for kind, value in part.state_dict().items()
    }


@pytest.fixture(scope="module", params=_PAIRS)
def pair(request):
    ours, build, names = _PAIRS[request.param]
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(*build(_CLASSES))
    _randomise(theirs)
    tensors = _state_dict(ours, theirs)
    assert {name.rpartition(".")[0] for name in tensors} >= set(names.split())
    return ours, theirs, tensors, convert(ours, _SHAPE, tensors)


def test_equal_logits_and_equal_statistics_after_training(pair):
    """Masked images reach neither: PyTorch does not get them."""
    ours, theirs, _, variables = pair
    images = np.random.default_rng(0).normal(size=(7, *_SHAPE)).astype(np.float32)
    where = np.arange(7) != 2

    @jax.jit
    def run(variables, images):
        logits = apply_model(ours, variables, images, train=False)
        images = jnp.where(where.reshape(7, 1, 1, 1), images, jnp.nan)
        return logits, *apply_model(ours, variables, images, train=True, where=where)

    logits, trained, state = run(variables, images)
    to_torch = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        wanted = theirs.eval()(to_torch).numpy()
        in_training = theirs.train()(to_torch[where]).numpy()
    assert wanted.std(axis=0).min() > 0.01  # the images count
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    np.testing.assert_allclose(trained[where], in_training, atol=1e-4)
    moved = convert(ours, _SHAPE, _state_dict(ours, theirs))["batch_stats"]
    chex.assert_trees_all_close(state["batch_stats"], moved, rtol=1e-5, atol=1e-5)
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), moved, variables["batch_stats"])
    assert min(jax.tree.leaves(change)) > 1e-3


def test_all_variables_come_from_the_state_dict(pair):
    ours, _, tensors, variables = pair
    params, state = jax.eval_shape(lambda key: init_model(ours, key, _SHAPE), jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, {"params": params, **state})
    name = [name for name in tensors if not name.endswith("num_batches_tracked")][-5]
    fewer = {key: value for key, value in tensors.items() if key != name}
    with pytest.raises(InputError, match=f"has no tensor {name}, which a "):
        convert(ours, _SHAPE, fewer)
