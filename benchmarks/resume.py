"""What it costs to know that a finished store was made from the same inputs: `python -m benchmarks.resume`.

A synthetic scene is written to Zarr and embedded from there, then the same call is made again:

- *embed*: the first call, which encodes
- *compare*: the second call, which reads the inputs of every block and compares their checksums
- *known*: the second call where the files are known to be unchanged, so that nothing is read
- *unchecked*: the second call with ``resume="unchecked"``

Medians of several rounds, and their share of the first call.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro
import xarray as xr

import deo_cube
from deo_cube.store import storage, write


@dataclass(frozen=True)
class Config:
    """What is measured."""

    size: int = 2048
    """Pixels on a side."""
    model: str = "tiny"
    rounds: int = 3
    out: Path | None = None
    """JSON file for the figures."""


def seconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(config: Config) -> None:
    """Measure, print, and write JSON."""
    warnings.filterwarnings("ignore")
    times: dict[str, list[float]] = {"embed": [], "compare": [], "known": [], "unchecked": []}
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        cube, path = f"{folder}/cube.zarr", f"{folder}/emb.zarr"
        deo_cube.synthetic_cube(size=config.size, times=1).chunk(y=512, x=512).to_zarr(cube, zarr_format=3)
        emb = xr.open_zarr(cube, mask_and_scale=False).deo.embed(config.model)
        emb[..., :8, :8].compute()
        for _ in range(config.rounds):
            times["embed"].append(seconds(lambda: emb.deo.to_zarr(path, overwrite=True, progress=False)))
            times["known"].append(seconds(lambda: emb.deo.to_zarr(path, progress=False)))
            storage.delete(storage.store_at(path), write.SOURCES)
            times["compare"].append(seconds(lambda: emb.deo.to_zarr(path, progress=False)))
            times["unchecked"].append(seconds(lambda: emb.deo.to_zarr(path, resume="unchecked", progress=False)))
    found = {name: statistics.median(some) for name, some in times.items()}
    for name, value in found.items():
        print(f"{name:12}{value:8.2f} s {value / found['embed']:8.3f} of embedding")
    if config.out is not None:
        config.out.write_text(json.dumps({"size": config.size, "model": config.model, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
