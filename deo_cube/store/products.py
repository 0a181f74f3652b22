"""Open embeddings of other producers: TESSERA, AlphaEarth, and stores that follow the `geoemb:` convention.

The layouts and their sources:

- **TESSERA** (geotessera 0.7.5: registry.py, tiles.py, core.py): tiles of 0.1 degree in UTM, 10 m, 128 bands. As
  ``<year>/grid_<lon>_<lat>/grid_<lon>_<lat>.npy`` int8 (y, x, band) with ``..._scales.npy`` float32 (y, x) or (y, x,
  band), value = int8 x scale; the grid is in ``global_0.1_degree_tiff_all/grid_<lon>_<lat>.tiff``. As GeoTIFF
  ``grid_<lon>_<lat>_<year>.tiff`` and as Zarr (variable `embedding` (y, x, band)), both float32. As `geoemb:` Zarr, one
  group per UTM zone, int8 with an array of scales in which NaN and infinity mean no data.
- **AlphaEarth** (developers.google.com/earth-engine/guides/aef_on_gcs_readme): COGs of 8192 x 8192 px in UTM, 10 m, 64
  int8 bands A00..A63, no data -128; value = (v / 127.5)**2 x sign(v), unit vectors. Rows run from south to north.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import rasterio
import rioxarray
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox

from deo_cube.constants import Attribute
from deo_cube.cube import georeference
from deo_cube.cube.georeference import SPATIAL_DIMS
from deo_cube.cube.open import check_codecs
from deo_cube.cube.times import read_times
from deo_cube.embedding.metadata import to_json
from deo_cube.errors import MissingCRSError, StoreMismatchError, remedy
from deo_cube.packed import scale_and_offset
from deo_cube.paths import expand, reading

__all__ = ["open_layout"]

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
