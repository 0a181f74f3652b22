"""Embed one block: encode its padded window.

Windows come from `windows.py` as integers (or floats) as they were stored. They cross to the device as they are, and
are made canonical there: cast, offset and scale applied, invalid pixels set to the model's neutral value. The tiles go
through the encoder in batches, their cores are stitched, and patches without one valid pixel become NaN.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from dask.base import normalize_token
from numpy.typing import NDArray

from deo_cube.constants import INT8_INVALID
from deo_cube.cube.masks import check_mask, hidden_classes
from deo_cube.cube.units import CARRIED, MIXED, Radiometry, find_unit_error, looks_carried, mixed_with_nodata
from deo_cube.embedding import process, transfer
from deo_cube.embedding.tasks import stand_in
from deo_cube.embedding.tiles import TileCuts, TilePlan
from deo_cube.embedding.windows import BlockIndex
from deo_cube.encoder.normalize import constant
from deo_cube.encoder.registry import EncoderRef
from deo_cube.errors import AmbiguousUnitsError, EncoderOutputError

__all__ = [
    "EmbedBlock",
    "ValidBlock",
    "blank_pixels",
    "valid_pixels",
]

Array = NDArray[Any]
#: Row and column of a tile in its block.
Place: TypeAlias = tuple[int, int]

#: Batches of a block that are copied to the device or computed at a time: one is computed while the next is copied.
AHEAD = 2


def blank_pixels(bands: Array, nodata: float | None) -> NDArray[np.bool_]:
    """Return where each band has no measurement: nodata, NaN or infinite. ``(bands, rows, columns)`` bool."""
    if bands.dtype.kind == "f":
        blank = np.asarray(~np.isfinite(bands))
        return blank if nodata is None else np.asarray(blank | (bands == bands.dtype.type(nodata)))
    if nodata is None or not float(nodata).is_integer():
        return np.zeros(bands.shape, bool)
    info = np.iinfo(bands.dtype)
    return bands == int(nodata) if info.min <= nodata <= info.max else np.zeros(bands.shape, bool)


def valid_pixels(windows: Sequence[Array], radiometry: Radiometry, *, scl: bool) -> NDArray[np.bool_]:
    """Return the pixels with a measurement in every band that neither SCL nor the mask excludes.

    ``(rows, columns)`` bool.

    `windows` are the bands, then SCL if `scl`, then the mask if there is one (True excludes).
    """
    good = np.asarray(~blank_pixels(windows[0], radiometry.nodata).any(axis=0))
    if scl:
        good &= ~hidden_classes(windows[1][0], radiometry.scl_invalid)
    for mask in windows[2:] if scl else windows[1:]:
        good &= ~_excluded(mask[0])
    return good


def _excluded(mask: Array) -> NDArray[np.bool_]:
    check_mask(mask)
    # A float mask holds NaN where it was aligned to a larger grid: unknown there, so excluded.
    out: NDArray[np.bool_] = mask != 0
    return out | np.isnan(mask) if mask.dtype.kind == "f" else out


def _valid_fraction(good: NDArray[np.bool_], plan: TilePlan, index: BlockIndex) -> NDArray[np.float32]:
    """Return the share of each patch's pixels that are valid; pixels outside the cube are not. ``(rows, columns)``."""
    rows, columns = plan.rows.block(index.row), plan.columns.block(index.column)
    h, w = plan.shape
    r, c = np.arange(rows.read_start, rows.read_stop), np.arange(columns.read_start, columns.read_stop)
    good = good & ((r >= 0) & (r < h))[:, None] & ((c >= 0) & (c < w))[None, :]
    p, halo = plan.patch, plan.halo
    core = good[halo : halo + rows.tiles * plan.core, halo : halo + columns.tiles * plan.core]
    if core.all():
        return np.ones((rows.out_size, columns.out_size), np.float32)
    counts = core.reshape(core.shape[0] // p, p, core.shape[1] // p, p).sum(axis=(1, 3), dtype=np.int64)
    counts = counts[rows.skip : rows.skip + rows.out_size, columns.skip : columns.skip + columns.out_size]
    fraction: NDArray[np.float32] = (counts / (p * p)).astype(np.float32)
    return fraction


def _check_values(bands: Array, good: NDArray[np.bool_], radiometry: Radiometry, index: BlockIndex) -> None:
    """Raise if values contradict the units of the call; the same for embeddings and valid fractions."""
    step = max(1, min(good.shape) // 64)
    sample = bands[:, ::step, ::step][:, good[::step, ::step]]
    problem = find_unit_error(sample, radiometry, index.time) if sample.size else None
    if problem is None and radiometry.nodata is not None and "nodata" not in radiometry.given:
        mixed = any(mixed_with_nodata(band, radiometry.nodata) for band in bands if band.dtype.kind == "f")
        problem = MIXED.format(layers="a band", nodata=radiometry.nodata) if mixed else None
    if problem:
        raise AmbiguousUnitsError(f"block (time {index.time}, row {index.row}, column {index.column}): {problem}")
    warned = any(CARRIED in reason for reason in radiometry.reasons)  # at the call, of a cube in memory
    if not warned and looks_carried(list(sample), radiometry, radiometry.at(index.time)):
        # One text for all blocks, so that it is shown once.
        warnings.warn(f"offset=0 is taken as given, but {CARRIED}", UserWarning, stacklevel=2)


@dataclass(frozen=True)
class ValidBlock:
    """Valid fraction of the patches of one block, ``(1, rows, columns)`` float32 in 0..1, without its embeddings."""

    plan: TilePlan
    radiometry: Radiometry
    scl: bool

    def __call__(self, index: BlockIndex, windows: tuple[Array, ...]) -> NDArray[np.float32]:
        """Compute the fractions of block `index` from its windows."""
        good = valid_pixels(windows, self.radiometry, scl=self.scl)
        _check_values(windows[0], good, self.radiometry, index)
        return _valid_fraction(good, self.plan, index)[None]


@dataclass(frozen=True)
class EmbedBlock:
    """Embeddings of the patches of one block, ``(1, D, rows, columns)`` in `dtype`, and their valid fraction.

    Parameters
    ----------
    ref : EncoderRef
        The encoder, which is loaded once per process.
    plan : TilePlan
        Its `patch` is the stride of the reference's layer.
    radiometry : Radiometry
        Conversion of stored values to DN.
    channels : tuple of int
        Position among the stem's bands of each band of the window; bands of the stem that do not occur get the
        neutral value.
    scl : bool
        Whether the second window is SCL.
    hide_scl : bool
        Whether pixels that SCL excludes are hidden from the encoder too, not only counted as invalid. Those that a
        mask excludes always are.
    dtype : str
        `float32`, `float16` or `int8` (with the layer's global scale).
    batch, device
        None: the card's batch size; the best device of the process that runs the task.
    precision
        `float32`, or `bfloat16` for the network's matrix products.
    compiled
        The option ``compile``, as it was at the call.
    runtime
        `torch`, or `openvino` with its version.
    """

    ref: EncoderRef
    plan: TilePlan
    radiometry: Radiometry
    channels: tuple[int, ...]
    scl: bool
    hide_scl: bool
    dtype: str
    batch: int | None = None
    device: str | None = None
    precision: str = "float32"
    compiled: bool | str = False
    runtime: str = "torch"

    def __dask_tokenize__(self) -> Any:
        # Batch size, device and compilation do not affect the numbers that are promised, so they are not in the key.
        kept = (self.ref, self.plan, self.radiometry, self.channels, self.scl, self.hide_scl, self.dtype)
        # Absent for torch, so that keys from before there were other runtimes are the same.
        runtime = () if self.runtime == "torch" else (self.runtime,)
        return ("deo_cube.EmbedBlock", *(normalize_token(x) for x in (*kept, self.precision, *runtime)))

    def __call__(self, index: BlockIndex, windows: tuple[Array, ...]) -> tuple[Array, NDArray[np.float32]]:
        """Embed block `index` from its windows; the valid fraction is that of `ValidBlock`."""
        good = valid_pixels(windows, self.radiometry, scl=self.scl)
        _check_values(windows[0], good, self.radiometry, index)
        valid = _valid_fraction(good, self.plan, index)
        if not valid.any():
            return self._finish(np.zeros((self.ref.layer.dim, *valid.shape), np.float32), valid)
        encoding = _Encoding(self, index, windows[0], self._hidden(windows), good)
        # A tile whose whole core is invalid gives NaN whatever it holds.
        values = encoding.run(self._tiles_with_valid_core(good, encoding.rows.tiles, encoding.columns.tiles))
        # Totals may be infinite for other reasons: halos, patches without a valid pixel, large numbers.
        if not all(map(math.isfinite, encoding.totals)):
            bad = ~np.isfinite(values).all(axis=0) & (valid > 0)
            if bad.any():
                patch = (int(np.nonzero(bad)[0][0]), int(np.nonzero(bad)[1][0]))
                raise self._not_finite(index, patch, bad, valid > 0, overflow=encoding.overflows(patch))
        return self._finish(values, valid)

    @property
    def alone(self) -> ValidBlock:
        """The part that needs no encoder."""
        return ValidBlock(self.plan, self.radiometry, self.scl)

    def stand_in(self, index: BlockIndex, windows: tuple[Array, ...]) -> tuple[Array, NDArray[np.float32]]:
        """Return numbers in place of the embeddings that depend on the block's place alone, see `tasks`."""
        plan = self.plan
        rows, columns = plan.rows.block(index.row), plan.columns.block(index.column)
        shape = (1, self.ref.layer.dim, rows.out_size, columns.out_size)
        return stand_in(index, shape, np.dtype(self.dtype)), self.alone(index, windows)

    def _tiles_with_valid_core(self, good: NDArray[np.bool_], n_rows: int, n_columns: int) -> list[Place]:
        core, halo = self.plan.core, self.plan.halo
        inner = good[halo : halo + n_rows * core, halo : halo + n_columns * core]
        any_valid = np.asarray(inner.reshape(n_rows, core, n_columns, core).any(axis=(1, 3)))
        return [(y, x) for y, x in product(range(n_rows), range(n_columns)) if any_valid[y, x]]

    def _hidden(self, windows: tuple[Array, ...]) -> NDArray[np.bool_] | None:
        masks = [_excluded(mask[0]) for mask in (windows[2:] if self.scl else windows[1:])]
        if self.scl and self.hide_scl:
            masks.append(hidden_classes(windows[1][0], self.radiometry.scl_invalid))
        return np.logical_or.reduce(masks) if masks else None

    def _canonical(self, batch: Any, hidden: Any, time: int, stored: np.dtype[Any], *, whole: bool = False) -> Any:
        """Convert the stored values of a batch to the input of the encoder: ``(B, C, tile, tile)`` float32.

        An array becomes a tensor on the CPU; a tensor is converted on its device. `whole` says that no pixel is blank.
        """
        import torch

        r = self.radiometry
        on_host = isinstance(batch, np.ndarray)
        # Floats (and integers that float32 cannot hold) are scaled in float64, so that reflectance gives the same DN
        # to the last bit as integers do.
        short = stored.kind in "iu" and stored.itemsize <= 2
        if on_host:
            # The same with NumPy: torch is ten times slower at casting and comparing uint16.
            blank: Any = None if whole else torch.from_numpy(blank_pixels(batch, r.nodata))
            x = torch.from_numpy(batch.astype(np.float32 if short else np.float64))
        else:
            x = batch.to(torch.float32 if short else torch.float64)
            blank = ~torch.isfinite(x)
            if r.nodata is not None:
                blank |= x == (float(np.float32(r.nodata)) if stored == np.float32 else r.nodata)
        if hidden is not None:
            blank = blank | torch.as_tensor(hidden)[:, None]
        add = r.at(time)
        if not (float(r.scale).is_integer() and float(add).is_integer()):
            x = x.to(torch.float64)
        if (r.scale, add) != (1, 0):
            x = x * r.scale + add
        x = x.to(torch.float32)
        if self.ref.card.units == "reflectance":
            x = x * 1e-4
        fill = self.ref.stem.fill
        # On a device, selecting is cheaper than a test, which waits for the device.
        if blank is not None and (not on_host or blank.numpy().any()):
            neutral = constant(tuple(fill[c] for c in self.channels), torch.float32, x.device)
            x = torch.where(blank, neutral[:, None, None], x)
        if self.channels == tuple(range(len(fill))):
            return x
        out = constant(tuple(fill), torch.float32, x.device)[None, :, None, None].repeat(x.shape[0], 1, *x.shape[2:])
        return out.index_copy_(1, constant(self.channels, torch.int64, x.device), x)

    def _not_finite(
        self, index: BlockIndex, patch: tuple[int, int], bad: Array, valid: Array, *, overflow: bool
    ) -> EncoderOutputError:
        """Return the error of a block whose encoder is not finite in the patches `bad`, first in `patch`."""
        where = f"block (time {index.time}, row {index.row}, column {index.column})"
        what = "values beyond 65504, the largest that float16 holds," if overflow else "NaN or infinity"
        message = (
            f"{where}: {self.ref.card.alias} gives {what} in {bad.sum()} of {valid.sum()} patches with valid pixels, "
            f"the first at row {patch[0]}, column {patch[1]} of the block. "
        )
        if overflow:
            return EncoderOutputError(message + "Keep them in float32: dtype='float32'")
        return EncoderOutputError(message + "Make the encoder give finite numbers there, or hide the pixels with mask=")

    def _finish(self, values: NDArray[Any], valid: NDArray[np.float32]) -> tuple[Array, NDArray[np.float32]]:
        nothing = valid == 0
        if self.dtype == "int8":
            scale = self.ref.layer.int8_scale
            assert scale is not None
            out: Array = np.clip(np.rint(values / np.float32(scale)), -127, 127).astype(np.int8)
            out[:, nothing] = INT8_INVALID
        else:
            # A block at no edge of the cube is its canvas, which is not copied.
            out = values.astype(self.dtype, order="C", copy=False)
            out[:, nothing] = np.nan
        return out[None], valid[None]


class _Encoding:
    """The tiles of one block on their way through the encoder: cut, staged, encoded, and stitched on a canvas.

    `hidden` are pixels that the encoder must not see, `good` those that are valid, both (rows, columns) of the window.
    """

    def __init__(
        self,
        block: EmbedBlock,
        index: BlockIndex,
        bands: Array,
        hidden: NDArray[np.bool_] | None,
        good: NDArray[np.bool_],
    ) -> None:
        plan, card = block.plan, block.ref.card
        self.block, self.time, self.bands, self.hidden = block, index.time, bands, hidden
        self.rows, self.columns = plan.rows.block(index.row), plan.columns.block(index.column)
        self.device = process.choose_device(block.device)
        transfer.check_precision(block.precision, self.device)
        self.encoder = process.encoder(
            block.ref, self.device, block.compiled, block.precision, runtime=block.runtime, tile=plan.tile
        )
        self.batch = block.batch or process.default_batch(block.ref, plan.tile, self.device)
        self.copied = transfer.needs_copy(self.device)
        # Of a network of convolutions cuDNN prepares each new shape of batch, for a second or more: batches of one
        # size spare that at the edges of blocks.
        self.pad = self.copied and card.architecture["family"] in ("conv", "spectral")
        # Most blocks have no blank pixel, which is known here and need not be searched for in every tile.
        self.whole = hidden is None and bool(good.all())
        # lcm(0, n) is 0: tiles of models with position embeddings are never cut shorter.
        self.cuts = TileCuts(plan, self.rows, self.columns, math.lcm(card.trim, plan.patch))
        self.half = block.dtype == "float16"
        per_core = plan.rows.patches_per_core
        shape = (block.ref.layer.dim, self.rows.tiles * per_core, self.columns.tiles * per_core)
        self.canvas = np.zeros(shape, np.float16 if self.half else np.float32)
        #: Sums of the maps of each batch: NaN or infinite if one of their values is.
        self.totals: list[float] = []

    def run(self, tiles: Sequence[Place]) -> Array:
        """Encode tiles in batches; return the vectors ``(D, rows, columns)`` of the block's patches."""
        key = self.block.ref.fingerprint
        batches = partial(
            process.run_batches, tiles, batch=self.batch, device=self.device, key=key, alike=self.cuts.size
        )
        if self.copied:
            # Stitched as soon as it is fetched, so that pinned memory is free for the next batch.
            batches(self.encode, stage=self.stage, fetch=lambda batch: self.stitch(self.fetch(batch)), ahead=AHEAD)
        else:
            for _, batch in batches(lambda places: self.fetch(self.encode(self.stage(places)))):
                self.stitch(batch)
        rows, columns = (slice(axis.skip, axis.skip + axis.out_size) for axis in (self.rows, self.columns))
        return self.canvas[:, rows, columns]

    def stage(self, places: Sequence[Place]) -> tuple[Sequence[Place], transfer.StagedBatch]:
        """Cut tiles, and begin to copy them to the device."""
        windows = [(..., *self.cuts.pixels(place)) for place in places]
        if self.pad:
            plan = self.block.plan
            full = process.current_batch(self.block.ref.fingerprint, self.device, self.batch)
            windows += windows[-1:] * (min(full, (plan.block // plan.core) ** 2) - len(places))
        batch = transfer.stack([self.bands[w] for w in windows], self.device)
        hidden = None if self.hidden is None else transfer.stack([self.hidden[w] for w in windows], self.device)
        return places, transfer.stage((batch, hidden), self.device)

    def encode(
        self, batch: tuple[Sequence[Place], transfer.StagedBatch]
    ) -> tuple[Sequence[Place], transfer.PendingResult]:
        """Encode a staged batch, on a thread of the device."""
        places, staged = batch
        maps = self._maps(staged)[: len(places)]
        # Rounded on the device: float16 is copied in half the bytes; NumPy rounds to the same numbers, but slowly.
        return places, transfer.pending(maps.half() if self.half else maps.float())

    def _maps(self, staged: transfer.StagedBatch) -> Any:
        tiles, hidden = staged.on_device()
        pixels = self.block._canonical(tiles, hidden, self.time, self.bands.dtype, whole=self.whole)
        with transfer.autocast_context(self.block.precision, self.device):
            return self.encoder.encode(pixels)

    def fetch(self, batch: tuple[Sequence[Place], transfer.PendingResult]) -> tuple[Sequence[Place], Array]:
        """Copy the maps of a batch to the host."""
        places, result = batch
        maps, total = transfer.fetch(result)
        self.totals.append(total)
        return places, maps

    def stitch(self, batch: tuple[Sequence[Place], Array]) -> None:
        """Write the cores of a batch's maps to the canvas."""
        for place, tile in zip(*batch, strict=True):
            into, out_of = self.cuts.patches(place)
            self.canvas[:, *into] = tile[:, *out_of]

    def overflows(self, patch: tuple[int, int]) -> bool:
        """Return whether the map of a patch that is not finite on the canvas is finite before float16 rounds it."""
        if not self.half:
            return False
        per_core = self.block.plan.rows.patches_per_core
        place = ((patch[0] + self.rows.skip) // per_core, (patch[1] + self.columns.skip) // per_core)
        return math.isfinite(float(self._maps(self.stage([place])[1]).abs().max()))
