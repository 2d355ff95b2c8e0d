"""Continues texts, token by token."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.config import InputError
from distill_core.models.network import Network
from distill_core.training import chunked

Array = jax.Array
PyTree = Any


def generate(
    network: Network,
    variables: PyTree,
    prompts: np.ndarray,
    lengths: np.ndarray,
    *,
    num_tokens: int,
    key: Array | None = None,
    temperature: float = 0.0,
) -> Array:
    """What a language model says after each prompt, int32 `[B, num_tokens]`.

    One scan over the P + num_tokens − 1 positions, with keys and values of earlier ones kept:
    compiled once per shape. Prompts may differ in length. Nothing stops at `<eos>`.

    Args:
      network, variables: a network of text with the method `next_hidden`, and its weights.
      prompts: int32 `[B, P]`, token ids, `<bos>` included; what is behind `lengths` does not count.
      lengths: int32 `[B]`, tokens of each prompt, 1 to P.
      num_tokens: further tokens per prompt.
      key: of the draws, for a temperature above 0.
      temperature: T of softmax(logits / T), which each token is drawn from; at 0 the likeliest one.

    Raises:
      InputError: on `num_tokens`, `lengths` or `temperature`, outside their range; on `num_tokens`,
        if a line would be longer than the network's; on `model`, if it cannot continue a text.
    """
    width = np.shape(prompts)[1]
    if num_tokens < 1:
        raise InputError("num_tokens", num_tokens, "must be at least 1")
    shortest, longest = int(np.min(lengths)), int(np.max(lengths))
    if shortest < 1 or longest > width:
        given, allowed = (shortest, longest), f"must be from 1 to {width}, the prompts' width"
        raise InputError("lengths", given, allowed)
    if temperature < 0 or (temperature > 0 and key is None):
        allowed = "must be 0, for the likeliest token, or above it, with a key to draw by"
        raise InputError("temperature", temperature, allowed)
    if network.is_bounded and (limit := network.max_length or 0) < width + num_tokens - 1:
        most = max(limit - width + 1, 0)
        allowed = f"must be at most {most}: prompts of {width} and a network of {limit} positions"
        raise InputError("num_tokens", num_tokens, allowed)
    key = key if temperature > 0 else None
    return _generate(network, num_tokens, variables, prompts, lengths, key, temperature)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(network: Network, num_tokens: int, variables, prompts, lengths, key, temperature):
    batch, width = prompts.shape
    steps = width + num_tokens - 1
    given = jnp.pad(jnp.asarray(prompts, jnp.int32), ((0, 0), (0, num_tokens - 1)))

    def one(carry, place):
        cache, last = carry
        tokens = jnp.where(place < lengths, given[:, place], last)
        states, embedding, cache = network.next_hidden(variables, cache, tokens, place)
        logits = chunked.logits(states, embedding)
        if key is None:
            found = jnp.argmax(logits, axis=-1)
        else:
            found = jax.random.categorical(jax.random.fold_in(key, place), logits / temperature)
        found = found.astype(jnp.int32)
        return (cache, found), found

    empty = network.empty_cache(variables, batch, steps)
    start = (empty, jnp.zeros(batch, jnp.int32))
    _, said = jax.lax.scan(one, start, jnp.arange(steps))  # [steps, B]
    places = lengths[:, None] - 1 + jnp.arange(num_tokens)[None]
    return said[places, jnp.arange(batch)[:, None]]
