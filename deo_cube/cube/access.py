"""How the files of a catalogue are opened: signed anew at each read, with the GDAL settings of where they lie.

odc-stac applies `patch_url` when the cube is made, so that a token of forty-five minutes is baked into a
job of a night. Here an href keeps its plain form in the graph, and is signed where and when it is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import rasterio
from odc.loader import RioDriver

from deo_cube.cube.baseline import bucket_of
from deo_cube.cube.catalogues import CATALOGUES
from deo_cube.cube.hrefs import allowed, is_remote
from deo_cube.cube.projection import Header
from deo_cube.cube.rasters import PlacedReader, read_header, refuse_indirect
from deo_cube.errors import MissingExtraError

__all__ = ["Access", "access", "sign_planetary_computer"]

Sign = Callable[[str], str]

#: A server that sends nothing is given up, which GDAL by itself never does. No time limit in Python can do it:
#: rasterio holds the interpreter's lock while it looks for a file's mask (`DatasetBase.mask_flag_enums`).
GIVE_UP = (("GDAL_HTTP_CONNECTTIMEOUT", "60"), ("GDAL_HTTP_LOW_SPEED_TIME", "120"), ("GDAL_HTTP_LOW_SPEED_LIMIT", "1"))


class Access(RioDriver):  # type: ignore[misc]
    """Reader of odc-loader that signs an href when it opens it, as often as it opens it."""

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
        """GDAL's settings for a read: the caller's, then those of where the files lie, unless the process sets them."""
        own = {k: v for k, v in (*GIVE_UP, *self.gdal) if k not in os.environ and k not in env}
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
        "auto" signs what is known to need it: files of the Planetary Computer.
    allow : tuple of str
        What may be a VRT, or another format that names further files, though it comes over a network.

    Raises
    ------
    MissingExtraError
        If files of the Planetary Computer want signing, and its package is not installed.
    """
    hrefs = list(hrefs)
    buckets = {bucket_of(h) for h in hrefs}
    gdal = {kv for c in CATALOGUES.values() if buckets & set(c.raw) for kv in c.gdal}
    if sign != "auto":
        return Access(sign, tuple(sorted(gdal)), allow=allow)
    needy = {b for c in CATALOGUES.values() if c.signing == "planetary_computer" for b in c.raw}
    wanted = [h for h in hrefs if bucket_of(h) in needy]
    if not wanted:
        return Access(None, tuple(sorted(gdal)), allow=allow)
    try:
        import planetary_computer  # noqa: F401
    except ImportError as error:
        if all("sig" in parse_qs(urlsplit(h).query) for h in wanted):
            return Access(None, tuple(sorted(gdal)), allow=allow)  # signed by other means, for as long as that lasts
        raise MissingExtraError.wanted(
            "planetary-computer", "stac", "reading files of the Planetary Computer (they are signed)"
        ) from error
    return Access(sign_planetary_computer, tuple(sorted(gdal)), allow=allow)


def sign_planetary_computer(href: str) -> str:
    """Sign an href of the Planetary Computer with a token that is good for another minute at least.

    A token that the href carries already is replaced, since it may have run out; other hrefs stay as they are. Tokens
    are kept by the process and fetched anew when they run out.
    """
    import planetary_computer

    parts = urlsplit(href)
    if not (parts.hostname or "").endswith(".blob.core.windows.net"):
        return href
    return str(planetary_computer.sign_url(parts._replace(query="").geturl()))
