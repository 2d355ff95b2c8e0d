"""The Optax optimiser that a run's settings describe."""

from typing import Any

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
