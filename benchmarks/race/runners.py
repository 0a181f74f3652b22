"""Who races: each reads the cube, embeds every patch, and writes the result to Zarr or GeoTIFF.

The alternatives are written the way their documentation shows, by somebody who knows what costs time: the encoder is
loaded once and shared, batches are as large as deo_cube's, threads do not outnumber cores, blocks hold whole tiles.
All use the same network with the same statistics, and all crop the halo off each tile, so that their seams are those
of `embed`. Their vectors are those of `embed` too (tests/benchmarks/test_race.py), but for TorchGeo's where there is a
halo (its grid of tiles begins elsewhere) and TerraTorch's at the cube's edge (it mirrors whole patches).
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy as np
import torch

import deo_cube
from benchmarks.race.setting import Setting
from deo_cube.encoder.networks.timm_import import prepare_torchvision

__all__ = ["BLOCKED", "RUNNERS", "bare", "check", "missing", "tasks_per_block"]

Array = np.ndarray[Any, Any]


def _origins(size: int, tile: int, halo: int) -> list[int]:
    """First pixel of each tile along an axis: cores side by side from the cube's corner, halos outside."""
    return list(range(-halo, size - halo, tile - 2 * halo))


def _encode(setting: Setting, chips: Array) -> Array:
    """Chips [B, C, H, W] of DN to maps [B, D, h, w]."""
    return np.asarray(setting.encode(torch.from_numpy(np.ascontiguousarray(chips, dtype="float32"))).numpy())


def _strips(maps: Iterable[Array], across: int) -> Iterator[Array]:
    """Maps of cores, in batches row by row, to strips as wide as the cube."""
    strip: list[Array] = []
    for batch in maps:
        for one in batch:
            strip.append(one)
            if len(strip) == across:
                yield np.concatenate(strip, axis=-1)
                strip = []


def _batches(items: list[Any], batch: int) -> Iterator[list[Any]]:
    for i in range(0, len(items), batch):
        yield items[i : i + batch]


def bare(setting: Setting, tile: int, tiles: int, callers: int) -> float:
    """Tiles per second of the encoder alone on noise: `callers` threads that share the cores."""
    batch = setting.batch(tile)
    noise = torch.rand(tiles, len(setting.card.bands), tile, tile, generator=torch.Generator().manual_seed(0)) * 3000
    parts = noise.split(batch)
    each = max(1, setting.cores // callers)
    with ThreadPoolExecutor(callers, initializer=torch.set_num_threads, initargs=(each,)) as pool:
        list(pool.map(setting.encode, parts[:callers]))
        start = time.perf_counter()
        list(pool.map(setting.encode, parts))
        return tiles / (time.perf_counter() - start)


def embed(setting: Setting, tile: int, halo: int, block: int, out: str, **options: Any) -> None:
    """deo_cube, with what it has as default but for tile, halo and block."""
    lazy = deo_cube.embed(
        setting.cube({}), setting.card, tile=tile, halo=halo, block=block, anchor="array", units="dn", offset=0,
        runtime=setting.runtime, precision=setting.precision,
    )  # fmt: skip
    lazy.deo.to_zarr(out, progress=False, overwrite=True, **options)


def _output(setting: Setting, rows: int, columns: int, out: str) -> Any:
    """A GeoTIFF of float32 (GDAL has no float16 here), opened to be written row of tiles by row of tiles."""
    import rasterio

    with rasterio.open(setting.tif) as src:
        p = setting.card.patch
        transform, crs = src.transform * src.transform.scale(p, p), src.crs
    return rasterio.open(
        out, "w", driver="GTiff", width=columns, height=rows, count=setting.card.dim, dtype="float32", crs=crs,
        transform=transform, compress="zstd", interleave="band", bigtiff="if_safer",
    )  # fmt: skip


def rasterio_loop(setting: Setting, tile: int, halo: int, block: int, out: str) -> None:
    """Window by window with rasterio; one thread reads and writes, the encoder uses all cores."""
    import rasterio
    from rasterio.windows import Window

    torch.set_num_threads(setting.cores)
    p, n = setting.card.patch, setting.size
    origins, side = _origins(n, tile, halo), -(-n // p)
    h, k = halo // p, (tile - 2 * halo) // p

    def read(src: Any, top: int, left: int) -> Array:
        r0, c0, r1, c1 = max(top, 0), max(left, 0), min(top + tile, n), min(left + tile, n)
        edges = ((0, 0), (r0 - top, top + tile - r1), (c0 - left, left + tile - c1))
        return np.pad(src.read(window=Window(c0, r0, c1 - c0, r1 - r0)), edges, mode="symmetric")

    with rasterio.open(setting.tif) as src, _output(setting, side, side, out) as dst:
        parts = _batches([(y, x) for y in origins for x in origins], setting.batch(tile))
        maps = (_encode(setting, np.stack([read(src, y, x) for y, x in part])) for part in parts)
        cores = (m[:, :, h : h + k, h : h + k] for m in maps)
        for i, strip in enumerate(_strips(cores, len(origins))):
            strip = strip[:, : side - i * k, :side]
            dst.write(strip, window=Window(0, i * k, side, strip.shape[1]))


def _encode_block(block: Array, *, setting: Setting, tile: int, halo: int) -> Array:
    """All tiles of a block that comes with its halo: what a user hands to map_blocks and map_overlap."""
    torch.set_num_threads(1)
    p, core = setting.card.patch, tile - 2 * halo
    h, k = halo // p, core // p
    height, width = (s - 2 * halo for s in block.shape[1:])
    rows, columns = -(-height // core), -(-width // core)
    edges = ((0, 0), (0, rows * core - height), (0, columns * core - width))
    padded = np.pad(block, edges, mode="symmetric")
    out = np.empty((setting.card.dim, rows * k, columns * k), "float32")
    for part in _batches([(y, x) for y in range(rows) for x in range(columns)], setting.batch(tile)):
        chips = np.stack([padded[:, y * core : y * core + tile, x * core : x * core + tile] for y, x in part])
        for (y, x), m in zip(part, _encode(setting, chips), strict=True):
            out[:, y * k : (y + 1) * k, x * k : (x + 1) * k] = m[:, h : h + k, h : h + k]
    return out[:, : -(-height // p), : -(-width // p)].astype("float16")


def lazy_mapped(setting: Setting, tile: int, halo: int, block: int) -> Any:
    """The lazy array of `map_blocks`, or of `map_overlap` where there is a halo."""
    import dask.array as da

    p = setting.card.patch
    cube = setting.cube({"band": -1, "y": block, "x": block}).data
    options = {
        "dtype": "float16",
        "chunks": ((setting.card.dim,), *(tuple(-(-c // p) for c in axis) for axis in cube.chunks[1:])),
        "meta": np.empty((0, 0, 0), "float16"),
        "setting": setting,
        "tile": tile,
        "halo": halo,
    }
    if halo == 0:
        return da.map_blocks(_encode_block, cube, **options)
    depth, boundary = {0: 0, 1: halo, 2: halo}, {0: "none", 1: "reflect", 2: "reflect"}
    return da.map_overlap(
        _encode_block, cube, depth=depth, boundary=boundary, trim=False, allow_rechunk=False, **options
    )


def mapped(setting: Setting, tile: int, halo: int, block: int, out: str) -> None:
    """`dask.array.map_blocks` or `map_overlap` on threads, in blocks of whole tiles, written by `to_zarr`."""
    with dask.config.set(scheduler="threads", num_workers=setting.cores):
        lazy_mapped(setting, tile, halo, block).to_zarr(out, overwrite=True)


def xbatcher_loop(setting: Setting, tile: int, halo: int, block: int, out: str) -> None:
    """A loop over xbatcher's patches of a padded cube, put back together by hand."""
    import xbatcher
    import zarr

    torch.set_num_threads(setting.cores)
    p, core, n = setting.card.patch, tile - 2 * halo, setting.size
    side, h, k, across = -(-n // p), halo // p, core // p, len(_origins(n, tile, halo))
    after = across * core - n + halo
    cube = setting.cube({})
    if after:
        cube = cube.pad(y=(halo, after), x=(halo, after), mode="symmetric")
    patches = xbatcher.BatchGenerator(
        cube, input_dims={"y": tile, "x": tile}, input_overlap={"y": 2 * halo, "x": 2 * halo}, preload_batch=False
    )
    shape, chunks = (setting.card.dim, side, side), (setting.card.dim, k, min(4 * k, side))
    target = zarr.create_array(out, shape=shape, chunks=chunks, dtype="float16", overwrite=True)
    with dask.config.set(scheduler="threads", num_workers=setting.cores):
        parts = _batches(list(range(across * across)), setting.batch(tile))
        maps = (_encode(setting, np.stack([patches[i].values for i in part])) for part in parts)
        cores = (m[:, :, h : h + k, h : h + k] for m in maps)
        for i, strip in enumerate(_strips(cores, across)):
            target[:, i * k : (i + 1) * k] = strip[:, : side - i * k, :side].astype("float16")


def torchgeo_sampler(setting: Setting, tile: int, halo: int, block: int, out: str) -> None:
    """TorchGeo's GridGeoSampler over the GeoTIFF; chips lose their halo but at the cube's edge.

    Its grid begins at the south-west corner, without a margin: with a halo, tiles lie elsewhere than the others'.
    """
    prepare_torchvision()
    from rasterio.windows import Window
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    torch.set_num_threads(setting.cores)
    p, core, n = setting.card.patch, tile - 2 * halo, setting.size
    side, h, k = -(-n // p), halo // p, core // p
    dataset = type("Cube", (RasterDataset,), {"filename_glob": "cube.tif"})(paths=str(Path(setting.tif).parent))
    loader = DataLoader(
        dataset, sampler=GridGeoSampler(dataset, size=tile, stride=core), batch_size=setting.batch(tile),
        collate_fn=stack_samples,
    )  # fmt: skip
    across = max(1, -(-(n - tile) // core) + 1)

    def cut(maps: Array, first: int) -> Iterator[Array]:
        # From the bottom row up, as the sampler goes; the outermost chips keep the side that nothing else covers.
        for i, m in enumerate(maps, first):
            row, column = divmod(i, across)
            top, bottom = (0 if row == across - 1 else h), (None if row == 0 else h + k)
            left, right = (0 if column == 0 else h), (None if column == across - 1 else h + k)
            yield m[:, top:bottom, left:right]

    with _output(setting, side, side, out) as dst:
        seen = 0
        below = side

        def maps() -> Iterator[Array]:
            nonlocal seen
            for sample in loader:
                chips = sample["image"]
                yield list(cut(setting.encode(chips).numpy(), seen))  # type: ignore[misc]
                seen += len(chips)

        for strip in _strips(maps(), across):
            strip = strip[:, max(0, strip.shape[1] - below) :, :side]
            below -= strip.shape[1]
            dst.write(np.ascontiguousarray(strip), window=Window(0, below, side, strip.shape[1]))


def terratorch_tiled(setting: Setting, tile: int, halo: int, block: int, out: str) -> None:
    """TerraTorch's tiled_inference over the whole cube in memory.

    It wants maps as large as its input. Patches are folded into channels (`pixel_unshuffle`), so that a map of patches
    is as large; without that trick each vector would have to be repeated over every pixel of its patch.
    """
    prepare_torchvision()
    import rasterio
    from terratorch.tasks.tiled_inference import tiled_inference
    from torch.nn.functional import pixel_shuffle, pixel_unshuffle

    torch.set_num_threads(setting.cores)
    p = setting.card.patch
    with rasterio.open(setting.tif) as src:
        image = torch.from_numpy(src.read().astype("float32"))[None]
    with torch.inference_mode():
        maps = tiled_inference(
            lambda folded: setting.encode(pixel_shuffle(folded, p)), pixel_unshuffle(image, p), crop=tile // p,
            stride=(tile - 2 * halo) // p, delta=halo // p, batch_size=setting.batch(tile), blend_overlaps=False,
            padding="reflect" if halo else False,
        )  # fmt: skip
    with _output(setting, *maps.shape[2:], out) as dst:
        dst.write(maps[0].numpy())


#: Name in tables -> runner, and the package it needs.
RUNNERS: dict[str, tuple[Callable[..., None], str | None]] = {
    "deo_cube embed": (embed, None),
    "dask map_blocks / map_overlap": (mapped, None),
    "rasterio loop": (rasterio_loop, None),
    "xbatcher loop": (xbatcher_loop, "xbatcher"),
    "TorchGeo GridGeoSampler": (torchgeo_sampler, "torchgeo"),
    "TerraTorch tiled_inference": (terratorch_tiled, "terratorch"),
}
#: Runners that work block by block: raced at every block size, the others once.
BLOCKED = ("deo_cube embed", "dask map_blocks / map_overlap")


def check(path: str, setting: Setting) -> None:
    """Refuse to count a run whose result is not there as a whole: every tenth row must hold numbers that differ."""
    import rasterio
    import zarr

    side = -(-setting.size // setting.card.patch)
    if path.endswith(".tif"):
        with rasterio.open(path) as src:
            found = src.read(1)[::10]
    elif (Path(path) / "embeddings").exists():
        found = np.asarray(deo_cube.open_embeddings(path).isel(embedding=0).values)[..., ::10, :]
    else:
        found = np.asarray(zarr.open_array(path, mode="r")[0])[::10]
    if found.shape[-1] != side or not np.isfinite(found).all() or (np.ptp(found, axis=-1) == 0).any():
        raise RuntimeError(f"{path} does not hold the embeddings of the whole cube: its time counts for nothing")


def missing(name: str) -> str | None:
    """Why a runner cannot race here, or None."""
    package = RUNNERS[name][1]
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return f"{package} is not installed (pip install {package})"


def tasks_per_block(name: str, setting: Setting, tile: int, halo: int, block: int) -> float | None:
    """Tasks of the optimised graph for each block; None where there is no graph."""
    blocks = (-(-setting.size // block)) ** 2
    if name == "deo_cube embed":
        # to_zarr hands the scheduler one task per block, which reads, encodes and writes it.
        return 1.0
    if name in BLOCKED:
        (lazy,) = dask.optimize(lazy_mapped(setting, tile, halo, block))
        return len(dict(lazy.__dask_graph__())) / blocks
    return None
