"""CITATION.cff has what the format demands, and says what the package says."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def heads() -> list[str]:
    """Versions in the changelog, newest first."""
    return re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)


def test_citation_is_whole_and_agrees_with_the_package() -> None:
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # Citation File Format 1.2.0: these four are required, and a file of type software is no data set.
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    assert cited["version"] == heads()[0]
    assert cited["license"] == project["license"]
    assert all(set(a) == {"name"} or "family-names" in a for a in cited["authors"])
    (paper,) = cited["references"]
    assert paper["url"] == project["urls"]["Paper"]
    assert {"type", "title", "authors"} <= set(paper)


def test_a_tagged_version_is_the_newest_in_the_changes() -> None:
    # Between tags the version is that of a development build, or of a copy without its history.
    version = metadata.version("deo-cube")
    if re.fullmatch(r"\d+\.\d+\.\d+", version):
        assert heads()[0] == version
