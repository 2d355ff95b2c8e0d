"""ResNeXt for small images: bottlenecks of grouped convolutions."""

import jax
from flax import linen as nn

from distill_core.models.layers import check_images, conv, mask_examples
from distill_core.models.norm import normalise

# N(0, 2 / (k·k·out)) and, of the dense layer, N(0, 2 / in), which the reference code uses here.
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_dense_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class GroupedBottleneck(nn.Module):
    """1×1 convolution to `inner` channels, grouped 3×3, 1×1 to `features`; plus the shortcut; ReLU.

    A norm after each convolution, ReLU after the first two. The grouped one has the stride.
    """

    features: int
    inner: int
    groups: int
    stride: int = 1
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, where: jax.Array | None) -> jax.Array:
        def layer(x: jax.Array, features: int, **options) -> jax.Array:
            x = conv(x, features, kernel_init=_kernel_init, **options)
            return normalise(self.norm, x, train=train, where=where)

        y = nn.relu(layer(x, self.inner, kernel=1))
        y = nn.relu(layer(y, self.inner, stride=self.stride, groups=self.groups))
        y = layer(y, self.features, kernel=1)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = layer(x, self.features, kernel=1, stride=self.stride)
        return nn.relu(x + y)


class ResNeXt(nn.Module):
    """ResNeXt of depth 9n+2: three stages of n bottlenecks of grouped convolutions.

    Stem: 3×3 convolution to 64 channels with stride 1, norm, ReLU. Stage s has
    64 · `widen_factor` · 2^s features and, inside, `cardinality` groups of `base_width` · 2^s
    channels; the last two start with stride 2. Then the average over all pixels and a dense layer,
    the only one with a bias. 34,518,948 parameters of resnext29 on 3 channels with 100 classes.

    Source: Xie et al., "Aggregated Residual Transformations" (2016), in the variant of the
    reference code of Ma et al., "Undistillable" (ICLR 2021), which has it from
    github.com/prlz77/ResNeXt.pytorch.

    Attributes:
      num_classes: C.
      blocks_per_stage: n.
      cardinality: groups of a 3×3 convolution.
      base_width: channels of a group in the first stage.
      widen_factor: features of the first stage over those of the stem.
      norm: "batch", "group" or "none".
    """

    num_classes: int
    blocks_per_stage: int = 3
    cardinality: int = 8
    base_width: int = 64
    widen_factor: int = 4
    norm: str = "batch"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, where: jax.Array | None = None
    ) -> jax.Array:
        """Images float32 [B, H, W, channels] to logits [B, C]; `where` bool [B] masks examples."""
        check_images(x)
        x = mask_examples(x, where)
        x = conv(x, 64, kernel_init=_kernel_init)
        x = normalise(self.norm, x, train=train, where=where)
        x = nn.relu(x)
        for stage in range(3):
            features = 64 * self.widen_factor * 2**stage
            inner = self.cardinality * self.base_width * 2**stage
            for block in range(self.blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                x = GroupedBottleneck(features, inner, self.cardinality, stride, self.norm)(
                    x, train=train, where=where
                )
        x = x.mean(axis=(1, 2))  # [B, D]
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, kernel_init=_dense_init)(x)
