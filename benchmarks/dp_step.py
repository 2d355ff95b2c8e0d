"""What privacy costs a training step: plain distillation against the two private steps.

    python benchmarks/dp_step.py
    python benchmarks/dp_step.py --batch 256 --rounds 30

The 28×28 convolutional network with GroupNorm and a teacher of the same kind, batch on the device,
SGD with momentum, float32 (TF32 on a GPU), all cores. In one process, on JAX's device and by turns,
medians of each:

    kd            a step of plain distillation
    logit         the same with the logits' gradients normalised and noised
    param         the same with per-example gradients normalised and noised
    grad          the batch gradient alone, from given answers of the teacher
    sum           the sum of normalised per-example gradients, from the same
    clipped_grad  what jax_privacy makes of the same
    torch, opacus a plain and a private step of PyTorch, where Opacus is installed

Each line says where it ran. The machine may be shared, so ratios are what counts.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

# Two frameworks share a GPU: before JAX starts, which else takes most of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax_privacy import clipping

import dpdfd
from distill_core.losses import kl_divergence
from distill_core.models import create_model
from distill_core.models.apply import apply_model, count_parameters, init_model

NORM, NOISE = 1.0, 1.0
RATIOS = (
    ("logit", "kd", 1.2),
    ("param", "kd", None),
    ("sum", "grad", 2.5),
    ("clipped_grad", "grad", None),
    ("sum", "clipped_grad", None),
    ("opacus", "torch", None),
)


def jax_runs(images: np.ndarray):
    """Functions that do each of our steps and wait for it."""
    module = create_model("cnn", num_classes=10, norm="group")
    params, _ = init_model(module, jax.random.key(0), images.shape[1:])
    teacher, _ = init_model(module, jax.random.key(1), images.shape[1:])
    print(f"{count_parameters(params):,} parameters, batch {len(images)}")
    tx = optax.sgd(0.01, momentum=0.9)

    def logits_of(params, x):
        return apply_model(module, {"params": params}, x, train=False)

    def answers(x):
        return jax.nn.softmax(logits_of(teacher, x))

    def loss_fn(params, example):
        x, probs = example
        return kl_divergence(jnp.log(probs), logits_of(params, x[None])[0])

    def kd(params, x, key):
        def loss(params):
            return jnp.mean(kl_divergence(logits_of(teacher, x), logits_of(params, x)))

        return jax.grad(loss)(params)

    def logit(params, x, key):
        logits, pull_back = jax.vjp(lambda params: logits_of(params, x), params)
        grads = dpdfd.privatize_logit_gradients(
            key, logits, answers(x), norm=NORM, noise_multiplier=NOISE, mode="normalize"
        )
        return pull_back(grads / len(x))[0]

    def param(params, x, key):
        batch = (x, answers(x))
        total = dpdfd.bounded_gradient_sum(loss_fn, params, batch, norm=NORM, mode="normalize")
        total = dpdfd.noisy_sum(key, total, norm=NORM, noise_multiplier=NOISE)
        return jax.tree.map(lambda g: g / len(x), total)

    def trained(gradient):
        @jax.jit
        def step(params, opt_state, x, key):
            updates, opt_state = tx.update(gradient(params, x, key), opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        state, count = (params, tx.init(params)), 0

        def run():
            nonlocal state, count
            state = jax.block_until_ready(step(*state, x, jax.random.key(count)))
            count += 1

        return run

    def measured(function):
        compiled = jax.jit(function).lower(params, batch).compile()
        return lambda: jax.block_until_ready(compiled(params, batch))

    def total(params, batch):
        return jnp.sum(kl_divergence(jnp.log(batch[1]), logits_of(params, batch[0])))

    def normalized(params, batch):
        return dpdfd.bounded_gradient_sum(loss_fn, params, batch, norm=NORM, mode="normalize")

    x = jnp.asarray(images)
    batch = (x, jax.jit(answers)(x))
    theirs = clipping.clipped_grad(
        loss_fn, l2_clip_norm=0.0, rescale_to_unit_norm=True, keep_batch_dim=False
    )
    return {
        "kd": trained(kd),
        "logit": trained(logit),
        "param": trained(param),
        "grad": measured(jax.grad(total)),
        "sum": measured(normalized),
        "clipped_grad": measured(theirs),
    }


def torch_runs(images: np.ndarray, backend: str) -> dict[str, Callable[[], None]]:
    """PyTorch's plain and private step on JAX's device; {} without Opacus or that device."""
    try:
        import opacus
        import torch
        from opacus.optimizers import DPOptimizer
        from torch import nn
    except ImportError as error:
        print(f"torch, opacus: skipped ({error})")
        return {}
    device = {"cpu": "cpu", "gpu": "cuda"}.get(backend)
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        print(f"torch, opacus: skipped (PyTorch does not see the {backend} that JAX runs on)")
        return {}
    torch.set_float32_matmul_precision("high")

    def network():
        layers: list[nn.Module] = []
        for before, after in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(after // 16, after)]
            layers += [nn.MaxPool2d(2), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(1152, 128), nn.GroupNorm(8, 128), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(128, 10)).to(device)

    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)
    teacher = network()

    def trained(student: Any, optimizer: Any):
        def run():
            with torch.no_grad():
                probs = torch.softmax(teacher(x), 1)
            loss = nn.functional.kl_div(
                torch.log_softmax(student(x), 1), probs, reduction="batchmean"
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if x.is_cuda:
                torch.cuda.synchronize()

        return run

    plain, private = network(), opacus.GradSampleModule(network())
    descent = DPOptimizer(
        torch.optim.SGD(private.parameters(), 0.01, momentum=0.9),
        noise_multiplier=NOISE,
        max_grad_norm=NORM,
        expected_batch_size=len(images),
    )
    return {
        "torch": trained(plain, torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9)),
        "opacus": trained(private, descent),
    }


def main():
    """Times and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    shape = (options.batch, 28, 28, 1)
    images = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    backend = jax.default_backend()
    print(f"{backend}: {jax.devices()[0].device_kind}")
    runs = {**jax_runs(images), **torch_runs(images, backend)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(options.rounds + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if i >= 2:  # the first rounds compile and warm up
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name:12} {1e3 * seconds:8.1f} ms on the {backend}")
    for name, base, target in RATIOS:
        if name in runs:
            wanted = "" if target is None else f" (target: at most {target})"
            print(f"{name} / {base}: {medians[name] / medians[base]:.2f}{wanted}")
    print(json.dumps({"device": jax.devices()[0].device_kind, "seconds": medians}))


if __name__ == "__main__":
    main()
