"""Public STAC catalogues of Sentinel-2 L2A: where they are, and what the numbers in their files mean.

Collections with the same ESA products differ in their files: of the four here, one holds harmonised files beside raw
ones and states a scale that is wrong for most of them. This module is the only place for such knowledge: `boa_offset`
reads the buckets, and `load_cube` the signing and the GDAL settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import urlsplit

from shapely.geometry import mapping

from deo_cube import arguments
from deo_cube.cube.footprint import cut_at_180, lonlat_bbox, place_geometry
from deo_cube.errors import ArgumentError, ArgumentTypeError, CatalogueError, remedy
from deo_cube.extras import require
from deo_cube.options import allow_network, get_option

__all__ = ["CATALOGUES", "Catalogue", "catalogue", "search"]


@dataclass(frozen=True)
class Catalogue:
    """One collection of one STAC API."""

    name: str
    url: str
    """Of the API's landing page."""
    collection: str
    offset: Literal["stated", "by baseline", "unreliable"] = "by baseline"
    """Source of the offset of baseline 04.00. "stated": scale and offset are stated per asset and right. "by
    baseline": nothing is stated, the files are as ESA publishes them, so that the baseline decides. "unreliable":
    statements contradict the files so often that `load_cube` decides only where flag and bucket agree."""
    raw: tuple[str, ...] = ()
    """Buckets or storage accounts whose files hold the DN as published."""
    harmonised: tuple[str, ...] = ()
    """Buckets or storage accounts from whose files the 1000 was subtracted."""
    scale: float | None = 1e-4
    """Stated per asset; None where it is not. Reflectance = DN x scale + offset."""
    nodata: float | None = 0.0
    """Stated per asset; None where it is not (it is 0 in all files)."""
    signing: Literal["planetary_computer"] | None = None
    """Service whose tokens are needed to read the files; they are renewed at each read."""
    gdal: tuple[tuple[str, str], ...] = ()
    """GDAL settings that are needed to read the files, beside the user's keys."""
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
        note="Collection 1, COGs, free of charge and without an account; the offset -0.1 is stated and applies",
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
        note="JPEG 2000 on the object store of the Copernicus Data Space, which needs your keys: AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY",
    ),
)

CATALOGUES: Mapping[str, Catalogue] = MappingProxyType({c.name: c for c in _KNOWN})
"""Catalogues by name. The first is recommended."""


def catalogue(which: str | Catalogue, *, collection: str | None = None) -> Catalogue:
    """Find a catalogue.

    Parameters
    ----------
    which : str or Catalogue
        A name in `CATALOGUES`, the URL of any STAC API (then `collection` says which of its collections), or a
        `Catalogue`, which is returned unchanged.
    collection : str, optional
        Instead of the catalogue's own.

    Raises
    ------
    CatalogueError
        For an unknown name, or a URL without a collection.
    """
    if isinstance(which, Catalogue):
        selected = which
    elif not isinstance(which, str):
        raise ArgumentTypeError(f"catalogue must be a name, the URL of a STAC API or a Catalogue, got {which!r}")
    elif which in CATALOGUES:
        selected = CATALOGUES[which]
    elif urlsplit(which).scheme in ("http", "https"):
        if collection is None:
            raise CatalogueError(f"{which} has many collections: choose one, collection='sentinel-2-l2a'")
        known = (c for c in _KNOWN if (c.url, c.collection) == (which.rstrip("/"), collection))
        return next(known, Catalogue(which, which, collection, scale=None, nodata=None))
    else:
        raise CatalogueError(
            f"catalogue {which!r} is unknown: choose from {', '.join(CATALOGUES)}, or give the URL of an API"
        )
    if collection is None or collection == selected.collection:
        return selected
    return catalogue(selected.url, collection=collection)


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
        Largest cloud cover of the whole product, per cent (`eo:cloud_cover`). Items that do not state it are kept.
    max_items : int, optional
        Stop after this number of items.
    collection : str, optional
        Instead of the catalogue's own.
    timeout : float
        Seconds to wait for an answer of the API.
    **options
        For `pystac_client.Client.search`.

    Returns
    -------
    pystac.ItemCollection
        Sorted by time, then by name.

    Raises
    ------
    MissingExtraError
        Without the extra ``stac``.
    CatalogueError
        If the catalogue is unknown or does not answer, or `offline` is set.
    ArgumentError
        Without bbox and intersects, or where no item matches.

    Examples
    --------
    >>> place = (9.40, 47.55, 9.53, 47.64)
    >>> items = search("earth-search", bbox=place, datetime="2024-07", max_cloud=10)  # doctest: +SKIP
    >>> cube = deo_cube.load_cube(items, bbox=place, resolution=10)  # doctest: +SKIP
    """
    require("pystac", "pystac_client", extra="stac", purpose="search")
    import pystac

    if max_cloud is not None:
        max_cloud = arguments.number("max_cloud", max_cloud, minimum=0, maximum=100)
    max_items = None if max_items is None else arguments.integer("max_items", max_items)
    timeout = arguments.number("timeout", timeout, above=0)
    if bbox is None and intersects is None and not options.keys() & {"ids"}:
        raise ArgumentError(
            "search needs a place: bbox=(west, south, east, north) in degrees, or intersects=a geometry"
        )
    places = _places(bbox, intersects)
    searched = _catalogue(catalogue, collection=collection)
    host = urlsplit(searched.url).hostname or ""
    if get_option("offline") and host not in ("localhost", "127.0.0.1", "::1"):
        raise CatalogueError(
            f"{searched.url} needs the network, and the option offline is set: {allow_network()} allows it"
        )
    items = _start_search(searched, {"datetime": datetime, **options}, timeout=timeout)
    selected: list[pystac.Item] = []
    cloudier = 0
    seen: set[str] = set()
    try:
        for item in (one for place in places for one in items(max_cloud, place)):
            if item.id in seen:
                continue  # on both sides of the antimeridian
            seen.add(item.id)
            cloud = item.properties.get("eo:cloud_cover")
            # Filtered by the API as well where it can; not all can, and some that claim to do not.
            if max_cloud is not None and cloud is not None and float(cloud) > max_cloud:
                cloudier += 1
                continue
            selected.append(item)
            if max_items is not None and len(selected) >= max_items:
                break
    except _network_errors() as error:
        raise _no_answer(searched, error) from error
    if not selected:
        over = f" ({cloudier} have more than max_cloud={max_cloud:g} % of cloud)" if cloudier else ""
        raise ArgumentError(
            f"{searched.name} has no item of {searched.collection} for bbox={bbox}, datetime={datetime!r}{over}: widen "
            "bbox, datetime or max_cloud"
        )
    selected.sort(key=lambda i: (str(i.properties.get("datetime") or i.properties.get("start_datetime")), i.id))
    return pystac.ItemCollection(selected)


def _places(bbox: Any, intersects: Any) -> list[dict[str, Any]]:
    """Return one place per search: a box across the antimeridian becomes two, since not all APIs accept it."""
    if bbox is not None and intersects is not None:
        raise ArgumentError("bbox and intersects each name a place: pass one of them")
    if bbox is not None:
        west, south, east, north = lonlat_bbox(bbox)
        if east <= 180:
            return [{"bbox": (west, south, east, north)}]
        return [{"bbox": (west, south, 180.0, north)}, {"bbox": (-180.0, south, east - 360, north)}]
    if intersects is None:
        return [{}]
    place = place_geometry(intersects)
    whole = place if place.crs is None or place.crs.geographic else place.to_crs("EPSG:4326")
    return [{"intersects": dict(mapping(cut_at_180(whole.geom)))}]


_catalogue = catalogue  # the argument of `search` has the same name


def _start_search(searched: Catalogue, options: Mapping[str, Any], *, timeout: float) -> Any:
    """Return a function that starts the search, with a filter on cloud cover where the API declares one."""
    import pystac_client

    try:
        client = pystac_client.Client.open(searched.url, timeout=timeout)
    except _network_errors() as error:
        raise _no_answer(searched, error) from error
    passed = {k: v for k, v in options.items() if v is not None}

    def begin(max_cloud: float | None, place: Mapping[str, Any]) -> Any:
        query = dict(passed.get("query", {}))
        if max_cloud is not None and client.conforms_to("QUERY"):
            query["eo:cloud_cover"] = {"lte": max_cloud}
        request = {**passed, **place} | ({"query": query} if query else {})
        return client.search(collections=[searched.collection], **request).items()

    return begin


def _network_errors() -> tuple[type[Exception], ...]:
    import pystac_client.exceptions
    import requests

    return (pystac_client.exceptions.APIError, requests.RequestException, OSError)


def _no_answer(searched: Catalogue, error: Exception) -> CatalogueError:
    return CatalogueError(
        f"the catalogue {searched.name} at {searched.url} did not answer ({type(error).__name__}: "
        f"{str(error)[:200]}). Check the network connection. STAC items in a file load without it: "
        + remedy("load_cube('items.json')", "deo-cube embed items.json OUT")
    )
