"""Open the files of STAC items: signed at each read, with the GDAL settings of their provider.

odc-stac applies `patch_url` when the cube is made, which would store a token that is valid for 45 minutes in a job that
runs for hours. Here an href keeps its plain form in the graph, and is signed where and when it is opened. A file is
placed by its own header, or by its item where the header has no CRS.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.loader import RioDriver, RioReader
from rasterio.errors import DriverRegistrationError, NotGeoreferencedWarning

from deo_cube.cube.boa_offset import bucket_of
from deo_cube.cube.georeference import crs_name, read_crs, same_crs
from deo_cube.cube.hrefs import allowed, is_remote
from deo_cube.cube.stac_catalogs import CATALOGUES
from deo_cube.cube.stac_grid import Header
from deo_cube.errors import ArgumentError, HrefRefusedError, MissingCRSError, MissingExtraError
from deo_cube.extras import require

__all__ = ["PlacedReader", "read_header", "Access", "access", "sign_planetary_computer"]

# --- one file ---


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
        crs = None  # a local coordinate system
    upright = not file.transform.b and not file.transform.d and file.transform.a and file.transform.e
    transform = None if file.transform == Affine.identity() or not upright else file.transform
    return Header(crs, transform, (file.height, file.width))


_GDAL_TYPES = {
    "uint8": "Byte",
    **{f"{u}int{n}": f"{u.upper()}Int{n}" for u in ("u", "") for n in (16, 32, 64)},
    **{"int8": "Int8", "float32": "Float32", "float64": "Float64"},
}


class PlacedReader(RioReader):  # type: ignore[misc]
    """Reader of one file, which takes a missing georeference from the item, and refuses contradictions."""

    def read(
        self, cfg: Any, dst_geobox: GeoBox, *, dst: Any = None, selection: Any = None
    ) -> tuple[tuple[slice, slice], Any]:
        """Read the pixels of `dst_geobox`, as odc-loader does.

        Raises
        ------
        MissingCRSError
            For a file without a CRS whose item states none either, and for one at another place than its item states.
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
            # No pixel of a file that should have some: a wrong CRS has the same effect, so the place is checked.
            self._check_place()
        return roi, pixels

    def _place(self, header: Header) -> GeoBox:
        """Return the grid of a file whose header lacks CRS or transform, from its item."""
        stated: GeoBox | None = self._src.geobox
        if stated is None:
            raise MissingCRSError(
                f"{self._src.uri} has no CRS, and neither does its STAC item. State it in the item: "
                "item.properties['proj:code'] = 'EPSG:...'"
                + ("" if header.transform is not None else ", with proj:transform and proj:shape")
            )
        if header.transform is not None:
            return GeoBox(header.shape, header.transform, header.crs or stated.crs)
        # The item's grid is that of its finest file; others cover the same ground in larger pixels.
        scale = tuple(a / b for a, b in zip(stated.shape, header.shape, strict=True))
        if scale[0] != scale[1] or scale[0] != round(scale[0]):
            raise MissingCRSError(
                f"{self._src.uri} is not georeferenced, and its {header.shape} pixels do not fit the proj:shape "
                f"{tuple(stated.shape)} of its item. Write CRS and transform into the file (rio edit-info)"
            )
        return GeoBox(header.shape, stated.transform * Affine.scale(scale[0]), header.crs or stated.crs)

    def _check_place(self) -> None:
        stated: GeoBox | None = self._src.geobox
        if stated is not None and (problem := _misplaced(self._src.uri, stated)):
            raise MissingCRSError(problem)


@lru_cache(maxsize=4096)
def _misplaced(path: str, stated: GeoBox) -> str:
    """Return a message if a file is at another place than its item states; checked once per file and process."""
    header = read_header(path)
    if header.crs is None or header.transform is None or same_crs(header.crs, stated.crs):
        return ""
    own = GeoBox(header.shape, header.transform, header.crs).extent.to_crs(stated.crs)
    if own.intersects(stated.extent):
        return ""
    return (
        f"{path} is in {crs_name(header.crs)}, its STAC item states {crs_name(stated.crs)}, and the two are at "
        f"different places. Correct the item: item.properties['proj:code'] = {crs_name(header.crs)!r}"
    )


#: Formats of GDAL whose files hold their own pixels.
_DIRECT = ("GTiff", "JP2OpenJPEG", "JP2KAK", "JP2ECW", "JP2MrSID", "HFA", "netCDF", "HDF5", "PNG", "JPEG", "ENVI")


@lru_cache(maxsize=65536)
def refuse_indirect(href: str, path: str) -> None:
    """Refuse a file from a network that names further files, as a VRT does. Checked once per process.

    Parameters
    ----------
    href, path : str
        As in the item, and as it is opened.

    Raises
    ------
    HrefRefusedError
        With the entry that `allow` needs.
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
        return False  # the usual case, without a scan
    return bool(np.isnan(pixels).all() if first != first else (pixels == first).all())


def _as_vrt(path: str, place: GeoBox) -> str:
    """Return the text of a VRT with the file on the grid `place`, which GDAL opens like a path."""
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


# --- all files of a call ---


Sign = Callable[[str], str]

#: Time limits for a server that sends nothing; GDAL has none by default. No time limit in Python would work:
#: rasterio holds the interpreter's lock while it searches for a file's mask (`DatasetBase.mask_flag_enums`).
TIMEOUTS = (("GDAL_HTTP_CONNECTTIMEOUT", "60"), ("GDAL_HTTP_LOW_SPEED_TIME", "120"), ("GDAL_HTTP_LOW_SPEED_LIMIT", "1"))


class Access(RioDriver):  # type: ignore[misc]
    """Driver of odc-loader that signs an href each time that it opens it."""

    def __init__(
        self, sign: Sign | None, gdal: tuple[tuple[str, str], ...] = (), *, allow: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.sign = sign
        self.gdal = gdal
        self.allow = allow

    def open(self, src: Any, ctx: Any) -> Any:
        """Open `src`, signed now."""
        signed = src if self.sign is None else replace(src, uri=self.sign(src.uri))
        if is_remote(src.uri) and not allowed(src.uri, self.allow):
            refuse_indirect(src.uri, signed.uri)
        return PlacedReader(signed, ctx)

    def header(self, href: str) -> Header:
        """Read CRS, transform and shape of a file.

        Raises
        ------
        OSError
            If it cannot be opened.
        """
        with self.restore_env(self.capture_env(), self.new_load(None)):  # type: ignore[arg-type]
            signed = href if self.sign is None else self.sign(href)
            if is_remote(href) and not allowed(href, self.allow):
                refuse_indirect(href, signed)
            return read_header(signed)

    @contextmanager
    def restore_env(self, env: dict[str, Any], load_state: Any) -> Iterator[Any]:
        """Set GDAL's options for a read: the caller's, then those of the provider, unless the process sets them."""
        own = {k: v for k, v in (*TIMEOUTS, *self.gdal) if k not in os.environ and k not in env}
        with super().restore_env(env, load_state) as ctx, rasterio.Env(**own):
            yield ctx

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        name = getattr(self.sign, "__qualname__", None)
        return (
            "deo_cube.Access",
            getattr(self.sign, "__module__", None),
            name or repr(self.sign),
            self.gdal,
            self.allow,
        )


def access(hrefs: Iterable[str], sign: Sign | Literal["auto"] | None, *, allow: tuple[str, ...] = ()) -> Access:
    """Choose how to open files.

    Parameters
    ----------
    hrefs : iterable of str
    sign : callable, "auto" or None
        "auto" signs files that are known to need it: those of the Planetary Computer.
    allow : tuple of str
        Remote files that may be a VRT, or another format that names further files.

    Raises
    ------
    MissingExtraError
        If files of the Planetary Computer need signing, and its package is not installed.
    """
    hrefs = list(hrefs)
    buckets = {bucket_of(h) for h in hrefs}
    gdal = {kv for c in CATALOGUES.values() if buckets & set(c.raw) for kv in c.gdal}
    if sign != "auto":
        return Access(sign, tuple(sorted(gdal)), allow=allow)
    signed_buckets = {b for c in CATALOGUES.values() if c.signing == "planetary_computer" for b in c.raw}
    unsigned = [h for h in hrefs if bucket_of(h) in signed_buckets]
    if not unsigned:
        return Access(None, tuple(sorted(gdal)), allow=allow)
    try:
        require("planetary_computer", extra="stac", purpose="reading files of the Planetary Computer (they are signed)")
    except MissingExtraError:
        if not all("sig" in parse_qs(urlsplit(h).query) for h in unsigned):
            raise
        return Access(None, tuple(sorted(gdal)), allow=allow)  # signed by the caller, while the tokens are valid
    return Access(sign_planetary_computer, tuple(sorted(gdal)), allow=allow)


def sign_planetary_computer(href: str) -> str:
    """Sign an href of the Planetary Computer with a token that is valid for at least another minute.

    A token in the href is replaced, since it may have expired; other hrefs are returned unchanged. Tokens are cached by
    the process and renewed when they expire.
    """
    import planetary_computer

    parts = urlsplit(href)
    if not (parts.hostname or "").endswith(".blob.core.windows.net"):
        return href
    return str(planetary_computer.sign_url(parts._replace(query="").geturl()))
