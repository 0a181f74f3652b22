"""Draw docs/img/series.png, the dates that one call opens: python -m benchmarks.series_picture DATA."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from PIL import Image

import deo_cube

OUT = Path(__file__).parents[1] / "docs" / "img" / "series.png"


def main(data: Path) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    cube: Any = deo_cube.open_cube(data / "places" / "boadella" / "*.tif")
    cube = cube.assign_coords(band=list(cube.attrs["long_name"])).sel(band=["B04", "B03", "B02"])
    figure, axes = plt.subplots(1, cube.sizes["time"], figsize=(9.6, 2.7))
    for ax, image in zip(axes, cube.transpose("time", "y", "x", "band"), strict=True):
        ax.imshow((image.values / 2200.0).clip(0, 1))
        ax.set_title(str(image.time.values)[:10], fontsize=9)
        ax.axis("off")
    figure.tight_layout(pad=0.8)
    figure.savefig(OUT, dpi=76, bbox_inches="tight")
    Image.open(OUT).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(OUT, optimize=True)
    print(OUT.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
