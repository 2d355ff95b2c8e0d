"""The project's training steps at the sizes that are measured, with random weights and data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from distill_core.models.network import Network
from distill_core.step import Labels
from distill_core.training.gradients import PrivateGradient
from distill_core.training.optimizers import Optimizer
from distill_core.training.step import TrainState, Update, mean_gradient
from nasty.step import Nasty
from swingdistill.step import Swing

GPT2 = {"num_layers": 12, "num_heads": 12, "width": 768}
LLAMA_8B = {
    "num_layers": 32, "num_heads": 32, "num_kv_heads": 8, "width": 4096, "mlp_width": 14_336,
    "rope_theta": 500_000.0, "tied": False,
}  # fmt: skip
LLAMA_1B = {
    "num_layers": 16, "num_heads": 32, "num_kv_heads": 8, "head_dim": 64, "width": 2048,
    "mlp_width": 8192, "rope_theta": 500_000.0,
}  # fmt: skip
SGD = Optimizer(learning_rate=0.01, num_steps=1000, weight_decay=5e-4)
ADAMW = Optimizer(optimizer="adamw", learning_rate=1e-4, num_steps=1000, weight_decay=0.01)


@dataclasses.dataclass(frozen=True)
class Step:
    """A step and what it reads.

    Attributes:
      update: as the training loop compiles it.
      make: () -> (state, frozen, batch), pure; under `jax.eval_shape` their shapes.
      per_step: images or tokens in a batch.
      unit: which of both.
      vocabulary: V of text.
    """

    update: Update
    make: Callable[[], tuple[Any, Any, Any]]
    per_step: int
    unit: str
    vocabulary: int | None = None


def images(kind: str, batch: int, *, model: str = "resnet18", dtype: str = "bfloat16") -> Step:
    """A step on 32×32×3 images: "plain", "nasty", or "private" with a record's gradient each."""
    kwargs = {"norm": "group"} if kind == "private" else {}
    network = Network(
        model, 10, kwargs, input_shape=(32, 32, 3), mean=(0.5,) * 3, std=(0.25,) * 3,
        compute_dtype=dtype,
    )  # fmt: skip
    nasty = kind == "nasty"
    objective = Nasty(network, network) if nasty else Labels(network)
    gradient = PrivateGradient() if kind == "private" else mean_gradient
    update = Update(objective, SGD, gradient)

    def make():
        keys = jax.random.split(jax.random.key(0), 4)
        params, model_state = network._init(keys[0])
        state = TrainState.create(
            params=params, model_state=model_state, tx=SGD.make(), rng=keys[1]
        )
        examples = {
            "image": jax.random.bits(keys[2], (batch, 32, 32, 3), jnp.uint8),
            "label": jax.random.randint(keys[3], (batch,), 0, 10),
            "index": jnp.arange(batch),
        }
        if kind == "private":
            where, step = jnp.ones(batch, bool), jnp.zeros(batch, jnp.int32)
            scales = ("norm", "noise_multiplier", "batch_size")
            dp = {"key": keys[1], **{name: jnp.float32(1.0) for name in scales}}
            return state, {"dp": dp}, {"rows": examples, "where": where, "step": step}
        if not nasty:
            return state, {}, examples
        theirs, statistics = network._init(keys[3])
        numbers = {"omega": jnp.float32(0.04), "temperature": jnp.float32(4.0)}
        return state, {"adversary": {"params": theirs, **statistics}, **numbers}, examples

    return Step(update, make, batch, "images")


def swing(
    batch: int,
    length: int = 1024,
    *,
    vocabulary: int = 50_257,
    teacher: dict[str, int] = GPT2,
    student_layers: int = 6,
    dtype: str = "bfloat16",
) -> Step:
    """A Swing step from a GPT-2 to one with fewer layers; 5% of the tokens are private."""
    theirs, ours = (
        Network("transformer", vocabulary, each, max_length=length, compute_dtype=dtype)
        for each in (teacher, {**teacher, "num_layers": student_layers})
    )
    return _swing(ours, theirs, None, batch, length)


def llama(
    batch: int,
    length: int = 2048,
    *,
    vocabulary: int = 128_256,
    teacher: dict[str, Any] = LLAMA_8B,
    student: dict[str, Any] = LLAMA_1B,
) -> Step:
    """A Swing step anchored by a reference of the student's size: Llama 3 with 8 billion parameters
    to 1 billion, blocks computed again in the backward pass, frozen networks in bfloat16."""
    theirs, ours, public = (
        Network(
            "decoder", vocabulary, kwargs, max_length=length, compute_dtype="bfloat16", remat=remat
        )
        for kwargs, remat in ((teacher, False), (student, True), (student, False))
    )
    return _swing(ours, theirs, public, batch, length)


def _swing(ours: Network, theirs: Network, public: Network | None, batch: int, length: int) -> Step:
    vocabulary, variant = ours.num_classes, "anchored" if public else "swing"
    objective = Swing(ours, theirs, public, variant, None, False, True)

    def stored(network: Network, key: jax.Array) -> Any:
        params, _ = network._init(key)
        if public is None:
            return {"params": params}
        return {"params": jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)}

    def make():
        keys = jax.random.split(jax.random.key(0), 6)
        params, _ = ours._init(keys[0])
        state = TrainState.create(params=params, model_state={}, tx=ADAMW.make(), rng=keys[1])
        shape = (batch, length)
        tokens = jax.random.randint(keys[3], shape, 0, vocabulary)
        scores = jax.random.uniform(keys[4], shape)
        scores = jnp.where(scores < 0.05, 20 * scores, 0.0)
        numbers = {"alpha": 0.7, "t_min": 1.0, "t_max": 16.0, "gamma": 1.0, "clip": 10.0}
        frozen: dict[str, Any] = {name: jnp.float32(value) for name, value in numbers.items()}
        frozen |= {"teacher_weight": jnp.float32(0.0), "noise_key": keys[1]}
        frozen["teacher"] = stored(theirs, keys[2])
        if public is not None:
            frozen["reference"] = stored(public, keys[5])
        examples = {
            "tokens": tokens,
            "labels": jnp.roll(tokens, -1, axis=1),
            "segments": jnp.zeros(shape, jnp.int32),
            "weights": jnp.ones(shape, jnp.float32),
            "scores": scores,
            "noise_scale": (scores > 0).astype(jnp.float32),
        }
        return state, frozen, examples

    return Step(Update(objective, ADAMW), make, batch * length, "tokens", vocabulary)
