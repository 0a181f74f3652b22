"""Score regressions on real targets, and draw the map of a page: python -m benchmarks.quantities --data DATA.

Biomass from lidar (BioMassters, one chip of 256 pixels in Finland), and the share of a class in two TerraMesh tiles. A
head is fitted on one half of each and scored on the other, one patch apart: west and east, or north and south where
the east is sea. It writes docs/data/quantities.json and docs/img/quantity.png.
"""

from __future__ import annotations

import io
import json
import sys
import time as clock
from pathlib import Path
from typing import Any

import numpy as np
import rioxarray
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import deo_cube
from deo_cube.cube.georeference import assign_grid
from deo_cube.heads.assess import QuantityAssessment
from deo_cube.heads.regression import rasterize_targets

ROOT = Path(__file__).parents[1]
#: Name of a target, tile of TerraMesh, and code of the class in its labels.
SHARES = (
    ("share of trees, coast of southern Brazil", "282D_485L_3_3", 2),
    ("share of crops, Tanzania", "38D_378R_2_3", 4),
)


def biomass(data: Path) -> tuple[xr.DataArray, xr.DataArray]:
    """Return a cube of July and the above-ground biomass, on a grid elsewhere: the source does not give the place."""
    file = np.load(data / "places/biomassters/biomassters_2chips.npz")
    box = GeoBox((256, 256), Affine(10, 0, 500_000, 0, -10, 6_900_000), "EPSG:32635")
    cube = xr.DataArray(file["x"][3], dims=("band", "y", "x"), coords={"band": file["bands"]})
    attrs = {"units": "t/ha", "long_name": "above-ground biomass"}
    target = xr.DataArray(file["agb_t_per_ha"][0], dims=("y", "x"), attrs=attrs)
    return assign_grid(cube, box, dims=("y", "x")), assign_grid(target, box, dims=("y", "x"))


def share_of(data: Path, tile: str, code: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the L2A cube of a TerraMesh tile, and 1 where a class is."""
    folder = data / "landcover_terramesh" / tile
    classes = rioxarray.open_rasterio(folder / "LULC.tif").isel(band=0, drop=True)
    share = (classes == code).astype("float32").where(classes > 0)
    return deo_cube.open_cube(folder / "S2L2A.tif"), share.assign_attrs(units="1", long_name="share of the class")


def scored(cube: xr.DataArray, target: xr.DataArray, limits: Any, *, north: bool = False) -> tuple[dict[str, Any], Any]:
    """Return the scores per head on the east (or south) half, and the map and the assessment of ridge."""
    emb = cube.deo.embed("tiny", units="dn", offset=0).compute().squeeze(drop=True)
    patch = abs(float(emb.x[1] - emb.x[0]))
    along = float(target.y.mean()) - target.y if north else target.x - float(target.x.mean())
    known, tested = target.where(along < -patch / 2), target.where(along > patch / 2)
    bands = cube.squeeze(drop=True).astype("float32")
    means = [rasterize_targets(bands.sel(band=b), emb, nodata=0).drop_vars("weight") for b in bands.band.values]
    colours = xr.concat(means, "embedding").drop_attrs(deep=False)
    rows: dict[str, Any] = {}
    first: Any = None
    for name, kind, vectors in (
        ("ridge", "ridge", emb),
        ("forest", "forest", emb),
        ("ridge on the mean of each band", "ridge", colours),
    ):
        start = clock.perf_counter()
        head = deo_cube.fit_head(kind, vectors, known, limits=limits)
        seconds = clock.perf_counter() - start
        drawn = head.predict(vectors)
        result = deo_cube.assess(drawn, tested, training=known)
        assert isinstance(result, QuantityAssessment)
        own = {k: [round(v, 4) for v in result.score(k)] for k in ("r2", "rmse", "bias")}
        rows[name] = own | {
            "validated_r2": head.report["r2"],
            "places": len(result.pairs),
            "seconds": round(seconds, 1),
        }
        print(name, rows[name], flush=True)
        first = first or (drawn, result)
    return rows, first


def draw(cube: xr.DataArray, target: xr.DataArray, drawn: xr.DataArray, result: QuantityAssessment, path: Path) -> None:
    """Draw true colour, target, map, and the map against the target on the east half."""
    import matplotlib.pyplot as plt
    from PIL import Image

    rgb = cube.sel(band=["B04", "B03", "B02"]).transpose("y", "x", "band").values.astype("float64")
    rgb = (rgb / np.quantile(rgb, 0.99)).clip(0, 1)
    figure, axes = plt.subplots(1, 4, figsize=(12.5, 3.2), layout="constrained")
    axes[0].imshow(rgb)
    axes[0].set_title("Sentinel-2, July")
    options: dict[str, Any] = {"vmin": 0, "vmax": float(target.quantile(0.98)), "cmap": "YlGn"}
    axes[1].imshow(target, **options)
    axes[1].set_title("lidar, 10 m")
    shown = axes[2].imshow(drawn, **options)
    axes[2].set_title("map, 40 m; fitted left of the line")
    axes[2].axvline(drawn.sizes["x"] / 2 - 0.5, color="black", lw=1)
    figure.colorbar(shown, ax=axes[2], label="biomass (t/ha)")
    for a in axes[:3]:
        a.set(xticks=[], yticks=[])
    pairs = result.pairs
    axes[3].hexbin(pairs["reference"], pairs["map"], gridsize=32, bins="log", cmap="YlGn", mincnt=1)
    high = float(pairs[["reference", "map"]].max().max())
    axes[3].plot([0, high], [0, high], color="black", lw=1)
    axes[3].set(xlabel="lidar (t/ha)", ylabel="map (t/ha)", title="right of the line")
    text = f"R2 {result.score('r2').value:.2f}\nRMSE {result.score('rmse').value:.0f} t/ha"
    axes[3].text(0.04, 0.96, text, transform=axes[3].transAxes, va="top")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=75)
    Image.open(buffer).convert("RGB").quantize(96).save(path, optimize=True)
    plt.close(figure)


def main(arguments: list[str]) -> None:
    """Run the scores and write their file and picture."""
    import matplotlib

    matplotlib.use("Agg")
    data = Path(arguments[arguments.index("--data") + 1])
    cube, target = biomass(data)
    scores: dict[str, Any] = {}
    print("biomass")
    scores["biomass, Finland (t/ha)"], (drawn, result) = scored(cube, target, (0, None))
    draw(cube, target, drawn, result, ROOT / "docs/img/quantity.png")
    for name, tile, code in SHARES:
        print(name)
        scores[name], _ = scored(*share_of(data, tile, code), (0, 1), north=code == 2)
    (ROOT / "docs/data/quantities.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
