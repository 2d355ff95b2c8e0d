"""The plain convolutional student."""

import functools

import jax
from flax import linen as nn

from distill_core.config import InputError
from distill_core.models.layers import check_images, conv, dense, mask_examples, max_pool_2x2
from distill_core.models.norm import normalise


class CNN(nn.Module):
    """Per width: 3×3 convolution, norm, 2×2 max-pool, ReLU; then a hidden dense layer.

    Source: the student "cnn" of Ma et al., "Undistillable" (ICLR 2021), as in its reference code
    without dropout. 357,514 parameters on 32×32×3 with 10 classes. The flattening order is
    (height, width, channel), PyTorch's is (channel, height, width): weights carried over must be
    permuted.

    Attributes:
      num_classes: C.
      widths: channels of each convolution; each halves the image, so that H and W must be at
        least 2**len(widths).
      hidden: D, the width of the dense layer, also of the features.
      norm: "batch", "group" or "none".
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64, 128)
    hidden: int = 128
    norm: str = "batch"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, where: jax.Array | None = None
    ) -> jax.Array:
        """Images float32 [B, H, W, channels] to logits [B, C]; `where` bool [B] masks examples."""
        norm = functools.partial(normalise, self.norm, train=train, where=where)
        if not self.widths:
            raise InputError("model_kwargs.widths", self.widths, "must name at least one width")
        check_images(x, min_size=2 ** len(self.widths))
        x = mask_examples(x, where)
        for width in self.widths:
            x = nn.relu(max_pool_2x2(norm(conv(x, width, use_bias=True))))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(norm(dense(x, self.hidden)))  # [B, D]
        self.sow("intermediates", "features", x)
        return dense(x, self.num_classes)
