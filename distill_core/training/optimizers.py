"""The Optax optimiser that a run's settings describe."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from distill_core import config


@config.settings
class Optimizer(config.Optimizer):
    """SGD with (plain, not Nesterov) momentum, Adam or AdamW, and a schedule of its learning rate.

    Weight decay is L2 on all parameters, added to the gradient before momentum, as in PyTorch's SGD
    and Adam; AdamW's is not part of the gradient (Loshchilov and Hutter, 2019). A gradient longer
    than `clip_norm` is scaled to it first. The schedule `onecycle` rises over the first 30% of the
    steps and falls to almost 0 in a cosine; `cosine` falls to 0. A warm-up is linear, and the
    schedule has the steps behind it.
    """

    num_steps: int = config.integer(0, help="length of the schedule")

    def __post_init__(self):
        super().__post_init__()
        if self.warmup_steps and self.warmup_steps >= self.num_steps:
            allowed = f"must be below num_steps, {self.num_steps}"
            raise config.InputError("warmup_steps", self.warmup_steps, allowed)

    @classmethod
    def of(cls, hp: Any) -> "Optimizer":
        """That of settings which hold `config.Optimizer` and `num_steps`."""
        return config.part(hp, cls)

    def make_schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        highest, first = self.learning_rate, self.warmup_steps
        if self.schedule == "step":
            drops = {step - first: self.drop_factor for step in self.drop_steps}
            rate = optax.piecewise_constant_schedule(highest, drops)
        elif self.schedule == "cosine":
            rate = optax.cosine_decay_schedule(highest, max(1, self.num_steps - first))
        elif self.schedule == "onecycle":
            rate = optax.cosine_onecycle_schedule(max(1, self.num_steps), highest)
        else:
            rate = optax.constant_schedule(highest)
        if not first:
            return rate
        return optax.join_schedules([optax.linear_schedule(0.0, highest, first), rate], [first])

    def make(self) -> optax.GradientTransformation:
        """The Optax optimiser."""
        rate, decay, parts = self.make_schedule(), self.weight_decay, []
        if self.clip_norm:
            parts.append(optax.clip_by_global_norm(self.clip_norm))
        if decay and self.optimizer != "adamw":
            parts.append(optax.add_decayed_weights(decay))
        if self.optimizer == "sgd":
            parts.append(optax.sgd(rate, momentum=self.momentum or None))
        elif self.optimizer == "adam":
            parts.append(optax.adam(rate, b1=self.b1, b2=self.b2))
        else:
            parts.append(optax.adamw(rate, b1=self.b1, b2=self.b2, weight_decay=decay))
        return parts[0] if len(parts) == 1 else optax.chain(*parts)


class AveragedState(NamedTuple):
    """State of `Averaged`.

    Attributes:
      inner: of the optimiser.
      count: int32 `[]`, updates so far.
      mean: of the parameters after the updates beyond `start`; before, the latest parameters.
    """

    inner: Any
    count: jax.Array
    mean: Any


@dataclasses.dataclass(frozen=True)
class Averaged:
    """An optimiser whose state also holds a mean of its iterates after the first `start`.

    With `decay` below 1 it is a moving average: the newest of n iterates has the weight 1/n, but at
    least 1 − decay.
    """

    optimizer: Optimizer
    start: int = 0
    decay: float = 1.0

    def make(self) -> optax.GradientTransformation:
        """The Optax optimiser; its updates are those without averaging."""
        inner = self.optimizer.make()

        def init(params):
            # Copied: a step gives the memory of parameters and mean to the next state, each once.
            mean = jax.tree.map(jnp.array, params)
            return AveragedState(inner.init(params), jnp.zeros((), jnp.int32), mean)

        def update(updates, state, params=None):
            assert params is not None
            updates, new = inner.update(updates, state.inner, params)
            count = state.count + 1
            iterates = jnp.maximum(1, count - self.start)  # in the mean, with this one
            weight = jnp.maximum(1 / iterates, 1 - self.decay)
            mean = jax.tree.map(
                lambda m, x: jnp.where(iterates == 1, x, m + (x - m) * weight).astype(x.dtype),
                state.mean,
                optax.apply_updates(params, updates),
            )
            return updates, AveragedState(new, count, mean)

        return optax.GradientTransformation(init, update)
