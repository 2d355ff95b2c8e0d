"""Buys answers, one round at a time: draws queries, asks the teacher, and banks both."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from distill_core.data.images.preprocess import preprocess
from distill_core.runtime import parallel
from distill_core.runtime.collectives import all_gather
from dpdfd import bank as bank_lib
from dpdfd.conversion import Prior, Run
from dpdfd.generator import queries
from dpdfd.privacy import exact_noise
from dpdfd.privacy.mechanism import privatize_logit_gradients
from dpdfd.step import Conversion, State

PyTree = Any


def buy(run: Run, state: State, frozen, number: int) -> State:
    """The state after a round: queries and answers are in the bank.

    Args:
      run: in whose `private/` answers are kept before anything is made of them; what is there
        already is not bought again.
      state: its student chooses the queries, and its generator draws them if there is no prior.
      frozen: as for `ask`.
      number: of the round, from 0.
    """
    num = run.releases_per_round * run.hp.batch_size
    found = run.bought.read(number)
    if found is None:
        found = _asked(run, state, frozen, number, num)
        run.bought.write(number, *found)
    bank = {name: np.asarray(value) for name, value in state.bank.items()}
    bank = bank_lib.deposit(bank, number * num, *found)
    bought = (number + 1) * num
    bank = _with_features(run, state, bank, slice(number * num, bought))
    bank = _smoothed(run, bank, bought)
    seen = None
    if _is_free(run):
        seen = bank["answers"][:bought]
    elif number:
        seen = _predicted(run, state, bank["images"][:bought])
    bank = bank_lib.balance(bank, bought, seen)
    return state.replace(bank=parallel.place(bank, run.mode))


def ask(c: Conversion, state: State, frozen: PyTree, batch: PyTree) -> jax.Array:
    """The teacher's answers to public queries, [B, K], all of them on every device; pure.

    "answers": counts of the members' answers, which the host has yet to noise. "logit":
    p_S − ĝ with ĝ = p_S − p_T, bounded and noised: the teacher's noisy answer as long as nothing
    was bounded. None: p_T. `batch` holds `image` [b, H, W, C] and `number` int32 [b], the release's
    in all rows: noise is drawn once for each.
    """
    images, teacher = batch["image"], frozen["teacher"]
    if c.mechanism == "answers":
        inputs = preprocess(images, c.teacher.mean, c.teacher.std)
        ensemble = c.teacher.module()
        members: Any = ensemble.apply(teacher, inputs, "votes", method="answers")
        return all_gather(exact_noise.answer_counts(members))
    probs = jax.nn.softmax(c.teacher.apply(teacher, images))
    if c.mechanism is None:
        return all_gather(probs)
    noise, logits = frozen["noise"], c.student.apply(_student(state), images)
    key = jax.random.fold_in(noise["key"], batch["number"][0])
    scales = {name: noise[name] for name in ("norm", "noise_multiplier")}
    grads = privatize_logit_gradients(key, logits, probs, mode=c.bound, **scales)
    return all_gather(jax.nn.softmax(logits) - grads)


def predict(c: Conversion, state: State, frozen: PyTree, batch: PyTree) -> jax.Array:
    """The student's probabilities [B, K] of `batch["image"]`; pure."""
    return all_gather(jax.nn.softmax(c.student.apply(_student(state), batch["image"])))


def public_part(c: Conversion, state: State, frozen: PyTree, batch: PyTree) -> jax.Array:
    """The student's public features [B, D] of `batch["image"]`; pure."""
    return all_gather(c.student.public(_student(state), batch["image"]))


def _student(state: State) -> PyTree:
    return {"params": state.student.params, **state.student.model_state}


def draw(c: Conversion, state: State, frozen: PyTree, batch: PyTree) -> jax.Array:
    """Images [B, H, W, C] of the generator; `batch["number"]`, equal in all rows, says which."""
    number = batch["number"][0]
    return all_gather(queries(c.generator, state.generator, batch["index"], number, c.batch_size))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a checkpoint keeps a state: student and generator are networks of their own.

    Of the bank it keeps the replay probabilities alone: answers stay in `private/`, see `bought`.
    """

    run: Run

    def split(self, state: State) -> tuple[dict, dict]:
        """(parts, train) for the checkpoint."""
        trained = {"student": state.student, "generator": state.generator}
        parts = {
            name: {"params": one.params, "model_state": one.model_state}
            for name, one in trained.items()
        }
        train = {
            name: {"step": one.step, "opt_state": one.opt_state, "rng": one.rng}
            for name, one in trained.items()
        }
        kept = {name: state.bank[name] for name in ("replay_cdf",) if name in state.bank}
        return parts, {**train, "bank": kept}

    def merge(self, state: State, parts: dict, train: dict) -> State:
        """The inverse, with the queries and answers that were bought before its step.

        Raises:
          InputError: they are missing, and with them what the run has paid for.
        """
        student = state.student.replace(**parts["student"], **train["student"])
        generator = state.generator.replace(**parts["generator"], **train["generator"])
        bank, bought, step = {**state.bank, **train["bank"]}, 0, int(student.step)
        if bank and step < self.run.hp.num_steps:
            for number in range(-(-step // self.run.steps_per_round)):
                found = self.run.bought.read(number)
                if found is None:
                    raise self.run.bought.missing(number)
                bank = bank_lib.deposit(bank, bought, *found)
                bought += len(found[0])
            bank = _with_features(self.run, State(student, generator, bank), bank, slice(bought))
            bank = _smoothed(self.run, bank, bought)
        return State(student, generator, bank)


def _smoothed(run: Run, bank: dict, bought: int) -> dict:
    return bank_lib.smooth(bank, bought, run.budget.answer_std) if run.hp.smooth else bank


def _is_free(run: Run) -> bool:
    """Whether the teacher may be asked without limit: no noise is on its answers."""
    return run.conversion.mechanism is None


def _asked(run: Run, state: State, frozen, number: int, num: int):
    """Queries uint8 [num, H, W, C] and answers float32 [num, K], as the bank keeps them.

    Of the candidates those are taken that spread over the classes: by the teacher's answers where
    these are free, else by the student's prediction.
    """
    if _is_free(run):
        queries = _candidates(run, state, number, num * run.hp.candidates)
        answers = _batched(run, ask, state, frozen, queries)
        rows = bank_lib.choose_balanced(answers, num)
        return queries[rows], answers[rows]
    # An untrained student cannot choose.
    queries = _candidates(run, state, number, num * (run.hp.candidates if number else 1))
    if number:
        queries = queries[bank_lib.choose_balanced(_predicted(run, state, queries), num)]
    return queries, _answers(run, state, frozen, number, queries)


def _candidates(run: Run, state: State, number: int, candidates: int) -> np.ndarray:
    """uint8 [candidates, H, W, C], drawn by the prior, or else by the generator."""
    hp = run.hp
    if hp.prior:
        shape = run.conversion.student.input_shape
        queries = Prior.of(hp, run.moments).draw(hp.seed, shape, 1 + number, candidates)
    else:
        queries = _drawn(run, state, number, candidates)
    return np.round(queries * 255).astype(np.uint8)


def _answers(run: Run, state: State, frozen, number: int, queries: np.ndarray) -> np.ndarray:
    """What a round buys, float32 [num, K]; written down as drawn before any noise is."""
    size, first = run.hp.batch_size, number * run.releases_per_round
    counted = run.hp.mechanism == "answers"  # noised on the host, all at once
    if not counted:
        run.budget.reserve(first, run.releases_per_round)
    asked, found = run.program(ask), []
    for i in range(run.releases_per_round):
        release = np.full(size, first + i, np.int32)
        batch = {"image": queries[i * size : (i + 1) * size], "number": release}
        found.append(np.asarray(asked(state, frozen, _fed(run, batch))))
    if not counted:
        return np.concatenate(found)
    run.budget.reserve(first, run.releases_per_round)
    seed = run.hp.noise_seed
    noisy = exact_noise.noisy_answers(
        np.concatenate(found),
        run.num_teachers,
        noise_multiplier=run.budget.noise_multiplier,
        random=os.urandom if seed is None else np.random.default_rng([seed, number]).bytes,
    )
    return parallel.from_main(noisy)


def _predicted(run: Run, state: State, images: np.ndarray) -> np.ndarray:
    """The student's probabilities [N, K]."""
    return _batched(run, predict, state, {}, images)


def _with_features(run: Run, state: State, bank: dict, rows: slice) -> dict:
    """The bank with the student's public features of these queries, if it keeps any."""
    if "features" not in bank:
        return bank
    features = np.array(bank["features"])
    features[rows] = _batched(run, public_part, state, {}, bank["images"][rows])
    return {**bank, "features": features}


def _batched(run: Run, function, state: State, frozen, images: np.ndarray) -> np.ndarray:
    """What a function of this module makes of images [N, …], a batch at a time."""
    size, program, found = run.hp.batch_size, run.program(function), []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        padded = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
        batch = _fed(run, {"image": padded})
        found.append(np.asarray(program(state, frozen, batch))[: len(part)])
    return np.concatenate(found)


def _drawn(run: Run, state: State, number: int, num: int) -> np.ndarray:
    """Images of the generator, float32 [num, H, W, C]."""
    size, drawn, found = run.hp.batch_size, run.program(draw), []
    index = np.arange(size, dtype=np.int32)
    for i in range(-(-num // size)):
        batch = {"index": index, "number": np.full(size, number * 1_000_003 + i, np.int32)}
        found.append(np.asarray(drawn(state, {}, _fed(run, batch))))
    return np.concatenate(found)[:num]


def _fed(run: Run, batch: Mapping[str, np.ndarray]):
    rows = parallel.local_rows(run.hp.batch_size, run.mode)
    return parallel.feed({name: array[rows] for name, array in batch.items()}, run.mode)
