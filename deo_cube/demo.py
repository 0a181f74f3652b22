"""`deo-cube demo`: embed a synthetic scene offline, write it to Zarr, and draw it.

Each step is one public function, so that the file serves as an example.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from deo_cube.constants import Attribute
from deo_cube.cube.stac_catalogs import search
from deo_cube.cube.synthetic import synthetic_cube
from deo_cube.embedding.embed import embed, load_cube
from deo_cube.embedding.plan import plan
from deo_cube.errors import MissingExtraError
from deo_cube.extras import require
from deo_cube.paths import local_path
from deo_cube.store.write import to_zarr

__all__ = ["live_cube", "picture", "run"]

#: Lake Constance and its orchards, about 10 km.
PLACE = (9.40, 47.55, 9.53, 47.64)
SUMMER = "2024-06-01/2024-09-30"


def run(
    out: Path = Path("demo"),
    *,
    size: int = 1024,
    model: str = "tiny",
    live: Mapping[str, Any] | None = None,
) -> Path:
    """Run the demo, and print each step and the paths of the results.

    Parameters
    ----------
    out : path
        Folder for `embeddings.zarr` and `embeddings.png`.
    size : int
        Side of the synthetic scene, pixels.
    model : str
        Model to embed with.
    live : mapping, optional
        Use real Sentinel-2 instead: arguments of `live_cube`, {} for its defaults. Needs the network.

    Returns
    -------
    Path
        The picture, or the store if matplotlib is not installed.
    """
    cube = synthetic_cube(size=size, times=1) if live is None else live_cube(**live)
    title = cube.attrs.get("title", "Sentinel-2 L2A scene")
    print(f"1. cube: {title}\n{cube.deo!r}\n")
    print(f"2. {plan(cube, model)!r}\n")
    out = local_path(out)
    out.mkdir(parents=True, exist_ok=True)
    store = out / "embeddings.zarr"
    start = time.perf_counter()
    emb = to_zarr(embed(cube, model), store, overwrite=True)
    seconds = time.perf_counter() - start
    untrained = emb.attrs[Attribute.WEIGHTS_STATUS] == "untrained"
    print(f"\n3. embedded in {seconds:.1f} s: {', '.join(f'{d} {n}' for d, n in emb.sizes.items())}, {emb.dtype}")
    print(f"   store:   {store}   (xarray.open_zarr, or deo_cube.open_embeddings)")
    if untrained:
        print(
            f"   {model} is UNTRAINED: random weights show that the pipeline works, not the quality of a trained model"
        )
    path = out / "embeddings.png"
    try:
        picture(cube.isel(time=0), emb.isel(time=0), path)
    except MissingExtraError as error:
        print(f"   no picture: {error}")
        return store
    print(f"   picture: {path}")
    return path


def picture(cube: xr.Dataset, emb: xr.DataArray, path: Path) -> Path:
    """Draw true colour beside the first three principal components of the embeddings.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    matplotlib = require("matplotlib", extra="demo", purpose="drawing the picture")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from deo_cube.heads.pca import pca_rgb

    colour = cube[["B04", "B03", "B02"]].to_dataarray("band").transpose("y", "x", "band")
    colour = colour + float(cube.coords.get("boa_add_offset", cube.attrs.get("boa_add_offset", 0)))
    box = [float(v) / 1000 for v in (cube.x[0], cube.x[-1], cube.y[-1], cube.y[0])]
    rgb = pca_rgb(emb).compute()
    channels = next(d for d in rgb.dims if d not in emb.dims)
    figure, axes = plt.subplots(1, 2, figsize=(13, 7), layout="constrained")
    date = str(cube.time.dt.strftime("%Y-%m-%d").item()) if "time" in cube.coords else ""
    synthetic = bool(cube.attrs.get(Attribute.SYNTHETIC, 0))
    name = emb.attrs[Attribute.MODEL_ALIAS]
    state = " (untrained)" if emb.attrs[Attribute.WEIGHTS_STATUS] == "untrained" else ""
    stride = round(abs(float(emb.x[1] - emb.x[0])))
    axes[0].imshow((colour / 2500).clip(0, 1) ** 0.8, extent=box, interpolation="nearest")
    axes[0].set_title(f"{'Synthetic' if synthetic else 'Sentinel-2'} scene, true colour, {date}")
    axes[1].imshow(_displayed(rgb.transpose("y", "x", channels)), extent=box, interpolation="nearest")
    axes[1].set_title(f"Embeddings by {name}{state}: {emb.sizes['embedding']} numbers per {stride} m, as PCA colours")
    for ax in axes:
        ax.set_xlabel("easting, km")
        ax.ticklabel_format(useOffset=False, style="plain")
    axes[0].set_ylabel("northing, km")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _displayed(rgb: xr.DataArray) -> Any:
    values = rgb.values
    return values if values.dtype == "uint8" else values.clip(0, 1)


def live_cube(
    catalogue: str = "earth-search",
    *,
    bbox: tuple[float, float, float, float] = PLACE,
    datetime: str = SUMMER,
    collection: str | None = None,
) -> xr.Dataset:
    """Return the clearest date of a place in a public STAC API (see `deo_cube.search`), lazily. Needs the network.

    Raises
    ------
    CatalogueError
        If the API does not answer.
    ValueError
        If it has no date with less than 20 % of cloud.
    """
    items = search(catalogue, bbox=bbox, datetime=datetime, max_cloud=20, collection=collection)
    cube = load_cube(items, bbox=bbox, resolution=10)
    clearest = cube.isel(time=[int(cube["eo:cloud_cover"].fillna(100).argmin("time"))])
    return clearest.assign_attrs(title=f"Sentinel-2 L2A, {catalogue}, {clearest.item_ids.item()}")
