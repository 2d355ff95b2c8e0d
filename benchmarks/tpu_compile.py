"""Compiles the project's steps for TPUs that need not be there, and counts what a chip would do.

    pip install -e '.[tpu]'
    python benchmarks/tpu_compile.py
    python benchmarks/tpu_compile.py --step nasty --topology v5e:16x16 --mode mesh
    python benchmarks/tpu_compile.py --step llama resnet50 --topology v5e:16x16 --mode mesh

On any Linux machine: libtpu brings the compiler. For each step, mode and topology it prints a
chip's memory (arguments, and what is temporary), XLA's count of its operations beside ours
(`distill_core.models.flops`), and the collectives by kind, with the bytes of their results, and how
many are of logits. Nothing runs, so that it says nothing about time. A step takes a minute or two,
`llama` an hour.

    nasty    ResNet-18 against an adversary, bfloat16, 128 images a chip
    plain    ResNet-18, bfloat16, 128 images a chip
    private  a small CNN with GroupNorm, per-example gradients, float32, 128 images a chip
    swing    GPT-2 (124 million parameters) to 6 layers, bfloat16, 16 × 1,024 tokens a chip
    llama    Llama 3 (8 billion) to 1 billion, anchored by 1 billion, bfloat16, 2,048 tokens a chip
    resnet50 ResNet-50, bfloat16, 32×32 pixels, 128 images a chip
"""

import argparse
import collections
import json
import math
import os
import re
import time
from typing import Any

# Before libtpu is loaded: it would look for the machine's own chips.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip, nothing to hold alone

import jax
import steps
from jax.experimental import topologies

from distill_core.models.flops import count_flops
from distill_core.runtime import backend, parallel

GIB = 2**30
MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}  # GiB a chip, as Google's pages have it
STEPS = ("nasty", "plain", "private", "swing", "llama", "resnet50")
TOPOLOGIES, MODES = ("v5e:2x4", "v5e:16x16"), ("shard_map", "mesh")
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_OP = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CHAIN = re.compile(r'chain_id="(\d+)"')
_ARRAY = re.compile(r"(pred|[a-z]+\d+)\[([\d,]*)\]")


def make(name: str, chips: int, small: bool) -> steps.Step:
    """A step of so many chips' batch; `small` ones compile in seconds."""
    if name == "swing":
        if small:
            tiny = {"num_layers": 1, "num_heads": 2, "width": 64}
            return steps.swing(2 * chips, 128, vocabulary=512, teacher=tiny, student_layers=1)
        return steps.swing(16 * chips)
    if name == "llama":
        if small:
            tiny = {"num_layers": 2, "num_heads": 4, "width": 128}
            return steps.llama(chips, 128, vocabulary=1024, teacher=tiny, student=tiny)
        return steps.llama(chips)
    if name == "resnet50":
        return steps.images("plain", (8 if small else 128) * chips, model="resnet50")
    if name == "private":
        return steps.images(name, (8 if small else 128) * chips, model="cnn", dtype="float32")
    return steps.images(name, (8 if small else 128) * chips, model="cnn" if small else "resnet18")


def collectives(program: str, vocabulary: int | None = None) -> dict[str, dict[str, int]]:
    """Kind -> {"count", "bytes" of all results, "largest", "of_logits"} of an optimised program.

    What the compiler takes apart, to overlap it with other work, counts once. Logits have the
    vocabulary as their last axis, unlike tables.
    """
    found: dict[str, dict[str, int]] = collections.defaultdict(
        lambda: {"count": 0, "bytes": 0, "largest": 0, "of_logits": 0}
    )
    known = set()
    for line in program.splitlines():
        if not (op := _OP.search(line)):
            continue
        (types, kind, started), chain = op.groups(), _CHAIN.search(line)
        if chain and (kind, chain[1]) in known:
            continue
        if chain:
            known.add((kind, chain[1]))
        shapes = [(_bits(dtype), _dims(dims)) for dtype, dims in _ARRAY.findall(types)]
        sizes = [math.prod(dims) * max(1, bits // 8) for bits, dims in shapes]
        # What is started returns its operands, too.
        size = max(sizes, default=0) if started and kind != "all-reduce" else sum(sizes)
        entry = found[kind]
        entry["count"] += 1
        entry["bytes"] += size
        entry["largest"] = max(entry["largest"], size)
        entry["of_logits"] += any(
            len(dims) > 1 and dims[-1] == vocabulary != dims[0] for _, dims in shapes
        )
    return dict(found)


def _dims(text: str) -> tuple[int, ...]:
    return tuple(map(int, filter(None, text.split(","))))


def _bits(dtype: str) -> int:
    return 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))


def compile_step(name: str, mode: str, topology: str, small: bool) -> dict[str, Any]:
    """What a chip of the topology would do in a step."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    kind = topology.partition(":")[0]
    step, began = make(name, len(devices), small), time.perf_counter()
    shapes = jax.eval_shape(step.make)
    counted = count_flops(step.update, *shapes) / len(devices)
    with backend.assume("tpu", MEMORY.get(kind, 16) * GIB):
        compiled = parallel.lower(step.update, mode, devices, *shapes).compile()
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    return {
        "step": name,
        "mode": mode,
        "topology": topology,
        "chips": len(devices),
        "arguments_gib": memory.argument_size_in_bytes / GIB,
        "temporary_gib": memory.temp_size_in_bytes / GIB,
        "flops": cost["flops"],
        "counted_flops": counted,
        "collectives": collectives(compiled.as_text() or "", step.vocabulary),
        "seconds_to_compile": time.perf_counter() - began,
    }


def main():
    """Compiles and prints, a line and a JSON object for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--step", nargs="+", choices=STEPS, default=STEPS[:4])
    parser.add_argument("--topology", nargs="+", default=TOPOLOGIES, metavar="v5e:2x4")
    parser.add_argument(
        "--mode", nargs="+", default=MODES, help="shard_map, mesh, or the shape of a mesh"
    )
    parser.add_argument("--small", action="store_true", help="tiny steps, to try it")
    options = parser.parse_args()
    print(
        f"{'step':<9}{'mode':<11}{'topology':<11}{'arguments':>10}{'temporary':>10}"
        f"{'flops':>10}{'counted':>10}  collectives"
    )
    for topology in options.topology:
        for name in options.step:
            for mode in options.mode:
                if name == "private" and parallel.is_mesh(
                    mode
                ):  # refused: XLA splits its sums wrongly
                    continue
                found = compile_step(name, mode, topology, options.small)
                each = (
                    f"{kind} {n['count']} ({n['bytes'] / 1e6:.1f} MB)"
                    for kind, n in found["collectives"].items()
                )
                print(
                    f"{name:<9}{mode:<11}{topology:<11}{found['arguments_gib']:>6.2f} GiB"
                    f"{found['temporary_gib']:>6.2f} GiB{found['flops']:>10.2e}"
                    f"{found['counted_flops']:>10.2e}  {', '.join(each) or 'none'}"
                )
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
