"""Open several files as one cube: a date per file, or a file per band, by what their names and tags state.

Names are read for three facts: the date of the image (``20180701_L2A.tif``, ``2020-01-28.tif``, the sensing time of a
product's name), the band of a file that holds one (``..._B02_10m.jp2``, ``HLS.S30.T33TWM.2022064T102921.v2.0.B8A.tif``,
``SCL``, ``Fmask``), and another sensor's name, whose bands are refused. What is ambiguous is refused, too.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from deo_cube.cube import georeference
from deo_cube.cube.georeference import crs_name
from deo_cube.cube.sentinel2 import band_of_name, other_sensor
from deo_cube.cube.times import of_value
from deo_cube.errors import (
    ArgumentError,
    ArgumentTypeError,
    InputNotFoundError,
    MissingBandsError,
    StorageError,
    remedy,
)
from deo_cube.paths import expand, is_url

__all__ = [
    "RASTERS",
    "band_of_file",
    "common_geobox",
    "date_of_name",
    "dates_of",
    "expand_files",
    "is_pattern",
    "items_of_band_files",
    "join_dates",
    "refuse_other_sensor",
    "with_date",
]

Cube = xr.Dataset | xr.DataArray

#: Without it odc-stac does not read type and mark of no data of an asset.
_RASTER_EXTENSION = "https://stac-extensions.github.io/raster/v1.1.0/schema.json"
RASTERS = (".tif", ".tiff", ".jp2", ".vrt", ".img")

# --- names ---

_BAND = re.compile(
    r"(?:^|(?<=[_.\-\s]))(B(?:0?[1-9]|1[0-2]|0?8A)|SCL|Fmask)(?:[_.\-](?:10|20|30|60)m)?(?=$|[_.\-\s])", re.I
)
_PRODUCT = re.compile(r"S2[A-D]_MSIL?(?:1C|2A)_(\d{8}T\d{6})_", re.I)
#: Dates as names hold them, exact ones first. A match is removed before the next pattern is tried.
_DATES = (
    (re.compile(r"(?<!\d)(\d{4})(\d{3})T(\d{6})(?!\d)"), "%Y%jT%H%M%S"),
    (re.compile(r"(?<!\d)(\d{8})T(\d{6})Z?(?!\d)"), "%Y%m%dT%H%M%S"),
    (re.compile(r"(?<!\d)(\d{4})-(\d\d)-(\d\d)T(\d\d)[:-]?(\d\d)[:-]?(\d\d)Z?(?!\d)"), "%Y%m%dT%H%M%S"),
    (re.compile(r"(?<!\d)(\d{4})[-_](\d\d)[-_](\d\d)(?!\d)"), "%Y%m%d"),
    (re.compile(r"(?<!\d)(\d{8})(?!\d)"), "%Y%m%d"),
)
#: Tags that state when an image was taken. TIFFTAG_DATETIME is not among them: it is the time of writing.
_TIME_TAGS = ("SENSING_TIME", "ACQUISITIONDATETIME", "datetime", "acquisition_date", "PRODUCT_START_TIME")


def band_of_file(name: str) -> str | None:
    """Return the one band of Sentinel-2, ``SCL`` or ``Fmask`` in the name of a file; None for several or none.

    >>> band_of_file("T33TVM_20240601T101021_B02_10m.jp2"), band_of_file("HLS.S30.T33TWM.2022064T102921.v2.0.Fmask.tif")
    ('B02', 'Fmask')
    >>> band_of_file("scene_2.tif"), band_of_file("nir08.tif")
    (None, 'B8A')
    >>> band_of_file("SENTINEL-2_MSI_33TWM_B02_2022-03-05.tif"), band_of_file("T33_B02_B03.tif")
    ('B02', None)
    """
    stem = _stem(name)
    if designations := _BAND.findall(stem):
        text = designations[0]
        if len(designations) > 1:
            return None
        if text.upper() == "SCL":
            return "SCL"
        if text.lower() == "fmask":
            return "Fmask"
        named = band_of_name(text)
        return None if named is None else named[0]
    named = band_of_name(re.split(r"[_.\s]", stem)[-1])
    return None if named is None else named[0]


def date_of_name(path: str) -> np.datetime64 | None:
    """Return the date in the name of a file, or else of its folders from the inside out; None without one.

    Of a product's name it is the sensing time. Times are UTC.

    Raises
    ------
    ArgumentError
        For a name with dates of several days.

    >>> str(date_of_name("HLS.S30.T33TWM.2022064T102921.v2.0.B02.tif")), str(date_of_name("20180701_L2A.tif"))
    ('2022-03-05T10:29:21', '2018-07-01T00:00:00')
    """
    for name in reversed(Path(path).parts):
        if product := _PRODUCT.search(name):
            return np.datetime64(pd.to_datetime(product[1], format="%Y%m%dT%H%M%S"), "s")
        rest, found = name, list[pd.Timestamp]()
        for pattern, form in _DATES:
            for match in pattern.finditer(rest):
                text = "".join(match.groups())
                text = f"{text[:8]}T{text[8:]}" if form == "%Y%m%dT%H%M%S" else text
                text = f"{text[:7]}T{text[7:]}" if form == "%Y%jT%H%M%S" else text
                date = pd.to_datetime(text, format=form, errors="coerce")
                if not pd.isna(date) and 1972 <= date.year <= 2100:
                    found.append(date)
            rest = pattern.sub(" ", rest)
        if len({d.date() for d in found}) > 1:
            listed = " and ".join(sorted({str(d.date()) for d in found}))
            raise ArgumentError(f"the name {name} holds several dates, {listed}: pass time= with one date per file")
        if found:
            return np.datetime64(max(found), "s")  # of one day, the one with a time
    return None


def _stem(name: str) -> str:
    name = name.replace("\\", "/").rpartition("/")[2]
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in RASTERS else name


def refuse_other_sensor(names: Sequence[str]) -> None:
    """Refuse files whose names are those of Landsat, HLS L30 or another sensor.

    Raises
    ------
    MissingBandsError
        With the sensor and the reason.
    """
    for name in names:
        base = Path(name).name or name
        folder = "" if _BAND.sub("", _stem(name)).strip("_.- ") else Path(name).parent.name
        sensor = other_sensor(base) or other_sensor(folder)
        if sensor is not None:
            raise MissingBandsError(
                f"{base} is of another sensor than Sentinel-2 ({sensor}), whose band numbers mean other wavelengths: "
                "Landsat's B5 is near infrared, Sentinel-2's B05 the red edge. Leave these files out, as "
                "[p for p in paths if 'S30' in p] does of HLS"
            )


# --- lists of files ---


def is_pattern(text: str) -> bool:
    """Return whether a path is a pattern of `glob`, such as ``scenes/*.tif``, and not a file of that very name."""
    return not is_url(text) and not text.startswith("/vsi") and glob.has_magic(text) and not Path(text).exists()


def expand_files(path: Any) -> list[str]:
    """Return the files that a pattern or a sequence of paths names, in the order of the sequence.

    Raises
    ------
    InputNotFoundError
        For a pattern that matches none.
    ArgumentError
        For an empty sequence, and for one that names a file twice.
    """
    paths: list[str] = []
    for one in path if isinstance(path, list | tuple) else [path]:
        text = expand(one)
        if not is_pattern(text):
            paths.append(text)
            continue
        matched = sorted(p for p in glob.glob(text, recursive=True) if not p.endswith(".aux.xml"))
        if not matched:
            raise InputNotFoundError(
                f"path: no file matches {text}. Expected a pattern of existing files, such as 'scenes/*.tif'"
            )
        paths += matched
    if not paths:
        raise ArgumentError("path is an empty list: expected paths, or a pattern such as 'scenes/*.tif'")
    if twice := sorted({p for p in paths if paths.count(p) > 1}):
        raise ArgumentError(f"path names {twice[0]} twice: name each file once")
    return paths


def dates_of(time: Any, n: int) -> list[Any]:
    """Return `time` as `n` dates in UTC, each a datetime64 in nanoseconds.

    Raises
    ------
    ArgumentError
        For another number of dates, and for what is not a date.
    """
    values = [time] if isinstance(time, str) or np.ndim(time) == 0 else list(time)
    if len(values) != n:
        raise ArgumentError(f"time must hold one date per file, {n} in all; got {len(values)}")
    dates = []
    for value in values:
        read = of_value(value)
        if read is None:
            raise ArgumentError(f"time must hold dates, such as '2021-06-30' or a datetime; got {value!r:.60}")
        dates.append(np.datetime64(read[0], "ns"))
    return dates


def with_date(cube: Cube, path: str, date: Any = None) -> Cube:
    """Return a cube with a dimension of time: its own, or one step at `date`, its tags' or its name's date."""
    own = georeference.dims(cube).time
    if own is not None:
        if date is not None and cube.sizes[own] == 1:
            return cube.assign_coords({own: [date]})
        if date is not None:
            raise ArgumentError(f"{path} holds {cube.sizes[own]} dates itself: omit time=")
        return cube
    if date is None:
        date = _stated_date(cube, path)
    if date is None:
        raise ArgumentError(
            f"{path} states no date: neither its name, its folders nor its tags hold one. Pass time= with one date per "
            "file, in the order of the paths"
        )
    scalars = [c for c in cube.coords if c == "time"]
    dated = cube.drop_vars(scalars).expand_dims(time=[np.datetime64(date, "ns")])
    product = _stem(path)
    return dated.assign_coords(id=("time", np.array([product], dtype=object))) if _PRODUCT.search(path) else dated


def _stated_date(cube: Cube, path: str) -> np.datetime64 | None:
    scalar = cube.coords.get("time")
    tags = [scalar.values[()]] if scalar is not None and scalar.ndim == 0 else [cube.attrs.get(k) for k in _TIME_TAGS]
    stated = next((read[0] for t in tags if t is not None and (read := of_value(t)) is not None), None)
    named = date_of_name(path)
    if stated is None or named is None:
        return named if stated is None else np.datetime64(stated, "ns")
    if abs(np.datetime64(stated, "s") - named.astype("M8[s]")) > np.timedelta64(36, "h"):
        raise ArgumentError(
            f"{path} is of {str(named)[:10]} by its name, and of {str(stated)[:10]} by its tags: pass time= with one "
            "date per file"
        )
    return np.datetime64(stated, "ns")


def join_dates(cubes: Sequence[Cube], paths: Sequence[str]) -> Cube:
    """Join cubes of one grid along time, in the order of their dates.

    Raises
    ------
    ArgumentError
        For cubes on several grids, with other bands, types, marks of no data or scales, and for two of one date.
    """
    first = cubes[0]
    if len({isinstance(c, xr.Dataset) for c in cubes}) > 1:
        raise ArgumentTypeError(f"{paths[0]} and others are of several kinds: open those with one variable per band")
    box = georeference.geobox(first)
    for cube, path in zip(cubes, paths, strict=True):
        other = georeference.geobox(cube)
        if other.shape != box.shape or not other.crs or other.crs != box.crs or not _near(other.transform, box):
            raise ArgumentError(
                f"the files are on several grids: {_grid(box)} of {Path(paths[0]).name}, {_grid(other)} of "
                f"{Path(path).name}. "
                + remedy(
                    "Bring them to one, then join them: like = open_cube(paths[0]).odc.geobox; "
                    "xr.concat([with_date(open_cube(p).odc.reproject(like, resampling='nearest'), p) for p in paths], "
                    "'time') with with_date of deo_cube.cube.files",
                    "Bring them to one first: gdalwarp -r near, with the -t_srs, -te and -tr of one of them",
                )
            )
        _check_alike(first, cube, paths[0], path)
    time = georeference.dims(first).time
    x, y = georeference.dims(first).x, georeference.dims(first).y
    same_place = [c.assign_coords({x: first[x], y: first[y]}) for c in cubes]
    joined: Cube = xr.concat(  # type: ignore[call-overload]  # Datasets or DataArrays, never both
        same_place, dim=time, combine_attrs="drop_conflicts", join="exact", coords="minimal", compat="override"
    )
    dates = joined[time].values
    order = np.argsort(dates, kind="stable")
    if len(set(dates.tolist())) < len(dates):
        twice = next(d for d in dates if (dates == d).sum() > 1)
        same = [p for c, p in zip(cubes, paths, strict=True) if twice in c[time].values]
        raise ArgumentError(
            f"{' and '.join(Path(p).name for p in same[:3])} are of one date, {str(twice)[:19]}: leave one out, or "
            "pass time= with one date per file"
        )
    return joined.isel({time: order})


def _near(transform: Any, box: Any) -> bool:
    step = abs(box.transform.a)
    return all(abs(a - b) <= 1e-3 * step for a, b in zip(tuple(transform)[:6], tuple(box.transform)[:6], strict=True))


def _grid(box: Any) -> str:
    t = box.transform
    return f"{box.shape[0]} x {box.shape[1]} px of {t.a:g} from ({t.c:.10g}, {t.f:.10g}) in {crs_name(box.crs)}"


_STATED = ("_FillValue", "nodata", "missing_value", "scale_factor", "add_offset", "units", "_Unsigned")


def _check_alike(first: Cube, other: Cube, path: str, other_path: str) -> None:
    """Refuse cubes whose numbers mean different things: joined, one statement would be lost."""
    pairs: dict[str, tuple[xr.DataArray, xr.DataArray]]
    if isinstance(first, xr.Dataset) and isinstance(other, xr.Dataset):
        if set(first.data_vars) != set(other.data_vars):
            odd = sorted(map(str, set(first.data_vars) ^ set(other.data_vars)))
            raise ArgumentError(
                f"{Path(path).name} and {Path(other_path).name} hold different variables ({', '.join(odd[:8])}): "
                + remedy(
                    "select common ones, open_cube(p)[names], and join them with xr.concat(cubes, 'time')",
                    "name files that hold the same",
                )
            )
        pairs = {str(n): (v, other[n]) for n, v in first.data_vars.items()}
    else:
        pairs = {"": (first, other)}  # type: ignore[dict-item]
        band = georeference.dims(first).band
        names = [
            (c.sizes.get(band), repr(c.attrs.get("long_name")), c[band].values.tolist() if band in c.coords else None)
            if band
            else None
            for c in (first, other)
        ]
        if names[0] != names[1]:
            raise ArgumentError(
                f"{Path(path).name} and {Path(other_path).name} hold different bands: {names[0]} and {names[1]}. Name "
                "them alike, and join them with xr.concat(cubes, 'time')"
            )
    for name, (a, b) in pairs.items():
        facts = [
            {"dtype": str(v.dtype)} | {k: repr(_stated(v, k)) for k in _STATED if _stated(v, k) is not None}
            for v in (a, b)
        ]
        if facts[0] != facts[1]:
            differ = sorted(k for k in facts[0].keys() | facts[1].keys() if facts[0].get(k) != facts[1].get(k))
            listed = "; ".join(f"{k}: {facts[0].get(k, 'none')} and {facts[1].get(k, 'none')}" for k in differ)
            raise ArgumentError(
                f"the numbers of {Path(path).name} and {Path(other_path).name} mean different things "
                f"({f'{name}, ' if name else ''}{listed}): open each, bring them to one scale and mark of no data, and "
                "join them with xr.concat(cubes, 'time')"
            )


def _stated(variable: xr.DataArray, key: str) -> Any:
    value = variable.attrs.get(key, variable.encoding.get(key))
    return value.item() if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0 else value


# --- a file per band ---


def items_of_band_files(paths: Sequence[str], time: Any = None) -> list[dict[str, Any]] | None:
    """Describe files that hold one band each as STAC items, one per product; None where they are other files.

    Files of one product have the same name but for the band, or are in one folder. Type, mark of no data and scale are
    those of the files.

    Parameters
    ----------
    paths : sequence of str
    time : sequence of dates, optional
        One per product, in the order in which their first files are listed.

    Raises
    ------
    MissingBandsError
        For files of another sensor, or two of one band.
    ArgumentError
        For a product without a date.
    """
    bands = [band_of_file(p) for p in paths]
    if not all(Path(p).suffix.lower() in RASTERS for p in paths) or all(b is None for b in bands):
        return None
    read = [_header(p) for p, b in zip(paths, bands, strict=True) if b is not None]
    if any(count != 1 for count, _ in read):
        return None
    headers = dict(zip((p for p, b in zip(paths, bands, strict=True) if b is not None), read, strict=True))
    refuse_other_sensor(list(headers))
    products: dict[str, dict[str, str]] = {}
    for path, band in zip(paths, bands, strict=True):
        if band is None:
            continue  # angles, quality, previews
        files = products.setdefault(_product_of(path), {})
        if (held := files.get(band)) is not None and _coarser(path, held):
            continue
        if held is not None and not _coarser(held, path):
            raise MissingBandsError(
                f"{Path(held).name} and {Path(path).name} both hold {band} of one product: leave one out"
            )
        files[band] = path
    dates = dates_of(time, len(products)) if time is not None else [None] * len(products)
    items = []
    for (product, files), given in zip(products.items(), dates, strict=True):
        date = given if given is not None else _date_of_files(files, headers)
        assets = {
            band: {"href": path, "type": "image/tiff", "raster:bands": [headers[path][1]["described"]]}
            for band, path in files.items()
        }
        items.append(
            {
                **{"type": "Feature", "stac_version": "1.0.0", "id": Path(product).name or product, "links": []},
                **{"geometry": None, "stac_extensions": [_RASTER_EXTENSION], "assets": assets},
                "properties": {"datetime": f"{date.astype('M8[s]')}Z"},
            }
        )
    return items


def common_geobox(paths: Sequence[str], resolution: float) -> GeoBox | None:
    """Return the area that all files share, in pixels of `resolution`; None where they cover several areas."""
    boxes = [b for p in paths if band_of_file(p) is not None and (b := _header(p)[1]["geobox"]) is not None]
    if not boxes or any(b.crs != boxes[0].crs or b.boundingbox != boxes[0].boundingbox for b in boxes):
        return None
    finest = min(boxes, key=lambda b: abs(b.transform.a))
    zoomed: GeoBox = finest.zoom_to(resolution=resolution)
    return zoomed


def _product_of(path: str) -> str:
    """Return the name that the files of one product share: without the band, or the folder of plain band names."""
    stem = _stem(path)
    name = _BAND.sub("", stem)
    if name == stem:
        name = stem[: len(stem) - len(re.split(r"[_.\s]", stem)[-1])]
    folder = path.replace("\\", "/").rpartition("/")[0]
    name = name.strip("_.- ")
    if not name:
        return folder or "."
    # In a product of ESA the folders R10m and R20m hold the bands of one granule.
    return f"{re.sub(r'/R[126]0m$', '', folder)}/{name}"


def _coarser(path: str, than: str) -> bool:
    """Return whether a file states a coarser resolution in its name than another."""
    sizes = [re.search(r"_([126]0)m\.\w+$", p) for p in (path, than)]
    return sizes[0] is not None and sizes[1] is not None and int(sizes[0][1]) > int(sizes[1][1])


def _header(path: str) -> tuple[int, dict[str, Any]]:
    """Return how many bands a raster has, and what it states about the numbers of the first."""
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with rasterio.open(path) as file:
            described: dict[str, Any] = {"data_type": file.dtypes[0]}
            described |= {} if file.nodata is None else {"nodata": file.nodata}
            if (file.scales[0], file.offsets[0]) != (1.0, 0.0):
                described |= {"scale": file.scales[0], "offset": file.offsets[0]}
            tags = {**file.tags(), **file.tags(ns="IMAGERY")}
            box = None if file.crs is None else GeoBox(file.shape, file.transform, file.crs.to_wkt())
            return file.count, {"described": described, "tags": tags, "geobox": box}
    except RasterioError as error:
        raise StorageError(f"{path} cannot be read by rasterio: {' '.join(str(error).split())[:300]}") from error


def _date_of_files(files: Mapping[str, str], headers: Mapping[str, tuple[int, dict[str, Any]]]) -> Any:
    path = next(iter(files.values()))
    tags = headers[path][1]["tags"]
    date = _stated_date(xr.DataArray(0, attrs=tags), path)
    if date is None:
        raise ArgumentError(
            f"{Path(path).name} states no date: neither its name, its folders nor its tags hold one. Pass time= with "
            "one date per product, in the order of the paths"
        )
    return date
