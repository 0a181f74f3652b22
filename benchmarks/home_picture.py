"""Draw docs/img/home.png: python -m benchmarks.home_picture DATA.

A real scene in true colour, its embeddings in PCA colours, and the map of `segment()`, each by one call. No label of
this place trained the map.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
from PIL import Image

import deo_cube  # noqa: F401 - registers .deo
from benchmarks.default_map_picture import cube

OUT = Path(__file__).parents[1] / "docs" / "img" / "home.png"
SCENE = "boadella/2020-06-21_L2A.tif"


def draw(data: Path, out: Path = OUT, *, size: int = 512) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    pixels = cube(data / "places" / SCENE, size)
    options = {"units": "dn", "offset": 0, "nodata": 0}
    vectors = pixels.deo.embed(**options).compute()
    classes = pixels.deo.segment(**options).compute()
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.0), layout="constrained")
    true_colour = pixels.sel(band=["B04", "B03", "B02"])
    (true_colour / 1600).clip(0, 1).deo.plot(ax=axes[0], title="Sentinel-2, true colour")
    vectors.deo.plot(ax=axes[1], title="ds.deo.embed(), PCA colours")
    classes.deo.plot(ax=axes[2], title="ds.deo.segment(), no labels given")
    figure.savefig(out, dpi=100)
    Image.open(out).convert("RGB").save(out, optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
