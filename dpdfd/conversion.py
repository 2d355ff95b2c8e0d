"""A conversion before its first step: its networks, first state, and the images drawn for it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from distill_core.checkpoint import LoadedModel
from distill_core.config import InputError
from distill_core.data.images import augment, procedural
from distill_core.models import CONSTANTS, checks
from distill_core.models.network import Network
from distill_core.runtime import parallel
from distill_core.training import fits
from distill_core.training.optimizers import Optimizer
from distill_core.training.step import STREAM_INIT, TrainState, stream_key
from dpdfd.bank import empty_bank
from dpdfd.generator import adam
from dpdfd.losses import Weights
from dpdfd.priors.moments import Moments, draw
from dpdfd.priors.warm_start import warm_start
from dpdfd.privacy.bought import Bought
from dpdfd.privacy.budget import Budget
from dpdfd.settings import GAUSSIAN, Settings
from dpdfd.step import Conversion, State

_WARM_START_IMAGES = 10_000
_KINDS_STREAM, _CLASSES_STREAM = 6, 7  # of a seed's draws; those below belong to the kinds


@dataclasses.dataclass(frozen=True)
class Run:
    """What the parts of a run share: settings, static choices, what is spent."""

    hp: Settings
    conversion: Conversion
    mode: str
    budget: Budget
    bought: Bought
    num_teachers: int
    moments: Moments | None = None  # that the prior draws from

    @property
    def steps_per_round(self) -> int:
        return self.hp.num_steps // self.hp.num_rounds

    @property
    def releases_per_round(self) -> int:
        return (self.hp.num_queries or 0) // self.hp.num_rounds // self.hp.batch_size

    def program(self, function: Callable, *, donate: bool = False) -> Callable:
        """A function of `step`, compiled: `(state, frozen, batch)` to what it returns."""
        bound = parallel.Bound(function, self.conversion)
        return parallel.wrap(bound, self.mode, donate=donate)


def choose(hp: Settings, teacher: LoadedModel) -> Conversion:
    """The static choices of a run: inputs and classes of its networks are the teacher's.

    Raises InputError on `model`, `model_kwargs`, `batch_size`, `crop_padding`, or an image shape
    that the generator cannot make.
    """
    group = hp.generator
    student = dataclasses.replace(
        teacher.network,
        model=hp.model,
        model_kwargs=hp.model_kwargs,
        compute_dtype="float32",
    )
    checks.check(student)
    augment.check_padding(hp.crop_padding, *student.input_shape[:2])
    if student.shapes().keys() - {"params", CONSTANTS}:
        allowed = "has statistics of a batch, which mix examples: take norm 'group' or 'none'"
        raise InputError("model", hp.model, allowed)
    chosen = {
        name: getattr(group, name) for name in ("conditional", "latent_size", "width", "norm")
    }
    generator = Network(
        "dpdfd.generator:Generator",
        student.num_classes,
        {"image_shape": student.input_shape, **chosen},
        input_shape=(group.latent_size,),
        mean=(0.0,) * group.latent_size,
        std=(1.0,) * group.latent_size,
        classes=student.classes,
        classes_named=student.classes_named,
        outputs="images",
        labelled=group.conditional,
    )
    generator.shapes()  # refuses an image shape that it cannot make
    # Its first layer normalises over height/4 · width/4 values of each image.
    height, width, _ = student.input_shape
    smallest = hp.batch_size * (height // 4) * (width // 4)
    if group.norm == "batch" and group.every and smallest == 1:
        allowed = "leaves the generator's batch normalisation one value per channel: take a larger"
        raise InputError("batch_size", hp.batch_size, f"{allowed} batch, or another norm")
    return Conversion(
        student,
        teacher.network,
        generator,
        hp.batch_size,
        Optimizer.of(hp),
        group.learning_rate,
        Weights(**{name: getattr(group, name) for name in Weights._fields}),
        None if hp.mechanism in ("none", "parameters") else hp.mechanism,
        hp.bound,
        hp.loss,
        hp.temperature,
        hp.crop_padding,
        hp.guide,
    )


def first_state(run: Run, teacher: LoadedModel, *, begun: bool) -> State:
    """The state before the first step; of a run that has begun only its shapes count.

    A student of the teacher's kind has the teacher's constants, if no noise protects that.
    """
    hp, c = run.hp, run.conversion
    rng = jax.random.key(hp.seed)
    alike = c.student == dataclasses.replace(teacher.network, compute_dtype="float32")
    free = c.mechanism is None
    constants = teacher.variables.get(CONSTANTS) if alike and free else None
    params, model_state = c.student.init(stream_key(rng, STREAM_INIT, 0), constants)
    student = TrainState.create(
        params=params, model_state=model_state, tx=c.optimizer.make(), rng=rng
    )
    made = _first_generator(
        c.generator,
        hp.seed,
        Prior.of(hp, run.moments),
        0 if begun else hp.generator.warm_start_steps,
    )
    model_state = jax.tree.map(np.array, made)  # copies: steps may use their arguments up
    generator = TrainState.create(
        params=model_state.pop("params"),
        model_state=model_state,
        tx=adam(c.generator_rate),
        rng=jax.random.fold_in(rng, 1),
    )
    bank = {}
    if hp.num_rounds:
        features = 0
        if c.student.has_public_part and not hp.crop_padding:
            images = jax.ShapeDtypeStruct((1, *c.student.input_shape), np.uint8)
            variables = {"params": student.params, **student.model_state}
            features = jax.eval_shape(c.student.public, variables, images).shape[1]
        shape = c.student.input_shape
        bank = empty_bank(hp.num_queries or 0, shape, c.student.num_classes, features)
    return State(student, generator, bank)


@functools.lru_cache(maxsize=2)  # an experiment's arms start from the same
def _first_generator(network: Network, seed: int, prior: "Prior", num_steps: int) -> dict[str, Any]:
    """A generator's variables, on the host, warm-started on its seed's images."""
    params, model_state = network.init(stream_key(jax.random.key(seed), STREAM_INIT, 1))
    variables = {"params": params, **model_state}
    if num_steps:
        fits.say(f"warm-starts the generator: {num_steps} steps on images of the prior")
        module = network.module()
        images = prior.draw(seed, module.image_shape, 0, _WARM_START_IMAGES)
        variables = warm_start(module, variables, images, seed=seed, num_steps=num_steps)
    return jax.tree.map(np.asarray, variables)


@dataclasses.dataclass(frozen=True)
class Prior:
    """Images that code draws, and draws from bought moments; hashable.

    Attributes:
      weights: kind -> weight, see `settings.PRIOR`.
      extent: as for `procedural.mixture`; () for each kind's own.
      moments: what `dp_gaussian` draws from.
    """

    weights: Mapping[str, float]
    extent: tuple[float, ...] = ()
    moments: Moments | None = None

    @classmethod
    def of(cls, hp: Settings, moments: Moments | None) -> "Prior":
        """That of a conversion's settings."""
        return cls(hp.prior, hp.prior_extent, moments)

    def draw(self, seed: int, image_shape: tuple[int, ...], stream: int, num: int) -> np.ndarray:
        """float32 [num, H, W, C]; each `stream` of a seed has its own.

        Raises InputError on `prior` or `prior_extent`.
        """
        height, width, channels = image_shape
        if height != width:
            allowed = f"draws squares, not {height}×{width}"
            raise InputError("prior", dict(self.weights), allowed)
        drawn = {kind: weight for kind, weight in self.weights.items() if kind != GAUSSIAN}
        whole, seed = sum(self.weights.values()), seed * 1000 + stream
        if not any(drawn.values()):
            drawn = {**drawn, "noise": 1.0} if whole else drawn  # none of which is kept
        try:
            images = procedural.mixture(
                seed,
                num,
                size=height,
                channels=channels,
                weights=drawn,
                extent=self.extent or None,  # pyright: ignore[reportArgumentType]: it checks the length
            )
        except InputError as error:
            field = {"weights": "prior", "extent": "prior_extent"}.get(error.field, "prior")
            raise InputError(field, error.given, error.allowed) from None
        if self.moments is None or not num:
            return images
        rng = np.random.default_rng([seed, _KINDS_STREAM])
        mine = rng.random(num) < self.weights[GAUSSIAN] / whole
        classes = np.random.default_rng([seed, _CLASSES_STREAM]).integers(
            len(self.moments.counts), size=num
        )
        images[mine] = draw(self.moments, seed, classes[mine])
        return images
