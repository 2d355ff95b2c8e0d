"""The Swing loss from hidden states against its direct form: memory, time and equality.

    python benchmarks/swing_loss.py
    python benchmarks/swing_loss.py --chunk 512 --noise 0.05

Value and gradients by the student's hidden states and embedding, over a vocabulary of 50,257: the
direct form (all logits of both networks, `swing_loss`, autodiff) and `swing_loss_from_hidden`, by
turns in one process. A tenth of the tokens is masked; --noise says what share of the rest is
private: heated, each by its own score, and noised. Memory is what XLA calls temporary, apart from
arguments and results. Needs about 5 GB.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp

from distill_core.losses import Array
from distill_core.training.chunked import chunk_for
from swingdistill import soft_targets, swing_loss, swing_loss_from_hidden, token_temperatures

SETTINGS = {"t_min": 1.0, "t_max": 16.0}


def direct(student, frozen, *, alpha, noise_scale, clip):
    """The weighted sum from whole logits."""
    hidden, embedding = student
    scores = frozen["scores"]
    target = soft_targets(
        frozen["key"],
        frozen["hidden"] @ frozen["embedding"].T,
        token_temperatures(scores, **SETTINGS),
        noise_scale=noise_scale and jnp.where(scores > 0, noise_scale, 0.0),
        clip=clip,
        noise_ids=frozen["ids"],
    )
    values = swing_loss(
        hidden @ embedding.T,
        target,
        frozen["labels"],
        scores,
        alpha=alpha,
        temperature=SETTINGS["t_min"],
        where=frozen["weights"] > 0,
    )
    return jnp.sum(frozen["weights"] * values)


def chunked(student, frozen, *, chunk, **settings):
    """The same, a chunk at a time."""
    hidden, embedding = student
    return swing_loss_from_hidden(
        hidden,
        embedding,
        frozen["hidden"],
        frozen["embedding"],
        frozen["labels"],
        frozen["scores"],
        key=frozen["key"],
        noise_ids=frozen["ids"],
        weights=frozen["weights"],
        chunk=chunk,
        **SETTINGS,
        **settings,
    )


def draw(shape: tuple[int, int], vocabulary: int, width: int, share: float):
    """Random networks' outputs; a share of the tokens is private, a tenth is masked."""
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def normal(*axes, scale):
        return scale * jax.random.normal(next(keys), axes)

    student = normal(*shape, width, scale=1.0), normal(vocabulary, width, scale=width**-0.5)
    scores = jax.random.uniform(next(keys), shape)
    private = jax.random.uniform(next(keys), shape) < share
    frozen = {
        "hidden": normal(*shape, width, scale=2.0),
        "embedding": normal(vocabulary, width, scale=width**-0.5),
        "labels": jax.random.randint(next(keys), shape, 0, vocabulary),
        "scores": jnp.where(private, scores, 0.0),
        "weights": (jax.random.uniform(next(keys), shape) > 0.1).astype(jnp.float32),
        "ids": jnp.arange(shape[0] * shape[1], dtype=jnp.uint32).reshape(shape),
        "key": jax.random.key(1),
    }
    return student, frozen


def largest_difference(one: Array, other: Array) -> float:
    """Relative to the largest value."""
    return float(jnp.max(jnp.abs(one - other)) / jnp.max(jnp.abs(one)))


def compare(share: float, *, chunk: int, repeats: int, batch: int, length: int, vocabulary: int):
    """Prints the three results for one share of noised tokens."""
    student, frozen = draw((batch, length), vocabulary, 256, share)
    settings = {"alpha": 0.5, "noise_scale": 1.0 if share else 0, "clip": 10.0}
    compiled, results, seconds = {}, {}, {"direct": [], "chunked": []}
    forms = {"direct": (direct, {}), "chunked": (chunked, {"chunk": chunk})}
    for name, (form, own) in forms.items():

        def call(student, frozen, form=form, own=own):
            return jax.value_and_grad(form)(student, frozen, **settings, **own)

        compiled[name] = jax.jit(call).lower(student, frozen).compile()
        results[name] = jax.block_until_ready(compiled[name](student, frozen))
    for _ in range(repeats):
        for name, program in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(program(student, frozen))
            seconds[name].append(time.perf_counter() - start)
    memory = {name: c.memory_analysis().temp_size_in_bytes / 1e6 for name, c in compiled.items()}
    times = {name: statistics.median(values) for name, values in seconds.items()}
    apart = [
        largest_difference(one, other)
        for one, other in zip(*map(jax.tree.leaves, results.values()), strict=True)
    ]
    print(
        f"noise on {share:4.0%}, {chunk} tokens at a time: "
        f"memory {memory['chunked']:,.0f} of {memory['direct']:,.0f} MB = "
        f"1/{memory['direct'] / memory['chunked']:.1f}; "
        f"time {1e3 * times['chunked']:.1f} of {1e3 * times['direct']:.1f} ms = "
        f"{times['chunked'] / times['direct']:.2f}; "
        f"difference: value {apart[0]:.0e}, hidden {apart[1]:.0e}, embedding {apart[2]:.0e}",
        flush=True,
    )
    found = {"noise": share, "chunk": chunk, "seconds": times, "megabytes": memory}
    print(json.dumps({**found, "apart": apart}), flush=True)


def main():
    """Compares each share of noise with each chunk."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--chunk", type=int, nargs="+", help="by default what suits the device")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.05, 1.0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=50_257)
    options = vars(parser.parse_args())
    print(jax.devices()[0].device_kind)
    shares, chunks = options.pop("noise"), options.pop("chunk")
    chunks = chunks or [chunk_for(options["vocabulary"])]
    for share in shares:
        for chunk in chunks:
            compare(share, chunk=chunk, **options)


if __name__ == "__main__":
    main()
