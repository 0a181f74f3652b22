"""One cube of a run with everything decided: bands, units, nodata, clouds, and the finer RGB image beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deo_cube.constants import TCI_WHITE
from deo_cube.cube.masks import check_classes, hidden_classes
from deo_cube.cube.units import Radiometry, find_unit_error
from deo_cube.errors import AmbiguousUnitsError
from deo_cube.train.pairs import FineImage

if TYPE_CHECKING:
    import xarray as xr

    from deo_cube.train.samples import SourceSpec

__all__ = ["Looked", "OpenCube"]

Array = NDArray[Any]


class Looked(NamedTuple):
    """A window as it was read."""

    image: Array
    """(C, S, S) float32 DN."""
    ok: Array
    """(S, S) bool: valid pixels."""
    fine: Array | None
    """(3, k S, k S) float32 DN: the same ground in high-resolution RGB."""
    level: float = 0.0
    """Product level: 0 for L2A, 1 for L1C."""


def _check_values(arrays: list[Any], scl: Any, radiometry: Radiometry) -> None:
    """Refuse a cube in memory whose values are not what metadata say, date by date, as `embed` does."""
    bands = [a for a in arrays if a is not None]
    step = max(1, max(bands[0].shape[1:]) // 128)
    for t in range(bands[0].shape[0]):
        problem = find_unit_error(np.stack([b[t, ::step, ::step].ravel() for b in bands]), radiometry, t)
        if problem:
            raise AmbiguousUnitsError(f"date {t} of the cube: {problem}")
    if scl is not None and radiometry.scl_invalid:
        check_classes(scl, radiometry.scl_invalid)


@dataclass
class OpenCube:
    """One cube with everything decided: an array (T, C, H, W) or its variables, read by slices."""

    arrays: list[Any]
    """One (T, H, W) lazy array a band; None for a band filled with the mean."""
    scl: Any
    scale: float
    add: tuple[float, ...]
    nodata: float | None
    scl_invalid: tuple[int, ...]
    shape: tuple[int, int, int]
    fine: FineImage | None = None
    """High-resolution RGB of the same ground."""

    @property
    def region(self) -> tuple[int, int, int, int]:
        """Rows and columns from which windows are drawn: where there is fine RGB, those that it covers."""
        return self.fine.region if self.fine else (0, self.shape[1], 0, self.shape[2])

    @property
    def area(self) -> int:
        """Pixels to draw from, all dates."""
        top, bottom, left, right = self.region
        return self.shape[0] * (bottom - top) * (right - left)

    @classmethod
    def of(cls, cube: xr.Dataset | xr.DataArray, spec: SourceSpec, bands: tuple[str, ...], detail: int = 1) -> OpenCube:
        """Decide bands and radiometry of `cube`; small cubes are read into memory.

        `detail` is how many pixels of the fine RGB image that `spec` names make the side of one of the cube's.
        """
        from deo_cube.cube.bands import match_bands
        from deo_cube.cube.georeference import dims, geobox
        from deo_cube.cube.units import decide_radiometry

        match = match_bands(cube, bands, model="the student", missing=spec.missing)  # type: ignore[arg-type]
        radiometry = decide_radiometry(
            cube,
            match,
            units=spec.units,
            offset=spec.offset,
            nodata=spec.nodata,  # type: ignore[arg-type]
        )
        d = dims(cube)

        def layer(variable: str | None, index: int | None) -> Any:
            if variable is None and index is None:
                return None
            a = cube[variable] if match.band_dim is None else cube.isel({match.band_dim: index})
            a = a.transpose(*([d.time] if d.time else []), d.y, d.x)
            return a if d.time else a.expand_dims("time")

        indices = match.indices or (None,) * len(match.bands)
        arrays = [layer(v, i) for v, i in zip(match.variables, indices, strict=True)]
        scl = layer(match.scl, match.scl_index) if match.scl is not None else None
        some = next(a for a in arrays if a is not None)
        shape = (int(some.shape[0]), int(some.shape[1]), int(some.shape[2]))
        fine = None
        if spec.rgb:
            fine = FineImage(spec.rgb, geobox(cube), detail, TCI_WHITE, spec.rgb_scale, spec.rgb_bands)
        if sum(a.nbytes for a in arrays if a is not None) < 256e6:
            # Small cubes are read once: a window of a COG costs milliseconds, of an array microseconds.
            arrays = [None if a is None else a.values for a in arrays]
            scl = None if scl is None else scl.values
            _check_values(arrays, scl, radiometry)
        return cls(
            arrays, scl, radiometry.scale, radiometry.offset, radiometry.nodata, radiometry.scl_invalid, shape, fine
        )

    def read(self, random: np.random.Generator, size: int, fill: tuple[float, ...]) -> Looked:
        """A window at a random time and place; cubes smaller than `size` are mirrored at their edges."""
        t = int(random.integers(self.shape[0]))
        top, bottom, left, right = self.region
        h, w = min(size, bottom - top), min(size, right - left)
        y, x = top + int(random.integers(bottom - top - h + 1)), left + int(random.integers(right - left - w + 1))
        place = (t, slice(y, y + h), slice(x, x + w))
        add = self.add[t if len(self.add) > 1 else 0]
        image = np.empty((len(self.arrays), h, w), "float32")
        ok = np.ones((h, w), bool)
        for c, a in enumerate(self.arrays):
            if a is None:
                image[c] = fill[c]
                continue
            raw = np.asarray(a[place])
            if self.nodata is not None:
                ok &= ~np.isnan(raw) if np.isnan(self.nodata) else raw != self.nodata
            image[c] = raw * np.float32(self.scale) + np.float32(add)
        ok &= np.isfinite(image).all(axis=0)
        if self.scl is not None and self.scl_invalid:
            ok &= ~hidden_classes(np.asarray(self.scl[place]), self.scl_invalid)
        rgb = None
        if self.fine is not None:
            rgb, covered = self.fine.read(y, x, h, w)
            k = self.fine.detail
            whole = np.repeat(np.repeat(covered, k, axis=0), k, axis=1)
            rgb = np.where(whole, rgb, np.asarray(fill[:3], "float32")[:, None, None])
            ok &= covered
        image = np.where(ok, image, np.asarray(fill, "float32")[:, None, None])
        if (h, w) != (size, size):
            pad = ((0, size - h), (0, size - w))
            image = np.pad(image, ((0, 0), *pad), mode="symmetric")
            ok = np.pad(ok, pad, mode="symmetric")
            if rgb is not None and self.fine is not None:
                rgb = np.pad(rgb, ((0, 0), *((0, self.fine.detail * after) for _, after in pad)), mode="symmetric")
        return Looked(image, ok, rgb)
