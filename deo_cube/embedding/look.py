"""A bounded look at a cube before a long job: one small chunk per band, checked as every task checks its window.

A fill value that nothing states, per cent taken for DN or a mask of the wrong numbers is then an error before anything
is written, not after the blocks that came before it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.cube.masks import check_classes, check_mask
from deo_cube.cube.units import Radiometry, find_mistakes, find_unit_error
from deo_cube.embedding import graph, tasks
from deo_cube.embedding.block import EmbedBlock
from deo_cube.embedding.windows import BandSource, BlockIndex, WindowReader
from deo_cube.errors import AmbiguousUnitsError, ArgumentError, DeoCubeError

__all__ = ["before_writing"]

Array = NDArray[Any]

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
