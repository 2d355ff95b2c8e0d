"""Helpers that also run as programs of their own, so that they are files, not fixtures."""

import importlib.util
import sys
from pathlib import Path

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
