"""The Optax optimiser that a run's settings describe."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from distill_core import config


@config.settings
class Optimizer(config.Optimizer):
    """SGD with (plain, not Nesterov) momentum, or Adam, and a schedule of its learning rate.

    Weight decay is L2 on all parameters, added to the gradient before momentum, as in PyTorch's SGD
    and Adam. The schedule `onecycle` rises over the first 30% of the steps and falls to almost 0 in
    a cosine; `cosine` falls to 0.
    """

    num_steps: int = config.integer(1, help="length of the schedule")

    @classmethod
    def of(cls, hp: Any) -> "Optimizer":
        """That of settings which hold `config.Optimizer` and `num_steps`."""
        return config.part(hp, cls)

    def make_schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        if self.schedule == "step":
            drops = {step: self.drop_factor for step in self.drop_steps}
            return optax.piecewise_constant_schedule(self.learning_rate, drops)
        if self.schedule == "cosine":
            return optax.cosine_decay_schedule(self.learning_rate, self.num_steps)
        if self.schedule == "onecycle":
            return optax.cosine_onecycle_schedule(self.num_steps, self.learning_rate)
        return optax.constant_schedule(self.learning_rate)

    def make(self) -> optax.GradientTransformation:
        """The Optax optimiser."""
        rate = self.make_schedule()
        if self.optimizer == "sgd":
            update = optax.sgd(rate, momentum=self.momentum or None)
        else:
            update = optax.adam(rate)
        if not self.weight_decay:
            return update
        return optax.chain(optax.add_decayed_weights(self.weight_decay), update)


class AveragedState(NamedTuple):
    """State of `Averaged`.

    Attributes:
      inner: of the optimiser.
      count: int32 `[]`, updates so far.
      mean: of the parameters after each update beyond `start`; before, the latest parameters.
    """

    inner: Any
    count: jax.Array
    mean: Any


@dataclasses.dataclass(frozen=True)
class Averaged:
    """An optimiser whose state also holds the mean of its iterates after the first `start`."""

    optimizer: Optimizer
    start: int

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
            mean = jax.tree.map(
                lambda m, x: jnp.where(iterates == 1, x, m + (x - m) / iterates).astype(x.dtype),
                state.mean,
                optax.apply_updates(params, updates),
            )
            return updates, AveragedState(new, count, mean)

        return optax.GradientTransformation(init, update)
