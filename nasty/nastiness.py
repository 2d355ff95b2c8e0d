"""Does a teacher damage its students? A cheap check right after training (our reconstruction).

Two small proxy students, equal in everything but the teacher, are distilled from stored logits: one
from the new teacher, one from its normal adversary. The teacher is called nasty if its student ends
clearly below the other on images that neither saw. Only training images are used. The arithmetic
of the whole check stays below a tenth of the training's.
"""

import functools
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import linen as nn

from distill_core import checkpoint, classification, evaluate, parallel
from distill_core.data import Split, sampling
from distill_core.losses import distillation_loss
from nasty import throughput

ALPHA = 0.9  # the paper's weight of the distillation term
# Small batches: many updates for the arithmetic. Below MIN_STEPS proxies of two normal networks
# differ by more than `needed_gap`.
BATCH, MAX_STEPS, MIN_STEPS, MAX_IMAGES = 32, 600, 80, 20_000
MIN_IMAGES = 256
HELD_SHARE = 0.3
HIDDEN = 64
SHARE_OF_TRAINING = 0.1
LEAST_GAP = 0.02


class Nastiness(NamedTuple):
    """Verdict of the check; accuracies are fractions on held-out training images.

    `cost` is the check's arithmetic as a share of the training's. Where the training was too short
    to afford a check, the verdict and the accuracies are None.
    """

    nasty: bool | None
    student_of_teacher: float | None
    student_of_adversary: float | None
    needed_gap: float
    cost: float


class _Proxy(nn.Module):
    """A perceptron with one hidden layer: hardly any arithmetic, and weak students suffer most."""

    num_classes: int
    hidden: int = HIDDEN

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(x)


def check_run(
    workdir: epath.PathLike,
    adversary: checkpoint.LoadedModel,
    splits: classification.Splits,
    hp: Mapping[str, Any],
) -> dict[str, Any]:
    """Checks the teacher in a finished workdir, prints the verdict, writes `nastiness.json`."""
    teacher = checkpoint.load_model(workdir)
    found = check(
        teacher,
        adversary,
        splits.train,
        temperature=hp["temperature"],
        training_examples=hp["num_steps"] * hp["batch_size"],
    )
    if parallel.is_main():
        checkpoint.write_atomically(
            epath.Path(workdir) / "nastiness.json", json.dumps(found._asdict(), indent=1)
        )
        print(describe(found), flush=True)
    return found._asdict()


def describe(found: Nastiness) -> str:
    """The verdict in one line."""
    if found.nasty is None:
        return "nastiness check: the training was too short for a check at a tenth of its cost"
    verdict = "nasty" if found.nasty else "NOT nasty: raise omega or train longer"
    return (
        f"nastiness check: {verdict} (proxy student of this teacher "
        f"{found.student_of_teacher:.3f}, of its adversary {found.student_of_adversary:.3f}, "
        f"needed gap {found.needed_gap:.3f}; {found.cost:.1%} of the training's arithmetic)"
    )


def check(
    teacher: checkpoint.LoadedModel,
    adversary: checkpoint.LoadedModel,
    images: Split,
    *,
    temperature: float,
    training_examples: int,
    seed: int = 0,
) -> Nastiness:
    """Distils a proxy from each of two networks and compares them.

    Args:
      teacher: the network under suspicion.
      adversary: the normal network to compare with.
      images: training images; 30% of those used are kept from the proxies, to measure on.
      temperature: of the distillation, as an attacker would choose it: the teacher's own τ.
      training_examples: batch size times steps of the teacher's training, which sets the budget.
      seed: of the proxies and of the choice of images.
    """
    shape = images.images.shape[1:]
    forward = [throughput.forward_flops(model, shape) for model in (teacher, adversary)]
    # A backward pass counts as two forward passes. Every network answers an image once.
    training = training_examples * (3 * forward[0] + forward[1])
    proxy = 2 * HIDDEN * (math.prod(shape) + teacher.spec["num_classes"])
    per_image = sum(forward) + 2 * HELD_SHARE * proxy
    per_step = 2 * 3 * BATCH * proxy
    budget = 0.9 * SHARE_OF_TRAINING * training
    count = int(min(len(images), MAX_IMAGES, 0.5 * budget / per_image))
    steps = int(min(MAX_STEPS, (budget - count * per_image) / per_step))
    if steps < MIN_STEPS or count < MIN_IMAGES:
        return Nastiness(None, None, None, LEAST_GAP, 0.0)

    rows = np.random.default_rng(seed).permutation(len(images))[:count]
    pixels, labels = images.images[rows], images.labels[rows]
    cut = int(count * (1 - HELD_SHARE))
    accuracies = []
    for model in (teacher, adversary):
        logits = evaluate.compute_logits(model, pixels)
        accuracies.append(
            _distilled_accuracy(
                _flat(pixels), labels, logits, cut, temperature=temperature, steps=steps, seed=seed
            )
        )
    held = count - cut
    error = np.sqrt(sum(a * (1 - a) / held for a in accuracies))
    needed = max(LEAST_GAP, 2 * float(error))
    cost = (count * per_image + steps * per_step) / training
    of_teacher, of_adversary = accuracies
    return Nastiness(of_adversary - of_teacher >= needed, of_teacher, of_adversary, needed, cost)


def _distilled_accuracy(pixels, labels, logits, cut, *, temperature, steps, seed) -> float:
    proxy: Any = _Proxy(logits.shape[1])
    params = proxy.init(jax.random.key(seed), pixels[:1])
    step, tx = _proxy_step(proxy, steps)
    opt_state = tx.init(params)
    for i in range(steps):
        rows = sampling.batch_indices(seed, i, BATCH, cut)
        params, opt_state = step(
            params, opt_state, pixels[rows], logits[rows], labels[rows], jnp.float32(temperature)
        )
    found = jnp.argmax(proxy.apply(params, pixels[cut:]), axis=-1)
    return float(np.mean(np.asarray(found) == labels[cut:]))


@functools.lru_cache(maxsize=8)
def _proxy_step(proxy: Any, steps: int):
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    @jax.jit
    def step(params, opt_state, pixels, logits, labels, temperature):
        def loss(params):
            values = distillation_loss(
                proxy.apply(params, pixels), logits, labels, temperature=temperature, alpha=ALPHA
            )
            return jnp.mean(values)

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step, tx


def _flat(pixels: np.ndarray) -> np.ndarray:
    scale = 255.0 if pixels.dtype == np.uint8 else 1.0
    flat = pixels.reshape(len(pixels), -1).astype(np.float32) / scale
    return flat - 0.5
