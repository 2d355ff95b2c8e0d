"""ShuffleNetV2 for small images: half of the channels pass, the other half is convolved."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from distill_core.models.layers import check_images, conv, dense, mask_examples
from distill_core.models.norm import normalise


class ShuffleUnit(nn.Module):
    """Two branches of half the features each, interleaved.

    The branch that works: 1×1 convolution, norm, ReLU, depthwise 3×3, norm, 1×1, norm, ReLU. With
    stride 1 and as many features as there are channels, it gets the second half of the channels,
    and the first half passes unchanged. Otherwise both branches get all channels, and the other is
    depthwise 3×3, norm, 1×1, norm, ReLU. The convolutions have biases.
    """

    features: int
    stride: int = 1
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, where: jax.Array | None) -> jax.Array:
        norm = functools.partial(normalise, self.norm, train=train, where=where)

        def narrow(x: jax.Array) -> jax.Array:
            channels = x.shape[-1]
            x = norm(conv(x, channels, stride=self.stride, groups=channels, use_bias=True))
            return nn.relu(norm(conv(x, half, kernel=1, use_bias=True)))

        half = self.features // 2
        splits = self.stride == 1 and x.shape[-1] == self.features
        passed, x = jnp.split(x, 2, axis=-1) if splits else (x, x)
        y = narrow(nn.relu(norm(conv(x, x.shape[-1], kernel=1, use_bias=True))))
        passed = passed if splits else narrow(passed)
        return jnp.stack([passed, y], axis=-1).reshape(*y.shape[:-1], self.features)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 whose stem keeps the image: 3×3 convolution to 24 channels, norm, no ReLU.

    Stages of `ShuffleUnit`, each starting with stride 2; 1×1 convolution to `head` channels, norm,
    ReLU; average over all pixels; a dense layer. Every convolution has a bias. 1,360,896
    parameters on 3 channels with 100 classes.

    Source: Ma et al., "ShuffleNet V2" (2018), width 1×, in the variant of the reference code of Ma
    et al., "Undistillable" (ICLR 2021), which has it from github.com/weiaicunzai/pytorch-cifar100.

    Attributes:
      num_classes: C.
      widths: features of each stage, even.
      stage_sizes: units of each stage.
      head: D, channels of the last convolution, also of the features.
      norm: "batch", "group" or "none".
    """

    num_classes: int
    widths: tuple[int, ...] = (116, 232, 464)
    stage_sizes: tuple[int, ...] = (4, 8, 4)
    head: int = 1024
    norm: str = "batch"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, where: jax.Array | None = None
    ) -> jax.Array:
        """Images float32 [B, H, W, channels] to logits [B, C]; `where` bool [B] masks examples."""
        norm = functools.partial(normalise, self.norm, train=train, where=where)
        check_images(x)
        x = mask_examples(x, where)
        x = norm(conv(x, 24, use_bias=True))
        for features, units in zip(self.widths, self.stage_sizes, strict=True):
            for index in range(units):
                stride = 2 if index == 0 else 1
                x = ShuffleUnit(features, stride, self.norm)(x, train=train, where=where)
        x = nn.relu(norm(conv(x, self.head, kernel=1, use_bias=True))).mean(axis=(1, 2))  # [B, D]
        self.sow("intermediates", "features", x)
        return dense(x, self.num_classes)
