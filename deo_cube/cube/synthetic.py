"""Draw a synthetic Sentinel-2 L2A scene for the demo, the docs and the tests."""

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
from pyproj import Transformer

from deo_cube import arguments
from deo_cube.constants import SCL_CLASSES, WAVELENGTH_BANDS, Attribute
from deo_cube.cube.georeference import assign_grid
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.extras import require

__all__ = ["BANDS", "synthetic_cube"]

Array = np.ndarray[Any, np.dtype[Any]]

TEN_METRES = ("B02", "B03", "B04", "B08")

DEFAULT_CHUNKS: Mapping[str, int] = {"time": 1, "y": 512, "x": 512}
ADD_OFFSET = -1000
TITLE = "synthetic Sentinel-2 L2A scene (not real data)"


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
    """Draw a plausible Sentinel-2 L2A time series of a fictitious landscape.

    It has fields with crops that grow and ripen, woods, a river, gravel pits, reeds, a town, villages and roads; clouds
    with their shadows, a swath edge, and 20 m bands at 20 m. Equal arguments give equal cubes. It does not measure a
    model's skill on real data, and its attributes state that it is synthetic.

    Parameters
    ----------
    size : int or (int, int)
        Pixels along y and x.
    times : int or sequence of dates
        Number of acquisitions, spread over the growing season of 2021, or their dates.
    seed : int
        Of the random numbers; each seed gives another landscape.
    bands : sequence of str, optional
        Some of `BANDS`; all ten by default.
    units : {"dn", "reflectance"}
        DN (reflectance x 10000) with 0 for no data, or reflectance with NaN.
    offset : {0, -1000}
        The DN to add to what the cube holds. -1000: the values carry the +1000 (0.1 in reflectance) of processing
        baseline 04.00 and later, as in the products of the archive.
    clouds : bool or float
        True for a varying cloud cover, or the cloudy fraction of each acquisition.
    gaps : bool
        Whether a swath edge cuts into some acquisitions.
    crs : str
        Projected CRS, or a geographic one in degrees. The dimensions are always called y and x.
    resolution : float, optional
        Pixel size in units of the CRS, 10 m by default. The landscape is drawn in pixels: other sizes stretch it.
    chunks : mapping, optional
        Dask chunks; None for NumPy arrays.
    south_up : bool
        First row in the south instead of in the north.
    dtype : dtype, optional
        Of the bands: uint16 for DN and float32 for reflectance by default.

    Returns
    -------
    Dataset
        The bands (time, y, x); ``SCL`` uint8 (time, y, x), the scene classification; ``land_cover`` uint8 (y, x), the
        drawn classes, with flag_values and flag_meanings; ``spatial_ref`` and, along time, ``processing_baseline``.

    Raises
    ------
    MissingExtraError
        Without the extra ``demo``.
    ArgumentError
        For arguments that are not acceptable.
    """
    require("scipy", extra="demo", purpose="synthetic_cube")
    shape, names = _checked_shape(size), _checked_bands(bands)
    arguments.choice("units", units, ("dn", "reflectance"))
    stored_dtype = _checked_dtype(dtype, units)
    seed = arguments.integer("seed", seed, minimum=0, maximum=2**63 - 1)
    gaps, south_up = arguments.boolean("gaps", gaps), arguments.boolean("south_up", south_up)
    if resolution is not None:
        resolution = arguments.number("resolution", resolution, above=0)
    if chunks is not None and not isinstance(chunks, Mapping):
        raise ArgumentTypeError(f"chunks must be a mapping of dimensions to sizes, or None; got {chunks!r}")
    if isinstance(offset, bool) or offset not in (0, ADD_OFFSET):
        raise ArgumentError(f"offset must be 0 or {ADD_OFFSET} (the DN to add), got {offset!r}")
    if not isinstance(clouds, bool):
        clouds = arguments.number("clouds", clouds, minimum=0, maximum=1)
    dates = _dates(times)
    box = _geobox(shape, crs, resolution, south_up)

    # One stream of random numbers for the land and one per date, so that a date is the same whatever comes before it.
    land, *weather = np.random.SeedSequence(seed).spawn(len(dates) + 1)
    surfaces = Surfaces(draw_landscape(np.random.default_rng(land), shape))
    covers = _cloud_covers(np.random.default_rng(land.spawn(1)[0]), clouds, len(dates))
    values = {b: np.empty((len(dates), *shape), stored_dtype) for b in names}
    scl = np.empty((len(dates), *shape), "uint8")
    for k, date in enumerate(dates):
        cut = gaps and k % 3 == min(1, len(dates) - 1)
        season, rng = Season.of(date.day_of_year, seed), np.random.default_rng(weather[k])
        drawn, scl[k], missing = _acquisition(surfaces, season, names, rng, cloud_cover=covers[k], cut=cut)
        for b in names:
            values[b][k] = _encode(drawn[b], missing, units, offset, stored_dtype)
    cube = _dataset(values, scl, surfaces.landscape.land_cover, dates, box, units, offset, seed)
    if chunks is None:
        return cube
    # Dates and the like stay in memory: they are small, and chunked strings cannot be written without being computed.
    return cube.chunk(dict(chunks)).assign_coords({n: c.variable for n, c in cube.coords.items() if c.ndim < 2})


def _checked_shape(size: Any) -> tuple[int, int]:
    sides = (size, size) if np.ndim(size) == 0 else arguments.sequence("size", size, "two integers")
    if len(sides) != 2:
        raise ArgumentError(f"size must be an integer or two, got {size!r}")
    return (
        arguments.integer("size", sides[0], minimum=2, maximum=2**16),
        arguments.integer("size", sides[1], minimum=2, maximum=2**16),
    )


def _checked_bands(bands: Sequence[str] | None) -> tuple[str, ...]:
    names = BANDS if bands is None else arguments.sequence("bands", bands, "bands")
    if unknown := [b for b in names if b not in BANDS]:
        raise ArgumentError(f"bands must be among {', '.join(BANDS)}; got {', '.join(map(str, unknown))}")
    return names


def _checked_dtype(dtype: Any, units: str) -> np.dtype[Any]:
    try:
        checked = np.dtype(dtype or ("uint16" if units == "dn" else "float32"))
    except TypeError as error:
        raise ArgumentError(f"dtype must be a NumPy dtype, got {dtype!r}") from error
    if units == "reflectance" and checked.kind != "f":
        raise ArgumentError(f'dtype must be floating-point where units="reflectance", got {checked}')
    return checked


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


def _acquisition(
    surfaces: Surfaces,
    season: Season,
    names: Sequence[str],
    rng: np.random.Generator,
    *,
    cloud_cover: float,
    cut: bool,
) -> tuple[dict[str, Array], Array, Array | None]:
    """Draw one date: reflectance x 10000 by band, its classification, and the pixels beyond the swath if it is cut."""
    shape = surfaces.lit.shape
    sky = _draw_sky(rng, (shape[0], shape[1]), cloud_cover)
    missing = _beyond_swath(rng, (shape[0], shape[1])) if cut else None
    speckle = rng.standard_normal(shape, dtype="float32")
    # The classification needs red and near infrared, whichever bands are asked for.
    drawn = {b: _acquire(surfaces.reflect(season, b), sky, b, speckle) for b in {*names, "B04", "B08"}}
    scl = _classify(surfaces.landscape, sky, drawn["B04"], drawn["B08"])
    if missing is not None:
        scl[missing] = 0
    return drawn, scl, missing


def _acquire(value: Array, sky: Sky, band: str, speckle: Array) -> Array:
    """Return `value` as observed under a sky, float32 at the band's own pixel size."""
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
    """Average to pixels of 20 m and repeat them, as nearest-neighbour resampling does."""
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

    # The sun is in the south-east, so shadows fall to the north-west, also those of clouds outside the image.
    margin = (70, 40)
    puffs = noise(rng, (shape[0] + margin[0], shape[1] + margin[1]), 3.1, 150, 5)
    clear = np.zeros(shape, "float32")
    if fraction <= 0:
        return Sky(clear, clear, None, clear)
    billows = np.abs(noise(rng, puffs.shape, 2.8, 26, 3))
    # The edge of a cloud is soft: its thinnest part is classified as clear.
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
    """Return the pixels east of the edge of the swath, which runs from north-north-east to south-south-west."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    missing: Array = x + 0.23 * (y - shape[0] / 2) > shape[1] * rng.uniform(0.84, 0.92)
    return missing


def _classify(landscape: Landscape, sky: Sky, red: Array, infrared: Array) -> Array:
    """Return the scene classification at 20 m, from the pixels and the clouds above them."""
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
    # 0 is reserved for "no data", as in the products.
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
    box: GeoBox,
    units: str,
    offset: int,
    seed: int,
) -> xr.Dataset:
    """Put the drawn arrays on the grid `box`, with the attributes of a product; their first row is the northernmost."""
    dims = ("time", "y", "x")
    rows = slice(None, None, -1 if box.transform.e > 0 else 1)
    # Both baselines exist for 2021: the first processing, and Collection 1 with the offset of +1000.
    baseline = "05.00" if offset else "03.01"
    band_attrs = {
        "units": "DN" if units == "dn" else "reflectance",
        "nodata": 0 if units == "dn" else math.nan,
        "boa_add_offset": offset,
        "processing_baseline": baseline,
    }
    scl_attrs = {
        "long_name": "synthetic scene classification",
        "nodata": 0,
        "flag_values": np.arange(12, dtype="uint8"),
        "flag_meanings": " ".join(SCL_CLASSES),
    }
    cover_attrs = {
        "long_name": "land cover as drawn (truth of the synthetic scene)",
        "flag_values": np.array(list(LAND_COVER.values()), "uint8"),
        "flag_meanings": " ".join(LAND_COVER),
    }
    bands: dict[str, Any] = {
        name: (dims, array[:, rows], {"long_name": f"synthetic surface reflectance, band {name}", **band_attrs})
        for name, array in values.items()
    }
    data = xr.Dataset(
        {**bands, "SCL": (dims, scl[:, rows], scl_attrs), "land_cover": (dims[1:], land_cover[rows], cover_attrs)},
        coords={"time": dates, "processing_baseline": ("time", np.array([baseline] * len(dates), object))},
        attrs={
            "title": TITLE,
            "source": f"drawn by deo_cube.synthetic_cube(seed={seed})",
            Attribute.SYNTHETIC: 1,
            "product_level": "L2A",
        },
    )
    return assign_grid(data, box)


# --- landscape ---


LAND_COVER = {
    "water": 1,
    "tree_cover": 2,
    "grassland": 3,
    "cropland": 4,
    "built_up": 5,
    "bare": 6,
    "wetland": 7,
}
"""Classes of the truth layer; 0 does not occur."""

# Random attributes of parcels and blocks are stored by 16 bits of a hash; parcels that collide look alike.
TABLE = 1 << 16


@dataclass(frozen=True)
class Landscape:
    """The landscape without season and light; all arrays are (rows, columns)."""

    land_cover: Array
    """uint8, values of `LAND_COVER`."""
    parcel: Array
    """uint16, hash of the parcel that a pixel belongs to."""
    conifer: Array
    """float32, 0 broadleaved to 1 coniferous."""
    sealed: Array
    """float32, 0 green to 1 roofs and asphalt; within settlements."""
    roof: Array
    """float32, 0 dark to 1 bright roofs."""
    road: Array
    """float32, cover of roads and tracks, 0 to 1."""
    track: Array
    """float32, part of `road` that is unpaved, 0 to 1."""
    hedge: Array
    """float32, cover of hedges and single trees between fields, 0 to 1."""
    depth: Array
    """float32, 0 at a shore to 1 in clear deep water."""
    moisture: Array
    """float32, mean 0, standard deviation 1; smooth."""
    texture: Array
    """float32, mean 0, standard deviation 1; from pixel to pixel."""
    shade: Array
    """float32, mean about 1; relative light on the slope for a sun in the south-south-east."""


def smoothstep(low: float, high: float, x: Array) -> Array:
    """Return 0 below `low`, 1 above `high`, and a smooth step between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def noise(rng: np.random.Generator, shape: tuple[int, int], slope: float, coarsest: float, finest: float = 2) -> Array:
    """Draw noise whose spectrum falls as frequency ** -slope between two wavelengths (pixels); mean 0, deviation 1."""
    import scipy.fft

    # Padded, since the noise is periodic.
    padded = [scipy.fft.next_fast_len(n + int(min(n, coarsest / 2)), real=True) for n in shape]
    spectrum = scipy.fft.rfft2(rng.standard_normal(padded, dtype="float32"))
    squared = scipy.fft.fftfreq(padded[0])[:, None] ** 2 + scipy.fft.rfftfreq(padded[1]) ** 2
    squared = (squared * coarsest**2).astype("float32")
    # Falls off below the coarsest wavelength, and ends at the finest.
    gain = np.minimum(squared, 1) * np.maximum(squared, 1) ** np.float32(-slope / 4)
    gain[squared > (coarsest / finest) ** 2] = 0
    field = scipy.fft.irfft2(spectrum * gain, s=padded)[: shape[0], : shape[1]]
    field -= field.mean()
    result: Array = (field / max(float(field.std()), 1e-9)).astype("float32")
    return result


def draw_landscape(rng: np.random.Generator, shape: tuple[int, int]) -> Landscape:
    """Draw a landscape of `shape` pixels; equal for equal generators and shapes. Sizes are in pixels of 10 m."""
    from scipy import ndimage

    rows, columns = shape
    y, x = np.mgrid[:rows, :columns].astype("float32")
    rough = noise(rng, shape, 2.9, 150, 4)
    smooth = noise(rng, shape, 3.4, 500, 12)
    moisture = 0.8 * noise(rng, shape, 2.4, 120) + 0.6 * rough
    white = rng.standard_normal(shape, dtype="float32")
    texture = ndimage.gaussian_filter(white, 0.6)
    texture /= max(float(texture.std()), 1e-9)

    river, wide = _river(rng, shape)
    hills = smooth + 1.6 * np.tanh(river / 350) - 0.6
    block, block_edge, theta = _blocks(rng, y, x)
    parcel, row_edge, lot, lot_edge = _parcels(rng, y, x, block, theta)
    chance = rng.random((8, TABLE), dtype="float32")

    # Woods are on hills and in odd corners; their borders follow those of the blocks, partly roughened.
    wooded = 0.75 * hills + 0.6 * rough + 1.7 * (chance[0][block] - 0.5) + 0.05 * texture
    wood = wooded > max(float(np.quantile(wooded, 0.68)), -0.5)
    wood |= (chance[1][parcel] < 0.02) & (wooded > np.quantile(wooded, 0.4))
    wood &= river > wide + 6
    clearing = wood & (chance[2][parcel] < 0.03)

    flood = river - wide
    meadow = (chance[3][parcel] < np.where(flood < 45, 0.55, 0.12)) | (chance[0][block] < 0.04)
    marsh = (flood < 26 + 14 * rough) & (moisture > 0.35) & (flood > 0)
    bars = noise(rng, shape, 2.5, 40, 6)
    gravel = (flood > 0) & (flood < 3.2) & (bars > 1.1)
    copse = (flood > 0.5) & (flood < 5) & (bars < 0.3)

    centres, town = _towns(rng, shape, river)
    urban = town * (1 + 0.3 * rough) + 0.3 * (chance[4][block] - 0.5) * (town > 0.15)
    built = (urban > 0.42) & (river > wide + 1)
    edge_of_town = (urban > 0.3) & (urban <= 0.42)
    works = built & (town < 0.75) & (chance[5][block] < 0.2)
    park = built & (chance[6][parcel] < 0.05) & ~works

    cover = np.full(shape, LAND_COVER["cropland"], "uint8")
    cover[meadow | edge_of_town & (chance[7][parcel] < 0.45)] = LAND_COVER["grassland"]
    cover[wood] = LAND_COVER["tree_cover"]
    cover[clearing] = LAND_COVER["grassland"]
    cover[marsh] = LAND_COVER["wetland"]
    cover[built] = LAND_COVER["built_up"]
    cover[park] = LAND_COVER["grassland"]
    cover[copse] = LAND_COVER["tree_cover"]
    cover[gravel] = LAND_COVER["bare"]
    ponds, shores = _ponds(rng, flood, built)
    cover[shores] = LAND_COVER["bare"]
    water = (flood <= 0) | ponds
    cover[water] = LAND_COVER["water"]

    # Farm roads and hedges follow the borders of blocks, tracks cross them, streets run between the lots of a town.
    border = chance[5][block]
    lane = np.clip(1.0 - block_edge, 0, 1) * (0.35 + 0.5 * chance[2][block]) * (border > 0.45)
    track = np.maximum(lane, np.clip(0.9 - row_edge, 0, 1) * 0.5 * (chance[1][block] < 0.35))
    track *= ~(built | water | marsh) * np.where(wood, np.float32(0.35), np.float32(1))
    hedge = np.maximum(np.clip(1.6 - block_edge, 0, 1) * (border < 0.3), (white > 3.1) * np.float32(0.8))
    hedge *= ~(built | water | wood)
    road = _roads(rng, shape, centres)
    road = np.maximum(
        np.where(ponds, 0, np.where(flood <= 0, road * (road > 0.6), road)), (lot_edge < 0.6) * built * 0.75
    )
    house = noise(rng, shape, 0.4, 12, 2)
    dense = 0.2 + 0.6 * smoothstep(0.42, 1.15, urban) + 0.34 * (chance[0][block] - 0.5) + 0.17 * house
    sealed = np.where(works, 0.95, np.clip(dense, 0, 1))
    tiles = np.clip(0.1 + 0.5 * chance[3][lot] + 0.13 * house + 0.1 * texture, 0, 0.8)
    roof = np.where(works, np.where(chance[7][lot] > 0.6, 0.86 + 0.14 * chance[6][lot], 0.15), tiles)

    steep = 40 * np.clip(hills - 0.1, 0, 1.5) / 1.5 * (1 - smoothstep(0, 0.3, urban))
    height = ndimage.gaussian_filter(noise(rng, shape, 3.4, 180, 6), 1.5) * steep
    dy, dx = np.gradient(height)
    shade = np.clip(1 - 0.16 * (0.87 * dy + 0.5 * dx), 0.45, 1.5)
    return Landscape(
        land_cover=cover,
        parcel=parcel,
        conifer=smoothstep(-0.4, 0.5, 0.5 * rough + 0.8 * hills + 1.6 * (chance[2][block] - 0.7)),
        sealed=sealed.astype("float32"),
        roof=roof.astype("float32"),
        road=road.astype("float32"),
        track=track.astype("float32"),
        hedge=hedge.astype("float32"),
        depth=np.where(ponds, 0.8, np.clip(-flood / 5, 0, 0.35)).astype("float32"),
        moisture=moisture,
        texture=texture,
        shade=shade.astype("float32"),
    )


def _hash(*parts: Array | int) -> Array:
    """Hash several integers to 16 well-mixed bits."""
    h: Array = np.array(0x9E3779B9, "uint32")
    for part in parts:
        h = (h ^ np.asarray(part).astype("int32").view("uint32")) * np.uint32(0x85EBCA6B)
        h = h ^ (h >> np.uint32(13))
    h = h * np.uint32(0xC2B2AE35)
    result: Array = ((h ^ (h >> np.uint32(16))) & np.uint32(TABLE - 1)).astype("uint16")
    return result


def _blocks(rng: np.random.Generator, y: Array, x: Array) -> tuple[Array, Array, Array]:
    """Return cells of a jittered lattice: hash of the cell, distance to its border, and orientation by hash."""
    turn = rng.uniform(0, np.pi)
    u = np.float32(np.cos(turn) / 82) * x + np.float32(np.sin(turn) / 82) * y
    v = np.float32(np.cos(turn) / 56) * y - np.float32(np.sin(turn) / 56) * x
    jitter = rng.uniform(0.12, 0.88, (2, TABLE)).astype("float32")
    i, j = np.floor(u).astype("int32"), np.floor(v).astype("int32")
    u -= i
    v -= j
    nearest = np.full(u.shape, np.inf, "float32")
    second = nearest.copy()
    block = np.zeros(u.shape, "uint16")
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            cell = _hash(i + di, j + dj)
            distance = (jitter[0][cell] + di - u) ** 2 + (jitter[1][cell] + dj - v) ** 2
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            block = np.where(closer, cell, block)
            nearest = np.minimum(nearest, distance)
    theta = (turn + rng.normal(0, 0.3, TABLE) + np.pi / 2 * (rng.random(TABLE) < 0.35)).astype("float32")
    return block, (np.sqrt(second) - np.sqrt(nearest)) * np.float32(34), theta


def _parcels(
    rng: np.random.Generator, y: Array, x: Array, block: Array, theta: Array
) -> tuple[Array, Array, Array, Array]:
    """Return parcels across each block (hash, distance to the end), and building lots (hash, distance)."""
    width = rng.uniform(4.5, 15, TABLE).astype("float32")
    length = rng.uniform(18, 55, TABLE).astype("float32")
    start = rng.uniform(0, 60, TABLE).astype("float32")
    cosine, sine = np.cos(theta)[block], np.sin(theta)[block]
    u, v = cosine * x + sine * y, cosine * y - sine * x
    along = (u + start[block]) / length[block]
    row = np.floor(along).astype("int32")
    lane = _hash(block, row)
    strip = np.floor((v + start[lane]) / width[lane]).astype("int32")
    # A third of the strips belong to their neighbour, so that widths vary.
    joined = rng.random(TABLE, dtype="float32") < 0.33
    parcel = _hash(lane, strip - joined[_hash(lane, strip)])
    row_edge = np.abs(along - np.round(along)) * length[block]
    u, v = u / np.float32(11), v / np.float32(7)
    lot = _hash(block, np.floor(u), np.floor(v))
    lot_edge = np.minimum(np.abs(u - np.round(u)) * 11, np.abs(v - np.round(v)) * 7)
    return parcel, row_edge, lot, lot_edge


def _river(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Return the distance (pixels) of every pixel to the middle of a meandering river, and half its width there."""
    from scipy import ndimage

    extent = float(max(shape))
    steps = np.arange(int(8 * extent) + 400) * 0.5
    waves = sum(
        a * np.sin(2 * np.pi * steps / w + rng.uniform(0, 2 * np.pi)) for a, w in ((0.95, 150), (0.45, 330), (0.35, 71))
    )
    main = rng.uniform(-0.5, 0.5) + (np.pi / 2 if rng.random() < 0.4 else 0)
    heading = main + waves
    path = np.cumsum(0.5 * np.stack([np.sin(heading), np.cos(heading)]), axis=1)
    # Through the middle of the image, or near it.
    middle = np.array(shape) * (0.5 + rng.uniform(-0.12, 0.12, 2))
    path += (middle - path[:, path.shape[1] // 2])[:, None]
    margin = 40
    canvas = np.ones((shape[0] + 2 * margin, shape[1] + 2 * margin), bool)
    i, j = (np.round(path) + margin).astype(int)
    inside = (i >= 0) & (i < canvas.shape[0]) & (j >= 0) & (j < canvas.shape[1])
    canvas[i[inside], j[inside]] = False
    distance = ndimage.distance_transform_edt(canvas).astype("float32")[margin:-margin, margin:-margin]
    half = 2.6 + 0.5 * noise(rng, shape, 2.5, 90, 8)
    return distance, np.maximum(half, 1.6)


def _towns(rng: np.random.Generator, shape: tuple[int, int], river: Array) -> tuple[list[tuple[float, float]], Array]:
    """Return the centres of a town and of villages, and the density of settlement (1 at a centre)."""
    extent = min(shape)
    y, x = (a.astype("float32") for a in np.ogrid[: shape[0], : shape[1]])
    count = 1 + int(shape[0] * shape[1] / 1.1e5)
    centres: list[tuple[float, float]] = []
    density = np.zeros(shape, "float32")
    for k in range(count):
        places = rng.uniform(0.06, 0.94, (40, 2)) * np.array(shape)
        if k == 0:
            places = np.array(shape) * rng.uniform(0.3, 0.7, (40, 2))
        apart = [min((np.hypot(*(p - np.array(c))) for c in centres), default=extent) for p in places]
        banks = [float(river[int(p[0]), int(p[1])]) for p in places]
        score = [min(a, extent / 3) - 2.0 * abs(b - (30 if k == 0 else 60)) for a, b in zip(apart, banks, strict=True)]
        cy, cx = places[int(np.argmax(score))]
        centres.append((float(cy), float(cx)))
        radius = min(extent * 0.16, 85.0 if k == 0 else rng.uniform(16, 34))
        stretch, turn = rng.uniform(0.6, 1.0), rng.uniform(0, np.pi)
        reach = int(3 * radius) + 1
        window = slice(max(0, int(cy) - reach), int(cy) + reach), slice(max(0, int(cx) - reach), int(cx) + reach)
        dy, dx = y[window[0]] - np.float32(cy), x[:, window[1]] - np.float32(cx)
        u = np.float32(np.cos(turn)) * dx + np.float32(np.sin(turn)) * dy
        v = (np.float32(np.cos(turn)) * dy - np.float32(np.sin(turn)) * dx) / np.float32(stretch)
        bulk = np.float32(1.35 if k == 0 else 0.95) * np.exp(-(u * u + v * v) / np.float32(radius**2))
        density[window] = np.maximum(density[window], bulk)
    return centres, density


def _ponds(rng: np.random.Generator, flood: Array, built: Array) -> tuple[Array, Array]:
    """Return gravel pits beside the river, as rounded rectangles, and their bare shores."""
    ponds, shores = np.zeros(flood.shape, bool), np.zeros(flood.shape, bool)
    near = np.argwhere((flood > 25) & (flood < 60) & ~built)
    for _ in range(round(flood.size / 1.8e5) if len(near) else 0):
        cy, cx = near[rng.integers(len(near))]
        turn, a = rng.uniform(0, np.pi), rng.uniform(8, 20)
        b = a * rng.uniform(0.45, 0.9)
        window = (
            slice(max(0, cy - 32), min(cy + 33, flood.shape[0])),
            slice(max(0, cx - 32), min(cx + 33, flood.shape[1])),
        )
        y, x = np.mgrid[window]
        u = np.cos(turn) * (x - cx) + np.sin(turn) * (y - cy)
        v = np.cos(turn) * (y - cy) - np.sin(turn) * (x - cx)
        ragged = (np.abs(u / a) ** 4 + np.abs(v / b) ** 4) ** 0.25 + 0.05 * np.sin(u / 2.3) * np.cos(v / 1.9)
        ponds[window] |= ragged < 1
        shores[window] |= ragged < 1 + 1.7 / a
    return ponds, shores & ~built


def _roads(rng: np.random.Generator, shape: tuple[int, int], centres: list[tuple[float, float]]) -> Array:
    """Return the cover of main roads: from village to town, and one trunk road across."""
    cover = np.zeros(shape, "float32")
    town = np.array(centres[0])
    for centre in centres[1:]:
        nearer = [c for c in centres if c != centre and np.hypot(*(town - c)) < np.hypot(*(town - np.array(centre)))]
        goal = min(nearer, key=lambda c: np.hypot(*(np.array(c) - centre)), default=centres[0])
        _curve(rng, cover, np.array(centre), np.array(goal), 0.75)
    side = rng.random() < 0.5
    far = np.array([shape[0] - 1.0, shape[1] - 1.0])
    ends = [np.array([rng.uniform(0.2, 0.8) * far[0], 0]), np.array([rng.uniform(0.2, 0.8) * far[0], far[1]])]
    ends = [e[::-1] / far[::-1] * far for e in ends] if side else ends
    _curve(rng, cover, ends[0], ends[1], 1.0, lanes=2)
    return np.clip(cover, 0, 1)


def _curve(rng: np.random.Generator, cover: Array, start: Array, end: Array, strength: float, lanes: int = 1) -> None:
    """Draw a gently bent road into `cover`, antialiased."""
    length = float(np.hypot(*(end - start)))
    normal = np.array([end[1] - start[1], start[0] - end[0]]) / max(length, 1e-6)
    t = np.linspace(0, 1, int(length * 4) + 2)[:, None]
    bend = normal * length * (rng.normal(0, 0.1) * np.sin(np.pi * t) + rng.normal(0, 0.035) * np.sin(3 * np.pi * t))
    drawn = np.zeros_like(cover)
    for lane in range(lanes):
        path = start + (end - start) * t + bend + normal * (2.2 * lane)
        corner = np.floor(path).astype(int)
        part = path - corner
        for di in (0, 1):
            for dj in (0, 1):
                weight = np.abs(1 - di - part[:, 0]) * np.abs(1 - dj - part[:, 1])
                i, j = corner[:, 0] + di, corner[:, 1] + dj
                inside = (i >= 0) & (i < cover.shape[0]) & (j >= 0) & (j < cover.shape[1])
                np.maximum.at(drawn, (i[inside], j[inside]), (weight[inside] * 1.6).astype("float32"))
    np.maximum(cover, np.clip(drawn, 0, 1) * strength, out=cover)


# --- surfaces through the year ---


BANDS = WAVELENGTH_BANDS

# Typical bottom-of-atmosphere reflectance x 10000 of surfaces, in the order of BANDS.
SPECTRA: Mapping[str, tuple[int, ...]] = {
    "clear_water": (330, 400, 230, 190, 130, 120, 100, 90, 50, 40),
    "river": (470, 650, 500, 460, 290, 270, 220, 200, 100, 70),
    "broadleaved": (230, 430, 240, 680, 2250, 2850, 3050, 3250, 1550, 690),
    "leafless": (380, 520, 590, 780, 1150, 1300, 1420, 1550, 1800, 1150),
    "conifer": (170, 290, 190, 420, 1220, 1500, 1620, 1730, 800, 380),
    "grass": (370, 710, 480, 1090, 2350, 2800, 3000, 3200, 2150, 1180),
    "dry_grass": (620, 900, 1000, 1450, 2000, 2200, 2400, 2550, 2950, 1950),
    "crop": (290, 600, 300, 900, 2900, 3800, 4100, 4300, 1850, 850),
    "flower": (580, 1330, 1180, 1720, 2950, 3500, 3750, 3900, 2000, 1050),
    "straw": (820, 1180, 1560, 1960, 2300, 2500, 2700, 2850, 3500, 2550),
    "soil": (720, 960, 1260, 1460, 1640, 1800, 1950, 2100, 2750, 2350),
    "reed": (340, 560, 440, 900, 1650, 1950, 2100, 2250, 1600, 880),
    "gravel": (1350, 1680, 1950, 2100, 2200, 2300, 2380, 2450, 2850, 2550),
    "roof": (1150, 1380, 1850, 2050, 2200, 2300, 2420, 2450, 2600, 2350),
    "hall": (2700, 2900, 3050, 3150, 3200, 3250, 3300, 3300, 3250, 2950),
    "asphalt": (880, 970, 1040, 1110, 1190, 1240, 1290, 1310, 1400, 1300),
    "garden": (390, 650, 520, 1000, 2050, 2450, 2650, 2800, 1900, 1080),
    "cloud": (7200, 7100, 7050, 7100, 7150, 7150, 7150, 7100, 4800, 3700),
}


@dataclass(frozen=True)
class Crop:
    """Course of a crop through the year; days of the year."""

    share: float
    emerges: float
    closes: float
    ripens: float
    harvested: float
    flowers: tuple[float, float] = (0, 0)


# Winter cereals, rapeseed, maize, beets and soy, sunflower, lucerne; their shares add up to 1.
CROPS = (
    Crop(0.40, 60, 115, 172, 196),
    Crop(0.14, 50, 95, 158, 186, flowers=(108, 138)),
    Crop(0.24, 138, 188, 250, 275),
    Crop(0.10, 130, 182, 262, 295),
    Crop(0.06, 135, 180, 235, 260, flowers=(186, 208)),
    Crop(0.06, 40, 100, 330, 350),
)


@dataclass(frozen=True)
class Season:
    """Spectra of all parcels on a day of the year."""

    fields: Array
    """(2 TABLE, 10) reflectance x 10000 by the parcel's hash: first as cropland, then as grassland."""
    by_moisture: Array
    """(2 TABLE, 10) its change with one standard deviation of moisture."""
    leaf: float
    """0 bare to 1 leafy; of broadleaved trees."""

    @classmethod
    def of(cls, day: int, seed: int) -> Season:
        """Return the spectra on `day` of the year; a parcel keeps its crop and pace on all days of a seed."""
        now = np.asarray(day, "float32")
        fields, by_moisture = _fields(now, np.random.default_rng((seed, 0xF1E1D)))
        leaf = smoothstep(98, 132, now) * (1 - smoothstep(280, 315, now))
        return cls(fields, by_moisture, float(leaf))


def _fields(day: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    pick = rng.choice(len(CROPS), TABLE, p=[c.share for c in CROPS])
    late, dark, vigour, tillage, mown = rng.random((5, TABLE), dtype="float32")

    def course(name: str) -> Array:
        days: Array = np.array([getattr(c, name) for c in CROPS], "float32")[pick]
        days += 16 * (late - 0.5)
        return days

    def step(start: Array, end: Array) -> Array:
        return smoothstep(0, 1, np.asarray((day - start) / (end - start)))

    ripe = step(course("ripens") - 14, course("ripens") + 8)
    green = step(course("emerges"), course("closes")) * (1 - ripe) * (0.8 + 0.2 * vigour)
    ploughed = step(course("harvested") + 6, course("harvested") + 25) * (tillage < 0.6)
    straw = ripe * (1 - 0.45 * step(course("harvested") - 2, course("harvested") + 2)) * (1 - ploughed)
    flowering = np.array([c.flowers for c in CROPS], "float32")[pick]
    begin, end = flowering[:, 0] + 16 * (late - 0.5), flowering[:, 1] + 16 * (late - 0.5)
    flower = step(begin, begin + 9) * (1 - step(end - 9, end)) * (flowering[:, 0] > 0)
    soil = 1 - green - straw
    spectrum = {k: np.array(v, "float32") for k, v in SPECTRA.items()}
    ground = spectrum["soil"] * (0.62 + 0.6 * dark)[:, None]
    stalks = spectrum["straw"] * (0.8 + 0.3 * vigour)[:, None]
    plant = spectrum["crop"] + flower[:, None] * (spectrum["flower"] - spectrum["crop"])
    plant *= 0.88 + 0.24 * vigour[:, None]
    cropland = green[:, None] * plant + straw[:, None] * stalks + soil[:, None] * ground
    # Moist soil is darker; a moist stand is denser, so redder light is absorbed and more infrared reflected.
    denser = np.array([-0.10, -0.06, -0.14, -0.05, 0.03, 0.06, 0.07, 0.07, -0.05, -0.10], "float32")
    by_moisture = -0.13 * soil[:, None] * ground + green[:, None] * denser * plant

    summer = smoothstep(165, 225, day) * (1 - smoothstep(255, 290, day))
    dry = np.clip(0.75 * summer * (0.35 + vigour) + 0.7 * (np.mod(day / 45 + mown, 1) < 0.22) * (mown < 0.8), 0, 1)
    grassland = spectrum["grass"] + dry[:, None] * (spectrum["dry_grass"] - spectrum["grass"])
    grassland *= 0.85 + 0.3 * late[:, None]
    return np.concatenate([cropland, grassland]), np.concatenate([by_moisture, 0.7 * denser * grassland])


class Surfaces:
    """Reflectance of a landscape, without sky; quantities that days and bands share are computed once."""

    def __init__(self, landscape: Landscape) -> None:
        self.landscape = landscape
        cover, moisture = landscape.land_cover, np.clip(landscape.moisture, -2.5, 2.5)
        self.moisture = moisture
        self.parcel = landscape.parcel + (cover == LAND_COVER["grassland"]) * np.int32(TABLE)
        self.where = {name: np.nonzero(cover == LAND_COVER[name]) for name in LAND_COVER}
        woods, town, reeds = (self.where[k] for k in ("tree_cover", "built_up", "wetland"))
        self.conifer, self.depth = landscape.conifer[woods], landscape.depth[self.where["water"]]
        self.crowns = (1 + 0.09 * landscape.texture[woods]) * (1 + 0.05 * moisture[woods])
        self.sealed, self.roof = landscape.sealed[town], landscape.roof[town]
        self.walls = 1 + 0.1 * landscape.texture[town]
        self.stems = (1 + 0.12 * landscape.texture[reeds]) * (1 - 0.14 * moisture[reeds])
        self.stones = 1 + 0.12 * landscape.texture[self.where["bare"]]
        self.lit = np.where(cover == LAND_COVER["water"], np.float32(1), landscape.shade)

    def reflect(self, season: Season, band: str) -> Array:
        """Return reflectance x 10000 of one band, float32 (rows, columns)."""
        k = BANDS.index(band)
        of = {name: np.float32(s[k]) for name, s in SPECTRA.items()}
        value: Array = season.fields[:, k][self.parcel] + season.by_moisture[:, k][self.parcel] * self.moisture
        broad = of["leafless"] + np.float32(season.leaf) * (of["broadleaved"] - of["leafless"])
        hard = of["asphalt"] + self.roof * (of["roof"] - of["asphalt"])
        hard = np.where(self.roof > 0.85, of["hall"] * (4 * self.roof - 3), hard) * self.walls
        value[self.where["tree_cover"]] = (broad + self.conifer * (of["conifer"] - broad)) * self.crowns
        value[self.where["built_up"]] = of["garden"] + self.sealed * (hard - of["garden"])
        value[self.where["wetland"]] = of["reed"] * self.stems
        value[self.where["bare"]] = of["gravel"] * self.stones
        value[self.where["water"]] = of["river"] + self.depth * (of["clear_water"] - of["river"])
        value += self.landscape.hedge * (broad - value)
        value += self.landscape.road * (of["asphalt"] - value)
        value += self.landscape.track * (0.5 * (of["gravel"] + of["soil"]) - value)
        value *= self.lit
        return value
