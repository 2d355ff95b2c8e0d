"""Every notebook of docs/ runs from top to bottom."""

import os
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", sorted(DOCS.glob("notebooks/*.ipynb")), ids=lambda path: path.name)
def test_the_notebook_runs(path: Path):
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    # The kernel of the running interpreter, where the reader would start it.
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=resources
    ).execute(env={**os.environ, "XLA_FLAGS": flags})
