"""Where `load_cube` puts its pixels: window, CRS and resolution of the call, checked against the grids of the items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from deo_cube.arguments import number
from deo_cube.cube.footprint import (
    Window,
    item_window,
    lonlat_bbox,
    lonlat_ranges,
    place_geometry,
    touches,
)
from deo_cube.cube.georeference import crs_name, geobox, read_crs
from deo_cube.errors import ArgumentError, DeoCubeError, MissingCRSError

if TYPE_CHECKING:
    import pystac

__all__ = ["Placement", "check_items_meet", "check_one_crs", "check_within_180", "nothing_there", "placement"]

#: Arguments that name a place, at most one (or one pair) at a time.
_PLACES = ("bbox", "geobox", "like", "geopolygon", "intersects", "lon", "lat", "x", "y")


@dataclass(frozen=True)
class Placement:
    """The place that a call names, as odc-stac takes it."""

    arguments: Mapping[str, Any]
    """For `odc.stac.load`: some of geobox, geopolygon, crs, resolution, x, y."""
    crs: Any = None
    """CRS of the output, or "utm"; None where the items decide."""
    named: str = ""
    """The argument that names the place, for messages; empty where it is all that the items cover."""
    window: Window | None = None
    """In degrees, where the argument was."""
    turn: float = 0.0
    """Degrees to add to the longitudes of the result, for a geobox in 0..360."""

    @property
    def exact(self) -> bool:
        """Whether a geobox was given."""
        return "geobox" in self.arguments

    @property
    def placed(self) -> bool:
        """Whether the call names CRS and resolution, so that items need not state theirs."""
        return self.exact or ("crs" in self.arguments and "resolution" in self.arguments)


def placement(given: Mapping[str, Any]) -> Placement:
    """Check the arguments that name place, CRS and resolution, and give them one form.

    Parameters
    ----------
    given : mapping
        Of `bbox`, `geobox`, `like`, `geopolygon`, `intersects`, `lon`, `lat`, `x`, `y`, `crs`, `resolution`; None is
        the same as absent.

    Raises
    ------
    ArgumentError
        For what cannot be read, and for two places.
    """
    given = {k: v for k, v in given.items() if v is not None}
    places = [k for k in _PLACES if k in given]
    if len(places) > 1 and places not in (["lon", "lat"], ["x", "y"]):
        raise ArgumentError(f"{' and '.join(places)} each name a place: pass one of them")
    if len(places) == 1 and places[0] in ("lon", "lat", "x", "y"):
        other = {"lon": "lat", "lat": "lon", "x": "y", "y": "x"}[places[0]]
        raise ArgumentError(f"{places[0]} needs {other} beside it")
    arguments: dict[str, Any] = {k: given[k] for k in ("resolution", "x", "y") if k in given}
    if "resolution" in given:
        _check_resolution(given["resolution"])
    crs = given.get("crs")
    if crs is not None:
        crs = "utm" if isinstance(crs, str) and crs.lower().startswith("utm") else _crs(crs)
        arguments["crs"] = given["crs"] if crs == "utm" else crs
    if not places:
        return Placement(arguments, crs)
    named = "lon, lat" if places[0] == "lon" else "x, y" if places[0] == "x" else places[0]
    if named in ("geobox", "like"):
        if extra := {"crs", "resolution"} & given.keys():
            raise ArgumentError(f"{named} has CRS and resolution already: drop {' and '.join(sorted(extra))}")
        box, turn = _box(given[named], named)
        return Placement({"geobox": box}, box.crs, named, turn=turn)
    if named == "x, y":
        if crs is None:
            raise ArgumentError("x and y are coordinates of the output: pass their CRS too, crs='EPSG:...'")
        return Placement(arguments, crs, named)
    window = None
    if named in ("bbox", "lon, lat"):
        window = lonlat_bbox(given["bbox"]) if named == "bbox" else lonlat_ranges(given["lon"], given["lat"])
        import shapely

        place = place_geometry(shapely.box(*window), name=named)
    else:
        place = place_geometry(given[named], name=named)
        if place.crs is not None and place.crs.geographic:
            window = item_window(None, place.geom)
    return Placement({**arguments, "geopolygon": place}, crs, named, window)


def _check_resolution(resolution: Any) -> None:
    """Refuse what is neither a size of a pixel nor odc-geo's pair of two."""
    from odc.geo import Resolution

    if not isinstance(resolution, Resolution):
        number("resolution", resolution, above=0)


def _crs(crs: Any) -> CRS:
    try:
        return read_crs(crs)
    except ValueError as error:
        raise ArgumentError(f"crs={crs!r} is not a CRS; pass a code, crs='EPSG:32633', WKT, or a CRS object") from error


def _box(value: Any, named: str) -> tuple[GeoBox, float]:
    """The geobox, within -180..180 where it is in degrees, and the degrees that it was moved by."""
    import xarray as xr

    if isinstance(value, GeoBox):
        box = value
    elif isinstance(value, xr.Dataset | xr.DataArray):
        try:
            box = geobox(value)
        except DeoCubeError as error:
            raise ArgumentError(f"{named}: {error}") from error
    else:
        raise ArgumentError(f"{named} must be an odc.geo.geobox.GeoBox or a cube, got {type(value).__name__}")
    if box.crs is None:
        raise MissingCRSError(f"{named} has no CRS: GeoBox(shape, affine, 'EPSG:...')")
    if not box.crs.geographic or box.boundingbox.left < 180 - abs(box.resolution.x):
        return box, 0.0
    turn = 360.0
    return GeoBox(box.shape, Affine.translation(-turn, 0) * box.affine, box.crs), turn


def check_items_meet(items: Sequence[pystac.Item], place: Placement) -> None:
    """Refuse a window in degrees that touches the footprint of no item."""
    if place.window is None:
        return
    boxes = [(i, w) for i in items if (w := item_window(i.bbox, i.geometry)) is not None]
    if len(boxes) == len(items) and not any(touches(place.window, w) for _, w in boxes):
        raise nothing_there(len(items), place, f"; the first covers {boxes[0][0].bbox or boxes[0][1]}")


def nothing_there(count: int, place: Placement, more: str = "") -> ArgumentError:
    """Error for a place without pixels of any item."""
    where = f" {place.window}" if place.window is not None else ""
    return ArgumentError(f"{place.named or 'the cube'}{where} touches none of the {count} items{more}")


def check_one_crs(grids: Sequence[GeoBox | None], place: Placement) -> None:
    """Refuse items in several CRSs where the call names none, and a CRS of other units without a resolution."""
    if place.exact:
        return
    known = Counter(g.crs for g in grids if g is not None)
    _check_units(place.crs or (next(iter(known)) if len(known) == 1 else None), place.arguments.get("resolution"))
    if place.crs is None:
        if len(known) > 1:
            counts = ", ".join(f"{crs_name(c)} ({n} items)" for c, n in known.most_common())
            raise MissingCRSError(
                f"the items are in several CRSs: {counts}. Choose one, crs={_text(known.most_common(1)[0][0])!r} "
                "resolution=10, or load each zone apart, which keeps its pixels as they are"
            )
    elif "resolution" not in place.arguments and place.crs != "utm":
        units = {c.units for c in known}
        if units != {place.crs.units}:
            raise ArgumentError(
                f"crs={_text(place.crs)!r} has other units than the items: pass resolution= in units of that CRS"
            )


def _check_units(crs: Any, resolution: Any) -> None:
    """Refuse metres passed as degrees, and degrees passed as metres."""
    if crs is None or resolution is None:
        return
    size = abs(float(getattr(resolution, "x", resolution)))
    degrees = crs != "utm" and crs.geographic
    if (degrees and size >= 1) or (not degrees and size < 0.01):
        unit, other, good = ("degrees", "metres", "0.0001") if degrees else ("metres", "degrees", "10")
        raise ArgumentError(
            f"resolution={size:g} is in units of {crs if crs == 'utm' else crs_name(crs)}, which are {unit}, and looks "
            f"like {other}: pass resolution={good} or the like"
        )


def _text(crs: CRS) -> str:
    return f"EPSG:{crs.epsg}" if crs.epsg else crs.to_wkt()


def check_within_180(box: GeoBox, place: Placement) -> None:
    """Refuse an output grid in degrees across the antimeridian, where the pixels beyond it would be missing."""
    if not box.crs.geographic:
        return
    bounds, pixel = box.boundingbox, abs(box.resolution.x)
    if bounds.left < -180 - pixel or bounds.right > 180 + pixel:
        lon, lat = (bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2
        zone = int((lon + 180) % 360 // 6) + 1
        raise ArgumentError(
            f"the output runs from {bounds.left:g} to {bounds.right:g} degrees of longitude, across 180, where "
            f"{crs_name(box.crs)} breaks off. Load it in UTM: crs='EPSG:{(32600 if lat >= 0 else 32700) + zone}', "
            "resolution=10" + (f" and bbox={_degrees(bounds)} instead of {place.named}=" if place.exact else "")
        )


def _degrees(bounds: Any) -> str:
    return f"({', '.join(f'{v:.6g}' for v in (bounds.left, bounds.bottom, bounds.right, bounds.top))})"
