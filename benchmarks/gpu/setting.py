"""Cards, cubes and clocks that all parts share."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import deo_cube
from deo_cube.encoder.card import ModelCard, Weights
from deo_cube.encoder.registry import resolve
from deo_cube.errors import WeightsNotFoundError

__all__ = ["PARTS", "Config", "Report", "card_of", "device_facts", "rate", "synchronize"]

Part = Literal["correctness", "encoder", "embed", "training"]
PARTS: tuple[Part, ...] = ("correctness", "encoder", "embed", "training")


@dataclass(frozen=True)
class Config:
    """What is measured."""

    only: tuple[Part, ...] = PARTS
    models: tuple[str, ...] = ("vitb", "swinb", "tiny")
    """Weights that are not available are drawn at random, and the report says so: speed does not depend on them."""
    device: str = "cuda"
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    """Those that the device does not have are skipped with the reason."""
    size: int = 10980
    """Side of the cube in pixels of 10 m; 10,980 is a tile of Sentinel-2."""
    tile: int | None = None
    halo: int | None = None
    batch: int | None = None
    """Tiles per batch end to end; None: the package's default."""
    batches: tuple[int, ...] = (4, 16, 64)
    """Tiles per batch of the encoder alone."""
    rounds: int = 2
    scheduler: str = "threads"
    workers: int | None = None
    """Blocks at a time; None: the package's default."""
    matrix: int = 8192
    """Side of the matrices of the matrix rate."""
    compile: bool = True
    """Measure the encoder alone through torch.compile too, and end to end where that is faster."""
    profile: bool = True
    """Repeat each end-to-end run under torch's profiler, for the share of time in which a kernel runs."""
    seconds: float = 480
    """Begin no step after this time."""
    folder: Path | None = None
    """Where cube and store are written; default: a temporary folder."""
    out: Path | None = None


class Report:
    """What was measured so far, written after every step."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.began = time.perf_counter()
        self.content: dict[str, Any] = {"config": json.loads(json.dumps(asdict(config), default=str))}

    def late(self, step: str) -> bool:
        """Return whether the time is used up, and note the step that is left out."""
        if time.perf_counter() - self.began < self.config.seconds:
            return False
        self.content.setdefault("left_out", []).append(step)
        return True

    def add(self, part: str, row: dict[str, Any]) -> None:
        """Append a row to a part, print it, and write the file."""
        row = {**row, "at_s": round(time.perf_counter() - self.began, 1)}
        self.content.setdefault(part, []).append(row)
        print(part, json.dumps(row, default=str), flush=True)
        self.write()

    def write(self) -> None:
        """Write the file."""
        if self.config.out:
            self.config.out.write_text(json.dumps(self.content, indent=1, default=str) + "\n")


def card_of(model: str) -> ModelCard:
    """Return the model's card; without weights where they are not available."""
    card = deo_cube.card(model)
    try:
        resolve(card)
    except WeightsNotFoundError:
        return dataclasses.replace(
            card, alias=f"{model}, random weights", weights=Weights("untrained", ""), reference=None
        )
    return card


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def rate(run: Callable[[], Any], device: str, seconds: float = 1.0) -> float:
    """Return calls per second, the median of as many as fit into `seconds`, three at least, after two warm-up calls."""
    for _ in range(2):
        run()
    synchronize(device)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 1 / sorted(times)[len(times) // 2]


def device_facts(device: str) -> dict[str, Any]:
    """Return what the figures depend on: card, driver, torch, cores."""
    import os
    import platform
    import subprocess

    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
    }
    if not device.startswith("cuda"):
        return facts | {"device": "the CPU: no figure of a GPU"}
    found = torch.cuda.get_device_properties(device)
    facts |= {"device": found.name, "memory_gib": round(found.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        facts["driver"] = "unknown"
    return facts
