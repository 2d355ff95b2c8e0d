"""A step of the loop as the host sees it: which programs run, and when answers are bought."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from distill_core.config import InputError
from distill_core.runtime import parallel
from dpdfd import answers as answers_lib
from dpdfd import rounds
from dpdfd.conversion import ConversionState
from dpdfd.priors import images as priors
from dpdfd.privacy.bought import Bought
from dpdfd.privacy.budget import Budget
from dpdfd.programs import Programs


@dataclasses.dataclass(frozen=True)
class Run:
    """What the parts of a run share: values of `settings.FIELDS`, programs, and what is spent."""

    hp: Mapping[str, Any]
    programs: Programs
    frozen: Mapping[str, Any]
    mode: str
    budget: Budget
    image_shape: tuple[int, int, int]
    num_teachers: int
    bought: Bought

    @property
    def steps_per_round(self) -> int:
        return self.hp["num_steps"] // self.hp["num_rounds"]

    @property
    def releases_per_round(self) -> int:
        return self.hp["num_queries"] // self.hp["num_rounds"] // self.hp["batch_size"]


def prior_images(
    hp: Mapping[str, Any], image_shape: tuple[int, int, int], stream: int, num: int
) -> np.ndarray:
    """Images that code draws, float32 [num, H, W, C], of a seed's stream.

    Args:
      hp: `seed`, `prior` and `prior_extent`.
      image_shape: (H, W, C).
      stream: from 0; each has images of its own.
      num: how many.

    Raises:
      InputError: on `prior` or `prior_extent`.
    """
    height, width, channels = image_shape
    if height != width:
        raise InputError("prior", hp["prior"], f"draws squares, not {height}×{width}")
    extent = tuple(hp["prior_extent"]) or None
    try:
        return priors.mixture(
            hp["seed"] * 1000 + stream,
            num,
            size=height,
            channels=channels,
            weights=hp["prior"],
            extent=extent,  # pyright: ignore[reportArgumentType]: it checks the length
        )
    except InputError as error:
        field = {"weights": "prior", "extent": "prior_extent"}.get(error.field, "prior")
        raise InputError(field, error.given, error.allowed) from None


def make_batches(run: Run) -> Callable[[int], tuple[int, Any]]:
    """step -> (step, this process's places in the batch): all else is drawn on the devices."""
    index = np.arange(run.hp["batch_size"], dtype=np.int32)
    mine = index[parallel.local_rows(run.hp["batch_size"])]

    def batch_fn(step: int):
        return step, parallel.feed({"index": mine}, run.mode)

    return batch_fn


def make_step(run: Run) -> Callable:
    """One step of the loop: a round if one is due, the student's step, then the generator's."""
    hp, rounded = run.hp, bool(run.hp["num_rounds"])

    def step_fn(state, frozen, numbered):
        step, batch = numbered
        if rounded:
            if step % run.steps_per_round == 0:
                state = _buy(run, state, frozen, step // run.steps_per_round)
            state, metrics = run.programs.replay(state, {}, batch)
        else:
            run.budget.reserve(step, 16)
            state, metrics = run.programs.alternate(state, frozen, batch)
        every = hp["generator"]["every"]
        if every and (step + 1) % every == 0:
            guide = frozen if hp["guide"] == "teacher" else {}
            state, made = run.programs.generate(state, guide, batch)
            metrics = {**metrics, **made}
        return state, metrics

    return step_fn


def recall(run: Run, state: ConversionState) -> ConversionState:
    """A state from a checkpoint, with the queries and answers that were bought before its step.

    Raises:
      InputError: they are missing, and with them what the run has paid for.
    """
    step, (bank, bought) = int(state.step), (state.bank, 0)
    if not run.hp["num_rounds"] or step >= run.hp["num_steps"]:
        return state
    for number in range(-(-step // run.steps_per_round)):
        found = run.bought.read(number)
        if found is None:
            raise run.bought.missing(number)
        bank = rounds.deposit(bank, bought, *found)
        bought += len(found[0])
    return state.replace(bank=_smoothed(run, bank, bought))


def _buy(run: Run, state, frozen, number: int):
    """A round: draws queries, buys their answers, and puts both into the bank."""
    num = run.releases_per_round * run.hp["batch_size"]
    found = run.bought.read(number)
    if found is None:
        queries = _queries(run, state, number, num)
        found = queries, _answers(run, state, frozen, number, queries)
        run.bought.write(number, *found)
    bank = {name: np.asarray(value) for name, value in state.bank.items()}
    bank = rounds.deposit(bank, number * num, *found)
    bought = (number + 1) * num
    bank = _smoothed(run, bank, bought)
    seen = _predicted(run, state, bank["images"][:bought]) if number else None
    bank = rounds.balance(bank, bought, seen)
    return state.replace(bank=parallel.place(bank, run.mode))


def _smoothed(run: Run, bank: dict, bought: int) -> dict:
    return rounds.smooth(bank, bought, run.budget.answer_std) if run.hp["smooth"] else bank


def _queries(run: Run, state, number: int, num: int) -> np.ndarray:
    """uint8 [num, H, W, C], as the bank keeps them."""
    hp = run.hp
    candidates = num * (hp["candidates"] if number else 1)  # an untrained student cannot choose
    if hp["prior"]:
        queries = prior_images(hp, run.image_shape, 1 + number, candidates)
    else:
        queries = _drawn(run, state, number, candidates)
    queries = np.round(queries * 255).astype(np.uint8)
    if number:
        queries = queries[rounds.choose_balanced(_predicted(run, state, queries), num)]
    return queries


def _answers(run: Run, state, frozen, number: int, queries: np.ndarray) -> np.ndarray:
    """What a round buys, float32 [num, K]; written down as drawn before any noise is."""
    size, first = run.hp["batch_size"], number * run.releases_per_round
    counted = run.hp["mechanism"] == "answers"  # noised on the host, all at once
    if not counted:
        run.budget.reserve(first, run.releases_per_round)
    found = []
    for i in range(run.releases_per_round):
        release = np.full(size, first + i, np.int32)
        batch = {"image": queries[i * size : (i + 1) * size], "number": release}
        found.append(np.asarray(run.programs.ask(state, frozen, _fed(run, batch))))
    if not counted:
        return np.concatenate(found)
    run.budget.reserve(first, run.releases_per_round)
    seed = run.hp["noise_seed"]
    noisy = answers_lib.noisy_answers(
        np.concatenate(found),
        run.num_teachers,
        noise_multiplier=run.budget.noise_multiplier,
        random=os.urandom if seed is None else np.random.default_rng([seed, number]).bytes,
    )
    return parallel.from_main(noisy)


def _predicted(run: Run, state, images: np.ndarray) -> np.ndarray:
    """The student's probabilities [N, K], a batch at a time."""
    size, found = run.hp["batch_size"], []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
        probs = run.programs.predict(state, {}, _fed(run, {"image": padded}))
        found.append(np.asarray(probs)[: len(part)])
    return np.concatenate(found)


def _drawn(run: Run, state, number: int, num: int) -> np.ndarray:
    """Images of the generator, float32 [num, H, W, C]."""
    size, found = run.hp["batch_size"], []
    index = np.arange(size, dtype=np.int32)
    for i in range(-(-num // size)):
        batch = {"index": index, "number": np.full(size, number * 1_000_003 + i, np.int32)}
        found.append(np.asarray(run.programs.draw(state, {}, _fed(run, batch))))
    return np.concatenate(found)[:num]


def _fed(run: Run, batch: Mapping[str, np.ndarray]):
    rows = parallel.local_rows(run.hp["batch_size"])
    return parallel.feed({name: array[rows] for name, array in batch.items()}, run.mode)
