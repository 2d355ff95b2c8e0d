"""The narrow pre-activation ResNets for small images: resnetc20, resnetc32."""

import functools

import jax
from flax import linen as nn

from distill_core.models.layers import check_images, conv, dense, mask_examples
from distill_core.models.norm import normalise

# N(0, 2 / (k·k·out)), which the reference code uses here, unlike in its other networks.
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class PreActivationBlock(nn.Module):
    """norm, ReLU, 3×3 convolution, twice; plus the block's raw input or a projection of it."""

    features: int
    stride: int = 1
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, where: jax.Array | None) -> jax.Array:
        norm = functools.partial(normalise, self.norm, train=train, where=where)
        y = conv(nn.relu(norm(x)), self.features, stride=self.stride, kernel_init=_kernel_init)
        y = conv(nn.relu(norm(y)), self.features, kernel_init=_kernel_init)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(x, self.features, kernel=1, stride=self.stride, kernel_init=_kernel_init)
        return x + y


class ResNetC(nn.Module):
    """Pre-activation ResNet of depth 6n+2 with 16, 32 and 64 channels.

    Stem: 3×3 convolution to 16 channels without norm or ReLU. Three stages of n blocks, the second
    and third starting with stride 2. Then norm, ReLU, average over all pixels and a dense layer,
    the only one with a bias. The projection is a 1×1 convolution without norm, of the block's raw
    input, in the first block of stages two and three only. With 10 classes on 32×32×3: 272,282
    parameters for n = 3 (`resnetc20`), 466,714 for n = 5 (`resnetc32`).

    Source: He et al., "Identity Mappings in Deep Residual Networks" (2016), in the variant of the
    reference code of Ma et al., "Undistillable" (ICLR 2021).

    Attributes:
      num_classes: C.
      blocks_per_stage: n.
      norm: "batch", "group" or "none".
    """

    num_classes: int
    blocks_per_stage: int
    norm: str = "batch"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, where: jax.Array | None = None
    ) -> jax.Array:
        """Images float32 [B, H, W, channels] to logits [B, C]; `where` bool [B] masks examples."""
        check_images(x)
        x = mask_examples(x, where)
        x = conv(x, 16, kernel_init=_kernel_init)
        for stage, features in enumerate((16, 32, 64)):
            for block in range(self.blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                x = PreActivationBlock(features, stride, self.norm)(x, train=train, where=where)
        x = normalise(self.norm, x, train=train, where=where)
        x = nn.relu(x).mean(axis=(1, 2))  # [B, 64]
        self.sow("intermediates", "features", x)
        return dense(x, self.num_classes)
