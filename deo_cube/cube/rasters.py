"""Raster files as odc-loader reads them, placed by their own header, or by their item where the header has no CRS."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import lru_cache
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.loader import RioReader
from rasterio.errors import DriverRegistrationError, NotGeoreferencedWarning

from deo_cube.cube.georeference import crs_name, read_crs, same_crs
from deo_cube.cube.projection import Header
from deo_cube.errors import ArgumentError, HrefRefusedError, MissingCRSError

__all__ = ["PlacedReader", "read_header"]


def read_header(path: str) -> Header:
    """Read CRS, transform and shape of a raster file, in the GDAL environment of the caller.

    Raises
    ------
    OSError
        If it cannot be opened.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            return _header_of(file)


def _header_of(file: Any) -> Header:
    try:
        crs = read_crs(file.crs.to_wkt()) if file.crs else None
    except ArgumentError:
        crs = None  # a local system of some survey
    upright = not file.transform.b and not file.transform.d and file.transform.a and file.transform.e
    transform = None if file.transform == Affine.identity() or not upright else file.transform
    return Header(crs, transform, (file.height, file.width))


_GDAL_TYPES = {
    "uint8": "Byte",
    **{f"{u}int{n}": f"{u.upper()}Int{n}" for u in ("u", "") for n in (16, 32, 64)},
    **{"int8": "Int8", "float32": "Float32", "float64": "Float64"},
}


class PlacedReader(RioReader):  # type: ignore[misc]
    """Reader of one file that uses what the item states where the file says nothing, and refuses contradictions."""

    def read(
        self, cfg: Any, dst_geobox: GeoBox, *, dst: Any = None, selection: Any = None
    ) -> tuple[tuple[slice, slice], Any]:
        """Read the pixels of `dst_geobox`, as odc-loader does.

        Raises
        ------
        MissingCRSError
            For a file without a CRS under an item that states none either, and for one that is elsewhere than its
            item says.
        """
        try:
            roi, pixels = super().read(cfg, dst_geobox, dst=dst, selection=selection)
        except (AssertionError, ValueError, AttributeError):
            # A file without a CRS: rasterio reads it, odc-geo cannot place it.
            header = read_header(self._src.uri)
            if header.crs is not None and header.transform is not None:
                raise
            placed = replace(self._src, uri=_as_vrt(self._src.uri, self._place(header)))
            roi, pixels = RioReader(placed, self._ctx).read(cfg, dst_geobox, dst=dst, selection=selection)
            return roi, pixels
        if pixels.size == 0 or _one_value(pixels):
            # No pixel of a file that should have some: looked at once more, since that is also how a wrong CRS looks.
            self._check_place()
        return roi, pixels

    def _place(self, header: Header) -> GeoBox:
        """Grid of a file whose header lacks CRS or transform, after its item."""
        said: GeoBox | None = self._src.geobox
        if said is None:
            raise MissingCRSError(
                f"{self._src.uri} has no CRS, and neither does its STAC item. State it in the item: "
                "item.properties['proj:code'] = 'EPSG:...'"
                + ("" if header.transform is not None else ", with proj:transform and proj:shape")
            )
        if header.transform is not None:
            return GeoBox(header.shape, header.transform, header.crs or said.crs)
        # The item's grid is that of its finest file; others cover the same ground in larger pixels.
        scale = tuple(a / b for a, b in zip(said.shape, header.shape, strict=True))
        if scale[0] != scale[1] or scale[0] != round(scale[0]):
            raise MissingCRSError(
                f"{self._src.uri} is not georeferenced, and its {header.shape} pixels do not fit the proj:shape "
                f"{tuple(said.shape)} of its item. Write CRS and transform into the file (rio edit-info)"
            )
        return GeoBox(header.shape, said.transform * Affine.scale(scale[0]), header.crs or said.crs)

    def _check_place(self) -> None:
        said: GeoBox | None = self._src.geobox
        if said is not None and (wrong := _elsewhere(self._src.uri, said)):
            raise MissingCRSError(wrong)


@lru_cache(maxsize=4096)
def _elsewhere(path: str, said: GeoBox) -> str:
    """Words for a file that is at another place than its item says, looked up once per file and process."""
    header = read_header(path)
    if header.crs is None or header.transform is None or same_crs(header.crs, said.crs):
        return ""
    own = GeoBox(header.shape, header.transform, header.crs).extent.to_crs(said.crs)
    if own.intersects(said.extent):
        return ""
    return (
        f"{path} is in {crs_name(header.crs)}, its STAC item says {crs_name(said.crs)}, and the two are at different "
        f"places. Correct the item: item.properties['proj:code'] = {crs_name(header.crs)!r}"
    )


#: Formats whose files hold their pixels, of those that GDAL reads.
_DIRECT = ("GTiff", "JP2OpenJPEG", "JP2KAK", "JP2ECW", "JP2MrSID", "HFA", "netCDF", "HDF5", "PNG", "JPEG", "ENVI")


@lru_cache(maxsize=65536)
def refuse_indirect(href: str, path: str) -> None:
    """Refuse a file from a network that names further files, as a VRT does, looked at once per process.

    Parameters
    ----------
    href, path : str
        As the item has it, and as it is opened.

    Raises
    ------
    HrefRefusedError
        Naming what `allow` has to hold.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        for driver in _DIRECT:
            try:
                with rasterio.open(path, driver=driver):
                    return
            except (rasterio.RasterioIOError, DriverRegistrationError) as error:
                if "not recognized" not in str(error) and not isinstance(error, DriverRegistrationError):
                    raise
    raise HrefRefusedError(
        f"{href} is not a raster that holds its own pixels (GeoTIFF, JPEG 2000), and a file from a network that names "
        f"further files, such as a VRT, is not read. If you trust it: allow={href!r}"
    )


def _one_value(pixels: Any) -> bool:
    first = pixels.flat[0]
    if first == first and pixels.flat[-1] != first:
        return False  # most often, and for nothing
    return bool(np.isnan(pixels).all() if first != first else (pixels == first).all())


def _as_vrt(path: str, place: GeoBox) -> str:
    """Text of a VRT that gives a file the grid `place`, which GDAL opens like a path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            bands = "".join(
                f'<VRTRasterBand dataType="{_GDAL_TYPES[kind]}" band="{index}">'
                + (f"<NoDataValue>{nodata!r}</NoDataValue>" if nodata is not None else "")
                + f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(file.files[0])}</SourceFilename>'
                f"<SourceBand>{index}</SourceBand></SimpleSource></VRTRasterBand>"
                for index, kind, nodata in zip(file.indexes, file.dtypes, file.nodatavals, strict=True)
            )
    transform = ", ".join(repr(float(v)) for v in place.transform.to_gdal())
    height, width = place.shape
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>{escape(place.crs.to_wkt())}</SRS>'
        f"<GeoTransform>{transform}</GeoTransform>{bands}</VRTDataset>"
    )
