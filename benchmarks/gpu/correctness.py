"""Show that a GPU computes the same embeddings: each check is one row of the report."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import deo_cube
from benchmarks.gpu.setting import Report, card_of
from deo_cube.embedding import process, transfer
from deo_cube.embedding.process import Replayed
from deo_cube.encoder.registry import EncoderRef, resolve

__all__ = ["distance", "measure", "tree_hash"]

#: Largest cosine distance from float32 on the CPU that a precision may have.
ALLOWED = {"float32": 1e-6, "float32, tf32 convolutions": 1e-3, "tf32": 1e-3, "bfloat16": 1e-2, "float16": 1e-3}


def measure(report: Report, device: str, folder: str) -> None:
    """Run all checks."""
    steps: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for model in report.config.models:
        ref = resolve(card_of(model))
        steps.append((f"precisions of {model}", lambda ref=ref: precisions(ref, device)))
        steps.append((f"batches of {model}", lambda ref=ref: batches(ref, device)))
        for precision in report.config.precisions:
            name = f"graphs of {model} in {precision}"
            steps.append((name, lambda ref=ref, precision=precision: graphs(ref, device, precision)))
    cube = small_cube()
    checks = (equal_to_cpu, chunks_blocks_and_batches, overlap, resumed, processes, out_of_memory)
    steps += [(check.__name__, lambda check=check: check(cube, device, folder)) for check in checks]
    for name, run in steps:
        if report.late(name):
            continue
        start = time.perf_counter()
        try:
            row = run()
        except Exception as error:  # one that fails must not hide the others
            logging.getLogger("deo_cube").exception(name)
            row = {"passed": False, "error": f"{type(error).__name__}: {error}"[:2000]}
        report.add("correctness", {"check": name, **row, "took_s": round(time.perf_counter() - start, 1)})


def small_cube() -> xr.Dataset:
    """Return a cube of 900 x 840 px, with clouds and gaps."""
    whole = deo_cube.synthetic_cube(size=900, times=1)
    return whole.isel(x=slice(0, 840)).chunk({"y": 256, "x": 256})


def distance(a: np.ndarray, b: np.ndarray, axis: int = 1) -> dict[str, float]:
    """Return the largest cosine distance of vectors along `axis`, and the largest difference over the largest value."""
    a, b = (np.moveaxis(np.asarray(v, np.float64), axis, -1) for v in (a, b))
    real = np.isfinite(a).all(-1) & np.isfinite(b).all(-1)
    a, b = a[real], b[real]
    cosine = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return {"cosine": float(1 - cosine.min()), "relative": float(np.abs(a - b).max() / np.abs(b).max())}


@contextlib.contextmanager
def _tf32(convolutions: bool, products: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if products else "highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=convolutions):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _noise(ref: EncoderRef, count: int, tile: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, len(ref.stem.bands), tile, tile, generator=generator) * 3000


def precisions(ref: EncoderRef, device: str) -> dict[str, Any]:
    """Compare a batch in each precision with float32 on the CPU, and time it."""
    pixels = _noise(ref, 2, ref.card.tile)
    reference = process.encoder(ref, "cpu").encode(pixels).numpy()
    encoder = process.encoder(ref, device)
    there = pixels.to(device)
    network: Any = encoder.network
    layer = encoder.layer.name
    normalized, stem = encoder._input(there, None, None, multiple=encoder.layer.stride)
    kinds: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
        "float32": lambda: _tf32(False, False),
        "float32, tf32 convolutions": lambda: _tf32(True, False),
        "tf32": lambda: _tf32(True, True),
    }
    if device.startswith("cuda"):
        kinds["bfloat16"] = lambda: torch.autocast("cuda", torch.bfloat16)
        kinds["float16"] = lambda: torch.autocast("cuda", torch.float16)
    found: dict[str, dict[str, float]] = {}
    for name, context in kinds.items():
        # The network itself: `encode` computes float32 in float32, whatever is set.
        with context(), torch.inference_mode():
            maps = network.forward_features(normalized, stem.name, (layer,))[layer]
        found[name] = distance(maps.float().cpu().numpy(), reference)
    passed = all(found[name]["cosine"] <= ALLOWED[name] for name in found)
    return {"model": ref.card.alias, "passed": passed, "distance": found}


def batches(ref: EncoderRef, device: str) -> dict[str, Any]:
    """Find whether a tile's vectors depend, to the last bit, on the tiles in its batch, and on their number."""
    pixels = _noise(ref, 8, ref.card.tile).to(device)
    encoder = process.encoder(ref, device)

    def run(batch: torch.Tensor) -> torch.Tensor:
        return encoder.encode(batch).float().cpu()

    whole = run(pixels)
    sizes = {str(n): bool(torch.equal(run(pixels[:n].contiguous()), whole[:n])) for n in (1, 2, 3, 5, 7)}
    order = torch.equal(run(pixels.flip(0)).flip(0), whole)
    repeated = all(torch.equal(run(pixels), whole) for _ in range(3))
    # Of one size, whatever else is in the batch: what chunk-invariance needs.
    padded = torch.cat([pixels[:3], pixels[:1].expand(5, -1, -1, -1)])
    return {
        "model": ref.card.alias,
        "passed": bool(order and repeated and torch.equal(run(padded)[:3], whole[:3])),
        "same_bits_in_other_batch_sizes": sizes,
        "same_bits_in_other_places_of_the_batch": bool(order),
        "same_bits_again": bool(repeated),
    }


def graphs(ref: EncoderRef, device: str, precision: str) -> dict[str, Any]:
    """Compare kernels that a CUDA graph launches with the same kernels launched one by one."""
    encoder = process.encoder(ref, device, False, precision)
    if not isinstance(encoder, Replayed):
        return {"model": ref.card.alias, "precision": precision, "passed": True, "skipped": "no graphs"}
    pixels = _noise(ref, 8, ref.card.tile).to(device)
    with transfer.autocast_context(precision, device):
        plain = encoder.encoder.encode(pixels)
        replayed = [encoder.encode(pixels) for _ in range(5)]
        replayed.append(encoder.encode(pixels.flip(0)).flip(0))
    same = [bool(torch.equal(maps, plain)) for maps in replayed]
    recorded = bool(encoder.recorded)
    return {"model": ref.card.alias, "precision": precision, "passed": all(same) and recorded, "same_bits": same}


def equal_to_cpu(cube: xr.Dataset, device: str, folder: str) -> dict[str, Any]:
    """Embed a cube on both."""
    rows = {}
    for dtype in ("float32", "float16"):
        there = cube.deo.embed("tiny", device=device, dtype=dtype).compute().values
        here = cube.deo.embed("tiny", device="cpu", dtype=dtype).compute().values
        rows[dtype] = distance(there, here) | {"same_gaps": bool(np.array_equal(np.isnan(there), np.isnan(here)))}
    passed = rows["float32"]["cosine"] < 1e-6 and all(r["same_gaps"] for r in rows.values())
    return {"passed": passed, "distance": rows}


def chunks_blocks_and_batches(cube: xr.Dataset, device: str, folder: str) -> dict[str, Any]:
    """Embed a cube in other chunks, blocks and batches, by other schedulers, and a part of it."""
    import dask

    options: dict[str, Any] = {"device": device, "dtype": "float32"}

    def run(cube: xr.Dataset = cube, scheduler: str = "threads", **more: Any) -> np.ndarray:
        with dask.config.set(scheduler=scheduler):
            return np.asarray(cube.deo.embed("tiny", **options, **more).compute().values)

    first = run()
    others = {
        "again": run(),
        "chunks 97": run(cube.chunk({"y": 97, "x": 97})),
        "one chunk": run(cube.chunk({"y": -1, "x": -1})),
        "synchronous": run(scheduler="synchronous"),
        "blocks of 576": run(block=576),
        "blocks of 288": run(block=288),
        "batches of 1": run(batch_size=1),
        "batches of 7": run(batch_size=7),
    }
    part = run(cube.isel(y=slice(300, 700), x=slice(300, 700)))
    same = {name: bool(np.array_equal(first, other, equal_nan=True)) for name, other in others.items()}
    apart = {name: distance(other, first) for name, other in others.items() if not same[name]}
    must = ("again", "chunks 97", "one chunk", "synchronous", "blocks of 576", "blocks of 288")
    inner = part[:, :, 30:-30, 30:-30]
    y0, x0 = 75 + 30, 75 + 30
    overlapping = first[:, :, y0 : y0 + inner.shape[2], x0 : x0 + inner.shape[3]]
    return {
        "passed": all(same[name] for name in must),
        "same_bits": same,
        "distance_where_not": apart,
        "part_of_the_cube": distance(inner, overlapping) if inner.shape == overlapping.shape else "shapes differ",
    }


def overlap(cube: xr.Dataset, device: str, folder: str) -> dict[str, Any]:
    """Compare overlapping copies through pinned memory with plain copies that wait, ten times."""
    if not device.startswith("cuda"):
        return {"passed": True, "skipped": "no GPU"}
    options: dict[str, Any] = {"device": device, "dtype": "float32", "block": 288}
    streams = transfer.STREAMS.pop("cuda")
    try:
        plain = cube.deo.embed("tiny", **options).compute().values
    finally:
        transfer.STREAMS["cuda"] = streams
    runs = [cube.deo.embed("tiny", **options).compute(num_workers=24).values for _ in range(10)]
    same = [bool(np.array_equal(run, plain, equal_nan=True)) for run in runs]
    return {"passed": all(same), "same_bits": same}


def tree_hash(folder: str) -> str:
    """Return a SHA-256 over the shards of a store, by name."""
    total = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and "/c/" in str(path):
            total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


def resumed(cube: xr.Dataset, device: str, folder: str) -> dict[str, Any]:
    """Write a store, lose shards of it, and write them again."""
    path = f"{folder}/resumed.zarr"
    lazy = cube.deo.embed("tiny", device=device, block=288)
    lazy.deo.to_zarr(path, overwrite=True, progress=False)
    before = tree_hash(path)
    shards = sorted(p for p in Path(path, "embeddings", "c").rglob("*") if p.is_file())
    for shard in shards[::2]:
        shard.unlink()
    damaged = tree_hash(path)
    # A fresh graph, and batches of other blocks: only what is missing is encoded.
    cube.deo.embed("tiny", device=device, block=288).deo.to_zarr(path, progress=False)
    return {"passed": before == tree_hash(path) != damaged, "shards": len(shards), "lost": len(shards[::2])}


def processes(cube: xr.Dataset, device: str, folder: str) -> dict[str, Any]:
    """Let two processes share the GPU."""
    stores = {}
    for scheduler, workers in (("threads", 4), ("processes", 2)):
        path = f"{folder}/{scheduler}.zarr"
        lazy = cube.deo.embed("tiny", device=device, block=288)
        lazy.deo.to_zarr(path, overwrite=True, progress=False, scheduler=scheduler, num_workers=workers)
        stores[scheduler] = tree_hash(path)
        shutil.rmtree(path)
    return {"passed": len(set(stores.values())) == 1}


def out_of_memory(cube: xr.Dataset, device: str, folder: str) -> dict[str, Any]:
    """Give the process too little memory for a batch, so that it is halved."""
    if not device.startswith("cuda"):
        return {"passed": True, "skipped": "no GPU"}
    options: dict[str, Any] = {"device": device, "dtype": "float32", "batch_size": 16}
    first = cube.deo.embed("tiny", **options).compute(scheduler="synchronous").values
    ref = resolve(card_of("tiny"))
    peaks = {}
    for count in (2, 16):
        pixels = _noise(ref, count, ref.card.tile).to(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        process.encoder(ref, device).encode(pixels)
        peaks[count] = torch.cuda.max_memory_allocated(device)
        del pixels
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    per_tile = (peaks[16] - peaks[2]) / 14
    torch.cuda.set_per_process_memory_fraction((peaks[2] + 4 * per_tile) / total, device)
    try:
        small = cube.deo.embed("tiny", **options).compute(scheduler="synchronous").values
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    limits = {f"{k[1]}": v for k, v in process._batch_limits.items()}
    process._batch_limits.clear()
    far = distance(small, first)
    return {
        "passed": bool(limits) and far["cosine"] < 1e-6,
        "batch_became": limits,
        "mib_per_tile": round(per_tile / 2**20),
        "same_bits": bool(np.array_equal(small, first, equal_nan=True)),
        "distance": far,
    }
