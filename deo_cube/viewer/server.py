"""The HTTP server: deadlines of connections, and refusal of requests that another web page could have made.

Requests are checked by Host, Origin and Sec-Fetch-Site, for every path and method. A page elsewhere can reach a server
on this machine in three ways: by a name that it lets resolve to this machine (its Host is foreign), by a request from
its script or form (its Origin is foreign), or by a link, image or frame (its Sec-Fetch-Site is not ``same-origin``).
All three are refused, because none of them needs to read the answer to do harm.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import h11
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["MAX_CONNECTIONS", "AccessRules", "Connection", "HostCheck", "refusal", "server_config"]

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
