"""`ds.deo.plan()`: count tiles, tokens, bytes and time before embedding, at the rate that was measured here.

Two rates are measured, both in tiles per second on all cores that may encode. `measure_rate` is that of the encoder
alone. `measure_block_rate` is that of blocks, on made-up pixels: chunks are decoded, tiles are stitched and cast,
checksums are computed and shards are written to a temporary folder, all beside the encoder. It predicts a job without
its start, and without waiting for the disk.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from deo_cube import arguments
from deo_cube.cube import georeference
from deo_cube.embedding import process, transfer
from deo_cube.embedding.block import EmbedBlock
from deo_cube.embedding.embed import block_of, check_device, with_runtime
from deo_cube.embedding.options import RunOptions, split_options
from deo_cube.embedding.prepare import Cube, Prepared, prepare
from deo_cube.embedding.tasks import input_checksum
from deo_cube.embedding.tiles import TilePlan
from deo_cube.embedding.windows import BlockIndex, read_amplification
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import EncoderRef
from deo_cube.errors import remedy
from deo_cube.notebook import facts_html
from deo_cube.options import Default, get_option
from deo_cube.progress import duration, size

__all__ = ["Cost", "Plan", "known_rate", "measure_block_rate", "measure_rate", "plan", "rate_key", "save_rate"]


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
            call = remedy("plan(..., measure=True)", "--measure")
            rows.append(("time", f"not measured on this machine: {call} embeds a few blocks"))
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


#: Side of the chunks that a measured block reads, pixels: `load_cube` gives 1024, most files have smaller ones.
_CHUNK = 512


def measure_rate(
    ref: EncoderRef,
    tile: int,
    device: str,
    *,
    seconds: float = 3.0,
    precision: str = "float32",
    runtime: str = "torch",
) -> float:
    """Return the encoder's tiles per second on noise: the best round of a few seconds."""
    import torch

    encoder = process.encoder(ref, device, get_option("compile"), precision, runtime=runtime, tile=tile)
    batch = process.default_batch(ref, tile, device)
    noise = torch.rand(batch, len(ref.stem.bands), tile, tile, generator=torch.Generator().manual_seed(0)) * 3000
    items = list(range(batch * process.device_threads(device).count))

    def work(part: Any) -> None:
        with transfer.autocast_context(precision, device):
            encoder.encode(noise[: len(part)].to(device)).cpu()

    process.run_batches(items, work, batch=batch, device=device, key=ref.fingerprint)
    best, begun = 0.0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        process.run_batches(items, work, batch=batch, device=device, key=ref.fingerprint)
        best = max(best, len(items) / (time.perf_counter() - start))
    return best


def measure_block_rate(p: Prepared, device: str, *, seconds: float = 4.0) -> float:
    """Return the tiles per second of blocks as `to_zarr` computes them, on made-up pixels: the median of rounds.

    Blocks are smaller than those of the plan, so that a large model needs seconds and not minutes. Their shards are
    written to a temporary folder.

    Parameters
    ----------
    p : Prepared
        What is to be embedded, with its runtime chosen.
    device : str
        Where the encoder runs.
    seconds : float
        Time after which no further round begins.
    """
    threads = process.device_threads(device).count
    batch = process.default_batch(p.ref, p.plan.tile, device)
    # Two batches per worker thread and block keep all of them busy until the last.
    side = max(1, min(p.plan.block // p.plan.core, int(np.ceil(np.sqrt(2 * batch)))))
    block, index = _small_block(p, side, device), BlockIndex(0, 1, 1)
    windows = _windows(p, block.plan, index)
    chunks = [_compressed(w) for w in windows]
    rates: list[float] = []
    blocks = 2 * threads
    with (
        tempfile.TemporaryDirectory(prefix="deo_cube-plan-", ignore_cleanup_errors=True) as folder,
        ThreadPoolExecutor(blocks) as pool,
    ):
        shards = _shards(Path(folder, "shards"), block, blocks)

        def one(i: int) -> None:
            for chunk in chunks:
                _decompressed(chunk)
            values, valid = block(index, windows)
            input_checksum(windows)
            zlib.crc32(np.ascontiguousarray(values).data, zlib.crc32(np.ascontiguousarray(valid).data))
            shards[i] = values[0]

        list(pool.map(one, range(threads)))  # loads the encoder
        begun = time.perf_counter()
        while not rates or time.perf_counter() - begun < seconds:
            start = time.perf_counter()
            list(pool.map(one, range(blocks)))
            rates.append(blocks * side * side / (time.perf_counter() - start))
    return statistics.median(rates)


def _small_block(p: Prepared, side: int, device: str) -> EmbedBlock:
    """Return the task of a block of ``side * side`` tiles, none of which is at an edge of the cube."""
    size = side * p.plan.core
    plan = TilePlan((3 * size, 3 * size), (0, 0), p.plan.tile, p.plan.halo, p.plan.patch, size, p.plan.edge)
    return replace(block_of(p, RunOptions(device=device)), plan=plan)


def _windows(p: Prepared, plan: TilePlan, index: BlockIndex) -> tuple[NDArray[Any], ...]:
    """Return made-up windows of a block as its cube would have them: bands, then SCL and a mask where it has them."""
    rows, columns = plan.rows.block(index.row), plan.columns.block(index.column)
    shape = (rows.read_stop - rows.read_start, columns.read_stop - columns.read_start)
    rng = np.random.default_rng(0)
    groups = p.window_reader.groups
    dtype = groups[0][0].dtype
    dn = rng.integers(300, 3000, (len(groups[0]), *shape))
    # Stored as the cube stores them, so that the checks of a block find what they expect.
    stored = (dn - p.radiometry.at(0)) / p.radiometry.scale
    bands = stored.round().astype(dtype) if dtype.kind in "iu" else stored.astype(dtype)
    # Class 4 is vegetation, and 0 in a mask hides nothing.
    others = [np.full((len(g), *shape), 4 if p.scl and i == 0 else 0, g[0].dtype) for i, g in enumerate(groups[1:])]
    return (bands, *others)


def _shards(path: Path, block: EmbedBlock, count: int) -> Any:
    """Return a new array of `count` shards along its first axis, with the codec of stores and a chunk per tile."""
    dim, per_core = block.ref.layer.dim, block.plan.rows.patches_per_core
    side = block.plan.block // block.plan.core * per_core
    array = zarr.create_array(
        str(path),
        shape=(count, dim, side, side),
        shards=(1, dim, side, side),
        chunks=(1, dim, per_core, per_core),
        dtype=block.dtype,
        compressors=zarr.codecs.ZstdCodec(level=1),
    )
    return array.with_config({"write_empty_chunks": True})


def _compressed(array: NDArray[Any]) -> list[bytes]:
    """Return an array as chunks of ``_CHUNK`` rows and columns, compressed as files are."""
    from numcodecs.zstd import Zstd

    codec, (rows, columns) = Zstd(level=1), array.shape[-2:]
    return [
        codec.encode(np.ascontiguousarray(array[..., r : r + _CHUNK, c : c + _CHUNK]))
        for r in range(0, rows, _CHUNK)
        for c in range(0, columns, _CHUNK)
    ]


def _decompressed(chunks: list[bytes]) -> None:
    from numcodecs.zstd import Zstd

    codec = Zstd()
    for chunk in chunks:
        codec.decode(chunk)


def known_rate(
    ref: EncoderRef, tile: int, device: str, precision: str = "float32", runtime: str = "torch"
) -> float | None:
    """Return the tiles per second that `plan(measure=True)` measured on this machine, or None."""
    return _rates().get(rate_key(ref, tile, device, precision, runtime))


def save_rate(ref: EncoderRef, tile: int, device: str, precision: str, runtime: str, rate: float) -> None:
    """Keep a rate for later plans; without effect where the folder cannot be written."""
    folder = Path(get_option("cache_dir"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rates = _rates() | {rate_key(ref, tile, device, precision, runtime): rate}
        (folder / "rates.json").write_text(json.dumps(rates))
    except OSError:
        pass  # a read-only home: the rate is in this plan


def rate_key(ref: EncoderRef, tile: int, device: str, precision: str, runtime: str) -> str:
    """Return the name of a rate in the file of rates."""
    # Without the weights: they do not change the rate, and a plan does not need them.
    key = f"{ref.card.fingerprint}/{ref.layer.name}/{tile}/{device}/{precision}"
    key += "" if runtime == "torch" else f"/{runtime}"
    # Rates from before blocks were measured have no cores in their name, and are not used.
    return key + (f"/{process.cpu_threads()} cores" if device == "cpu" else "")


def _rates() -> dict[str, float]:
    try:
        return dict(json.loads((Path(get_option("cache_dir")) / "rates.json").read_text()))
    except (OSError, ValueError):
        return {}
