"""The layers of our image networks and their names in PyTorch."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from distill_core.models.cnn import CNN
from distill_core.models.mobilenetv2 import MobileNetV2
from distill_core.models.resnet import Bottleneck, ResNet
from distill_core.models.resnetc import ResNetC
from distill_core.models.resnext import ResNeXt
from distill_core.models.shufflenetv2 import ShuffleNetV2

# Each pair: PyTorch's name of a layer, the path to ours.
Layers = Iterator[tuple[str, tuple[str, ...]]]

# Names of a ResNet's layers in torchvision and in github.com/weiaicunzai/pytorch-cifar100.
_FUNCTION = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2", "6": "conv3", "7": "bn3"}
_RESNET_ALIASES = (
    (r"^fc\.", lambda _: "linear."),
    (r"\.downsample\.", lambda _: ".shortcut."),
    (r"^conv1\.0\.", lambda _: "conv1."),
    (r"^conv1\.1\.", lambda _: "bn1."),
    (r"^conv([2-5])_x\.", lambda found: f"layer{int(found[1]) - 1}."),
    (r"\.residual_function\.([013467])\.", lambda found: f".{_FUNCTION[found[1]]}."),
)


def layers(module: Any, params: Mapping[str, Any]) -> Layers:
    """Every layer with parameters: (PyTorch's name, path of ours), input first.

    The names are those of the reference code of Ma et al., "Undistillable" (ICLR 2021). `module` is
    one of `NETWORKS`; its parameters or their shapes say which blocks have a projection.
    """
    return _LAYERS[type(module)](module, params)


def canonical(module: Any, name: str) -> str:
    """The reference code's name of a tensor, from its name in other common PyTorch code.

    Removes the prefix `module.` of data-parallel training; a `ResNet` may have torchvision's names
    or those of pytorch-cifar100.
    """
    name = name.removeprefix("module.")
    if isinstance(module, ResNet):
        for pattern, replacement in _RESNET_ALIASES:
            name = re.sub(pattern, replacement, name)
    return name


def _cnn(module: CNN, _: Mapping[str, Any]) -> Layers:
    count = len(module.widths)
    for i in range(count):
        yield f"conv{i + 1}", (f"Conv_{i}",)
        yield f"bn{i + 1}", (f"BatchNorm_{i}",)
    yield "fc1", ("Dense_0",)
    yield "fcbn1", (f"BatchNorm_{count}",)
    yield "fc2", ("Dense_1",)


def _resnet(module: ResNet, params: Mapping[str, Any]) -> Layers:
    yield "conv1", ("Conv_0",)
    yield "bn1", ("BatchNorm_0",)
    convolutions = 3 if module.block is Bottleneck else 2
    for theirs, index in _blocks("layer{}.{}", module.stage_sizes):
        ours = f"{module.block.__name__}_{index}"
        for i in range(convolutions):
            yield f"{theirs}.conv{i + 1}", (ours, f"Conv_{i}")
            yield f"{theirs}.bn{i + 1}", (ours, f"BatchNorm_{i}")
        if f"Conv_{convolutions}" in params[ours]:
            yield f"{theirs}.shortcut.0", (ours, f"Conv_{convolutions}")
            yield f"{theirs}.shortcut.1", (ours, f"BatchNorm_{convolutions}")
    yield "linear", ("Dense_0",)


def _resnetc(module: ResNetC, params: Mapping[str, Any]) -> Layers:
    yield "conv1", ("Conv_0",)
    for theirs, index in _blocks("layer{}.{}", [module.blocks_per_stage] * 3):
        ours = f"PreActivationBlock_{index}"
        for i in range(2):
            yield f"{theirs}.bn{i + 1}", (ours, f"BatchNorm_{i}")
            yield f"{theirs}.conv{i + 1}", (ours, f"Conv_{i}")
        if "Conv_2" in params[ours]:
            yield f"{theirs}.downsample.0", (ours, "Conv_2")
    yield "bn", ("BatchNorm_0",)
    yield "fc", ("Dense_0",)


def _resnext(module: ResNeXt, params: Mapping[str, Any]) -> Layers:
    yield "conv_1_3x3", ("Conv_0",)
    yield "bn_1", ("BatchNorm_0",)
    names = [
        ("conv_reduce", "bn_reduce"),
        ("conv_conv", "bn"),
        ("conv_expand", "bn_expand"),
        ("shortcut.shortcut_conv", "shortcut.shortcut_bn"),
    ]
    blocks = _blocks("stage_{0}.stage_{0}_bottleneck_{1}", [module.blocks_per_stage] * 3)
    for theirs, index in blocks:
        ours = f"GroupedBottleneck_{index}"
        for i, (conv, norm) in enumerate(names):
            if f"Conv_{i}" in params[ours]:
                yield f"{theirs}.{conv}", (ours, f"Conv_{i}")
                yield f"{theirs}.{norm}", (ours, f"BatchNorm_{i}")
    yield "classifier", ("Dense_0",)


def _mobilenetv2(module: MobileNetV2, _: Mapping[str, Any]) -> Layers:
    yield "pre.0", ("Conv_0",)
    yield "pre.1", ("BatchNorm_0",)
    sizes = [blocks for _, _, blocks, _ in module.stages]
    for theirs, index in _blocks("stage{}.{}", sizes):
        stage = theirs.partition(".")[0]
        if sizes[int(stage.removeprefix("stage")) - 1] == 1:  # no sequence around a single block
            theirs = stage
        for i in range(3):
            yield f"{theirs}.residual.{3 * i}", (f"InvertedResidual_{index}", f"Conv_{i}")
            yield f"{theirs}.residual.{3 * i + 1}", (f"InvertedResidual_{index}", f"BatchNorm_{i}")
    yield "conv1.0", ("Conv_1",)
    yield "conv1.1", ("BatchNorm_1",)
    yield "conv2", ("Dense_0",)


def _shufflenetv2(module: ShuffleNetV2, params: Mapping[str, Any]) -> Layers:
    yield "pre.0", ("Conv_0",)
    yield "pre.1", ("BatchNorm_0",)
    names = ["residual.0", "residual.3", "residual.5", "shortcut.0", "shortcut.2"]
    for theirs, index in _blocks("stage{}.{}", module.stage_sizes, first=2):
        ours = f"ShuffleUnit_{index}"
        for i, name in enumerate(names):
            if f"Conv_{i}" in params[ours]:
                branch, _, place = name.partition(".")
                yield f"{theirs}.{name}", (ours, f"Conv_{i}")
                yield f"{theirs}.{branch}.{int(place) + 1}", (ours, f"BatchNorm_{i}")
    yield "conv5.0", ("Conv_1",)
    yield "conv5.1", ("BatchNorm_1",)
    yield "fc", ("Dense_0",)


def _blocks(name: str, sizes, *, first: int = 1) -> Iterator[tuple[str, int]]:
    """Each block's name in PyTorch, from its stage and its place there, and its overall number."""
    places = [(stage, i) for stage, size in enumerate(sizes, start=first) for i in range(size)]
    for index, place in enumerate(places):
        yield name.format(*place), index


_LAYERS: dict[Any, Callable[..., Layers]] = {
    CNN: _cnn,
    MobileNetV2: _mobilenetv2,
    ResNeXt: _resnext,
    ResNet: _resnet,
    ResNetC: _resnetc,
    ShuffleNetV2: _shufflenetv2,
}
NETWORKS = tuple(_LAYERS)
