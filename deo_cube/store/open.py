"""Open a store of embeddings, of this package or another producer, count what is done, and check it block by block."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
import rasterio
import rioxarray
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from zarr.abc.store import Store

from deo_cube.arguments import embeddings_of
from deo_cube.constants import Attribute
from deo_cube.cube import georeference
from deo_cube.cube.georeference import SPATIAL_DIMS
from deo_cube.cube.open import UNREADABLE, check_codecs
from deo_cube.cube.times import read_times
from deo_cube.embedding import metadata
from deo_cube.embedding.metadata import to_json
from deo_cube.errors import MissingCRSError, StorageError, StoreMismatchError, StoreNotFoundError, naming, remedy
from deo_cube.notebook import facts_html
from deo_cube.packed import scale_and_offset
from deo_cube.paths import expand, is_url, local_path, not_found, reading
from deo_cube.progress import Progress
from deo_cube.store import create, storage
from deo_cube.store.create import BLOCKS, FORMAT, IDENTITY, WINDOW, existing
from deo_cube.store.layout import (
    FINGERPRINT,
    GENERATION,
    GROUP,
    PATH,
    ROOT,
    STATE,
    Block,
    Record,
    blocks_without_shards,
    checksum_without_data,
    cuts,
    is_whole,
    planes_in,
)
from deo_cube.store.storage import is_local, locate

__all__ = ["StoreStatus", "is_embeddings", "open_embeddings", "open_layout", "opened", "status", "verify_store"]


# --- Open embeddings of other producers: TESSERA, AlphaEarth, and stores that follow the `geoemb:` convention ---
#
# The layouts and their sources:
#
# - TESSERA (geotessera 0.7.5: registry.py, tiles.py, core.py): tiles of 0.1 degree in UTM, 10 m, 128 bands. As
#   ``<year>/grid_<lon>_<lat>/grid_<lon>_<lat>.npy`` int8 (y, x, band) with ``..._scales.npy`` float32 (y, x) or (y, x,
#   band), value = int8 x scale; the grid is in ``global_0.1_degree_tiff_all/grid_<lon>_<lat>.tiff``. As GeoTIFF
#   ``grid_<lon>_<lat>_<year>.tiff`` and as Zarr (variable `embedding` (y, x, band)), both float32. As `geoemb:` Zarr,
#   one group per UTM zone, int8 with an array of scales in which NaN and infinity mean no data.
# - AlphaEarth (developers.google.com/earth-engine/guides/aef_on_gcs_readme): COGs of 8192 x 8192 px in UTM, 10 m,
#   64 int8 bands A00..A63, no data -128; value = (v / 127.5)**2 x sign(v), unit vectors. Rows run from south to north.

#: Patches along a side of the chunks of files without chunks.
CHUNK = 512
LANDMASKS = "global_0.1_degree_tiff_all"
_GRID = re.compile(r"grid_(-?\d+\.\d+)_(-?\d+\.\d+)")
_YEAR = re.compile(r"(?<!\d)(20[12]\d)(?!\d)")

TESSERA = ("tessera", "https://github.com/ucam-eo/tessera")
ALPHAEARTH = ("alphaearth", "https://arxiv.org/abs/2507.22291")


def open_layout(path: Any) -> xr.DataArray | None:
    """Open embeddings of another producer, recognised by their layout.

    Parameters
    ----------
    path : str or path
        A TESSERA tile (``.npy``, its folder, ``.tiff``, ``.zarr``), an AlphaEarth COG (``.tif``, also a URL), or a
        `geoemb:` group.

    Returns
    -------
    DataArray or None
        `embeddings` (embedding, y, x) float32, or with `time` first, lazy, NaN where there is no data; `valid` (1 or
        0), coordinates at pixel centres and `spatial_ref`, so that heads take them as ours. None for anything else.

    Raises
    ------
    StoreMismatchError
        For a file without embeddings, a tile without its scales, or a folder of several tiles.
    MissingCRSError
        For a tile without a grid.
    StorageError
        See `check_codecs`.
    """
    text = expand(path) if isinstance(path, str | os.PathLike) else str(path)
    ending = text.rsplit("/", 1)[-1].rpartition(".")[2].lower()
    if ending in ("tif", "tiff"):
        return _geotiff(text)
    if ending == "npy":
        return _npy(Path(text))
    local = Path(text)
    if "://" not in text and local.is_dir() and not (local / "zarr.json").exists() and not (local / ".zgroup").exists():
        tiles = sorted(p for p in local.rglob("grid_*.npy") if not p.name.endswith("_scales.npy"))
        if len(tiles) == 1:
            return _npy(tiles[0])
        if tiles:
            some = ", ".join(str(t.relative_to(local)) for t in tiles[:3])
            raise StoreMismatchError(f"{text} holds {len(tiles)} TESSERA tiles ({some}, ...): name one")
        return None
    return _zarr(text)


def _geotiff(path: str) -> xr.DataArray:
    with reading("store", path, "a raster of embeddings"):
        opened = rioxarray.open_rasterio(path, chunks={"x": CHUNK, "y": CHUNK})
    assert isinstance(opened, xr.DataArray)
    name = path.rsplit("/", 1)[-1]
    bands = opened.sizes["band"]
    box = _box(opened, path)
    own = Attribute.MODEL.replace(":", "_")
    if own in opened.attrs or scale_and_offset(opened) != (1.0, 0.0):  # of `to_cog`: AlphaEarth states no scale
        raise StoreMismatchError(
            f"{path} is a GeoTIFF of embeddings by {opened.attrs.get(own, 'an unknown model')}, and not a store: open "
            f"it as an array, rioxarray.open_rasterio({path!r}).rename(band='embedding')"
        )
    if opened.dtype == np.int8 and bands == 64:
        return _finished(_alphaearth(opened.rename(band="embedding")), box, ALPHAEARTH, _year(path))
    if opened.dtype.kind == "f" and (_GRID.match(name) or "TESSERA_DATASET_VERSION" in opened.attrs):
        return _finished(opened.rename(band="embedding").astype("float32"), box, TESSERA, _year(name))
    raise StoreMismatchError(
        f"store: {path} is a raster of {bands} bands of {opened.dtype}. Expected embeddings: a store, or of a raster "
        "64 bands of int8 (AlphaEarth) or float32 in grid_<lon>_<lat>_<year>.tiff (TESSERA). For a cube of bands: "
        + remedy("deo_cube.open_cube(path)", "deo-cube embed CUBE OUT embeds it")
    )


def _alphaearth(v: xr.DataArray) -> xr.DataArray:
    scaled = v.astype("float32") / np.float32(127.5)
    return (scaled * abs(scaled)).where(v != -128)


def _npy(path: Path) -> xr.DataArray:
    match = _GRID.match(path.name)
    scales_path = path.with_name(f"{path.stem}_scales.npy")
    if match is None or path.name.endswith("_scales.npy"):
        raise StoreMismatchError(f"{path} is not a TESSERA tile: expected grid_<lon>_<lat>.npy with its _scales.npy")
    if not path.exists() or not scales_path.exists():
        raise StoreMismatchError(f"a TESSERA tile is two files, and one is not there: {path}, {scales_path.name}")
    try:
        values, scales = (np.load(p, mmap_mode="r", allow_pickle=False) for p in (path, scales_path))
    except (OSError, ValueError, EOFError) as error:  # damaged, or Python objects, which are pickled
        raise StoreMismatchError(f"{path} and {scales_path.name} are not two arrays of numbers: {error}") from error
    if values.ndim != 3 or values.shape[:2] != scales.shape[:2]:
        raise StoreMismatchError(
            f"{path.name} is {values.shape}, its scales {scales.shape}: expected (y, x, band) and (y, x)"
        )
    if not np.issubdtype(values.dtype, np.int8):
        raise StoreMismatchError(f"{path.name} holds {values.dtype}: a TESSERA tile is int8")
    v = xr.DataArray(da.from_array(values, (CHUNK, CHUNK, -1)), dims=("y", "x", "embedding"))
    whole = (CHUNK, CHUNK, -1)[: scales.ndim]
    s = xr.DataArray(da.from_array(scales, whole), dims=("y", "x", "embedding")[: scales.ndim])
    return _finished(_per_pixel(v, s), _place_of(path, match[0], values.shape[:2]), TESSERA, _year(str(path.parent)))


def _per_pixel(values: xr.DataArray, scales: xr.DataArray) -> xr.DataArray:
    return values.astype("float32") * scales.astype("float32").where(np.isfinite(scales))


def _place_of(path: Path, name: str, shape: tuple[int, ...]) -> GeoBox:
    """Return the grid of a tile, from the GeoTIFF of its landmask: beside it, or in TESSERA's folder of landmasks."""
    folders = [path.parent, *(p / LANDMASKS for p in path.parents)]
    found = next((f for d in folders for e in (".tiff", ".tif") if (f := d / f"{name}{e}").exists()), None)
    if found is None:
        raise MissingCRSError(
            f"the place of a TESSERA tile is stored in its landmask, {LANDMASKS}/{name}.tiff, which is neither there "
            f"nor beside {path.name}: fetch it (geotessera does), or export the tile as GeoTIFF"
        )

    with rasterio.open(found) as file:
        box = GeoBox((file.height, file.width), file.transform, file.crs.to_wkt())
    if tuple(box.shape) != tuple(shape[:2]):
        raise MissingCRSError(
            f"{found.name} is {tuple(box.shape)}, the tile {tuple(shape[:2])}: they do not belong together"
        )
    return box


def _zarr(path: str) -> xr.DataArray | None:
    try:
        group = zarr.open_group(path, mode="r")
    except (FileNotFoundError, zarr.errors.GroupNotFoundError, ValueError):
        return None
    attrs = dict(group.attrs)
    check_codecs(group)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolidated metadata")
        ds = xr.open_zarr(path, decode_coords="all", mask_and_scale=False)
    if "geoemb:type" in attrs:
        return _geoemb(ds, attrs, path)
    if "TESSERA_DATASET_VERSION" in attrs and "embedding" in ds:
        array = ds["embedding"].rename(_renamed(ds["embedding"], path))
        return _finished(
            array.astype("float32"), _box(array, path), TESSERA, _year(str(attrs.get("TESSERA_YEAR", path)))
        )
    zones = [k for k in group.group_keys() if re.fullmatch(r"utm\d\d", k)]
    if zones:
        raise StoreMismatchError(
            f"{path} has a group per UTM zone: name one, {path}/{zones[0]} (of {', '.join(zones[:8])})"
        )
    return None


def _geoemb(ds: xr.Dataset, attrs: dict[str, Any], path: str) -> xr.DataArray:
    quantised = attrs.get("geoemb:quantization", {})
    scale = quantised.get("scale", {})
    of_scales = scale.get("array_name")
    dim = int(attrs["geoemb:dimensions"])
    fit = [str(n) for n, v in ds.data_vars.items() if n != of_scales and v.ndim >= 3 and dim in v.shape]
    if len(fit) != 1:
        raise StoreMismatchError(f"{path} has {fit or 'no array'} of {dim} dimensions: expected one of embeddings")
    array = ds[fit[0]].rename(_renamed(ds[fit[0]], path))
    box = _box(array, path, attrs)
    model = (str(attrs.get("title") or attrs["geoemb:model"]), str(attrs["geoemb:model"]))
    if any(word in model[1].lower() for word in ("2507.22291", "alphaearth", "aef")) and array.dtype == np.int8:
        # The convention's own example has one linear scale for it, which is not how Google decodes it.
        values, model = _alphaearth(array), ALPHAEARTH
    elif of_scales is not None:
        values = _per_pixel(array, ds[of_scales])
    elif scale.get("type") == "scalar":
        fill = ds[fit[0]].attrs.get("_FillValue", ds[fit[0]].encoding.get("fill_value"))
        values = array.astype("float32") * np.float32(scale["scale"]) + np.float32(scale.get("offset", 0.0))
        values = values if fill is None else values.where(array != fill)
    elif quantised or array.dtype.kind != "f":
        raise StoreMismatchError(f"{path} says nothing of how its {array.dtype} are decoded (geoemb:quantization)")
    else:
        values = array.astype("float32")
    if "tessera" in model[1].lower():
        model = TESSERA
    return _finished(values, box, model, _year(path), patch=_patch(attrs), gsd=float(attrs.get("geoemb:gsd", 10.0)))


def _patch(attrs: dict[str, Any]) -> int:
    return int(attrs.get("geoemb:chip_layout", {}).get("stride", [1])[0])


def _renamed(array: xr.DataArray, path: str) -> dict[str, str]:
    """Return the new name of the dimension of vectors."""
    pair = next((p for p in SPATIAL_DIMS if set(p) <= set(array.dims)), None)
    others = [str(d) for d in array.dims if pair is not None and d not in (*pair, "time", "year", "t")]
    if pair is None or len(others) != 1:
        raise StoreMismatchError(f"{path}: cannot tell the dimension of vectors among {array.dims}")
    return {others[0]: "embedding"}


def _box(array: xr.DataArray, path: str, attrs: dict[str, Any] | None = None) -> GeoBox:
    """Return the grid: from `spatial:` and `proj:` attributes if there are any, else from coordinates."""
    pair = next(p for p in SPATIAL_DIMS if set(p) <= set(array.dims))
    others = {d: 0 for d in array.dims if d not in pair}
    if attrs is not None and "spatial:transform" in attrs and ("proj:code" in attrs or "proj:wkt2" in attrs):
        shape = (array.sizes[pair[0]], array.sizes[pair[1]])
        return GeoBox(shape, Affine(*attrs["spatial:transform"][:6]), attrs.get("proj:code") or attrs["proj:wkt2"])
    return georeference.geobox(array.isel(others, drop=True))


def _year(text: str) -> int | None:
    years = _YEAR.findall(text)
    return int(years[-1]) if years else None


def _finished(
    values: xr.DataArray, box: GeoBox, model: tuple[str, str], year: int | None, *, patch: int = 1, gsd: float = 10.0
) -> xr.DataArray:
    """Return embeddings with the name, order, grid, validity and provenance of `open_embeddings`."""
    pair = next(p for p in SPATIAL_DIMS if set(p) <= set(values.dims))
    time = [d for d in ("time", "year", "t") if d in values.dims]
    values = values.reset_coords(drop=True).drop_vars([d for d in values.coords if d not in time], errors="ignore")
    values = values.rename(dict(zip(pair, ("y", "x"), strict=True)) | ({time[0]: "time"} if time else {}))
    values = values.transpose(*(["time"] if time else []), "embedding", "y", "x").rename("embeddings")
    if time and (labels := read_times(values["time"].variable)).dated:
        values = values.assign_coords(time=labels.values)
    elif not time and year is not None:
        values = values.assign_coords(time=np.datetime64(f"{year}-01-01", "ns"))
    if values.chunks is None:
        values = values.chunk({"y": CHUNK, "x": CHUNK})
    valid = np.isfinite(values.variable.isel(embedding=0)).astype("float32")
    values = values.assign_coords(valid=valid)
    values.attrs = {
        "long_name": f"{model[0]} embeddings",
        Attribute.MODEL: model[0],
        Attribute.MODEL_ALIAS: model[0],
        Attribute.MODEL_URL: model[1],
        Attribute.MODEL_FINGERPRINT: model[1],
        Attribute.WEIGHTS_STATUS: "published",
        Attribute.GSD: gsd / patch if patch > 1 else gsd,
        Attribute.PLAN: to_json({"patch": patch}),
        Attribute.DTYPE: "float32",
    }
    placed: xr.DataArray = georeference.assign_grid(values, box)
    return placed.drop_encoding()  # of a file in other chunks than a copy will have


# --- stores of deo_cube ---


@dataclass(frozen=True)
class StoreStatus:
    """The state of a store."""

    blocks: int
    done: int
    damaged: tuple[Block, ...] = ()
    """Blocks whose bytes do not match their entry (time, row, column). Only `verify_store` looks."""
    verified: bool = False
    repaired: bool = False
    """True if the entries of the damaged blocks were deleted, and metadata restored."""
    metadata: tuple[str, ...] = ()
    """Objects of the metadata that are missing, damaged or changed, and how. Only `verify_store` looks."""
    sealed: bool = True
    """False for stores of earlier versions, which have no copy of their metadata to compare with."""
    derived: str | None = None
    """How the store's values were computed from a model's embeddings; None where they are the model's own output."""

    @property
    def complete(self) -> bool:
        """True if every block is done, and none is damaged."""
        return self.done == self.blocks and not self.damaged and not self.metadata

    def __repr__(self) -> str:
        state = f"{self.blocks - self.done} to do" if self.done < self.blocks else "complete"
        damage = f", {len(self.damaged)} DAMAGED: {list(self.damaged[:5])}" if self.damaged else ""
        damage += f", METADATA DAMAGED: {'; '.join(self.metadata)}" if self.metadata else ""
        if damage and self.done == self.blocks:
            state = "not complete"
        damage += "; repaired: the call that made the store completes it" if self.repaired else ""
        checked = ", every byte checked" if self.verified and not damage else ""
        checked += ", metadata not checked (store of an earlier version)" if checked and not self.sealed else ""
        derived = f"; {self.derived}" if self.derived else ""
        return f"<Store: {self.done} of {self.blocks} blocks done, {state}{damage}{checked}{derived}>"

    def _repr_html_(self) -> str:
        checked = "every byte of finished blocks" if self.verified else "not yet: verify_store reads every byte"
        rows = [("blocks", f"{self.done} of {self.blocks} done"), ("checked", checked)]
        rows += [("damaged blocks", ", ".join(map(str, self.damaged[:8])))] if self.damaged else []
        rows += [("metadata", "\n".join(self.metadata))] if self.metadata else []
        rows += [("repaired", "yes: the call that made the store completes it")] if self.repaired else []
        rows += [("derived", self.derived)] if self.derived else []
        return facts_html("store, complete" if self.complete else "store, NOT complete", rows)


def is_embeddings(store: Any, *, storage_options: Mapping[str, Any] | None = None) -> bool:
    """Return whether a store of embeddings of this package is there."""
    try:
        group = existing(locate(store, storage_options))
    except StoreMismatchError:
        return False
    return group is not None and IDENTITY in group.attrs


def status(store: Any, *, storage_options: Mapping[str, Any] | None = None) -> StoreStatus:
    """Count the blocks that are done, by their entries in the progress record; no block is read.

    Raises
    ------
    StoreMismatchError
        If the store was not made by deo_cube.
    """
    place = locate(store, storage_options)
    root = _ours(place)
    check_codecs(root)
    _check_record(place, root, needed=True)
    attrs = dict(root.attrs)
    record = create.record_of(place, attrs)
    return StoreStatus(blocks=record.total, done=record.count(), derived=attrs.get(Attribute.DERIVED))


def _other_format(path: Path) -> str:
    """Return what is at a path instead of a Zarr 3 group, and the call that reads it; empty where nothing says so."""
    expected = ", expected a store of embeddings, a folder of Zarr 3"
    if path.is_file():
        netcdf = path.suffix.lower() in (".nc", ".nc4", ".h5")
        zipped = ": unpack it first" if path.suffix.lower() == ".zip" else ""
        read = f": open it with xarray, xr.open_dataarray({str(path)!r}, decode_coords='all')" if netcdf else zipped
        return f"a file{expected}{remedy(read, '')}"
    if (path / ".zgroup").exists() and not (path / ROOT).exists():
        return f"a group of Zarr 2{expected}{remedy(': ' + _how_to_read(str(path)), '')}"
    return ""


def _ours(store: Any, mode: Literal["r", "r+"] = "r") -> zarr.Group:
    if is_local(store) and (other := _other_format(Path(store))):
        raise StoreMismatchError(f"store: {store} is {other}")
    found = existing(store, mode)
    if found is None:
        expected = f"a store of embeddings: {remedy('emb.deo.to_zarr(path)', 'deo-cube embed CUBE STORE')} writes one"
        if is_local(store) and Path(store).is_dir():
            raise StoreMismatchError(f"store: {store} is an empty folder. Expected {expected}")
        raise not_found("store", store, expected, error=StoreNotFoundError)
    if IDENTITY not in found.attrs:
        raise StoreMismatchError(
            f"store: {store} was not made by deo_cube (no {IDENTITY} in its attributes, which a copy by xarray may "
            f"lack): {remedy(_how_to_read(store), 'embed a cube first, deo-cube embed CUBE OUT')}"
        )
    return found


def verify_store(
    store: Any,
    *,
    repair: bool = False,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> StoreStatus:
    """Read every finished block back and compare it with its entry.

    Parameters
    ----------
    store : path, URL or zarr store
        As `to_zarr` took it.
    repair : bool
        Restore metadata, and delete the entries of damaged blocks, so that the call that made the store writes these
        again.
    progress : bool
        Show a progress bar.
    storage_options : mapping, optional
        As for `to_zarr`.

    Raises
    ------
    StoreMismatchError
        If the store was not made by deo_cube.
    """
    place = locate(store, storage_options)
    backend = storage.store_at(place)
    sealed = create.read_seal(backend)
    wrong = {} if sealed is None else create.damaged_objects(backend, sealed) | create.damaged_copies(backend, sealed)
    if wrong and repair:
        create.repair(place)
    root = None if ROOT in wrong and not repair else _ours(place, "r+" if repair else "r")
    if root is not None and (repair or not wrong):
        check_codecs(root)
        _check_record(place, root, needed=True)
    elif root is not None:
        try:
            check_codecs(root)
        except StorageError:
            root = None  # its arrays are not read
    attrs = dict(root.attrs) if root is not None else json.loads((sealed or {})[ROOT])["attributes"]
    if sealed is None and FORMAT in attrs:
        wrong = {create.SEAL: "missing or damaged"}
    record = create.record_of(place, attrs)
    checked, damaged = 0, []
    # Decompression and checksums leave the interpreter to other threads.
    finished = record.count() if progress else record.total
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        Progress(finished, title="verify", shown=progress) as bar,
    ):
        for row, numbers in record.rows():
            blocks = [(int(t), row, int(c)) for t, c in zip(*np.nonzero(numbers), strict=True)]
            whole = pool.map(partial(_is_whole, root, record), blocks)
            for block, fine in zip(blocks, whole, strict=True):
                checked += 1
                bar.advance()
                if not fine:
                    damaged.append(block)
    if repair and damaged:
        create.restart(backend)  # first, so that the store never claims more than it holds
        for block in damaged:
            record.forget(block)
    return StoreStatus(
        record.total,
        checked,
        tuple(sorted(damaged)),
        verified=True,
        repaired=repair and bool(damaged or wrong),
        metadata=tuple(f"{key} ({problem})" for key, problem in wrong.items()),
        sealed=FORMAT in attrs,
        derived=attrs.get(Attribute.DERIVED),
    )


def _is_whole(root: zarr.Group | None, record: Record, block: Block) -> bool:
    if root is None:
        return True  # not readable without the group's document; that is what is reported
    try:
        return is_whole(root, record, block)
    except OSError:
        raise  # what cannot be fetched may be whole
    except Exception:
        return False  # an array's document is damaged


def _check_sealed(place: Any, attrs: Mapping[str, Any]) -> None:
    """Refuse a store whose metadata are not what was written with it: numbers or places would be wrong."""
    if FORMAT not in attrs:
        return
    backend = storage.store_at(place)
    if not storage.has_any(backend, GROUP):
        return  # written anew by another program, without record and seal
    sealed = create.read_seal(backend)
    wrong = {create.SEAL: "missing or damaged"} if sealed is None else create.damaged_objects(backend, sealed)
    if wrong:
        raise StoreMismatchError(
            f"{place}: metadata are not what was written: {'; '.join(f'{k} {v}' for k, v in wrong.items())}. "
            f"{create.repair_call()} restores them from the store's own copy, or the call that "
            "wrote the store, made once more"
        )


def _of_others(store: Any) -> xr.DataArray | None:
    if not isinstance(store, str | os.PathLike):
        return None
    ending = str(store).rstrip("/").lower().rpartition(".")[2]
    if ending not in ("tif", "tiff", "npy") and (
        is_url(store) or not local_path(store).exists() or is_embeddings(store)
    ):
        return None

    return open_layout(expand(store))


def opened(emb: Any, argument: str = "emb", *, storage_options: Mapping[str, Any] | None = None) -> xr.DataArray:
    """Return embeddings, read from their store where `emb` is its path; errors name `argument`.

    Raises
    ------
    ArgumentTypeError, ArgumentError
        For what is neither embeddings nor a path.
    StoreMismatchError
        For a path that is not a store of embeddings.
    """
    if isinstance(emb, str | os.PathLike | Store):
        with naming(argument, instead_of="store"):
            emb = open_embeddings(emb, storage_options=storage_options if is_url(emb) else None)
    return embeddings_of(emb, argument=argument)


def open_embeddings(store: Any, *, storage_options: Mapping[str, Any] | None = None) -> xr.DataArray:
    """Open a store of embeddings, lazily.

    Parameters
    ----------
    store : path, URL or zarr store
        Written by `emb.deo.to_zarr()`; or embeddings of others, at their place: TESSERA tiles, AlphaEarth COGs, stores
        after the `geoemb:` convention (`deo_cube.store.open`).
    storage_options : mapping, optional
        As for `to_zarr`.

    Returns
    -------
    DataArray
        As it was written: `embeddings` ``(time, embedding, y, x)`` on Dask, one chunk per shard, with the coordinate
        `valid`. int8 stores are decoded to float32.

    Raises
    ------
    StoreMismatchError
        If the store was not made by deo_cube, and is of no other layout that is known.

    Warns
    -----
    UserWarning
        If blocks are missing; they read as NaN.
    """
    if (other := _of_others(store)) is not None:
        return other
    store = locate(store, storage_options)
    root = _ours(store)
    state = root.attrs.get(STATE)
    if state in ("creating", "replacing"):
        raise StoreMismatchError(f"{store} was being {state[:-3]}ed when a run stopped: make the same call again")
    try:
        _check_record(store, root, needed=False)
    except StoreMismatchError:
        raise
    except UNREADABLE:
        pass  # damaged, which the next check reports
    _check_sealed(store, root.attrs)
    check_codecs(root)
    if state != "complete":
        now = status(store)
        if now.complete:
            state = "complete"
        else:
            warnings.warn(
                f"{store} is not complete: {now.done} of {now.blocks} blocks are done, the others read as NaN. "
                "Make the call that began it once more to finish it",
                stacklevel=2,
            )
    if (lost := _lost_blocks(store, root)) > 0:
        warnings.warn(
            f"{store}: shards of at least {lost} finished blocks are not there, as in a copy that was cut short, and "
            f"read as NaN. Copy the store again; or {create.repair_call()} and "
            "the call that made it, once more, restore them",
            stacklevel=2,
        )
    shards = root["embeddings"].shards or root["embeddings"].chunks
    dims = list(root["embeddings"].metadata.dimension_names)
    ds = xr.open_zarr(store, zarr_format=3, consolidated=False, chunks=None, decode_coords="all")
    _check_window(store, root.attrs, ds, (dims[-2], dims[-1]))
    # Coordinates of at most one dimension are small, so they are loaded at once.
    small = {n: c.variable.load().drop_encoding() for n, c in ds.coords.items() if c.ndim < 2}
    top, left, height, width = (int(v) for v in root.attrs[WINDOW])
    # Cut before it is put on Dask, in chunks that are shards all the same: slicing Dask arrays lists every chunk.
    emb = ds["embeddings"].isel({dims[-2]: slice(top, top + height), dims[-1]: slice(left, left + width)})
    spatial = {
        d: cuts(lead, emb.sizes[d], shard) for d, lead, shard in zip(dims[-2:], (top, left), shards[-2:], strict=True)
    }
    emb = emb.chunk({**dict(zip(dims[:-2], shards[:-2], strict=True)), **spatial})
    # `chunk` puts coordinates on Dask too.
    emb = emb.assign_coords({n: c for n, c in small.items() if n not in dims[-2:]})
    stored = emb.encoding
    emb = emb.drop_encoding()
    if emb.dtype == np.float64:
        # xarray decodes to the type of the scale, and an attribute in JSON is a float64.
        emb = emb.astype("float32")
    if "scale_factor" in stored:
        # What int8 numbers mean; chunks, shards and codecs are this store's, not those of a copy.
        emb.encoding = {k: stored[k] for k in ("dtype", "scale_factor", "_FillValue") if k in stored}
    emb.attrs |= {k: v for k, v in root.attrs.items() if k.startswith(metadata.PREFIX)}
    for k in (IDENTITY, WINDOW, WINDOW + "_transform", STATE, FINGERPRINT, GENERATION, BLOCKS, FORMAT):
        emb.attrs.pop(k, None)
    # The window's own transform, so that coordinates come back to the last bit.
    crs = georeference.geobox(ds).crs
    box = GeoBox((height, width), Affine(*root.attrs[WINDOW + "_transform"]), crs)
    placed: xr.DataArray = georeference.assign_grid(emb, box, dims=(dims[-2], dims[-1]))
    return placed


#: Most blocks of a store whose shards are looked for when it is opened, and about as many entries that are read then.
LISTED, READ = 65536, 1024


def _lost_blocks(place: Any, root: zarr.Group) -> int:
    """Return how many finished blocks of a folder are known to have lost their shards.

    A block without data has no shard either: its entry says so.
    """
    backend = storage.store_at(place)
    if not is_local(place) or root.attrs.get(Attribute.BLOCKS) is None or not storage.has_any(backend, GROUP):
        return 0
    record = create.record_of(place, dict(root.attrs))
    if record.total > LISTED:
        return 0
    values, planes = root["embeddings"], tuple(plane.basename for plane in planes_in(root))
    size, shard, dim = values.shape[-2:], (values.shards or values.chunks)[-2:], values.shape[-3]
    missing = blocks_without_shards(backend, record.blocks, timed=values.ndim == 4)
    entries = {block: record.entry(block) for block in missing[:: max(1, len(missing) // READ)]}
    return sum(
        entry is not None and entry.output != checksum_without_data(block, size, shard, dim, values.dtype, planes)
        for block, entry in entries.items()
    )


def _check_window(store: Any, attrs: Mapping[str, Any], ds: xr.Dataset, dims: tuple[str, str]) -> None:
    """Raise if the coordinates of a store contradict its attributes.

    xarray copies the attributes of a group when it writes a part of it elsewhere, so that they describe the whole.

    Parameters
    ----------
    store : path, URL or zarr store
        For the message.
    attrs : mapping
        Of the store's group.
    ds : Dataset
        The store as xarray opens it.
    dims : (str, str)
        Names of the dimensions along y and x.

    Raises
    ------
    StoreMismatchError
        If size or coordinates differ from the attributes.
    """
    length = attrs.get("geoemb:dimensions", ds.sizes["embedding"])
    if ds.sizes["embedding"] != length:
        _refuse(store, f"vectors of length {ds.sizes['embedding']} where its attributes say {length}")
    top, left, height, width = (int(v) for v in attrs[WINDOW])
    a = Affine(*attrs[WINDOW + "_transform"])
    for dim, lead, size, start, step in ((dims[0], top, height, a.f, a.e), (dims[1], left, width, a.c, a.a)):
        expected = lead + size
        if ds.sizes[dim] != expected:
            _refuse(store, f"{ds.sizes[dim]} along {dim!r} where its attributes say {expected}")
        if dim not in ds.coords:
            _refuse(store, f"no coordinate {dim!r}")
        centres = start + (np.arange(-lead, size) + 0.5) * step
        values = np.asarray(ds[dim].values, dtype="float64")
        if not np.allclose(values, centres, rtol=0, atol=1e-3 * abs(step)):
            _refuse(
                store,
                f"{dim} from {values[0]:.10g} to {values[-1]:.10g} where its attributes say "
                f"{centres[0]:.10g} to {centres[-1]:.10g}",
            )


def _check_record(store: Any, root: zarr.Group, *, needed: bool) -> None:
    """Raise if the progress record of a store is not that of its array, or, if `needed`, if it has none.

    Raises
    ------
    StoreMismatchError
        If dates were appended by another program, or a copy has no record to check blocks by.
    """
    blocks = root.attrs.get(Attribute.BLOCKS)
    found = storage.has_any(storage.store_at(store), GROUP)
    if not found:
        if needed:
            raise StoreMismatchError(
                f"{store} has no progress record, as where another program wrote it anew: its blocks cannot be "
                f"counted or checked. Read it, {_how_to_read(store)}; or write it by "
                + remedy("emb.deo.to_zarr(path)", "deo-cube embed CUBE STORE")
            )
        return
    if blocks is None:  # of an earlier version, whose record is a Zarr array
        if PATH not in root:
            return
        blocks = root[PATH].shape
    times = root["embeddings"].shape[0] if root["embeddings"].ndim == 4 else 1
    if int(blocks[0]) != times:
        _refuse(store, f"{times} dates where its progress record counts {blocks[0]}")


def _how_to_read(store: Any) -> str:
    """Return the call that reads any store as it is."""
    shown = repr(store) if isinstance(store, str) else "the store"
    return f"open it as it is, xr.open_zarr({shown}, decode_coords='all')"


def _refuse(store: Any, found: str) -> None:
    raise StoreMismatchError(
        f"{store} was cut or changed after deo_cube wrote it ({found}), so its attributes may not describe its "
        f"vectors: {_how_to_read(store)}; or write "
        + remedy("parts by emb.deo.to_zarr(path), which open_embeddings reads", "it again by deo-cube embed CUBE STORE")
    )
