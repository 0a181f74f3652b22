"""Every benchmark imports, and its docstring names the command that runs it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
COMMANDS = sorted(
    [p.stem for p in FOLDER.glob("*.py") if "__main__" in p.read_text(encoding="utf-8")]
    + [p.parent.name for p in FOLDER.glob("*/__main__.py")]
)


@pytest.mark.parametrize("name", COMMANDS)
def test_it_imports_and_says_how_to_run_it(name: str) -> None:
    inside = ".__main__" if (FOLDER / name).is_dir() else ""
    module = importlib.import_module(f"benchmarks.{name}{inside}")
    assert f"python -m benchmarks.{name}" in (module.__doc__ or "")
