"""A Sentinel-2 L2A scene that is drawn, not measured: for the demo, the docs and the tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from affine import Affine
from odc.geo.crs import CRS, CRSError
from odc.geo.geobox import GeoBox

from deo_cube import arguments
from deo_cube.cube.georeference import assign_grid
from deo_cube.cube.landscape import LAND_COVER, Landscape, draw_landscape, noise, smoothstep
from deo_cube.cube.surfaces import BANDS, SPECTRA, Season, Surfaces
from deo_cube.errors import ArgumentError, ArgumentTypeError

__all__ = ["BANDS", "synthetic_cube"]

Array = np.ndarray[Any, np.dtype[Any]]

TEN_METRES = ("B02", "B03", "B04", "B08")

DEFAULT_CHUNKS: Mapping[str, int] = {"time": 1, "y": 512, "x": 512}
ADD_OFFSET = -1000
TITLE = "synthetic Sentinel-2 L2A scene (not real data)"

SCL_MEANINGS = (
    "no_data saturated_or_defective dark_area_pixels cloud_shadows vegetation not_vegetated water unclassified "
    "cloud_medium_probability cloud_high_probability thin_cirrus snow"
)


def synthetic_cube(
    *,
    size: int | tuple[int, int] = 1024,
    times: int | Sequence[Any] = 2,
    seed: int = 0,
    bands: Sequence[str] | None = None,
    units: Literal["dn", "reflectance"] = "dn",
    offset: int = 0,
    clouds: bool | float = True,
    gaps: bool = True,
    crs: str = "EPSG:32633",
    resolution: float | None = None,
    chunks: Mapping[str, int] | None = DEFAULT_CHUNKS,
    south_up: bool = False,
    dtype: Any = None,
) -> xr.Dataset:
    """Draw a plausible Sentinel-2 L2A time series of a countryside that does not exist.

    Fields with crops that grow and ripen, broadleaved and coniferous woods, a river, gravel pits, reeds, a town,
    villages and roads; clouds with their shadows, a swath edge, and the 20 m bands really at 20 m. Equal arguments give
    equal cubes. It is no measure of any model's skill on real data, and its attributes say so.

    Parameters
    ----------
    size : int or (int, int)
        Pixels along y and x.
    times : int or sequence of dates
        Number of acquisitions, spread over the growing season of 2021, or their dates.
    seed : int
        Another seed, another country.
    bands : sequence of str, optional
        Some of `BANDS`; all ten by default.
    units : {"dn", "reflectance"}
        DN (reflectance x 10000) with 0 for no data, or reflectance with NaN.
    offset : {0, -1000}
        The DN to add to what the cube holds. -1000: the values carry the +1000 (0.1 in reflectance) of processing
        baseline 04.00 and later, as in the products of the archive.
    clouds : bool or float
        True for a varying cover, or the fraction of each acquisition under cloud.
    gaps : bool
        Whether a swath edge cuts into some acquisitions.
    crs : str
        Projected CRS, or a geographic one in degrees. The dimensions are called y and x in any.
    resolution : float, optional
        Pixel size in units of the CRS, 10 m by default. The countryside is drawn in pixels: other sizes stretch it.
    chunks : mapping, optional
        Dask chunks; None for NumPy arrays.
    south_up : bool
        First row in the south instead of in the north.
    dtype : dtype, optional
        Of the bands: uint16 for DN and float32 for reflectance by default.

    Returns
    -------
    Dataset
        The bands (time, y, x); ``SCL`` uint8 (time, y, x), the scene classification; ``land_cover`` uint8 (y, x), what
        was drawn, with flag_values and flag_meanings; ``spatial_ref`` and, along time, ``processing_baseline``.

    Raises
    ------
    ValueError
        For arguments that cannot be drawn.
    """
    sides = (size, size) if np.ndim(size) == 0 else arguments.sequence("size", size, "two integers")  # type: ignore[arg-type]
    if len(sides) != 2:
        raise ArgumentError(f"size must be an integer or two, got {size!r}")
    shape = (arguments.integer("size", sides[0], maximum=2**16), arguments.integer("size", sides[1], maximum=2**16))
    names = BANDS if bands is None else arguments.sequence("bands", bands, "bands")
    seed = arguments.integer("seed", seed, minimum=0, maximum=2**63 - 1)
    gaps, south_up = arguments.boolean("gaps", gaps), arguments.boolean("south_up", south_up)
    if resolution is not None:
        resolution = arguments.number("resolution", resolution, above=0)
    if chunks is not None and not isinstance(chunks, Mapping):
        raise ArgumentTypeError(f"chunks must be a mapping of dimensions to sizes, or None; got {chunks!r}")
    if min(shape) < 2:
        raise ArgumentError(f"size must be at least 2 pixels, got {size}")
    if unknown := [b for b in names if b not in BANDS]:
        raise ArgumentError(f"bands must be among {', '.join(BANDS)}; got {', '.join(map(str, unknown))}")
    if units not in ("dn", "reflectance"):
        raise ArgumentError(f'units must be "dn" or "reflectance", got {units!r}')
    if isinstance(offset, bool) or offset not in (0, ADD_OFFSET):
        raise ArgumentError(f"offset must be 0 or {ADD_OFFSET} (the DN to add), got {offset!r}")
    if not isinstance(clouds, bool):
        clouds = arguments.number("clouds", clouds, minimum=0, maximum=1)
    try:
        kind = np.dtype(dtype or ("uint16" if units == "dn" else "float32"))
    except TypeError as error:
        raise ArgumentError(f"dtype must be a NumPy dtype, got {dtype!r}") from error
    if units == "reflectance" and kind.kind != "f":
        raise ArgumentError(f"reflectance needs a floating-point dtype, got {kind}")

    dates = _dates(times)
    land, *weather = np.random.SeedSequence(seed).spawn(len(dates) + 1)
    landscape = draw_landscape(np.random.default_rng(land), shape)
    surfaces = Surfaces(landscape)
    covers = _cloud_covers(np.random.default_rng(land.spawn(1)[0]), clouds, len(dates))
    values = {b: np.empty((len(dates), *shape), kind) for b in names}
    scl = np.empty((len(dates), *shape), "uint8")
    for k, date in enumerate(dates):
        rng = np.random.default_rng(weather[k])
        sky = _draw_sky(rng, shape, covers[k])
        missing = _beyond_swath(rng, shape) if gaps and k % 3 == min(1, len(dates) - 1) else None
        season = Season.of(date.day_of_year, seed)
        speckle = rng.standard_normal(shape, dtype="float32")
        drawn = {b: _acquire(surfaces.reflect(season, b), sky, b, speckle) for b in {*names, "B04", "B08"}}
        scl[k] = _classify(landscape, sky, drawn["B04"], drawn["B08"])
        for b in names:
            values[b][k] = _encode(drawn[b], missing, units, offset, kind)
        if missing is not None:
            scl[k][missing] = 0
    return _dataset(values, scl, landscape.land_cover, dates, units, offset, crs, resolution, chunks, south_up, seed)


def _dates(times: int | Sequence[Any]) -> pd.DatetimeIndex:
    if np.ndim(times) == 1 and len(times) > 0:  # type: ignore[arg-type]
        try:
            return pd.DatetimeIndex(list(times))  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"times must be a count, or a list of dates: {error}") from error
    times = arguments.integer("times", times, maximum=10_000)
    # Sentinel-2 passes every five days; the season is from mid-April to the end of September.
    passes = np.round((np.arange(times) + 0.5) / times * 33).astype(int)
    return pd.Timestamp("2021-04-16T10:00:31") + pd.to_timedelta(5 * passes, unit="D")


def _cloud_covers(rng: np.random.Generator, clouds: bool | float, count: int) -> list[float]:
    if clouds is not True:
        return [float(clouds)] * count
    return [0.03, 0.1, *rng.uniform(0, 0.45, max(0, count - 2)) ** 2][:count]


def _acquire(value: Array, sky: Sky, band: str, speckle: Array) -> Array:
    """What the instrument sees of `value` under a sky, as float32 at the band's own pixel size."""
    from scipy import ndimage

    k = BANDS.index(band)
    if band in TEN_METRES:
        # The optics spread a point over its neighbours.
        value = ndimage.gaussian_filter(value, 0.5, truncate=3)
    value *= 1 - sky.shadow * np.float32(0.66 if k < 3 else 0.72)
    if sky.cirrus is not None:
        value += sky.cirrus * np.float32(480 if k < 8 else 120)
    value += sky.cloud * (np.float32(SPECTRA["cloud"][k]) * sky.light - value)
    grain = np.roll(speckle, 37 * k, 0)
    if band not in TEN_METRES:
        value, grain = _coarsened(value), _coarsened(grain)
    value += grain * (5 + np.float32(0.006) * value)
    return value


def _coarsened(value: Array) -> Array:
    """Pixels of 20 m: means of two by two, repeated as nearest-neighbour resampling does."""
    rows, columns = value.shape
    even = np.pad(value, ((0, rows % 2), (0, columns % 2)), mode="edge")
    mean: Array = 0.25 * (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2])
    return mean.repeat(2, 0).repeat(2, 1)[:rows, :columns]


@dataclass(frozen=True)
class Sky:
    """Clouds of one acquisition; float32 (rows, columns), 0 to 1."""

    cloud: Array
    shadow: Array
    cirrus: Array | None
    light: Array
    """Brightness of the clouds relative to their mean."""


def _draw_sky(rng: np.random.Generator, shape: tuple[int, int], fraction: float) -> Sky:
    from scipy import ndimage

    # The sun stands in the south-east: shadows fall to the north-west, and those of clouds outside the picture into it.
    margin = (70, 40)
    puffs = noise(rng, (shape[0] + margin[0], shape[1] + margin[1]), 3.1, 150, 5)
    clear = np.zeros(shape, "float32")
    if fraction <= 0:
        return Sky(clear, clear, None, clear)
    billows = np.abs(noise(rng, puffs.shape, 2.8, 26, 3))
    # A cloud's edge is soft: the classification takes the thinnest fringe for clear.
    edge = float(np.quantile(puffs[: shape[0], : shape[1]], 1 - fraction))
    height = puffs - edge - 0.2 * (billows - 0.8)
    thick = smoothstep(-0.3, 0.75, height) ** 1.4
    cloud = thick[: shape[0], : shape[1]]
    high = int(margin[0] * rng.uniform(0.45, 1)), int(margin[1] * rng.uniform(0.45, 1))
    shadow = ndimage.gaussian_filter(thick[high[0] :, high[1] :][: shape[0], : shape[1]], 1.0)
    light = 0.62 + 0.3 * np.tanh(1.4 * height[: shape[0], : shape[1]]) - 0.07 * billows[: shape[0], : shape[1]]
    veil = 0.8 * smoothstep(1.1, 2.6, noise(rng, shape, 3.4, 420, 8)) if fraction > 0.08 else None
    return Sky(cloud, shadow * (1 - cloud), veil, light)


def _beyond_swath(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Pixels east of the edge of the swath, which runs from north-north-east to south-south-west."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    missing: Array = x + 0.23 * (y - shape[0] / 2) > shape[1] * rng.uniform(0.84, 0.92)
    return missing


def _classify(landscape: Landscape, sky: Sky, red: Array, infrared: Array) -> Array:
    """Scene classification at 20 m, from the pixels and what is known to hang above them."""
    index = (infrared - red) / np.maximum(infrared + red, 1)
    scl = np.where(index > 0.4, np.uint8(4), np.uint8(5))
    scl[landscape.land_cover == LAND_COVER["water"]] = 6
    if sky.cirrus is not None:
        scl[sky.cirrus > 0.25] = 10
    scl[sky.shadow > 0.3] = 3
    scl[sky.cloud > 0.15] = 8
    scl[sky.cloud > 0.5] = 9
    coarse: Array = scl[::2, ::2].repeat(2, 0).repeat(2, 1)[: scl.shape[0], : scl.shape[1]]
    return coarse


def _encode(value: Array, missing: Array | None, units: str, offset: int, kind: np.dtype[Any]) -> Array:
    # 0 is kept for "no data", as the products do it.
    dn = np.clip(np.round(value) - offset, 1, 32767 if kind == np.int16 else 65535)
    encoded = dn if units == "dn" else dn / np.float32(10000)
    if missing is not None:
        encoded = np.where(missing, 0 if units == "dn" else np.nan, encoded)
    return encoded.astype(kind)


def _geobox(shape: tuple[int, int], crs: str, resolution: float | None, south_up: bool) -> GeoBox:
    try:
        system = CRS(crs)
    except CRSError as error:
        raise ArgumentError(f"crs must be a CRS, such as EPSG:32633, got {crs!r} ({error})") from error
    step = resolution or (9e-5 if system.geographic else 10.0)
    if system.geographic and step > 0.01:
        raise ArgumentError(
            f"{crs} is in degrees: resolution={step:g} would be {step * 111:.0f} km; 10 m are about 9e-5"
        )
    if system.geographic:
        west, north = 16.0, 45.0
    elif system.epsg and 32600 < system.epsg <= 32760:
        west, north = 600_000.0, 5_000_000.0 if system.epsg <= 32660 else 7_000_000.0
    else:
        bounds = system.proj.area_of_use.bounds if system.proj.area_of_use else (15.0, 45.0, 17.0, 46.0)
        from pyproj import Transformer

        place = (np.clip(16.0, bounds[0], bounds[2]), np.clip(45.0, bounds[1], bounds[3]))
        x, y = Transformer.from_crs(system.proj.geodetic_crs, system.proj, always_xy=True).transform(*place)
        west, north = round(x / 1e4) * 1e4, round(y / 1e4) * 1e4
    box = GeoBox(shape, Affine(step, 0, west, 0, -step, north), system)
    return box.flipy() if south_up else box


def _dataset(
    values: Mapping[str, Array],
    scl: Array,
    land_cover: Array,
    dates: pd.DatetimeIndex,
    units: str,
    offset: int,
    crs: str,
    resolution: float | None,
    chunks: Mapping[str, int] | None,
    south_up: bool,
    seed: int,
) -> xr.Dataset:
    """Put the drawn arrays on the map and say what they are."""
    dims = ("time", "y", "x")
    flip = slice(None, None, -1 if south_up else 1)
    # Both baselines exist for 2021: the first processing, and Collection 1 with the offset of +1000.
    baseline = "05.00" if offset else "03.01"
    about = {
        "units": "DN" if units == "dn" else "reflectance",
        "nodata": 0 if units == "dn" else math.nan,
        "boa_add_offset": offset,
        "processing_baseline": baseline,
    }
    data = xr.Dataset(
        {
            name: (dims, array[:, flip], {"long_name": f"synthetic surface reflectance, band {name}", **about})
            for name, array in values.items()
        },
        coords={"time": dates, "processing_baseline": ("time", np.array([baseline] * len(dates), object))},
        attrs={
            "title": TITLE,
            "source": f"drawn by deo_cube.synthetic_cube(seed={seed})",
            "deo_cube:synthetic": 1,
            "product_level": "L2A",
        },
    )
    data["SCL"] = (
        dims,
        scl[:, flip],
        {
            "long_name": "synthetic scene classification",
            "nodata": 0,
            "flag_values": np.arange(12, dtype="uint8"),
            "flag_meanings": SCL_MEANINGS,
        },
    )
    data["land_cover"] = (
        dims[1:],
        land_cover[flip],
        {
            "long_name": "land cover as drawn (truth of the synthetic scene)",
            "flag_values": np.array(list(LAND_COVER.values()), "uint8"),
            "flag_meanings": " ".join(LAND_COVER),
        },
    )
    data = assign_grid(data, _geobox(land_cover.shape, crs, resolution, south_up))
    if chunks is None:
        return data
    # Dates and the like stay in memory: they are small, and chunked strings cannot be written without being computed.
    return data.chunk(dict(chunks)).assign_coords({n: c.variable for n, c in data.coords.items() if c.ndim < 2})
