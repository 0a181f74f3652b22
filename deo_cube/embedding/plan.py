"""`ds.deo.plan()`: tiles, tokens, bytes and time, before paying for them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deo_cube import arguments
from deo_cube.cube import georeference
from deo_cube.embedding import graph, runtime, transfer
from deo_cube.embedding.embed import check_device
from deo_cube.embedding.options import split_options
from deo_cube.embedding.prepare import Cube, Prepared, prepare
from deo_cube.embedding.tiles import TilePlan
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import EncoderRef
from deo_cube.options import Default, get_option
from deo_cube.progress import duration, size

__all__ = ["Plan", "known_rate", "measure_rate", "plan"]


@dataclass(frozen=True)
class Plan:
    """What embedding a cube will take. Counts are over all dates."""

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
    """To what multiple of pixels tiles may be cut shorter at the cube's edge."""
    tiles_per_second: float | None = None
    """Measured on this machine; None where it never was."""
    device: str = ""

    @property
    def blocks(self) -> int:
        """Tasks, which are shards, which are entries of the progress record."""
        return self.tiling.blocks[0] * self.tiling.blocks[1] * self.times

    @property
    def tiles(self) -> int:
        """Forward passes."""
        return self.tiling.tiles[0] * self.tiling.tiles[1] * self.times

    @property
    def tokens(self) -> int:
        """Patches that the encoder sees, halos included."""
        return self.times * self.tiling.encoded_pixels(self.trim) // self.tiling.patch**2

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the embeddings (time, embedding, y, x)."""
        return self.times, self.dim, *self.tiling.out_shape

    @property
    def bytes_in(self) -> int:
        """Stored pixels that are read at least once, uncompressed."""
        return self.times * self.bands * self.itemsize * self.tiling.shape[0] * self.tiling.shape[1]

    @property
    def bytes_out(self) -> int:
        """Embeddings and valid fractions, uncompressed."""
        t, d, h, w = self.shape
        return t * h * w * (d * np.dtype(self.dtype).itemsize + 4)

    @property
    def bytes_per_block(self) -> int:
        """Roughly what one block holds at once: window, canvas (float32, or float16 like the result), and result."""
        p = self.tiling
        window = self.bands * self.itemsize * (p.block + 2 * p.halo) ** 2
        patches = (p.block // p.patch) ** 2
        canvas = 2 if self.dtype == "float16" else 4
        return window + patches * self.dim * (canvas + np.dtype(self.dtype).itemsize)

    @property
    def encoded_per_kept(self) -> float:
        """Pixels that the encoder sees for each pixel of the cube."""
        return self.tiling.encoded_pixels(self.trim) / (self.tiling.shape[0] * self.tiling.shape[1])

    @property
    def seconds(self) -> float | None:
        """Encoding time at the measured rate; None where none was measured."""
        if self.tiles_per_second is None:
            return None
        whole = self.tiling.encoded_pixels(self.trim) / self.tiling.tile**2
        return self.times * whole / self.tiles_per_second

    def _rows(self) -> list[tuple[str, str]]:
        p = self.tiling
        t, d, h, w = self.shape
        amp = f"; up to {self.read_amplification:.1f} times that where neighbouring blocks run on different workers"
        amp = amp if self.read_amplification > 1.05 else ""
        rows = [
            ("model", self.model + ("" if self.trained else " (UNTRAINED: random weights)")),
            ("cube", f"{self.times} x {p.shape[0]} x {p.shape[1]} px, {self.bands} bands, {self.area_km2:,.1f} km²"),
            ("embeddings", f"{t} x {d} x {h} x {w} {self.dtype}, one vector for {p.patch} x {p.patch} px"),
            (
                "tiles",
                f"{self.tiles:,} of {p.tile} px with a halo of {p.halo} px; the encoder sees "
                f"{self.encoded_per_kept:.2f} px for each px of the cube",
            ),
            ("tokens", f"{self.tokens:,}"),
            ("blocks", f"{self.blocks:,} of {p.block} px: tasks, and shards of the store"),
            ("read", f"{size(self.bytes_in)}{amp}"),
            ("written", f"{size(self.bytes_out)} before compression"),
            ("memory", f"about {size(self.bytes_per_block)} a block in flight, and the model"),
        ]
        if self.seconds is None:
            rows.append(("time", "not measured here yet: plan(..., measure=True) encodes a few tiles to tell"))
        else:
            rate = f"{self.tiles_per_second:.3g} tiles/s measured on {self.device}"
            km2 = self.times * self.area_km2 / self.seconds
            rows.append(("time", f"about {duration(self.seconds)} ({rate}, {km2:.3g} km²/s)"))
        return rows

    def __repr__(self) -> str:
        return "<Plan>\n" + "\n".join(f"  {k + ':':<12}{v}" for k, v in self._rows())

    def _repr_html_(self) -> str:
        from html import escape

        from deo_cube.embedding.summary import CELL, html_table

        return html_table(
            "deo_cube plan",
            "".join(
                f'<tr><th style="{CELL}">{escape(k)}</th><td style="{CELL}">{escape(v)}</td></tr>'
                for k, v in self._rows()
            ),
        )


def plan(
    cube: Cube,
    model: str | Path | ModelCard = Default("tiny"),
    *,
    dtype: str = Default("float16"),
    device: str | None = None,
    precision: str = Default("float32"),
    batch_size: int | None = None,
    measure: bool = False,
    **options: Any,
) -> Plan:
    """Count what `embed` with the same arguments would do. Reads no pixel of a cube on Dask.

    Parameters
    ----------
    cube, model, dtype, device, precision, batch_size, **options
        As `embed` takes them.
    measure : bool
        Encode a few tiles of noise now to learn this machine's rate; it is remembered for later plans.

    Returns
    -------
    Plan

    Raises
    ------
    DeoCubeError
        Whatever `embed` would raise.

    Examples
    --------
    >>> import deo_cube
    >>> deo_cube.synthetic_cube(size=512, times=1).deo.plan().blocks
    1
    """
    measure = arguments.boolean("measure", measure)
    embed_options, run = split_options(
        {"model": model, "dtype": dtype, "device": device, "precision": precision, "batch_size": batch_size} | options
    )
    # Counting needs no weights; measuring does.
    p = prepare(cube, embed_options, locate=measure)
    check_device(run.device, p.precision)
    rates = _rates()
    # Where nothing is said, the device of which a rate is known: asking which there are would load torch.
    known = (d for d in ("cuda:0", "mps") if _rate_key(p.ref, p.plan.tile, d, p.precision) in rates)
    where = {"cuda": "cuda:0"}.get(device, device) if device else next(known, "cpu")
    rate: float | None
    if measure:
        where = runtime.choose_device(device)
        transfer.check_precision(p.precision, where)
        rate = measure_rate(p.ref, p.plan.tile, where, precision=p.precision)
        rates[_rate_key(p.ref, p.plan.tile, where, p.precision)] = rate
        _save_rates(rates)
    else:
        rate = rates.get(_rate_key(p.ref, p.plan.tile, where, p.precision))
    return _plan_of(p, rate, where)


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
        read_amplification=graph.read_amplification(p.window_reader),
        trim=p.ref.card.trim,
        tiles_per_second=rate,
        device=device,
    )


def measure_rate(ref: EncoderRef, tile: int, device: str, *, seconds: float = 3.0, precision: str = "float32") -> float:
    """Tiles per second of the encoder on all lanes of a device: noise in, a few seconds long, best of its rounds."""
    import torch

    encoder = runtime.encoder(ref, device, get_option("compile"))
    batch = runtime.default_batch(ref, tile, device)
    noise = torch.rand(batch, len(ref.stem.bands), tile, tile, generator=torch.Generator().manual_seed(0)) * 3000
    items = list(range(batch * runtime.lanes(device).count))

    def work(part: Any) -> None:
        with transfer.precise(precision, device):
            encoder.encode(noise[: len(part)].to(device)).cpu()

    runtime.run_batches(items, work, batch=batch, device=device, key=ref.fingerprint)
    best, begun = 0.0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        runtime.run_batches(items, work, batch=batch, device=device, key=ref.fingerprint)
        best = max(best, len(items) / (time.perf_counter() - start))
    return best


def known_rate(ref: EncoderRef, tile: int, device: str, precision: str = "float32") -> float | None:
    """Tiles per second that `plan(measure=True)` measured on this machine; None where it never did."""
    return _rates().get(_rate_key(ref, tile, device, precision))


def _rate_key(ref: EncoderRef, tile: int, device: str, precision: str) -> str:
    # Not the weights: they do not change the rate, and a plan may be made without them.
    return f"{ref.card.fingerprint}/{ref.layer.name}/{tile}/{device}/{precision}"


def _rates() -> dict[str, float]:
    try:
        return dict(json.loads((Path(get_option("cache_dir")) / "rates.json").read_text()))
    except (OSError, ValueError):
        return {}


def _save_rates(rates: dict[str, float]) -> None:
    folder = Path(get_option("cache_dir"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rates.json").write_text(json.dumps(rates))
    except OSError:
        pass  # a read-only home: the rate is in the plan all the same
