"""Measure how fast this machine embeds, and keep the rates for later plans.

Two rates are measured, both in tiles per second on all cores that may encode. `measure_rate` is that of the encoder
alone. `measure_block_rate` is that of blocks, on made-up pixels in memory: chunks are decoded, tiles are stitched and
cast, and checksums and compression are computed beside the encoder. It predicts a job without its start, and without
waiting for the disk.
"""

from __future__ import annotations

import json
import statistics
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.embedding import process, transfer
from deo_cube.embedding.block import EmbedBlock
from deo_cube.embedding.embed import block_of
from deo_cube.embedding.inputs import input_checksum
from deo_cube.embedding.options import RunOptions
from deo_cube.embedding.prepare import Prepared
from deo_cube.embedding.tiles import TilePlan
from deo_cube.embedding.windows import BlockIndex
from deo_cube.encoder.registry import EncoderRef
from deo_cube.options import get_option

__all__ = ["known_rate", "measure_block_rate", "measure_rate", "rate_key", "save_rate"]

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
        with transfer.precise(precision, device):
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

    Blocks are smaller than those of the plan, so that a large model needs seconds and not minutes.

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

    def one(_: int) -> None:
        for chunk in chunks:
            _decompressed(chunk)
        values, valid = block(index, windows)
        input_checksum(windows)
        zlib.crc32(np.ascontiguousarray(values).data, zlib.crc32(np.ascontiguousarray(valid).data))
        _compressed(values)

    rates: list[float] = []
    blocks = 2 * threads
    with ThreadPoolExecutor(blocks) as pool:
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


def _compressed(array: NDArray[Any]) -> list[bytes]:
    """Return an array as chunks of ``_CHUNK`` rows and columns, compressed as in a store."""
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
