"""MobileNetV2 for small images: inverted residuals of depthwise convolutions."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from distill_core.models.layers import check_images, conv, dense, mask_examples
from distill_core.models.norm import normalise

# Of each stage: expansion, features, blocks, stride of the first block.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 1),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1×1 convolution to more channels, depthwise 3×3, 1×1 to `features`; plus the input.

    Each convolution has a bias and a norm; ReLU6 after the first two. The input is added only
    where stride and channels keep its shape.
    """

    features: int
    stride: int = 1
    expansion: int = 6
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, where: jax.Array | None) -> jax.Array:
        norm = functools.partial(normalise, self.norm, train=train, where=where)
        wide = self.expansion * x.shape[-1]
        y = _relu6(norm(conv(x, wide, kernel=1, use_bias=True)))
        y = _relu6(norm(conv(y, wide, stride=self.stride, groups=wide, use_bias=True)))
        y = norm(conv(y, self.features, kernel=1, use_bias=True))
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV2(nn.Module):
    """MobileNetV2 whose stem is a 1×1 convolution that pads by one pixel: 32×32 becomes 34×34.

    Stem to 32 channels, norm, ReLU6; the stages; 1×1 convolution to `head` channels, norm, ReLU6;
    average over all pixels; a dense layer (the source has a 1×1 convolution of the averages, which
    is the same). Every convolution has a bias. 2,369,380 parameters on 3 channels with 100 classes.

    Source: Sandler et al., "MobileNetV2" (2018), in the variant of the reference code of Ma et al.,
    "Undistillable" (ICLR 2021), which has it from github.com/weiaicunzai/pytorch-cifar100.

    Attributes:
      num_classes: C.
      stages: of each stage (expansion, features, blocks, stride of the first block).
      head: D, channels of the last convolution, also of the features.
      norm: "batch", "group" or "none".
    """

    num_classes: int
    stages: tuple[tuple[int, int, int, int], ...] = _STAGES
    head: int = 1280
    norm: str = "batch"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, where: jax.Array | None = None
    ) -> jax.Array:
        """Images float32 [B, H, W, channels] to logits [B, C]; `where` bool [B] masks examples."""
        norm = functools.partial(normalise, self.norm, train=train, where=where)
        check_images(x)
        x = mask_examples(x, where)
        x = _relu6(norm(conv(x, 32, kernel=1, padding=1, use_bias=True)))
        for expansion, features, blocks, first_stride in self.stages:
            for index in range(blocks):
                stride = first_stride if index == 0 else 1
                x = InvertedResidual(features, stride, expansion, self.norm)(
                    x, train=train, where=where
                )
        x = _relu6(norm(conv(x, self.head, kernel=1, use_bias=True))).mean(axis=(1, 2))  # [B, D]
        self.sow("intermediates", "features", x)
        return dense(x, self.num_classes)


def _relu6(x: jax.Array) -> jax.Array:
    # Not `minimum`, for the reason in `layers._larger`.
    return jnp.where(x >= 6, 6, nn.relu(x))
