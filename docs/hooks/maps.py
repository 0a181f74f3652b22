"""Draw plot.png, overviews.png and page.png of docs/img from a real scene: `python docs/hooks/maps.py`.

The scene is `scenes/aquileia_20190416_L2A.tif` of the folder that `DEO_CUBE_DATA` names (Copernicus Sentinel data).
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import xarray as xr

import deo_cube

IMG = Path(__file__).parents[1] / "img"
SCENE = "scenes/aquileia_20190416_L2A.tif"
#: A field, in degrees.
FIELD = (13.3824, 45.7333)


def scene() -> Path:
    """Path of the scene."""
    root = Path(os.environ["DEO_CUBE_DATA"])
    return next(p / SCENE for p in (root / "data", root) if (p / SCENE).exists())


def save(figure: plt.Figure, name: str) -> None:
    """Write a figure with a palette, which keeps it small."""
    from PIL import Image

    path = IMG / name
    figure.savefig(path, dpi=100)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
    print(f"docs/img/{name}: {path.stat().st_size // 1000} kB")


def draw_overviews(emb: xr.DataArray) -> None:
    """Draw the colours of each level of a store."""
    with tempfile.TemporaryDirectory() as folder:
        emb.deo.to_zarr(f"{folder}/emb.zarr", progress=False)
        deo_cube.add_overviews(f"{folder}/emb.zarr", levels=2, progress=False)
        figure, axes = plt.subplots(1, 3, figsize=(9, 2.0), layout="constrained")
        for ax, level in zip(axes, ("1x", "2x", "4x"), strict=True):
            rgb = xr.open_zarr(f"{folder}/emb.zarr/overviews/{level}", consolidated=False, decode_coords="all")["rgb"]
            rgb = rgb.where(rgb != 0) / 255 if rgb.dtype == "uint8" else rgb / 255
            rgb.deo.plot(ax=ax, title=f"{level}: {rgb.sizes['y']} x {rgb.sizes['x']}")
        save(figure, "overviews.png")


def photograph_page(emb: xr.DataArray) -> None:
    """Write a page, click a field in Chromium, and photograph it."""
    from PIL import Image

    sys.path.insert(0, str(IMG.parents[1]))
    from tests.viewer.browser import Browser

    with tempfile.TemporaryDirectory() as folder, Browser(width=1200, height=640) as browser:
        made = emb.deo.page(f"{folder}/page", labels=emb.deo.classify(), title="Aquileia, April 2019", progress=False)
        browser.send("Page.navigate", url=made.path.as_uri())
        browser.wait("window.deo && deo.dates[0].picture?.naturalWidth > 0")
        browser.js("deo.pick(...deo.toScreen(120.5, 120.5))")
        browser.wait("deo.state.scores !== null")
        browser.js("new Promise((done) => setTimeout(done, 300))")
        path = browser.picture(IMG / "page.png")
    Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)
    print(f"docs/img/page.png: {path.stat().st_size // 1000} kB")


def main() -> None:
    """Draw groups of similar patches, similarity, overviews and a page."""
    ds = deo_cube.open_cube(scene())
    emb = ds.deo.embed(offset=0).compute()
    photograph_page(emb)
    draw_overviews(emb)
    figure, axes = plt.subplots(2, 1, figsize=(8.8, 8.2), layout="constrained")
    emb.deo.cluster(7).deo.plot(ax=axes[0], title="tiny · seven groups without labels")
    similar = emb.deo.similar(FIELD)
    similar.attrs["long_name"] = "cosine similarity to one field"
    similar.deo.plot(ax=axes[1])
    save(figure, "plot.png")


if __name__ == "__main__":
    main()
