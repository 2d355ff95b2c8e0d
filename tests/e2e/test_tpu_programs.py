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
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(line["step"], line["mode"]): line for line in lines}


def test_every_step_is_compiled(compiled):
    modes = {(step, mode) for step in ("nasty", "plain", "swing") for mode in ("shard_map", "mesh")}
    assert compiled.keys() == modes | {("private", "shard_map")}
    assert all(line["chips"] == 8 and line["flops"] > 0 for line in compiled.values())


@pytest.mark.parametrize("mode", ["shard_map", "mesh"])
@pytest.mark.parametrize("step", ["nasty", "plain"])
def test_batch_norm_sums_once_a_layer_in_each_direction(compiled, step, mode):
    """Four layers of the CNN, and the gradients together."""
    found = compiled[step, mode]["collectives"]
    assert found.keys() == {"all-reduce"} and found["all-reduce"]["count"] <= 2 * 4 + 1


@pytest.mark.parametrize("mode", ["shard_map", "mesh"])
def test_no_tokens_are_gathered(compiled, mode):
    """The chunked loss sorts and loops over a device's own tokens."""
    assert compiled["swing", mode]["collectives"].keys() == {"all-reduce"}


def test_a_private_step_sums_once(compiled):
    assert compiled["private", "shard_map"]["collectives"]["all-reduce"]["count"] == 1
