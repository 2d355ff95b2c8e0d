"""A fresh classifier, trained on generated samples labelled by the student.

Student and generator are public after a private run, so this is post-processing and spends nothing.
Our reconstruction.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_core import config
from distill_core.checkpoint import LoadedModel
from distill_core.data import sampling
from distill_core.data.images import augment
from distill_core.data.images.dataset import Split
from distill_core.evaluate import compute_logits
from distill_core.losses import kl_divergence
from distill_core.models import checks
from distill_core.models.network import Network
from distill_core.runtime import parallel
from distill_core.training import metrics
from distill_core.training.optimizers import Optimizer
from distill_core.training.step import (
    STREAM_INIT,
    Outputs,
    TrainState,
    Update,
    per_example,
    stream_key,
)
from dpdfd.bank import choose_balanced
from dpdfd.conversion import Prior

_DRAWN = 9  # stream of the draws; the network's own keys fold in others
_DRAWN_FROM_PRIOR = 900  # stream of a seed's images; a conversion's queries have those from 0 on
_CANDIDATES = 2  # draws for a sample at most, where a class is rare

SOURCES = ("generator", "prior")
_FIELDS = {
    "source": config.choice(*SOURCES),
    "temperature": config.number(0.0, above=True),
    "num_samples": config.integer(1),
    "num_steps": config.integer(1),
    "batch_size": config.integer(1),
    "learning_rate": config.number(0.0, above=True),
    "crop_padding": config.integer(0, default=None),
    "seed": config.integer(0, 2**32 - 1),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a fresh classifier is made.

    Attributes:
      model, model_kwargs: of the new network; by default the student's.
      source: "generator", the network; or "prior", what the conversion's queries came from: code,
        and bought moments if it has any.
      num_samples: N, generated images, at least 1.
      num_steps: of Adam, at least 1.
      batch_size: B, at least 1.
      learning_rate: above 0, of the first step; it falls to 0 along a cosine.
      temperature: above 0, of labels and network in the loss.
      crop_padding: every image is shifted by up to so many pixels, anew at every step; by default a
        fourteenth of the image's side.
      seed: of the samples, the weights, the order and the shifts, at least 0.

    Raises:
      InputError: a value outside its range, or settings without a model.
    """

    model: str | None = None
    model_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: str = "generator"
    num_samples: int = 5000
    num_steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 2e-3
    temperature: float = 1.0
    crop_padding: int | None = None
    seed: int = 0

    def __post_init__(self):
        config.validate({name: getattr(self, name) for name in _FIELDS}, _FIELDS)
        if self.model is None and self.model_kwargs:
            allowed = "belong to a model: name it, or leave them out"
            raise config.InputError("model_kwargs", dict(self.model_kwargs), allowed)


def network(student: LoadedModel, recipe: Recipe) -> Network:
    """The recipe's network with the student's inputs and classes; raises InputError."""
    augment.check_padding(recipe.crop_padding or 0, *student.network.input_shape[:2])
    if recipe.model is None:
        return student.network
    found = dataclasses.replace(
        student.network, model=recipe.model, model_kwargs=recipe.model_kwargs
    )
    checks.check(found)
    return found


def draw_samples(
    student: LoadedModel, generator: LoadedModel, recipe: Recipe, prior: Prior | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Generated images, as equally over the student's classes as two draws each allow.

    `prior` is the conversion's, for a recipe whose source it is.

    Returns:
      uint8 [N, H, W, C], and the student's probabilities of those very pixels, float32 [N, K].
    """
    num, images, probs = recipe.num_samples, [], []
    for i in range(_CANDIDATES):
        images.append(_draw(generator, recipe, prior, i))
        logits = compute_logits(student, images[-1])
        probs.append(np.asarray(jax.nn.softmax(logits), np.float32))
        found = np.bincount(np.concatenate(probs).argmax(-1), minlength=logits.shape[1])
        if found.min() >= num // logits.shape[1]:
            break
    rows = choose_balanced(np.concatenate(probs), num)
    return np.concatenate(images)[rows], np.concatenate(probs)[rows]


def _draw(generator: LoadedModel, recipe: Recipe, prior: Prior | None, number: int) -> np.ndarray:
    """uint8 [N, H, W, C], draw `number` of them."""
    module, num = generator.network.module(), recipe.num_samples
    if recipe.source == "prior":
        assert prior is not None
        images = prior.draw(recipe.seed, module.image_shape, _DRAWN_FROM_PRIOR + number, num)
    else:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), _DRAWN), number)
        images = module.sample(jax.device_put(generator.variables), key, num)
    return np.round(np.asarray(images) * 255).astype(np.uint8)


def fit_soft_labels(
    network: Network, images: np.ndarray, probs: np.ndarray, recipe: Recipe
) -> LoadedModel:
    """A network trained by KL(labels ‖ network) on softly labelled images, on one device.

    Args:
      network: without its weights.
      images: uint8 [N, H, W, C].
      probs: float [N, K], rows of the probability simplex.
      recipe: how it is trained.

    Raises:
      InputError: a batch too small for its batch statistics.
    """
    checks.check_statistics(network, recipe.batch_size, "jit")
    padding = recipe.crop_padding
    if padding is None:
        padding = min(images.shape[1:3]) // 14
    optimizer = Optimizer(
        optimizer="adam",
        learning_rate=recipe.learning_rate,
        num_steps=recipe.num_steps,
        schedule="cosine",
    )
    objective = SoftLabels(network, padding, recipe.temperature)
    update = parallel.wrap(Update(objective, optimizer), "jit", donate=True)
    rng = jax.random.key(recipe.seed)
    params, model_state = network.init(stream_key(rng, STREAM_INIT, 0))
    state = TrainState.create(params=params, model_state=model_state, tx=optimizer.make(), rng=rng)
    samples = jax.device_put({"images": images, "probs": np.asarray(probs, np.float32)})
    for i in range(recipe.num_steps):
        rows = sampling.batch_indices(recipe.seed, i, recipe.batch_size, len(images))
        state, _ = update(state, samples, rows.astype(np.int32))
    variables = jax.device_get({"params": state.params, **state.model_state})
    return LoadedModel(variables, network)


@dataclasses.dataclass(frozen=True)
class SoftLabels:
    """An objective: soft labels of samples, which are `frozen`; the batch is rows of them."""

    network: Network
    crop_padding: int
    temperature: float

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        """τ² KL(labels ‖ network) on shifted images, both softened by the temperature τ."""
        images, probs = frozen["images"][batch], frozen["probs"][batch]
        if self.crop_padding:
            place = jnp.arange(len(batch))
            images = augment.augment(key, images, place, crop_padding=self.crop_padding)
        dropout = jax.random.fold_in(key, 1)
        logits, model_state = self.network.train_apply(params, model_state, images, dropout)
        log_probs, tau = jnp.log(jnp.maximum(probs, 1e-30)), self.temperature
        values = tau**2 * kl_divergence(log_probs, logits, temperature=tau)
        return per_example(values, model_state)


def accuracy(model: LoadedModel, split: Split) -> float:
    """Accuracy on a split, whole and unaugmented."""
    logits = compute_logits(model, split.images)
    return float(np.mean(metrics.correct(jnp.asarray(logits), jnp.asarray(split.labels))))
