"""Draw the assessment of a real map for its page: python -m benchmarks.assessment --data DATA.

A linear head is fitted on 20 places per class of a TerraMesh tile (coast of southern Brazil, L2A, labels of ESRI), and
its map is compared with 40 random places per class of the map, at least 80 m from a label. It writes
docs/img/assessment.png.
"""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rioxarray
import xarray as xr
from numpy.typing import NDArray

import deo_cube

ROOT = Path(__file__).parents[1]
TILE = "282D_485L_3_3"
NAMES = {1: "water", 2: "trees", 3: "flooded vegetation", 4: "crops", 5: "built", 6: "bare", 9: "rangeland"}


def places(layer: xr.DataArray, inside: NDArray[Any], truth: xr.DataArray, per_class: int, seed: int) -> list[Any]:
    """Return random places (x, y, true class) of each value of a layer, where `inside`."""
    rng = np.random.default_rng(seed)
    chosen: list[Any] = []
    for value in np.unique(layer.values[inside]):
        rows, cols = np.nonzero(inside & (layer.values == value))
        for i in rng.permutation(len(rows))[:per_class]:
            code = int(truth.values[rows[i], cols[i]])
            if code in NAMES:
                chosen.append((float(layer.x[cols[i]]), float(layer.y[rows[i]]), NAMES[code]))
    return chosen


def main(arguments: list[str]) -> None:
    """Fit, map, assess and draw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap
    from PIL import Image

    folder = Path(arguments[arguments.index("--data") + 1]) / "landcover_terramesh" / TILE
    cube = deo_cube.open_cube(folder / "S2L2A.tif")
    truth = rioxarray.open_rasterio(folder / "LULC.tif").isel(band=0, drop=True)
    emb = cube.deo.embed("tiny", units="dn", offset=0).compute().squeeze(drop=True)
    known = np.isin(truth.values, list(NAMES))
    labels = places(truth, known, truth, 20, 0)
    head = deo_cube.fit_head("linear", emb, labels)
    drawn = deo_cube.segment(cube, head, units="dn", offset=0).compute().squeeze(drop=True)
    near = np.zeros(truth.shape, bool)
    for x, y, _ in labels:
        near |= np.hypot(truth.x.values - x, truth.y.values[:, None] - y) < 80
    checked = places(drawn, known & ~near, truth, 40, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = deo_cube.assess(
            drawn, checked, embeddings=emb, head=head, training=labels, mapping={n: n for n in NAMES.values()}
        )
    print(result)
    print(result.look_first)

    figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    rgb = cube.squeeze().isel(band=[3, 2, 1]).transpose("y", "x", "band").values.astype("float64")
    axes[0].imshow((rgb / np.quantile(rgb, 0.98)).clip(0, 1))
    axes[0].set_title("checked: right (green), wrong (red)")
    names, colors = drawn.attrs["flag_meanings"].split(), drawn.attrs["flag_colors"].split()
    axes[1].imshow(drawn, cmap=ListedColormap(colors), vmin=-0.5, vmax=len(colors) - 0.5, interpolation="nearest")
    axes[1].set_title("map")
    for name, color in zip(names, colors, strict=True):
        axes[1].plot([], [], "s", color=color, label=name.replace("_", " "))
    axes[1].legend(loc="lower left", fontsize=7)
    margin = head.predict(emb, probabilities=True)
    ordered = np.sort(margin.values, axis=0)
    left, top = (float(emb.x[0] - drawn.x[0]) / 10 - 1.5, float(drawn.y[0] - emb.y[0]) / 10 - 1.5)
    extent = (left, left + 4 * emb.sizes["x"], top + 4 * emb.sizes["y"], top)
    axes[2].imshow(ordered[-1] - ordered[-2], cmap="magma", vmin=0, vmax=1, extent=extent)
    axes[2].set_title("margin, and where to look first")

    def pixels(x: Any, y: Any) -> tuple[Any, Any]:
        return (np.asarray(x) - float(drawn.x[0])) / 10, (float(drawn.y[0]) - np.asarray(y)) / 10

    axes[0].plot(*pixels([p[0] for p in labels], [p[1] for p in labels]), ".", color="white", ms=3)
    codes = dict(zip([n.replace("_", " ") for n in names], drawn.attrs["flag_values"], strict=True))
    for x, y, name in checked:
        right = int(drawn.sel(x=x, y=y)) == codes.get(name, -1)
        axes[0].plot(*pixels(x, y), "." if right else "x", color="#00e060" if right else "#ff2040", ms=4)
    axes[2].plot(*pixels(result.look_first["x"], result.look_first["y"]), "o", mfc="none", color="cyan", ms=7)
    for a in axes:
        a.set(xticks=[], yticks=[], xlim=(0, 224), ylim=(224, 0))
    parts = []
    for f in (figure, result.plot()):
        buffer = io.BytesIO()
        f.savefig(buffer, dpi=72)
        parts.append(Image.open(buffer).convert("RGB"))
    width = max(p.width for p in parts)
    joined = Image.new("RGB", (width, sum(p.height for p in parts)), "white")
    top = 0
    for p in parts:
        joined.paste(p, (0, top))
        top += p.height
    joined.quantize(128).save(ROOT / "docs/img/assessment.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
