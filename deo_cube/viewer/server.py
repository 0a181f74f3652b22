"""The HTTP server: deadlines of connections, and checks of requests, which another web page could have made.

Requests are checked by Host, Origin and Sec-Fetch-Site, for every path and method. A page elsewhere can reach a server
on this machine in three ways: by a name that it lets resolve to this machine (its Host is foreign), by a request from
its script or form (its Origin is foreign), or by a link, image or frame (its Sec-Fetch-Site is not ``same-origin``).
All three are refused, because none of them needs to read the answer to do harm.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from urllib.parse import parse_qs

import h11
from shapely.geometry import Polygon
from shapely.validation import explain_validity
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from deo_cube.errors import ArgumentError
from deo_cube.heads.classes import NO_CLASS

__all__ = [
    "AccessRules",
    "BadRequest",
    "Connection",
    "HostCheck",
    "LabelSet",
    "MAX_CONNECTIONS",
    "parse_bounds",
    "parse_choice",
    "parse_dates",
    "parse_ids",
    "parse_int",
    "parse_place",
    "parse_places",
    "read_body",
    "refusal",
    "server_config",
]


# --- Parse and check what the page sends; every refusal is one sentence ---

MAX_BYTES = 16 * 2**20
"""Largest body of a request."""
MAX_LABELS = 20000
MAX_CORNERS = 100_000
MAX_PLACES = 200


class BadRequest(ValueError):
    """A request that cannot be answered, with its HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def read_body(body: bytes) -> dict[str, Any]:
    """Return the JSON object in the body of a request."""
    if len(body) > MAX_BYTES:
        raise BadRequest(f"a request holds at most {MAX_BYTES // 2**20} MB", 413)
    try:
        # NaN and Infinity are not JSON, though Python reads them.
        value = json.loads(body, parse_constant=lambda name: _refuse(f"{name} is not a number"))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request must be JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest("the request must be a JSON object")
    return value


def _refuse(message: str) -> Any:
    raise ArgumentError(message)


def parse_int(value: Any, what: str, low: int, high: int) -> int:
    """Return an integer from `low` up to, not including, `high`."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
        raise BadRequest(f"{what} must be a whole number from {low} to {high - 1}, got {value!r:.40}")
    return value


def parse_choice(value: Any, what: str, choices: Sequence[str]) -> str:
    """Return a value, if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise BadRequest(f"{what} must be one of {', '.join(choices)}, got {value!r:.40}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRequest(f"a coordinate must be a finite number, got {value!r:.40}")
    return float(value)


def parse_place(value: Any) -> tuple[float, float]:
    """Return [longitude, latitude] in degrees; longitudes may continue beyond 180."""
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise BadRequest(f"a place must be [longitude, latitude], got {value!r:.60}")
    lon, lat = _number(value[0]), _number(value[1])
    if not (-540 <= lon <= 540 and -90 <= lat <= 90):
        raise BadRequest(f"a place must be [longitude, latitude] in degrees, got [{lon:g}, {lat:g}]")
    return lon, lat


def parse_places(value: Any) -> list[tuple[float, float]]:
    """Return one or more places."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_PLACES:
        raise BadRequest(f"places must be a list of 1 to {MAX_PLACES} places [longitude, latitude]")
    return [parse_place(p) for p in value]


def parse_bounds(value: Any) -> tuple[float, float, float, float] | None:
    """Return (west, south, east, north) of two places, south-west and north-east; None for None.

    Raises
    ------
    BadRequest
        For anything else, and bounds without an area.
    """
    if value is None:
        return None
    corners = parse_places(value)
    if len(corners) != 2:
        raise BadRequest("bounds must be two places, south-west and north-east")
    (west, south), (east, north) = corners
    if west >= east or south >= north:
        raise BadRequest(f"bounds must be south-west and north-east of an area, got {value!r:.80}")
    return west, south, east, north


def parse_dates(first: Any, last: Any) -> slice | None:
    """Return the dates from `first` to `last`, written YYYY-MM-DD, as a slice; None where neither is given.

    Raises
    ------
    BadRequest
        For other texts, and a first date after the last.
    """
    given: list[str | None] = []
    for value in (first, last):
        if value is not None and value != "":
            try:
                given.append(date.fromisoformat(value).isoformat())
            except (TypeError, ValueError):
                raise BadRequest(f"a date must be written YYYY-MM-DD, got {value!r:.40}") from None
        else:
            given.append(None)
    start, stop = given
    if start is not None and stop is not None and start > stop:
        raise BadRequest(f"the first date must not be after the last, got {start} and {stop}")
    return None if start is None and stop is None else slice(start, stop)


def parse_ids(value: Any) -> list[int]:
    """Return the ids of at most `MAX_PLACES` patches of an index; none for None."""
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MAX_PLACES:
        raise BadRequest(f"ids must be a list of at most {MAX_PLACES} ids of results")
    return [parse_int(v, "the id of a result", 0, 2**53) for v in value]


def _ring(value: Any) -> list[tuple[float, float]]:
    if not isinstance(value, list) or len(value) < 4:
        raise BadRequest("a ring of a polygon must have four places or more, the last equal to the first")
    ring = [parse_place(p) for p in value]
    if ring[0] != ring[-1]:
        raise BadRequest("a ring of a polygon must be closed: its last place must equal its first")
    return ring


def _geometry(value: Any) -> dict[str, Any]:
    """Return a GeoJSON point or polygon, if it is valid."""
    if not isinstance(value, Mapping):
        raise BadRequest("a label must have a geometry, a GeoJSON Point or Polygon")
    kind, coordinates = value.get("type"), value.get("coordinates")
    if kind == "Point":
        return {"type": "Point", "coordinates": list(parse_place(coordinates))}
    if kind != "Polygon" or not isinstance(coordinates, list) or not coordinates:
        raise BadRequest(f"a label must be a GeoJSON Point or Polygon, got {kind!r:.40}")
    rings = [_ring(r) for r in coordinates]
    if sum(len(r) for r in rings) > MAX_CORNERS:
        raise BadRequest(f"a polygon must have at most {MAX_CORNERS} corners")

    polygon = Polygon(rings[0], rings[1:])
    if not polygon.is_valid or polygon.area == 0:
        why = explain_validity(polygon) if not polygon.is_valid else "it has no area"
        raise BadRequest(f"a polygon is not valid: {why}. Draw it without crossing lines")
    return {"type": "Polygon", "coordinates": [[list(p) for p in r] for r in rings]}


def _names_and_colors(classes: list[Any]) -> tuple[dict[int, str], dict[int, str]]:
    """Return name and colour of each class, by its code."""
    names: dict[int, str] = {}
    colors: dict[int, str] = {}
    for c in classes:
        if not isinstance(c, Mapping):
            raise BadRequest("a class must be {code, name, color}")
        code = parse_int(c.get("code"), "the code of a class", 0, NO_CLASS)
        name, color = c.get("name"), c.get("color")
        if not isinstance(name, str) or not name.strip() or len(name) > 60:
            raise BadRequest(f"the name of a class must be text of 1 to 60 characters, got {name!r:.40}")
        if not isinstance(color, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
            raise BadRequest(f"the colour of a class must be written #rrggbb, got {color!r:.40}")
        if code in names or name.strip() in names.values():
            raise BadRequest(f"two classes have the code {code} or the name {name.strip()!r}")
        names[code], colors[code] = name.strip(), color.lower()
    return names, colors


@dataclass(frozen=True)
class LabelSet:
    """Labels drawn on the map, in WGS 84.

    Parameters
    ----------
    names, colors : dict
        Name and colour of each class, by its code.
    geometries : tuple of dict
        GeoJSON points and polygons.
    codes : tuple of int
        The class of each.
    """

    names: dict[int, str] = field(default_factory=lambda: {1: "positive", 0: "negative"})
    colors: dict[int, str] = field(default_factory=lambda: {1: "#e69f00", 0: "#0072b2"})
    geometries: tuple[dict[str, Any], ...] = ()
    codes: tuple[int, ...] = ()

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> LabelSet:
        """Return the labels of the page: ``{"classes": [{code, name, color}], "features": [GeoJSON features]}``."""
        classes, features = value.get("classes"), value.get("features")
        if not isinstance(classes, list) or not isinstance(features, list):
            raise BadRequest('labels must be {"classes": [...], "features": [...]}')
        if len(features) > MAX_LABELS:
            raise BadRequest(f"labels must be at most {MAX_LABELS}, got {len(features)}", 413)
        names, colors = _names_and_colors(classes)
        geometries, codes = [], []
        for f in features:
            if not isinstance(f, Mapping) or not isinstance(f.get("properties"), Mapping):
                raise BadRequest("a label must be a GeoJSON feature with properties")
            code = parse_int(f["properties"].get("class"), "the class of a label", 0, NO_CLASS)
            if code not in names:
                raise BadRequest(f"the class of a label must be one of {sorted(names)}, got {code}")
            geometries.append(_geometry(f.get("geometry")))
            codes.append(code)
        return cls(names, colors, tuple(geometries), tuple(codes))

    def __len__(self) -> int:
        return len(self.codes)

    def to_dict(self) -> dict[str, Any]:
        """Return a GeoJSON FeatureCollection with the classes beside it, which `of` reads."""
        return {
            "type": "FeatureCollection",
            "classes": [{"code": k, "name": n, "color": self.colors[k]} for k, n in self.names.items()],
            "features": [
                {
                    "type": "Feature",
                    "properties": {"label": self.names[k], "class": k, "color": self.colors[k]},
                    "geometry": g,
                }
                for g, k in zip(self.geometries, self.codes, strict=True)
            ],
        }

    def to_geopandas(self) -> Any:
        """Return a GeoDataFrame with the columns label, class, color and geometry, EPSG:4326."""
        import geopandas as gpd

        features = self.to_dict()["features"]
        columns = ["label", "class", "color", "geometry"]
        if not features:
            return gpd.GeoDataFrame({c: [] for c in columns}, geometry="geometry", crs="EPSG:4326")
        return gpd.GeoDataFrame.from_features(features, crs="EPSG:4326")[columns]


# --- server ---

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors "
)
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
HOST_PATTERN = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?)(?::[0-9]{1,5})?")
SAFE_METHODS = ("GET", "HEAD")


@dataclass(frozen=True)
class AccessRules:
    """Hosts and pages whose requests are answered.

    Parameters
    ----------
    hosts : collection of str
        Names and addresses under which the server is reached, IPv6 without brackets.
    addresses : bool
        Answer under any numeric address too; only names can be made to resolve to this machine by others.
    frame : str
        Secret in the address of the notebook's frame and link, with which the page may be shown in a frame.
    """

    hosts: Collection[str]
    addresses: bool = False
    frame: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)


def refusal(scope: Scope, rules: AccessRules) -> tuple[int, str] | None:
    """Return the HTTP status and the reason for which a request is refused; None for one that is answered."""
    method = str(scope["method"])
    if not bytes(scope.get("raw_path") or scope["path"].encode()).startswith(b"/"):
        return 400, "the target of a request must be a path that begins with /"
    hosts, origins, sites = (_values(scope, n) for n in (b"host", b"origin", b"sec-fetch-site"))
    host = hosts[0].lower() if len(hosts) == 1 else ""
    matched = HOST_PATTERN.fullmatch(host)
    if matched is None:
        return 400, "a request must have one Host, a name or address with or without a port"
    name = matched[1].strip("[]")
    if name not in rules.hosts and not (rules.addresses and _is_address(name)):
        return 403, (
            f"the Host must be one of {', '.join(rules.hosts)}, got {name[:100]!r}: if that is a name of this "
            "machine, start the viewer with hostnames= (--hostnames)"
        )
    if len(origins) > 1 or (origins and origins[0] not in (f"http://{host}", f"https://{host}")):
        return 403, "requests of another page are refused"
    if not sites or sites == ["same-origin"] or (sites == ["none"] and method in SAFE_METHODS):
        return None
    if (
        method in SAFE_METHODS
        and _values(scope, b"sec-fetch-mode") == ["navigate"]
        and opened_by_notebook(scope, rules)
    ):
        return None
    return 403, (
        "this page was opened from another site. Copy its address into the browser's address bar, or follow the link "
        "under the viewer in the notebook"
    )


def opened_by_notebook(scope: Scope, rules: AccessRules) -> bool:
    """Return whether a request is for the page, with the secret in the notebook's frame and link."""
    secret = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("frame", [])
    return (
        scope["path"] == "/" and len(secret) == 1 and secrets.compare_digest(secret[0].encode(), rules.frame.encode())
    )


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class HostCheck:
    """Answer only requests that `refusal` accepts, and add the headers that keep other pages out.

    Web sockets are closed: the page uses none, and browsers let any page open them.
    """

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request, or refuse it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            return
        refused = refusal(scope, self.rules)
        framed = refused is None and opened_by_notebook(scope, self.rules)
        # The page of a notebook in an editor has an address with a scheme of its own.
        ancestors = "* vscode-webview:" if framed else "'none'"
        headers = [*SECURITY_HEADERS, (b"content-security-policy", (POLICY + ancestors).encode())]
        if not framed:
            headers.append((b"x-frame-options", b"DENY"))

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                own: list[Any] = list(message.get("headers", []))
                if not any(key.lower() == b"cache-control" for key, _ in own):
                    own.append((b"cache-control", b"no-store" if scope["path"].startswith("/api") else b"no-cache"))
                message = {**message, "headers": [*own, *headers]}
            await send(message)

        if refused is None:
            await self.app(scope, receive, hardened)
            return
        status, reason = refused
        as_page = _values(scope, b"sec-fetch-mode") == ["navigate"]
        answer: Response = PlainTextResponse(reason, status) if as_page else JSONResponse({"error": reason}, status)
        await answer(scope, receive, hardened)


# ---- connections ----------------------------------------------------------------------------------------------------

#: Largest number of connections at a time; a page opens six.
MAX_CONNECTIONS = 96
#: Seconds in which the headers of a request must be complete.
HEADER_SECONDS = 10.0
#: Seconds in which the body of a request must be complete.
BODY_SECONDS = 30.0
#: Seconds in which a client must read a part of an answer.
READ_SECONDS = 30.0


class Connection(H11Protocol):
    """A connection that is dropped when its request is not completed, or its answer not read, in time.

    uvicorn's own timeout counts only after an answer, and starts again with each byte.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waits_for: str | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, unless there are too many connections."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._cancel()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read received bytes; the deadline for the missing ones stays."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def shutdown(self) -> None:
        """Close with the server: drop a connection that waits for its request, finish one that is being answered."""
        if self._waits_for is not None:
            self.transport.abort()
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, and drop it if the client does not take the rest."""
        super().timeout_keep_alive_handler()
        # `close` waits for what is still to be sent.
        self.loop.call_later(READ_SECONDS, self.transport.abort)

    def pause_writing(self) -> None:
        """Start the deadline in which the client must read."""
        super().pause_writing()
        self._stalled = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Cancel that deadline, because the client has read."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def _watch(self) -> None:
        """Set the deadline for the next part of a request; a running deadline stays."""
        state = self.conn.their_state
        waits_for = "headers" if state is h11.IDLE else "body" if state is h11.SEND_BODY else None
        if waits_for == self._waits_for or self.transport.is_closing():
            return
        self._cancel()
        self._waits_for = waits_for
        if waits_for is not None:
            self._deadline = self.loop.call_later(
                HEADER_SECONDS if waits_for == "headers" else BODY_SECONDS, self.transport.abort
            )

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def server_config(app: Any) -> Config:
    """Return the configuration of the server for `app`: HTTP only, quiet, bounded."""
    return Config(
        app,
        http=Connection,
        ws="none",
        log_level="error",  # mistakes of clients are not warnings
        lifespan="off",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=64 * 1024,
        limit_concurrency=MAX_CONNECTIONS + 1,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
    )
