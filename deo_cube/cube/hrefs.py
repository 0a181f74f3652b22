"""Decide which hrefs of STAC items and reference files may be read.

Items and reference files come from other people and name files that this machine opens. A path on this machine, or
the address of a service inside its network, is read only if the item came from there itself, or if the caller permits
it with `allow=`. Names are compared as they are written: a public name that resolves to an internal address, and
redirects, are not detected.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from deo_cube.constants import Attribute
from deo_cube.errors import ArgumentTypeError, HrefRefusedError
from deo_cube.paths import local_path

if TYPE_CHECKING:
    import pystac

__all__ = ["Origin", "allowed", "check_href", "internal_host", "is_remote", "origin_of", "read_allow"]

#: Object stores: their endpoint is set by the process, not by the href.
_CLOUD = re.compile(r"(s3|gs|gcs|az|azure|abfs|abfss|adl|oss|swift)://|/vsi(s3|gs|az|adls|oss|swift)/", re.I)
_CURL = re.compile(r"/vsicurl/(?=https?://)", re.I)
_HTTP = re.compile(r"https?://[^\s\\]+$", re.I)
_INTERNAL_NAMES = re.compile(r"(^|\.)(local|localdomain|internal|intranet|lan|home|corp|home\.arpa)$")
#: Addresses shared by carriers, which cloud services use for metadata: not public, though reachable in many networks.
_SHARED = ipaddress.ip_network("100.64.0.0/10")


@dataclass(frozen=True)
class Origin:
    """Origin of an item or a reference file."""

    kind: Literal["memory", "file", "remote"]
    hosts: frozenset[str] = frozenset()
    """Names of the hosts, as returned by `_host`."""
    text: str = ""


def read_allow(allow: Any) -> tuple[str, ...]:
    """Check the argument `allow`: hosts, prefixes of URLs, and folders."""
    entries = (allow,) if isinstance(allow, str | os.PathLike) else allow
    if not isinstance(entries, Iterable) or not all(isinstance(a, str | os.PathLike) and str(a) for a in entries):
        raise ArgumentTypeError(
            f"allow must be a host, a prefix of URLs or a folder, or several: allow=('localhost', '/data'); "
            f"got {allow!r}"
        )
    return tuple(str(a) for a in entries)


def origin_of(item: pystac.Item) -> Origin:
    """Return the origin of an item: remote if one of its own links is, else a file or memory."""
    addresses = []
    for rel in ("self", "root", "parent", "collection"):
        for link in item.get_links(rel):
            try:
                href = link.get_absolute_href() or link.get_href(transform_href=False)
            except Exception:
                continue  # a link to an object that has no address yet
            if href:
                addresses.append((rel, str(href)))
    remote = [href for _, href in addresses if "://" in href and not href.lower().startswith("file:")]
    if item.extra_fields.get(FROM_FILE):
        return Origin("file", text=str(item.get_self_href()))
    if remote:
        return Origin("remote", frozenset(h for r in remote if (h := _host(r))), remote[0])
    return Origin("file" if any(rel == "self" for rel, _ in addresses) else "memory")


#: Extra field of items that were read from a file of this machine, whatever their links say.
FROM_FILE = Attribute.FROM_FILE


def is_remote(href: str) -> bool:
    """Return whether an href names a file that GDAL fetches over a network."""
    return bool(_HTTP.match(href) or _CLOUD.match(href) or _CURL.match(href)) or "://" in href


def check_href(href: str, origin: Origin, allow: Sequence[str], what: str) -> None:
    """Refuse an href that its origin may not name.

    Parameters
    ----------
    href : str
        Absolute.
    origin : Origin
        Of the item or reference file that has it.
    allow : sequence of str
        From the caller, see `read_allow`.
    what : str
        For the message: "asset B02 of item x".

    Raises
    ------
    HrefRefusedError
        With the entry that `allow` needs.
    """
    if allowed(href, allow):
        return
    url = _CURL.sub("", href)
    if _HTTP.match(url):
        host = _host(url)
        if host in origin.hosts or not (kind := internal_host(url)):
            return
        if kind == "loopback" and origin.kind == "memory":
            return  # on this machine, as local paths are
        raise HrefRefusedError(
            f"{what} is at {url}, an address inside this network, and the item came from "
            f"{_origin_text(origin)}: it is not read. If you trust it: allow={urlsplit(url).hostname!r}"
        )
    if _CLOUD.match(href):
        return
    if origin.kind != "remote":
        inner = re.search(r"https?:/?/?[^\s\"'<>]+", href, re.I)
        if inner is None:
            return
        if inner[0] == href:
            raise HrefRefusedError(f"{what} is {href!r}, which is not an address: it is not read. Correct the href")
        # In a chain, such as /vsizip//vsicurl/http://..., the inner address decides.
        return check_href(inner[0], origin, allow, what)
    local = href.startswith("/") and not href.startswith("/vsi")
    prefix = os.path.dirname(href) if local else href
    raise HrefRefusedError(
        f"{what} is {href}, {'a file of this machine' if local else 'which is not an address of public storage'}, and "
        f"the item came from {_origin_text(origin)}: it is not read. If you trust it: allow={prefix!r}"
    )


def _origin_text(origin: Origin) -> str:
    return origin.text or ("a file" if origin.kind == "file" else "memory")


def allowed(href: str, allow: Sequence[str]) -> bool:
    """Return whether an entry of `allow` covers `href`: its host, its folder, or the beginning of its URL."""
    url = _CURL.sub("", href)
    if _HTTP.match(url):
        parts = urlsplit(url)
        path = unquote(parts.path)
        for entry in allow:
            if "://" not in entry:
                entry = f"[{entry}]" if entry.count(":") > 1 and "[" not in entry else entry
                named = urlsplit(f"//{entry}")
                if _host(f"http://{entry}") == _host(url) and named.port in (None, parts.port):
                    return True
                continue
            other = urlsplit(entry)
            same = (other.scheme.lower(), _host(entry), other.port) == (parts.scheme.lower(), _host(url), parts.port)
            if same and ".." not in path.split("/") and _below(path, other.path):
                return True
        return False
    if href.startswith("/") and not href.startswith("/vsi"):
        real = os.path.realpath(href)
        folders = [os.path.realpath(local_path(a)) for a in allow if "/" in a and not re.match(r"(?!file:)\w+://", a)]
        return any(_below(real, folder) for folder in folders)
    return ".." not in href.split("/") and any(_below(href, a) for a in allow if "/" in a or ":" in a)


def _below(path: str, prefix: str) -> bool:
    stem = prefix.rstrip("/")
    return path == stem or path.startswith(f"{stem}/") or not stem


def _host(url: str) -> str:
    """Return the name of a URL's host; all names of this machine give "loopback"."""
    try:
        name = (urlsplit(url).hostname or "").rstrip(".").lower()
    except ValueError:
        return ""
    return "loopback" if internal_host(f"http://[{name}]" if ":" in name else f"http://{name}") == "loopback" else name


def internal_host(url: str) -> Literal["", "loopback", "internal"]:
    """Return the kind of internal address that a URL names: this machine, another one in its network, or none."""
    try:
        name = (urlsplit(url).hostname or "").rstrip(".").lower()
    except ValueError:
        return "internal"  # an unreadable host is not contacted
    if name in ("localhost", "ip6-localhost", "ip6-loopback") or name.endswith(".localhost"):
        return "loopback"
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    try:
        address = ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        try:
            # Short forms that curl accepts: 127.1, 0x7f000001, 2130706433, 0177.0.0.1.
            address = ipaddress.IPv4Address(socket.inet_aton(name))
        except (OSError, ValueError, UnicodeError):
            return "internal" if "." not in name or _INTERNAL_NAMES.search(name) else ""
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    address = mapped or address
    if address.is_loopback or address.is_unspecified:
        return "loopback"
    shared = isinstance(address, ipaddress.IPv4Address) and address in _SHARED
    return "internal" if shared or not address.is_global else ""
