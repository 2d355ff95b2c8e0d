"""Helpers that also run as programs of their own, so that they are files, not fixtures."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest


def _load(name: str):
    if name not in sys.modules:
        path = Path(__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def tiny_run():
    """The module tiny_run.py."""
    return _load("tiny_run")


@pytest.fixture(scope="session")
def three_classes():
    """`three_classes(path)` writes a data set of small images, brighter from class to class."""

    def write(path, train=50, test=21):
        rng, arrays = np.random.default_rng(0), {}
        for split, count in (("train", train), ("test", test)):
            labels = rng.integers(0, 3, count)
            noise = rng.integers(0, 100, (count, 8, 8, 1))
            arrays[f"x_{split}"] = (noise + 70 * labels[:, None, None, None]).astype(np.uint8)
            arrays[f"y_{split}"] = labels
        np.savez(path, **arrays)
        return path

    return write


@pytest.fixture
def bucket(monkeypatch):
    """A cloud for `gs://` paths, see fake_bucket.py; yields its file system."""
    from etils.epath import backend

    fake = _load("fake_bucket").FakeBucket()
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: fake, raising=False)
    with fake.serve() as address:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        yield fake
