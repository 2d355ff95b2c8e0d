"""What a TPU's compiler makes of small steps; skipped without libtpu (`jax[tpu]`)."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, of the extra tpu"
)
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tpu_compile.py"


@pytest.fixture(scope="module")
def compiled():
    """(step, mode) -> what `tpu_compile.py` says of it."""
    command = [sys.executable, str(SCRIPT), "--small", "--topology", "v5e:2x4"]
    command += ["--step", "nasty", "plain", "private", "swing", "llama"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(line["step"], line["mode"]): line for line in lines}


def test_every_step_is_compiled(compiled):
    steps = ("nasty", "plain", "swing", "llama")
    modes = {(step, mode) for step in steps for mode in ("shard_map", "mesh")}
    assert compiled.keys() == modes | {("private", "shard_map")}
    assert all(line["chips"] == 8 and line["flops"] > 0 for line in compiled.values())


@pytest.mark.parametrize("mode", ["shard_map", "mesh"])
@pytest.mark.parametrize("step", ["nasty", "plain"])
def test_batch_norm_sums_once_a_layer_in_each_direction(compiled, step, mode):
    """Four layers of the CNN; the gradients together, over a mesh those of split matrices apart."""
    found = compiled[step, mode]["collectives"]
    matrices = 5 if mode == "mesh" else 0
    assert found["all-reduce"]["count"] <= 2 * 4 + 1 + matrices


@pytest.mark.parametrize("step", ["nasty", "plain", "swing", "llama"])
def test_nothing_but_split_parameters_is_gathered(compiled, step):
    """Without a mesh nothing is: the chunked loss sorts and loops over a device's own tokens."""
    assert compiled[step, "shard_map"]["collectives"].keys() == {"all-reduce"}
    assert all(kind["of_logits"] == 0 for kind in compiled[step, "mesh"]["collectives"].values())


def test_a_mesh_needs_less_memory(compiled):
    split, whole = (compiled["llama", mode]["arguments_gib"] for mode in ("mesh", "shard_map"))
    assert split < 0.3 * whole


def test_a_private_step_sums_once(compiled):
    assert compiled["private", "shard_map"]["collectives"]["all-reduce"]["count"] == 1
