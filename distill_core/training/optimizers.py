"""Config values to an Optax optimiser."""

from collections.abc import Sequence

import optax


def make_schedule(
    *,
    learning_rate: float,
    schedule: str,
    num_steps: int,
    drop_steps: Sequence[int] = (),
    drop_factor: float = 0.1,
) -> optax.Schedule:
    """Learning rate by step.

    Args:
      learning_rate: the constant, first or, for `onecycle`, highest value.
      schedule: `constant`; `step` (times `drop_factor` at each of `drop_steps`); `cosine` to 0;
        `onecycle` (up over the first 30%, cosine down to almost 0).
      num_steps: length of the run in updates.
      drop_steps: for `step`.
      drop_factor: for `step`.
    """
    if schedule == "step":
        return optax.piecewise_constant_schedule(
            learning_rate, {step: drop_factor for step in drop_steps}
        )
    if schedule == "cosine":
        return optax.cosine_decay_schedule(learning_rate, num_steps)
    if schedule == "onecycle":
        return optax.cosine_onecycle_schedule(num_steps, learning_rate)
    return optax.constant_schedule(learning_rate)


def make_optimizer(
    *, optimizer: str, momentum: float = 0.9, weight_decay: float = 0.0, **schedule
) -> optax.GradientTransformation:
    """SGD with (plain, not Nesterov) momentum, or Adam.

    Weight decay is L2 on all parameters and enters before momentum, as in PyTorch's SGD and Adam.

    Args:
      optimizer: `sgd` or `adam`.
      momentum: for `sgd`.
      weight_decay: factor of the parameters added to the gradient.
      **schedule: as for `make_schedule`.
    """
    rate = make_schedule(**schedule)
    update = optax.sgd(rate, momentum=momentum or None) if optimizer == "sgd" else optax.adam(rate)
    return optax.chain(optax.add_decayed_weights(weight_decay), update) if weight_decay else update
