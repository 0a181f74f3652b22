"""The first page of the command line's help, all commands in groups by what they are for; and an example of each."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["EXAMPLES", "GROUPS", "description", "overview"]

#: Commands in the order of a first project.
GROUPS: dict[str, tuple[str, ...]] = {
    "Begin": ("demo", "doctor", "info", "models", "completion"),
    "Embed a cube": ("plan", "embed", "embed-series", "verify", "aggregate", "mosaic"),
    "Maps and numbers": ("segment", "assess", "sample", "change", "change-series"),
    "Search": ("similar", "index", "search"),
    "Look and publish": ("view", "page", "pca", "export", "overviews", "publish"),
    "Measure": ("evaluate", "bench"),
}

#: Calls of each command, without the command: the commonest one, and one with the flags that are asked for most.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("", "--live --bbox 8.60 47.30 8.70 47.40 --datetime 2024-06"),
    "doctor": ("",),
    "info": ("emb.zarr", "tiny"),
    "models": ("",),
    "completion": ("bash",),
    "plan": ("cube.zarr --measure", "'scenes/*.tif' --offset 0 --tile 512"),
    "embed": ("cube.zarr emb.zarr", "S2A.SAFE emb.zarr --model tiny --dtype int8 --tile 512"),
    "embed-series": ("months.zarr series.zarr --freq year",),
    "verify": ("emb.zarr", "tiny"),
    "aggregate": ("emb.zarr yearly.zarr --freq year --how median",),
    "mosaic": ("west.zarr east.zarr whole.zarr",),
    "segment": ("cube.zarr head.safetensors classes.tif",),
    "assess": ("classes.tif checked.gpkg --column class --plot accuracy.png",),
    "sample": ("emb.zarr fields.gpkg vectors.parquet --how mean",),
    "change": ("2019.zarr 2024.zarr change.tif", "emb.zarr emb.zarr change.tif --before 2019 --after 2024"),
    "change-series": ("emb.zarr changes.tif --false-alarms 0.01",),
    "similar": ("emb.zarr 8.65 47.35 similar.tif --crs EPSG:4326",),
    "index": ("emb.zarr country.index",),
    "search": ("country.index 8.65,47.35 --crs EPSG:4326 --out found.geojson",),
    "view": ("emb.zarr --cube cube.zarr --head head.safetensors",),
    "page": ("emb.zarr page --time 2024-06",),
    "pca": ("emb.zarr colours.tif --time 2024-06-05",),
    "export": ("emb.zarr vectors.tif --time 2024-06-05", "emb.zarr vectors.parquet --pool 4 --min-valid 0.5"),
    "overviews": ("emb.zarr",),
    "publish": ("emb.zarr --license CC-BY-4.0",),
    "evaluate": ("tiny data --quick",),
    "bench": ("tiny --size 2048 --rounds 3",),
}


def description(command: str, verb: Callable[..., Any]) -> str:
    """Return what the help of a command says first: what it does, and examples, in lines of the terminal's width."""
    # tyro joins lines that begin with a letter, and does not wrap them.
    does = textwrap.wrap(" ".join((inspect.getdoc(verb) or "").split()), _width(), subsequent_indent="  ")
    examples = [f"$ deo-cube {command} {example}".rstrip() for example in EXAMPLES.get(command, ())]
    return "\n".join([*does, "", "Examples:", *examples]).strip()


def _width() -> int:
    return min(shutil.get_terminal_size((100, 24)).columns, 110)


def overview(commands: Mapping[str, Callable[..., Any]], description: str) -> str:
    """Return the help of the program: usage, and the first sentence of each command, in groups."""
    width = _width()
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
