"""The narrow pre-activation ResNets for small images: resnetc20, resnetc32."""

import jax
from flax import linen as nn

from distill_core.models.layers import check_images, conv, dense, mask_examples
from distill_core.models.norm import make_norm

# N(0, 2 / (k·k·out)), which the reference code uses here, unlike in its other networks.
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class PreActivationBlock(nn.Module):
    """norm, ReLU, 3×3 convolution, twice; plus the block's raw input or a projection of it."""

    features: int
    stride: int = 1
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, where: jax.Array | None) -> jax.Array:
        def norm(x: jax.Array) -> jax.Array:
            return make_norm(self.norm)(x, train=train, where=where)

        y = conv(nn.relu(norm(x)), self.features, stride=self.stride, kernel_init=_kernel_init)
        y = conv(nn.relu(norm(y)), self.features, kernel_init=_kernel_init)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(x, self.features, kernel=1, stride=self.stride, kernel_init=_kernel_init)
        return x + y


class ResNetC(nn.Module):
    """Pre-activation ResNet of depth 6n+2 with 16, 32 and 64 channels.

    Stem: 3×3 convolution to 16 channels with neither norm nor ReLU. Three stages of n blocks, the
    second and the third starting with stride 2. Then norm, ReLU, average over all pixels (8×8 of
    them for 32×32 images) and a dense layer, the only one with a bias. The projection is a 1×1
    convolution without norm, of the block's raw input (before its first norm and ReLU), in the
    first block of stages two and three only. With 10 classes on 32×32×3: 272,282 parameters for
    n = 3, 466,714 for n = 5.

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
        x = make_norm(self.norm)(x, train=train, where=where)
        x = nn.relu(x).mean(axis=(1, 2))  # [B, 64]
        self.sow("intermediates", "features", x)
        return dense(x, self.num_classes)


def resnetc20(*, num_classes: int, norm: str = "batch") -> ResNetC:
    """ResNetC of depth 20."""
    return ResNetC(num_classes, blocks_per_stage=3, norm=norm)


def resnetc32(*, num_classes: int, norm: str = "batch") -> ResNetC:
    """ResNetC of depth 32."""
    return ResNetC(num_classes, blocks_per_stage=5, norm=norm)
