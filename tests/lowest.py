"""The lowest versions that pyproject.toml allows, for pip: `python tests/lowest.py > constraints-lowest.txt`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: What pip would otherwise look for among many versions: torchvision comes in pairs with torch.
PAIRS = {"torch==2.10": "torchvision==0.25"}


def constraints(pyproject: str) -> str:
    """One line per dependency, and per package of the extra `all`, with the version after its ``>=``."""
    project = tomllib.loads(pyproject)["project"]
    extras = project["optional-dependencies"]
    everything = re.findall(r"[\w-]+", extras["all"][0].partition("[")[2])
    lines = [*project["dependencies"], *(line for extra in everything for line in extras[extra])]
    pinned = set()
    for line in lines:
        match = re.fullmatch(r"([\w.-]+)(\[[\w,-]+\])?>=([\w.]+)", line)
        if match is None:
            raise ValueError(f"{line!r} has no lowest version: write NAME>=VERSION")
        pinned.add(f"{match[1]}=={match[3]}")
    pinned |= {PAIRS[p] for p in pinned & set(PAIRS)}
    head = "# The lowest versions that pyproject.toml allows, tried by `make test-lowest`. Made by tests/lowest.py.\n"
    return head + "\n".join(sorted(pinned, key=str.lower)) + "\n"


if __name__ == "__main__":
    print(constraints((ROOT / "pyproject.toml").read_text(encoding="utf-8")), end="")
