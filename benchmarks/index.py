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
PAGE = ROOT / "docs" / "howto" / "search.md"
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


def brute(path: Path, queries: Array, k: int, inside: Array) -> tuple[Array, Array, float]:
    """Return the numbers (queries, k) of the nearest patches, of all and of those `inside`; and seconds for one query.

    The seconds are those of the first tenth of the blocks, times ten: reading, normalizing and comparing.
    """
    best = [np.full((len(queries), k), -2.0, "float32") for _ in range(2)]
    ids = [np.zeros((len(queries), k), "int64") for _ in range(2)]
    seconds, patches, start = 0.0, 0, time.perf_counter()
    for vectors, numbers in store_parts(path):
        if patches < inside.size / 10:
            _ = np.argpartition(-(vectors @ queries[0]), k)[:k]
            seconds += time.perf_counter() - start
            patches += len(vectors)
        for which, chosen in enumerate((slice(None), inside[numbers])):
            v, n = vectors[chosen], numbers[chosen]
            scores = np.concatenate([best[which], queries @ v.T], axis=1)
            both = np.concatenate([ids[which], np.broadcast_to(n, (len(queries), len(n)))], axis=1)
            top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            best[which], ids[which] = np.take_along_axis(scores, top, 1), np.take_along_axis(both, top, 1)
        start = time.perf_counter()
    found = [np.take_along_axis(i, np.argsort(-b, axis=1), 1) for i, b in zip(ids, best, strict=True)]
    return found[0], found[1], seconds * inside.size / max(patches, 1)


def measured(search: Callable[[Array], Array], queries: Array, truth: Array) -> dict[str, float]:
    """Return recall, and milliseconds per query: of one core, and elapsed, which the load of the machine adds to."""
    search(queries[0])
    found, seconds, cpu = [], [], []
    for query in queries:
        start, used = time.perf_counter(), time.process_time()
        found.append(search(query))
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return {
        "recall10": round(recall(np.array(found), truth), 4),
        "cpu_ms": round(float(np.median(cpu)) * 1e3, 2),
        "ms": round(float(np.median(seconds)) * 1e3, 2),
        "ms95": round(float(np.percentile(seconds, 95)) * 1e3, 2),
    }


def measure_index(job: Index, vectors: Array, steps: Array) -> dict[str, Any]:
    """Build and search an index of a large store."""
    import deo_cube
    from benchmarks.real import peak_while
    from deo_cube.heads.index import PROBES

    store, path = job.work / f"vectors_{job.side}.zarr", job.work / f"vectors_{job.side}.index"
    if not store.exists():
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
        everywhere, within, seconds = brute(store, queries, 10, inside.ravel())
        np.savez(truth_file, all=everywhere, part=within, seconds=seconds)
    truth = np.load(truth_file)
    bbox = (500_000 + low * 40, 5_300_000 - high * 40, 500_000 + high * 40, 5_300_000 - low * 40)
    rows = []
    for probes in (4, 8, 16, 24, 48, 96):
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
        "lists": index.lists,
        "default_probes": PROBES,
        "brute_force_ms": round(float(truth["seconds"]) * 1e3),
        "queries": job.queries,
        "rows": rows,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


# --- right and wrong examples ---


def labelled_vectors(job: Index) -> list[tuple[str, Array, Array, tuple[int, ...]]]:
    """Return name, vectors, labels and searched classes of EuroSAT's chips and of worldwide patches."""
    cache = job.work / "feedback.npz"
    if not cache.exists():
        from deo_cube.evaluate.features import as_encode, encode_scenes, pool_chips
        from deo_cube.evaluate.readers import read_eurosat, read_worldcover16

        encode, rng = as_encode("tiny", device="cpu"), np.random.default_rng(0)
        chips = read_eurosat(job.data / "eurosat_rgb", spatial=True)
        some = rng.permutation(len(chips.labels))[:4000]
        scenes, _ = read_worldcover16(job.data / "places" / "gcp_worldcover16", limit=2500)
        vectors, labels = [], []
        for scene, tokens in zip(scenes, encode_scenes(encode, scenes), strict=True):
            h, w = tokens.values.shape[1:]
            k = tokens.stride
            pixels = scene.label[: h * k, : w * k].reshape(h, k, w, k).transpose(0, 2, 1, 3).reshape(h * w, -1)
            # One patch of each chip, of which three quarters are of one class.
            i = rng.integers(h * w)
            most = np.bincount(np.maximum(pixels[i], 0), minlength=10).argmax()
            if (pixels[i] >= 0).all() and (pixels[i] == most).mean() >= 0.75:
                vectors.append(tokens.values[:, i // w, i % w])
                labels.append(most)
        pooled = pool_chips(encode, chips.images[some], chips.bands)
        np.savez(cache, ez=pooled, ey=chips.labels[some], wz=np.array(vectors), wy=np.array(labels))
    z = np.load(cache)
    worldwide = (0, 1, 2, 4, 5, 7)  # the classes with more than a hundred patches
    return [("EuroSAT chips", z["ez"], z["ey"], tuple(range(10))), ("worldwide patches", z["wz"], z["wy"], worldwide)]


def rankings(x: Array, background: Array) -> dict[str, Callable[[Array, Array], Array]]:
    """Return ways to score vectors (n, D) of length one by positives and negatives."""
    from deo_cube.heads.similar import direction
    from deo_cube.heads.vectors import unit

    def nearest_positive(p: Array, n: Array) -> Array:
        return np.asarray((x @ p.T).max(axis=1))

    def rocchio(weight: float, p: Array, n: Array) -> Array:
        return np.asarray(x @ (unit(p.mean(axis=0)) if not len(n) else unit(p.mean(axis=0) - weight * n.mean(axis=0))))

    def difference(p: Array, n: Array) -> Array:
        return np.asarray((x @ p.T).max(axis=1) - (0.5 * (x @ n.T).max(axis=1) if len(n) else 0))

    def linear(sample: Array, p: Array, n: Array) -> Array:
        return np.asarray(x @ direction(p, n, sample)[0]) if len(n) else nearest_positive(p, n)

    return {
        "nearest positive": nearest_positive,
        "mean of positives": partial(rocchio, 0.0),
        "Rocchio, negatives by 0.25": partial(rocchio, 0.25),
        "Rocchio, negatives by 0.5": partial(rocchio, 0.5),
        "Rocchio, negatives by 0.75": partial(rocchio, 0.75),
        "nearest positive less half the nearest negative": difference,
        "logistic regression": partial(linear, np.empty((0, x.shape[1]))),
        "logistic regression with a sample of all": partial(linear, background),
    }


def measure_feedback(job: Index, *_: Any) -> dict[str, Any]:
    """Return the share of right ones among the 50 best of what is not labelled, in four rounds of labelling 20."""
    from deo_cube.heads.similar import BACKGROUND
    from deo_cube.heads.vectors import unit

    rows = []
    for name, vectors, labels, classes in labelled_vectors(job):
        x, rng = unit(vectors.astype("float64")), np.random.default_rng(1)
        starts = [(c, int(rng.choice(np.flatnonzero(labels == c)))) for c in classes for _ in range(6)]
        background = x[rng.permutation(len(x))[:BACKGROUND]]
        for way, score in rankings(x, background).items():
            precision = np.zeros((4, len(starts)))
            for j, (label, start) in enumerate(starts):
                right, wrong = [start], []
                for i in range(4):
                    scores = score(x[right], x[wrong]).copy()
                    scores[right + wrong] = -np.inf
                    best = np.argsort(-scores)
                    precision[i, j] = (labels[best[:50]] == label).mean()
                    right += [b for b in best[:20] if labels[b] == label]
                    wrong += [b for b in best[:20] if labels[b] != label]
            rows.append({"data": name, "ranking": way, "precision50": np.round(precision.mean(axis=1), 3).tolist()})
    return {"rows": rows, "searches": 6}


# --- engines ---


def engines(vectors: Array) -> Iterator[tuple[str, float, int, dict[Any, Callable[[Array], Array]]]]:
    """Build with each library that is installed; yield its name, seconds, bytes, and searches by parameter."""
    import shutil
    import tempfile

    n, dim = vectors.shape
    folder = Path(tempfile.mkdtemp(prefix="deo_cube_index"))
    lists = 2 ** round(np.log2(0.4 * np.sqrt(n)))
    try:
        import faiss

        for kind in (f"IVF{lists},SQfp16", f"IVF{lists},SQ8", f"IVF{lists},SQ4", f"IVF{lists},PQ96x4fs", "HNSW16,SQ8"):
            start = time.perf_counter()
            index = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors[: 64 * lists])
            index.add(vectors)
            seconds = time.perf_counter() - start
            faiss.write_index(index, str(folder / "faiss"))
            searches = {}
            for p in (16, 32, 64):
                key, made = (
                    ("efSearch", faiss.SearchParametersHNSW)
                    if "HNSW" in kind
                    else ("nprobe", faiss.SearchParametersIVF)
                )
                searches[p] = lambda q, i=index, m=made, k=key, p=p: i.search(q[None], 10, params=m(**{k: p}))[1][0]
            yield f"FAISS {kind}", seconds, (folder / "faiss").stat().st_size, searches
    except ImportError:
        pass
    try:
        from usearch.index import Index as Graph

        start = time.perf_counter()
        graph = Graph(ndim=dim, metric="cos", dtype="i8", connectivity=16, expansion_add=80)
        graph.add(np.arange(n), vectors, threads=1)
        seconds = time.perf_counter() - start
        graph.save(str(folder / "usearch"))

        def graph_search(q: Array, p: int) -> Array:
            graph.expansion_search = p
            return np.asarray(graph.search(q, 10).keys).ravel()

        searches = {p: partial(graph_search, p=p) for p in (32, 64, 128)}
        yield "usearch HNSW16 i8", seconds, (folder / "usearch").stat().st_size, searches
    except ImportError:
        pass
    try:
        import lance
        import pyarrow as pa

        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
        start = time.perf_counter()
        table = lance.write_dataset(pa.table({"id": np.arange(n), "v": values}), str(folder / "lance"))
        table.create_index("v", "IVF_PQ", metric="dot", num_partitions=int(lists), num_sub_vectors=48)
        seconds = time.perf_counter() - start

        def refined(q: Array, p: int) -> Array:
            nearest_to = {"column": "v", "q": q, "k": 10, "nprobes": p, "refine_factor": 10}
            return np.asarray(table.to_table(nearest=nearest_to, columns=["id"])["id"].to_numpy())

        size = sum(f.stat().st_size for f in (folder / "lance").rglob("*") if f.is_file())
        yield "Lance IVF_PQ, refined", seconds, size, {p: partial(refined, p=p) for p in (16, 32, 64)}
    except ImportError:
        pass
    shutil.rmtree(folder)


def measure_engines(job: Index, vectors: Array, steps: Array) -> dict[str, Any]:
    """Compare libraries and codes on fewer vectors, in memory."""
    n = job.engine_vectors
    many, queries = varied(vectors, steps, n, seed=7), varied(vectors, steps, job.queries, seed=10**6)
    parts = np.array_split(many, max(n // 50_000, 1))
    truth = nearest(iter(parts), queries, 10)
    rows = []
    for name, seconds, size, searches in engines(many):
        for parameter, search in searches.items():
            row = {
                "engine": name,
                "build_s": round(seconds),
                "bytes_per_vector": round(size / n),
                "parameter": parameter,
            }
            rows.append(row | measured(search, queries, truth))
            print(rows[-1], flush=True)
    return {"vectors": n, "rows": rows}


@dataclass(frozen=True)
class Index:
    """Measure search by example."""

    data: Path
    """Folder with the shared real data."""
    work: Path = Path("runs/index")
    """Folder for vectors, store and index, which are kept."""
    side: int = 3200
    """Rows and columns of patches of the large store."""
    queries: int = 100
    """Number of queries."""
    engine_vectors: int = 200_000
    """Vectors that libraries are compared on."""
    parts: tuple[str, ...] = ("index", "engines", "feedback")
    """What is measured; other parts of the file are kept."""
    out: Path = ROOT / "docs" / "data" / "index.json"
    """File of the numbers."""


def tables(found: dict[str, Any]) -> dict[str, str]:
    """Return the tables of the page by name, as Markdown."""
    index, engine, feedback = (found[k] for k in ("index", "engines", "feedback"))
    hundreds = f"{index['brute_force_ms']:,}".replace(",", " ")
    lines = ["| search | recall@10 | ms of one core | ms elapsed |", "|---|---|---|---|"]
    lines += [f"| {r['search']} | {r['recall10']:.3f} | {r['cpu_ms']:.0f} | {r['ms']:.0f} |" for r in index["rows"]]
    lines += [f"| brute force over the store | 1 | | {hundreds} |"]
    engines = [
        "| library and codes | build, s | bytes per vector | parameter | recall@10 | ms |",
        "|---|---|---|---|---|---|",
    ]
    engines += [
        f"| {r['engine']} | {r['build_s']} | {r['bytes_per_vector']} | {r['parameter']} "
        f"| {r['recall10']:.3f} | {r['ms']:.2f} |"
        for r in engine["rows"]
    ]
    rounds = ["| data | ranking | 1 example | round 2 | round 3 | round 4 |", "|---|---|---|---|---|---|"]
    rounds += [
        f"| {r['data']} | {r['ranking']} | " + " | ".join(f"{v:.2f}" for v in r["precision50"]) + " |"
        for r in feedback["rows"]
    ]
    return {"index": "\n".join(lines), "engines": "\n".join(engines), "feedback": "\n".join(rounds)}


def with_tables(text: str, found: dict[str, Any]) -> str:
    """Return a page with the present tables between ``<!-- table: NAME -->`` and ``<!-- end -->``."""
    for name, table in tables(found).items():
        mark = f"<!-- table: {name} -->"
        before, _, rest = text.partition(mark)
        text = f"{before}{mark}\n\n{table}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}" if rest else text
    return text


def main(job: Index) -> None:
    """Measure the parts of a job, and write them."""
    job.work.mkdir(parents=True, exist_ok=True)
    found = json.loads(job.out.read_text()) if job.out.exists() else {}
    measures: dict[str, Callable[..., dict[str, Any]]] = {
        "index": measure_index,
        "engines": measure_engines,
        "feedback": measure_feedback,
    }
    vectors = steps = np.empty(0)
    if set(job.parts) - {"feedback"}:
        vectors, scenes = real_vectors(job.data, job.work / "real.npz")
        if not (job.work / "steps.npy").exists():
            np.save(job.work / "steps.npy", neighbour_steps(vectors, scenes))
        steps = np.load(job.work / "steps.npy")
    for part in job.parts:
        found[part] = measures[part](job, vectors, steps)
        print(json.dumps(found[part], indent=1))
        job.out.write_text(json.dumps(found, indent=1) + "\n")
    if job.out == Index.out:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Index))
