"""Write the table of measured numbers in README.md and docs/index.md: `python -m benchmarks.numbers_table`.

Each number is read from a file in docs/data that a benchmark wrote, so that a number is the same on every page.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["PAGES", "with_table"]

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs" / "data"
#: Pages that show the table, and where their links to other pages start.
PAGES = {"README.md": "docs/", "docs/index.md": ""}
#: Area of a Sentinel-2 tile, 10,980 x 10,980 pixels of 10 m, in km².
TILE_KM2 = 109.8**2


def _load(name: str) -> Any:
    path = DATA / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _seconds(variant: str, runner: str = "deo_cube embed") -> float:
    """Return the median seconds of a case of the part `runtimes`, of the longest job with `tiny`."""
    return float(statistics.median(_longest()["cases"][f"{runner} | {variant}"]["values"]))


def _longest() -> Any:
    """Return the figures of the longest job with `tiny`: a tile takes longer than any of them."""
    return max((r for r in _load("bench")["runtimes"].values() if r["model"] == "tiny"), key=lambda r: r["km2"])


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield what was measured, the figure, and the page that explains it."""
    found = _longest()
    plain = [c["runner"] for c in found["cases"].values() if c["variant"] == "as it comes"]
    best, runner = min((_seconds("as it comes", name), name) for name in plain)
    tiles = found["km2"] / TILE_KM2
    fast, usual = _seconds("openvino, bfloat16"), _seconds("torch, float32")
    yield (
        "One Sentinel-2 tile (110 x 110 km) with `tiny`, two CPU cores, read, embed and write",
        f"{fast / tiles / 60:.1f} minutes by OpenVINO in bfloat16, {usual / tiles / 60:.1f} by PyTorch in float32; "
        f"{best / fast:.1f} and {best / usual:.1f} times as fast as the best alternative ({runner})",
        "throughput.md",
    )
    if (gpu := _load("gpu")) is not None and (found := _gpu(gpu)) is not None:
        yield found
    soak = _load("soak").values()
    kills = sum(sum(run["kills"].values()) for run in soak)
    rounds = sum(sum(run["rounds"].values()) for run in soak)
    lost = sum(run["lost_blocks"] + run["wrong_blocks"] for run in soak)
    yield f"Lost or wrong blocks after {rounds} fault-injection runs ({kills} kills)", f"{lost}", "cluster.md"
    scores = {s["task"]: s for s in _load("evaluation_apart")["scores"] if s["model"] == "tiny"}
    for task, label in (
        ("EuroSAT RGB/knn5", "EuroSAT (RGB), official spatial split, 5 nearest neighbours"),
        ("world/patch", "Land cover in nine classes, 500 places of the world"),
    ):
        if task in scores:
            low, high = scores[task]["interval95"]
            score = scores[task]
            yield (
                f"{label}, `tiny`, {score['metric']} with labels of other places",
                f"{score['value']:.2f} ({low:.2f} to {high:.2f})",
                "evaluation.md",
            )


def _gpu(found: dict[str, Any]) -> tuple[str, str, str] | None:
    """Return the row of the largest model that was measured end to end on a GPU; None where none was."""
    measured = [r for r in found.get("embed", []) if r.get("km2_per_s")]
    if not measured:
        return None
    name = "vitb" if any(r["model"].startswith("vitb") for r in measured) else str(measured[0]["model"]).split(",")[0]
    best = max((r for r in measured if r["model"].startswith(name)), key=lambda r: r["km2_per_s"])
    minutes = TILE_KM2 / best["km2_per_s"] / 60
    return (
        f"The same tile with `{name}` (random weights) on one {found['device']}, {best['precision']}, one run",
        f"{minutes:.1f} minutes",
        "gpu.md",
    )


def with_table(text: str, links: str) -> str:
    """Return a page with its table made anew.

    Parameters
    ----------
    text : str
        The page, with the lines ``<!-- numbers: begin -->`` and ``<!-- numbers: end -->``.
    links : str
        Prefix of links to other pages.
    """
    lines = ["| measured | result | how |", "|---|---|---|"]
    lines += [
        f"| {what} | **{figure}** | [{page.removesuffix('.md')}]({links}{page}) |" for what, figure, page in rows()
    ]
    table = "\n".join(lines)
    return re.sub(
        r"(<!-- numbers: begin -->\n).*?(<!-- numbers: end -->)",
        lambda m: f"{m[1]}\n{table}\n\n{m[2]}",
        text,
        flags=re.S,
    )


if __name__ == "__main__":
    for page, links in PAGES.items():
        path = ROOT / page
        path.write_text(with_table(path.read_text(encoding="utf-8"), links), encoding="utf-8")
