"""Does a teacher damage its students? A cheap check right after training (our reconstruction).

Two small proxy students, equal in everything but the teacher, are distilled from stored logits: one
from the new teacher, one from its normal adversary. The teacher is called nasty if its student ends
clearly below the other on images that neither proxy saw. Where the adversary's own proxy stays far
below the adversary, or the images are too few, the check has no power and says so: it is
inconclusive. The test split is not used. The arithmetic of the whole check stays below a tenth of
the training's.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from distill_core import checkpoint, classification, evaluate, parallel, spec, strict_json
from distill_core.config import InputError
from distill_core.data import Split, sampling
from distill_core.flops import count_flops
from distill_core.losses import distillation_loss
from distill_core.training import STREAM_INIT, TrainState, make_train_step, stream_key
from nasty import throughput

ALPHA = 0.9  # the paper's weight of the distillation term
# Small batches: many updates for the arithmetic.
BATCH, MAX_STEPS, MIN_STEPS, MAX_IMAGES = 32, 2000, 50, 20_000
MIN_IMAGES, MIN_HELD = 256, 200
HELD_SHARE = 0.3
SHARE_OF_TRAINING = 0.1
LEAST_GAP = 0.02
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


def proxy_network(
    network: Mapping[str, Any], model: str | None, model_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The spec of a proxy for the inputs and classes of `network`; by default a small CNN.

    Raises:
      InputError: on `check_model` or `check_model_kwargs`: it cannot be built or run.
    """
    if model is None and model_kwargs:
        allowed = "belong to a check_model: name it, or leave them out"
        raise InputError("check_model_kwargs", dict(model_kwargs), allowed)
    if model is None:
        halvings = int(np.log2(min(network["input_shape"][:2]) / 2))  # down to 2×2 or 3×3
        widths = tuple(8 * 2**k for k in range(min(3, max(1, halvings))))
        model, model_kwargs = "cnn", {"widths": widths, "hidden": 32}
    kept = ("num_classes", "input_shape", "mean", "std", "classes")
    found = {name: network[name] for name in kept}
    found |= {"model": model, "model_kwargs": dict(model_kwargs)}
    try:
        spec.check(found)
    except InputError as error:
        raise InputError(f"check_{error.field}", error.given, error.allowed) from None
    return found


def check_run(
    workdir: epath.PathLike,
    adversary: checkpoint.LoadedModel,
    splits: classification.Splits,
    hp: Mapping[str, Any],
) -> dict[str, Any]:
    """Checks the teacher in a finished workdir, prints the verdict, writes `nastiness.json`."""
    found = check(
        checkpoint.load_model(workdir),
        adversary,
        splits.train,
        splits.validation,
        temperature=hp["temperature"],
        training_examples=hp["num_steps"] * hp["batch_size"],
        model=hp["check_model"],
        model_kwargs=hp["check_model_kwargs"],
    )
    if parallel.is_main():
        print(describe(found), flush=True)
        checkpoint.write_atomically(
            epath.Path(workdir) / "nastiness.json", strict_json.dumps(found._asdict(), indent=1)
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
    teacher: checkpoint.LoadedModel,
    adversary: checkpoint.LoadedModel,
    images: Split,
    validation: Split | None = None,
    *,
    temperature: float,
    training_examples: int,
    model: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
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
      seed: of the proxies and of the choice of images.
    """
    try:
        network = proxy_network(adversary.spec, model, model_kwargs or {})
    except InputError as error:
        if model is not None:
            raise
        return Nastiness(None, why=f"no proxy fits these images ({error}); name a check_model")
    shape = images.images.shape[1:]
    forward = [throughput.forward_flops(each, shape) for each in (teacher, adversary)]
    one = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    proxy = count_flops(spec.make_apply(network), spec.variable_shapes(network), one)
    # A backward pass counts as two forward passes. Every network answers an image once.
    training = training_examples * (3 * forward[0] + forward[1])
    per_image = sum(forward) + 2 * proxy
    per_step = 2 * 3 * BATCH * proxy
    budget = 0.9 * SHARE_OF_TRAINING * training
    most = int(min(MAX_IMAGES, 0.5 * budget / per_image))
    order = np.random.default_rng(seed).permutation(len(images))
    on_validation = validation is not None and len(validation) >= MIN_HELD
    if validation is not None and on_validation:
        rows = np.random.default_rng(seed).permutation(len(validation))[: int(HELD_SHARE * most)]
        held = validation.images[rows], validation.labels[rows]
        rows = order[: most - len(rows)]
    else:
        order = order[:most]
        rows, kept = np.split(order, [int(len(order) * (1 - HELD_SHARE))])
        held = images.images[kept], images.labels[kept]
    count = len(rows) + len(held[1])
    steps = int(min(MAX_STEPS, (budget - count * per_image) / per_step))
    if steps < MIN_STEPS or count < MIN_IMAGES:
        why = f"the training was too short for a check at {SHARE_OF_TRAINING:.0%} of its cost"
        return Nastiness(None, why=why)

    known, learned = [], []
    for each in (teacher, adversary):
        answers = evaluate.compute_logits(each, images.images[rows])
        taught = {"image": images.images[rows], "label": images.labels[rows], "logits": answers}
        student = _distilled(network, taught, temperature=temperature, steps=steps, seed=seed)
        known.append(_accuracy(each, *held))
        learned.append(_accuracy(student, *held))
    spent = count * sum(forward) + len(held[1]) * 2 * proxy + steps * per_step
    chance = np.bincount(held[1]).max() / len(held[1])
    return _verdict(known, learned, len(held[1]), float(chance))._replace(
        on_validation=on_validation, cost=spent / training
    )


def _verdict(known: list[float], learned: list[float], count: int, chance: float) -> Nastiness:
    """From the accuracies of (teacher, adversary) and of their proxies on `count` images.

    All errors are two standard errors of independent proportions.
    """
    errors = [2 * float(np.sqrt(p * (1 - p) / count)) for p in learned]
    needed = max(LEAST_GAP, float(np.hypot(errors[0], errors[1])))
    found = Nastiness(
        None,
        student_of_teacher=learned[0],
        student_of_adversary=learned[1],
        teacher=known[0],
        adversary=known[1],
        needed_gap=needed,
    )
    least = chance + LEAST_LEARNED * (known[1] - chance)
    if learned[1] - errors[1] <= max(least, chance):
        why = (
            f"the proxies learn too little to judge: at least {max(least, chance):.3f} is needed "
            "of the adversary's; name a check_model that learns these images"
        )
        return found._replace(why=why)
    if learned[1] - learned[0] >= needed:
        return found._replace(nasty=True)
    if needed > GAP_TO_SEE:
        why = f"{count} images are too few to see a gap of {100 * GAP_TO_SEE:g} points"
        return found._replace(why=why)
    return found._replace(nasty=False)


def _accuracy(model: checkpoint.LoadedModel, images: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(evaluate.compute_logits(model, images).argmax(-1) == labels))


def _distilled(
    network: Mapping[str, Any],
    taught: Mapping[str, np.ndarray],
    *,
    temperature: float,
    steps: int,
    seed: int,
) -> checkpoint.LoadedModel:
    """A proxy trained on `image`, `label` and a teacher's `logits`, rows of examples."""
    step, tx = _proxy_step(json.dumps(network), steps)
    rng = jax.random.key(seed)
    params, model_state = spec.init(network, stream_key(rng, STREAM_INIT, 0))
    state = TrainState.create(params=params, model_state=model_state, tx=tx, rng=rng)
    frozen = jax.device_put({**taught, "temperature": np.float32(temperature)})
    for i in range(steps):
        rows = sampling.batch_indices(seed, i, BATCH, len(taught["label"])).astype(np.int32)
        state, _ = step(state, frozen, rows)
    variables = jax.device_get({"params": state.params, **state.model_state})
    return checkpoint.LoadedModel(variables, dict(network), spec.make_apply(network))


@functools.lru_cache(maxsize=8)
def _proxy_step(network: str, steps: int):
    apply = spec.make_apply(json.loads(network))
    tx = optax.adam(optax.cosine_onecycle_schedule(steps, 1e-2))

    def loss_fn(params, model_state, frozen, rows, key):
        taught = {name: frozen[name][rows] for name in ("image", "label", "logits")}
        variables = {"params": params, **model_state}
        logits, model_state = apply(variables, taught["image"], train=True, key=key)
        values = distillation_loss(
            logits,
            taught["logits"],
            taught["label"],
            temperature=frozen["temperature"],
            alpha=ALPHA,
        )
        return values, jnp.ones_like(values), model_state, {}

    return jax.jit(make_train_step(loss_fn, tx), donate_argnums=0), tx
