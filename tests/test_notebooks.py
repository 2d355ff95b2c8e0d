"""Every notebook of docs/ runs from top to bottom, and holds its output."""

import json
import os
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_site_can_show_what_the_notebook_put_out(path: Path):
    cells = [c for c in json.loads(path.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells), "make notebooks runs them"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and not any(each.get("name") == "stderr" for each in outputs)
    assert not any(each["output_type"] == "error" for each in outputs)
