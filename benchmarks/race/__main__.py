"""`python -m benchmarks.race`: everything in one process tree; see `--help`.

The parts: `runtimes` (torch and OpenVINO, float32 and bfloat16, beside the alternatives), `race` (bare encoder, embed
and all alternatives, interleaved), `seams`, `peaks` (memory of each case),
`scaling` (1 and 2 workers), `memory` (cubes of 2048 to 16384 px), `whole` (a Sentinel-2 tile and a continent, planned),
`render` (the tables of docs/throughput.md from --out). With `--merge`, rounds are added to those that --out holds.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.race import measure, table, whole
from benchmarks.race.setting import Setting
from deo_cube.embedding import process

PAGE = Path(__file__).parents[2] / "docs" / "throughput.md"
VIT = "vit_small_patch16_224"
#: Cubes of whole tiles with and without halo, or nearly, so that no runner pays more at the edge than another. The last
#: three are jobs of about 30 s, for the fastest alternatives and one size of block.
FAST = ("deo_cube embed", "dask map_blocks / map_overlap", "rasterio loop")
COURSES = {
    "vit": measure.Course(VIT, 1792, 256, (0, 16), (512, 1024)),
    "tiny": measure.Course("tiny", 2240, 320, (0, 16), (512, 1024)),
    "vit-long-0": measure.Course(VIT, 3584, 256, (0,), (1024,), runners=FAST),
    "vit-long-16": measure.Course(VIT, 3584, 256, (16,), (1024,), runners=FAST),
    "tiny-long-16": measure.Course("tiny", 4480, 320, (16,), (1024,), bare_tiles=48, runners=FAST, as_it_comes=True),
}
#: Parts that measure each course; the others have cubes of their own.
OF_COURSES = ("runtimes", "race", "seams", "peaks")
QUICK = measure.Course("tiny", 256, 64, (0, 16), (128, 256), bare_tiles=4)
LONG = COURSES["vit-long-0"]


@dataclass(frozen=True)
class Config:
    """What is measured."""

    parts: tuple[str, ...] = ("runtimes", "race", "seams")
    """Default: what takes at most ten minutes on two cores."""
    courses: tuple[str, ...] = ("tiny",)
    rounds: int = 3
    out: Path = Path("bench.json")
    """JSON file for the figures."""
    merge: bool = False
    """Add to the figures that `out` holds instead of beginning anew."""
    quick: bool = False
    """A smoke test: a small cube, one round."""
    sizes: tuple[int, ...] = (2048, 4096, 8192, 16384)
    """Cubes of the part `memory`, pixels."""
    memory_halo: int = 0
    """Halo of the part `memory`, pixels, a multiple of 32. The page has the figures without."""
    kinds: tuple[str, ...] = ("threads", "cluster-1x1", "cluster-2x1", "cluster-2x2", "processes-2")
    """Schedulers of the part `scaling`; cluster: workers x threads."""
    same_library: bool = False
    """Have the alternatives multiply matrices by the library that deo_cube chose, too."""
    scaling_size: int | None = None
    """Cube of the part `scaling`, pixels; default: that of the long courses."""
    folder: Path | None = None
    """Where cubes are kept between calls; default: a temporary folder, removed at the end."""
    page: Path = PAGE


def main(config: Config) -> dict[str, Any]:
    """Measure the parts, write JSON, print the tables."""
    figures: dict[str, Any] = json.loads(config.out.read_text()) if config.merge and config.out.exists() else {}
    if config.parts == ("render",):
        figures = json.loads(config.out.read_text())
        config.page.write_text(table.render(config.page, figures), encoding="utf-8")
        return figures
    figures["machine"] = {
        "date": datetime.now(UTC).date().isoformat(), "cores": process.cpu_threads(), "processor": _processor(),
        "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip
    folder = config.folder or Path(tempfile.mkdtemp(prefix="deo_cube_bench"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for part in config.parts:
            # Course by course, so that a run that is stopped keeps what it measured.
            courses = config.courses if part in OF_COURSES else config.courses[:1]
            for course in courses:
                _run(part, replace(config, courses=(course,)), figures, str(folder))
                config.out.write_text(json.dumps(figures, indent=1) + "\n")
    finally:
        if config.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    for name, text in table.tables(figures).items():
        print(f"\n## {name}\n\n{text}")
    return figures


def _run(part: str, config: Config, figures: dict[str, Any], folder: str) -> None:
    courses = [QUICK] if config.quick else [COURSES[c] for c in config.courses]
    rounds = 1 if config.quick else config.rounds
    if part in ("race", "seams", "peaks"):
        for course in courses:
            setting = Setting(course.model, course.size, folder)
            kept = figures.setdefault("races", {}).setdefault(measure.course_key(course), {})
            if part == "race":
                found = measure.race(course, setting, rounds, warm=not config.quick, same_library=config.same_library)
                _merge(kept, found)
            elif part == "seams":
                kept["seams"] = measure.seams(course, 320 if config.quick else 1280)
            else:
                kept["peaks"] = measure.peaks(course, setting, most=1 if config.quick else None)
    elif part == "runtimes":
        variants = measure.VARIANTS[: 1 if config.quick else None]
        for course in courses:
            setting = Setting(course.model, course.size, folder)
            key = f"{course.model} {course.size} px" if course.as_it_comes else course.model
            kept = figures.setdefault("runtimes", {}).setdefault(key, {})
            _merge(kept, measure.runtimes(course, setting, rounds, warm=not config.quick, variants=variants))
    elif part == "scaling":
        course = QUICK if config.quick else replace(LONG, size=config.scaling_size or LONG.size)
        kinds = ("threads",) if config.quick else config.kinds
        found = measure.scaling(course, Setting(course.model, course.size, folder), rounds, kinds=kinds)
        _merge(figures.setdefault("scaling", {}).setdefault(f"{course.model} {course.size} px", {}), found)
    elif part == "memory":
        sizes = (256, 512) if config.quick else config.sizes
        rivals = () if config.quick else (("dask map_blocks / map_overlap", 4096),)
        name = f"memory, halo {config.memory_halo}" if config.memory_halo else "memory"
        figures[name] = measure.flatness("mobilenetv3_small_100", folder, sizes, rivals, config.memory_halo)
    elif part == "whole":
        figures["whole"] = whole.figures(small=config.quick)
    else:
        raise SystemExit(f"no part {part!r}: runtimes, race, seams, peaks, scaling, memory, whole, or render alone")


def _merge(kept: dict[str, Any], found: dict[str, Any]) -> None:
    """Add the rounds of `found` to those of `kept`; what is no list of rounds is replaced."""
    for key, value in found.items():
        before = kept.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            _merge(before, value)
        elif isinstance(value, list) and isinstance(before, list) and key not in ("halos", "blocks", "rows"):
            before.extend(value)
        else:
            kept[key] = value


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(0 if main(tyro.cli(Config, description=__doc__)) else 1)
