"""The tile plan: which pixels each tile reads, which patches it gives, and which tiles make a block. Integers only.

Words, along one axis and in pixels::

    world grid   0 ........ 224 ........ 448 ........ 672         pixel index counted from the CRS origin
    cores        |    core    |    core    |    core    |         multiples of `core` = tile - 2 halo
    a tile       |halo|  core  |halo|                             what the encoder sees at once
    patches      | | | | | | | | | | | | | | | | | | | | |         multiples of `patch`: one vector each
    cube               [--------------------)                     starts and ends anywhere
    blocks             [ first  )[  whole   )                     runs of whole tiles: one task, one Zarr shard

Tile borders are multiples of the core in world pixels, not in the array, so a tile that is inside two overlapping
cubes is the same tile and gives the same vectors. Nothing here depends on how the cube is chunked.

A tile that reaches over the cube's edge sees the cube mirrored there (edge pixel repeated: ``2 1 0 | 0 1 2``).
With ``edge="pad"`` a patch that is partly inside the cube is kept, with ``edge="drop"`` only whole ones are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deo_cube.errors import TilePlanError

__all__ = ["Axis", "BlockAxis", "TileCuts", "TilePlan", "mirror", "plan_tiles"]

Edge = Literal["pad", "drop"]


def mirror(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Fold indices outside ``[0, size)`` back inside, as by reflection at the edge.

    -1 becomes 0, -2 becomes 1, `size` becomes ``size - 1``; any distance, any size down to one pixel.
    """
    folded = index % (2 * size)
    return np.where(folded < size, folded, 2 * size - 1 - folded)


@dataclass(frozen=True)
class BlockAxis:
    """One block along one axis, in pixels of the cube and patches of the output."""

    read_start: int
    """First pixel of the padded window, cube pixels; negative where it reaches over the edge."""
    read_stop: int
    tiles: int
    """Tiles in the block along this axis."""
    skip: int
    """Patches of the first core that are before the output."""
    out_start: int
    """First output patch."""
    out_stop: int

    @property
    def read_size(self) -> int:
        """Pixels of the padded window."""
        return self.read_stop - self.read_start

    @property
    def out_size(self) -> int:
        """Output patches."""
        return self.out_stop - self.out_start

    def source_index(self, size: int) -> NDArray[np.int64]:
        """Cube pixel that each pixel of the window is taken from, mirrored at the edges of a cube of `size` pixels."""
        return mirror(np.arange(self.read_start, self.read_stop), size)


@dataclass(frozen=True)
class Axis:
    """The plan along one axis. See `TilePlan` for the meaning of the sizes."""

    size: int
    origin: int
    tile: int
    halo: int
    patch: int
    tiles_per_block: int
    edge: Edge

    @property
    def core(self) -> int:
        """Pixels of a tile that are kept."""
        return self.tile - 2 * self.halo

    @property
    def patches_per_core(self) -> int:
        """Patches of a tile that are kept."""
        return self.core // self.patch

    @cached_property
    def first_patch(self) -> int:
        """World index of the first output patch."""
        return self.origin // self.patch if self.edge == "pad" else -(-self.origin // self.patch)

    @cached_property
    def last_patch(self) -> int:
        """World index after the last output patch."""
        end = self.origin + self.size
        return -(-end // self.patch) if self.edge == "pad" else end // self.patch

    @property
    def out_size(self) -> int:
        """Output patches."""
        return max(0, self.last_patch - self.first_patch)

    @property
    def out_offset(self) -> int:
        """Pixels from the cube's first pixel to the first output patch: <= 0 where padded, >= 0 where dropped."""
        return self.first_patch * self.patch - self.origin

    @cached_property
    def first_tile(self) -> int:
        """World index of the first tile."""
        return self.first_patch // self.patches_per_core

    @cached_property
    def last_tile(self) -> int:
        """World index after the last tile."""
        return -(-self.last_patch // self.patches_per_core)

    @property
    def tiles(self) -> int:
        """Tiles along the axis."""
        return self.last_tile - self.first_tile

    @property
    def blocks(self) -> int:
        """Blocks along the axis."""
        return -(-self.tiles // self.tiles_per_block)

    @property
    def lead(self) -> int:
        """Patches of the first tile's core that are before the output."""
        return self.first_patch - self.first_tile * self.patches_per_core

    def encoded(self, trim: int) -> int:
        """Pixels along the axis of all tiles together."""
        blocks = (self.block(i) for i in range(self.blocks))
        return sum(high - low for b in blocks for low, high in (self.span(b, k, trim) for k in range(b.tiles)))

    def block(self, i: int) -> BlockAxis:
        """The `i`-th block."""
        if not 0 <= i < self.blocks:
            raise IndexError(f"block {i} of {self.blocks}")
        start = self.first_tile + i * self.tiles_per_block
        stop = min(start + self.tiles_per_block, self.last_tile)
        patches = self.patches_per_core
        out_start = max(self.first_patch, start * patches)
        out_stop = min(self.last_patch, stop * patches)
        return BlockAxis(
            read_start=start * self.core - self.halo - self.origin,
            read_stop=stop * self.core + self.halo - self.origin,
            tiles=stop - start,
            skip=out_start - start * patches,
            out_start=out_start - self.first_patch,
            out_stop=out_stop - self.first_patch,
        )

    def span(self, block: BlockAxis, k: int, trim: int) -> tuple[int, int]:
        """Part of the `k`-th tile of a block that is within a halo of the cube, in pixels of the tile.

        Both ends are multiples of `trim` (a multiple of the patch) from the tile's first pixel; 0 leaves it whole.
        """
        if trim == 0:
            return 0, self.tile
        first = block.read_start + k * self.core
        low = max(0, (-self.halo - first) // trim * trim)
        high = min(self.tile, -(-(self.size + self.halo - first) // trim) * trim)
        return low, high

    @cached_property
    def chunks(self) -> tuple[int, ...]:
        """Output patches of each block: the first and the last may be smaller."""
        return tuple(self.block(i).out_size for i in range(self.blocks))


@dataclass(frozen=True)
class TilePlan:
    """How a cube of `shape` pixels is cut: validated, deterministic to tokenise, independent of the cube's chunks.

    Parameters
    ----------
    shape : (rows, columns)
        Pixels of the cube, north up.
    origin : (row, column)
        World pixel index of the cube's north-west pixel; (0, 0) anchors the tile grid to the array instead.
    tile, halo, patch : int
        Pixels. Tiles overlap by twice the halo; each gives the patches of its core.
    block : int
        Pixels of a block's side, a multiple of the core.
    edge : {"pad", "drop"}
        Keep or drop patches that are partly outside the cube.

    Raises
    ------
    TilePlanError
        If the sizes do not fit each other, or not one patch fits the cube.
    """

    shape: tuple[int, int]
    origin: tuple[int, int]
    tile: int
    halo: int
    patch: int
    block: int
    edge: Edge = "pad"

    def __post_init__(self) -> None:
        def check(fits: bool, message: str) -> None:
            if not fits:
                raise TilePlanError(message)

        check(self.edge in ("pad", "drop"), f"edge must be 'pad' or 'drop', got {self.edge!r}")
        check(min(self.shape) > 0, f"the cube has no pixels: shape {self.shape}")
        check(
            self.patch > 0 and self.tile > 0 and self.halo >= 0,
            f"tile and patch must be positive, halo must not be negative: got tile={self.tile}, halo={self.halo}",
        )
        check(
            self.tile % self.patch == 0,
            f"tile={self.tile} is not a multiple of the model's patch of {self.patch} px: "
            f"pass tile={max(1, round(self.tile / self.patch)) * self.patch}",
        )
        check(
            self.halo % self.patch == 0,
            f"halo={self.halo} is not a multiple of the model's patch of {self.patch} px: "
            f"pass halo={-(-self.halo // self.patch) * self.patch}",
        )
        check(
            2 * self.halo < self.tile,
            f"halo={self.halo} leaves no core in a tile of {self.tile} px: "
            f"pass a halo of at most {(self.tile - self.patch) // 2 // self.patch * self.patch}, or a larger tile",
        )
        check(
            self.block > 0 and self.block % self.core == 0,
            f"block={self.block} is not a multiple of the tile's core of {self.core} px (tile - 2 halo): "
            f"pass block={max(1, round(self.block / self.core)) * self.core}",
        )
        check(
            min(self.out_shape) > 0,
            f"not one whole patch of {self.patch} px fits the cube of {self.shape[0]} x {self.shape[1]} px: "
            f"pass edge='pad'",
        )

    @property
    def core(self) -> int:
        """Side of the part of a tile that is kept, pixels."""
        return self.tile - 2 * self.halo

    @cached_property
    def rows(self) -> Axis:
        """The plan along y, north to south."""
        return self._axis(0)

    @cached_property
    def columns(self) -> Axis:
        """The plan along x, west to east."""
        return self._axis(1)

    def _axis(self, i: int) -> Axis:
        n = self.block // (self.tile - 2 * self.halo)
        return Axis(self.shape[i], self.origin[i], self.tile, self.halo, self.patch, n, self.edge)

    @property
    def out_shape(self) -> tuple[int, int]:
        """Output patches (rows, columns)."""
        return self.rows.out_size, self.columns.out_size

    @property
    def chunks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Output patches of each block, as Dask writes chunks."""
        return self.rows.chunks, self.columns.chunks

    @property
    def blocks(self) -> tuple[int, int]:
        """Number of blocks (rows, columns)."""
        return self.rows.blocks, self.columns.blocks

    @property
    def tiles(self) -> tuple[int, int]:
        """Number of tiles (rows, columns)."""
        return self.rows.tiles, self.columns.tiles

    def encoded_pixels(self, trim: int = 0) -> int:
        """Pixels that the encoder sees: what halo, edges and partial tiles cost."""
        return self.rows.encoded(trim) * self.columns.encoded(trim)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return ("deo_cube.TilePlan", *self.shape, *self.origin, self.tile, self.halo, self.patch, self.block, self.edge)

    def __repr__(self) -> str:
        (r, c), (h, w), (m, n) = self.out_shape, self.tiles, self.blocks
        return (
            f"<TilePlan: {self.shape[0]} x {self.shape[1]} px -> {r} x {c} patches of {self.patch} px, "
            f"{h} x {w} tiles of {self.tile} px (halo {self.halo}), {m} x {n} blocks of {self.block} px, "
            f"tile grid from world pixel {self.origin}, edge={self.edge!r}>"
        )


@dataclass(frozen=True)
class TileCuts:
    """Places of the tiles of one block: in its padded window (pixels) and in its canvas of patches.

    Tiles are called by their row and column in the block. With `trim`, those at the cube's edge are cut shorter.
    """

    plan: TilePlan
    rows: BlockAxis
    columns: BlockAxis
    trim: int = 0

    def _spans(self, place: tuple[int, int]) -> list[tuple[int, int, int]]:
        axes = ((self.plan.rows, self.rows), (self.plan.columns, self.columns))
        return [(k, *axis.span(block, k, self.trim)) for k, (axis, block) in zip(place, axes, strict=True)]

    def pixels(self, place: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the window that the encoder is given."""
        rows, columns = (slice(k * self.plan.core + a, k * self.plan.core + b) for k, a, b in self._spans(place))
        return rows, columns

    def size(self, place: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the tile, pixels: tiles of one size may share a batch."""
        rows, columns = (b - a for _, a, b in self._spans(place))
        return rows, columns

    def patches(self, place: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The core's rows and columns in the canvas, and where they are in the map that the encoder gave."""
        patch, per_core = self.plan.patch, self.plan.rows.patches_per_core
        context = self.plan.halo // patch
        into, out_of = [], []
        for k, a, b in self._spans(place):
            first, last = max(a // patch, context), min(b // patch, context + per_core)
            into.append(slice(k * per_core + first - context, k * per_core + last - context))
            out_of.append(slice(first - a // patch, last - a // patch))
        return (into[0], into[1]), (out_of[0], out_of[1])


def plan_tiles(
    shape: tuple[int, int],
    *,
    origin: tuple[int, int] = (0, 0),
    tile: int,
    halo: int,
    patch: int,
    block: int | None = None,
    edge: Edge = "pad",
) -> TilePlan:
    """Make the plan. `block` is rounded to the nearest multiple of the core; None means about 1024 px.

    The block decides what is one task and one shard, never a number, so rounding it is harmless.

    Raises
    ------
    TilePlanError
        See `TilePlan`.
    """
    core = tile - 2 * halo
    if block is not None and block <= 0:
        raise TilePlanError(f"block must be positive, got {block}")
    target = 1024 if block is None else block
    block = max(1, round(target / core)) * core if core > 0 else tile
    return TilePlan(shape, origin, tile, halo, patch, block, edge)
