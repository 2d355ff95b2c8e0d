"""Set-up of every test: eight CPU devices, no silent rank promotion, compilations kept."""

import os
import random
import sys
from pathlib import Path

import pytest

# All before JAX is imported; processes that a test starts inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time goes into compiling, which takes less with few of LLVM's optimizations.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1 "
    + os.environ.get("XLA_FLAGS", "")
).strip()
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# A second run of the tests compiles next to nothing.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# No test needs a display.
os.environ["MPLBACKEND"] = "agg"


def pytest_collection_modifyitems(items):
    """Files with the longest tests come first, so that no process is left alone with one."""
    long = {"test_notebooks.py", "e2e", "multiprocess", "experiment"}
    items.sort(key=lambda item: long.isdisjoint(item.path.parts))


@pytest.fixture(autouse=True, scope="module")
def noise_of_a_module(request):
    """What fixtures of a module draw from the operating system is the same in every run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", random.Random(request.node.nodeid).randbytes)
        yield


@pytest.fixture(autouse=True, scope="module")
def few_compiled_programs():
    """Drops what is compiled before the process has as many memory maps as Linux allows, 65,530.

    A program compiled for the CPU takes a few, and JAX crashes where it gets no more.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        sys.modules["jax"].clear_caches()


@pytest.fixture(autouse=True)
def noise_of_a_test(request, monkeypatch):
    """No test passes or fails by the noise that it happened to draw; two draws still differ."""
    monkeypatch.setattr(os, "urandom", random.Random(request.node.nodeid).randbytes)


@pytest.fixture(scope="session")
def masked_is_sliced():
    """`masked_is_sliced(loss, args, by)`: entries that do not count are 0 and harmless.

    `loss(*args, where)` takes NumPy arrays whose leading axes are [2, 3], and is differentiated by
    the arguments of the indices `by`. Masked entries, whatever they hold, have exactly value and
    gradient 0; the others are what they are without them.
    """
    import jax
    import numpy as np

    def check(loss, args, by):
        where = np.array([[True, False, True], [False, True, True]])
        gradient = jax.grad(lambda *args: loss(*args).sum(), by)
        both = jax.jit(lambda *args: (loss(*args), gradient(*args)))
        expected = both(*(x[where] for x in args))
        for junk in (np.nan, np.inf, -np.inf):
            held = [x.copy() for x in args]
            for x in held:
                x[~where] = junk if x.dtype.kind == "f" else [999, -7]
            found = both(*held, where)
            for whole, part in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_array_equal(whole[~where], 0)
                np.testing.assert_allclose(whole[where], part, rtol=1e-5, atol=1e-6)

    return check
