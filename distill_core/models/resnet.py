"""The wide ResNets for small images: resnet18, resnet34, resnet50."""

import functools
from collections.abc import Callable

import jax
from flax import linen as nn

from distill_core.models.layers import check_images, conv, dense, mask_examples
from distill_core.models.norm import normalise


class BasicBlock(nn.Module):
    """3×3 convolution, norm, ReLU, 3×3 convolution, norm; plus the shortcut; ReLU."""

    features: int
    stride: int = 1
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, where: jax.Array | None) -> jax.Array:
        norm = functools.partial(normalise, self.norm, train=train, where=where)
        y = nn.relu(norm(conv(x, self.features, stride=self.stride)))
        y = norm(conv(y, self.features))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = norm(conv(x, self.features, kernel=1, stride=self.stride))
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolution, each with norm, ReLU between; plus the shortcut; ReLU.

    The 3×3 convolution has the stride; the output has 4 · `features` channels.
    """

    features: int
    stride: int = 1
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, where: jax.Array | None) -> jax.Array:
        norm = functools.partial(normalise, self.norm, train=train, where=where)
        wide = 4 * self.features
        y = nn.relu(norm(conv(x, self.features, kernel=1)))
        y = nn.relu(norm(conv(y, self.features, stride=self.stride)))
        y = norm(conv(y, wide, kernel=1))
        if self.stride != 1 or x.shape[-1] != wide:
            x = norm(conv(x, wide, kernel=1, stride=self.stride))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet whose stem keeps the image: 3×3 convolution with stride 1, norm, ReLU, no pooling.

    Four stages of 64, 128, 256 and 512 features, the last three starting with stride 2; then the
    average over all pixels and a dense layer, the only one with a bias. Parameters on images of 3
    channels: 11,173,962 of resnet18 and 21,282,122 of resnet34 with 10 classes, 23,705,252 of
    resnet50 with 100.

    Source: He et al., "Deep Residual Learning" (2015), with the stem of the reference code of
    Ma et al., "Undistillable" (ICLR 2021).

    Attributes:
      num_classes: C.
      stage_sizes: blocks of each stage.
      block: (features, stride, norm) -> module, `BasicBlock` or `Bottleneck`.
      norm: "batch", "group" or "none".
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    block: Callable[..., nn.Module] = BasicBlock
    norm: str = "batch"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, where: jax.Array | None = None
    ) -> jax.Array:
        """Images float32 [B, H, W, channels] to logits [B, C]; `where` bool [B] masks examples."""
        check_images(x)
        x = mask_examples(x, where)
        x = conv(x, 64)
        x = normalise(self.norm, x, train=train, where=where)
        x = nn.relu(x)
        for stage, blocks in enumerate(self.stage_sizes):
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                x = self.block(64 * 2**stage, stride, self.norm)(x, train=train, where=where)
        x = x.mean(axis=(1, 2))  # [B, D]
        self.sow("intermediates", "features", x)
        return dense(x, self.num_classes)
