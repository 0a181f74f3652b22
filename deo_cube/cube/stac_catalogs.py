"""Public STAC catalogues of Sentinel-2 L2A: where they are, and what the numbers in their files mean.

A catalogue is what its items and files say, not what its name suggests: of four collections with the same ESA products,
one holds harmonised files beside raw ones and states a scale that is wrong for most of them. What is known stands here,
once; `baseline` takes the buckets from here, and `load_cube` the signing and the GDAL settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import urlsplit

from deo_cube import arguments
from deo_cube.errors import ArgumentError, ArgumentTypeError, CatalogueError
from deo_cube.options import get_option

__all__ = ["CATALOGUES", "Catalogue", "catalogue", "search"]


@dataclass(frozen=True)
class Catalogue:
    """One collection of one STAC API."""

    name: str
    url: str
    """Of the API's landing page."""
    collection: str
    offset: Literal["stated", "by baseline", "unreliable"] = "by baseline"
    """How the offset of baseline 04.00 is known. "stated": scale and offset stand with each asset and are right. "by
    baseline": nothing is stated, the files are as ESA publishes them, so that the baseline decides. "unreliable": what
    is stated contradicts the files often enough that `load_cube` wants flag and bucket to agree, and else asks."""
    raw: tuple[str, ...] = ()
    """Buckets or storage accounts whose files hold the DN as published."""
    harmonised: tuple[str, ...] = ()
    """Those whose files had the 1000 subtracted."""
    scale: float | None = 1e-4
    """Stated with each asset; None where none is. Reflectance = DN x scale + offset."""
    nodata: float | None = 0.0
    """Stated with each asset; None where none is (it is 0 in all of them)."""
    signing: Literal["planetary_computer"] | None = None
    """Who gives the tokens without which the files cannot be read; they are renewed at each read."""
    gdal: tuple[tuple[str, str], ...] = ()
    """GDAL settings without which the files cannot be read, beside the user's keys."""
    note: str = ""

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ArgumentError(f"url of catalogue {self.name!r} must begin with http:// or https://, got {self.url!r}")
        if set(self.raw) & set(self.harmonised):
            raise ArgumentError(f"catalogue {self.name!r}: a bucket is raw or harmonised, not both")

    def __repr__(self) -> str:
        return f"<Catalogue {self.name}: {self.collection} at {self.url}; offset {self.offset}. {self.note}>"


_KNOWN = (
    Catalogue(
        "earth-search",
        "https://earth-search.aws.element84.com/v1",
        "sentinel-2-c1-l2a",
        offset="stated",
        raw=("e84-earth-search-sentinel-data",),
        note="Collection 1, COGs, free of charge and without an account; offset -0.1 is stated and stands in the files",
    ),
    Catalogue(
        "earth-search-l2a",
        "https://earth-search.aws.element84.com/v1",
        "sentinel-2-l2a",
        offset="unreliable",
        raw=("sentinel-s2-l2a",),
        harmonised=("sentinel-cogs",),
        # Element84/earth-search issues 9, 66, 71
        note="the older collection: raster:bands says -0.1 of files from which it was subtracted, and "
        "boa_offset_applied is false on files of both kinds; prefer earth-search",
    ),
    Catalogue(
        "planetary-computer",
        "https://planetarycomputer.microsoft.com/api/stac/v1",
        "sentinel-2-l2a",
        offset="by baseline",
        raw=("sentinel2l2a01",),
        scale=None,
        nodata=None,
        signing="planetary_computer",
        # microsoft/PlanetaryComputer issue 134
        note="COGs of the DN as published, nothing stated; tokens of about 45 minutes, pip install 'deo-cube[stac]'",
    ),
    Catalogue(
        "cdse",
        "https://stac.dataspace.copernicus.eu/v1",
        "sentinel-2-l2a",
        offset="stated",
        raw=("eodata",),
        gdal=(("AWS_S3_ENDPOINT", "eodata.dataspace.copernicus.eu"), ("AWS_VIRTUAL_HOSTING", "FALSE")),
        note="JPEG 2000 on the object store of the Copernicus Data Space, which wants your keys: AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY",
    ),
)

CATALOGUES: Mapping[str, Catalogue] = MappingProxyType({c.name: c for c in _KNOWN})
"""By name. The first is the one to begin with."""


def catalogue(which: str | Catalogue, *, collection: str | None = None) -> Catalogue:
    """Find a catalogue.

    Parameters
    ----------
    which : str or Catalogue
        A name in `CATALOGUES`, the URL of any STAC API (then `collection` says which of its collections), or a
        catalogue of your own, which is returned as it is.
    collection : str, optional
        Instead of the catalogue's own.

    Raises
    ------
    CatalogueError
        For a name that is not known, or a URL without a collection.
    """
    if isinstance(which, Catalogue):
        found = which
    elif not isinstance(which, str):
        raise ArgumentTypeError(f"catalogue must be a name, the URL of a STAC API or a Catalogue, got {which!r}")
    elif which in CATALOGUES:
        found = CATALOGUES[which]
    elif urlsplit(which).scheme in ("http", "https"):
        if collection is None:
            raise CatalogueError(f"{which} has many collections: say which, collection='sentinel-2-l2a'")
        known = (c for c in _KNOWN if (c.url, c.collection) == (which.rstrip("/"), collection))
        return next(known, Catalogue(which, which, collection, scale=None, nodata=None))
    else:
        raise CatalogueError(f"no catalogue {which!r}: choose from {', '.join(CATALOGUES)}, or give the URL of an API")
    if collection is None or collection == found.collection:
        return found
    return catalogue(found.url, collection=collection)


def search(
    catalogue: str | Catalogue = "earth-search",
    *,
    bbox: tuple[float, float, float, float] | None = None,
    datetime: Any = None,
    intersects: Any = None,
    max_cloud: float | None = None,
    max_items: int | None = None,
    collection: str | None = None,
    timeout: float = 30.0,
    **options: Any,
) -> Any:
    """Search a public catalogue of Sentinel-2 L2A; the result goes to `load_cube`.

    Parameters
    ----------
    catalogue : str or Catalogue
        "earth-search" (default), "earth-search-l2a", "planetary-computer", "cdse", or the URL of any STAC API.
    bbox : (west, south, east, north), optional
        Degrees, in any convention: -180..180, 0..360, or west greater than east across the antimeridian.
    datetime : str or datetime, optional
        One, or an interval: "2024-06", "2024-06-01/2024-08-31".
    intersects : GeoJSON dict, shapely geometry or GeoDataFrame, optional
        Instead of `bbox`.
    max_cloud : float, optional
        Per cent of the whole product that may be cloudy (`eo:cloud_cover`). Items that do not state it are kept.
    max_items : int, optional
        Stop after so many.
    collection : str, optional
        Instead of the catalogue's own.
    timeout : float
        Seconds that the API may take for an answer.
    **options
        For `pystac_client.Client.search`.

    Returns
    -------
    pystac.ItemCollection
        In the order of time; of one time, by name.

    Raises
    ------
    CatalogueError
        If there is no such catalogue, it does not answer, or `offline` is set.
    ValueError
        Without bbox and intersects, or where nothing was found.

    Examples
    --------
    >>> place = (9.40, 47.55, 9.53, 47.64)
    >>> items = search("earth-search", bbox=place, datetime="2024-07", max_cloud=10)  # doctest: +SKIP
    >>> cube = deo_cube.load_cube(items, bbox=place, resolution=10)  # doctest: +SKIP
    """
    import pystac

    if max_cloud is not None:
        max_cloud = arguments.number("max_cloud", max_cloud, minimum=0, maximum=100)
    max_items = None if max_items is None else arguments.integer("max_items", max_items)
    timeout = arguments.number("timeout", timeout, above=0)
    if bbox is None and intersects is None and not options.keys() & {"ids"}:
        raise ArgumentError(
            "search wants a place: bbox=(west, south, east, north) in degrees, or intersects=a geometry"
        )
    places = _places(bbox, intersects)
    found = _catalogue(catalogue, collection=collection)
    host = urlsplit(found.url).hostname or ""
    if get_option("offline") and host not in ("localhost", "127.0.0.1", "::1"):
        raise CatalogueError(
            f"{found.url} needs the network, and the option offline is set: deo_cube.set_options(offline=False), or "
            "unset DEO_CUBE_OFFLINE"
        )
    items = _answers(found, {"datetime": datetime, **options}, timeout=timeout)
    kept: list[pystac.Item] = []
    cloudier = 0
    seen: set[str] = set()
    try:
        for item in (one for place in places for one in items(max_cloud, place)):
            if item.id in seen:
                continue  # on both sides of the antimeridian
            seen.add(item.id)
            cloud = item.properties.get("eo:cloud_cover")
            # Asked of the API as well where it can filter; not all can, and some that say so do not.
            if max_cloud is not None and cloud is not None and float(cloud) > max_cloud:
                cloudier += 1
                continue
            kept.append(item)
            if max_items is not None and len(kept) >= max_items:
                break
    except _network_errors() as error:
        raise _silent(found, error) from error
    if not kept:
        over = f" ({cloudier} have more than max_cloud={max_cloud:g} % of cloud)" if cloudier else ""
        raise ArgumentError(
            f"{found.name} has no item of {found.collection} for bbox={bbox}, datetime={datetime!r}{over}: widen "
            "bbox, datetime or max_cloud"
        )
    kept.sort(key=lambda i: (str(i.properties.get("datetime") or i.properties.get("start_datetime")), i.id))
    return pystac.ItemCollection(kept)


def _places(bbox: Any, intersects: Any) -> list[dict[str, Any]]:
    """The places of one search each: a box on both sides of the antimeridian is two, since not all APIs take one."""
    from deo_cube.cube.footprint import cut_at_180, lonlat_bbox, place_geometry

    if bbox is not None and intersects is not None:
        raise ArgumentError("bbox and intersects each name a place: pass one of them")
    if bbox is not None:
        west, south, east, north = lonlat_bbox(bbox)
        if east <= 180:
            return [{"bbox": (west, south, east, north)}]
        return [{"bbox": (west, south, 180.0, north)}, {"bbox": (-180.0, south, east - 360, north)}]
    if intersects is None:
        return [{}]
    from shapely.geometry import mapping

    place = place_geometry(intersects)
    whole = place if place.crs is None or place.crs.geographic else place.to_crs("EPSG:4326")
    return [{"intersects": dict(mapping(cut_at_180(whole.geom)))}]


_catalogue = catalogue  # the argument of `search` has the same name


def _answers(found: Catalogue, wanted: Mapping[str, Any], *, timeout: float) -> Any:
    """A call that begins the search, with a filter on cloud where the API says that it has one."""
    import pystac_client

    try:
        client = pystac_client.Client.open(found.url, timeout=timeout)
    except _network_errors() as error:
        raise _silent(found, error) from error
    given = {k: v for k, v in wanted.items() if v is not None}

    def begin(max_cloud: float | None, place: Mapping[str, Any]) -> Any:
        query = dict(given.get("query", {}))
        if max_cloud is not None and client.conforms_to("QUERY"):
            query["eo:cloud_cover"] = {"lte": max_cloud}
        asked = {**given, **place} | ({"query": query} if query else {})
        return client.search(collections=[found.collection], **asked).items()

    return begin


def _network_errors() -> tuple[type[Exception], ...]:
    import pystac_client.exceptions
    import requests

    return (pystac_client.exceptions.APIError, requests.RequestException, OSError)


def _silent(found: Catalogue, error: Exception) -> CatalogueError:
    return CatalogueError(
        f"the catalogue {found.name} at {found.url} did not answer ({type(error).__name__}: {str(error)[:200]}). Is "
        "this machine on the network? STAC items that you have as a file load without: load_cube('items.json')"
    )
