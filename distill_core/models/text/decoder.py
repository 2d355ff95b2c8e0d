"""A decoder-only transformer as Llama, Mistral, Qwen and Gemma have it, of any size."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from distill_core.config import InputError
from distill_core.models.text import layers
from distill_core.models.text.attention import attend, attend_next
from distill_core.models.text.rotary import frequencies, rotate
from distill_core.models.text.segments import places_in_line
from distill_core.runtime import sharding

Array = jax.Array
_INIT = nn.initializers.normal(0.02)


class Decoder(nn.Module):
    """Pre-norm blocks with RMSNorm, rotary positions, grouped-query attention and SwiGLU.

    The networks of Llama 2 and 3, SmolLM2, Mistral, Qwen2, Qwen3 and Gemma 3; parameters correspond
    one to one to those of their published weights (see `foreign.decoders`). There is no dropout.

    Attributes:
      vocab_size: V.
      num_layers, num_heads, width: of the blocks; D is the width.
      num_kv_heads: heads of keys and values, a divisor of num_heads; by default num_heads.
      head_dim: d of a head, even; by default width / num_heads.
      mlp_width: by default 8/3 of the width, rounded up to a multiple of 8.
      rope_theta, rope_scaling: see `rotary.frequencies`.
      norm_epsilon: ε of the norms.
      qkv_bias: whether queries, keys and values have biases (Qwen2).
      qk_norm: whether each head's queries and keys are normalised (Qwen3, Gemma 3).
      tied: whether the head is the embedding.
      window: positions that a position sees, itself included; None for all that precede it.
      full_layers: so many first layers see all positions all the same.
      full_every: so does each layer whose number, from 1, this divides (Gemma 3).
      local_rope_theta: theta of all other layers, then without scaling; by default the same.
      query_scalar: queries are divided by its root; by default by that of head_dim.
      gemma: norms multiply by 1 + scale, and also apply to what attention and MLP add to the
        stream; embeddings are multiplied by √D; GELU by tanh in place of SiLU.
      dtype: of the arithmetic, "float32" or "bfloat16"; parameters, softmax and norms stay float32.
      remat: compute each block's activations again in the backward pass, rather than keep them.
    """

    vocab_size: int
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int | None = None
    head_dim: int | None = None
    width: int = 128
    mlp_width: int | None = None
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] | None = None
    norm_epsilon: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = True
    window: int | None = None
    full_layers: int = 0
    full_every: int | None = None
    local_rope_theta: float | None = None
    query_scalar: float | None = None
    gemma: bool = False
    dtype: str = "float32"
    remat: bool = False

    bounded: ClassVar[bool] = False  # rotary positions end nowhere
    gathers: ClassVar[bool] = True  # parameters split over a mesh, layer by layer

    def setup(self):
        heads, groups = self.num_heads, self.num_kv_heads or self.num_heads
        if heads < 1 or (self.head_dim is None and self.width % heads):
            allowed = f"must be divisible by num_heads, {heads}, or head_dim be given"
            raise InputError("model_kwargs.width", self.width, allowed)
        head_dim = self.head_dim or self.width // heads
        for name, value, fits, allowed in (
            ("num_layers", self.num_layers, self.num_layers > 0, "must be positive"),
            ("num_kv_heads", groups, groups > 0 and heads % groups == 0, f"must divide {heads}"),
            ("head_dim", head_dim, head_dim % 2 == 0, "must be even"),
        ):
            if not fits:
                raise InputError(f"model_kwargs.{name}", value, allowed)
        for name in ("window", "full_every", "local_rope_theta", "query_scalar"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise InputError(f"model_kwargs.{name}", value, "must be positive")
        far = (self.rope_theta, self.rope_scaling)
        near = far if self.local_rope_theta is None else (self.local_rope_theta, None)
        ropes = [frequencies(head_dim, *each) for each in (far, near)]
        every = self.full_every or self.num_layers + 1
        local = [i >= self.full_layers and (i + 1) % every != 0 for i in range(self.num_layers)]
        make = nn.remat(Block) if self.remat else Block
        self.embed_tokens = self.param("embed_tokens", _INIT, (self.vocab_size, self.width))
        if not self.tied:
            self.lm_head = self.param("lm_head", _INIT, (self.vocab_size, self.width))
        self.layers = [
            make(
                num_heads=heads,
                num_kv_heads=groups,
                head_dim=head_dim,
                mlp_width=self.mlp_width or default_mlp_width(self.width),
                rope=(tuple(ropes[is_local][0].tolist()), ropes[is_local][1]),
                norm_epsilon=self.norm_epsilon,
                qkv_bias=self.qkv_bias,
                qk_norm=self.qk_norm,
                window=self.window if is_local else None,
                query_factor=(head_dim / (self.query_scalar or head_dim)) ** 0.5,
                gemma=self.gemma,
                dtype=jnp.dtype(self.dtype),
            )
            for is_local in local
        ]
        self.norm = (_OffsetNorm if self.gemma else nn.RMSNorm)(epsilon=self.norm_epsilon)

    def hidden(self, tokens: Array, segments: Array | None = None) -> Array:
        """Hidden states of all positions; logits = hidden · `embedding()`ᵀ.

        Args:
          tokens: integers `[B, L]` in [0, V), of any L.
          segments: integers `[B, L]`, the line of each position, as in `Transformer.hidden`;
            None: the row is one line.

        Returns:
          `[B, L, D]` in `dtype`.
        """
        if tokens.ndim != 2 or tokens.shape[1] < 1:
            raise InputError("input", tuple(tokens.shape), "must be tokens [B, L], L at least 1")
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        if segments is not None:
            places = places_in_line(segments)
        # Weights may be NumPy arrays, which take no traced indices.
        table = {"embed_tokens": jnp.asarray(self.embed_tokens)}
        x = sharding.with_whole(self._embedded, table, tokens, dtype=self.dtype)
        for layer in self.layers:
            x = layers.call(layer, x, places, segments, dtype=self.dtype)
        return self.norm(x).astype(self.dtype)

    def _embedded(self, table: Mapping[str, Array], tokens: Array) -> Array:
        x = table["embed_tokens"][tokens].astype(self.dtype)
        return x * jnp.asarray(self.width**0.5, self.dtype) if self.gemma else x

    def next_hidden(self, tokens: Array, place: Array) -> Array:
        """Hidden states of one further token per line, as `Transformer.next_hidden`.

        Args:
          tokens: integers `[B]` in [0, V).
          place: integers `[B]`, the token's place in its line, of any size.

        Returns:
          `[B, D]` in `dtype`.
        """
        x = self._embedded({"embed_tokens": jnp.asarray(self.embed_tokens)}, tokens)[:, None]
        for layer in self.layers:
            x = layer(x, place[:, None], None, place)
        return self.norm(x).astype(self.dtype)[:, 0]

    def embedding(self) -> Array:
        """The head, `[V, D]`: the token embedding where they are tied."""
        return self.embed_tokens if self.tied else self.lm_head

    def __call__(self, tokens: Array, segments: Array | None = None) -> Array:
        """Logits, float32 `[B, L, V]`: at each position for the next token."""
        hidden, head = self.hidden(tokens, segments), self.embedding().astype(self.dtype)
        return jnp.einsum("bld,vd->blv", hidden, head, preferred_element_type=jnp.float32)


def default_mlp_width(width: int) -> int:
    """8/3 of the width, so that three matrices have as many parameters as two of 4 times it,
    rounded up to a multiple of 8."""
    return -(-width // 3) * 8


class Block(nn.Module):
    """Attention and an MLP, each on the normalised residual stream and added to it."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int
    rope: tuple[tuple[float, ...], float]
    norm_epsilon: float
    qkv_bias: bool
    qk_norm: bool
    window: int | None
    query_factor: float
    gemma: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Array, places: Array, segments: Array | None, place: Array | None = None
    ) -> Array:
        """x `[B, L, D]`, places `[B or 1, L]`, segments as in `Decoder.hidden` -> `[B, L, D]`.

        With `place` [B] L is 1, and what precedes it is in the cache; see `attend_next`.
        """
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_INIT, use_bias=False)
        kind = _OffsetNorm if self.gemma else nn.RMSNorm
        norm = functools.partial(kind, epsilon=self.norm_epsilon)
        y = norm(name="input_layernorm")(x)
        q, k, v = (
            dense(heads * self.head_dim, use_bias=self.qkv_bias, name=f"{name}_proj")(y).reshape(
                *x.shape[:2], heads, self.head_dim
            )
            for name, heads in zip("qkv", (self.num_heads, *2 * (self.num_kv_heads,)), strict=True)
        )
        if self.qk_norm:
            q, k = norm(name="q_norm")(q), norm(name="k_norm")(k)
        q = q if self.query_factor == 1 else q * self.query_factor
        angles, factor = self.rope
        q, k = (
            rotate(each.astype(self.dtype), places, np.array(angles), factor) for each in (q, k)
        )
        if place is None:
            y = attend(q, k, v, segments, window=self.window)
        else:
            y = attend_next(self, q, k, v, place, self.window)
        y = dense(x.shape[-1], name="o_proj")(y.reshape(*x.shape[:2], -1))
        if self.gemma:
            y = norm(name="post_attention_layernorm")(y).astype(self.dtype)
        x = x + y
        y = norm(name=f"{'pre_feedforward' if self.gemma else 'post_attention'}_layernorm")(x)
        gated = (nn.gelu if self.gemma else nn.silu)(dense(self.mlp_width, name="gate_proj")(y))
        gated *= dense(self.mlp_width, name="up_proj")(y)
        y = dense(x.shape[-1], name="down_proj")(gated)
        if self.gemma:
            y = norm(name="post_feedforward_layernorm")(y).astype(self.dtype)
        return x + y


class _OffsetNorm(nn.Module):
    """RMSNorm that multiplies by 1 + `scale`; returns float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        y = nn.RMSNorm(epsilon=self.epsilon, use_scale=False, dtype=jnp.float32)(x)
        return y * jnp.broadcast_to(1 + jnp.asarray(scale, jnp.float32), y.shape)
