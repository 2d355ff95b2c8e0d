"""Runs notebooks and stores their output in them, without progress bars and details of the machine.

python docs/_ext/run_notebooks.py docs/notebooks/*.ipynb
"""

import sys
from pathlib import Path

import nbclient
import nbformat


def stored(notebook):
    """Drops stderr and execution data; joins the pieces in which output arrived."""
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        outputs = []
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and output.name == "stderr":
                continue
            before = outputs[-1] if outputs else None
            if before and before.output_type == output.output_type == "stream":
                before["text"] += output.text
            else:
                outputs.append(output)
        if cell.cell_type == "code":
            cell["outputs"] = outputs
    return notebook


def main(paths: list[str]):
    for path in map(Path, paths):
        notebook = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": str(path.parent)}}
        nbclient.NotebookClient(notebook, kernel_name="python3", resources=resources).execute()
        nbformat.write(stored(notebook), path)
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
