"""HTTP connections with deadlines: those that are half open, slow or too many are dropped."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["CONNECTIONS", "Connection", "config"]

#: Connections at a time; a page opens six.
CONNECTIONS = 96
#: Seconds until the headers of a request are complete.
HEADERS = 10.0
#: Seconds until the body of a request is complete.
BODY = 30.0
#: Seconds in which a client must read some of an answer.
READ = 30.0


class Connection(H11Protocol):
    """A connection that is dropped when its request does not come, or its answer is not read.

    uvicorn's own timeout counts only after an answer, and starts again with each byte.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waits_for: str | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, unless there are too many connections."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
            return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._cancel()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came; the deadline for what is missing stays."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def shutdown(self) -> None:
        """End with the server: what still waits for its request is dropped, what is being answered is finished."""
        if self._waits_for is not None:
            self.transport.abort()
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, and drop it if the client does not take the rest."""
        super().timeout_keep_alive_handler()
        # `close` waits for what is still to be sent.
        self.loop.call_later(READ, self.transport.abort)

    def pause_writing(self) -> None:
        """Give the client a while to read what was sent."""
        super().pause_writing()
        self._stalled = self.loop.call_later(READ, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that the client has read."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def _watch(self) -> None:
        """Set the deadline for what the client has to send next; one that is running is kept."""
        state = self.conn.their_state
        waits_for = "headers" if state is h11.IDLE else "body" if state is h11.SEND_BODY else None
        if waits_for == self._waits_for or self.transport.is_closing():
            return
        self._cancel()
        self._waits_for = waits_for
        if waits_for is not None:
            self._deadline = self.loop.call_later(HEADERS if waits_for == "headers" else BODY, self.transport.abort)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def config(app: Any) -> Config:
    """Configuration of the server for `app`: HTTP alone, quiet, bounded."""
    return Config(
        app,
        http=Connection,
        ws="none",
        log_level="error",  # what a client does wrong is no warning
        lifespan="off",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=64 * 1024,
        limit_concurrency=CONNECTIONS + 1,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
    )
