"""`ds.deo.plan()`: count tiles, tokens, bytes and time before embedding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deo_cube import arguments
from deo_cube.cube import georeference
from deo_cube.embedding import process, transfer
from deo_cube.embedding.embed import check_device, with_runtime
from deo_cube.embedding.options import split_options
from deo_cube.embedding.prepare import Cube, Prepared, prepare
from deo_cube.embedding.rates import known_rate, measure_block_rate, measure_rate, save_rate
from deo_cube.embedding.tiles import TilePlan
from deo_cube.embedding.windows import read_amplification
from deo_cube.encoder.card import ModelCard
from deo_cube.notebook import facts_html
from deo_cube.options import Default
from deo_cube.progress import duration, size

__all__ = ["Cost", "Plan", "plan"]


@dataclass(frozen=True)
class Cost:
    """Time and data of embedding one date of an area."""

    area_km2: float
    hours: float | None
    """On a machine like this one; None where no rate was measured."""
    core_hours: float | None
    """Hours times the cores that encode; None without a rate, and on a GPU."""
    read_gb: float
    """Uncompressed pixels, GB."""
    written_gb: float
    """Uncompressed embeddings and valid fractions, GB. Lossless compression gains about a tenth."""

    def __str__(self) -> str:
        times = "" if self.hours is None else f"{self.hours:.3g} h, "
        times += "" if self.core_hours is None else f"{self.core_hours:.3g} core-hours, "
        return f"{times}{self.written_gb:,.3g} GB before compression per {self.area_km2:,.0f} km² and date"


@dataclass(frozen=True)
class Plan:
    """Counts of what embedding a cube takes, over all dates."""

    model: str
    trained: bool
    tiling: TilePlan
    times: int
    dim: int
    dtype: str
    bands: int
    itemsize: int
    area_km2: float
    read_amplification: float
    trim: int = 0
    """Multiple of pixels to which tiles may be cut at the cube's edge; 0: they are not cut."""
    tiles_per_second: float | None = None
    """Measured on this machine. None: not measured."""
    device: str = ""
    runtime: str = "torch"
    """Library that runs the network, with its version if it is not torch."""
    cores: int = 1
    """Cores that encode on this machine."""

    @property
    def blocks(self) -> int:
        """Number of blocks. Each is one task, one shard of the store and one entry of its record."""
        return self.tiling.blocks[0] * self.tiling.blocks[1] * self.times

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.tiling.tiles[0] * self.tiling.tiles[1] * self.times

    @property
    def tokens(self) -> int:
        """Number of patches that the encoder reads, halos included."""
        return self.times * self.tiling.encoded_pixels(self.trim) // self.tiling.patch**2

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the embeddings: (time, embedding, y, x)."""
        return self.times, self.dim, *self.tiling.out_shape

    @property
    def bytes_in(self) -> int:
        """Uncompressed bytes of the pixels."""
        return self.times * self.bands * self.itemsize * self.tiling.shape[0] * self.tiling.shape[1]

    @property
    def bytes_out(self) -> int:
        """Uncompressed bytes of embeddings and valid fractions."""
        t, d, h, w = self.shape
        return t * h * w * (d * np.dtype(self.dtype).itemsize + 4)

    @property
    def bytes_per_block(self) -> int:
        """Approximate bytes of one block in memory: its window, its canvas, and its result."""
        p = self.tiling
        window = self.bands * self.itemsize * (p.block + 2 * p.halo) ** 2
        patches = (p.block // p.patch) ** 2
        canvas = 2 if self.dtype == "float16" else 4
        return window + patches * self.dim * (canvas + np.dtype(self.dtype).itemsize)

    @property
    def encoded_per_kept(self) -> float:
        """Pixels that the encoder reads per pixel of the cube."""
        return self.tiling.encoded_pixels(self.trim) / (self.tiling.shape[0] * self.tiling.shape[1])

    @property
    def seconds(self) -> float | None:
        """Time at the measured rate, without the start of a job; None where none was measured."""
        if self.tiles_per_second is None:
            return None
        whole = self.tiling.encoded_pixels(self.trim) / self.tiling.tile**2
        return self.times * whole / self.tiles_per_second

    def cost(self, area_km2: float = 100_000) -> Cost:
        """Return what embedding one date of an area costs at this plan's rate and ratios.

        Parameters
        ----------
        area_km2 : float
            Area, km².

        Examples
        --------
        >>> import deo_cube
        >>> deo_cube.synthetic_cube(size=512, times=1).deo.plan().cost().written_gb > 0
        True
        """
        share = area_km2 / (self.area_km2 * self.times)
        hours = None if self.seconds is None else self.seconds * share / 3600
        core_hours = None if hours is None or self.device != "cpu" else hours * self.cores
        return Cost(area_km2, hours, core_hours, self.bytes_in * share / 1e9, self.bytes_out * share / 1e9)

    def _rows(self) -> list[tuple[str, str]]:
        p = self.tiling
        t, d, h, w = self.shape
        amp = f"; up to {self.read_amplification:.1f} times that where neighbouring blocks run on different workers"
        amp = amp if self.read_amplification > 1.05 else ""
        rows = [
            ("model", self.model + ("" if self.trained else " (UNTRAINED: random weights)")),
            ("cube", f"{self.times} x {p.shape[0]} x {p.shape[1]} px, {self.bands} bands, {self.area_km2:,.1f} km²"),
            ("embeddings", f"{t} x {d} x {h} x {w} {self.dtype}, one vector per {p.patch} x {p.patch} px"),
            (
                "tiles",
                f"{self.tiles:,} of {p.tile} px with a halo of {p.halo} px; the encoder reads "
                f"{self.encoded_per_kept:.2f} px per px of the cube",
            ),
            ("tokens", f"{self.tokens:,}"),
            ("blocks", f"{self.blocks:,} of {p.block} px: tasks, and shards of the store"),
            ("read", f"{size(self.bytes_in)}{amp}"),
            ("written", f"{size(self.bytes_out)} before compression"),
            ("memory", f"about {size(self.bytes_per_block)} per running block, and the model"),
        ]
        if self.runtime != "torch":
            rows.append(("runtime", self.runtime))
        if self.seconds is None:
            rows.append(("time", "not measured on this machine: plan(..., measure=True) embeds a few blocks"))
        else:
            rate = f"{self.tiles_per_second:.3g} tiles/s measured on {self.device}"
            km2 = self.times * self.area_km2 / self.seconds
            rows.append(("time", f"about {duration(self.seconds)} ({rate}, {km2:.3g} km²/s)"))
        rows.append(("cost", str(self.cost())))
        return rows

    def __repr__(self) -> str:
        return "<Plan>\n" + "\n".join(f"  {k + ':':<12}{v}" for k, v in self._rows())

    def _repr_html_(self) -> str:
        return facts_html("deo_cube plan", self._rows())


def plan(
    cube: Cube,
    model: str | Path | ModelCard = Default("tiny"),
    *,
    dtype: str = Default("float16"),
    device: str | None = None,
    precision: str = Default("float32"),
    runtime: str = Default("torch"),
    batch_size: int | None = None,
    measure: bool = False,
    **options: Any,
) -> Plan:
    """Count tiles, bytes and time of `embed` with the same arguments. Reads no pixel of a cube on Dask.

    Parameters
    ----------
    cube, model, dtype, device, precision, runtime, batch_size, **options
        Arguments of `embed`.
    measure : bool
        Embed a few made-up blocks to measure this machine's rate, which later plans use.

    Returns
    -------
    Plan

    Raises
    ------
    DeoCubeError
        As `embed`.

    Examples
    --------
    >>> import deo_cube
    >>> deo_cube.synthetic_cube(size=512, times=1).deo.plan().blocks
    1
    """
    measure = arguments.boolean("measure", measure)
    embed_options, run = split_options(
        {"model": model, "dtype": dtype, "device": device, "precision": precision, "runtime": runtime}
        | {"batch_size": batch_size}
        | options
    )
    # Counting needs no weights; measuring does.
    p = with_runtime(prepare(cube, embed_options, locate=measure), run.device, prove=measure)
    check_device(run.device, p.precision, p.runtime)

    def known(where: str) -> float | None:
        return known_rate(p.ref, p.plan.tile, where, p.precision, p.runtime)

    # Without device=, the first with a known rate: listing the devices would load torch.
    chosen = {"cuda": "cuda:0"}.get(device, device) if device else next(filter(known, ("cuda:0", "mps")), "cpu")
    rate: float | None
    if measure:
        chosen = process.choose_device(device if p.runtime == "torch" else "cpu")
        transfer.check_precision(p.precision, chosen)
        if chosen == "cpu":
            rate = measure_block_rate(p, chosen)
        else:  # reading and writing overlap with a device that has memory of its own
            rate = measure_rate(p.ref, p.plan.tile, chosen, precision=p.precision)
        save_rate(p.ref, p.plan.tile, chosen, p.precision, p.runtime, rate)
    else:
        rate = known(chosen)
    return _plan_of(p, rate, chosen)


def _plan_of(p: Prepared, rate: float | None, device: str) -> Plan:
    dx, dy = georeference.ground_resolution(p.geobox)
    return Plan(
        model=f"{p.ref.card.alias} ({p.ref.card.name}), layer {p.ref.layer.name}",
        trained=p.ref.card.trained,
        tiling=p.plan,
        times=p.times,
        dim=p.ref.layer.dim,
        dtype=p.dtype,
        bands=len(p.window_reader.groups[0]),
        itemsize=max(f.dtype.itemsize for f in p.window_reader.groups[0]),
        area_km2=dx * dy * p.plan.shape[0] * p.plan.shape[1] / 1e6,
        read_amplification=read_amplification(p.window_reader),
        trim=p.ref.card.trim,
        tiles_per_second=rate,
        device=device,
        runtime=p.runtime,
        cores=process.cpu_threads(),
    )
