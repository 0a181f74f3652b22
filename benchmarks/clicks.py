"""Maps from clicked points: how good on a real flood, and how fast for a whole scene.

python -m benchmarks.clicks DATA [flood|scene]        (DATA holds flood_sen1floods11/ and scenes/)

Writes docs/data/clicks_flood.json and clicks_scene.json, and docs/img/clicks.png: the scene, the points and the map.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import rioxarray

import deo_cube  # noqa: F401
from deo_cube.evaluate.readers import S2_13
from deo_cube.heads.head import fit_head
from deo_cube.heads.maps import segment

DOCS = Path(__file__).parents[1] / "docs"
Points = list[tuple[float, float, str]]


def points(label: Any, per_class: int, columns: slice, seed: int) -> Points:
    """`per_class` random pixels of water and of dry land within `columns`."""
    rng = np.random.default_rng(seed)
    out = []
    for code, name in ((0, "dry"), (1, "water")):
        rows, cols = np.nonzero(label.values[:, columns] == code)
        for k in rng.choice(len(rows), per_class, replace=False):
            out.append((float(label.x[cols[k]]), float(label.y[rows[k]]), name))
    return out


def write(name: str, facts: dict[str, Any]) -> None:
    """Into docs/data, with what it ran on."""
    facts |= {"cores": len(os.sched_getaffinity(0)), "data": "Sen1Floods11, Aquileia (see docs/evaluation.md)"}
    (DOCS / "data").mkdir(exist_ok=True)
    (DOCS / "data" / f"clicks_{name}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def flood(data: Path, seeds: int = 10) -> None:
    """Water on the right half of the tile from points on the left half, 32 columns between."""
    folder = data / "flood_sen1floods11"
    cube = rioxarray.open_rasterio(folder / "Spain_7370579_S2L1C.tif").assign_coords(band=list(S2_13))
    label = rioxarray.open_rasterio(folder / "Spain_7370579_LabelHand.tif").isel(band=0, drop=True)
    start = time.perf_counter()
    emb = cube.deo.embed("tiny", units="dn", offset=0).compute()
    print(f"embedding {cube.sizes['y']} x {cube.sizes['x']} pixels: {time.perf_counter() - start:.1f} s")
    # Raw bands as embeddings of stride 1: the baseline through the same head.
    raw = (
        cube.sel(band=[b for b in S2_13 if b != "B10"])
        .rename(band="embedding")
        .drop_vars("embedding")
        .astype("float32")
    )
    raw.attrs["deo_cube:plan"] = '{"patch": 1}'
    test = np.zeros(label.shape, bool)
    test[:, 272:] = True
    test &= label.values >= 0
    rows = []
    for name, vectors in (("tiny", emb), ("raw bands", raw)):
        for per_class in (10, 50):
            for kind in ("knn", "linear"):
                found, seconds = [], []
                for seed in range(seeds):
                    start = time.perf_counter()
                    head = fit_head(kind, vectors, points(label, per_class, slice(0, 240), seed))
                    drawn = segment(vectors, head)
                    seconds.append(time.perf_counter() - start)
                    drawn = drawn.sel(y=label.y, x=label.x, method="nearest").values
                    a, b = (drawn == head.classes.code_of("water")) & test, (label.values == 1) & test
                    found.append(((a & b).sum() / (a | b).sum() + (test & ~a & ~b).sum() / (test & ~(a & b)).sum()) / 2)
                low, high = np.percentile(found, [2.5, 97.5])
                facts: dict[str, Any] = {"features": name, "head": kind, "points": 2 * per_class}
                facts |= {"mean IoU": round(float(np.mean(found)), 3)}
                facts |= {"draws95": [round(float(low), 3), round(float(high), 3)]}
                rows.append(facts | {"seconds": round(float(np.median(seconds)), 1)})
                print(
                    f"{name}, {kind}, {2 * per_class} points: mean IoU {np.mean(found):.3f} "
                    f"[{low:.3f}, {high:.3f} over draws], head and map {np.median(seconds):.1f} s"
                )

    write("flood", {"draws": seeds, "rows": rows})


def scene(data: Path) -> None:
    """Twenty points anywhere on a scene of 1200 x 689 pixels to a map of its pixels, embedding included."""
    cube = rioxarray.open_rasterio(data / "scenes" / "aquileia_20190416_L2A.tif", chunks={"x": 512, "y": 512})
    cube = cube.assign_coords(band=list(cube.attrs["long_name"]))
    rng = np.random.default_rng(0)
    # Ten places with high NDWI and ten with low stand for what a user would click.
    small = cube.sel(band=["B03", "B08"]).astype("float32").compute()
    ndwi = ((small[0] - small[1]) / (small[0] + small[1] + 1)).where((small > 0).all("band"), 0).values
    clicked: Points = []
    for name, mask in (("water", ndwi > 0.3), ("land", ndwi < -0.2)):
        rows, cols = np.nonzero(mask)
        for k in rng.choice(len(rows), 10, replace=False):
            clicked.append((float(cube.x[cols[k]]), float(cube.y[rows[k]]), name))
    start = time.perf_counter()
    emb = cube.deo.embed("tiny", units="dn", offset=0).compute()
    embedded = time.perf_counter() - start
    head = fit_head("linear", emb, clicked)
    drawn = segment(emb, head).compute()
    total = time.perf_counter() - start
    y, x = cube.sizes["y"], cube.sizes["x"]
    print(f"{y} x {x} pixels, 20 points: map of {drawn.shape} in {total:.1f} s, of which embedding {embedded:.1f} s")
    # Against the index that the clicked places were taken from: not a truth, but what the user had in mind.
    water = drawn.sel(y=cube.y, x=cube.x, method="nearest").values == head.classes.code_of("water")
    clear = (ndwi > 0.3) | (ndwi < -0.2)
    agree = float((water == (ndwi > 0.3))[clear].mean())
    print(f"agrees with the index on {agree:.1%} of the pixels where that is clear")
    facts = {"pixels": [int(y), int(x)], "points": 20, "seconds": round(total, 1), "embedding": round(embedded, 1)}
    write("scene", facts | {"agreement with NDWI where clear": round(agree, 4), "clear": round(float(clear.mean()), 3)})
    picture(cube, clicked, drawn, DOCS / "img" / "clicks.png")


def picture(cube: Any, clicked: Points, drawn: Any, path: Path) -> None:
    """The scene in its colours with the points, and the map."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    rgb = cube.sel(band=["B04", "B03", "B02"]).transpose("y", "x", "band").astype("float32").values / 2500
    fig, axes = plt.subplots(2, 1, figsize=(8, 9.6), layout="constrained")
    x0, x1, y0, y1 = (float(v) for v in (cube.x[0], cube.x[-1], cube.y[-1], cube.y[0]))
    axes[0].imshow(rgb.clip(0, 1) ** 0.7, extent=(x0, x1, y0, y1), aspect="auto")
    for name, colour in (("water", "#00e5ff"), ("land", "#ffd000")):
        at = np.array([(a, b) for a, b, k in clicked if k == name])
        axes[0].scatter(*at.T, s=28, c=colour, edgecolor="black", label=f"{len(at)} x {name}")
    axes[0].legend(loc="lower left")
    shown = np.ma.masked_equal(np.asarray(drawn.values), 255)
    colours = ListedColormap(str(drawn.attrs["flag_colors"]).split())
    axes[1].imshow(shown, extent=(x0, x1, y0, y1), cmap=colours, aspect="auto", interpolation="nearest")
    axes[1].set_title(f"{' and '.join(str(drawn.attrs['flag_meanings']).split())}, from {len(clicked)} points")
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    path.parent.mkdir(exist_ok=True)
    fig.savefig(path, dpi=90)
    plt.close(fig)


if __name__ == "__main__":
    for what in sys.argv[2:] or ["flood", "scene"]:
        {"flood": flood, "scene": scene}[what](Path(sys.argv[1]))
