"""Settings of an optimiser, and the Optax optimiser that they mean."""

import dataclasses
from typing import Any

import optax

from distill_core import config


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """SGD with (plain, not Nesterov) momentum, or Adam, and a schedule of its learning rate.

    Attributes:
      optimizer: `sgd` or `adam`.
      learning_rate: the constant, first or, for `onecycle`, highest value.
      num_steps: length of the run in updates.
      momentum: of `sgd`.
      weight_decay: factor of the parameters added to the gradient: L2 on all parameters, before
        momentum, as in PyTorch's SGD and Adam.
      schedule: `constant`; `step` (times `drop_factor` at each of `drop_steps`); `cosine` to 0;
        `onecycle` (up over the first 30%, cosine down to almost 0).
      drop_steps, drop_factor: of `step`.
    """

    optimizer: str
    learning_rate: float
    num_steps: int
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    drop_steps: tuple[int, ...] = ()
    drop_factor: float = 0.1

    @classmethod
    def of(cls, hp: Any) -> "Optimizer":
        """The one of settings that hold `config.Optimizer` and `num_steps`."""
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
