"""Our nasty training step against the same step in PyTorch, on this machine, in one run.

    pip install -e '.[torch]'
    python benchmarks/nasty_step.py
    python benchmarks/nasty_step.py --model resnet18 --dtype bfloat16 --batch 512

Both sides have the same weights, and their first losses are compared. Batch of 32×32×3 images
already on the device, adversary in inference mode, nasty loss (ω 0.04, τ 4), SGD with momentum 0.9
and weight decay 5e-4, all cores. The sides are interleaved round by round, and medians are
compared; the machine may be shared, so the ratios are what counts.

PyTorch runs as it is written and compiled (`torch.compile` of forward pass and loss, default mode),
convolutions in channels_last. In float32 both may use a GPU's TF32; in bfloat16 ours computes in it
where its network says so, PyTorch under autocast, and parameters stay float32 on both sides.

With --several K a further line has K of our steps in one program, as `steps_per_dispatch` makes
them: best on accelerators, slow on a CPU.

A share of the chip's peak is the operations of our step (`distill_core.models.flops`: convolutions
and matrix products, forward and backward) by our time and by the peak: dense, of TF32 or of
bfloat16.
"""

import argparse
import dataclasses
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
import torch
import torch_networks
from torch.nn import functional

from distill_core import models
from distill_core.models.flops import count_flops
from distill_core.models.foreign import torch_layout, torch_weights
from distill_core.models.network import Network
from distill_core.runtime import peaks
from distill_core.training.optimizers import Optimizer
from distill_core.training.step import TrainState, Update
from nasty.step import Nasty

OMEGA, TEMPERATURE = 0.04, 4.0
SIDES = ("ours", "ours, several", "torch", "torch.compile")


def our_variables(model: str, network: torch.nn.Module) -> Any:
    """The same weights as our network has them: both have the same order of layers."""
    module = models.create_model(model, num_classes=10)
    shape = (32, 32, 3)
    params, _ = jax.eval_shape(lambda key: models.init_model(module, key, shape), jax.random.key(0))
    parts = [part for part in network.modules() if list(part.parameters(recurse=False))]
    tensors = {
        f"{name}.{kind}": value.cpu().numpy().copy()
        for (name, _), part in zip(torch_layout.layers(module, params), parts, strict=True)
        for kind, value in part.state_dict().items()
    }
    return torch_weights.convert(module, shape, tensors)


def jax_step(
    model: str,
    dtype: str,
    images: np.ndarray,
    labels: np.ndarray,
    theirs: "TorchStep",
    several: int,
):
    """(a function that does so many of our steps and returns their losses, flops of a step)."""
    network = Network(
        model,
        10,
        input_shape=(32, 32, 3),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        compute_dtype=dtype,
    )
    optimizer = Optimizer(learning_rate=0.01, num_steps=1000, weight_decay=5e-4)
    update = Update(Nasty(network, network), optimizer, several=several > 1)
    model_state = our_variables(model, theirs.network)
    params = model_state.pop("params")
    frozen = {
        "adversary": our_variables(model, theirs.adversary),
        "omega": jnp.float32(OMEGA),
        "temperature": jnp.float32(TEMPERATURE),
    }
    examples = {"image": images, "label": labels}
    examples["index"] = np.arange(len(labels), dtype=np.int32)
    one = jax.device_put(examples)
    batch = one
    if several > 1:
        batch = jax.tree.map(lambda x: jnp.repeat(x[:, None], several, axis=1), one)
    rng = jax.random.key(2)
    state = TrainState.create(params=params, model_state=model_state, tx=optimizer.make(), rng=rng)
    operations = count_flops(dataclasses.replace(update, several=False), state, frozen, one)
    lowered = jax.jit(update, donate_argnums=0).lower(state, frozen, batch)
    if dtype == "bfloat16" and "bf16" not in lowered.as_text():
        raise SystemExit("our step holds no bfloat16")
    compiled = lowered.compile()

    def run():
        nonlocal state
        state, metrics = compiled(state, frozen, batch)
        jax.block_until_ready((state.params, metrics))
        return np.ravel(metrics["loss"])

    return run, operations


class TorchStep:
    """PyTorch's side: networks, optimiser and batch on the device."""

    def __init__(self, model: str, dtype: str, images: np.ndarray, labels: np.ndarray, device: str):
        networks: Any = [torch_networks.make(model).to(device) for _ in range(2)]
        self.network, self.adversary = (
            each.to(memory_format=torch.channels_last) for each in networks
        )
        self.adversary.eval()
        parameters = list(self.network.parameters())
        self.num_parameters = sum(each.numel() for each in parameters)
        self.optimizer = torch.optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=5e-4)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
        self.pixels = pixels.contiguous(memory_format=torch.channels_last)
        self.labels = torch.from_numpy(labels).long().to(device)
        self.autocast = {
            "device_type": device, "dtype": torch.bfloat16, "enabled": dtype == "bfloat16",
        }  # fmt: skip

    def loss(self, pixels, labels):
        """Ours, from uint8 images on."""
        pixels = (pixels.float() / 255 - 0.5) / 0.25
        with torch.autocast(**self.autocast):
            with torch.no_grad():
                reference = self.adversary(pixels)
            logits = self.network(pixels)
        logits, reference = logits.float(), reference.float()
        divergence = functional.kl_div(
            functional.log_softmax(reference / TEMPERATURE, 1),
            functional.log_softmax(logits / TEMPERATURE, 1),
            log_target=True,
            reduction="batchmean",
        )
        return functional.cross_entropy(logits, labels) - OMEGA * TEMPERATURE**2 * divergence

    def runner(self, loss: Callable) -> Callable[[], list[float]]:
        """A function that does one step and returns its loss."""

        def run():
            found = loss(self.pixels, self.labels)
            self.optimizer.zero_grad()
            found.backward()
            self.optimizer.step()
            value = found.item()
            if self.pixels.is_cuda:
                torch.cuda.synchronize()
            return [value]

        return run

    def compiled_runner(self) -> Callable[[], list[float]] | None:
        """The same of the compiled loss, already compiled; None, and a line, where none works."""
        run = self.runner(torch.compile(self.loss, dynamic=False))
        try:
            run()
        except Exception as error:  # whatever is wrong with a machine's compilers
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            print(f"torch.compile is skipped, it works not here ({reason})", flush=True)
            return None
        return run


def choose_device(asked: str) -> str:
    """ "cuda" or "cpu", for both sides; JAX is told so.

    Raises:
      SystemExit: a GPU is asked for that not both see.
    """
    seen = asked != "cpu" and torch.cuda.is_available() and jax.default_backend() == "gpu"
    if asked == "cuda" and not seen:
        raise SystemExit("--device cuda: PyTorch and JAX do not both see a GPU")
    if not seen:
        jax.config.update("jax_default_device", jax.devices("cpu")[0])
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return "cuda" if seen else "cpu"


def known_peak(kind: str, dtype: str) -> float | None:
    """TFLOP/s of a GPU of this name, where we know it; of TF32 half of bfloat16's."""
    peak = peaks.peak(kind)
    return peak and peak / 1e12 / (1 if dtype == "bfloat16" else 2)


def measure(model: str, options: argparse.Namespace, device: str, peak: float | None) -> dict:
    """Medians of one network's steps, milliseconds, and what follows from them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (options.batch, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, options.batch).astype(np.int32)
    theirs = TorchStep(model, options.dtype, images, labels, device)
    made = (model, options.dtype, images, labels, theirs)
    ours, flops = jax_step(*made, 1)
    counts = {"ours": 1, "torch": 1, "torch.compile": 1, "ours, several": options.several}
    runs: dict[str, Callable] = {"ours": ours}
    if options.several > 1:
        runs["ours, several"], _ = jax_step(*made, options.several)
    runs["torch"] = theirs.runner(theirs.loss)
    first = {name: float(runs[name]()[0]) for name in ("ours", "torch")}
    apart = abs(first["ours"] - first["torch"]) / abs(first["torch"])
    if apart > (1e-3 if options.dtype == "float32" else 5e-2):
        raise SystemExit(f"{model}: the sides do not compute the same loss: {first}")
    if compiled := theirs.compiled_runner():
        runs["torch.compile"] = compiled
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(options.rounds + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if i >= 2:  # the first rounds warm up
                times[name].append((time.perf_counter() - start) / counts[name])
    seconds = {name: statistics.median(each) for name, each in times.items()}
    best = min(seconds[name] for name in seconds if name.startswith("ours"))
    share = flops / best / (peak * 1e12) if peak else None
    return {
        "model": model,
        "parameters": theirs.num_parameters,
        "first_losses": first,
        "ms": {name: 1e3 * each for name, each in seconds.items()},
        "images_per_second": {name: options.batch / each for name, each in seconds.items()},
        "ratio": {f"ours/{n}": seconds["ours"] / seconds[n] for n in seconds if n != "ours"},
        "flops": flops,
        "share_of_peak": share,
    }


def show(found: dict):
    """A network's lines of the table."""
    for name in SIDES:
        if name not in found["ms"]:
            continue
        ratio = found["ratio"].get(f"ours/{name}")
        ours = [each for each in found["ms"] if each.startswith("ours")]
        share = found["share_of_peak"] if name == min(ours, key=found["ms"].get) else None
        print(
            f"{found['model']:<13}{name:<15}{found['ms'][name]:>10.1f}"
            f"{found['images_per_second'][name]:>12,.0f}"
            f"{'' if ratio is None else f'{ratio:.2f}':>12}"
            f"{'' if share is None else f'{share:.1%}':>10}",
            flush=True,
        )


def main():
    """Times and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=list(torch_networks.NETWORKS), action="append")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    parser.add_argument("--several", type=int, default=1, help="steps in a program of ours")
    parser.add_argument("--peak_tflops", type=float, help="of the device, where it is not known")
    options = parser.parse_args()
    device = choose_device(options.device)
    kind = jax.devices("gpu" if device == "cuda" else "cpu")[0].device_kind
    peak = options.peak_tflops or known_peak(kind, options.dtype)
    about = f"{kind}, {options.dtype}, batch {options.batch}, medians of {options.rounds} rounds"
    print(f"{about}, {torch.get_num_threads()} threads of PyTorch")
    print(f"{'':<28}{'ms a step':>10}{'images/s':>12}{'ours/this':>12}{'of peak':>10}", flush=True)
    results = []
    for model in options.model or ["cnn", "resnet18"]:
        results.append(measure(model, options, device, peak))
        show(results[-1])
    summary = {
        "device": kind,
        "dtype": options.dtype,
        "batch": options.batch,
        "rounds": options.rounds,
        "peak_tflops": peak,
        "results": results,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
