"""Find, download and record files of model weights on the hub: addresses, cache, network, and hashes of files.

An address ``hf://OWNER/NAME[@REVISION][/FILE]`` chooses repository, commit and file. The hub's own client tries a dead
network six times and gives up after 23 s; `hub_silence` asks first, so that a missing network is reported at once.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deo_cube.encoder.card import ModelCard
from deo_cube.errors import ArgumentError, WeightsMismatchError, WeightsNotFoundError
from deo_cube.options import get_option
from deo_cube.paths import local_path

__all__ = [
    "HUB",
    "Address",
    "address_of",
    "cached",
    "compare_with_first",
    "download",
    "endpoint",
    "file_sha256",
    "hub_cache",
    "hub_silence",
    "list_files",
    "parse_address",
    "place_in_cache",
    "write_record",
]

HUB = "https://huggingface.co"
_NAME = r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*"


@dataclass(frozen=True)
class Address:
    """A place on the hub."""

    repo: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.revision}" + (f"/{self.file}" if self.file else "")


def parse_address(text: str) -> Address:
    """Read ``hf://OWNER/NAME[@REVISION][/FILE]``.

    Raises
    ------
    ArgumentError
        For any other text.
    """
    match = re.fullmatch(rf"hf://({_NAME}?)(?:@([\w][\w.-]*))?(?:/([\w][\w./ -]*))?", text, re.ASCII)
    if match is None or ".." in text:
        raise ArgumentError(f"weights={text!r}: expected hf://OWNER/NAME, optionally with @REVISION and /FILE")
    return Address(match[1], match[2] or "main", match[3])


def address_of(card: ModelCard) -> Address | None:
    """Return the repository that a card names, in `weights.repo` or as the page in `weights.url`, or None."""
    w = card.weights
    if w.repo is not None:
        return Address(w.repo, w.revision or "main", w.file or None)
    page = re.fullmatch(rf"{HUB}/({_NAME})/?", w.url or "", re.ASCII)
    return Address(page[1]) if page else None


def endpoint() -> str:
    """Return the address of the hub: `HF_ENDPOINT` where it is set."""
    return os.environ.get("HF_ENDPOINT") or HUB


def hub_cache() -> Path:
    """Return the folder of downloads: `hub` in the option `cache_dir`."""
    return Path(get_option("cache_dir")) / "hub"


def cached(address: Address) -> Path | None:
    """Return the file of an address in the cache, or None."""
    if not address.file:
        return None
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(address.repo, address.file, cache_dir=hub_cache(), revision=address.revision)
    return Path(path) if isinstance(path, str) else None


def place_in_cache(path: Path) -> Address | None:
    """Return the address of a file of the hub's cache; None for any other file."""
    parts = path.parts
    if "snapshots" not in parts:
        return None
    i = parts.index("snapshots")
    folder, inside = parts[i - 1], parts[i + 1 :]
    if not folder.startswith("models--") or folder.count("--") < 2 or len(inside) < 2:
        return None
    return Address(folder.removeprefix("models--").replace("--", "/", 1), inside[0], "/".join(inside[1:]))


def download(address: Address, advice: str) -> Path:
    """Return the file of an address, downloaded into the cache; `advice` ends the message where that fails.

    Raises
    ------
    WeightsNotFoundError
        If the hub does not answer, or does not give the file.
    """
    from huggingface_hub import hf_hub_download

    assert address.file is not None
    url = f"{endpoint()}/{address.repo}/resolve/{address.revision}/{address.file}"
    _refuse_silence(url, f"{address.file} could not be downloaded", advice)
    try:
        return Path(
            hf_hub_download(
                address.repo,
                address.file,
                revision=address.revision,
                cache_dir=hub_cache(),
                endpoint=endpoint(),
                library_name="deo_cube",
            )
        )
    except Exception as error:  # the client raises its own, httpx's and OSError's
        raise WeightsNotFoundError(
            f"{address.file} could not be downloaded from {address.repo} at {address.revision}: "
            f"{type(error).__name__}: {error}\n{advice}"
        ) from error


def list_files(address: Address) -> tuple[str, dict[str, int | None]]:
    """Return the commit of a revision, and the files there with their sizes.

    Raises
    ------
    WeightsNotFoundError
        If the hub does not answer, or has no such repository or revision.
    """
    from huggingface_hub import HfApi

    advice = "Name another repository or revision, weights='hf://OWNER/NAME@REVISION', or a local file, weights=PATH"
    _refuse_silence(f"{endpoint()}/api/models/{address.repo}", f"the files of {address.repo} cannot be listed", advice)
    try:
        api = HfApi(endpoint=endpoint(), library_name="deo_cube")
        info = api.model_info(address.repo, revision=address.revision, files_metadata=True, timeout=30)
    except Exception as error:  # the client raises its own, httpx's and OSError's
        raise WeightsNotFoundError(
            f"the files of {address} cannot be listed: {type(error).__name__}: {error}. {advice}"
        ) from error
    return str(info.sha or address.revision), {s.rfilename: s.size for s in info.siblings or []}


def _refuse_silence(url: str, problem: str, advice: str) -> None:
    silence = hub_silence(url)
    if silence is not None:
        raise WeightsNotFoundError(
            f"{problem}: {endpoint()} does not answer ({silence}). Check the network or the proxy and make the call "
            f"again, or bring the file from elsewhere.\n{advice}"
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Do not follow redirects: a redirect is an answer too."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def hub_silence(url: str = "", *, timeout: float = 5.0, tries: int = 2) -> str | None:
    """Return why the hub does not answer, or None if it does.

    The request goes through the proxy that the environment names.

    Parameters
    ----------
    url : str
        Address of the HEAD request; default the hub itself.
    timeout : float
        Seconds per try, without looking up the name.
    tries : int
        Number of tries, half a second apart.
    """
    request = urllib.request.Request(url or endpoint(), method="HEAD")
    opener = urllib.request.build_opener(_NoRedirect)
    reason = None
    for i in range(tries):
        if i:
            time.sleep(0.5)
        try:
            with opener.open(request, timeout=timeout):
                return None
        except urllib.error.HTTPError as error:
            # "No such file", "log in first" and "it is over there" are answers. A proxy without a network behind it
            # says 502 to 504.
            if error.code not in (502, 503, 504):
                return None
            reason = f"HTTP {error.code} {error.reason}"
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except OSError as error:
            reason = str(error) or type(error).__name__
    return reason


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file; computed once per process for the same path, size and time of change."""
    path = local_path(path).resolve()
    stat = path.stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=128)
def _sha256(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare_with_first(address: Address, path: Path) -> None:
    """Record the hash of a first download, and refuse a later one that differs.

    Raises
    ------
    WeightsMismatchError
        If the hashes differ, or the record is damaged.
    """
    record = Path(get_option("cache_dir")) / "weights_seen.json"
    key = f"{address.repo}@{address.revision}/{address.file}"
    try:
        seen: dict[str, Any] = dict(json.loads(record.read_text(encoding="utf-8"))) if record.is_file() else {}
    except (TypeError, ValueError) as error:
        raise WeightsMismatchError(
            f"{record}, which holds the hashes of first downloads, is damaged ({error}): repair it, or delete it to "
            "record the present files as the first"
        ) from error
    sha256 = file_sha256(path)
    if seen.get(key, sha256) != sha256:
        raise WeightsMismatchError(
            f"{key} was downloaded before with SHA-256 {seen[key]}; now it has {sha256}, at the same revision. "
            f"Find out why; to accept it, remove the entry from {record}"
        )
    if key not in seen:
        write_record(record, seen | {key: sha256})


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """Write a record in one piece, so that another process never reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
