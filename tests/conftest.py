"""Set-up of every test: eight CPU devices, no silent rank promotion, compilations kept."""

import os
from pathlib import Path

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
