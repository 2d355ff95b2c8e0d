"""Memory and time of reading a sharded checkpoint of Hugging Face's, beside the size of its files.

    python benchmarks/read_checkpoint.py [--gigabytes 1.5] [--shards 4] [--dtype bfloat16]

Writes a random Llama into a temporary directory, reads it by `distill_core.load_model` in a process
of its own, and prints the most memory that process had beyond what it has after its imports.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from distill_core.models.foreign import decoders

_READ = """
import pathlib, re, sys, time
import jax, safetensors.numpy, distill_core
from distill_core.models.foreign import huggingface
def peak():  # unlike getrusage's, not inherited from the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
before = peak()
start = time.perf_counter()
loaded = distill_core.load_model(sys.argv[1])
seconds = time.perf_counter() - start
print(seconds, (peak() - before) * 1024)
"""


def main():
    """Writes the checkpoint, reads it and prints the numbers."""
    parser = argparse.ArgumentParser(description="Reads a sharded checkpoint.")
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    given = parser.parse_args()
    dtype = np.dtype(np.float32 if given.dtype == "float32" else ml_dtypes.bfloat16)
    config = {
        "model_type": "llama",
        "vocab_size": 50_000,
        "hidden_size": 1024,
        "num_hidden_layers": 1,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }

    def parameters():
        places = decoders.layout(decoders.settings(config), config["vocab_size"])
        return sum(int(np.prod(place.shape)) for place in places)

    while parameters() * dtype.itemsize < given.gigabytes * 1e9:
        config["num_hidden_layers"] += 1
    with tempfile.TemporaryDirectory() as temporary:
        size = _write(pathlib.Path(temporary), config, dtype, given.shards)
        command = [sys.executable, "-c", _READ, temporary]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    seconds, memory = map(float, told)
    print(
        f"{size / 1e9:.2f} GB in {given.shards} files of {given.dtype}: {seconds:.1f} s, "
        f"{memory / 1e9:.2f} GB of memory, {memory / size:.2f} x the files"
    )


def _write(folder: pathlib.Path, config: dict, dtype: np.dtype, shards: int) -> int:
    """The directory; returns the bytes of its tensors."""
    (folder / "config.json").write_text(json.dumps(config))
    places = list(decoders.layout(decoders.settings(config), config["vocab_size"]))
    rng, weight_map, total = np.random.default_rng(0), {}, 0
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {}
        for place in places[i * len(places) // shards : (i + 1) * len(places) // shards]:
            shape = place.shape[::-1] if place.turned else place.shape
            part[place.name] = rng.standard_normal(shape, np.float32).astype(dtype)
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
        total += (folder / name).stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


if __name__ == "__main__":
    main()
