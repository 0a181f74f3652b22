"""Seams, measured: the same place embedded on two tile grids, half a tile apart.

A tile's patches see no further than the tile. Near its border they lack context on one side, and the next tile lacks it
on the other: a seam. Shifted by half a core, the grid has each border where the other grid has the middle of a tile, so
the cosine distance between the two is what the border costs there; a halo pays for making it small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube import arguments
from deo_cube.cube import georeference
from deo_cube.cube.esa import opened_cube
from deo_cube.embedding.embed import embed
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import resolve
from deo_cube.errors import ArgumentError, TilePlanError
from deo_cube.extras import require

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SeamReport", "SeamRow", "seam_report"]

Array = NDArray[Any]
GOOD = 0.05
"""A seam is called small where it is below this share of what neighbouring patches differ by."""


@dataclass(frozen=True)
class SeamRow:
    """One halo. Distances are medians of cosine distance (1 - cosine similarity)."""

    halo: int
    """Pixels."""
    border: float
    """Between the two grids, at patches on the border of a core in one of them."""
    border95: float
    """The same, 95th percentile."""
    interior: float
    """Between the two grids, at patches far from borders in both."""
    neighbours: float
    """Between patches side by side in one tile: the scale that a seam is seen against."""
    cost: float
    """Pixels encoded for each pixel kept."""
    patches: int

    @property
    def seam(self) -> float:
        """Border over neighbours."""
        return self.border / max(self.neighbours, 1e-12)


@dataclass(frozen=True)
class SeamReport:
    """Seam that each halo leaves."""

    model: str
    tile: int
    rows: tuple[SeamRow, ...]

    @property
    def recommended(self) -> int:
        """The smallest halo whose seam is below `GOOD` of what neighbours differ by; else the one with the least."""
        small = [r.halo for r in self.rows if r.seam <= GOOD]
        return min(small) if small else min(self.rows, key=lambda r: r.seam).halo

    def to_frame(self) -> pd.DataFrame:
        """Return a row per halo."""
        import pandas as pd

        columns = ("halo", "border", "border95", "interior", "neighbours", "seam", "cost", "patches")
        return pd.DataFrame([{c: getattr(r, c) for c in columns} for r in self.rows]).set_index("halo")

    def to_dict(self) -> dict[str, Any]:
        """Return model, tile, the recommended halo and a mapping per row, as plain numbers for JSON."""
        rows = [{**asdict(r), "seam": r.seam} for r in self.rows]
        plain = [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in r.items()} for r in rows]
        return {"model": self.model, "tile": self.tile, "recommended": self.recommended, "rows": plain}

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw distances over the halo; written to `path` where one is given. Returns matplotlib's axes."""
        plt = require("matplotlib.pyplot", extra="viz", purpose="plotting a report")

        _, ax = plt.subplots(figsize=(6, 3.6))
        halo = [r.halo for r in self.rows]
        for name, style in (("border", "o-"), ("interior", "s--"), ("neighbours", ":")):
            ax.plot(halo, [max(getattr(r, name), 1e-8) for r in self.rows], style, label=name)
        ax.set(yscale="log", xlabel="halo (pixels)", ylabel="cosine distance", title=f"{self.model}, tile {self.tile}")
        ax.legend()
        ax.figure.tight_layout()
        if path is not None:
            ax.figure.savefig(path, dpi=120)
        return ax

    def __str__(self) -> str:
        head = f"Seams of {self.model}, tile {self.tile} px: cosine distance between grids half a tile apart"
        return (
            f"{head}\n{self.to_frame().to_string(float_format='{:.4g}'.format)}\nrecommended halo: {self.recommended}"
        )


def seam_report(
    cube: xr.Dataset | xr.DataArray,
    model: str | Path | ModelCard = "tiny",
    *,
    halos: Sequence[int] | None = None,
    tile: int | None = None,
    **embed_options: Any,
) -> SeamReport:
    """Embed a cube on two tile grids half a core apart, for each halo, and compare.

    Parameters
    ----------
    cube : Dataset or DataArray
        At least two tiles wide and high; only its first time is used.
    model : str, path or ModelCard
        As of `embed`.
    halos : sequence of int, optional
        Pixels, multiples of the model's stride. Default: 0, 1/8, 1/4 and 3/8 of the tile, and the card's.
    tile : int, optional
        Pixels. Default: the card's.
    **embed_options
        Of `embed`: units, offset, layer, ...

    Returns
    -------
    SeamReport
        Print it, `to_frame()`, `plot()`, `recommended`.

    Raises
    ------
    TilePlanError
        If the cube is too small to hold borders away from its own edges.
    """
    cube = opened_cube(cube)
    tile = None if tile is None else arguments.integer("tile", tile, error=TilePlanError)
    if halos is not None:
        halos = [arguments.integer("halos", h, minimum=0) for h in arguments.sequence("halos", halos, "integers")]
        if not halos:
            raise ArgumentError("halos must be a list of at least one integer, got none")
    ref = resolve(model, layer=embed_options.get("layer"), weights=embed_options.get("weights"))
    stride, size = ref.layer.stride, tile or ref.card.tile
    if halos is None:
        own = -(-ref.card.halo // stride) * stride
        halos = sorted({0, *(size * k // 8 // stride * stride for k in (1, 2, 3)), own})
    d = georeference.dims(cube)
    if d.time is not None:
        cube = cube.isel({d.time: [0]})
    if cube.sizes[d.y] > 1 and float(cube[d.y][0]) < float(cube[d.y][-1]):
        # The grid is counted from the north, so rows are cut off there.
        cube = cube.isel({d.y: slice(None, None, -1)})
    rows = [_measure(cube, model, d, h, size, stride, embed_options) for h in halos if size - 2 * h >= 2 * stride]
    return SeamReport(ref.card.alias, size, tuple(rows))


def _measure(
    cube: Any, model: Any, d: georeference.Dims, halo: int, tile: int, stride: int, options: dict[str, Any]
) -> SeamRow:
    core = tile - 2 * halo
    if core % stride or halo % stride:
        raise TilePlanError(f"halo {halo} and core {core} must be multiples of the model's stride {stride}")
    shift = _shift(core, tile, stride)
    needed = 3 * core + shift
    if min(cube.sizes[d.y], cube.sizes[d.x]) < needed:
        raise TilePlanError(
            f"the cube is {cube.sizes[d.y]} x {cube.sizes[d.x]} pixels; to see seams away from its edges at tile "
            f"{tile}, halo {halo}, it must be {needed} or more"
        )
    fixed = {"tile": tile, "halo": halo, "anchor": "array", "edge": "pad", "dtype": "float32", "mask": False}
    # A row more of context would shift the grid: the second cube starts `shift` pixels into the first.
    a = _values(embed(cube, model, **{**options, **fixed}), d)
    later = cube.isel({d.y: slice(shift, None), d.x: slice(shift, None)})
    b = _values(embed(later, model, **{**options, **fixed}), d)
    s, c = shift // stride, core // stride
    rows, cols = (min(a.shape[i] - s, b.shape[i]) for i in (1, 2))
    a, b = a[:, s : s + rows, s : s + cols], b[:, :rows, :cols]
    distance = _distance(a, b)
    i, j = np.mgrid[:rows, :cols]
    # Patches from the nearest border of a core, in each grid; 0 touches it.
    in_a = np.minimum(_to_border(i + s, c), _to_border(j + s, c))
    in_b = np.minimum(_to_border(i, c), _to_border(j, c))
    # Tiles at the edge of the cube see mirrored pixels there, in one grid and not in the other.
    keep = c
    away = (i >= keep) & (j >= keep) & (i < rows - keep) & (j < cols - keep) & np.isfinite(distance)
    border = away & (np.minimum(in_a, in_b) == 0)
    interior = away & (np.minimum(in_a, in_b) == np.minimum(in_a, in_b)[away].max())
    beside = _distance(a[:, :, 1:], a[:, :, :-1])
    within = away[:, 1:] & away[:, :-1] & np.isfinite(beside) & ((j + s)[:, 1:] % c != 0)
    return SeamRow(
        halo=halo,
        border=float(np.median(distance[border])),
        border95=float(np.percentile(distance[border], 95)),
        interior=float(np.median(distance[interior])),
        neighbours=float(np.median(beside[within])) if within.any() else float("nan"),
        cost=round((tile / core) ** 2, 3),
        patches=int(border.sum()),
    )


def _shift(core: int, tile: int, stride: int) -> int:
    """Return about half a core, in the largest possible steps: windowed attention has a phase, which is not a seam."""
    step = tile // 4
    while step > stride:
        steps = [k for k in range(step, core, step) if k % stride == 0]
        if steps and min(abs(k - core / 2) for k in steps) <= core / 4:
            return min(steps, key=lambda k: abs(k - core / 2))
        step //= 2
    return max(core // 2 // stride * stride, stride)


def _values(emb: xr.DataArray, d: georeference.Dims) -> Array:
    """Return (D, rows, columns) float64, north first."""
    one: xr.DataArray = emb.isel(time=0) if "time" in emb.dims else emb
    v: Array = np.asarray(one.transpose("embedding", d.y, d.x).values, dtype="float64")
    return v


def _to_border(index: Array, core: int) -> Array:
    place = index % core
    return np.asarray(np.minimum(place, core - 1 - place))


def _distance(a: Array, b: Array) -> Array:
    dot = np.einsum("dyx,dyx->yx", a, b)
    norms = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return np.asarray(1.0 - np.divide(dot, norms, out=np.full_like(dot, np.nan), where=norms > 0))
