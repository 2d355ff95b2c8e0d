"""Does a teacher damage its students? A cheap check right after training (our reconstruction).

Two small proxy students, equal in everything but the teacher, are distilled from stored logits: one
from the new teacher, one from its normal adversary. The teacher is called nasty if its student ends
clearly below the other on images that neither proxy saw. Where the adversary's own proxy stays far
below the adversary, or the images are too few, the check has no power and says so: it is
inconclusive. The test split is not used. The arithmetic of the whole check stays below a tenth of
the training's.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from distill_core import checkpoint, evaluate
from distill_core.config import InputError
from distill_core.data import Split, sampling
from distill_core.losses import distillation_loss
from distill_core.models import checks
from distill_core.models.flops import count_flops
from distill_core.models.network import LoadedModel, Network
from distill_core.runtime import parallel, strict_json
from distill_core.training.optimizers import Optimizer
from distill_core.training.step import (
    STREAM_INIT,
    Outputs,
    TrainState,
    Update,
    per_example,
    stream_key,
)

ALPHA = 0.9  # the paper's weight of the distillation term
BATCH = 32  # small: many updates for the arithmetic
MIN_STEPS, MAX_IMAGES = 50, 20_000
# Ten passes, but 300 updates of few images and 6,000 of many: long training heals a student.
PASSES, FEWEST, MAX_STEPS = 10, 300, 6000
# Times the width of the default proxy: the widest that can afford so many steps.
WIDER, STEPS_OF_WIDER = (4, 2, 1), 2000
MIN_IMAGES, MIN_HELD = 256, 200
HELD_SHARE = 0.3
SHARE_OF_TRAINING = 0.1
LEAST_GAP = 0.05  # as the experiment's own; proxies of two normal networks differ by up to 0.04
# Power: the adversary's proxy has learned at least so much of what the adversary knows beyond the
# most frequent class, and the images are enough to see the gap that the paper's students show.
LEAST_LEARNED, GAP_TO_SEE = 0.75, 0.05
ROOM = 0.01  # lost accuracy up to which a larger omega may be tried; the method may lose 0.02


class Nastiness(NamedTuple):
    """Verdict of the check; accuracies are fractions on the images that measure.

    Attributes:
      nasty: None where the check is inconclusive, for the reason in `why`.
      student_of_teacher, student_of_adversary: accuracies of the proxies; None where the training
        was too short to afford them. So are the next two.
      teacher, adversary: accuracies of the networks themselves.
      needed_gap: by how much the teacher's proxy has to stay below the other.
      on_validation: whether validation images measured, that no network was trained on.
      cost: the check's arithmetic as a share of the training's.
      why: of an inconclusive check; "" otherwise.
    """

    nasty: bool | None
    student_of_teacher: float | None = None
    student_of_adversary: float | None = None
    teacher: float | None = None
    adversary: float | None = None
    needed_gap: float = LEAST_GAP
    on_validation: bool = False
    cost: float = 0.0
    why: str = ""


def say(workdir: epath.PathLike, found: Nastiness) -> dict[str, Any]:
    """Prints the verdict on the teacher in a workdir and writes `nastiness.json`."""
    if parallel.is_main():
        print(describe(found), flush=True)
        checkpoint.write_atomically(
            epath.Path(workdir) / "nastiness.json", strict_json.encode(found._asdict(), indent=1)
        )
    return found._asdict()


def describe(found: Nastiness) -> str:
    """The verdict in one line; advice only where the check had power and ω has room to grow."""
    if found.nasty is None:
        verdict = f"inconclusive: {found.why}"
    else:
        verdict = "nasty" if found.nasty else "NOT nasty"
    if found.student_of_teacher is None or found.student_of_adversary is None:
        return f"nastiness check: {verdict}"
    line = (
        f"nastiness check: {verdict} (proxy student of this teacher "
        f"{found.student_of_teacher:.3f}, of its adversary {found.student_of_adversary:.3f}, "
        f"needed gap {found.needed_gap:.3f}; the teacher itself {found.teacher:.3f}, its adversary "
        f"{found.adversary:.3f}; {found.cost:.1%} of the training's arithmetic)"
    )
    if found.nasty is not False or found.teacher is None or found.adversary is None:
        return line
    if not found.on_validation:
        return f"{line}; before you change omega, hold images out: num_validation"
    if found.adversary - found.teacher <= ROOM:
        return f"{line}; a larger omega may do it: watch validation accuracy"
    return line


def check(
    teacher: LoadedModel,
    adversary: LoadedModel,
    images: Split,
    validation: Split | None = None,
    *,
    temperature: float,
    training_examples: int,
    model: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Nastiness:
    """Distils a proxy from each of two networks and compares them.

    Args:
      teacher: the network under suspicion.
      adversary: the normal network to compare with.
      images: training images.
      validation: images to measure on, that no network saw; without at least 200 of them 30% of the
        training images are kept from the proxies, to measure on.
      temperature: of the distillation, as an attacker would choose it: the teacher's own τ.
      training_examples: batch size times steps of the teacher's training, which sets the budget.
      model, model_kwargs: of the proxies; by default a small CNN.
    """
    forward = [forward_flops(each) for each in (teacher, adversary)]
    # A backward pass counts as two forward passes. Every network answers an image once.
    training = training_examples * (3 * forward[0] + forward[1])
    budget = 0.9 * SHARE_OF_TRAINING * training
    if validation is not None and len(validation) < MIN_HELD:
        validation = None  # too few to measure on
    try:
        plans = [
            _plan(
                proxy_network(adversary.network, model, model_kwargs or {}, wider),
                images,
                validation,
                budget=budget,
                answering=sum(forward),
            )
            for wider in (WIDER if model is None else (1,))
        ]
    except InputError as error:
        if model is not None:
            raise
        return Nastiness(None, why=f"no proxy fits these images ({error}); name a check_model")
    plan = next((each for each in plans if each.steps >= STEPS_OF_WIDER), plans[-1])
    rows, held = plan.rows, plan.held
    if plan.steps < MIN_STEPS or len(rows) + len(held) < MIN_IMAGES:
        why = f"the training was too short for a check at {SHARE_OF_TRAINING:.0%} of its cost"
        return Nastiness(None, why=why)

    known, learned = [], []
    for each in (teacher, adversary):
        answers = evaluate.compute_logits(each, images.images[rows])
        taught = {"image": images.images[rows], "label": images.labels[rows], "logits": answers}
        student = distilled(plan.network, taught, temperature=temperature, steps=plan.steps)
        known.append(_accuracy(each, held))
        learned.append(_accuracy(student, held))
    chance = np.bincount(held.labels).max() / len(held)
    return verdict(known, learned, len(held), float(chance))._replace(
        on_validation=validation is not None, cost=plan.spent / training
    )


class _Plan(NamedTuple):
    """What a budget buys: the proxies' network, rows to learn from, images to measure on, updates,
    and the operations of it all."""

    network: Network
    rows: np.ndarray
    held: Split
    steps: int
    spent: float


def _plan(
    network: Network, images: Split, validation: Split | None, *, budget: float, answering: float
) -> _Plan:
    """At most half of the budget goes into images; both networks answer one for `answering`."""
    one = jax.ShapeDtypeStruct((1, *network.input_shape), np.float32)
    proxy = count_flops(network.apply, network.shapes(), one)
    rng = np.random.default_rng(0)
    count = min(int(0.5 * budget / (answering + 2 * proxy)), MAX_IMAGES)
    rows, source = rng.permutation(len(images))[:count], images
    if validation is None:
        rows, measuring = np.split(rows, [int(len(rows) * (1 - HELD_SHARE))])
    else:
        source = validation
        measuring = rng.permutation(len(validation))[: int(HELD_SHARE * count)]
        rows = rows[: count - len(measuring)]
    held = Split(source.images[measuring], source.labels[measuring])
    spent = (len(rows) + len(held)) * answering + len(held) * 2 * proxy
    per_step = 2 * 3 * BATCH * proxy
    most = min(MAX_STEPS, max(FEWEST, PASSES * len(rows) // BATCH))
    steps = max(0, int(min(most, (budget - spent) / per_step)))
    return _Plan(network, rows, held, steps, spent + steps * per_step)


def verdict(
    known: Sequence[float], learned: Sequence[float], count: int, chance: float
) -> Nastiness:
    """From the accuracies of (teacher, adversary) and of their proxies on `count` images.

    All errors are two standard errors of independent proportions.
    """
    errors = [2 * float(np.sqrt(p * (1 - p) / count)) for p in learned]
    needed = max(LEAST_GAP, float(np.hypot(errors[0], errors[1])))
    found = Nastiness(None, learned[0], learned[1], known[0], known[1], needed)
    least = max(chance, chance + LEAST_LEARNED * (known[1] - chance))
    if learned[1] - errors[1] <= least:
        why = (
            f"the proxies learn too little to judge: at least {least:.3f} is needed "
            "of the adversary's; name a check_model that learns these images"
        )
        return found._replace(why=why)
    if learned[1] - learned[0] >= needed:
        return found._replace(nasty=True)
    if needed > GAP_TO_SEE:
        why = f"{count} images are too few to see a gap of {100 * GAP_TO_SEE:g} points"
        return found._replace(why=why)
    return found._replace(nasty=False)


def forward_flops(model: LoadedModel) -> float:
    """Operations of one image's logits: see `distill_core.models.flops`."""
    image = jax.ShapeDtypeStruct((1, *model.network.input_shape), np.float32)
    return count_flops(model.apply, model.variables, image)


def _accuracy(model: LoadedModel, held: Split) -> float:
    return float(np.mean(evaluate.compute_logits(model, held.images).argmax(-1) == held.labels))


def proxy_network(
    network: Network, model: str | None, model_kwargs: Mapping[str, Any], wider: int = 1
) -> Network:
    """A proxy for the inputs and classes of `network`; by default a CNN, `wider` times as wide.

    Raises:
      InputError: on `check_model` or `check_model_kwargs`: it cannot be built or run.
    """
    if model is None and model_kwargs:
        allowed = "belong to a check_model: name it, or leave them out"
        raise InputError("check_model_kwargs", dict(model_kwargs), allowed)
    if model is None:
        halvings = int(np.log2(min(network.input_shape[:2]) / 2))  # down to 2×2 or 3×3
        widths = tuple(8 * wider * 2**k for k in range(min(3, max(1, halvings))))
        model, model_kwargs = "cnn", {"widths": widths, "hidden": 32 * wider}
    found = dataclasses.replace(
        network, model=model, model_kwargs=model_kwargs, compute_dtype="float32"
    )
    try:
        checks.check(found)
    except InputError as error:
        raise InputError(f"check_{error.field}", error.given, error.allowed) from None
    return found


def distilled(
    network: Network, taught: Mapping[str, np.ndarray], *, temperature: float, steps: int
) -> LoadedModel:
    """A proxy trained on `image`, `label` and a teacher's `logits`, rows of examples."""
    optimizer = Optimizer(
        optimizer="adam", learning_rate=1e-2, num_steps=steps, schedule="onecycle"
    )
    step = parallel.wrap(Update(_Taught(network), optimizer), "jit", donate=True)
    rng = jax.random.key(0)
    params, model_state = network.init(stream_key(rng, STREAM_INIT, 0))
    state = TrainState.create(params=params, model_state=model_state, tx=optimizer.make(), rng=rng)
    frozen = jax.device_put({**taught, "temperature": np.float32(temperature)})
    for i in range(steps):
        rows = sampling.batch_indices(0, i, BATCH, len(taught["label"])).astype(np.int32)
        state, _ = step(state, frozen, rows)
    variables = jax.device_get({"params": state.params, **state.model_state})
    return LoadedModel(variables, network)


@dataclasses.dataclass(frozen=True)
class _Taught:
    """Distillation from stored logits; the batch is rows of what is taught."""

    network: Network

    def __call__(self, params, model_state, frozen, batch, key) -> Outputs:
        image, label, logits = (frozen[name][batch] for name in ("image", "label", "logits"))
        own, model_state = self.network.train_apply(params, model_state, image, key)
        values = distillation_loss(
            own, logits, label, temperature=frozen["temperature"], alpha=ALPHA
        )
        return per_example(values, model_state)
