"""Index millions of patches (`build_index`), and search them by example (`open_index`).

The index is FAISS's inverted file with 8-bit scalar quantization, cosine similarity, in segments on disk that are
mapped to memory when they are searched. It was chosen by measurement (`python -m benchmarks.index`,
docs/data/index.json).
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer

from deo_cube import arguments
from deo_cube.constants import Attribute
from deo_cube.cube.georeference import assign_grid
from deo_cube.cube.plain import plain, text
from deo_cube.cube.times import read_times
from deo_cube.embedding.metadata import COMPARABLE, PREFIX
from deo_cube.errors import ArgumentError, ArgumentTypeError, SelectionError, StorageError, StoreMismatchError, remedy
from deo_cube.extras import require
from deo_cube.heads.similar import BACKGROUND, cells_of_examples, direction, vectors_of
from deo_cube.heads.tables import parsed_crs
from deo_cube.heads.vectors import as_embeddings, geobox, matching_times, select_time, spatial_dims, unit
from deo_cube.options import get_option
from deo_cube.paths import expand, is_url, not_found
from deo_cube.progress import Progress
from deo_cube.store import create, storage
from deo_cube.store.open import opened

__all__ = [
    "Files",
    "Index",
    "IndexedDate",
    "MANIFEST",
    "Manifest",
    "SEGMENT",
    "Segment",
    "IndexedSource",
    "build_index",
    "check_comparable",
    "faiss_library",
    "labels_of",
    "model_fields",
    "open_index",
    "opened_embeddings",
    "source_of",
]


Array = NDArray[Any]

# --- The files of a search index: a manifest, segments of inverted lists, and what each has been made from ---
#
# An index is a folder or a prefix of an object store::
#
#     index.json               manifest: model, sources with their grids and dates, names and sizes of the files
#     segment-<uuid>.faiss     inverted lists of at most `SEGMENT` vectors: int8 codes and the numbers of the patches
#     covered-<uuid>.npy       per source, (dates, rows, columns) of blocks: the record's number of each indexed block
#     sample-<uuid>.npy        float16 (n, D): a sample of the vectors, with which negatives are completed
#
# Files other than the manifest never change, so that a cached copy is right as long as its name is in the manifest. The
# manifest is replaced last: a process that is killed leaves the index as it was, with files that no manifest names.
#
# A patch has a number: the first number of its layer (one date of one source) plus its row times the columns plus its
# column. Numbers are never given twice, and stay when the index is extended.

MANIFEST = "index.json"
FORMAT = 1
SEGMENT = 2**21
"""Vectors of a segment, which is held in memory while it is filled: 0.4 GB at 192 numbers."""


@dataclass(frozen=True)
class IndexedDate:
    """One date of a source."""

    time: str | None
    """ISO 8601, the text of a label that is not a date, or None without time."""
    first: int
    """Number of its first patch."""


@dataclass(frozen=True)
class IndexedSource:
    """A store, or an array, whose patches are in the index."""

    store: str | None
    """Path or URL; None for an array."""
    crs: str
    transform: tuple[float, ...]
    shape: tuple[int, int]
    layers: tuple[IndexedDate, ...] = ()
    covered: str = ""
    """File of the blocks that are in the index."""

    @property
    def patches(self) -> int:
        """Patches of one layer."""
        return self.shape[0] * self.shape[1]

    def same_grid(self, other: IndexedSource) -> bool:
        """Return whether both have the same CRS, transform and shape."""
        return (self.crs, self.shape) == (other.crs, other.shape) and bool(
            np.allclose(self.transform, other.transform, rtol=1e-12, atol=1e-9)
        )


@dataclass(frozen=True)
class Segment:
    """One file of inverted lists."""

    file: str
    vectors: int


@dataclass(frozen=True)
class Manifest:
    """Contents of an index."""

    model: Mapping[str, str]
    """Attributes that decide whether vectors can be compared."""
    dim: int
    lists: int
    min_valid: float = 0.0
    sources: tuple[IndexedSource, ...] = ()
    segments: tuple[Segment, ...] = ()
    sample: str = ""
    revision: str = ""
    """Changes at every write."""
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Of the index, under which its files are cached."""
    format: int = FORMAT

    @property
    def numbers(self) -> int:
        """Number after the last patch, indexed or not."""
        return sum(len(s.layers) * s.patches for s in self.sources)

    @property
    def vectors(self) -> int:
        """Indexed vectors."""
        return sum(s.vectors for s in self.segments)

    def files(self) -> set[str]:
        """Return the names of all files but the manifest."""
        return {self.sample, *(s.file for s in self.segments), *(s.covered for s in self.sources)} - {""}

    def to_json(self) -> bytes:
        """Return the manifest as it is stored."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Read a manifest.

        Raises
        ------
        ValueError, KeyError, TypeError
            For anything else.
        """
        fields = json.loads(data)
        sources = [
            IndexedSource(
                **{**s, "transform": tuple(s["transform"]), "shape": tuple(s["shape"]), "layers": tuple(layers)}
            )
            for s in fields.pop("sources")
            for layers in [[IndexedDate(**x) for x in s["layers"]]]
        ]
        segments = tuple(Segment(**s) for s in fields.pop("segments"))
        return cls(**fields, sources=tuple(sources), segments=segments)


class Files:
    """Files of an index on disk or on an object store, of which this machine keeps a copy.

    Parameters
    ----------
    path : path, URL or zarr store
    storage_options : mapping, optional
        As for `to_zarr`.
    """

    def __init__(self, path: Any, storage_options: Mapping[str, Any] | None = None) -> None:
        self.place = storage.locate(path, storage_options if is_url(path) else None)
        self.store = storage.store_at(self.place)
        self.local = storage.is_local(self.place)
        self.shown = str(path)

    def manifest(self) -> Manifest | None:
        """Return the manifest; None where nothing is.

        Raises
        ------
        StoreMismatchError
            If something else is there, or the manifest is damaged or of a later version.
        """
        data = storage.read(self.store, MANIFEST)
        if data is None:
            if self.local and _foreign(Path(self.place)):
                raise StoreMismatchError(f"path: {self.shown} exists and is not a search index: choose another")
            return None
        try:
            version = json.loads(data)["format"]
            if version == FORMAT:
                return Manifest.from_json(data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreMismatchError(
                f"{self.shown}/{MANIFEST} is not the manifest of a search index ({error}): choose another path, or "
                "delete it and build it anew, "
                + remedy("deo_cube.build_index(store, path)", "deo-cube index STORE INDEX")
            ) from error
        raise StoreMismatchError(
            f"{self.shown} is a search index of format {version}, this version reads {FORMAT}: update deo_cube"
        )

    def existing(self) -> Manifest:
        """Return the manifest.

        Raises
        ------
        InputNotFoundError
            Where nothing is.
        StoreMismatchError
            As `manifest`.
        """
        found = self.manifest()
        if found is None:
            call = remedy(f"deo_cube.build_index(store, {self.shown!r})", f"deo-cube index STORE {self.shown}")
            raise not_found("path", self.shown, f"a search index: {call} writes one")
        return found

    def folder(self, name: str) -> Path:
        """Return the folder of this machine that holds the files of the index called `name`."""
        folder = Path(self.place) if self.local else Path(get_option("cache_dir")) / "indexes" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def fetched(self, manifest: Manifest, file: str) -> Path:
        """Return the path of a file on this machine; it is fetched once from an object store.

        Raises
        ------
        StorageError
            If it is missing.
        """
        path = self.folder(manifest.name) / file
        if path.exists():
            return path
        data = None if self.local else storage.read(self.store, file)
        if data is None:
            raise StorageError(f"{self.shown}/{file} is missing: build the index anew with overwrite=True")
        partial = path.with_name(f"{file}.{uuid.uuid4().hex}{storage.PARTIAL}")
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def written(self, manifest: Manifest, path: Path) -> None:
        """Write a file that is complete in the folder of this machine: synced on disk, sent to an object store."""
        if not self.local:
            storage.write(self.store, path.name, path.read_bytes())
            return
        with path.open("rb") as file:
            os.fsync(file.fileno())
        storage.sync_folder(path.parent)

    def array(self, manifest: Manifest, kind: str, values: Array) -> str:
        """Write an array and return the name of its file."""
        path = self.folder(manifest.name) / f"{kind}-{uuid.uuid4().hex}.npy"
        with path.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        self.written(manifest, path)
        return path.name

    def replace(self, manifest: Manifest, new: Manifest) -> None:
        """Write a new manifest in the place of `manifest`, and delete the files that only the old one names.

        Raises
        ------
        StoreMismatchError
            If another process wrote the index meanwhile.
        """
        data = storage.read(self.store, MANIFEST)
        present = None if data is None else Manifest.from_json(data)
        if present is not None and present.revision != manifest.revision:
            raise StoreMismatchError(
                f"{self.shown} was written by another process meanwhile: make the same call again, which adds what is "
                "missing"
            )
        storage.write(self.store, MANIFEST, new.to_json())
        gone = set() if present is None else present.files() - new.files()
        for file in gone:
            storage.delete(self.store, file)
            if not self.local and present is not None:
                (self.folder(present.name) / file).unlink(missing_ok=True)


def _foreign(path: Path) -> bool:
    """Return whether something else than the files of an index is at a path; a killed build may have left those."""
    if not path.is_dir():
        return path.exists()
    return any(name.partition("-")[0] not in ("segment", "covered", "sample") for name in os.listdir(path))


# --- search ---

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
    def sources(self) -> tuple[IndexedSource, ...]:
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
        check_comparable(emb, self._manifest, self._files)

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


def check_comparable(array: xr.DataArray, manifest: Manifest, files: Files) -> None:
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


def source_of(array: xr.DataArray, place: str | None) -> IndexedSource:
    """Return an array as a source of an index: its grid, and the path of its store."""
    box = geobox(array)
    return IndexedSource(place, box.crs.wkt, tuple(box.transform)[:6], (int(box.shape[0]), int(box.shape[1])))


def _grid(source: IndexedSource, dim: int) -> xr.DataArray:
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


def _centres_within(source: IndexedSource, window: tuple[float, float, float, float], crs: CRS) -> tuple[Any, Any]:
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
    source: IndexedSource, window: tuple[float, float, float, float], crs: CRS, xs: Array, ys: Array
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


# --- Build and extend a search index: blocks are read one after the other and written in segments ---

SAMPLE_BLOCKS = 32
"""Blocks from which the lists are trained."""
PER_LIST = 64
"""Vectors per list that the lists are trained on."""
EXACT = 20_000
"""Number of patches up to which one list holds all, so that every vector is compared."""


def build_index(
    emb: Any,
    path: Any,
    *,
    min_valid: float = 0.0,
    lists: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Index:
    """Build an index of the vectors of a store, or extend it by what is new, and return it.

    Blocks are read one after the other and written in segments, so that memory is bounded whatever the size of the
    store. Called again, the same call reads only blocks and dates that the index lacks: of a store that has grown, of
    another store of the same model, or after an interruption.

    Parameters
    ----------
    emb : path, URL, DataArray or Dataset
        A store of embeddings, or an array (time, embedding, y, x) or (embedding, y, x). Of an array the index does not
        know the place: pass it to `open_index` when examples are places.
    path : path, URL or zarr store
        Folder of the index.
    min_valid : float
        Patches with no more than this valid fraction are left out; those without one valid pixel always are.
    lists : int, optional
        Inverted lists of a new index. Default: about 0.4 times the square root of the number of patches; one list, in
        which every vector is compared, up to 20 000.
    overwrite : bool
        Replace an index that is there.
    progress : bool
        Show a progress bar.
    storage_options : mapping, optional
        Of the object stores, for URLs, as for `to_zarr`.

    Returns
    -------
    Index

    Raises
    ------
    MissingExtraError
        Without FAISS.
    StoreMismatchError
        If `path` is something else, the index of another model, or of blocks that were written anew since.
    ArgumentError
        For an array without a valid vector, and arguments out of range.

    Examples
    --------
    >>> import deo_cube
    >>> emb = deo_cube.synthetic_cube(size=256, times=1).deo.embed()
    >>> index = deo_cube.build_index(emb, "fields.index")  # doctest: +SKIP
    >>> index.search((float(emb.x[5]), float(emb.y[5])), k=3)  # doctest: +SKIP
    """
    faiss = faiss_library()
    min_valid = arguments.number("min_valid", min_valid, minimum=0, maximum=1)
    lists = None if lists is None else arguments.integer("lists", lists)
    overwrite = arguments.boolean("overwrite", overwrite)
    array, place = opened_embeddings(emb, storage_options)
    files = Files(path, storage_options)
    present = files.manifest()
    source = source_of(array, place)
    before = None if overwrite else present
    if before is not None:
        check_comparable(array, before, files)
        if lists is not None and lists != before.lists:
            raise ArgumentError(f"lists must be {before.lists}, that of the index, got {lists}: pass overwrite=True")
        manifest = before
    else:
        count = math.prod(s for d, s in array.sizes.items() if d != "embedding")
        manifest = Manifest(model_fields(array), array.sizes["embedding"], lists or _lists(count), min_valid)
        if present is not None:
            manifest = replace(manifest, revision=present.revision)
    number, manifest, layers = _placed(manifest, source, array)
    record = _record(array, place, storage_options)
    covered = _covered(files, manifest, number, record.shape)
    blocks = _pending(record, covered, layers, files)
    if blocks or before is None:
        if before is None:
            manifest = _trained(faiss, files, manifest, array, blocks, present)
        _filled(
            files, manifest, number, array, blocks, record, covered, layers, known=place is not None, shown=progress
        )
    opened = open_index(path, storage_options=storage_options)
    opened.attach(array, number)
    return opened


def _placed(manifest: Manifest, source: IndexedSource, array: xr.DataArray) -> tuple[int, Manifest, list[int]]:
    """Return the number of the source, the manifest with it and its dates, and the layer of each date of the array."""
    same = [i for i, s in enumerate(manifest.sources) if s.store == source.store and s.same_grid(source)]
    labels = labels_of(array)
    if len(set(labels)) < len(labels):
        raise ArgumentError("emb must have each date once: select or aggregate, emb.drop_duplicates('time')")
    number = same[0] if same else len(manifest.sources)
    placed = manifest.sources[number] if same else source
    layers, first = list(placed.layers), manifest.numbers
    for label in labels:
        if label not in [x.time for x in layers]:
            layers.append(IndexedDate(label, first))
            first += placed.patches
    sources = [*manifest.sources]
    sources[number : number + 1] = [replace(placed, layers=tuple(layers))]
    return number, replace(manifest, sources=tuple(sources)), [[x.time for x in layers].index(k) for k in labels]


def _cuts(array: xr.DataArray) -> tuple[list[slice], list[slice]]:
    """Return the rows and the columns of the blocks of an array."""
    cuts = []
    for dim in spatial_dims(array):
        sizes = array.variable.chunksizes.get(dim) or _sides(array.sizes[dim])
        cuts.append([slice(a, b) for a, b in pairwise([0, *np.cumsum(sizes).tolist()])])
    return cuts[0], cuts[1]


def _sides(size: int) -> list[int]:
    return [min(256, size - i) for i in range(0, size, 256)]


def _record(array: xr.DataArray, place: str | None, storage_options: Mapping[str, Any] | None) -> NDArray[np.uint64]:
    """Return (dates, rows, columns) of blocks: the number of each in the store's record, 0 where it is not done."""
    rows, columns = _cuts(array)
    shape = (array.sizes.get("time", 1), len(rows), len(columns))
    numbers = np.ones(shape, "uint64")
    if place is None:
        return numbers
    located = storage.locate(place, storage_options if is_url(place) else None)
    attrs = create.attributes(located)
    if Attribute.BLOCKS not in attrs:
        return numbers
    record = create.record_of(located, attrs)
    if record.blocks != shape:
        return numbers
    for row, entries in record.rows():
        numbers[:, row] = entries
    return numbers


def _covered(files: Files, manifest: Manifest, number: int, shape: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return what the index has of a source, (layers, rows, columns) of blocks."""
    source = manifest.sources[number]
    out = np.zeros((len(source.layers), *shape[1:]), "uint64")
    if source.covered:
        known = np.load(files.fetched(manifest, source.covered), allow_pickle=False)
        if known.shape[1:] != shape[1:]:
            raise StoreMismatchError(
                f"{files.shown} was built from the same store in blocks {known.shape[1:]}, now it has {shape[1:]}: "
                "pass overwrite=True, or the array in the same chunks"
            )
        out[: len(known)] = known
    return out


def _pending(record: Array, covered: Array, layers: Sequence[int], files: Files) -> list[tuple[int, int, int]]:
    """Return the blocks (date, row, column) that are done and not in the index."""
    ours = covered[list(layers)]
    changed = (ours > 0) & (record > 0) & (ours != record)
    if changed.any():
        raise StoreMismatchError(
            f"{files.shown} holds {int(changed.sum())} blocks of emb that were written anew since, such as "
            f"{tuple(int(i) for i in np.argwhere(changed)[0])}: build it anew, overwrite=True"
        )
    return [(int(t), int(r), int(c)) for t, r, c in np.argwhere((record > 0) & (ours == 0))]


def _read_block(
    array: xr.DataArray, cuts: tuple[list[slice], list[slice]], block: tuple[int, int, int], least: float
) -> tuple[Array, Array]:
    """Return vectors (n, D) of length one of a block, and their numbers within the layer."""
    y, x = spatial_dims(array)
    rows, cols = cuts[0][block[1]], cuts[1][block[2]]
    part = array.isel({y: rows, x: cols})
    part = part.isel(time=block[0]) if "time" in part.dims else part
    valid = part.coords["valid"] if "valid" in part.coords else None
    both = xr.Dataset({"v": part.drop_vars("valid", errors="ignore")})
    if valid is not None:
        both["share"] = valid.drop_vars("valid")
    read = both.compute()
    vectors = read["v"].transpose(y, x, "embedding").values.astype("float32")
    share = read["share"].transpose(y, x).values if valid is not None else np.ones(vectors.shape[:2], "float32")
    norms = np.linalg.norm(vectors, axis=2)
    keep = np.isfinite(norms) & (norms > 0) & (share > least)
    r, c = np.nonzero(keep)
    columns = array.sizes[x]
    return vectors[keep] / norms[keep][:, None], (r + rows.start) * columns + c + cols.start


def _trained(
    faiss: Any,
    files: Files,
    manifest: Manifest,
    array: xr.DataArray,
    blocks: list[tuple[int, int, int]],
    present: Manifest | None,
) -> Manifest:
    """Write a new index without vectors: its lists trained on a sample of the array, and the sample."""
    cuts = _cuts(array)
    chosen = (
        [blocks[i] for i in np.unique(np.linspace(0, len(blocks) - 1, SAMPLE_BLOCKS).astype(int))] if blocks else []
    )
    most = max(PER_LIST * manifest.lists, 4096)
    rng = np.random.default_rng(0)
    parts = []
    for block in chosen:
        vectors, _ = _read_block(array, cuts, block, manifest.min_valid)
        parts.append(vectors[np.sort(rng.permutation(len(vectors))[: -(-most // len(chosen))])])
    sample = np.concatenate(parts) if parts else np.empty((0, manifest.dim), "float32")
    if not len(sample):
        raise ArgumentError(
            "emb must have a valid vector: every block that was sampled is empty. Finish the store first, or lower "
            f"min_valid={manifest.min_valid:g}"
        )
    lists = min(manifest.lists, max(len(sample) // 39, 1))
    manifest = replace(manifest, lists=lists)
    empty = faiss.index_factory(manifest.dim, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    empty.train(sample)
    path = files.folder(manifest.name) / f"segment-{uuid.uuid4().hex}.faiss"
    faiss.write_index(empty, str(path))
    files.written(manifest, path)
    kept = sample[rng.permutation(len(sample))[:2048]].astype("float16")
    written = replace(
        manifest,
        sources=(),
        segments=(Segment(path.name, 0),),
        sample=files.array(manifest, "sample", kept),
        revision=uuid.uuid4().hex,
    )
    files.replace(manifest, written)
    return replace(written, sources=manifest.sources)


def _filled(
    files: Files,
    manifest: Manifest,
    number: int,
    array: xr.DataArray,
    blocks: list[tuple[int, int, int]],
    record: Array,
    covered: Array,
    layers: Sequence[int],
    *,
    known: bool,
    shown: bool,
) -> Manifest:
    """Add blocks to an index, one segment after the other, and return its manifest."""
    faiss = faiss_library()
    cuts, source = _cuts(array), manifest.sources[number]
    segment = _Segment(faiss, files, manifest)
    with Progress(len(blocks), title="index", shown=shown, rate_unit="patches/s") as bar, ThreadPoolExecutor(1) as pool:
        for (t, r, c), (vectors, cells) in _ahead(pool, array, cuts, blocks, manifest.min_valid):
            segment.index.add_with_ids(vectors, source.layers[layers[t]].first + cells)
            if known or len(vectors):
                covered[layers[t], r, c] = record[t, r, c]
            bar.advance(amount=len(vectors))
            if segment.index.ntotal >= SEGMENT:
                manifest = segment.finish(manifest, number, covered)
                segment = _Segment(faiss, files, manifest)
        return segment.finish(manifest, number, covered)


def _ahead(
    pool: ThreadPoolExecutor, array: xr.DataArray, cuts: Any, blocks: list[tuple[int, int, int]], least: float
) -> Iterator[Any]:
    """Yield blocks with their vectors; the next one is read while one is added."""
    following = None
    for i, block in enumerate(blocks):
        present = following or pool.submit(_read_block, array, cuts, block, least)
        following = pool.submit(_read_block, array, cuts, blocks[i + 1], least) if i + 1 < len(blocks) else None
        yield block, present.result()


class _Segment:
    """The segment that is being filled: the last one if it is less than half full, else a new one."""

    def __init__(self, faiss: Any, files: Files, manifest: Manifest) -> None:
        self._faiss, self._files = faiss, files
        last = manifest.segments[-1]
        self._before = last if last.vectors < SEGMENT // 2 else None
        self.index = faiss.read_index(str(files.fetched(manifest, last.file)))
        if self._before is None:
            self.index.reset()  # keeps what was trained

    def finish(self, manifest: Manifest, number: int, covered: Array) -> Manifest:
        """Write the segment and the manifest with it, and return that."""
        path = self._files.folder(manifest.name) / f"segment-{uuid.uuid4().hex}.faiss"
        self._faiss.write_index(self.index, str(path))
        self._files.written(manifest, path)
        earlier = manifest.segments[:-1] if self._before is not None else manifest.segments
        sources = list(manifest.sources)
        sources[number] = replace(sources[number], covered=self._files.array(manifest, "covered", covered))
        new = replace(
            manifest,
            sources=tuple(sources),
            segments=(*earlier, Segment(path.name, int(self.index.ntotal))),
            revision=uuid.uuid4().hex,
        )
        self._files.replace(manifest, new)
        return new


def _lists(count: int) -> int:
    return 1 if count <= EXACT else 2 ** round(math.log2(0.4 * math.sqrt(count)))
