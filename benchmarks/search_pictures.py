"""Draw docs/img/search.png and docs/img/mosaic.png: python -m benchmarks.search_pictures DATA.

The lagoon of Marano, 16 April 2019 (`scenes/aquileia_20190416_L2A.tif` of DATA): results of a search with one example,
and with counter-examples; two runs put side by side and their mosaic, compared with a single run.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from PIL import Image

import deo_cube

OUT = Path(__file__).parents[1] / "docs" / "img"
SCENE = "scenes/aquileia_20190416_L2A.tif"
OPTIONS: dict[str, Any] = {"units": "dn", "offset": 0, "nodata": 0}
EXAMPLE = (62, 97)
"""Row and column of a patch in a village."""
SETTLEMENTS = ((46, 78, 84, 116), (0, 14, 146, 184), (25, 50, 110, 136), (26, 40, 224, 248))
"""Rows and columns (first, stop, first, stop) of patches around villages: what a user would label as right."""
LABELLED, RESULTS = 40, 200


def true_colour(cube: xr.DataArray) -> Any:
    """Return red, green and blue, 0 to 1."""
    bands = cube.deo.match("tiny").indices[:3]
    rgb = np.moveaxis(np.asarray(cube.isel(band=list(bands)).values, float), 0, -1)
    return np.clip(rgb / 2500, 0, 1)


def extent(array: xr.DataArray) -> tuple[float, float, float, float]:
    """Return west, east, south and north."""
    west, south, east, north = array.rio.bounds()
    return west, east, south, north


def panel(axis: Any, rgb: Any, box: tuple[float, float, float, float], title: str) -> None:
    axis.imshow(rgb, extent=box, interpolation="nearest", aspect=1 / np.cos(np.deg2rad(45.7)))
    axis.set(title=title)
    axis.set_axis_off()


def in_settlements(found: Any) -> Any:
    """Return which rows of a result are within `SETTLEMENTS`."""
    inside = [found["row"].between(a, b - 1) & found["col"].between(c, d - 1) for a, b, c, d in SETTLEMENTS]
    return np.logical_or.reduce(inside)


def save(figure: Any, path: Path) -> None:
    """Write a picture with 128 colours, a third of the size."""
    figure.savefig(path, dpi=80)
    # Median cut would give the few pixels of bright marks the colours of fields.
    few = Image.open(path).convert("RGB").quantize(128, method=Image.Quantize.MAXCOVERAGE)
    few.save(path, optimize=True)


def draw_search(cube: xr.DataArray, out: Path) -> None:
    import matplotlib.pyplot as plt

    emb = cube.deo.embed(**OPTIONS).compute()
    at = (float(emb.x[EXAMPLE[1]]), float(emb.y[EXAMPLE[0]]))
    with tempfile.TemporaryDirectory() as folder:
        index = deo_cube.build_index(emb, Path(folder) / "index")
        first = index.search(at, k=RESULTS)
        labelled = first.head(LABELLED)
        right = labelled[in_settlements(labelled)]
        wrong = labelled[~in_settlements(labelled)]
        second = index.search(right, wrong, k=RESULTS)
    for found in (first, second):
        print(f"{in_settlements(found).mean():.0%} of {RESULTS} results are in settlements")
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    rgb, box = true_colour(cube), extent(cube)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for axis, found, title in (
            (axes[0], first, f"{RESULTS} patches most similar to +"),
            (axes[1], second, f"after labelling {LABELLED} of them: + right, x wrong"),
        ):
            panel(axis, rgb, box, title)
            found.plot(ax=axis, facecolor="none", edgecolor="#ffe000", linewidth=1.6, aspect=None)
    axes[0].plot(*at, "+", color="#ff2020", markersize=20, markeredgewidth=3)
    for some, mark in ((right, "+"), (wrong, "x")):
        columns, rows = some["col"].to_numpy(), some["row"].to_numpy()
        axes[1].plot(emb.x.values[columns], emb.y.values[rows], mark, color="#ff2020", markersize=8, markeredgewidth=2)
    for axis in axes:
        axis.set(xlim=box[:2], ylim=box[2:])
    save(figure, out / "search.png")


def draw_mosaic(cube: xr.DataArray, out: Path) -> None:
    import matplotlib.pyplot as plt

    def run(columns: slice) -> xr.DataArray:
        emb: xr.DataArray = cube.isel(x=columns).deo.embed(dtype="float32", **OPTIONS).compute()
        return emb

    size = cube.sizes["x"]
    middle = size // 2
    whole = run(slice(0, size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the narrow overlap, which is the point
        beside = deo_cube.mosaic([run(slice(0, middle)), run(slice(middle, size))])
    joined = deo_cube.mosaic([run(slice(0, middle + 160)), run(slice(middle - 160, size))])
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    panel(axes[0], true_colour(cube), extent(cube), "two runs, cut at the line")
    axes[0].axvline(float(cube.x[middle]), color="#ffe000")
    for axis, other, title in ((axes[1], beside, "side by side"), (axes[2], joined, "overlapping by a tile, mosaic()")):
        a, b = (v.values.reshape(v.sizes["embedding"], -1).astype("float64") for v in (whole, other))
        cosine = (a * b).sum(0) / np.maximum(np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0), 1e-12)
        distance = np.maximum(1 - cosine, 0).reshape(whole.shape[-2:])
        print(
            f"{title}: largest distance {np.nanmax(distance):.3g}, equal bits: {np.array_equal(a, b, equal_nan=True)}"
        )
        shown = axis.imshow(distance, vmin=0, vmax=0.1, cmap="magma_r", extent=extent(whole), aspect=1.43)
        axis.set(title=title)
        axis.set_axis_off()
    figure.colorbar(shown, ax=axes[1:], label="cosine distance from a single run", shrink=0.8)
    save(figure, out / "mosaic.png")


if __name__ == "__main__":
    mpl.use("Agg")
    data = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else OUT
    scene = deo_cube.open_cube(data / SCENE)
    assert isinstance(scene, xr.DataArray)
    draw_search(scene, out)
    draw_mosaic(scene, out)
