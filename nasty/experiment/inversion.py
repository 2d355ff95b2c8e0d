"""DeepInversion: what inputs does a classifier have in mind for a class?

Images are optimised from noise until a frozen network puts them in the wanted classes and its batch
normalisations see the statistics that they saw in training. A stage of the experiment makes them
from both teachers, and compares them by number. After Yin et al., "Dreaming to Distill: Data-Free
Knowledge Transfer via DeepInversion", CVPR 2020.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import linen as nn
from numpy.typing import ArrayLike

from distill_core import checkpoint, config, evaluate
from distill_core.config import InputError
from distill_core.data.images.preprocess import preprocess
from distill_core.experiment.plotting import attempt
from distill_core.experiment.stages import Run
from distill_core.losses import cross_entropy
from distill_core.models.network import Network
from distill_core.models.norm import BatchNorm
from distill_core.training import fits
from nasty.experiment.figures import inversion_grid

Array = jax.Array
TEACHERS = ("normal", "nasty")
_TINY = float(np.finfo(np.float32).tiny)


@config.settings
class Inversion:
    """What an experiment may set.

    The terms of the loss are means, so that the weights serve any image and batch size; their
    values are ours. The cross-entropy has the weight 1.
    """

    images_per_class: int = config.integer(1, default=10, help="to reconstruct")
    num_steps: int = config.integer(1, default=1000, help="updates of the images")
    learning_rate: float = config.number(
        0.0, above=True, default=0.1, help="the first, in units of the pixels in [0, 1]"
    )
    statistics: float = config.number(0.0, default=1.0, help="weight of batch statistics")
    total_variation: float = config.number(0.0, default=0.05, help="weight of smoothness")
    l2: float = config.number(0.0, default=0.01, help="weight of the pixels' norm")


@config.settings
class Settings(Inversion):
    """Settings of the stage."""

    seed: int = config.integer(0, help="of the noise that images begin as")
    normal: str = config.text(help="the normal teacher's checkpoint")
    nasty: str = config.text(help="the nasty teacher's")
    judge: str = config.text(help="the checkpoint of another network, which judges the images")


def stage(chosen: Inversion, runs: Mapping[str, Run]) -> Run:
    """The stage on the teachers among one seed's `runs` by arm; the student alone is the judge."""
    judge = runs["student_alone"]
    inputs = {"judge": judge} | {name: runs[f"teacher_{name}"] for name in TEACHERS}
    settings = {**config.to_json(chosen), "seed": judge.seed}
    return Run("inversion", judge.seed, reconstruct, settings, inputs)


def reconstruct(
    settings: Mapping[str, Any], workdir: epath.PathLike, *, parallel: str | None = None
) -> dict[str, Any]:
    """Reconstructs images of every class from both teachers, from the same noise.

    Returns, for each teacher, its `confidence` in the wanted classes, the `noisiness` (mean total
    variation) of the images and `judge_accuracy`, the share that the judge puts in the wanted
    class: images in the mind of one network alone are noise to another. The last is our
    reconstruction of what the paper shows by transfer (its table 3). Writes `images.npz` and
    `inversion.png` into the workdir.
    """
    del parallel  # a batch of some hundred images at most
    hp = config.validate(settings, Settings)
    workdir = epath.Path(workdir)
    teachers = {name: checkpoint.load_model(getattr(hp, name)) for name in TEACHERS}
    judge, classes = checkpoint.load_model(hp.judge), teachers["normal"].network.classes
    for field, each in (("nasty", teachers["nasty"]), ("judge", judge)):
        fits.check_start(field, getattr(hp, field), each.network, teachers["normal"].network)
    labels = np.repeat(np.arange(len(classes)), hp.images_per_class)
    made, found = {}, {}
    for name, teacher in teachers.items():
        print(f"reconstructs {len(labels)} images from the {name} teacher", flush=True)
        images, confidence, _ = invert(teacher, labels, hp, seed=hp.seed)
        answers = evaluate.compute_logits(judge, images).argmax(-1)
        found[name] = {
            "confidence": float(confidence.mean()),
            "noisiness": float(total_variation(jnp.asarray(images)).mean()),
            "judge_accuracy": float(np.mean(answers == labels)),
        }
        made[name] = images
    with (workdir / "images.npz").open("wb") as file:
        np.savez(file, labels=labels, **made)
    attempt(inversion_grid, workdir / "inversion.png", made, labels, classes)
    return found


class Inverted(NamedTuple):
    """Reconstructed images float32 [B, H, W, C] in [0, 1], the network's own probability of the
    wanted class float32 [B], and the final value of each term of the loss, before its weight."""

    images: np.ndarray
    confidence: np.ndarray
    terms: dict[str, float]


class NormInput(NamedTuple):
    """What enters a batch normalisation, and the statistics that it keeps from its training."""

    inputs: Array  # [..., C]
    mean: Array  # [C]
    var: Array  # [C]


def total_variation(images: Array) -> Array:
    """Σ |down − here| + |right − here|, by the number of pixels and channels.

    images [B, H, W, C], any float dtype, to float32 [B]. Source: Yin et al., equation 3, which
    leaves the norm open; theirs is Euclidean and over the batch, this one does not depend on B.

    >>> print(total_variation(jnp.array([[0., 1.], [1., 1.]]).reshape(1, 2, 2, 1)))
    [0.5]
    """
    x = images.astype(jnp.float32)
    down = jnp.abs(x[:, 1:] - x[:, :-1]).sum((1, 2, 3))
    right = jnp.abs(x[:, :, 1:] - x[:, :, :-1]).sum((1, 2, 3))
    return (down + right) / np.prod(images.shape[1:])


def statistics_distance(seen: NormInput) -> Array:
    """‖μ(x) − μ_running‖₂ + ‖σ²(x) − σ²_running‖₂ over the channels of one normalisation.

    σ² is the biased variance of the batch. Returns float32 []; finite gradients also where batch
    and running statistics agree. Source: Yin et al., equation 4.
    """
    x = seen.inputs.astype(jnp.float32)
    x = x.reshape(-1, x.shape[-1])
    return _norm(x.mean(0) - seen.mean) + _norm(x.var(0) - seen.var)


def inversion_loss(
    logits: Array,
    labels: Array,
    standardised: Array,
    normalisations: Sequence[NormInput],
    *,
    weights: Mapping[str, float | Array],
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum of what an image of a class should be like, and its terms before weights.

    Args:
      logits: [B, K], of the frozen network at inference.
      labels: integers [B], the wanted classes.
      standardised: the images as the network sees them, [B, H, W, C].
      normalisations: as `watch_normalisations` collects them, of the same forward pass.
      weights: of `cross_entropy`, `total_variation`, `l2` and `statistics`.

    Source: Yin et al., equations 1 to 4.
    """
    terms = {
        "cross_entropy": cross_entropy(logits, labels).mean(),
        "total_variation": total_variation(standardised).mean(),
        "l2": jnp.square(standardised.astype(jnp.float32)).mean((1, 2, 3)).mean(),
        "statistics": sum((statistics_distance(each) for each in normalisations), jnp.float32(0)),
    }
    return jnp.stack([weights[name] * term for name, term in terms.items()]).sum(), terms


@contextmanager
def watch_normalisations() -> Iterator[list[NormInput]]:
    """Collects what enters every batch normalisation, ours or Flax's, that is applied inside.

    For networks of any make at inference; use the list within the trace that made it.
    """
    seen: list[NormInput] = []

    def watch(call, args, kwargs, context):
        layer = context.module
        if isinstance(layer, BatchNorm | nn.BatchNorm) and context.method_name == "__call__":
            mean, var = (layer.get_variable("batch_stats", name) for name in ("mean", "var"))
            if mean is not None and var is not None:
                inputs = args[0] if args else kwargs["x"]
                axis = getattr(layer, "axis", -1)  # of Flax's
                seen.append(NormInput(jnp.moveaxis(inputs, axis, -1), mean, var))
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        yield seen


def invert(
    model: checkpoint.LoadedModel, labels: ArrayLike, chosen: Inversion, *, seed: int
) -> Inverted:
    """Images that a classifier takes for the wanted classes, optimised from noise.

    All images at once, since the batch's statistics are matched: ask for the classes in about the
    shares of the training set, for ten images a class or more. Adam (β 0.5 and 0.9) on the pixels
    with a cosine decay, pixels clipped to [0, 1] after each step; at each step the images are
    rolled by up to a sixteenth of their size, as in the paper, but not flipped, which would make
    another class of many a digit.

    Args:
      model: an image classifier with batch normalisations; runs at inference.
      labels: integers [B] in [0, K).
      chosen: steps, learning rate and weights.
      seed: the same seed gives the same images, bit for bit on the same machine.

    Raises:
      InputError: the network has no batch normalisation.
    """
    network, wanted = model.network, np.asarray(labels, np.int32)
    _check_normalised(model, len(wanted))
    variables = jax.device_put(model.variables)
    terms = ("statistics", "total_variation", "l2")
    weights = {name: np.float32(getattr(chosen, name)) for name in terms}
    weights["cross_entropy"] = np.float32(1)
    key = jax.random.key(seed)
    shape = (len(wanted), *network.input_shape)
    channels = (1, 1, 1, -1)
    mean, std = (np.asarray(x, np.float32).reshape(channels) for x in (network.mean, network.std))
    images = jnp.clip(mean + std * jax.random.normal(key, shape), 0, 1)
    moments = _adam().init(images)
    given = (variables, wanted, weights)
    for i in range(chosen.num_steps):
        decay = 1 + np.cos(np.pi * i / chosen.num_steps)
        rate, number = np.float32(chosen.learning_rate * 0.5 * decay), np.int32(i)
        images, moments = _step(network, images, moments, given, rate, key, number)
    confidence, values = _finish(network, images, *given)
    final = {name: float(value) for name, value in values.items()}
    return Inverted(np.asarray(images), np.asarray(confidence), final)


def _check_normalised(model: checkpoint.LoadedModel, batch: int):
    """Refuses, on shapes alone, a network that has no statistics to match."""
    images = jax.ShapeDtypeStruct((batch, *model.network.input_shape), jnp.float32)

    def count(variables, images):
        with watch_normalisations() as seen:
            model.apply(variables, images)
        found.append(len(seen))

    found: list[int] = []
    jax.eval_shape(count, model.variables, images)
    if not found[0]:
        allowed = "has no batch normalisation, whose running statistics DeepInversion matches"
        raise InputError("model", model.network.model, allowed)


def _loss(network: Network, images, variables, labels, weights):
    with watch_normalisations() as seen:
        logits = network.apply(variables, images)
    standardised = preprocess(images, network.mean, network.std)
    value, terms = inversion_loss(logits, labels, standardised, seen, weights=weights)
    return value, (logits, terms)


@functools.partial(jax.jit, static_argnums=0)
def _step(network: Network, images, moments, given, rate, key, number):
    """One update of the images, on a random shift of them; all teachers share what is compiled."""
    height, width, _ = network.input_shape
    reach = np.array([height // 16, width // 16], np.int32)
    key = jax.random.fold_in(key, number)
    shift = jax.random.randint(key, (2,), -reach, reach + 1)

    def rolled(images):
        return _loss(network, jnp.roll(images, shift, (1, 2)), *given)[0]

    update, moments = _adam().update(jax.grad(rolled)(images), moments)
    return jnp.clip(images - rate * update, 0, 1), moments


@functools.partial(jax.jit, static_argnums=0)
def _finish(network: Network, images, variables, labels, weights):
    """(confidence [B], terms of the loss) at the end."""
    _, (logits, terms) = _loss(network, images, variables, labels, weights)
    probabilities = jax.nn.softmax(logits)
    return jnp.take_along_axis(probabilities, labels[:, None], 1)[:, 0], terms


def _norm(x: Array) -> Array:
    """Euclidean, with gradient 0 at 0."""
    squares = jnp.sum(jnp.square(x))
    return jnp.where(squares > _TINY, jnp.sqrt(jnp.where(squares > _TINY, squares, 1.0)), 0.0)


def _adam() -> Any:
    return optax.scale_by_adam(b1=0.5, b2=0.9)
