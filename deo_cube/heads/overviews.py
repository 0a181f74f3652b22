"""Write the overviews of a store (`add_overviews`): colours and mean vectors at reduced resolutions, for map programs.

Layout, a group inside of the store that is a Zarr hierarchy of its own::

    overviews                         attributes of the conventions multiscales, spatial: and proj:
    overviews/1x/rgb_20240501         (band, y, x) uint8: colours of `pca_rgb`, 0 where there is no patch; one per date
    overviews/2x/rgb_20240501         the same at half the resolution
    overviews/2x/embeddings, valid    mean vectors, weighted by `valid`, in the dtype of the store
    overviews/4x/...

The arrays have plain chunks without shards, and those of colours have three dimensions: GDAL, QGIS, rio-tiler, titiler
and deck.gl read them. Each level has coordinates and CRS.

Overviews are derived: the arrays of the store, its attributes, identity and record are not touched. One job per chunk
of each level; its entry, ``progress/overviews/<level>/<time>/<row>/<column>``, is written last and holds a hash of the
entries of the blocks that it was made from. So an interrupted call is resumed, and where blocks were written anew only
what lies above them is. A store that is reopened for writing marks its overviews as stale.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from zarr.abc.store import Store

from deo_cube import arguments
from deo_cube.constants import Attribute
from deo_cube.cube import georeference
from deo_cube.cube.times import read_times
from deo_cube.embedding import metadata
from deo_cube.errors import ArgumentError, StoreMismatchError
from deo_cube.heads.pca import PCA, basis_of
from deo_cube.progress import Progress
from deo_cube.store import create, storage
from deo_cube.store.layout import GROUP, OVERVIEWS, ROOT, STALE, fill
from deo_cube.store.open import open_embeddings, status

__all__ = ["MULTISCALES", "Overviews", "add_overviews", "overviews_of"]

Array = NDArray[Any]

#: Cells along a side of a job and of a chunk of colours.
CHUNK = 256
#: Cells along a side of a chunk of vectors, as inside the shards of the store.
INNER = 64
#: Rows that are averaged at a time, which bounds the memory of a job.
STRIP = 64
#: The default levels end where both sides are at most this long.
SMALL = 256
#: Jobs at a time: they read and write, and numpy leaves the interpreter to others.
WORKERS = 2
SPEC = Attribute.OVERVIEWS
#: Hash of the record of the store that the overviews were made from.
OF = Attribute.OVERVIEWS_OF
MULTISCALES = {
    "uuid": "d35379db-88df-4056-af3a-620245f8e347",
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/multiscales/refs/tags/v0.1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/multiscales/blob/v0.1/README.md",
    "name": "multiscales",
    "description": "Multiscale layout of zarr datasets",
}


@dataclass(frozen=True)
class Overviews:
    """The overviews of a store."""

    path: str
    """Of the Zarr group, which is what other programs open."""
    factors: tuple[int, ...]
    """Cells of the store along a side of a cell, per level; 1 has colours only."""
    arrays: tuple[str, ...]
    complete: bool
    """False while they are being written, or after a run was interrupted."""
    stale: bool
    """True if blocks of the store were written since."""

    def __repr__(self) -> str:
        state = "stale: call add_overviews again" if self.stale else "complete" if self.complete else "not complete"
        levels = ", ".join(f"{f}x" for f in self.factors)
        return f"<Overviews at {self.path}: levels {levels}; {', '.join(self.arrays)}; {state}>"


@dataclass(frozen=True)
class _Plan:
    """Values that decide the content of overviews, and the grids of their levels."""

    factors: tuple[int, ...]
    vectors: bool
    colors: tuple[str, ...]
    """Name of the array of colours of each date; empty where none are written."""
    basis: PCA | None
    times: int
    shape: tuple[int, int]
    four: bool
    """True if the arrays of the store have a dimension of time."""
    spec: str = ""
    """JSON of all this, which existing overviews are compared with."""
    entries: Array = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint64))
    block: tuple[int, int] = (1, 1)

    def side(self, level: int) -> tuple[int, int]:
        """Return rows and columns of a level."""
        f = self.factors[level]
        return -(-self.shape[0] // f), -(-self.shape[1] // f)

    def jobs(self, level: int) -> Iterator[tuple[int, int, int]]:
        """Yield time, row and column of each chunk of a level."""
        rows, columns = self.side(level)
        for i in range(-(-rows // CHUNK)):
            for j in range(-(-columns // CHUNK)):
                for t in range(self.times):
                    yield t, i, j

    def token(self, level: int, job: tuple[int, int, int]) -> bytes:
        """Return the hash of what a chunk is made from: the entries of the blocks below it, and the options."""
        t, i, j = job
        cuts = []
        for k, block in zip((i, j), self.block, strict=True):
            side = CHUNK * self.factors[level]
            cuts.append(slice(k * side // block, -(-(k + 1) * side // block)))
        entries = np.ascontiguousarray(self.entries[t, cuts[0], cuts[1]], dtype="<u8").tobytes()
        return hashlib.blake2b(self.spec.encode() + entries, digest_size=8).digest()


def add_overviews(
    store: Any,
    *,
    levels: int | None = None,
    vectors: bool = True,
    colors: bool = True,
    basis: PCA | str | Path | None = None,
    progress: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> Overviews:
    """Write reduced resolutions into a complete store, so that map programs show it zoomed out.

    Parameters
    ----------
    store : path, URL or zarr store
        Written by `to_zarr`, and complete.
    levels : int, optional
        Reduced resolutions, each half of the one before. Default: until both sides are at most 256 patches long.
    vectors : bool
        Write the mean vectors of 2 x 2, 4 x 4, ... patches, weighted by `valid`, in the dtype of the store.
    colors : bool
        Write the colours of `pca_rgb` in 8 bits, in full and at each reduced resolution; one array per date.
    basis : PCA or path, optional
        Of the colours. Default: the basis bundled with the model, else one fitted on a sample of the store.
    progress : bool
        Show a progress bar.
    storage_options : mapping, optional
        As for `to_zarr`.

    Returns
    -------
    Overviews
        `path` is the group that GDAL, QGIS, titiler and others open, ``<store>/overviews``. Its attributes follow the
        convention `multiscales`.

    Raises
    ------
    StoreMismatchError
        If the store is not complete, or was not made by deo_cube.
    ArgumentError
        Without anything to write, and for less than one level.

    Notes
    -----
    The same call resumes an interrupted one, and after blocks of the store were written anew it does only those chunks
    again that are above them. The arrays, attributes and identity of the store are not changed.
    """
    vectors, colors = arguments.boolean("vectors", vectors), arguments.boolean("colors", colors)
    if levels is not None:
        levels = arguments.integer("levels", levels)
    if not vectors and not colors:
        raise ArgumentError("vectors or colors must be True: without them there is nothing to write")
    place = storage.locate(store, storage_options)
    now = status(store, storage_options=storage_options)
    if not now.complete:
        raise StoreMismatchError(
            f"{place} is not complete: {now.done} of {now.blocks} blocks are done. Make the call that began it once "
            "more, and then add overviews"
        )
    emb = open_embeddings(place)
    root = zarr.open_group(storage.store_at(place), mode="r+", zarr_format=3, use_consolidated=False)
    plan = _plan(place, root, emb, levels, vectors, colors, basis)
    backend = storage.store_at(place)
    _begin(place, root, plan)
    group = root[OVERVIEWS]
    total = sum(1 for level in range(len(plan.factors)) for _ in plan.jobs(level))
    with Progress(total, title="overviews", unit="chunk", shown=progress) as bar, ThreadPoolExecutor(WORKERS) as pool:
        for level in range(len(plan.factors)):
            running: set[Future[None]] = set()
            for job in plan.jobs(level):
                if storage.read(backend, _key(level, job)) == plan.token(level, job):
                    bar.count_existing(1)
                    continue
                if len(running) >= 2 * WORKERS:
                    running = _collect(running, bar)
                running.add(pool.submit(_run, root, group, backend, plan, level, job))
            while running:
                running = _collect(running, bar)
    _finish(place, root, plan)
    found = overviews_of(place)
    assert found is not None
    return found


def overviews_of(store: Any, *, storage_options: Mapping[str, Any] | None = None) -> Overviews | None:
    """Return what is known of the overviews of a store; None where there are none.

    Raises
    ------
    StoreMismatchError
        If the store was not made by deo_cube.
    """
    place = storage.locate(store, storage_options)
    document = storage.read(storage.store_at(place), f"{OVERVIEWS}/{ROOT}")
    if document is None:
        return None
    attrs = json.loads(document).get("attributes", {})
    spec = json.loads(attrs.get(SPEC, "{}"))
    done = "multiscales" in attrs
    stale = bool(attrs.get(STALE)) or (done and attrs.get(OF) != _record_hash(_entries(place)))
    arrays = (*spec.get("colors", ()), *(("embeddings", "valid") if spec.get("vectors") else ()))
    name = str(place).rstrip("/") if isinstance(place, str) else str(place)
    return Overviews(f"{name}/{OVERVIEWS}", tuple(spec.get("factors", ())), arrays, done and not stale, stale)


def _plan(
    place: Any,
    root: zarr.Group,
    emb: xr.DataArray,
    levels: int | None,
    vectors: bool,
    colors: bool,
    basis: PCA | str | Path | None,
) -> _Plan:
    array = root["embeddings"]
    rows, columns = (int(n) for n in array.shape[-2:])
    if levels is None:
        levels = 1
        while max(rows, columns) > SMALL << levels:
            levels += 1
    if min(rows, columns) >> levels < 1:
        raise ArgumentError(
            f"levels={levels} halves {rows} x {columns} patches to less than one: at most "
            f"{max(min(rows, columns).bit_length() - 1, 0)}"
        )
    first = 0 if colors else 1
    factors = tuple(1 << k for k in range(first, levels + 1))
    chosen = basis_of(emb, basis) if colors else None
    names = _names(emb) if colors else ()
    spec = {
        "factors": factors,
        "vectors": vectors,
        "colors": names,
        "basis": None if chosen is None else hashlib.sha256(chosen.array.tobytes()).hexdigest()[:16],
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "chunk": CHUNK,
        "fingerprint": str(root.attrs.get(Attribute.FINGERPRINT, "")),
    }
    sides = (array.shards or array.chunks)[-2:]
    four = array.ndim == 4
    return _Plan(
        factors, vectors, names, chosen, array.shape[0] if four else 1, (rows, columns), four, metadata.to_json(spec),
        _entries(place), (int(sides[0]), int(sides[1])),
    )  # fmt: skip


def _names(emb: xr.DataArray) -> tuple[str, ...]:
    """Return the name of the colours of each date: by day, else numbered."""
    if "time" not in emb.dims:
        return ("rgb",)
    labels = read_times(emb["time"].variable)
    days = [str(v)[:10].replace("-", "") for v in labels.values] if labels.dated and labels.values is not None else []
    if len(set(days)) != emb.sizes["time"]:
        days = [f"{i:04d}" for i in range(emb.sizes["time"])]
    return tuple(f"rgb_{day}" for day in days)


def _entries(place: Any) -> Array:
    """Return the record of a store (times, rows, columns) uint64."""
    record = create.record_of(place, create.attributes(place))
    entries = np.zeros(record.blocks, np.uint64)
    for row, numbers in record.rows():
        entries[:, row] = numbers
    return entries


def _record_hash(entries: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(entries, dtype="<u8").tobytes()).hexdigest()[:16]


def _key(level: int, job: tuple[int, int, int]) -> str:
    return f"{GROUP}/{OVERVIEWS}/{level}/{'/'.join(map(str, job))}"


def _begin(place: Any, root: zarr.Group, plan: _Plan) -> None:
    """Make the group and its empty arrays; keep those that are there and are the same."""
    document = storage.read(storage.store_at(place), f"{OVERVIEWS}/{ROOT}")
    attrs = {} if document is None else json.loads(document).get("attributes", {})
    if attrs.get(SPEC) == plan.spec:
        if "multiscales" in attrs and attrs.get(OF) == _record_hash(plan.entries):
            return
        _write_attributes(root, plan, complete=False)
        return
    if document is not None:
        del root[OVERVIEWS]
    root.create_group(OVERVIEWS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        ds = xr.open_zarr(storage.store_at(place), zarr_format=3, consolidated=False, chunks=None, decode_coords="all")
    box = georeference.geobox(ds["valid"])
    for level in range(len(plan.factors)):
        _make_level(root, ds, box, plan, level)
    # The last: without it the arrays are made again.
    _write_attributes(root, plan, complete=False)


def _make_level(root: zarr.Group, ds: xr.Dataset, box: GeoBox, plan: _Plan, level: int) -> None:
    name = f"{OVERVIEWS}/{plan.factors[level]}x"
    shape = plan.side(level)
    grid = _grid(box, plan.factors[level], shape)
    source = root["embeddings"]
    y, x = (str(n) for n in source.metadata.dimension_names[-2:])
    time = {"time": ds["time"].variable} if plan.four and "time" in ds.coords else {}
    empty = xr.Dataset({"_": ((y, x), np.broadcast_to(np.float32(0), shape))}, coords=time)
    coords = georeference.assign_grid(empty, grid, (y, x)).drop_vars("_")
    coords.attrs = {"zarr_conventions": metadata.CONVENTIONS[:2], **_spatial(grid, (y, x))}
    coords.to_zarr(root.store, group=name, mode="a", zarr_format=3, consolidated=False)
    group = root[name]
    # `_CRS` is GDAL's own attribute, which its versions before the conventions read.
    common = {"grid_mapping": "spatial_ref", "_CRS": {"wkt": grid.crs.to_wkt()}, "coordinates": "spatial_ref"}
    for rgb in plan.colors:
        group.create_array(
            rgb, shape=(3, *shape), chunks=(3, min(CHUNK, shape[0]), min(CHUNK, shape[1])), dtype="uint8", fill_value=0,
            dimension_names=["band", y, x],
            attributes={**common, "long_name": "principal components as colours", "_FillValue": 0},
        )  # fmt: skip
    if plan.vectors and plan.factors[level] > 1:
        dims = list(source.metadata.dimension_names)
        ones, time_shape = ((1,), (plan.times,)) if plan.four else ((), ())
        inner = tuple(min(INNER, CHUNK, n) for n in shape)  # two jobs never write to one chunk
        kept = {k: v for k, v in source.attrs.items() if k not in ("grid_mapping", "coordinates")}
        group.create_array(
            "embeddings", shape=(*time_shape, source.shape[-3], *shape), chunks=(*ones, source.shape[-3], *inner),
            dtype=source.dtype, fill_value=fill(source.dtype), dimension_names=dims,
            attributes=kept | common | {"coordinates": "valid spatial_ref"},
        )  # fmt: skip
        group.create_array(
            "valid", shape=(*time_shape, *shape), chunks=(*ones, *inner), dtype="float32", fill_value=0.0,
            dimension_names=[d for d in dims if d != "embedding"], attributes=dict(root["valid"].attrs) | common,
        )  # fmt: skip


def _grid(box: GeoBox, factor: int, shape: tuple[int, int]) -> GeoBox:
    """Return the grid of a level: the same corner, cells `factor` times as large."""
    return GeoBox(shape, box.transform * Affine.scale(factor), box.crs)


def _spatial(grid: GeoBox, dims: tuple[str, str]) -> dict[str, Any]:
    a, crs = grid.transform, grid.crs
    return {
        "spatial:dimensions": list(dims),
        "spatial:shape": list(grid.shape),
        "spatial:transform": [a.a, a.b, a.c, a.d, a.e, a.f],
        "spatial:transform_type": "affine",
        "spatial:registration": "pixel",
        "spatial:bbox": list(grid.boundingbox.bbox),
        **({"proj:code": f"EPSG:{crs.epsg}"} if crs.epsg else {"proj:wkt2": crs.wkt}),
    }


def _write_attributes(root: zarr.Group, plan: _Plan, *, complete: bool) -> None:
    """Write the attributes of the group; only those of complete overviews name the levels."""
    group = root[OVERVIEWS]
    kept: dict[str, Any] = {SPEC: plan.spec, "title": "overviews of a store of embeddings"}
    if complete:
        finest = root[f"{OVERVIEWS}/{plan.factors[0]}x"].attrs
        spatial = {k: v for k, v in finest.items() if str(k).startswith(("spatial:", "proj:"))}
        layout: list[dict[str, Any]] = []
        for k, factor in enumerate(plan.factors):
            attrs = root[f"{OVERVIEWS}/{factor}x"].attrs
            level: dict[str, Any] = {"asset": f"{factor}x"}
            scale = 1.0
            if k:
                level["derived_from"] = f"{plan.factors[k - 1]}x"
                scale = factor / plan.factors[k - 1]
            level["transform"] = {"scale": [scale, scale], "translation": [0.0, 0.0]}
            level |= {n: attrs[n] for n in ("spatial:shape", "spatial:transform")}
            layout.append(level)
        kept |= {
            "zarr_conventions": [MULTISCALES, *metadata.CONVENTIONS[:2]],
            "multiscales": {"layout": layout, "resampling_method": "average"},
            OF: _record_hash(plan.entries),
            **spatial,
        }
    document = {"zarr_format": 3, "node_type": "group", "attributes": kept}
    storage.write(group.store, f"{OVERVIEWS}/{ROOT}", json.dumps(document, indent=2).encode())


def _finish(place: Any, root: zarr.Group, plan: _Plan) -> None:
    _write_attributes(root, plan, complete=True)
    store = storage.store_at(place)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        warnings.filterwarnings("ignore", message="Object at .* is not recognized")
        zarr.consolidate_metadata(store, path=OVERVIEWS, zarr_format=3)
        zarr.consolidate_metadata(store, zarr_format=3)


def _collect(running: set[Future[None]], bar: Progress) -> set[Future[None]]:
    done, left = wait(running, return_when=FIRST_COMPLETED)
    for one in done:
        one.result()
        bar.advance()
    return left


def _run(
    root: zarr.Group, group: zarr.Group, backend: Store, plan: _Plan, level: int, job: tuple[int, int, int]
) -> None:
    """Write one chunk of a level, and its entry last."""
    t, i, j = job
    rows, columns = plan.side(level)
    part = slice(i * CHUNK, min((i + 1) * CHUNK, rows)), slice(j * CHUNK, min((j + 1) * CHUNK, columns))
    target = group[f"{plan.factors[level]}x"]
    finer = group[f"{plan.factors[level - 1]}x"] if level else None
    time = (t,) if plan.four else ()
    if plan.colors:
        if finer is None:
            assert plan.basis is not None
            rgb = _colours(root, time, part, plan.basis)
        else:
            rgb = _halved_colours(finer[plan.colors[t]][(slice(None), *map(_twice, part))])
        target[plan.colors[t]][(slice(None), *part)] = rgb
    if plan.vectors and plan.factors[level] > 1:
        source = root if plan.factors[level] == 2 else finer
        assert source is not None
        dtype, missing = source["embeddings"].dtype, fill(source["embeddings"].dtype)
        values, valid = [], []
        for strip in _strips(part[0]):
            where = (_twice(strip), _twice(part[1]))
            mean, share = _halved(*_read(source, time, where, 1.0))  # integers are averaged as they are stored
            if dtype.kind in "iu":
                mean = np.rint(mean).clip(-127, 127)
            values.append(np.where(share > 0, mean, missing).astype(dtype))
            valid.append(share)
        target["valid"][(*time, *part)] = np.concatenate(valid)
        target["embeddings"][(*time, slice(None), *part)] = np.concatenate(values, axis=1)
    storage.write(backend, _key(level, job), plan.token(level, job))


def _twice(part: slice) -> slice:
    return slice(2 * part.start, 2 * part.stop)


def _strips(rows: slice) -> Iterator[slice]:
    for start in range(rows.start, rows.stop, STRIP):
        yield slice(start, min(start + STRIP, rows.stop))


def _read(source: zarr.Group, time: tuple[int, ...], part: tuple[slice, slice], scale: float) -> tuple[Array, Array]:
    """Return vectors (D, h, w) float32, 0 where there are none, and their weights (h, w)."""
    stored = source["embeddings"]
    raw = np.asarray(stored[(*time, slice(None), *part)])
    weights = np.asarray(source["valid"][(*time, *part)], dtype="float32")
    values = raw.astype("float32") * np.float32(scale)
    weights = np.where(np.isfinite(values).all(axis=0), weights, np.float32(0))
    values[:, weights == 0] = 0
    return values, weights


def _halved(values: Array, weights: Array) -> tuple[Array, Array]:
    """Return means of 2 x 2 cells of (D, h, w) weighted by (h, w), and the means of the weights; edges are padded.

    Cells beyond the edge do not exist: they lower neither the mean nor the weight.
    """
    h, w = weights.shape
    up = ((0, h % 2), (0, w % 2))
    there = np.pad(np.ones((h, w), "float32"), up)
    weights = np.pad(weights, up)
    values = np.pad(values, ((0, 0), *up))

    def summed(a: Array) -> Array:
        return np.asarray(a[..., ::2, ::2] + a[..., 1::2, ::2] + a[..., ::2, 1::2] + a[..., 1::2, 1::2])

    total = summed(weights)
    mean = summed(values * weights) / np.maximum(total, np.float32(1e-12))
    return mean, (total / summed(there)).astype("float32")


def _colours(root: zarr.Group, time: tuple[int, ...], part: tuple[slice, slice], basis: PCA) -> Array:
    """Return colours (3, h, w) uint8 of stored vectors: 1 to 255, 0 where there are none."""
    scale = float(root["embeddings"].attrs.get("scale_factor", 1.0))
    out = []
    for strip in _strips(part[0]):
        values, weights = _read(root, time, (strip, part[1]), scale)
        z = np.tensordot(basis.components, values - basis.mean[:, None, None], axes=1)
        span = np.maximum(basis.high - basis.low, 1e-12)[:, None, None]
        share = ((z - basis.low[:, None, None]) / span).clip(0, 1)
        out.append(np.where(weights > 0, 1 + np.rint(254 * share), 0).astype("uint8"))
    return np.concatenate(out, axis=1)


def _halved_colours(rgb: Array) -> Array:
    there = (rgb != 0).all(axis=0).astype("float32")
    mean, share = _halved(rgb.astype("float32"), there)
    return np.where(share > 0, np.rint(mean), 0).astype("uint8")
