"""A checkpoint as the functions that the estimators ask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from distill_core.models.network import LoadedModel, Network
from distill_core.training import chunked
from swingdistill.canaries.secrets import Candidates, Lines


def asked(loaded: LoadedModel, candidates: Candidates | Lines):
    """What `estimators.rank` asks about candidates of this kind."""
    return line_fn(loaded) if isinstance(candidates, Lines) else logits_fn(loaded)


def logits_fn(loaded: LoadedModel):
    """`tokens int32 [B, L] -> logits [B, V]` after the last token."""
    return functools.partial(_last, loaded.network, jax.device_put(loaded.variables))


def line_fn(loaded: LoadedModel):
    """`(tokens int32 [B, L], weights float32 [B, L]) -> [B]`, weighted −ln p; see `estimators`.

    Logits are computed from the first token that counts, some positions at a time.
    """
    variables = jax.device_put(loaded.variables)

    def of_lines(tokens, weights):
        start = int(np.argmax(np.any(weights > 0, axis=0))) or 1
        return _lines(loaded.network, start, variables, tokens, weights)

    return of_lines


@functools.partial(jax.jit, static_argnums=0)
def _last(network: Network, variables, tokens):
    states, embedding = network.hidden(variables, tokens)
    return chunked.logits(states[:, -1], embedding)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _lines(network: Network, start: int, variables, tokens, weights):
    # The last token is asked for and never read. What is padded stands behind all that counts.
    states, embedding = network.hidden(variables, tokens[:, :-1])
    values, _ = chunked.cross_entropy_from_hidden(
        states[:, start - 1 :], embedding, tokens[:, start:]
    )
    return jnp.sum(weights[:, start:] * values, axis=1)
