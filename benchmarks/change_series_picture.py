"""Draw docs/img/change_series.png and measure on a real forest: python -m benchmarks.change_series_picture DATA.

Change of a forest in the Harz (four summer images, 2018 to 2020) and of the shore of the Boadella reservoir (January
2020 to March 2022). In the Harz the marks are compared with the fall of the burn ratio (B8A - B12) / (B8A + B12) of the
same images; the figures go to docs/data/change_series.json. With the dates in another order, no date separates before
from after, so that marks on calm patches are false alarms.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from PIL import Image

import deo_cube

ROOT = Path(__file__).parents[1] / "docs"
OUT, FIGURES = ROOT / "img" / "change_series.png", ROOT / "data" / "change_series.json"
PLACES = {"harz": "Forest in the Harz", "boadella": "Boadella reservoir"}
EXCHANGED = ([0, 2, 1, 3], [0, 3, 1, 2])
"""Orders of the dates in which each half has an image from before and one from after the change."""
PATCH = 4
"""Pixels on a side of a patch of the model `tiny`."""


def series(data: Path, name: str) -> xr.DataArray:
    cube: Any = deo_cube.open_cube(data / "places" / name / "*.tif")
    named: xr.DataArray = cube.assign_coords(band=list(cube.attrs["long_name"]))
    return named


def true_colour(cube: xr.DataArray, time: int) -> np.ndarray:
    image = cube.isel(time=time).sel(band=["B04", "B03", "B02"]).transpose("y", "x", "band").values
    return np.asarray((image / 2000.0).clip(0, 1) ** 0.8)


def burn_ratio(cube: xr.DataArray, like: xr.DataArray) -> np.ndarray:
    """Mean burn ratio per patch of `like` and date."""
    near, far = (cube.sel(band=b).astype("float32") for b in ("B8A", "B12"))
    ratio = ((near - far) / (near + far)).where(near > 0)
    step = abs(float(like.x[1] - like.x[0]))
    rows = np.floor((float(like.y[0]) + step / 2 - ratio.y.values) / step).astype(int)
    columns = np.floor((ratio.x.values - float(like.x[0]) + step / 2) / step).astype(int)
    ratio = ratio.assign_coords(row=("y", rows), column=("x", columns))
    patches = ratio.groupby("row").mean().groupby("column").mean()
    return np.asarray(
        patches.reindex(row=range(like.sizes["y"]), column=range(like.sizes["x"])).transpose("time", "row", "column")
    )


def rates(found: xr.Dataset, fall: np.ndarray, threshold: float = 0.99) -> dict[str, Any]:
    """Shares of marked patches, by the fall of the burn ratio."""
    known = np.isfinite(found.level.values) & np.isfinite(fall)
    marked = found.level.values > threshold
    kinds = {"fall above 0.3": fall > 0.3, "change below 0.05": np.abs(fall) < 0.05}
    return {
        kind: {"patches": int((known & where).sum()), "marked": round(float(marked[known & where].mean()), 3)}
        for kind, where in kinds.items()
    }


def exchanged(emb: xr.DataArray, ratio: np.ndarray) -> dict[str, float]:
    """Share of calm patches that are marked with the dates in another order, mean of `EXCHANGED`, by false_alarms."""
    calm = np.ptp(ratio, axis=0) < 0.1
    levels = [
        deo_cube.change_series(emb.isel(time=order).assign_coords(time=emb.time.values)).level.values[calm]
        for order in EXCHANGED
    ]
    level = np.concatenate(levels)
    level = level[np.isfinite(level)]
    return {str(rate): round(float((level > 1 - rate).mean()), 4) for rate in (0.01, 0.05)}


def main(data: Path) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(PLACES), 3, figsize=(10, 5.6))
    figures: dict[str, Any] = {}
    for row, (name, title) in zip(axes, PLACES.items(), strict=True):
        cube = series(data, name)
        found = cube.deo.embed(offset=0).compute().deo.change_series()
        first, last = (str(t)[:10] for t in cube.time.values[[0, -1]])
        for ax, time, text in ((row[0], 0, f"{title}, {first}"), (row[1], -1, last)):
            ax.imshow(true_colour(cube, time))
            ax.set_title(text, fontsize=9)
        top = float(found.magnitude.quantile(0.99))
        row[2].set_facecolor("#e9e9e9")
        image = row[2].imshow(found.magnitude.where(found.changed), vmin=0, vmax=top, cmap="plasma")
        days = found.date.values[found.changed.values].astype("M8[D]")
        when = np.unique(days).astype(str)
        before = np.unique(found["last"].values[found.changed.values].astype("M8[D]")).astype(str)
        row[2].set_title(f"changed {before[0]} to {when[-1]}", fontsize=9)
        figure.colorbar(image, ax=row[2], shrink=0.7, label="magnitude")
        for ax in row:
            ax.set_xticks([])
            ax.set_yticks([])
        figures[name] = {
            "dates": cube.time.dt.strftime("%Y-%m-%d").values.tolist(),
            "patches": int(found.level.notnull().sum()),
            "marked": int(found.changed.sum()),
            "date of change": {str(d): int(n) for d, n in zip(*np.unique(days, return_counts=True), strict=True)},
        }
        if name == "harz":
            ratio = burn_ratio(cube, found.level)
            fall = ratio[:2].mean(axis=0) - ratio[2:].mean(axis=0)
            figures[name]["marked, by the burn ratio"] = rates(found, fall)
            loose = deo_cube.change_series(cube.deo.embed(offset=0).compute(), false_alarms=0.05)
            figures[name]["marked at false_alarms=0.05"] = rates(loose, fall, 0.95)
            figures[name]["marked with dates exchanged"] = exchanged(cube.deo.embed(offset=0).compute(), ratio)
    figure.tight_layout()
    figure.savefig(OUT, dpi=76)
    Image.open(OUT).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(OUT, optimize=True)
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1), OUT.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
