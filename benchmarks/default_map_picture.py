"""Draw docs/img/default_map.png: python -m benchmarks.default_map_picture DATA.

True colour, the map of `segment()` and the probability of the drawn class at three places whose labels trained nothing,
on the dates shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import rasterio
import rioxarray
import xarray as xr
from PIL import Image

import deo_cube

OUT = Path(__file__).parents[1] / "docs" / "img" / "default_map.png"
PLACES = {
    "Boadella reservoir, Catalonia, June 2020": ("boadella/2020-06-21_L2A.tif", 384),
    "Laos and Thailand, February 2020": ("majortom/majortom_199U_1099R_20200223_L2A.tif", 384),
    "Punjab, Pakistan, August 2020": ("ssl4eo_pakistan/20200813_L2A.tif", 264),
}


def cube(path: Path, size: int) -> xr.DataArray:
    """The north-west corner of a GeoTIFF, bands by their descriptions."""
    with rasterio.open(path) as r:
        names = list(r.descriptions)
    array: Any = rioxarray.open_rasterio(path)
    corner: xr.DataArray = array.assign_coords(band=names).isel(x=slice(0, size), y=slice(0, size))
    return corner


def draw(data: Path, out: Path = OUT) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    figure, axes = plt.subplots(len(PLACES), 3, figsize=(10.5, 3.75 * len(PLACES)))
    for row, (title, (name, size)) in zip(axes, PLACES.items(), strict=True):
        pixels = cube(data / "places" / name, size)
        options: dict[str, Any] = {"units": "dn", "offset": 0, "nodata": 0}
        classes = deo_cube.segment(pixels, **options).squeeze(drop=True)
        shares = deo_cube.segment(pixels, probabilities=True, **options).squeeze(drop=True)
        rgb = pixels.sel(band=["B04", "B03", "B02"]).transpose("y", "x", "band").values.astype(float)
        low, high = np.percentile(rgb, (1, 98))
        row[0].imshow(np.clip((rgb - low) / (high - low), 0, 1))
        row[0].set_title(title, fontsize=10)
        colors = dict(zip(classes.attrs["flag_values"], classes.attrs["flag_colors"].split(), strict=True))
        drawn = np.ones((*classes.shape, 3))
        for code, color in colors.items():
            drawn[classes.values == code] = mpl.colors.to_rgb(color)
        row[1].imshow(drawn)
        row[1].set_title("segment()", fontsize=10)
        row[2].imshow(shares.max("class"), vmin=0.2, vmax=1)
        row[2].set_title("probability of the drawn class", fontsize=10)
        for axis in row:
            axis.axis("off")
    labels = [n.replace("_", " ") for n in classes.attrs["flag_meanings"].split()]
    handles = [Patch(color=c, label=n) for c, n in zip(colors.values(), labels, strict=True)]
    figure.legend(handles=handles, ncol=9, loc="lower center", fontsize=8)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(out, dpi=72)
    with_few_colours(Image.open(out).convert("RGB"), colors.values()).save(out, optimize=True)


def with_few_colours(image: Image.Image, kept: Iterable[str]) -> Image.Image:
    """Return an image of 256 colours, among which are those to be kept: pictures have few pixels of rare classes."""
    exact = [round(255 * v) for color in kept for v in mpl.colors.to_rgb(color)]
    found = image.quantize(256 - len(exact) // 3).getpalette()
    assert found is not None
    palette = Image.new("P", (1, 1))
    palette.putpalette(exact + found)
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
