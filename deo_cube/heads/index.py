"""Search millions of patches by example, in an index that `build_index` wrote.

The index is FAISS's inverted file with 8-bit scalar quantization, cosine similarity, in segments on disk that are
mapped to memory when they are searched. It was chosen by measurement (`python -m benchmarks.index`,
docs/data/index.json).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import shapely
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer

from deo_cube import arguments
from deo_cube.cube.georeference import assign_grid
from deo_cube.cube.plain import plain, text
from deo_cube.cube.times import read_times
from deo_cube.embedding.metadata import COMPARABLE, PREFIX
from deo_cube.errors import ArgumentError, ArgumentTypeError, SelectionError, StoreMismatchError
from deo_cube.extras import require
from deo_cube.heads.examples import BACKGROUND, cells_of_examples, direction, unit, vectors_of
from deo_cube.heads.index_files import Files, Manifest, Source
from deo_cube.heads.tables import parsed_crs
from deo_cube.heads.vectors import as_embeddings, geobox, matching_times, select_time, spatial_dims
from deo_cube.paths import expand
from deo_cube.store.open import opened

__all__ = [
    "Index",
    "check_model",
    "faiss_library",
    "labels_of",
    "model_fields",
    "open_index",
    "opened_embeddings",
    "source_of",
]

Array = NDArray[Any]

PROBES = 24
"""Lists that a query is compared with."""
QUERIES = 32
"""Queries that many positive examples are reduced to."""


def open_index(path: Any, *, store: Any = None, storage_options: Mapping[str, Any] | None = None) -> Index:
    """Open a search index.

    Parameters
    ----------
    path : path, URL or zarr store
        Written by `build_index`. Files on an object store are fetched once, to the option `cache_dir`.
    store : path, DataArray, or list of them, optional
        The embeddings, where they are not at the path that the index was built from: examples that are places are read
        from them. One per source of the index.
    storage_options : mapping, optional
        As for `build_index`.

    Raises
    ------
    InputNotFoundError
        Where nothing is.
    StoreMismatchError
        For anything else than an index, and a `store` of another model or grid.
    """
    files = Files(path, storage_options)
    index = Index(files, files.existing(), storage_options)
    if store is not None:
        stores = list(store) if isinstance(store, list | tuple) else [store]
        for one in stores:
            array, _ = opened_embeddings(one, storage_options)
            index.check(array)
            source = source_of(array, None)
            numbers = [i for i, s in enumerate(index.sources) if s.same_grid(source)]
            if not numbers:
                raise StoreMismatchError(f"store has a grid that no source of {files.shown} has: {source.shape}")
            for number in numbers:
                index.attach(array, number)
    return index


class Index:
    """A search index of patches. Made by `build_index` and `open_index`.

    Searches do not change it, and may run in several threads.
    """

    def __init__(self, files: Files, manifest: Manifest, storage_options: Mapping[str, Any] | None = None) -> None:
        self._files, self._manifest, self._storage_options = files, manifest, storage_options
        self._arrays: dict[int, xr.DataArray] = {}

    def __len__(self) -> int:
        return self._manifest.vectors

    def __repr__(self) -> str:
        m = self._manifest
        dates = sum(len(s.layers) for s in m.sources)
        model = m.model.get("model") or "an unknown model"
        return (
            f"<Index: {len(self)} patches of {len(m.sources)} source(s), {dates} date(s), vectors of {m.dim} by "
            f"{model}, {m.lists} list(s) in {len(m.segments)} segment(s)>"
        )

    @property
    def times(self) -> list[Any]:
        """Dates that the index holds, in order; labels where the store has other labels."""
        labels = {x.time for s in self._manifest.sources for x in s.layers if x.time is not None}
        return sorted(labels)

    @property
    def crs(self) -> CRS:
        """CRS of the patches; EPSG:4326 where the sources have several."""
        known = {s.crs for s in self._manifest.sources}
        return CRS.from_user_input(known.pop() if len(known) == 1 else 4326)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Stores and arrays whose patches the index holds: path, grid and dates of each, in the order of `source`."""
        return self._manifest.sources

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self._manifest.dim

    @property
    def lists(self) -> int:
        """Number of inverted lists."""
        return self._manifest.lists

    @property
    def background(self) -> Array:
        """Sample (n, D) float64 of all vectors, at most 200, with which negatives are completed."""
        return self._sample[:BACKGROUND]

    def check(self, emb: xr.DataArray) -> None:
        """Raise if the vectors of `emb` cannot be compared with those of the index.

        Raises
        ------
        StoreMismatchError
            For embeddings of another model, or vectors of another length.
        """
        check_model(emb, self._manifest, self._files)

    def attach(self, array: xr.DataArray, number: int = 0) -> None:
        """Read examples that are places in source `number` from an array."""
        self._arrays[number] = array

    def attach_where_unknown(self, array: xr.DataArray) -> list[int]:
        """Attach an array to the sources on its grid that the index cannot open, and return their numbers.

        The index does not know the place of a source that was built from an array. `array` must hold all dates of
        such a source to be attached to it.
        """
        own, dates = source_of(array, None), set(labels_of(array))
        numbers = [
            n
            for n, source in enumerate(self.sources)
            if source.store is None
            and n not in self._arrays
            and source.same_grid(own)
            and {layer.time for layer in source.layers} <= dates
        ]
        for n in numbers:
            self.attach(array, n)
        return numbers

    def search(
        self,
        positives: Any,
        negatives: Any = None,
        *,
        k: int = 10,
        bbox: tuple[float, float, float, float] | None = None,
        time: Any = None,
        at: Any = None,
        crs: Any = None,
        examples: bool = False,
        probes: int | None = None,
    ) -> Any:
        """Return the patches most similar to positive examples, and unlike negative ones.

        Parameters
        ----------
        positives : (x, y), list of (x, y), geometry, table, file, former results, vectors, or DataArray
            As `to` of `similar`. Rows of a former result (with its column `id`) stand for exactly those patches.
        negatives : as `positives`, optional
            Counter-examples.
        k : int
            Number of results.
        bbox : (x0, y0, x1, y1), optional
            Only patches whose centres are within it.
        time : label or slice, optional
            Only patches of these dates: "2024", "2024-06", ``slice("2024-05", "2024-09")``.
        at : label, optional
            Date at which examples that are places are read ("2024-06": the mean of that month's valid vectors).
            Default: the vectors of all dates are examples.
        crs : CRS, optional
            CRS of `bbox`, points and geometries. Default: that of the index (`crs`); tables have their own.
        examples : bool
            Whether the patches of the examples may be among the results.
        probes : int, optional
            Inverted lists to compare with: more are slower and more exact, `lists` of them exact but for the rounding
            to 8 bits. Default 24; up to four times as many where
            `bbox` and `time` leave few patches, and as many as `k` results need.

        Returns
        -------
        GeoDataFrame
            A row per patch, the most similar first: `id`, `score` (cosine similarity to the nearest positive, or to the
            direction that separates positives from negatives), `time`, `source`, `row`, `col`, and the outline of the
            patch. Fewer than `k` rows where fewer patches are left.

        Raises
        ------
        ArgumentError
            For examples outside the index or without a valid vector, and arguments out of range.
        SelectionError
            Where `time` matches no date.
        """
        k = arguments.integer("k", k)
        own = parsed_crs(crs) or self.crs
        ids, vectors = self._read(positives, at, crs, "positives")
        if negatives is not None:
            others, counter = self._read(negatives, at, crs, "negatives")
            ids = np.concatenate([ids, others])
            queries = direction(vectors, counter, self.background)
        else:
            queries = _reduced(unit(vectors))
        allowed = self._allowed(bbox, time, own)
        left_out = np.unique(ids) if not examples else np.empty(0, "int64")
        found, scores = self._nearest(queries.astype("float32"), k + len(left_out), allowed, probes)
        chosen = ~np.isin(found, left_out)
        return self._table(found[chosen][:k], scores[chosen][:k])

    def patches(self, ids: Iterable[int]) -> Any:
        """Return the patches with these ids as a GeoDataFrame, like a result without scores.

        Raises
        ------
        SelectionError
            For an id that the index does not have.
        """
        numbers = self._numbers(ids)
        return self._table(numbers, np.full(len(numbers), np.nan, "float32"))

    def vectors(self, ids: Iterable[int]) -> Array:
        """Return the vectors of the patches with these ids, float64 (n, D), read from their stores.

        NaN where a patch has no valid embedding.

        Raises
        ------
        SelectionError
            For an id that the index does not have.
        ArgumentError
            For patches of an array that is not attached.
        """
        return self._of_ids(self._numbers(ids))

    def _numbers(self, ids: Iterable[int]) -> Array:
        """Return ids as an array (n,), if the index has them."""
        numbers = np.asarray(list(ids), "int64").reshape(-1)
        if ((numbers < 0) | (numbers >= self._manifest.numbers)).any():
            raise SelectionError(
                f"ids must be those of results, 0 to {self._manifest.numbers - 1}, got {numbers[:5].tolist()}"
            )
        return numbers

    # --- examples ---

    def _read(self, given: Any, at: Any, crs: Any, argument: str) -> tuple[Array, Array]:
        """Return ids (n,) of the patches of examples, and their finite vectors (m, D)."""
        numbers = _ids(given)
        if numbers is not None:
            vectors = self.vectors(numbers)
        else:
            as_vectors = vectors_of(given, self._manifest.dim, _attrs(self._manifest), argument)
            if as_vectors is not None:
                numbers, vectors = np.empty(0, "int64"), np.asarray(as_vectors.values, "float64")
            else:
                numbers, vectors = self._of_places(given, at, crs, argument)
        vectors = vectors[np.isfinite(vectors).all(axis=1)]
        if not len(vectors):
            raise ArgumentError(f"{argument} must have a valid embedding, but have none: choose other places, or at=")
        return numbers, vectors

    def _of_places(self, places: Any, at: Any, crs: Any, argument: str) -> tuple[Array, Array]:
        """Return ids and vectors of the patches at places, from the sources that contain them."""
        numbers, vectors, refused = [], [], None
        for i, source in enumerate(self._manifest.sources):
            own = None if _states_crs(places) else crs
            if own is None and not _states_crs(places) and CRS.from_user_input(source.crs) != self.crs:
                own = self.crs
            try:
                rows, cols, _ = cells_of_examples(_grid(source, self._manifest.dim), places, own, argument)
            except ArgumentError as error:
                refused = refused or error
                continue
            array = self._array(i)
            y, x = spatial_dims(array)
            cells = {y: xr.DataArray(rows, dims="case"), x: xr.DataArray(cols, dims="case")}
            read = (array if at is None else select_time(array, at, argument="at")).isel(cells)
            values = read.transpose(..., "case", "embedding").values.astype("float64")
            vectors.append(values.reshape(-1, values.shape[-1]))
            flat = rows * source.shape[1] + cols
            numbers += [layer.first + flat for layer in source.layers]
        if not vectors:
            assert refused is not None
            raise refused
        return np.concatenate(numbers), np.concatenate(vectors)

    def _of_ids(self, numbers: Array) -> Array:
        """Return the vectors of patches, from the stores."""
        out = np.full((len(numbers), self._manifest.dim), np.nan)
        for i, source in enumerate(self._manifest.sources):
            array = self._array(i)
            y, x = spatial_dims(array)
            for layer in source.layers:
                at = np.flatnonzero((numbers >= layer.first) & (numbers < layer.first + source.patches))
                if not len(at):
                    continue
                rows, cols = np.divmod(numbers[at] - layer.first, source.shape[1])
                one = array.isel(time=labels_of(array).index(layer.time)) if "time" in array.dims else array
                read = one.isel({y: xr.DataArray(rows, dims="case"), x: xr.DataArray(cols, dims="case")})
                out[at] = read.transpose("case", "embedding").values
        return out

    def _array(self, number: int) -> xr.DataArray:
        if number not in self._arrays:
            store = self._manifest.sources[number].store
            if store is None:
                raise ArgumentError(
                    f"store must be passed where examples are places, since {self._files.shown} was built from an "
                    "array: open_index(path, store=emb); or pass vectors"
                )
            self._arrays[number] = as_embeddings(opened(store, "store", storage_options=self._storage_options))
        return self._arrays[number]

    @cached_property
    def _sample(self) -> Array:
        read: Array = np.load(self._files.fetched(self._manifest, self._manifest.sample), allow_pickle=False)
        return read.astype("float64")

    # --- search ---

    @cached_property
    def _segments(self) -> list[Any]:
        faiss = faiss_library()
        paths = [self._files.fetched(self._manifest, s.file) for s in self._manifest.segments]
        # Mapped, not read: a search touches only the lists that it compares.
        return [faiss.read_index(str(p), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY) for p in paths]

    def _nearest(self, queries: Array, k: int, allowed: Array | None, probes: int | None) -> tuple[Array, Array]:
        """Return ids and scores of the `k` patches nearest to any query, each once, in order."""
        faiss = faiss_library()
        lists = self._manifest.lists
        left = self._manifest.numbers if allowed is None else int(np.count_nonzero(allowed))
        if not left or not len(self):
            return np.empty(0, "int64"), np.empty(0, "float32")
        n = PROBES if probes is None else arguments.integer("probes", probes)
        if probes is None:
            # Of fewer patches the nearest are farther away, in more lists; more than this gains nothing measurable.
            n = math.ceil(n * min(math.sqrt(self._manifest.numbers / left), 4))
        # Lists hold about equally many vectors: enough lists for k results of what the filters leave.
        n = min(max(n, math.ceil(4 * k * lists / left)), lists)
        selector = None
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
        while True:
            found = [
                s.search(queries, k, params=faiss.IVFSearchParameters(sel=selector, nprobe=n)) for s in self._segments
            ]
            scores = np.concatenate([s.ravel() for s, _ in found])
            ids = np.concatenate([i.ravel() for _, i in found])
            order = np.argsort(-scores, kind="stable")
            order = order[ids[order] >= 0]
            _, first = np.unique(ids[order], return_index=True)
            order = order[np.sort(first)][:k]
            if len(order) >= min(k, left) or n >= lists:
                return ids[order], scores[order].clip(-1, 1)
            n = min(4 * n, lists)

    def _allowed(self, bbox: Any, time: Any, crs: CRS) -> Array | None:
        """Return which numbers of patches `bbox` and `time` leave; None for all."""
        if bbox is None and time is None:
            return None
        allowed = np.zeros(self._manifest.numbers, bool)
        window = None if bbox is None else _window(bbox)
        dates = None if time is None else self._dates(time)
        for source in self._manifest.sources:
            inside = None if window is None else _centres_within(source, window, crs)
            for layer in source.layers:
                if dates is None or layer.time in dates:
                    part = allowed[layer.first : layer.first + source.patches].reshape(source.shape)
                    part[inside or ...] = True
        return allowed

    def _dates(self, time: Any) -> set[str]:
        labels = self.times
        if not labels:
            raise ArgumentError(f"time={time!r} needs an index with dates, this one has none")
        positions = xr.DataArray(np.arange(len(labels)), dims="time", coords={"time": _parsed(labels)})
        selected = np.atleast_1d(matching_times(positions, time).values)
        return {labels[i] for i in selected}

    def _table(self, ids: Array, scores: Array) -> Any:
        gpd = require("geopandas", extra="index", purpose="a table of results")
        shapes = np.empty(len(ids), dtype=object)
        source = np.zeros(len(ids), "int64")
        rows, cols = np.zeros(len(ids), "int64"), np.zeros(len(ids), "int64")
        times: list[Any] = [None] * len(ids)
        for i, s in enumerate(self._manifest.sources):
            t = Affine(*s.transform)
            for layer in s.layers:
                at = np.flatnonzero((ids >= layer.first) & (ids < layer.first + s.patches))
                if not len(at):
                    continue
                r, c = np.divmod(ids[at] - layer.first, s.shape[1])
                source[at], rows[at], cols[at] = i, r, c
                for j in at:
                    times[j] = layer.time
                ys = t.f + r * t.e, t.f + (r + 1) * t.e
                boxes = shapely.box(t.c + c * t.a, np.minimum(*ys), t.c + (c + 1) * t.a, np.maximum(*ys))
                own = CRS.from_user_input(s.crs)
                shapes[at] = boxes if own == self.crs else gpd.GeoSeries(boxes, crs=own).to_crs(self.crs).to_numpy()
        columns = {"id": ids, "score": scores, "source": source, "row": rows, "col": cols}
        if self.times:
            columns = {"id": ids, "score": scores, "time": _parsed(times), "source": source, "row": rows, "col": cols}
        return gpd.GeoDataFrame(columns, geometry=shapes, crs=self.crs)


# --- sources ---


def opened_embeddings(emb: Any, storage_options: Mapping[str, Any] | None) -> tuple[xr.DataArray, str | None]:
    """Return decoded embeddings, and the path of their store where `emb` is one."""
    if isinstance(emb, xr.DataArray | xr.Dataset):
        return as_embeddings(emb), None
    try:
        text = expand(emb)
    except TypeError:
        raise ArgumentTypeError(
            f"emb must be the path of a store of embeddings, or a DataArray, got {type(emb).__name__}"
        ) from None
    return as_embeddings(opened(emb, storage_options=storage_options)), text


def model_fields(array: xr.DataArray) -> dict[str, str]:
    """Return the attributes that decide whether vectors can be compared."""
    return {k: str(array.attrs.get(PREFIX + k, "")) for k in COMPARABLE}


def _attrs(manifest: Manifest) -> dict[str, str]:
    return {PREFIX + k: v for k, v in manifest.model.items()}


def check_model(array: xr.DataArray, manifest: Manifest, files: Files) -> None:
    """Raise if vectors of an array cannot be compared with those of an index.

    Raises
    ------
    StoreMismatchError
        For another length or model.
    """
    if array.sizes["embedding"] != manifest.dim:
        raise StoreMismatchError(
            f"{files.shown} holds vectors of length {manifest.dim}, emb has {array.sizes['embedding']}: embed with the "
            "model of the index, or choose another path"
        )
    ours = model_fields(array)
    differ = [k for k in COMPARABLE if ours[k] != manifest.model.get(k, "")]
    if differ:
        listed = "; ".join(f"{k}: index {manifest.model.get(k, '')!r}, emb {ours[k]!r}" for k in differ)
        raise StoreMismatchError(
            f"{files.shown} holds vectors of another model, which cannot be compared ({listed}): embed with the model "
            "of the index, choose another path, or pass overwrite=True"
        )


def source_of(array: xr.DataArray, place: str | None) -> Source:
    """Return an array as a source of an index: its grid, and the path of its store."""
    box = geobox(array)
    return Source(place, box.crs.wkt, tuple(box.transform)[:6], (int(box.shape[0]), int(box.shape[1])))


def _grid(source: Source, dim: int) -> xr.DataArray:
    """Return an array of zeros without memory on the grid of a source, to find places without opening the store."""
    zeros = np.broadcast_to(np.float32(0), (dim, *source.shape))
    box = GeoBox(source.shape, Affine(*source.transform), source.crs)
    return assign_grid(xr.DataArray(zeros, dims=("embedding", "y", "x")), box)


def labels_of(array: xr.DataArray) -> list[str | None]:
    """Return the dates of an array as text, one None without time."""
    if "time" not in array.coords:
        return [None] * array.sizes.get("time", 1)
    times = read_times(array["time"].variable)
    values = np.atleast_1d(np.asarray(times.values))
    if times.dated:
        return [str(v) for v in values.astype("datetime64[s]")]
    return [text(plain(v)) for v in values]


def _parsed(labels: Sequence[Any]) -> Array:
    """Return labels as dates, if all are."""
    try:
        return np.array(["NaT" if x is None else x for x in labels], dtype="datetime64[ns]")
    except ValueError:
        return np.array(labels, dtype=object)


def faiss_library() -> Any:
    """Return FAISS.

    Raises
    ------
    MissingExtraError
        Where it is not installed.
    """
    return require("faiss", extra="index", purpose="a search index")


# --- arguments of a search ---


def _ids(given: Any) -> Array | None:
    """Return the ids of rows of a former result: a table with a column `id`, or that column."""
    if type(given).__module__.startswith(("pandas.", "geopandas.")):
        if getattr(given, "ndim", 0) == 2 and {"id", "row", "col"} <= set(map(str, given.columns)):
            given = given["id"]
        if getattr(given, "ndim", 0) == 1 and getattr(given, "name", None) == "id":
            return np.asarray(given, "int64")
    return None


def _states_crs(places: Any) -> bool:
    """Return whether places are a table with a CRS, or a file, to which the CRS of points does not apply."""
    return isinstance(places, str | os.PathLike) or getattr(places, "crs", None) is not None


def _reduced(vectors: Array) -> Array:
    """Return at most `QUERIES` vectors: the centres of groups of more."""
    if len(vectors) <= QUERIES:
        return vectors
    cluster = require("sklearn.cluster", extra="index", purpose="a search with many examples")
    return unit(cluster.KMeans(QUERIES, n_init=1, random_state=0).fit(vectors).cluster_centers_)


def _window(bbox: Any) -> tuple[float, float, float, float]:
    try:
        x0, y0, x1, y1 = (float(v) for v in bbox)
    except (TypeError, ValueError):
        raise ArgumentError(f"bbox must be (x0, y0, x1, y1), got {bbox!r}") from None
    if not (np.isfinite([x0, y0, x1, y1]).all() and x0 < x1 and y0 < y1):
        raise ArgumentError(f"bbox must be (x0, y0, x1, y1) with x0 < x1 and y0 < y1, got {bbox!r}")
    return x0, y0, x1, y1


def _centres_within(source: Source, window: tuple[float, float, float, float], crs: CRS) -> tuple[Any, Any]:
    """Return the rows and columns of the patches whose centres are within a window: slices in the CRS of the source."""
    x0, y0, x1, y1 = window
    t, (rows, cols) = Affine(*source.transform), source.shape
    own = CRS.from_user_input(source.crs)
    xs, ys = t.c + (np.arange(cols) + 0.5) * t.a, t.f + (np.arange(rows) + 0.5) * t.e
    if own.equals(crs, ignore_axis_order=True):
        return _run((ys >= y0) & (ys <= y1)), _run((xs >= x0) & (xs <= x1))
    r, c = _rows_and_columns_near(source, window, crs, xs, ys)
    gx, gy = np.meshgrid(xs[c], ys[r])
    px, py = Transformer.from_crs(own, crs, always_xy=True).transform(gx, gy)
    i, j = np.nonzero((px >= x0) & (px <= x1) & (py >= y0) & (py <= y1))
    return r[i], c[j]


def _rows_and_columns_near(
    source: Source, window: tuple[float, float, float, float], crs: CRS, xs: Array, ys: Array
) -> tuple[Array, Array]:
    """Return the rows and columns that may be within a window in another CRS: a few more than are."""
    own = CRS.from_user_input(source.crs)
    t = Affine(*source.transform)
    (rows, cols), everything = source.shape, (np.arange(len(ys)), np.arange(len(xs)))
    edges = sorted((t.c, t.c + cols * t.a)), sorted((t.f, t.f + rows * t.e))
    outline = edges[0][0], edges[1][0], edges[0][1], edges[1][1]
    # Only the part of the window that is near the source can be projected: a UTM zone does not hold the whole world.
    west, south, east, north = Transformer.from_crs(own, crs, always_xy=True).transform_bounds(*outline, 51)
    if not np.isfinite([west, south, east, north]).all() or west > east:  # across the antimeridian
        return everything
    beside = 0.02 * max(east - west, north - south)
    x0, y0 = max(window[0], west - beside), max(window[1], south - beside)
    x1, y1 = min(window[2], east + beside), min(window[3], north + beside)
    if x0 >= x1 or y0 >= y1:
        return np.empty(0, "int64"), np.empty(0, "int64")
    west, south, east, north = Transformer.from_crs(crs, own, always_xy=True).transform_bounds(x0, y0, x1, y1, 51)
    if not np.isfinite([west, south, east, north]).all() or west > east:
        return everything
    margin = max(abs(t.a), abs(t.e)) + 0.01 * max(east - west, north - south)
    r = np.flatnonzero((ys >= south - margin) & (ys <= north + margin))
    c = np.flatnonzero((xs >= west - margin) & (xs <= east + margin))
    return r, c


def _run(inside: Array) -> slice:
    """Return a run of True as a slice."""
    places = np.flatnonzero(inside)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
