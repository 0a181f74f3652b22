"""Print the tables of `docs/gpu.md`: ``python -m benchmarks.gpu.page``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["DATA", "embed_table", "encoder_table", "precision_table"]

DATA = Path(__file__).parents[2] / "docs" / "data" / "gpu.json"


def _table(header: str, rows: list[list[Any]]) -> str:
    lines = [header, "|" + "---|" * (header.count("|") - 1)]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])


def embed_table(data: Mapping[str, Any]) -> str:
    """Return the table of whole runs, from a Zarr cube to a Zarr store."""
    header = (
        "| model | precision | cube | blocks at a time | first run of this cube | km²/s | minutes per Sentinel-2 tile |"
    )
    rows = [
        [
            f"`{r['model']}`", r["precision"], f"{r['size']} px", r["blocks_at_a_time"],
            "yes" if r["first_run_of_this_cube"] else "no", r["km2_per_s"], f"{r['minutes_per_sentinel2_tile']:.2f}",
        ]
        for r in data["embed"]
    ]  # fmt: skip
    return _table(header, rows)


def encoder_table(data: Mapping[str, Any]) -> str:
    """Return the table of encoders alone."""
    header = "| model | precision | tiles per batch | tiles/s | km²/s | share of the matrix rate |"
    rows = [
        [
            f"`{r['model']}`", r["precision"], r["batch"], round(r["tiles_per_s"]), f"{r['km2_per_s']:,}",
            f"{r['of_matrix_rate']:.2f}",
        ]
        for r in data["encoder"]
    ]  # fmt: skip
    return _table(header, rows)


def precision_table(data: Mapping[str, Any]) -> str:
    """Return the table of distances from float32 on the CPU."""
    found = {
        c["model"].split(",")[0]: c["distance"] for c in data["correctness"] if c["check"].startswith("precisions")
    }
    header = "| precision | " + " | ".join(f"`{model}`" for model in found) + " |"
    kinds = list(next(iter(found.values())))
    rows = [[kind, *(f"{d[kind]['relative']:.0e} ({d[kind]['cosine']:.0e})" for d in found.values())] for kind in kinds]
    return _table(header, rows)


if __name__ == "__main__":
    measured = json.loads(DATA.read_text())
    print(embed_table(measured), encoder_table(measured), precision_table(measured), sep="\n\n")
