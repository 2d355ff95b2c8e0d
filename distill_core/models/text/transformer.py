"""A decoder-only transformer in GPT-2's architecture, of any size."""

import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from distill_core.config import InputError
from distill_core.models.text import layers
from distill_core.models.text.attention import attend, attend_next
from distill_core.models.text.segments import places_in_line
from distill_core.runtime import sharding

Array = jax.Array
_INIT = nn.initializers.normal(0.02)


class Transformer(nn.Module):
    """Pre-norm blocks, learned positions, tanh-GELU, tied embeddings (Radford et al., 2019).

    Parameters correspond one to one, in name and shape, to those of GPT-2's published weights (see
    `gpt2`). There is no dropout.

    Attributes:
      vocab_size: V.
      max_length: the most positions of a line.
      num_layers, num_heads, width: of the blocks; width D must be divisible by num_heads.
      dtype: of the arithmetic, "float32" or "bfloat16"; parameters, softmax and norms stay float32.
      remat: compute each block's activations again in the backward pass, rather than keep them.
    """

    vocab_size: int
    max_length: int
    num_layers: int = 2
    num_heads: int = 4
    width: int = 128
    dtype: str = "float32"
    remat: bool = False

    gathers: ClassVar[bool] = True  # parameters split over a mesh, layer by layer

    def setup(self):
        if self.num_heads < 1 or self.width % self.num_heads:
            allowed = f"must be divisible by num_heads, {self.num_heads}"
            raise InputError("model_kwargs.width", self.width, allowed)
        if self.num_layers < 1:
            raise InputError("model_kwargs.num_layers", self.num_layers, "must be positive")
        self.wte = self.param("wte", _INIT, (self.vocab_size, self.width))
        self.wpe = self.param("wpe", nn.initializers.normal(0.01), (self.max_length, self.width))
        block = nn.remat(Block) if self.remat else Block
        self.h = [
            block(self.num_heads, self.num_layers, jnp.dtype(self.dtype))
            for _ in range(self.num_layers)
        ]
        self.ln_f = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)

    def hidden(self, tokens: Array, segments: Array | None = None) -> Array:
        """Hidden states `[B, L, D]` in `dtype`; logits = hidden · `embedding()`ᵀ.

        Args:
          tokens: integers `[B, L]` in [0, V), L at most `max_length`.
          segments: integers `[B, L]`, the line of each position. A position attends to its own line
            alone and is counted from the line's start, so that packed lines give what they give
            alone. None: the row is one line.

        Returns:
          `[B, L, D]` in `dtype`.
        """
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= self.max_length:
            allowed = f"must be tokens [B, L], L from 1 to max_length, {self.max_length}"
            raise InputError("input", tuple(tokens.shape), allowed)
        length = tokens.shape[1]
        places = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        if segments is not None:
            places = places_in_line(segments)
        # Weights may be NumPy arrays, which take no traced indices.
        tables = {"wte": jnp.asarray(self.wte), "wpe": jnp.asarray(self.wpe)}
        x = sharding.with_whole(self._embedded, tables, tokens, places, dtype=self.dtype)
        for block in self.h:
            x = layers.call(block, x, segments, dtype=self.dtype)
        return self.ln_f(x).astype(self.dtype)

    def _embedded(self, tables: Mapping[str, Array], tokens: Array, places: Array) -> Array:
        x = tables["wte"][tokens].astype(jnp.float32) + tables["wpe"][places]
        return x.astype(self.dtype)

    def next_hidden(self, tokens: Array, place: Array) -> Array:
        """Hidden states `[B, D]` of one further token per line, as `hidden` gives them.

        What came before is in the collection `cache`, which changes; see `Network.next_hidden`.

        Args:
          tokens: integers `[B]` in [0, V).
          place: integers `[B]`, the token's place in its line, below `max_length`.

        Returns:
          `[B, D]` in `dtype`.
        """
        wte, wpe = jnp.asarray(self.wte), jnp.asarray(self.wpe)
        x = (wte[tokens].astype(jnp.float32) + wpe[place]).astype(self.dtype)[:, None]
        for block in self.h:
            x = block(x, None, place)
        return self.ln_f(x).astype(self.dtype)[:, 0]

    def embedding(self) -> Array:
        """The token embedding, `[V, D]`, float32."""
        return self.wte

    def __call__(self, tokens: Array, segments: Array | None = None) -> Array:
        """Logits, float32 `[B, L, V]`: at each position for the next token."""
        hidden = self.hidden(tokens, segments)
        embedding = self.wte.astype(self.dtype)
        return jnp.einsum("bld,vd->blv", hidden, embedding, preferred_element_type=jnp.float32)


class Block(nn.Module):
    """Attention and an MLP, each on the normalised residual stream and added to it."""

    num_heads: int
    num_layers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, segments: Array | None, place: Array | None = None) -> Array:
        """x `[B, L, D]`, segments as in `Transformer.hidden` -> `[B, L, D]`.

        With `place` [B] x is `[B, 1, D]`, and what precedes it is in the cache; see `attend_next`.
        """
        width = x.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_INIT)
        # GPT-2 initialises what is added to the stream smaller, the more layers add to it.
        shrunk = nn.initializers.normal(0.02 / (2 * self.num_layers) ** 0.5)
        y = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="ln_1")(x)
        q, k, v = jnp.split(dense(3 * width, name="attn_c_attn")(y), 3, axis=-1)
        q, k, v = (_heads(part, self.num_heads) for part in (q, k, v))
        y = attend(q, k, v, segments) if place is None else attend_next(self, q, k, v, place)
        x = x + dense(width, kernel_init=shrunk, name="attn_c_proj")(y.reshape(x.shape))
        y = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="ln_2")(x)
        y = nn.gelu(dense(4 * width, name="mlp_c_fc")(y), approximate=True)
        return x + dense(width, kernel_init=shrunk, name="mlp_c_proj")(y)


def _heads(x: Array, num_heads: int) -> Array:
    return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)
