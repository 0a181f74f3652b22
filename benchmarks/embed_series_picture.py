"""Draw docs/img/embed_series.png: `python -m benchmarks.embed_series_picture DATA`.

A year of monthly Sentinel-2 of Belgium (`cubes/belgium_monthly_2020-11_2021-10.nc`), read by Presto: the first colours
of its vectors, and eight groups of pixels, beside the median of the year by `tiny`. DATA also has Presto's weights
(`weights/presto_worldcereal_finetuned.safetensors`).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl

import deo_cube
from benchmarks.fields_picture import IMAGES, OPTIONS, true_colour


def main(data: Path) -> None:
    """Draw the picture, and print how long the vectors took."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    cube = deo_cube.open_cube(data / "cubes" / "belgium_monthly_2020-11_2021-10.nc")
    weights = data / "weights" / "presto_worldcereal_finetuned.safetensors"
    start = time.perf_counter()
    options: dict[str, Any] = {"units": "dn", **OPTIONS}
    months = deo_cube.embed_series(cube, "presto", weights=weights, missing="leave_out", **options).compute()
    seconds = time.perf_counter() - start
    pixels, most = months.sizes["y"] * months.sizes["x"], months["count"].max().item()
    print(f"{pixels} pixels in {seconds:.1f} s, {pixels / seconds:.0f} per second; {most} months")
    period = [("2020-11", "2021-10")]
    dates = deo_cube.embed(cube, "tiny", missing="nearest", **options).deo.aggregate(period, how="median").compute()

    figure, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
    pictures = {
        "June 2021": true_colour(cube, "2021-06"),
        "Presto: vectors as colours": _colours(months),
        "Presto: eight groups": _groups(months),
        "tiny, median of the year": _colours(dates),
    }
    for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
        axis.imshow(picture, cmap="tab10" if picture.ndim == 2 else None, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.savefig(IMAGES / "embed_series.png", dpi=90)


def _colours(emb: Any) -> Any:
    return deo_cube.pca_rgb(emb).isel(time=0).transpose("y", "x", ...).values


def _groups(emb: Any) -> Any:
    return deo_cube.cluster(emb.isel(time=0), 8).values


if __name__ == "__main__":
    main(Path(sys.argv[1]))
