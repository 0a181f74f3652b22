"""Start the viewer from Python (`explore`) or from the command line (`serve`)."""

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

from deo_cube.arguments import embeddings_of, integer
from deo_cube.cube.esa import opened_cube
from deo_cube.errors import ArgumentError, ArgumentTypeError, StorageError
from deo_cube.extras import require
from deo_cube.heads.base import Head

__all__ = ["Explorer", "explore", "serve"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: Addresses that mean all addresses of this machine.
ALL_ADDRESSES = ("0.0.0.0", "::", "")


class Explorer:
    """A running viewer, as `explore` returns it.

    Attributes
    ----------
    url : str
        Address of the page.
    """

    def __init__(
        self, state: Any, *, host: str = "127.0.0.1", port: int = 0, height: int = 640, hostnames: Sequence[str] = ()
    ) -> None:
        port = integer("port", port, minimum=0, maximum=65535)
        if not isinstance(host, str):
            raise ArgumentTypeError(f"host must be a name or an address, got {host!r}")
        uvicorn = require("uvicorn", "starlette", "PIL", extra="view", purpose="the viewer")
        from deo_cube.viewer.routes import create_app
        from deo_cube.viewer.server import AccessRules, server_config

        self.state, self.height = state, height
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise ArgumentError(
                f"port={port} of host={host!r} cannot be used: {error.strerror or error}. Pass another port, or "
                "port=0 for any free one"
            ) from None
        bound = self._socket.getsockname()[1]
        reachable = "127.0.0.1" if host in ALL_ADDRESSES else host
        self.url = f"http://[{reachable}]:{bound}/" if ":" in reachable else f"http://{reachable}:{bound}/"
        self._rules = AccessRules(_host_names(host, hostnames), addresses=host not in LOOPBACK)
        self._server = uvicorn.Server(server_config(create_app(state, self._rules)))
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="deo_cube view", daemon=True
        )
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        if not self._server.started:
            self._socket.close()
            raise StorageError("the server of the viewer did not start: see its log")

    @property
    def running(self) -> bool:
        """True while the page can be reached."""
        return self._thread.is_alive()

    @property
    def labels(self) -> Any:
        """Labels on the page: a GeoDataFrame (label, class, color, geometry) in EPSG:4326."""
        return self.state.labels.to_geopandas()

    @property
    def similarity(self) -> xr.DataArray | None:
        """Similarity to the places clicked (time, y, x), lazy; None before the first click."""
        similarity: xr.DataArray | None = self.state.similarity
        return similarity

    @property
    def head(self) -> Head | None:
        """Head that was fitted on the page; None before."""
        head: Head | None = self.state.head
        return head

    @property
    def classes(self) -> xr.DataArray | None:
        """Classes of that head (time, y, x), lazy; None before."""
        classes: xr.DataArray | None = self.state.classes
        return classes

    @property
    def assessment(self) -> Any:
        """Last `ClassAssessment` of the page; None before."""
        return self.state.assessment

    def stop(self) -> None:
        """Stop the server; labels, similarity, head and classes remain available."""
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()
        self.state.close()

    def __enter__(self) -> Explorer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def __repr__(self) -> str:
        status = f"at {self.url}" if self.running else "stopped"
        return f"<Viewer of {self.state.title} {status}, {len(self.state.labels)} labels>"

    def _repr_html_(self) -> str:
        if not self.running:
            return f"<p>{html.escape(repr(self))}</p>"
        # Only this frame and link contain the secret with which the page may be shown within another one.
        address = html.escape(f"{self.url}?frame={self._rules.frame}")
        return (
            f'<iframe src="{address}" title="deo_cube viewer" style="width:100%;height:{self.height}px;'
            f'border:1px solid #8886;border-radius:6px"></iframe><p><a href="{address}" target="_blank" '
            'rel="noopener">open in a new tab</a></p>'
        )


def _host_names(host: str, hostnames: Sequence[str]) -> tuple[str, ...]:
    """Return the names under which the page answers: loopback, and those of this machine if others may connect."""
    if host in LOOPBACK:
        own: tuple[str, ...] = ()
    else:
        own = (socket.gethostname(), socket.getfqdn(), *(() if host in ALL_ADDRESSES else (host,)))
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
    index: Any = None,
    reference: Any = None,
) -> Explorer:
    """Show embeddings on a map, in the notebook or in a browser at `.url`.

    Parameters
    ----------
    emb : DataArray
        Embeddings (time, embedding, y, x) or (embedding, y, x) with a CRS: of `open_embeddings`, or in memory. Lazy
        ones that are not stored yet are computed wherever the map is moved to; store them first.
    cube : Dataset, DataArray or path, optional
        The cube that was embedded, drawn in true colour.
    heads : mapping of str to Head or path, optional
        Drawn as layers with these names.
    title : str
        Heading of the page.
    host, port
        Where to listen. Default: this machine only, and any free port.
    height : int
        Height of the frame in a notebook, pixels.
    hostnames : sequence of str
        Further names under which browsers reach the page, for example of a proxy. Names that are not this machine's are
        refused, so that no other page reads this one through a name of its own.
    index : Index, path or URL, optional
        Search index of the same model (`build_index`): the most similar places are found in it, so that they may be of
        other places, dates and stores.
    reference : table or path, optional
        Reference places with a column "label" or "class", as `assess` takes them, for *Is my map right?*.

    Returns
    -------
    Explorer
        With `url`, `stop()`, and the results from the page: `labels`, `similarity`, `head`, `classes`, `assessment`. In
        a notebook it shows the page.

    Raises
    ------
    MissingExtraError
        Without starlette and uvicorn.
    MissingCRSError, ArgumentError
        For an array without a CRS, or a head of another model.
    StoreMismatchError
        For an index of another model.
    """
    from deo_cube.viewer.layers import open_for_viewing
    from deo_cube.viewer.state import ViewerState

    emb = embeddings_of(emb)
    height = integer("height", height)
    if heads is not None and not isinstance(heads, Mapping):
        raise ArgumentTypeError(f"heads must be a mapping of names to heads, got {type(heads).__name__}")
    if cube is not None and not isinstance(cube, str | Path):
        cube = opened_cube(cube)
    opened = open_for_viewing(cube) if isinstance(cube, str | Path) else cube
    state = ViewerState(emb, cube=opened, heads=heads, title=title, index=index, reference=reference)
    return Explorer(state, host=host, port=port, height=height, hostnames=hostnames)


def serve(
    store: str,
    *,
    cube: str | None = None,
    heads: Sequence[Path] = (),
    host: str = "127.0.0.1",
    port: int = 0,
    browser: bool = True,
    hostnames: Sequence[str] = (),
    index: str | None = None,
    reference: str | None = None,
) -> None:
    """Serve the page of a store until interrupted or terminated. See `deo-cube view --help`."""
    from deo_cube.viewer.layers import open_for_viewing
    from deo_cube.viewer.state import ViewerState

    opened = None if cube is None else open_for_viewing(cube)
    named = {h.stem if h.suffix else h.name: h for h in heads}
    if len(named) < len(heads):
        named = {str(h): h for h in heads}
    title = Path(str(store).rstrip("/")).stem
    state = ViewerState.of_store(store, cube=opened, heads=named, title=title, index=index, reference=reference)
    viewer = Explorer(state, host=host, port=port, hostnames=hostnames)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # the signal that stops services and containers
    try:
        print(f"{store}: {viewer.url}   (Ctrl-C stops it)", flush=True)
        if host not in LOOPBACK:
            print(
                f"listening on {host}: these embeddings are visible to all who can reach this machine",
                file=sys.stderr,
                flush=True,
            )
        if browser:
            webbrowser.open(viewer.url)
        while viewer.running:
            time.sleep(0.2)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        signal.signal(signal.SIGTERM, before)
        viewer.stop()
