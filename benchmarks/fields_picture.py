"""Draw docs/img/fields.png and docs/img/seasons.png: `python -m benchmarks.fields_picture DATA`.

A year of monthly Sentinel-2 of Belgium (`cubes/belgium_monthly_2020-11_2021-10.nc`): bands and embeddings of eight
fields, and one vector per season and patch.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import geopandas as gpd
import matplotlib as mpl
import numpy as np
import shapely
from PIL import Image

import deo_cube

IMAGES = Path(__file__).parents[1] / "docs" / "img"
#: Outlines of fields, columns and rows of the cube.
FIELDS = (
    [(62, 4), (84, 2), (97, 24), (75, 28)],
    [(74, 40), (96, 30), (97, 55), (80, 60), (75, 50)],
    [(82, 61), (98, 58), (98, 75), (82, 77)],
    [(1, 62), (15, 62), (18, 70), (2, 79)],
    [(3, 84), (20, 77), (21, 80), (4, 89)],
    [(6, 93), (21, 86), (20, 97), (7, 97)],
    [(46, 15), (54, 13), (58, 26), (46, 29)],
    [(48, 64), (58, 60), (66, 69), (58, 73)],
)
OPTIONS: dict[str, Any] = {"offset": 0, "nodata": 65535}


def fields_of(cube: Any, crs: Any) -> gpd.GeoDataFrame:
    """The fields in the CRS of the cube, numbered from 1."""
    x0, y0 = float(cube.x[0]) - 5, float(cube.y[0]) + 5
    shapes = [shapely.Polygon([(x0 + 10 * c, y0 - 10 * r) for c, r in field]) for field in FIELDS]
    return gpd.GeoDataFrame(geometry=shapes, index=range(1, len(shapes) + 1), crs=crs)


def true_colour(cube: Any, month: str) -> Any:
    """Red, green and blue of a month, 0 to 1."""
    bands = cube[["S2-L2A-B04", "S2-L2A-B03", "S2-L2A-B02"]].sel(t=month).isel(t=0).to_dataarray("band")
    return (bands.transpose("y", "x", "band").values / 1800).clip(0, 1)


def draw_fields(cube: Any, emb: Any, plt: Any) -> None:
    """Draw NDVI of each field by month, and how alike the fields are over the year."""
    fields = fields_of(cube, emb.rio.crs)
    bands = deo_cube.sample(cube, fields, **OPTIONS)
    ndvi = (bands.sel(band="B08") - bands.sel(band="B04")) / (bands.sel(band="B08") + bands.sel(band="B04"))
    year = emb.deo.aggregate([("2020-11", "2021-10")]).deo.sample(fields).isel(time=0).compute()
    vectors = year.values - year.values.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    edges = [float(cube.x[0]) - 5, float(cube.x[-1]) + 5, float(cube.y[-1]) - 5, float(cube.y[0]) + 5]
    left.imshow(true_colour(cube, "2021-06"), extent=edges)
    colours = plt.get_cmap("tab10").colors
    for (number, field), colour in zip(fields.geometry.items(), colours, strict=False):
        left.plot(*field.exterior.xy, color=colour, lw=2)
        left.annotate(str(number), field.centroid.coords[0], color="w", weight="bold", ha="center", va="center")
        values = ndvi.sel(place=number)
        middle.plot(range(12), values, "o-", color=colour, ms=3, label=str(number))
    left.set(title="eight fields, June 2021")
    left.set_axis_off()
    middle.set_xticks(range(12), [str(t)[5:7] for t in bands.time.values])
    middle.set(title="NDVI of each field by month", xlabel="month, November 2020 to October 2021")
    image = right.imshow(vectors @ vectors.T, vmin=-1, vmax=1, cmap="RdBu_r")
    right.set_xticks(range(8), fields.index)
    right.set_yticks(range(8), fields.index)
    right.set(title="similarity of their vectors of the year")
    figure.colorbar(image, ax=right, shrink=0.8)
    _save(figure, "fields.png")


def draw_seasons(cube: Any, emb: Any, plt: Any) -> None:
    """Draw the vectors of each season in one set of colours, and the vectors of the year."""
    from deo_cube.heads.pca import fit_pca, pca_rgb

    seasons = emb.deo.aggregate("season").compute()
    year = emb.deo.aggregate([("2020-11", "2021-10")], how="median").compute()
    basis = fit_pca(seasons)
    figure, axes = plt.subplots(1, 6, figsize=(12, 2.5), layout="constrained")
    axes[0].imshow(true_colour(cube, "2021-06"))
    axes[0].set_title("true colour, June", fontsize=9)
    shown = [*(seasons.isel(time=i) for i in range(seasons.sizes["time"])), year.isel(time=0)][1:]
    for ax, one in zip(axes[1:], shown, strict=True):
        ax.imshow(pca_rgb(one, basis=basis).transpose("y", "x", "band"))
        start, end = (str(one[f"{k}_datetime"].values)[:7] for k in ("start", "end"))
        ax.set_title(f"{start} to {end}\n{int(one['count'].max())} of {int(one['dates'])} dates", fontsize=9)
    for ax in axes:
        ax.set_axis_off()
    _save(figure, "seasons.png")


def _save(figure: Any, name: str) -> None:
    figure.savefig(IMAGES / name, dpi=80)
    with Image.open(IMAGES / name) as image:
        small = image.convert("RGB").quantize(200)
    small.save(IMAGES / name, optimize=True)
    print(f"{IMAGES / name}: {(IMAGES / name).stat().st_size / 1000:.0f} kB")


def main(data: Path) -> None:
    """Draw both."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    cube = deo_cube.open_cube(data / "cubes" / "belgium_monthly_2020-11_2021-10.nc")
    emb = cube.deo.embed("tiny", missing="nearest", **OPTIONS).compute()
    draw_fields(cube, emb, plt)
    draw_seasons(cube, emb, plt)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
