"""Our image networks and the same networks in PyTorch: equal logits, equal batch statistics."""

import itertools

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
from distill_core.models.importers.torch_weights import convert
from distill_core.models.resnet import Bottleneck

torch = pytest.importorskip("torch")
nn = torch.nn

_CLASSES = 7


def _normed(inputs, outputs, kernel, *, activation=None, bias=True, **options):
    """[convolution, norm, activation] that keeps the size where the stride is 1."""
    options = {"padding": kernel // 2, **options}
    layers = [nn.Conv2d(inputs, outputs, kernel, bias=bias, **options), nn.BatchNorm2d(outputs)]
    return [*layers, activation()] if activation else layers


def _pooled(x):
    return x.mean((2, 3))


class _TorchCNN(nn.Module):
    def __init__(self, size, widths=(3, 4, 5), hidden=6):
        super().__init__()
        for i, (a, b) in enumerate(itertools.pairwise((3, *widths)), start=1):
            self.add_module(f"conv{i}", nn.Conv2d(a, b, 3, padding=1))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
        self.fc1 = nn.Linear(widths[-1] * (size[0] // 8) * (size[1] // 8), hidden)
        self.fcbn1 = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, _CLASSES)

    def forward(self, x):
        for i in (1, 2, 3):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            x = torch.relu(nn.functional.max_pool2d(x, 2))
        return self.fc2(torch.relu(self.fcbn1(self.fc1(x.flatten(1)))))


class _TorchResidual(nn.Module):
    def __init__(self, inputs, features, stride, expansion):
        super().__init__()
        basic = [(inputs, features, 3, stride), (features, features, 3, 1)]
        wide = [(inputs, features, 1, 1), (features, features, 3, stride)]
        wide.append((features, 4 * features, 1, 1))
        self.count, outputs = (3 if expansion == 4 else 2), expansion * features
        for i, (a, b, kernel, step) in enumerate(wide if expansion == 4 else basic, start=1):
            conv, norm = _normed(a, b, kernel, stride=step, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", norm)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(*_normed(inputs, outputs, 1, stride=stride, bias=False))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.count else y
        return torch.relu(y + self.shortcut(x))


class _TorchResNet(nn.Module):
    def __init__(self, stage_sizes, expansion):
        super().__init__()
        self.conv1, self.bn1 = _normed(3, 64, 3, bias=False)
        inputs = 64
        for stage, blocks in enumerate(stage_sizes):
            layer = []
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                layer.append(_TorchResidual(inputs, 64 * 2**stage, stride, expansion))
                inputs = 64 * 2**stage * expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
        self.stages = len(stage_sizes)
        self.linear = nn.Linear(inputs, _CLASSES)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.linear(_pooled(x))


class _TorchPreActivation(nn.Module):
    def __init__(self, inputs, features, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, features, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.downsample = nn.Sequential()
        if stride != 1:
            self.downsample.append(nn.Conv2d(inputs, features, 1, stride=stride, bias=False))

    def forward(self, x):
        y = self.conv1(torch.relu(self.bn1(x)))
        return self.conv2(torch.relu(self.bn2(y))) + self.downsample(x)


class _TorchResNetC(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        inputs = 16
        for stage, features in enumerate((16, 32, 64), start=1):
            layer = nn.Sequential()
            for i in range(blocks):
                layer.append(_TorchPreActivation(inputs, features, 2 if stage > 1 > i else 1))
                inputs = features
            self.add_module(f"layer{stage}", layer)
        self.bn = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, _CLASSES)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(_pooled(torch.relu(self.bn(x))))


class _TorchGrouped(nn.Module):
    def __init__(self, inputs, outputs, inner, stride, groups):
        super().__init__()
        self.conv_reduce, self.bn_reduce = _normed(inputs, inner, 1, bias=False)
        self.conv_conv, self.bn = _normed(inner, inner, 3, stride=stride, groups=groups, bias=False)
        self.conv_expand, self.bn_expand = _normed(inner, outputs, 1, bias=False)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            conv, norm = _normed(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut.add_module("shortcut_conv", conv)
            self.shortcut.add_module("shortcut_bn", norm)

    def forward(self, x):
        y = torch.relu(self.bn_reduce(self.conv_reduce(x)))
        y = torch.relu(self.bn(self.conv_conv(y)))
        return torch.relu(self.bn_expand(self.conv_expand(y)) + self.shortcut(x))


class _TorchResNeXt(nn.Module):
    def __init__(self, blocks, groups, base_width, widen_factor):
        super().__init__()
        self.conv_1_3x3, self.bn_1 = _normed(3, 64, 3, bias=False)
        inputs = 64
        for stage in range(3):
            layer = nn.Sequential()
            for i in range(blocks):
                sizes = (64 * widen_factor * 2**stage, groups * base_width * 2**stage)
                block = _TorchGrouped(inputs, *sizes, 2 if stage and not i else 1, groups)
                layer.add_module(f"stage_{stage + 1}_bottleneck_{i}", block)
                inputs = sizes[0]
            self.add_module(f"stage_{stage + 1}", layer)
        self.classifier = nn.Linear(inputs, _CLASSES)

    def forward(self, x):
        x = torch.relu(self.bn_1(self.conv_1_3x3(x)))
        return self.classifier(_pooled(self.stage_3(self.stage_2(self.stage_1(x)))))


class _TorchInverted(nn.Module):
    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        wide = inputs * expansion
        self.residual = nn.Sequential(
            *_normed(inputs, wide, 1, activation=nn.ReLU6),
            *_normed(wide, wide, 3, stride=stride, groups=wide, activation=nn.ReLU6),
            *_normed(wide, outputs, 1),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        return self.residual(x) + x if self.adds else self.residual(x)


class _TorchMobileNetV2(nn.Module):
    def __init__(self, stages, head):
        super().__init__()
        self.pre = nn.Sequential(*_normed(3, 32, 1, padding=1, activation=nn.ReLU6))
        inputs, self.stages = 32, len(stages)
        for stage, (expansion, features, blocks, stride) in enumerate(stages, start=1):
            layer = []
            for i in range(blocks):
                layer.append(_TorchInverted(inputs, features, 1 if i else stride, expansion))
                inputs = features
            self.add_module(f"stage{stage}", layer[0] if blocks == 1 else nn.Sequential(*layer))
        self.conv1 = nn.Sequential(*_normed(inputs, head, 1, activation=nn.ReLU6))
        self.conv2 = nn.Conv2d(head, _CLASSES, 1)

    def forward(self, x):
        x = self.pre(x)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"stage{stage}")(x)
        return self.conv2(self.conv1(x).mean((2, 3), keepdim=True)).flatten(1)


class _TorchShuffle(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.splits = stride == 1 and inputs == outputs
        inputs = inputs // 2 if self.splits else inputs

        def narrow():
            depthwise = _normed(inputs, inputs, 3, stride=stride, groups=inputs)
            return [*depthwise, *_normed(inputs, outputs // 2, 1, activation=nn.ReLU)]

        wide = _normed(inputs, inputs, 1, activation=nn.ReLU)
        self.residual = nn.Sequential(*wide, *narrow())
        self.shortcut = nn.Sequential(*([] if self.splits else narrow()))

    def forward(self, x):
        a, b = x.chunk(2, dim=1) if self.splits else (x, x)
        return nn.functional.channel_shuffle(torch.cat([self.shortcut(a), self.residual(b)], 1), 2)


class _TorchShuffleNetV2(nn.Module):
    def __init__(self, widths, stage_sizes, head):
        super().__init__()
        self.pre = nn.Sequential(*_normed(3, 24, 3))
        inputs = 24
        for stage, (features, units) in enumerate(zip(widths, stage_sizes, strict=True), start=2):
            layer = nn.Sequential()
            for i in range(units):
                layer.append(_TorchShuffle(inputs, features, 1 if i else 2))
                inputs = features
            self.add_module(f"stage{stage}", layer)
        self.conv5 = nn.Sequential(*_normed(inputs, head, 1, activation=nn.ReLU))
        self.fc = nn.Linear(head, _CLASSES)

    def forward(self, x):
        return self.fc(_pooled(self.conv5(self.stage4(self.stage3(self.stage2(self.pre(x)))))))


_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (2, 24, 1, 1), (3, 16, 2, 2))
_RESNEXT = {"cardinality": 4, "base_width": 6, "widen_factor": 2}
_PAIRS = {
    "cnn": (lambda: CNN(_CLASSES, widths=(3, 4, 5), hidden=6), lambda: _TorchCNN(_SHAPE)),
    "resnet of basic blocks": (
        lambda: ResNet(_CLASSES, stage_sizes=(2, 1)),
        lambda: _TorchResNet((2, 1), expansion=1),
    ),
    "resnet of bottlenecks": (
        lambda: ResNet(_CLASSES, stage_sizes=(2, 1), block=Bottleneck),
        lambda: _TorchResNet((2, 1), expansion=4),
    ),
    "resnetc": (lambda: ResNetC(_CLASSES, blocks_per_stage=2), lambda: _TorchResNetC(2)),
    "resnext": (
        lambda: ResNeXt(_CLASSES, blocks_per_stage=2, **_RESNEXT),
        lambda: _TorchResNeXt(2, *_RESNEXT.values()),
    ),
    "mobilenetv2": (
        lambda: MobileNetV2(_CLASSES, stages=_STAGES, head=48),
        lambda: _TorchMobileNetV2(_STAGES, 48),
    ),
    "shufflenetv2": (
        lambda: ShuffleNetV2(_CLASSES, widths=(12, 20, 28), stage_sizes=(2, 3, 1), head=32),
        lambda: _TorchShuffleNetV2((12, 20, 28), (2, 3, 1), 32),
    ),
}
_SHAPE = (16, 24, 3)


def _random(network):
    """Its state dict in NumPy, with norms that do something and kernels that hand the images on."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.uniform_(-0.5, 0.5)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.mul_(6**0.5)  # to a variance of 2 / fan_in
    return {name: value.numpy().copy() for name, value in network.state_dict().items()}


@pytest.fixture(scope="module", params=_PAIRS)
def pair(request):
    ours, theirs = (make() for make in _PAIRS[request.param])
    torch.manual_seed(0)
    tensors = _random(theirs)
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
    after = {name: value.numpy() for name, value in theirs.state_dict().items()}
    moved = convert(ours, _SHAPE, after)["batch_stats"]
    chex.assert_trees_all_close(state["batch_stats"], moved, rtol=1e-5, atol=1e-5)
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), moved, variables["batch_stats"])
    assert min(jax.tree.leaves(change)) > 1e-3


def test_all_variables_come_from_the_state_dict(pair):
    ours, _, tensors, variables = pair
    params, state = jax.eval_shape(lambda key: init_model(ours, key, _SHAPE), jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, {"params": params, **state})
    for name in [name for name in tensors if not name.endswith("num_batches_tracked")][::5]:
        fewer = {key: value for key, value in tensors.items() if key != name}
        with pytest.raises(InputError, match=f"has no tensor {name}, which a "):
            convert(ours, _SHAPE, fewer)
