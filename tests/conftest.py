"""Set-up of every test: eight CPU devices, no silent rank promotion, compilations kept."""

import os
import random
from pathlib import Path

import pytest

# All before JAX is imported; processes that a test starts inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# A second run of the tests compiles next to nothing.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# No test needs a display.
os.environ["MPLBACKEND"] = "agg"


@pytest.fixture(autouse=True, scope="module")
def noise_of_a_module(request):
    """What fixtures of a module draw from the operating system is the same in every run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", random.Random(request.node.nodeid).randbytes)
        yield


@pytest.fixture(autouse=True)
def noise_of_a_test(request, monkeypatch):
    """No test passes or fails by the noise that it happened to draw; two draws still differ."""
    monkeypatch.setattr(os, "urandom", random.Random(request.node.nodeid).randbytes)
