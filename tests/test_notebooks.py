"""Every notebook of docs/ runs from top to bottom."""

from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", sorted(DOCS.glob("*.ipynb")), ids=lambda path: path.name)
def test_the_notebook_runs(path: Path):
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    # The kernel of the running interpreter, where the reader would start it.
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(DOCS)}}
    ).execute()
