"""Build and extend a search index: blocks are read one after the other and written in segments (`build_index`)."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube import arguments
from deo_cube.constants import Attribute
from deo_cube.errors import ArgumentError, StoreMismatchError
from deo_cube.heads.index import (
    Index,
    check_model,
    faiss_library,
    labels_of,
    model_fields,
    open_index,
    opened_embeddings,
    source_of,
)
from deo_cube.heads.index_files import SEGMENT, Files, Layer, Manifest, Segment, Source
from deo_cube.heads.vectors import spatial_dims
from deo_cube.paths import is_url
from deo_cube.progress import Progress
from deo_cube.store import create, storage

__all__ = ["build_index"]

Array = NDArray[Any]

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
        check_model(array, before, files)
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


def _placed(manifest: Manifest, source: Source, array: xr.DataArray) -> tuple[int, Manifest, list[int]]:
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
            layers.append(Layer(label, first))
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
