"""Refuse requests that another web page could have made: by Host, Origin and Sec-Fetch-Site, for every path and method.

A page elsewhere can reach a server on this machine in three ways: by a name that it lets resolve to this machine (its
Host is foreign), by a request from its script or form (its Origin is foreign), or by a link, image or frame (its
Sec-Fetch-Site is not ``same-origin``). None of the three needs the answer to do harm, so none is answered.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "Rules", "refusal"]

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors "
)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?)(?::[0-9]{1,5})?")
SAFE = ("GET", "HEAD")


@dataclass(frozen=True)
class Rules:
    """Which requests are answered.

    Parameters
    ----------
    hosts : collection of str
        Names and addresses under which the server is reached, IPv6 without brackets.
    addresses : bool
        Any other address in numbers as well: only names can be made to resolve elsewhere.
    frame : str
        Secret of the notebook's frame and link: who knows it may show the page in a frame.
    """

    hosts: Collection[str]
    addresses: bool = False
    frame: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)


def refusal(scope: Scope, rules: Rules) -> tuple[int, str] | None:
    """Return the HTTP status and the reason for which a request is refused; None for one that is answered."""
    method = str(scope["method"])
    if not bytes(scope.get("raw_path") or scope["path"].encode()).startswith(b"/"):
        return 400, "the target of a request is a path that begins with /"
    hosts, origins, sites = (_values(scope, n) for n in (b"host", b"origin", b"sec-fetch-site"))
    host = hosts[0].lower() if len(hosts) == 1 else ""
    matched = HOST.fullmatch(host)
    if matched is None:
        return 400, "a request has one Host, a name or address with or without a port"
    name = matched[1].strip("[]")
    if name not in rules.hosts and not (rules.addresses and _is_address(name)):
        return 403, (
            f"this server answers for {', '.join(rules.hosts)}, not for {name[:100]!r}. Start it with "
            "hostnames= (--hostnames) if that is a name of this machine"
        )
    if len(origins) > 1 or (origins and origins[0] not in (f"http://{host}", f"https://{host}")):
        return 403, "a page from elsewhere may not ask here"
    if not sites or sites == ["same-origin"] or (sites == ["none"] and method in SAFE):
        return None
    if method in SAFE and _values(scope, b"sec-fetch-mode") == ["navigate"] and opened_by_notebook(scope, rules):
        return None
    return 403, (
        "this page was opened from another site. Copy its address into the browser's address bar, or follow the link "
        "under the viewer in the notebook"
    )


def opened_by_notebook(scope: Scope, rules: Rules) -> bool:
    """Whether a request is for the page, with the secret that only the notebook's frame and link hold."""
    given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("frame", [])
    return scope["path"] == "/" and len(given) == 1 and secrets.compare_digest(given[0].encode(), rules.frame.encode())


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """Answer only what `refusal` lets through, and add the headers that keep other pages out.

    Web sockets are closed: the page uses none, and browsers let any page open them.
    """

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            return
        refused = refusal(scope, self.rules)
        framed = refused is None and opened_by_notebook(scope, self.rules)
        # A notebook in an editor is shown by a page whose address has a scheme of its own.
        ancestors = "* vscode-webview:" if framed else "'none'"
        headers = [*HEADERS, (b"content-security-policy", (POLICY + ancestors).encode())]
        if not framed:
            headers.append((b"x-frame-options", b"DENY"))

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                given: list[Any] = list(message.get("headers", []))
                if not any(key.lower() == b"cache-control" for key, _ in given):
                    given.append((b"cache-control", b"no-store" if scope["path"].startswith("/api") else b"no-cache"))
                message = {**message, "headers": [*given, *headers]}
            await send(message)

        if refused is None:
            await self.app(scope, receive, hardened)
            return
        status, why = refused
        page = _values(scope, b"sec-fetch-mode") == ["navigate"]
        answer: Response = PlainTextResponse(why, status) if page else JSONResponse({"error": why}, status)
        await answer(scope, receive, hardened)
