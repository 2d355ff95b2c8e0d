"""Our nasty training step against the same step in PyTorch, on this machine, in one run.

    pip install -e '.[torch]'
    python benchmarks/nasty_step.py [--model cnn|resnet18] [--batch 128] [--rounds 15]

Both sides: batch of 32×32×3 images already on the device, adversary in inference mode, nasty loss
(ω 0.04, τ 4), SGD with momentum 0.9 and weight decay 5e-4, float32, all cores. The two are
interleaved round by round, and medians are compared; the machine may be shared, so the ratio is
what counts. PyTorch runs eagerly, convolutions in channels_last.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from distill_core import classification, models, spec
from distill_core.training import TrainState
from nasty.train import objective_against

OMEGA, TEMPERATURE = 0.04, 4.0


def jax_step(model: str, images: np.ndarray, labels: np.ndarray):
    """A function that does one of our steps and waits for it."""
    network = {
        "model": model,
        "model_kwargs": {},
        "num_classes": 10,
        "input_shape": [32, 32, 3],
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "classes": [str(i) for i in range(10)],
    }
    key = json.dumps(network)
    optimizer = {
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "constant",
        "num_steps": 1000,
    }
    step, tx = classification.compiled(
        key, json.dumps(optimizer), objective_against(key), 0, False, "jit"
    )
    module = spec.build(network)
    params, model_state = models.init_model(module, jax.random.key(0), (32, 32, 3))
    adversary, statistics_ = models.init_model(module, jax.random.key(1), (32, 32, 3))
    frozen = {
        "adversary": {"params": adversary, **statistics_},
        "omega": jnp.float32(OMEGA),
        "temperature": jnp.float32(TEMPERATURE),
    }
    batch = jax.device_put(
        {
            "image": images,
            "label": labels,
            "index": np.arange(len(labels), dtype=np.int32),
            "extra": {},
        }
    )
    rng = jax.random.key(2)
    state = TrainState.create(params=params, model_state=model_state, tx=tx, rng=rng)

    def run():
        nonlocal state
        state, metrics = step(state, frozen, batch)
        jax.block_until_ready((state.params, metrics))

    return run


class TorchCNN(nn.Module):
    """The method's plain CNN."""

    def __init__(self):
        super().__init__()
        layers = []
        for before, after in ((3, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after)]
            layers += [nn.MaxPool2d(2), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(2048, 128), nn.BatchNorm1d(128), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(128, 10))

    def forward(self, x):
        return self.layers(x)


class TorchBlock(nn.Module):
    """ResNet-18's basic block."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x):
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class TorchResNet18(nn.Module):
    """ResNet-18 with a 3×3 stride-1 stem."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        before = 64
        for after, first in ((64, 1), (128, 2), (256, 2), (512, 2)):
            for stride in (first, 1):
                layers.append(TorchBlock(before, after, stride))
                before = after
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def torch_step(model: str, images: np.ndarray, labels: np.ndarray):
    """A function that does one of PyTorch's steps and waits for it."""
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    make = TorchCNN if model == "cnn" else TorchResNet18
    networks: Any = [make().to(device) for _ in range(2)]
    network, adversary = (each.to(memory_format=torch.channels_last) for each in networks)
    adversary.eval()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    pixels = pixels.to(device).contiguous(memory_format=torch.channels_last)
    targets = torch.from_numpy(labels).long().to(device)

    def run():
        with torch.no_grad():
            reference = adversary(pixels)
        logits = network(pixels)
        divergence = functional.kl_div(
            functional.log_softmax(reference / TEMPERATURE, 1),
            functional.log_softmax(logits / TEMPERATURE, 1),
            log_target=True,
            reduction="batchmean",
        )
        loss = functional.cross_entropy(logits, targets)
        loss = loss - OMEGA * TEMPERATURE**2 * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return run


def main():
    """Times and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=["cnn", "resnet18"], action="append")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (options.batch, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, options.batch).astype(np.int32)
    print(f"{jax.devices()[0].device_kind}, PyTorch on {torch.get_num_threads()} threads")
    for model in options.model or ["cnn", "resnet18"]:
        runs = {"ours": jax_step(model, images, labels), "torch": torch_step(model, images, labels)}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for i in range(options.rounds + 2):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if i >= 2:  # the first rounds compile and warm up
                    times[name].append(time.perf_counter() - start)
        ours, theirs = (statistics.median(times[name]) for name in ("ours", "torch"))
        print(
            f"{model}, batch {options.batch}: ours {1e3 * ours:.1f} ms, PyTorch {1e3 * theirs:.1f} "
            f"ms, ratio {ours / theirs:.2f} (medians of {options.rounds})",
            flush=True,
        )


if __name__ == "__main__":
    main()
