"""Draw embeddings and the maps made of them with matplotlib (`plot`): legend, date, model, north and scale in one call.

Where a map is larger than a picture, every n-th row and column is drawn: no class is averaged away, and a lazy map
costs what its blocks cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from deo_cube import arguments
from deo_cube.constants import SCL_INVALID, Attribute
from deo_cube.cube import georeference
from deo_cube.cube.bands import match_bands
from deo_cube.cube.categories import Categories, own_classes, read_categories
from deo_cube.cube.georeference import BAND_DIMS, ground_resolution
from deo_cube.cube.times import read_times
from deo_cube.errors import ArgumentError, ArgumentTypeError, DeoCubeError, MissingCRSError
from deo_cube.extras import require
from deo_cube.heads.classes import Classes
from deo_cube.heads.pca import pca_rgb
from deo_cube.heads.vectors import geobox, select_time, spatial_dims

__all__ = ["plot"]

Array = NDArray[Any]

TRUE_COLOUR = "true colour"
"""Name of the red, green and blue of a cube of bands."""
PIXELS = 1600
"""Largest number of rows and of columns that are drawn."""
RANGE = 400
"""Largest number of rows and of columns from which the range of true colour is found."""
PANELS = 16
"""Largest number of dates in one figure."""
#: Colours without a stated meaning: values from 0 to 1, and those with a sign.
SEQUENTIAL, MISSING = "viridis", "#d9d9d9"


def plot(
    array: xr.DataArray,
    *,
    time: Any = None,
    ax: Any = None,
    title: str | None = None,
    legend: bool = True,
    scale: bool = True,
    cmap: Any = None,
    vmin: float | None = None,
    vmax: float | None = None,
    height: float = 5.0,
) -> Any:
    """Draw a cube in true colour, or embeddings, classes, probabilities, similarity or change as a map.

    Parameters
    ----------
    array : DataArray or Dataset
        A cube with the bands B04, B03 and B02, drawn in true colour; embeddings, drawn as the colours of `pca_rgb`; a
        map of classes; probabilities (class, y, x), of which the most probable class is drawn, paler where it is less
        probable; colours (band, y, x); or any map (y, x). With `time` or without.
    time : label, optional
        Date to draw, as in `sel`: "2024-06-05", or "2024-06" where that is one date. Default: every date, one panel
        each.
    ax : matplotlib Axes, optional
        Default: new axes.
    title : str, optional
        Default: date and model.
    legend : bool
        Draw the names of the classes, or the colour bar.
    scale : bool
        Draw a scale bar and an arrow to the north, where the array has a CRS.
    cmap, vmin, vmax : optional
        Colour map and range of a map of numbers. Default: "viridis", from the 2nd to the 98th percentile. For true
        colour the values that are black and white, in the units of the cube; by default these percentiles of the three
        bands and all dates that are drawn, without what `SCL` marks as clouds.
    height : float
        Height of a panel in inches.

    Returns
    -------
    matplotlib.axes.Axes, or array of them where there are several dates

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    ArgumentError, ArgumentTypeError
        For anything that is not a map, and for more than 16 dates.

    Examples
    --------
    >>> import deo_cube
    >>> emb = deo_cube.synthetic_cube(size=128, times=1).deo.embed()
    >>> ax = emb.deo.plot()
    >>> ax.get_title().endswith("tiny")
    True
    """
    plt = require("matplotlib.pyplot", extra="viz", purpose="plot")
    legend, scale = arguments.boolean("legend", legend), arguments.boolean("scale", scale)
    height = arguments.number("height", height, above=0)
    if title is not None and not isinstance(title, str):
        raise ArgumentTypeError(f"title must be text, got {title!r:.60}")
    if ax is not None and not hasattr(ax, "imshow"):
        raise ArgumentTypeError(f"ax must be Axes of matplotlib, got {type(ax).__name__}")
    array = _map_of(array)
    if time is not None and "time" in array.dims:
        array = _one_time(array, time)
    if "time" in array.dims and array.sizes["time"] == 1:
        array = array.isel(time=0)
    if array.name == TRUE_COLOUR and array.sizes.get("time", 1) <= PANELS:
        array = _stretched(array, vmin, vmax)
    if "time" not in array.dims:
        if ax is None:
            _, ax = plt.subplots(figsize=_figure_size(array, height, legend), layout="constrained")
        return _draw(array, ax, title, legend, scale, cmap, vmin, vmax)
    count = array.sizes["time"]
    if ax is not None:
        raise ArgumentError(f"ax is for one date, the array has {count}: choose with time=, or leave ax out")
    if count > PANELS:
        raise ArgumentError(
            f"plot draws at most {PANELS} dates, the array has {count}: choose with time=, or .isel(time=...)"
        )
    columns = min(count, 4)
    width, tall = _figure_size(array, height if count == 1 else 0.7 * height, False)
    rows = -(-count // columns)
    _, axes = plt.subplots(rows, columns, figsize=(columns * width, rows * tall), layout="constrained", squeeze=False)
    if vmin is None and vmax is None and _is_numbers(array):
        vmin, vmax = _range(_thinned(array).compute().values)  # one range for all dates
    for i, one in enumerate(axes.ravel()):
        if i >= count:
            one.set_axis_off()
            continue
        last = i == count - 1
        _draw(array.isel(time=i), one, title, legend and last, scale and last, cmap, vmin, vmax)
    return axes.ravel()[:count]


def _map_of(array: Any) -> xr.DataArray:
    """Return the array that is drawn: of a cube red, green and blue, of another Dataset its only map."""
    if (colours := _true_colour(array)) is not None:
        return colours
    if isinstance(array, xr.Dataset):
        maps = [n for n, v in array.data_vars.items() if v.ndim >= 2]
        if "embeddings" in maps:
            array = array["embeddings"]
        elif len(maps) == 1:
            array = array[maps[0]]
        else:
            raise ArgumentTypeError(
                f"array must be one map, got a Dataset of {[str(n) for n in maps][:6]}: pass one of them"
            )
    if not isinstance(array, xr.DataArray):
        raise ArgumentTypeError(f"array must be a DataArray, got {type(array).__name__}")
    drawn: xr.DataArray = own_classes(array)
    y, x = spatial_dims(drawn)
    others = [str(d) for d in drawn.dims if d not in (y, x, "time", "embedding", "class", "band")]
    if others or sum(d in drawn.dims for d in ("embedding", "class", "band")) > 1:
        raise ArgumentError(
            f"array must be a map (time, y, x) or one with vectors, classes or colours; got {drawn.dims}"
        )
    if "band" in drawn.dims and drawn.sizes["band"] not in (1, 3, 4):
        raise ArgumentError(
            f"a map of colours has 3 bands, the array has {drawn.sizes['band']}: choose, .isel(band=[2, 1, 0])"
        )
    if drawn.dtype.kind not in "biuf":
        raise ArgumentError(f"array must hold numbers, got dtype {drawn.dtype}")
    return drawn


def _true_colour(cube: Any) -> xr.DataArray | None:
    """Return red, green and blue of a cube of Sentinel-2 bands (time, band, y, x), NaN where it has no data.

    None for what is not a cube, for three bands of floats or bytes, which are colours already, and for cubes without
    one of the three. The coordinate `cloud` is True where `SCL` marks clouds.
    """
    stacked = isinstance(cube, xr.DataArray) and any(d in cube.dims for d in BAND_DIMS)
    if not stacked and not isinstance(cube, xr.Dataset):
        return None
    try:
        match = match_bands(cube, ("B04", "B03", "B02"), model=TRUE_COLOUR)
    except DeoCubeError:
        return None
    if isinstance(cube, xr.DataArray) and cube.sizes[match.band_dim] <= 4 and cube.dtype.kind == "f":
        return None
    layers = [cube[str(v)] for v in match.variables] if isinstance(cube, xr.Dataset) else [cube]
    colours = match.stack(cube)
    if colours.dtype.kind not in "iuf" or colours.dtype == np.uint8:
        return None
    # The marks of no data that the bands state, and 0 in all three, which is the mark of most archives.
    stated = (v.attrs.get(k, v.encoding.get(k)) for v in layers for k in ("_FillValue", "nodata", "missing_value"))
    absent = (colours == 0).all("band")
    for mark in {float(m) for m in stated if isinstance(m, int | float | np.number)}:
        absent = absent | (colours == mark).any("band")
    colours = colours.astype("float32").where(~absent)
    if match.scl is not None and isinstance(cube, xr.Dataset) and set(cube[match.scl].dims) <= set(colours.dims):
        cloud = cube[match.scl].isin(SCL_INVALID)
        colours = colours.assign_coords(cloud=cloud.variable)
    time = georeference.dims(colours).time
    named = colours.rename({time: "time"}) if time and time != "time" else colours
    return named.assign_coords(band=["red", "green", "blue"]).rename(TRUE_COLOUR).drop_attrs(deep=False)


def _stretched(colours: xr.DataArray, vmin: float | None, vmax: float | None) -> xr.DataArray:
    """Return colours from 0 to 1: one range for all bands and dates, so that they can be compared."""
    if vmin is None or vmax is None:
        sample = colours.isel({d: slice(None, None, -(-colours.sizes[d] // RANGE)) for d in spatial_dims(colours)})
        if "cloud" in sample.coords:
            clear = sample.where(~sample["cloud"]).compute()
            sample = clear if clear.notnull().any() else sample
        low, high = _range(sample.compute().values)
        vmin, vmax = low if vmin is None else vmin, high if vmax is None else vmax
    plain = colours.drop_vars("cloud", errors="ignore")
    scaled: xr.DataArray = ((plain - vmin) / max(vmax - vmin, 1e-9)).clip(0, 1)
    return scaled.rename(TRUE_COLOUR)


def _one_time(array: xr.DataArray, time: Any) -> xr.DataArray:
    """Return the date with a label. Maps are not averaged as vectors are."""
    if "embedding" in array.dims:
        return select_time(array, time)
    try:
        chosen = array.sel(time=time)
    except (KeyError, TypeError, ValueError) as error:
        known = ", ".join(_date(array.isel(time=i)) for i in range(min(array.sizes["time"], 6)))
        raise ArgumentError(f"time must be a label of the array, got {time!r}; it has {known}") from error
    return chosen if isinstance(chosen, xr.DataArray) else array


def _thinned(array: xr.DataArray) -> xr.DataArray:
    """Return every n-th row and column, so that at most `PIXELS` are drawn along a side."""
    return array.isel({d: slice(None, None, -(-array.sizes[d] // PIXELS)) for d in spatial_dims(array)})


def _is_numbers(array: xr.DataArray) -> bool:
    return read_categories(array) is None and not {"embedding", "class", "band"} & set(array.dims)


def _draw(
    array: xr.DataArray,
    ax: Any,
    title: str | None,
    legend: bool,
    scale: bool,
    cmap: Any,
    vmin: float | None,
    vmax: float | None,
) -> Any:
    y, x = spatial_dims(array)
    box = _box(array)
    extent, aspect = _extent(array, box, y, x)
    attrs = array.attrs
    thinned = _thinned(pca_rgb(array) if "embedding" in array.dims else array)
    categories = read_categories(array)
    if categories is not None:
        codes = thinned.transpose(y, x).compute().values
        ax.imshow(_painted(codes, categories), extent=extent, interpolation="nearest")
        if legend:
            _key(ax, categories, np.unique(codes))
    elif "class" in array.dims:
        values = thinned.transpose("class", y, x).compute().values
        classes = _classes_of(array)
        best = np.nan_to_num(values, nan=-1).argmax(axis=0)
        painted = _painted(best, classes)
        painted[..., 3] = np.where(np.isfinite(values).all(axis=0), np.nan_to_num(values.max(axis=0)).clip(0, 1), 0)
        ax.imshow(painted, extent=extent, interpolation="nearest")
        if legend:
            _key(ax, classes, np.unique(best))
    elif "band" in thinned.dims and thinned.sizes["band"] >= 3:
        ax.imshow(_colours(thinned.transpose(y, x, "band").compute().values), extent=extent, interpolation="nearest")
    else:
        values = thinned.squeeze(drop=True).transpose(y, x).compute().values.astype("float64")
        fill = attrs.get("_FillValue")
        if fill is not None and np.isfinite(fill):
            values = np.where(values == fill, np.nan, values)
        low, high = _range(values)
        image = ax.imshow(
            values, extent=extent, interpolation="nearest", cmap=cmap or SEQUENTIAL,
            vmin=low if vmin is None else vmin, vmax=high if vmax is None else vmax,
        )  # fmt: skip
        if legend:
            units = str(attrs.get("units", "1"))
            label = str(attrs.get("long_name", array.name or "")) + (f" [{units}]" if units not in ("", "1") else "")
            ax.figure.colorbar(image, cax=ax.inset_axes((1.02, 0.0, 0.03, 1.0)), label=label)
    ax.set_facecolor(MISSING)
    ax.set_aspect(aspect)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(_title(array) if title is None else title, fontsize="medium")
    if scale and box is not None:
        _scale_and_north(ax, box)
    return ax


def _painted(codes: Array, categories: Categories | Classes) -> Array:
    """Return (y, x, 4) colours of codes from 0 to 1, transparent where a code is not one of the classes."""
    colors = categories.colors or Classes(tuple(range(len(categories.codes))), categories.names).colors
    out = np.zeros((*codes.shape, 4), "float32")
    for code, color in zip(categories.codes, colors, strict=True):
        out[codes == code] = [*(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)), 1]
    return out


def _colours(values: Array) -> Array:
    """Return colours from 0 to 1 with transparency: floats as they are, integers stretched by their largest value."""
    values = values[..., :3].astype("float32") / (1 if values.dtype.kind == "f" else np.iinfo(values.dtype).max)
    there = np.isfinite(values).all(axis=-1)
    if there.any() and values[there].max() > 1 + 1e-6:
        low, high = np.percentile(values[there], [2, 98])
        values = (values - low) / max(high - low, 1e-12)
    return np.dstack([np.nan_to_num(values).clip(0, 1), there.astype("float32")])


def _classes_of(array: xr.DataArray) -> Classes:
    """Return the classes along the dimension `class`, numbered."""
    labels = array["class"].values if "class" in array.coords else range(array.sizes["class"])
    return Classes(tuple(range(array.sizes["class"])), tuple(str(v) for v in labels))


def _key(ax: Any, categories: Categories | Classes, present: Array) -> None:
    from matplotlib.patches import Patch

    colors = categories.colors or Classes(tuple(range(len(categories.codes))), categories.names).colors
    shown = set(present.tolist())
    entries = [
        Patch(facecolor=color, edgecolor="#00000040", label=name.replace("_", " "))
        for code, name, color in zip(categories.codes, categories.names, colors, strict=True)
        if code in shown
    ]
    if entries:
        ax.legend(handles=entries, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, borderaxespad=0.5)


def _range(values: Array) -> tuple[float, float]:
    there = values[np.isfinite(values)]
    low, high = np.percentile(there, [2, 98]) if there.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1e-6


def _box(array: xr.DataArray) -> GeoBox | None:
    try:
        return geobox(array)
    except (MissingCRSError, ArgumentError):
        return None


def _extent(array: xr.DataArray, box: GeoBox | None, y: str, x: str) -> tuple[tuple[float, float, float, float], float]:
    """Return left, right, bottom and top of the picture, and the aspect of its units."""
    if box is None:
        return (0, array.sizes[x], array.sizes[y], 0), 1.0
    t, (rows, columns) = box.transform, box.shape
    extent = (t.c, t.c + t.a * columns, t.f + t.e * rows, t.f)
    if not box.crs.geographic:
        return extent, 1.0
    middle = math.radians((extent[2] + extent[3]) / 2)
    return extent, 1 / max(math.cos(middle), 1e-3)


def _figure_size(array: xr.DataArray, height: float, legend: bool) -> tuple[float, float]:
    y, x = spatial_dims(array)
    box = _box(array)
    ratio = array.sizes[x] / array.sizes[y]
    if box is not None:
        dx, dy = ground_resolution(box)
        ratio *= dx / dy
    return height * min(max(ratio, 0.4), 3) + (1.8 if legend else 0.2), height + 0.3


def _date(array: xr.DataArray) -> str:
    if "time" not in array.coords or array["time"].ndim:
        return ""
    labels = read_times(xr.Variable(("time",), array["time"].values[None]))
    return str(labels.values[0])[:10] if labels.values is not None and labels.dated else str(array["time"].values)


def _title(array: xr.DataArray) -> str:
    attrs: Mapping[Any, Any] = array.attrs
    dates = _date(array)
    if "before" in attrs and "after" in attrs:
        dates = f"{attrs['before']} to {attrs['after']}"
    model = str(attrs.get(Attribute.MODEL_ALIAS, ""))
    head = str(attrs.get(Attribute.HEAD, ""))
    return " · ".join(part for part in (dates, model, f"{head} head" if head else "") if part)


def _scale_and_north(ax: Any, box: GeoBox) -> None:
    """Draw a bar of a round length on the ground, and an arrow to the north, over the picture's lower corners."""
    import matplotlib.patheffects as effects
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    t, columns = box.transform, box.shape[1]
    metres = ground_resolution(box)[0]
    length = _round_length(0.25 * columns * metres)
    label = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    outline = [effects.withStroke(linewidth=3, foreground="white")]
    bar = AnchoredSizeBar(
        ax.transData, length / metres * abs(t.a), label, "lower left", pad=0.5, sep=3, frameon=False, color="black",
        size_vertical=0, label_top=True,
    )  # fmt: skip
    bar.size_bar.get_children()[0].set(linewidth=2.5, path_effects=outline)
    bar.txt_label.get_children()[0].set_path_effects(outline)
    ax.add_artist(bar)
    east, north = _north(box)
    ax.annotate(
        "N", xy=(0.96, 0.05), xytext=(24 * east, 24 * north), xycoords="axes fraction", textcoords="offset points",
        ha="center", va="center", fontsize="medium", path_effects=outline, annotation_clip=False,
        arrowprops={"arrowstyle": "<|-", "color": "black", "linewidth": 1.5, "path_effects": outline,
                    "shrinkA": 1, "shrinkB": 0},
    )  # fmt: skip


def _north(box: GeoBox) -> tuple[float, float]:
    """Return the direction of true north at the middle of the grid, right and up, of length 1."""
    rows, columns = box.shape
    x, y = box.transform * (columns / 2, rows / 2)
    degrees = Transformer.from_crs(box.crs.proj, 4326, always_xy=True)
    lon, lat = degrees.transform(x, y)
    there = degrees.transform(lon, min(lat + 0.01, 89.99), direction="INVERSE")
    dx, dy = there[0] - x, there[1] - y
    size = math.hypot(dx, dy)
    if not math.isfinite(size) or size == 0:
        return 0.0, 1.0
    return dx / size, dy / size


def _round_length(metres: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is at most `metres`."""
    power: float = 10.0 ** math.floor(math.log10(max(metres, 1e-3)))
    return max(m * power for m in (1, 2, 5) if m * power <= metres * (1 + 1e-9))
