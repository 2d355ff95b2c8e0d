"""Our image networks in PyTorch, for benchmarks and tests: the same layers, in the same order.

Each function gives a `build(num_classes) -> layers`; by default for images of 32×32×3.
"""

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    """`body(x) + shortcut(x)`, then perhaps ReLU."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, *, relu: bool):
        super().__init__()
        self.body, self.shortcut, self.relu = body, shortcut, relu

    def forward(self, x):
        x = self.body(x) + self.shortcut(x)
        return functional.relu(x, inplace=True) if self.relu else x


class Shuffle(nn.Module):
    """ShuffleNetV2's unit: two branches side by side, their channels shuffled."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.splits = stride == 1 and inputs == outputs
        inputs = inputs // 2 if self.splits else inputs

        def narrow():
            depthwise = _conv(inputs, inputs, 3, stride, groups=inputs, bias=True, relu=False)
            return [*depthwise, *_conv(inputs, outputs // 2, 1, bias=True)]

        self.residual = nn.Sequential(*_conv(inputs, inputs, 1, bias=True), *narrow())
        self.shortcut = nn.Sequential(*([] if self.splits else narrow()))

    def forward(self, x):
        a, b = x.chunk(2, dim=1) if self.splits else (x, x)
        x = torch.cat([self.shortcut(a), self.residual(b)], 1)
        return functional.channel_shuffle(x, 2)


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups=1, bias=False, relu=True,
    padding=None, activation: Callable[..., nn.Module] = nn.ReLU,
) -> list[nn.Module]:  # fmt: skip
    """Convolution, norm and, if `relu`, activation."""
    padding = kernel // 2 if padding is None else padding
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)
    layers = [convolution, nn.BatchNorm2d(outputs)]
    return [*layers, activation(inplace=True)] if relu else layers


def _head(inputs: int, num_classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]


def cnn(widths=(32, 64, 128), hidden: int = 128, pixels: int = 16) -> Callable:
    """`pixels` is their number after all poolings."""

    def build(num_classes: int) -> Iterable[nn.Module]:
        for inputs, outputs in itertools.pairwise((3, *widths)):
            yield from _conv(inputs, outputs, 3, bias=True, relu=False)
            yield from (nn.MaxPool2d(2), nn.ReLU(inplace=True))
        yield from (nn.Flatten(), nn.Linear(widths[-1] * pixels, hidden))
        yield from (nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, num_classes))

    return build


def resnet(stage_sizes: tuple[int, ...], expansion: int) -> Callable:
    """Wide ResNets; `expansion` is 1 of basic blocks, 4 of bottlenecks."""

    def build(num_classes: int) -> Iterable[nn.Module]:
        yield from _conv(3, 64, 3)
        inputs = 64
        for stage, blocks in enumerate(stage_sizes):
            width, outputs = 64 * 2**stage, 64 * 2**stage * expansion
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                if expansion == 1:
                    body = _conv(inputs, width, 3, stride)
                    body += _conv(width, width, 3, relu=False)
                else:
                    body = _conv(inputs, width, 1) + _conv(width, width, 3, stride)
                    body += _conv(width, outputs, 1, relu=False)
                same = stride == 1 and inputs == outputs
                shortcut = [] if same else _conv(inputs, outputs, 1, stride, relu=False)
                yield Residual(nn.Sequential(*body), nn.Sequential(*shortcut), relu=True)
                inputs = outputs
        yield from _head(inputs, num_classes)

    return build


def resnetc(blocks: int) -> Callable:
    """Narrow pre-activation ResNets of `blocks` per stage."""

    def build(num_classes: int) -> Iterable[nn.Module]:
        yield nn.Conv2d(3, 16, 3, padding=1, bias=False)
        inputs = 16
        for stage, width in enumerate((16, 32, 64)):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                body: list[nn.Module] = []
                for a, step in ((inputs, stride), (width, 1)):
                    body += [nn.BatchNorm2d(a), nn.ReLU(inplace=True)]
                    body += [nn.Conv2d(a, width, 3, step, 1, bias=False)]
                shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False)
                yield Residual(
                    nn.Sequential(*body), shortcut if stride > 1 else nn.Sequential(), relu=False
                )
                inputs = width
        yield from (nn.BatchNorm2d(64), nn.ReLU(inplace=True), *_head(64, num_classes))

    return build


def resnext(
    blocks: int = 3, groups: int = 8, base_width: int = 64, widen_factor: int = 4
) -> Callable:
    """Bottlenecks of grouped convolutions."""

    def build(num_classes: int) -> Iterable[nn.Module]:
        yield from _conv(3, 64, 3)
        inputs = 64
        for stage in range(3):
            outputs, wide = 64 * widen_factor * 2**stage, groups * base_width * 2**stage
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                body = [*_conv(inputs, wide, 1), *_conv(wide, wide, 3, stride, groups=groups)]
                body += _conv(wide, outputs, 1, relu=False)
                shortcut = [] if block else _conv(inputs, outputs, 1, stride, relu=False)
                yield Residual(nn.Sequential(*body), nn.Sequential(*shortcut), relu=True)
                inputs = outputs
        yield from _head(inputs, num_classes)

    return build


_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
    (6, 160, 3, 1), (6, 320, 1, 1),
)  # fmt: skip


def mobilenetv2(stages=_STAGES, head: int = 1280) -> Callable:
    """Inverted residuals; stages of (expansion, features, blocks, first stride)."""

    def build(num_classes: int) -> Iterable[nn.Module]:
        yield from _conv(3, 32, 1, padding=1, bias=True, activation=nn.ReLU6)
        inputs = 32
        for expansion, outputs, blocks, first in stages:
            for stride in (first, *[1] * (blocks - 1)):
                wide = expansion * inputs
                body = nn.Sequential(
                    *_conv(inputs, wide, 1, bias=True, activation=nn.ReLU6),
                    *_conv(wide, wide, 3, stride, groups=wide, bias=True, activation=nn.ReLU6),
                    *_conv(wide, outputs, 1, bias=True, relu=False),
                )
                same = stride == 1 and inputs == outputs
                yield Residual(body, nn.Sequential(), relu=False) if same else body
                inputs = outputs
        yield from _conv(inputs, head, 1, bias=True, activation=nn.ReLU6)
        yield from _head(head, num_classes)

    return build


def shufflenetv2(widths=(116, 232, 464), stage_sizes=(4, 8, 4), head: int = 1024) -> Callable:
    """Shuffle units."""

    def build(num_classes: int) -> Iterable[nn.Module]:
        yield from _conv(3, 24, 3, bias=True, relu=False)
        inputs = 24
        for outputs, units in zip(widths, stage_sizes, strict=True):
            for unit in range(units):
                yield Shuffle(inputs, outputs, 1 if unit else 2)
                inputs = outputs
        yield from _conv(inputs, head, 1, bias=True)
        yield from _head(head, num_classes)

    return build


NETWORKS: dict[str, Callable[[int], Iterable[nn.Module]]] = {
    "cnn": cnn(),
    "resnetc20": resnetc(3),
    "resnetc32": resnetc(5),
    "resnet18": resnet((2, 2, 2, 2), 1),
    "resnet34": resnet((3, 4, 6, 3), 1),
    "resnet50": resnet((3, 4, 6, 3), 4),
    "resnext29": resnext(),
    "mobilenetv2": mobilenetv2(),
    "shufflenetv2": shufflenetv2(),
}


def make(name: str, *, num_classes: int = 10) -> nn.Module:
    """The PyTorch network of one of our names, freshly initialised."""
    return nn.Sequential(*NETWORKS[name](num_classes))
