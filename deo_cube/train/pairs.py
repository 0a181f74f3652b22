"""High-resolution RGB of the same ground as a cube: what the optical path sees where there is such an image.

The published run replaced the optical bands of 150,000 of its 500,000 images by aerial photographs of the same place
(paper, section 3); dates were not matched. Here the two stay apart: the multispectral branch keeps the cube's own
bands, the optical path sees the photograph. With ``--augment.ms-sees jittered`` it replaces them, as published.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.errors import ArgumentError, InputNotFoundError

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

__all__ = ["FineImage"]

Array = NDArray[Any]


@dataclass
class FineImage:
    """An RGB raster of finer ground sampling distance, read on the grid of a cube divided by `detail`.

    Parameters
    ----------
    path : str
        A raster that GDAL reads, in any CRS; several files through a VRT.
    grid : GeoBox
        Of the cube.
    detail : int
        Pixels along a side of one pixel of the cube.
    white : float
        DN of the brightest value of an 8-bit raster.
    scale : float
        DN a unit of the raster; 0 for `white` / 255, which only rasters of 8 bits have.
    bands : str
        Bands that are red, green and blue, as ``1-2-3``; empty where the raster says so itself.

    Raises
    ------
    FileNotFoundError
        If the raster cannot be opened.
    ValueError
        If it has no CRS, is no finer than the cube, does not say which bands are red, green and blue, is not of 8 bits
        and `scale` is 0, or shares no whole pixel with the cube; each says what decides it.
    """

    path: str
    grid: GeoBox
    detail: int
    white: float
    scale: float = 0.0
    bands: str = ""
    region: tuple[int, int, int, int] = field(init=False)
    """First and last row (not included), first and last column of the cube within the raster's bounds."""
    _open: tuple[int, Any] | None = field(default=None, init=False, repr=False)
    _indexes: list[int] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        import rasterio
        from odc.geo.geobox import GeoBox

        from deo_cube.cube.georeference import ground_resolution

        try:
            source = rasterio.open(self.path)
        except rasterio.errors.RasterioIOError as error:
            raise InputNotFoundError(f"no raster at rgb={self.path}: {error}") from error
        with source:
            if source.crs is None:
                raise ArgumentError(f"rgb={self.path} has no CRS: where it lies beside the cube is not known")
            self._indexes = self._rgb(source)
            box = GeoBox((source.height, source.width), source.transform, source.crs)
            own, cube = min(ground_resolution(box)), min(ground_resolution(self.grid))
            if own > 0.95 * cube:
                raise ArgumentError(
                    f"rgb={self.path} has pixels of {own:.3g} m and the cube of {cube:.3g} m: an image no finer than "
                    "the cube adds nothing; leave it out"
                )
            self._average = own < 0.95 * cube / self.detail
            self.region = self._region(box)
            if not self.scale:
                kind = source.dtypes[self._indexes[0] - 1]
                if kind != "uint8":
                    raise ArgumentError(
                        f"rgb={self.path} is {kind}, not 8 bits: say how many DN (reflectance x 10000) a unit is, "
                        "rgb_scale=1 for DN, rgb_scale=10000 for reflectance"
                    )
                self.scale = self.white / 255

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def _rgb(self, source: Any) -> list[int]:
        from rasterio.enums import ColorInterp

        if self.bands:
            found = [int(b) for b in self.bands.split("-")]
            if len(found) == 3 and all(1 <= b <= source.count for b in found):
                return found
            raise ArgumentError(
                f"rgb_bands={self.bands}: wanted three of bands 1 to {source.count}, as rgb_bands=1-2-3"
            )
        colours = list(source.colorinterp)
        wanted = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        if all(c in colours for c in wanted):
            return [colours.index(c) + 1 for c in wanted]
        raise ArgumentError(
            f"rgb={self.path} has {source.count} bands and does not say which are red, green and blue "
            f"({', '.join(c.name for c in colours)}): give rgb_bands=1-2-3"
        )

    def _region(self, box: GeoBox) -> tuple[int, int, int, int]:
        corners = box.extent.to_crs(self.grid.crs, resolution="auto").boundingbox
        inverse = ~self.grid.affine
        points = [inverse * (x, y) for x in (corners.left, corners.right) for y in (corners.bottom, corners.top)]
        cols, rows = zip(*points, strict=True)
        tiny = 1e-6 * max(self.grid.shape)
        first = [max(0, int(np.ceil(min(v) - tiny))) for v in (rows, cols)]
        last = [min(n, int(np.floor(max(v) + tiny))) for v, n in zip((rows, cols), self.grid.shape, strict=True)]
        if first[0] >= last[0] or first[1] >= last[1]:
            raise ArgumentError(f"rgb={self.path} shares no whole pixel with its cube ({self.grid.extent.boundingbox})")
        return first[0], last[0], first[1], last[1]

    def _raster(self) -> Any:
        # One warped view of the whole cube's grid in each process: forked workers must not share GDAL's handles.
        if self._open is None or self._open[0] != os.getpid():
            import rasterio
            from rasterio.enums import ColorInterp, Resampling
            from rasterio.vrt import WarpedVRT

            source = rasterio.open(self.path)
            bare = source.nodata is None and ColorInterp.alpha not in source.colorinterp
            rows, cols = self.grid.shape
            warped = WarpedVRT(
                source,
                crs=str(self.grid.crs),
                transform=self.grid.affine * self.grid.affine.scale(1 / self.detail),
                width=cols * self.detail,
                height=rows * self.detail,
                resampling=Resampling.average if self._average else Resampling.bilinear,
                add_alpha=bare,
            )
            self._open = (os.getpid(), warped)
        return self._open[1]

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Array, Array]:
        """The ground of a window of the cube.

        Parameters
        ----------
        row, col, height, width : int
            Of the window, in pixels of the cube.

        Returns
        -------
        Array (3, detail * height, detail * width) float32
            Red, green, blue in DN.
        Array (height, width) bool
            Pixels of the cube that the raster covers in whole.
        """
        from rasterio.windows import Window

        k, raster = self.detail, self._raster()
        window = Window(k * col, k * row, k * width, k * height)
        image = raster.read(self._indexes, window=window).astype("float32") * np.float32(self.scale)
        covered = raster.dataset_mask(window=window) > 0
        return image, covered.reshape(height, k, width, k).all(axis=(1, 3))
