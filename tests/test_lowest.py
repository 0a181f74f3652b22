"""The lowest versions that pyproject.toml allows are written down, safe, and not above those that are installed."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from tests.lowest import ROOT, constraints

#: First versions that run no code of what they read: numcodecs unpickles chunks before, timm checkpoints, and torch's
#: weights_only unpickler could be made to corrupt memory (CVE-2026-24747) or to run code (CVE-2025-32434).
SAFE = {"numcodecs": (0, 16, 6), "timm": (1, 0, 26), "torch": (2, 10)}
WRITTEN = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8")


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".") if part.isdigit())


PINNED = {name: numbers(v) for name, _, v in (line.partition("==") for line in WRITTEN.splitlines() if "==" in line)}


def test_they_are_those_of_pyproject() -> None:
    assert constraints(Path(ROOT / "pyproject.toml").read_text(encoding="utf-8")) == WRITTEN, (
        "run: python tests/lowest.py > constraints-lowest.txt"
    )


@pytest.mark.parametrize("name", SAFE)
def test_they_run_no_code_of_what_they_read(name: str) -> None:
    assert PINNED[name] >= SAFE[name]


@pytest.mark.parametrize("name", PINNED)
def test_what_is_installed_is_not_below(name: str) -> None:
    assert numbers(version(name)) >= PINNED[name]


def test_a_dependency_without_a_lowest_version_is_refused() -> None:
    text = '[project]\ndependencies = ["torch"]\n[project.optional-dependencies]\nall = ["deo-cube[]"]\n'
    with pytest.raises(ValueError, match="torch"):
        constraints(text)
