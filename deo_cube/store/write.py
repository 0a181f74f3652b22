"""Write embeddings to a store (`emb.deo.to_zarr()`): each block is read, encoded and written by one task.

All schedulers share one path: a job is the small graph of one block and its target, and runs on threads or processes
here (`scheduler.py`) or on the workers of a cluster (`run_distributed.py`). The job's graph is computed inside its
task, so a scheduler sees one task per block, whatever the source; no values are moved between workers. Jobs are made
when they are needed, and the progress record is read as they are made: a million blocks start as quickly as ten.

When a store is resumed, the inputs of its finished blocks are first compared with those of this call
(`embedding/tasks.py`), by jobs of the same kind that read and do not encode.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from deo_cube import arguments
from deo_cube.arguments import embeddings_of, refuse_foreign
from deo_cube.constants import Attribute
from deo_cube.cube.coordinates import storable_coordinates
from deo_cube.cube.masks import check_classes, check_mask
from deo_cube.cube.units import Radiometry, find_mistakes, find_unit_error
from deo_cube.embedding import chunks, graph, tasks
from deo_cube.embedding.block import EmbedBlock
from deo_cube.embedding.tasks import compute_block
from deo_cube.embedding.windows import BandSource, BlockIndex, WindowReader
from deo_cube.errors import AmbiguousUnitsError, ArgumentError, DeoCubeError, StorageError, StoreMismatchError
from deo_cube.packed import decoded_floats
from deo_cube.paths import answering
from deo_cube.store import create, storage
from deo_cube.store.layout import GROUP, PLANE_DTYPES, Block, Layout, Record, Target, lost_shards, planes_of
from deo_cube.store.open import open_embeddings
from deo_cube.store.report import ComparisonBar, ProgressBar, log_complete, log_end, log_start
from deo_cube.store.scheduler import choose_scheduler, executor, run_blocks

__all__ = ["SOURCES", "before_writing", "source_token", "to_zarr"]


Array = NDArray[Any]

# --- A bounded look at a cube before a long job: one chunk per band, checked as every task checks its window ---
#
# A fill value that nothing states, per cent taken for DN or a mask of the wrong numbers is then an error before
# anything is written, not after the blocks that came before it.

#: A chunk larger than this is left to the tasks, and so is the rest once this much was read.
CHUNK_BYTES = 16e6
ALL_BYTES = 48e6
#: Seconds after which the look is given up: the job has its own patience with readers.
PATIENCE = 30.0
#: Values of a band that are checked.
_VALUES = 65536


def before_writing(emb: xr.DataArray, *, patience: float | None = None) -> None:
    """Read a little of the cube behind lazy embeddings, and refuse what their tasks would refuse.

    Looks at the middle of the map, at the first, last and other dates in turn from band to band; at most 48 MB, and no
    chunk twice. Embeddings that are computed, or of other origin, have no cube behind them: nothing is done. What can
    not be read here (paths that only workers see, a server that does not answer within 30 s) is left to the job.

    Parameters
    ----------
    emb : DataArray
        As `to_zarr` takes them, whole or sliced, on Dask.
    patience : float, optional
        Seconds to wait for the reader, at most 30.

    Raises
    ------
    AmbiguousUnitsError
        Where values contradict units, offset or nodata.
    ArgumentError
        Where the scene classification or the mask holds other numbers.
    """
    if emb.chunks is None or not any(isinstance(task.run, EmbedBlock) for task in tasks.block_tasks(emb.data)):
        return
    problems: list[DeoCubeError] = []
    thread = threading.Thread(target=_look, args=(emb, problems), name="deo_cube-look", daemon=True)
    thread.start()
    thread.join(PATIENCE if patience is None else min(PATIENCE, patience))
    if problems:
        raise problems[0]


def _look(emb: xr.DataArray, problems: list[DeoCubeError]) -> None:
    try:
        _check(emb)
    except DeoCubeError as error:
        problems.append(error)
    except Exception:
        # Reading failed, or Dask holds the sources elsewhere: the job says so, with its retries.
        return


def _check(emb: xr.DataArray) -> None:
    array = emb.data
    shape = array.numblocks
    times = shape[0] if emb.ndim == 4 else 1
    dates = sorted({0, times // 2, times - 1} | {round(i * (times - 1) / 9) for i in range(10)})
    middle = (0, shape[-2] // 2, shape[-1] // 2)
    whole, (name,) = graph.layered(array)
    part = tasks.cut(whole, [(name, *((t,) if emb.ndim == 4 else ()), *middle) for t in dates])
    blocks: list[tuple[EmbedBlock, WindowReader, BlockIndex]] = []
    chunks: dict[tuple[Any, ...], Any] = {}
    for call, chunk_keys in tasks.block_calls(part):
        if isinstance(call.task.run, EmbedBlock):
            blocks.append((call.task.run, call.task.window_reader, call.index))
            chunks |= chunk_keys
    if not blocks:
        return
    blocks.sort(key=lambda block: block[2].time)
    looked = _Looked(part, chunks)
    run, window_reader, _ = blocks[0]
    # Bands of one chunk are looked at together; each group at another date, so that all bands and many dates are seen.
    bands = _together(window_reader.groups[0])
    picks = max(len(bands), min(3, len(blocks)))
    samples: dict[BandSource, Array] = {}
    for i in range(picks):
        run, window_reader, index = blocks[round(i * (len(blocks) - 1) / max(1, picks - 1))]
        for t, values in looked.values(window_reader, index, bands[i % len(bands)]):
            problem = find_unit_error(np.stack(list(values.values())), run.radiometry, t)
            if problem:
                raise AmbiguousUnitsError(f"a look at the cube (date {t}) before anything is written: {problem}")
            samples |= values
    _refuse_units(samples, run.radiometry)
    run, window_reader, index = blocks[len(blocks) // 2]
    _check_other(looked, window_reader, index, run)


def _refuse_units(samples: Mapping[BandSource, Array], r: Radiometry) -> None:
    """Refuse what only all bands together tell, as of an 8-bit image."""
    mistakes = find_mistakes(list(samples.values()), r, offset=0.0)
    if texts := [m.text for m in mistakes if m.topic == "units" and m.topic not in r.given]:
        raise AmbiguousUnitsError(f"a look at the cube before anything is written: {'. '.join(texts)}")


def _check_other(looked: _Looked, window_reader: WindowReader, index: BlockIndex, run: EmbedBlock) -> None:
    checks: list[Callable[[Array], None]] = [check_mask]
    if run.scl:
        checks = [partial(check_classes, marks=run.radiometry.scl_invalid), check_mask]
    for group, check in zip(window_reader.groups[1:], checks[: len(window_reader.groups) - 1], strict=True):
        for _, values in looked.values(window_reader, index, group):
            for some in values.values():
                try:
                    check(some)
                except ArgumentError as error:
                    raise ArgumentError(f"a look at the cube before anything is written: {error}") from None


def _together(fields: tuple[BandSource, ...]) -> list[tuple[BandSource, ...]]:
    """Group fields by the chunks that hold them: bands along a dimension often share one."""
    groups: dict[Any, list[BandSource]] = {}
    for field in fields:
        axis = field.axes[1]
        chunk = 0 if axis is None else int(np.searchsorted(np.cumsum(field.chunks[axis]), field.band, "right"))
        groups.setdefault((field.name, chunk), []).append(field)
    return [tuple(g) for g in groups.values()]


class _Looked:
    """Chunks that were read, within the limits."""

    def __init__(self, part: Mapping[Any, Any], keys: Mapping[tuple[Any, ...], Any]) -> None:
        self._part = part
        self._keys = keys
        self._bytes = 0.0
        self._seen: set[Any] = set()

    def values(
        self, window_reader: WindowReader, index: BlockIndex, fields: tuple[BandSource, ...]
    ) -> list[tuple[int, dict[BandSource, Array]]]:
        """Return values of the chunk in the middle of a block: by date of the chunk, then by field."""
        (top, bottom), (left, right) = window_reader.read_ranges(index)
        y, x = (top + bottom) // 2, (left + right) // 2
        first = fields[0]
        (piece,) = first.chunk_slices(index.time, (y, y + 1), (x, x + 1))
        sizes = [chunks[i] for chunks, i in zip(first.chunks, piece.key[1:], strict=True)]
        size = float(np.prod(sizes, dtype=float)) * first.dtype.itemsize
        if (
            piece.key in self._seen
            or size > CHUNK_BYTES
            or self._bytes + size > ALL_BYTES
            or piece.key not in self._keys
        ):
            return []
        self._seen.add(piece.key)
        self._bytes += size
        chunk = np.asarray(tasks.values_of(self._part, [self._keys[piece.key]])[0])
        time = first.axes[0]
        start = 0 if time is None else index.time - int(piece.cut[time])  # type: ignore[arg-type]
        steps = range(1 if time is None else sizes[time])
        of_dates = []
        for step in steps:
            values = {}
            for field in fields:
                (own,) = field.chunk_slices(index.time, (y, y + 1), (x, x + 1))
                cut = [c if isinstance(c, int) else slice(None) for c in own.cut]
                if time is not None:
                    cut[time] = step
                plane = chunk[tuple(cut)].ravel()
                values[field] = plane[:: max(1, plane.size // _VALUES)]
            of_dates.append((index.time if time is None else start + step, values))
        return of_dates


log = logging.getLogger("deo_cube")

# --- writing ---

#: Blocks whose graphs are cut out of the whole graph at a time.
WAVE = 16
#: Times that blocks are written again which lost their entries during the run.
PASSES = 3


@dataclass(frozen=True)
class Reading:
    """Retries and time-out of the chunks of a job, from the call."""

    retries: int
    timeout: float | None


@dataclass(frozen=True)
class Job:
    """One block: its graph, the keys of its arrays, and its target."""

    target: Target
    block: Block
    graph: Mapping[Any, Any]
    values: Any
    planes: list[Any]
    reading: Reading
    run: str
    """Identifies the call of `to_zarr`, whose cached chunks are not shared with other calls."""


def to_zarr(
    emb: xr.DataArray,
    path: Any,
    *,
    resume: bool | Literal["changed", "unchecked"] = True,
    overwrite: bool = False,
    progress: bool = True,
    retries: int = 3,
    read_timeout: float | None = 1800.0,
    scheduler: str | None = None,
    num_workers: int | None = None,
    worker_timeout: float = 600.0,
    storage_options: Mapping[str, Any] | None = None,
    shards: bool = True,
) -> xr.DataArray:
    """Write embeddings to a Zarr 3 store, block by block; resume where an earlier run stopped.

    Parameters
    ----------
    emb : DataArray
        From `ds.deo.embed()`, whole or sliced, lazy or computed.
    path : path, URL or zarr store
        The store: created, or resumed if it was begun by the same call.
    resume : bool, "changed" or "unchecked"
        What to do with a store that the same call began. True: compare the inputs of its finished blocks (pixels, SCL,
        mask, and what is computed from the embeddings) with those of this call, refuse if any differ, and do the
        others. "changed": do those again whose inputs differ, and the others. "unchecked": do not read the inputs of
        finished blocks; you vouch for them. False: refuse a store that is there.

        Comparing reads and does not encode. It is spared where the cube is read from files that are unchanged
        since (Zarr on disk, STAC items).
    overwrite : bool
        Begin again, deleting what was there (only what deo_cube made).
    progress : bool
        Show a progress bar with the area done per second.
    retries : int
        Times that a chunk of the cube which could not be read is tried again, with growing pauses.
    read_timeout : float, optional
        Seconds after which a chunk that does not arrive counts as not read. None: wait for ever.
    scheduler : {"threads", "processes", "synchronous", "distributed"}, optional
        Default: the cluster of this process if there is one, else Dask's configured scheduler, else threads.
    num_workers : int, optional
        Blocks that run at once, on threads or processes. Default: one per core, and two more that read and write.
    worker_timeout : float
        Seconds to wait while a cluster has no worker, at the start or after the last one vanished.
    storage_options : mapping, optional
        Of the object store, where `path` is a URL. See `deo_cube.store.storage.locate`.
    shards : bool
        Store a block as a shard, of which readers fetch the parts that they need. False: as one plain chunk, for
        readers without sharding (GDAL before 3.13). A store that is resumed stays as it was begun.

    Returns
    -------
    DataArray
        The store, reopened lazily.

    Raises
    ------
    StoreMismatchError
        If another model, cube or plan began the store; the fields that differ are listed. If its finished blocks were
        made from other inputs; these blocks are counted. If another run replaces the store meanwhile. If `emb` is not
        laid out as embeddings are.
    ValueError
        For a negative number of retries, or a number of workers below 1.
    DeviceError
        If the cluster has no worker, or none that fits.
    OSError
        If reading fails `retries` times, the disk is full, or the cluster's scheduler is lost: finished blocks are
        safe, and the same call resumes.
    """
    emb, resume = _checked(emb), _checked_resume(resume)
    overwrite, progress = arguments.boolean("overwrite", overwrite), arguments.boolean("progress", progress)
    shards = arguments.boolean("shards", shards)
    retries = arguments.integer("retries", retries, minimum=0, error=ArgumentError)
    if read_timeout is not None:
        read_timeout = arguments.number("read_timeout", read_timeout, above=0, infinite=True)
    worker_timeout = arguments.number("worker_timeout", worker_timeout, minimum=0, infinite=True)
    if num_workers is not None:
        num_workers = arguments.integer("num_workers", num_workers, error=ArgumentError)
    place = storage.locate(path, storage_options)
    emb = _on_dask(storable_coordinates(emb))
    layout = Layout.of(tuple(str(d) for d in emb.dims), emb.chunks or ())
    kind = choose_scheduler(scheduler)
    with _explain_full_disk("the metadata", place):
        if overwrite or create.nothing_at(place):
            before_writing(emb, patience=read_timeout)
        ready = create.create(emb, place, layout, resume=bool(resume), overwrite=overwrite, shards=shards)
    token = source_token(emb)
    complete = create.is_complete(ready)
    how = _Run(emb, kind, num_workers, Reading(retries, read_timeout), worker_timeout, progress)
    if ready.existed:
        if (theirs := create.stored_layout(place)) != layout:
            # Complete: nothing is left to write, and what is there is compared block by block.
            layout = theirs
            how = replace(how, emb=_on_dask(emb, layout))
        ready = replace(ready, target=create.target(place, layout))
        complete = _same_inputs(ready, how, resume, token, complete=complete) and complete
        complete = not _forget_lost_blocks(ready.target, how.emb) and complete
    if complete:
        log_complete(place, layout, checked=resume != "unchecked", shown=progress)
        return open_embeddings(place)
    _keep_token(place, token if resume != "unchecked" or not ready.existed else None)
    if ready.existed:
        ready = replace(ready, target=create.target(place, layout))
    record = ready.target.record
    done = record.count() if record.any() else 0
    log_start(emb, layout, place, done, kind, num_workers)
    bar = _write_missing(ready.target, how, done)
    with _explain_full_disk("the metadata", place):
        create.finish(ready)
    log_end(place, bar)
    return open_embeddings(place)


def _checked_resume(resume: Any) -> Any:
    if not isinstance(resume, str):
        return arguments.boolean("resume", resume)
    if resume not in ("changed", "unchecked"):
        raise ArgumentError(f"resume must be True, False, 'changed' or 'unchecked', got {resume!r}")
    return resume


@dataclass(frozen=True)
class _Run:
    """The array and the scheduler of one call, and its options for running jobs."""

    emb: xr.DataArray
    scheduler: str
    num_workers: int | None
    reading: Reading
    patience: float
    progress: bool

    def jobs(
        self,
        target: Target,
        blocks: Iterator[Block],
        run_one: Callable[[Job], Any],
        bar: ProgressBar,
        results: Callable[[Block, Any], None] | None = None,
    ) -> None:
        """Run one job per block; hand its result to `results`."""
        run = uuid.uuid4().hex
        jobs = _jobs(self.emb, target, blocks, self.reading, run)
        if self.scheduler == "distributed":
            from deo_cube.store import run_distributed

            runs = [task.run for task in tasks.block_tasks(self.emb.data)]
            run_distributed.run_on_workers(jobs, run_one, bar, runs, run=run, patience=self.patience, results=results)
            return
        try:
            with executor(self.scheduler, self.num_workers) as (pool, slots):
                run_blocks(pool, slots, jobs, run_one, bar, partial(chunks.forget, run), results)
        finally:
            chunks.forget(run)


def _write_missing(target: Target, how: _Run, done: int) -> ProgressBar:
    """Run a job per block without an entry, of which `done` have one; again where entries were deleted meanwhile."""
    record = target.record
    for _ in range(PASSES):
        with ProgressBar(how.emb, target.layout, shown=how.progress, done=done) as bar:
            how.jobs(target, _todo(record, bar), run_job, bar)
        if (done := record.count()) == record.total:
            break
    return bar


def _same_inputs(ready: create.ReadyStore, how: _Run, resume: bool | str, token: str | None, *, complete: bool) -> bool:
    """Compare the inputs of finished blocks with those of this call; return whether all are the same.

    Raises
    ------
    StoreMismatchError
        If some differ and `resume` is not "changed".
    """
    target, place = ready.target, ready.target.store
    stored = storage.read(storage.store_at(place), SOURCES)
    if resume == "unchecked" or (token is not None and stored == token.encode()):
        return True
    record = target.record
    if resume == "changed":
        create.check_not_source(how.emb, place)
    differ: list[Block] = []
    unknown: list[Block] = []

    def note(block: Block, same: bool | None) -> None:
        if same is None:
            unknown.append(block)
        elif not same:
            differ.append(block)

    with ComparisonBar(how.emb, target.layout, record.count(), shown=how.progress) as bar:
        how.jobs(target, _done(record), check_job, bar, note)
    if unknown:
        warnings.warn(
            f"{place} was begun by an earlier version, which did not record what blocks were made from: whether "
            f"{len(unknown)} finished blocks come from this cube cannot be known. overwrite=True begins again",
            UserWarning,
            stacklevel=4,
        )
    if not differ:
        if complete and not unknown:
            _keep_token(place, token)
        return True
    if resume != "changed":
        raise StoreMismatchError(
            f"{len(differ)} of {record.count()} finished blocks of {place} were made from other inputs than this call "
            f"has: other pixels, SCL or mask, or another computation (first: time, row, column {min(differ)}). Pass "
            "resume='changed' to do these blocks again, overwrite=True to begin again, or choose another path"
        )
    if complete:
        create.restart(storage.store_at(place))  # first, so that the store never claims more than it holds
    for block in differ:
        record.forget(block)
    return False


def _forget_lost_blocks(target: Target, emb: xr.DataArray) -> bool:
    """Delete the entries of blocks whose shards are missing, so that they run again; return whether there are any."""
    backend = storage.store_at(target.store)
    lost = lost_shards(backend, target.layout, emb.dtype, emb.sizes["embedding"], target.record, planes=planes_of(emb))
    if lost:
        log.warning("%s: %d finished blocks have lost their shards, and are done again", target.store, len(lost))
        create.restart(backend)  # first, so that the store never claims more than it holds
    for block in lost:
        target.record.forget(block)
    return bool(lost)


def _keep_token(place: Any, token: str | None) -> None:
    """Store the token of the sources of all finished blocks; delete it if it is None."""
    backend = storage.store_at(place)
    stored = storage.read(backend, SOURCES)
    if token is None and stored is not None:
        storage.delete(backend, SOURCES)
    elif token is not None and stored != token.encode():
        storage.write(backend, SOURCES, token.encode())


def _checked(emb: Any) -> xr.DataArray:
    array: xr.DataArray = emb if isinstance(emb, xr.DataArray) else embeddings_of(emb)
    dims = tuple(array.dims)
    if len(dims) not in (3, 4) or dims[-3] != "embedding" or 0 in array.shape:
        raise StoreMismatchError(
            f"to_zarr writes embeddings (time, embedding, y, x) or (embedding, y, x) that are not empty; got {dims} of "
            f"shape {array.shape}. Order them, emb.transpose('time', 'embedding', 'y', 'x'); "
            "keep a single row or column as one, emb.isel(x=[10])"
        )
    if Attribute.DTYPE in array.attrs and str(array.dtype) not in ("float16", "float32", "float64", "int8"):
        raise StoreMismatchError(f"embeddings are float16, float32 or int8, got {array.dtype}")
    refuse_foreign(array.variable, "emb", argument="emb")
    return decoded_floats(array, "emb")


def _on_dask(emb: xr.DataArray, layout: Layout | None = None) -> xr.DataArray:
    """Return `emb` with one chunk per block, all embedding dimensions together and one date each, and `valid`."""
    if "valid" not in emb.coords:
        # Not made by embed(): a patch is valid where it has numbers.
        rest = [d for d in emb.dims if d != "embedding"]
        emb = emb.assign_coords(valid=emb.notnull().all("embedding").astype("float32").transpose(*rest))
    y, x = emb.dims[-2:]
    chunks: dict[Any, Any] = {"embedding": -1}
    if emb.ndim == 4:
        chunks[emb.dims[0]] = 1
    if layout is not None:
        chunks |= {y: layout.chunks[1], x: layout.chunks[2]}
    elif emb.chunks is None:
        chunks |= {y: min(128, emb.sizes[y]), x: min(128, emb.sizes[x])}
    emb = emb.chunk(chunks)
    sizes = dict(zip(emb.dims, emb.chunks or (), strict=True))
    rest = [d for d in emb.dims if d != "embedding"]
    planes = {name: emb[name].variable.transpose(*rest) for name in planes_of(emb)}
    return emb.assign_coords({n: v.chunk({d: sizes[d] for d in rest}) for n, v in planes.items()})


def _todo(record: Record, bar: ProgressBar) -> Iterator[Block]:
    """Yield the blocks without an entry, row by row, all dates of a place in sequence: they share source chunks.

    The record is read during the iteration, a few rows ahead.
    """
    _, rows, columns = record.blocks
    # Another process may be writing to the same store: start elsewhere, so that the two do different blocks.
    start = os.getpid() if record.any() else 0
    first = start // rows % columns
    for row, numbers in record.rows(start % rows):
        if numbers.any():
            bar.count_existing(int(np.count_nonzero(numbers)))
        for column in (*range(first, columns), *range(first)):
            for t in np.flatnonzero(numbers[:, column] == 0):
                yield int(t), row, column


def _done(record: Record) -> Iterator[Block]:
    """Yield the blocks with an entry, in the order of `_todo`."""
    for row, numbers in record.rows():
        for column in range(numbers.shape[1]):
            for t in np.flatnonzero(numbers[:, column]):
                yield int(t), row, column


def _jobs(emb: xr.DataArray, target: Target, todo: Iterator[Block], reading: Reading, run: str) -> Iterator[Job]:
    whole, (values, *planes) = graph.layered(emb.data, *(emb[name].data for name in planes_of(emb)))
    four = emb.ndim == 4
    while wave := list(itertools.islice(todo, WAVE)):
        keys = {}
        for b in wave:
            date = b[:1] if four else ()
            keys[b] = [(values, *date, 0, *b[1:]), *((plane, *date, *b[1:]) for plane in planes)]
        part = tasks.cut(whole, [key for of_block in keys.values() for key in of_block])
        for b, of_block in keys.items():
            yield Job(target, b, tasks.subgraph(part, of_block), of_block[0], of_block[1:], reading, run)


def run_job(job: Job) -> None:
    """Read, encode and write one block, unless it has an entry already."""
    target = job.target
    complete = target.check()
    if target.record.entry(job.block) is not None:
        return
    if complete:
        raise StoreMismatchError(f"{target.store} is marked complete, and lacks block {job.block}: make the call again")
    (values, *planes), inputs = _compute(job)
    try:
        with _explain_full_disk(f"block {job.block}", target.store), answering(target.store):
            target.open().write(job.block, values, planes, inputs)
    except FileNotFoundError:
        # Another process finished the store meanwhile, this block included, and removed half-written files.
        if target.record.entry(job.block) is None:
            raise


@contextlib.contextmanager
def _explain_full_disk(what: str, place: Any) -> Iterator[None]:
    """Raise a `StorageError` that says what to do about a full disk."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DeoCubeError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        full = StorageError(f"no space left for {what} of {place}: free some and make the same call again")
        full.errno = error.errno
        raise full from error


def check_job(job: Job) -> bool | None:
    """Return whether a finished block was made from the inputs that it would be made from now; None if not known."""
    entry = job.target.record.entry(job.block)
    if entry is None:
        return True  # not finished, so it cannot differ
    (values, *planes), inputs = _compute(job, encode=False)
    if entry.inputs == inputs:
        return True
    if values is not None and not tasks.has_blocks(job.graph):
        # Nothing is encoded: the block itself was computed, and its output is compared.
        return bool(entry.output == job.target.layout.checksum(job.block, values, *planes))
    if entry.inputs is None:
        return None
    return entry.inputs == _compute(job, encode=False, undated=False)[1]


def _compute(job: Job, *, encode: bool = True, undated: bool = True) -> tuple[list[Any], int]:
    """Return values, valid fraction (and count) of a block, without time, and the checksum of its inputs.

    `encode` and `undated` are those of `compute_block`.
    """
    with chunks.using(job.run) as reader:
        load = partial(reader.read, retries=job.reading.retries, timeout=job.reading.timeout)
        (values, *planes), inputs = compute_block(
            job.graph, [job.values, *job.planes], load, encode=encode, undated=undated
        )
    if values is None:
        return [None] * (1 + len(planes)), inputs
    dated = values.ndim == 4
    stored = zip(planes, [*PLANE_DTYPES.values()][: len(planes)], strict=True)
    of_block = [np.asarray(plane[0] if dated else plane, dtype=dtype) for plane, dtype in stored]
    return [np.asarray(values[0] if dated else values), *of_block], inputs


#: Object of a store that holds the token of its sources.
SOURCES = f"{GROUP}/sources"


def source_token(emb: xr.DataArray) -> str | None:
    """Return a token that is equal for two arrays only if both are computed the same way from the same files.

    None where that cannot be known: then, or where tokens differ, inputs are read again and compared.

    Sources in memory have none: comparing them costs no more than making a token.
    """
    if emb.chunks is None:
        return None
    sources = tasks.sources(emb.data, emb["valid"].data)
    states = [_state(source) for source in sources or []]
    if not states or None in states:
        return None
    return hashlib.sha256(repr((emb.data.name, emb["valid"].data.name, sorted(map(repr, states)))).encode()).hexdigest()


def _state(source: Any) -> Any:
    """Return what changes if a source changes; None where nothing does."""
    if isinstance(source, zarr.Array):
        store = source.store_path.store
        return _files(Path(store.root, source.path)) if isinstance(store, LocalStore) else None
    uri = getattr(source, "uri", None)  # of a file that odc-stac loads
    if not isinstance(uri, str):
        return None
    if uri.startswith(("http://", "https://", "s3://", "gs://", "az://", "abfs://")):
        return uri  # what a catalogue has published is not changed in place
    path = Path(uri.removeprefix("file://"))
    return (uri, _stat(path.stat())) if path.is_file() else None


def _files(folder: Path) -> str:
    """Return a hash of the names, sizes and times of change of all files below a folder."""
    digest = hashlib.sha256(str(folder).encode())
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(where, name)
            digest.update(f"{path} {_stat(path.stat())}\n".encode())
    return digest.hexdigest()


def _stat(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}"
