"""Search by example in an index: python -m benchmarks.index --data DATA.

Real vectors (every scene of DATA with the ten bands, embedded with `tiny`) are repeated with noise until there are as
many as asked. The noise is as large as the distance of a real vector to its nearest neighbour in another scene, so that
the copies of a vector are no closer to it than real vectors are. Queries are real vectors with the same noise.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
ROOT = Path(__file__).parents[1]
#: Scenes of DATA, as patterns: L2A with the ten bands of the model.
SCENES = (
    *("scenes/aquileia*.tif", "scenes/pilbara_20181201*.tif", "places/harz/*.tif", "places/boadella/*.tif"),
    *("places/majortom/*.tif", "places/rstoolbox/*.tif", "places/bigearthnet/*.tif", "places/hydro/*.tif"),
    *("places/ssl4eo_pakistan/*L2A*.tif", "landcover_terramesh/*/S2L2A.tif", "change_barkbeetle/*/s2_*.tif"),
)


def real_vectors(data: Path, cache: Path | None = None) -> tuple[Array, Array]:
    """Return vectors (n, D) float32 of length one, and the number of the scene of each."""
    if cache is not None and cache.exists():
        kept = np.load(cache)
        return kept["vectors"].astype("float32"), kept["scenes"]
    import deo_cube

    vectors, scenes = [], []
    for path in sorted(p for pattern in SCENES for p in data.glob(pattern)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            emb = deo_cube.open_cube(path).deo.embed(units="dn", offset=0, nodata=0, dtype="float32").compute()
        v = emb.transpose("y", "x", "embedding").values.reshape(-1, emb.sizes["embedding"])
        v = v[(emb["valid"].values.ravel() > 0.5) & np.isfinite(v).all(axis=1)]
        vectors.append((v / np.linalg.norm(v, axis=1, keepdims=True)).astype("float32"))
        scenes.append(np.full(len(v), len(scenes)))
    found = np.concatenate(vectors), np.concatenate(scenes)
    if cache is not None:
        np.savez(cache, vectors=found[0].astype("float16"), scenes=found[1])
    return found


def neighbour_steps(vectors: Array, scenes: Array, count: int = 8192, seed: int = 0) -> Array:
    """Return differences (count, D) between real vectors and their nearest neighbours in other scenes."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(vectors), min(count, len(vectors)), replace=False)
    steps = []
    for part in np.array_split(chosen, max(len(chosen) // 256, 1)):
        scores = vectors[part] @ vectors.T
        scores[scenes[part][:, None] == scenes[None]] = -2
        steps.append(vectors[scores.argmax(axis=1)] - vectors[part])
    return np.concatenate(steps)


def varied(vectors: Array, steps: Array, count: int, seed: int) -> Array:
    """Return `count` vectors of length one: real ones, each moved by a random step of half to full length."""
    rng = np.random.default_rng(seed)
    v = vectors[rng.integers(len(vectors), size=count)]
    scale = rng.uniform(0.5, 1.0, (count, 1)) * rng.choice([-1.0, 1.0], (count, 1))
    v = v + scale.astype("float32") * steps[rng.integers(len(steps), size=count)]
    return np.asarray(v / np.linalg.norm(v, axis=1, keepdims=True), "float32")


def nearest(parts: Iterator[Array], queries: Array, k: int) -> Array:
    """Return the numbers (queries, k) of the vectors with the greatest scores, by brute force."""
    scores, ids = np.full((len(queries), k), -2.0, "float32"), np.zeros((len(queries), k), "int64")
    first = 0
    for part in parts:
        found = queries @ part.T
        best = np.argpartition(-found, k, axis=1)[:, :k]
        scores = np.concatenate([scores, np.take_along_axis(found, best, 1)], axis=1)
        ids = np.concatenate([ids, best + first], axis=1)
        order = np.argsort(-scores, axis=1)[:, :k]
        scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
        first += len(part)
    return ids


def recall(found: Array, truth: Array) -> float:
    """Return the share of the true neighbours that were found."""
    return float(np.mean([len(set(f) & set(t)) / len(t) for f, t in zip(found.tolist(), truth.tolist(), strict=True)]))


# --- a store of many patches ---


def _block(
    vectors: Array, steps: Array, block_id: tuple[int, ...] | None = None, rows: Any = (), cols: Any = ()
) -> Array:
    assert block_id is not None
    h, w = rows[block_id[2]], cols[block_id[3]]
    v = varied(vectors, steps, h * w, seed=block_id[2] * len(cols) + block_id[3])
    return np.asarray(v.astype("float16").T.reshape(1, -1, h, w))


def large_store(path: Path, vectors: Array, steps: Array, side: int) -> None:
    """Write a store of side x side patches, one date."""
    import dask.array as da
    import xarray as xr
    from affine import Affine
    from odc.geo.geobox import GeoBox

    import deo_cube
    from deo_cube.cube.georeference import assign_grid

    dim = vectors.shape[1]
    cuts = da.core.normalize_chunks((256, 256), (side, side))
    values = da.map_blocks(
        partial(_block, vectors, steps, rows=cuts[0], cols=cuts[1]),
        chunks=((1,), (dim,), *cuts),
        dtype="float16",
        meta=np.empty((0, 0, 0, 0), "float16"),
    )
    emb = xr.DataArray(
        values, dims=("time", "embedding", "y", "x"), name="embeddings", attrs={"deo_cube:model": "tiny"}
    )
    emb = emb.assign_coords(
        time=np.array(["2024-06-15"], "datetime64[ns]"),
        valid=(("time", "y", "x"), da.ones((1, side, side), dtype="float32", chunks=(1, 256, 256))),
    )
    emb = assign_grid(emb, GeoBox((side, side), Affine(40, 0, 500_000, 0, -40, 5_300_000), "EPSG:32632"))
    deo_cube.to_zarr(emb, path, progress=True, num_workers=1)


def store_parts(path: Path) -> Iterator[tuple[Array, Array]]:
    """Yield the vectors (n, D) float32 of each block of a store, and the numbers of their patches."""
    import deo_cube

    emb = deo_cube.open_embeddings(path).isel(time=0)
    width = emb.sizes["x"]
    ends = [np.cumsum(emb.variable.chunksizes[d]).tolist() for d in ("y", "x")]
    for top, bottom in pairwise([0, *ends[0]]):
        for left, right in pairwise([0, *ends[1]]):
            v = emb.isel(y=slice(top, bottom), x=slice(left, right)).values
            numbers = np.arange(top, bottom)[:, None] * width + np.arange(left, right)
            v = v.reshape(len(v), -1).T.astype("float32")
            yield v / np.linalg.norm(v, axis=1, keepdims=True), numbers.ravel()


def brute(path: Path, queries: Array, k: int, inside: Array | None = None) -> Array:
    """Return the numbers (queries, k) of the nearest patches of a store, of those that are `inside`."""
    best, ids = np.full((len(queries), k), -2.0, "float32"), np.zeros((len(queries), k), "int64")
    for vectors, numbers in store_parts(path):
        if inside is not None:
            vectors, numbers = vectors[inside[numbers]], numbers[inside[numbers]]
        if not len(numbers):
            continue
        scores = np.concatenate([best, queries @ vectors.T], axis=1)
        both = np.concatenate([ids, np.broadcast_to(numbers, (len(queries), len(numbers)))], axis=1)
        top = np.argpartition(-scores, k, axis=1)[:, :k]
        best, ids = np.take_along_axis(scores, top, 1), np.take_along_axis(both, top, 1)
    return np.asarray(np.take_along_axis(ids, np.argsort(-best, axis=1), 1))


def measured(search: Callable[[Array], Array], queries: Array, truth: Array) -> dict[str, float]:
    """Return recall, and milliseconds per query."""
    search(queries[0])
    found, seconds = [], []
    for query in queries:
        start = time.perf_counter()
        found.append(search(query))
        seconds.append(time.perf_counter() - start)
    return {
        "recall10": round(recall(np.array(found), truth), 4),
        "ms": round(float(np.median(seconds)) * 1e3, 2),
        "ms95": round(float(np.percentile(seconds, 95)) * 1e3, 2),
    }


def measure_index(job: Index, vectors: Array, steps: Array) -> dict[str, Any]:
    """Build and search an index of a large store."""
    import deo_cube
    from benchmarks.real import peak_while
    from deo_cube.heads.index import PROBES

    store, path = job.work / f"vectors_{job.side}.zarr", job.work / f"vectors_{job.side}.index"
    large_store(store, vectors, steps, job.side)
    found: dict[str, Any] = {}
    if not (path / "built.json").exists():
        seconds, peak = peak_while(lambda: deo_cube.build_index(store, path, overwrite=True, progress=True))
        written = {"build_s": round(seconds), "peak_MB": round(peak / 1e6)}
        (path / "built.json").write_text(json.dumps(written))
    found |= json.loads((path / "built.json").read_text())
    index = deo_cube.open_index(path)
    queries = varied(vectors, steps, job.queries, seed=10**6)
    truth_file = job.work / f"truth_{job.side}.npz"
    # A hundredth of the area, in the middle.
    low, high = int(job.side * 0.45), int(job.side * 0.55)
    inside = np.zeros((job.side, job.side), bool)
    inside[low:high, low:high] = True
    if not truth_file.exists():
        start = time.perf_counter()
        truth = brute(store, queries, 10)
        spent = time.perf_counter() - start
        start = time.perf_counter()
        brute(store, queries[:1], 10)
        one = time.perf_counter() - start
        np.savez(truth_file, all=truth, part=brute(store, queries, 10, inside.ravel()), seconds=[spent, one])
    truth = np.load(truth_file)
    bbox = (500_000 + low * 40, 5_300_000 - high * 40, 500_000 + high * 40, 5_300_000 - low * 40)
    rows = []
    for probes in (8, 16, 32, 48, 64, 128):
        row = measured(lambda q, p=probes: index.search(q, k=10, probes=p)["id"].to_numpy(), queries, truth["all"])
        rows.append({"search": f"{probes} lists", **row})
    row = measured(lambda q: index.search(q, k=10, bbox=bbox)["id"].to_numpy(), queries, truth["part"])
    rows.append({"search": "default, in a hundredth of the area", **row})
    size = sum(f.stat().st_size for f in path.iterdir())
    return {
        "patches": len(index),
        "dim": int(vectors.shape[1]),
        **found,
        "size_GB": round(size / 1e9, 2),
        "store_GB": round(sum(f.stat().st_size for f in store.rglob("*") if f.is_file()) / 1e9, 2),
        "lists": index._manifest.lists,
        "default_probes": PROBES,
        "brute_force_ms": round(float(truth["seconds"][1]) * 1e3),
        "brute_force_batch_ms": round(float(truth["seconds"][0]) * 1e3 / job.queries),
        "queries": job.queries,
        "rows": rows,
        "cores": os.cpu_count(),
    }


@dataclass(frozen=True)
class Index:
    """Measure search by example."""

    data: Path
    """Folder with the shared real data."""
    work: Path = Path("runs/index")
    """Folder for vectors, store and index, which are kept."""
    side: int = 3200
    """Rows and columns of patches of the large store."""
    queries: int = 200
    """Number of queries."""
    parts: tuple[str, ...] = ("index", "engines", "feedback")
    """What is measured; other parts of the file are kept."""
    out: Path = ROOT / "docs" / "data" / "index.json"
    """File of the numbers."""


def main(job: Index) -> None:
    """Measure the parts of a job, and write them."""
    job.work.mkdir(parents=True, exist_ok=True)
    found = json.loads(job.out.read_text()) if job.out.exists() else {}
    measures = {"index": measure_index}
    if set(job.parts) - {"feedback"}:
        vectors, scenes = real_vectors(job.data, job.work / "real.npz")
        if not (job.work / "steps.npy").exists():
            np.save(job.work / "steps.npy", neighbour_steps(vectors, scenes))
        steps = np.load(job.work / "steps.npy")
    for part in job.parts:
        found[part] = measures[part](job, vectors, steps)
        print(json.dumps(found[part], indent=1))
        job.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Index))
