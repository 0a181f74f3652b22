"""Execute notebooks from their paired scripts: `python docs/hooks/notebooks.py [embed train ...]`, default all.

Each runs in an empty folder, on this interpreter, with what the reader would see; the .ipynb beside the .py is written.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient

BOOKS = Path(__file__).parents[2] / "notebooks"


class ThisPython(KernelSpecManager):
    """The kernel of this interpreter, installed as a kernel or not."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """The command that starts ipykernel here."""
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
        )


def execute(name: str) -> None:
    """Execute one notebook and keep what it gave."""
    from jupyter_client.manager import AsyncKernelManager

    book = jupytext.read(BOOKS / f"{name}.py")
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    with tempfile.TemporaryDirectory() as folder:
        kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisPython())
        client = NotebookClient(book, km=kernel, timeout=600, resources={"metadata": {"path": folder}})
        client.execute()
    for i, cell in enumerate(book.cells):
        cell["id"] = f"{name}-{i}"  # steady, so that a run again changes nothing but outputs
        cell.metadata.pop("execution", None)
    nbformat.write(book, BOOKS / f"{name}.ipynb")
    print(f"notebooks/{name}.ipynb")


if __name__ == "__main__":
    os.environ.setdefault("DEO_CUBE_OFFLINE", "1")
    for wanted in sys.argv[1:] or sorted(p.stem for p in BOOKS.glob("*.py")):
        execute(wanted)
