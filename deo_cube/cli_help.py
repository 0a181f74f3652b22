"""The first page of the command line's help: all commands, in groups by what they are for."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["GROUPS", "overview"]

#: Commands in the order of a first project.
GROUPS: dict[str, tuple[str, ...]] = {
    "Begin": ("demo", "doctor", "info", "models", "completion"),
    "Embed a cube": ("plan", "embed", "embed-series", "verify", "aggregate", "mosaic"),
    "Maps and numbers": ("segment", "assess", "sample", "change", "change-series"),
    "Search": ("similar", "index", "search"),
    "Look and publish": ("view", "page", "pca", "export", "overviews", "publish"),
    "Measure": ("evaluate", "bench"),
}


def overview(commands: Mapping[str, Callable[..., Any]], description: str) -> str:
    """Return the help of the program: usage, and the first sentence of each command, in groups."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 110)
    lines = [
        "usage: deo-cube [-h] [--version] COMMAND ...",
        "",
        *textwrap.wrap(description.partition("\n\n")[0], width),
    ]
    named = {name for group in GROUPS.values() for name in group}
    others = tuple(name for name in commands if name not in named)
    column = max(len(name) for name in commands) + 4
    for title, names in [*GROUPS.items(), ("Further", others)]:
        present = [name for name in names if name in commands]
        if not present:
            continue
        lines += ["", f"{title}:"]
        for name in present:
            first = (inspect.getdoc(commands[name]) or "").partition("\n")[0]
            text = textwrap.wrap(first, width - column) or [""]
            lines += [f"  {name:<{column - 2}}{text[0]}", *(" " * column + rest for rest in text[1:])]
    exits = description.partition("\n\n")[2].strip()
    lines += ["", *textwrap.wrap(exits, width), "", "deo-cube COMMAND --help describes a command."]
    return "\n".join(lines)
