"""The skeptical student: its final head trusts labels only, an inner one listens to the teacher."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from distill_core.config import InputError
from distill_core.losses import (
    coefficient,
    cross_entropy,
    distillation_loss,
    kl_divergence,
    leading_shape,
)
from distill_core.models.layers import check_images, conv, dense, mask_examples, max_pool_2x2
from distill_core.models.network import Network
from distill_core.models.norm import normalise

Array = jax.Array
# Where a student's network sows its auxiliary head's logits [B, C].
SOWN = "auxiliary_logits"


def skeptical_loss(
    student_logits: Array,
    auxiliary_logits: Array,
    teacher_logits: Array,
    labels: Array,
    *,
    temperature,
    alpha,
    self_weight=0.3,
    awake=1.0,
    where: Array | None = None,
) -> Array:
    """CE(final) + awake·(KD(teacher → auxiliary) + self-distillation(final → auxiliary)).

    KD is `distillation_loss(auxiliary, teacher)`: α τ² KL + (1 − α) CE. Self-distillation is
    β KL(softmax(final/τ) ‖ softmax(auxiliary/τ)) + (1 − β) CE(auxiliary), without τ². During the
    delay `awake` is 0 and only the cross-entropy of the final head is left.

    Source: Kundu et al., "Analyzing the Confidentiality of Undistillable Teachers in Knowledge
    Distillation", NeurIPS 2021, as in its reference code, with two readings of ours: one auxiliary
    head takes both terms (there they may be two), and the final head gets no gradient from the
    self-distillation (there it does), so that it learns from labels alone.

    Arguments, result and errors are those of `distillation_loss`; auxiliary_logits `[..., C]` are
    of the head at an inner block, β and `awake` in [0, 1] a scalar or `[...]`.
    """
    leading = leading_shape(
        where,
        student_logits=student_logits,
        auxiliary_logits=auxiliary_logits,
        teacher_logits=teacher_logits,
    )
    beta = coefficient("self_weight", self_weight, leading, where, low=0.0, high=1.0)
    awake = coefficient("awake", awake, leading, where, low=0.0, high=1.0)
    softened = {"temperature": temperature, "where": where}
    kd = distillation_loss(auxiliary_logits, teacher_logits, labels, alpha=alpha, **softened)
    final = jax.lax.stop_gradient(student_logits)
    from_final = kl_divergence(final, auxiliary_logits, **softened)
    own = beta * from_final + (1.0 - beta) * cross_entropy(auxiliary_logits, labels, where=where)
    return cross_entropy(student_logits, labels, where=where) + awake * (kd + own)


class SkepticalCNN(nn.Module):
    """`distill_core.models.CNN` with an auxiliary head after an inner block.

    The auxiliary head has the form of the final one: a hidden dense layer with norm and ReLU, then
    one to the classes. It is sown as `auxiliary_logits` and costs nothing at inference.

    Attributes:
      num_classes: C.
      widths: channels of each convolution; each block halves the image.
      hidden: width of the dense layer of each head, also of the features.
      auxiliary_block: after which block the auxiliary head sits, from 1; 0 is the last but one (of
        a single block, that one).
      norm: "batch", "group" or "none".
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64, 128)
    hidden: int = 128
    auxiliary_block: int = 0
    norm: str = "batch"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, where: jax.Array | None = None
    ) -> jax.Array:
        """Images float32 [B, H, W, channels] to logits [B, C]; `where` bool [B] masks examples.

        Raises:
          InputError: if the images do not survive the pooling, or there is no such block.
        """

        norm = functools.partial(normalise, self.norm, train=train, where=where)

        def hidden(x: jax.Array) -> jax.Array:
            return nn.relu(norm(dense(x.reshape(x.shape[0], -1), self.hidden)))

        blocks = len(self.widths)
        if not 0 <= self.auxiliary_block <= blocks or not blocks:
            allowed = f"must be a block of widths, in [1, {blocks}], or 0 for the last but one"
            raise InputError("model_kwargs.auxiliary_block", self.auxiliary_block, allowed)
        inner = self.auxiliary_block or max(blocks - 1, 1)
        check_images(x, min_size=2**blocks)
        x = mask_examples(x, where)
        for block, width in enumerate(self.widths, start=1):
            x = nn.relu(max_pool_2x2(norm(conv(x, width, use_bias=True))))
            if block == inner:
                self.sow("intermediates", SOWN, dense(hidden(x), self.num_classes))
        x = hidden(x)
        self.sow("intermediates", "features", x)
        return dense(x, self.num_classes)


def check_auxiliary(network: Network):
    """Refuses, on shapes alone, a network without the head that the attack needs.

    Raises:
      InputError: on `model`.
    """
    images = jax.ShapeDtypeStruct((2, *network.input_shape), jnp.float32)
    variables, key = network.shapes(), jax.eval_shape(jax.random.key, 0)
    params = variables.pop("params")
    _, _, sown = jax.eval_shape(network.train_apply_sown, params, variables, images, key)
    if SOWN not in sown or sown[SOWN].shape != (2, network.num_classes):
        allowed = (
            f"a skeptical student needs an auxiliary head that sows `{SOWN}` "
            f"[B, {network.num_classes}]; take nasty.attacks.skeptical:SkepticalCNN"
        )
        raise InputError("model", network.model, allowed)
