"""`deo-cube bench`: how fast a model is on this machine, alone and end to end.

The race against other ways to do it, with intervals, is `make bench` in the repository.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import xarray as xr

from deo_cube.cube.synthetic import synthetic_cube
from deo_cube.embedding.embed import embed, with_runtime
from deo_cube.embedding.options import EmbedOptions
from deo_cube.embedding.plan import measure_rate, plan
from deo_cube.embedding.prepare import prepare
from deo_cube.embedding.process import choose_device
from deo_cube.errors import ArgumentError
from deo_cube.options import Default
from deo_cube.progress import Progress
from deo_cube.store.write import to_zarr

__all__ = ["Bench", "bench"]


@dataclass(frozen=True)
class Bench:
    """Rates of one model on one machine; medians over rounds in which both took their turn."""

    model: str
    device: str
    size: int
    tile: int
    halo: int
    rounds: int
    alone: float
    """Tiles/s of the encoder on tiles in memory."""
    end_to_end: float
    """Tiles/s from a cube in Zarr to embeddings in Zarr."""
    km2: float
    """Square kilometres/s end to end."""

    @property
    def share(self) -> float:
        """Of the encoder's rate that is left end to end."""
        return self.end_to_end / self.alone

    def __str__(self) -> str:
        return (
            f"{self.model} on {self.device}: a synthetic cube of {self.size} x {self.size} px, tiles of {self.tile} px "
            f"with a halo of {self.halo} px, {self.rounds} rounds\n"
            f"  encoder alone   {self.alone:8.2f} tiles/s\n"
            f"  Zarr to Zarr    {self.end_to_end:8.2f} tiles/s, {self.share:.2f} of that; {self.km2:.3g} km²/s"
        )

    def to_json(self) -> str:
        """The numbers as JSON."""
        return json.dumps({**asdict(self), "share": self.share}, indent=2)


def bench(
    model: str = "tiny",
    *,
    size: int = 2048,
    rounds: int = 3,
    device: str | None = None,
    precision: str = Default("float32"),
    runtime: str = Default("torch"),
    progress: bool = False,
) -> Bench:
    """Time the encoder alone and the whole way from a cube in Zarr to embeddings in Zarr, in turns.

    Parameters
    ----------
    model : str
        Name of a model, or folder of a training run.
    size : int
        Side of the synthetic cube, pixels. Small cubes show the start and the end more than the work.
    rounds : int
        Turns that count; one before them warms up.
    device : str, optional
        Default: the best there is.
    precision : {"float32", "bfloat16"}
        Number format of matrix products.
    runtime : {"torch", "openvino", "auto"}
        Library that runs the network.
    progress : bool
        Show the rounds on standard error as they pass.

    Raises
    ------
    DeoCubeError
        Whatever `embed` would raise.
    ValueError
        For fewer than one round.

    Examples
    --------
    >>> from deo_cube.bench import bench
    >>> bench(size=320, rounds=1).share > 0
    True
    """
    if rounds < 1:
        raise ArgumentError(f"rounds must be 1 or more, got {rounds}")
    # Before a large cube is drawn, so that options that `embed` refuses are refused at once.
    small = synthetic_cube(size=64, times=1, clouds=False, gaps=False)
    embed(small, model, device=device, precision=precision, runtime=runtime)
    alone, whole = [], []
    bar = Progress(rounds + 1, title=f"bench {model}", unit="round", shown=progress)
    with TemporaryDirectory(prefix="deo_cube-bench-") as folder, bar:
        made = synthetic_cube(size=size, times=1, clouds=False, gaps=False)
        made = made.drop_vars([n for n, c in made.coords.items() if c.dtype == object])
        counts = plan(made, model, device=device, precision=precision, runtime=runtime)
        made.chunk(y=1024, x=1024).to_zarr(f"{folder}/cube.zarr", consolidated=False)
        cube = xr.open_zarr(f"{folder}/cube.zarr", consolidated=False, decode_coords="all", mask_and_scale=False)
        for turn in range(rounds + 1):
            emb = embed(cube, model, device=device, precision=precision, runtime=runtime)
            p = with_runtime(prepare(cube, EmbedOptions(model=model, precision=precision, runtime=runtime)), device)
            chosen = choose_device(device if p.runtime == "torch" else "cpu")
            rate_alone = measure_rate(p.ref, p.plan.tile, chosen, precision=p.precision, runtime=p.runtime)
            start = time.perf_counter()
            to_zarr(emb, Path(folder, "out.zarr"), overwrite=True, progress=False)
            seconds = time.perf_counter() - start
            # Tiles that are cut shorter at the cube's edge count for what they are.
            tiles = p.plan.encoded_pixels(p.ref.card.trim) / p.plan.tile**2
            if turn:
                alone.append(rate_alone)
                whole.append(tiles / seconds)
            bar.advance()
    rate = statistics.median(whole)
    return Bench(
        ", ".join([counts.model, *(v for v in (p.runtime, p.precision) if v not in ("torch", "float32"))]),
        chosen,
        size,
        p.plan.tile,
        p.plan.halo,
        rounds,
        statistics.median(alone),
        rate,
        counts.area_km2 * rate / tiles,
    )
