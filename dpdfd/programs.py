"""The compiled programs of a conversion, from what its networks and settings are."""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from distill_core import models
from distill_core.data.images import preprocess
from distill_core.models import spec
from distill_core.runtime import parallel
from distill_core.training import optimizers, run_state
from distill_core.training.step import stream_key
from dpdfd import conversion, rounds
from dpdfd.settings import TERMS

STREAM_QUERIES = 2
PyTree = Any


class Programs(NamedTuple):
    """Each is wrapped for the devices, as `(first, frozen, batch) -> replicated result`.

    Attributes:
      alternate: (state, frozen, {"index"}) -> (state, metrics): the student's step on fresh
        queries from the generator.
      generate: (state, frozen, {"index"}) -> (state, metrics): the generator's step.
      replay: (state, {}, {"index"}) -> (state, metrics): the student's step on the bank.
      ask: (state, frozen, {"image", "number"}) -> answers [B, K].
      predict: (state, {}, {"image"}) -> the student's probabilities [B, K].
      draw: (state, {}, {"index", "number"}) -> images [B, H, W, C] of the generator.
      student_tx, generator_tx: the optimisers.
    """

    alternate: Callable
    generate: Callable
    replay: Callable
    ask: Callable
    predict: Callable
    draw: Callable
    student_tx: optax.GradientTransformation
    generator_tx: optax.GradientTransformation


def compile_all(
    hp: Mapping[str, Any], student: Mapping, generator: Mapping, teacher: Mapping, mode: str
) -> Programs:
    """The programs of a run; runs that differ in seed, noise or teacher's weights share them.

    Args:
      hp: from `settings.validate`.
      student, generator, teacher: specs.
      mode: as for `parallel.wrap`.
    """
    optimizer = {name: hp[name] for name in run_state.OPTIMIZER_FIELDS}
    names = ("batch_size", "mechanism", "bound", "loss", "crop_padding", "guide")
    chosen = {name: hp[name] for name in names}
    chosen["terms"] = {name: hp["generator"][name] for name in TERMS}
    chosen["generator_rate"] = hp["generator"]["learning_rate"]
    texts = [json.dumps(each) for each in (chosen, optimizer, student, generator, teacher)]
    return _compiled(*texts, mode)


def teacher_outputs(described: Mapping[str, Any]) -> Callable:
    """`outputs(variables, images)`: a single teacher's probabilities [B, K]."""
    apply = spec.make_apply(described)
    return lambda variables, images: jax.nn.softmax(apply(variables, images))


def member_answers(described: Mapping[str, Any]) -> Callable:
    """`outputs(variables, images)`: probabilities [M, B, K] of an ensemble's members."""
    from dpdfd.ensemble import training as ensemble

    answers = ensemble.make_answers(described)
    return lambda variables, images: answers(variables, images, kind="probabilities")


@functools.lru_cache(maxsize=16)
def _compiled(
    chosen: str, optimizer: str, student: str, generator: str, teacher: str, mode: str
) -> Programs:
    hp, axis = json.loads(chosen), parallel.axis_name(mode)
    student_spec, teacher_spec = json.loads(student), json.loads(teacher)
    mechanism = None if hp["mechanism"] == "none" else hp["mechanism"]
    apply, size = spec.make_apply(student_spec), hp["batch_size"]
    module: Any = spec.build(json.loads(generator), axis_name=axis)
    student_tx = optimizers.make_optimizer(**json.loads(optimizer))
    generator_tx = optax.adam(hp["generator_rate"], b1=0.5)
    single = teacher_outputs(teacher_spec)
    outputs = member_answers(teacher_spec) if mechanism == "answers" else single

    def draw(state, frozen, batch):
        key = stream_key(state.generator.rng, STREAM_QUERIES, batch["number"][0])
        z, labels = conversion.draw_latents(key, batch["index"], module, size)
        variables = {"params": state.generator.params, **state.generator.model_state}
        return conversion.generate(module, variables, z, labels)[0]

    student_step = conversion.make_student_step(
        apply,
        single,
        student_tx,
        mechanism=mechanism if mechanism != "answers" else None,
        bound=hp["bound"],
        axis_name=axis,
    )

    def alternate(state, frozen, batch):
        number = jnp.full_like(batch["index"], state.student.step)
        images = draw(state, frozen, {**batch, "number": number})
        new, metrics = student_step(state.student, frozen, images)
        return state.replace(student=new), metrics

    guided = student_spec if hp["guide"] == "student" else teacher_spec
    guide_step = conversion.make_generator_step(
        module,
        _guide(guided),
        generator_tx,
        weights=hp["terms"],
        batch_size=size,
        axis_name=axis,
    )

    def generate(state, frozen, batch):
        variables = {"params": state.student.params, **state.student.model_state}
        guide = variables if hp["guide"] == "student" else frozen["teacher"]
        new, metrics = guide_step(state.generator, {"guide": guide}, batch)
        return state.replace(generator=new), {"generator_loss": metrics["loss"]}

    replay_step = rounds.make_replay_step(
        apply, student_tx, loss=hp["loss"], crop_padding=hp["crop_padding"], axis_name=axis
    )

    def replay(state, frozen, batch):
        new, metrics = replay_step(state.student, {"bank": state.bank}, batch)
        return state.replace(student=new), metrics

    asked = rounds.make_ask(apply, outputs, mechanism=mechanism, bound=hp["bound"], axis_name=axis)

    def ask(state, frozen, batch):
        return asked({"params": state.student.params}, frozen, batch)

    def predict(state, frozen, batch):
        probs = jax.nn.softmax(apply({"params": state.student.params}, batch["image"]))
        return rounds.gather(probs, axis, 0)

    def drawn(state, frozen, batch):
        return rounds.gather(draw(state, frozen, batch), axis, 0)

    return Programs(
        parallel.wrap(alternate, mode, donate=True),
        parallel.wrap(generate, mode, donate=True),
        parallel.wrap(replay, mode, donate=True),
        parallel.wrap(ask, mode),
        parallel.wrap(predict, mode),
        parallel.wrap(drawn, mode),
        student_tx,
        generator_tx,
    )


def _guide(described: Mapping[str, Any]) -> Callable:
    """`guide(variables, images) -> (logits, features)`, at inference."""
    module, apply = spec.build(described), spec.make_apply(described)
    mean, std = tuple(described["mean"]), tuple(described["std"])

    def guide(variables, images):
        shown = models.features(module, variables, preprocess.preprocess(images, mean, std))
        return apply(variables, images), shown

    return guide
