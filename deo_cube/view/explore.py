"""Start the viewer: from the command line, or from Python beside the work at hand."""

from __future__ import annotations

import html
import signal
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from deo_cube.arguments import cube_of, embeddings_of, integer
from deo_cube.errors import ArgumentError, ArgumentTypeError, MissingExtraError, StorageError
from deo_cube.heads.head import Head

__all__ = ["Explorer", "explore", "serve"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: Addresses that stand for all of this machine.
ANY = ("0.0.0.0", "::", "")


class Explorer:
    """A viewer that is running.

    Attributes
    ----------
    url : str
        Of the page.
    """

    def __init__(
        self, view: Any, *, host: str = "127.0.0.1", port: int = 0, height: int = 640, hostnames: Sequence[str] = ()
    ) -> None:
        port = integer("port", port, minimum=0, maximum=65535)
        if not isinstance(host, str):
            raise ArgumentTypeError(f"host must be a name or an address, got {host!r}")
        try:
            import uvicorn

            from deo_cube.view.app import create_app
            from deo_cube.view.guard import Rules
            from deo_cube.view.server import config
        except ImportError as error:
            raise MissingExtraError.wanted("starlette and uvicorn", "view", "the viewer") from error
        self.view, self.height = view, height
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise ArgumentError(
                f"cannot listen on host={host!r}, port={port}: {error.strerror or error}. Choose another port, or "
                "port=0 for any free one"
            ) from None
        bound = self._socket.getsockname()[1]
        shown = "127.0.0.1" if host in ANY else host
        self.url = f"http://[{shown}]:{bound}/" if ":" in shown else f"http://{shown}:{bound}/"
        self._rules = Rules(_names(host, hostnames), addresses=host not in LOOPBACK)
        self._server = uvicorn.Server(config(create_app(view, self._rules)))
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="deo_cube view", daemon=True
        )
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        if not self._server.started:
            self._socket.close()
            raise StorageError("the viewer's server did not start: its log says why")

    @property
    def running(self) -> bool:
        """Whether the page can be reached."""
        return self._thread.is_alive()

    @property
    def labels(self) -> Any:
        """Labels drawn on the page: a GeoDataFrame (label, class, color, geometry) in EPSG:4326."""
        return self.view.labels.to_geopandas()

    @property
    def similarity(self) -> xr.DataArray | None:
        """Similarity to the places clicked (time, y, x), lazily; None before the first click."""
        found: xr.DataArray | None = self.view.similarity
        return found

    @property
    def head(self) -> Head | None:
        """The head fitted on the page; None before."""
        found: Head | None = self.view.head
        return found

    @property
    def classes(self) -> xr.DataArray | None:
        """Classes by that head (time, y, x), lazily; None before."""
        found: xr.DataArray | None = self.view.classes
        return found

    def stop(self) -> None:
        """Stop the server; what was made on the page stays reachable here."""
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()
        self.view.close()

    def __enter__(self) -> Explorer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = f"at {self.url}" if self.running else "stopped"
        return f"<Viewer of {self.view.title} {state}, {len(self.view.labels)} labels>"

    def _repr_html_(self) -> str:
        if not self.running:
            return f"<p>{html.escape(repr(self))}</p>"
        # Only these two may show the page within another one: they know the secret.
        address = html.escape(f"{self.url}?frame={self._rules.frame}")
        return (
            f'<iframe src="{address}" title="deo_cube viewer" style="width:100%;height:{self.height}px;'
            f'border:1px solid #8886;border-radius:6px"></iframe><p><a href="{address}" target="_blank" '
            'rel="noopener">open in a tab of its own</a></p>'
        )


def _names(host: str, hostnames: Sequence[str]) -> tuple[str, ...]:
    """Names under which the page answers: those of loopback, and, where others are let in, of this machine."""
    if host in LOOPBACK:
        own: tuple[str, ...] = ()
    else:
        own = (socket.gethostname(), socket.getfqdn(), *(() if host in ANY else (host,)))
    return tuple(dict.fromkeys(n.lower().strip("[]") for n in (*LOOPBACK, *own, *hostnames)))


def explore(
    emb: xr.DataArray,
    *,
    cube: xr.Dataset | xr.DataArray | str | Path | None = None,
    heads: Mapping[str, Head | str | Path] | None = None,
    title: str = "embeddings",
    host: str = "127.0.0.1",
    port: int = 0,
    height: int = 640,
    hostnames: Sequence[str] = (),
) -> Explorer:
    """Show embeddings on a map in the notebook, or in a browser at `.url`.

    Parameters
    ----------
    emb : DataArray
        Embeddings (time, embedding, y, x) or (embedding, y, x) on a map: of `open_embeddings`, or in memory. Lazy ones
        that are not stored yet are embedded wherever the map looks; store them first.
    cube : Dataset, DataArray or path, optional
        The cube that was embedded, drawn as true colour.
    heads : mapping of str to Head or path, optional
        Drawn as layers of these names.
    title : str
        For the page's heading.
    host, port
        Where to listen: this machine only, and any free port, unless said otherwise.
    height : int
        Of the frame in a notebook, pixels.
    hostnames : sequence of str
        Further names under which browsers reach the page, of a proxy, say. Others than this machine's own are refused,
        so that no page elsewhere reads it through a name of its own.

    Returns
    -------
    Explorer
        With `url`, `stop()`, and what is made on the page: `labels`, `similarity`, `head`, `classes`. In a notebook it
        shows the page.

    Raises
    ------
    MissingExtraError
        Without starlette and uvicorn.
    MissingCRSError, ValueError
        For an array that is on no map, or a head of another model.
    """
    from deo_cube.view.truecolour import open_for_viewing
    from deo_cube.view.view import View

    emb = embeddings_of(emb)
    height = integer("height", height)
    if heads is not None and not isinstance(heads, Mapping):
        raise ArgumentTypeError(f"heads must be a mapping of names to heads, got {type(heads).__name__}")
    if cube is not None and not isinstance(cube, str | Path):
        cube = cube_of(cube)
    opened = open_for_viewing(cube) if isinstance(cube, str | Path) else cube
    view = View(emb, cube=opened, heads=heads, title=title)
    return Explorer(view, host=host, port=port, height=height, hostnames=hostnames)


def serve(
    store: str,
    *,
    cube: str | None = None,
    heads: Sequence[Path] = (),
    host: str = "127.0.0.1",
    port: int = 0,
    browser: bool = True,
    hostnames: Sequence[str] = (),
) -> None:
    """Serve the page of a store until interrupted or terminated. See `deo-cube view --help`."""
    from deo_cube.view.truecolour import open_for_viewing
    from deo_cube.view.view import View

    opened = None if cube is None else open_for_viewing(cube)
    named = {h.stem if h.suffix else h.name: h for h in heads}
    if len(named) < len(heads):
        named = {str(h): h for h in heads}
    view = View.of_store(store, cube=opened, heads=named, title=Path(str(store).rstrip("/")).stem)
    running = Explorer(view, host=host, port=port, hostnames=hostnames)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as services and containers are stopped
    try:
        print(f"{store}: {running.url}   (Ctrl-C stops it)", flush=True)
        if host not in LOOPBACK:
            print(
                f"listening on {host}: whoever reaches this machine sees these embeddings", file=sys.stderr, flush=True
            )
        if browser:
            webbrowser.open(running.url)
        while running.running:
            time.sleep(0.2)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        signal.signal(signal.SIGTERM, before)
        running.stop()
