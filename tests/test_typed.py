"""Type checkers accept `typed.py`, a user's script, and refuse what it marks as wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow  # `make lint`, and so `make test`, checks the same file
def test_mypy_accepts_a_users_script() -> None:
    pytest.importorskip("mypy")
    done = subprocess.run([sys.executable, "-m", "mypy", "tests/typed.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed (it comes from npm)")
def test_pyright_accepts_a_users_script() -> None:
    command = ["pyright", "--pythonpath", sys.executable, "tests/typed.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
