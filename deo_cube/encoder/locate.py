"""Find the weights of a card: given, in the user's folder, beside the card, at the publisher's address or on the hub.

A file is known by its SHA-256. Where the card states none (the publisher gives none), the hash of the first download is
kept in the cache and later files of that name and revision must have it. Needs no torch, except where files of a hub's
repository have to be compared with the network (`hub`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from deo_cube import arguments
from deo_cube.encoder import hub
from deo_cube.encoder.card import ModelCard, Weights
from deo_cube.encoder.hub import HUB
from deo_cube.encoder.weights import sniff
from deo_cube.errors import WeightsMismatchError, WeightsNotFoundError
from deo_cube.options import get_option
from deo_cube.paths import local_path

__all__ = [
    "HUB",
    "check_file",
    "file_sha256",
    "find_pretrained",
    "find_weights",
    "hub_cache",
    "hub_silence",
    "local_weights",
    "weights_state",
]

FOLDER_VARIABLE = "DEO_CUBE_WEIGHTS"
#: The file of a repository that holds a model of timm.
PRETRAINED = "model.safetensors"


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal; computed once a process for the same path, size and time of change."""
    path = local_path(path).resolve()
    stat = path.stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=128)
def _sha256(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_weights(card: ModelCard, weights: str | Path | None = None, *, offline: bool | None = None) -> Path:
    """The weights file of a card, downloaded if need be.

    Looked for, in this order: `weights` (a file, or a folder that holds one of the card's name); the folder
    `DEO_CUBE_WEIGHTS`; the card's own folder; the caches; and, unless offline, the publisher's address or the hub. A
    `.safetensors` of the same name is taken before the published `.pth`, unless the card states the hash of the latter.
    Where the name of the file on the hub is not known, the one that fills the network is taken (`hub.choose`).

    Parameters
    ----------
    card : ModelCard
        Whose weights.
    weights : path or str, optional
        A file or folder, or an address on the hub, ``hf://OWNER/NAME[@REVISION][/FILE]``.
    offline : bool, optional
        Never reach for the network. Default: the option `offline`.

    Returns
    -------
    Path
        A file whose first bytes are those of weights and whose hash is the card's, where the card states one.

    Raises
    ------
    WeightsNotFoundError
        With the places looked in and what to put where.
    WeightsMismatchError
        If the file found is no weights file, or has another hash.
    """
    offline = get_option("offline") if offline is None else offline
    if isinstance(weights, str | Path) and str(weights).startswith("hf:/"):
        # A Path, as the command line makes, holds one slash only.
        return check_file(card, _from_address(card, "hf://" + str(weights)[3:].lstrip("/"), offline))
    if weights is not None:
        path = local_path(arguments.path("weights", weights))
        if path.is_dir():
            inside = _in_folder(card, path)
            if inside is None:
                raise WeightsNotFoundError(f"weights={str(weights)!r} is a folder without {_names(card)}")
            path = inside
        if not path.is_file():
            raise WeightsNotFoundError(f"weights={str(weights)!r}: there is no such file")
        return check_file(card, path)
    found = local_weights(card)
    if found is None:
        if offline or not _fetchable(card):
            raise WeightsNotFoundError(_not_found(card, offline))
        found = _fetch(card)
    check_file(card, found)
    choice = hub.recorded_choice(card) if card.weights.sha256 is None else None
    if choice is not None and found == _cached(_as_weights(choice)) and file_sha256(found) != choice.sha256:
        raise WeightsMismatchError(
            f"{found} was taken for {card.alias} with SHA-256 {choice.sha256}; now it has {file_sha256(found)}, at the "
            "same revision. Delete the file to download it again"
        )
    if card.weights.sha256 is None and hub_cache() in found.parents and found == _cached(card.weights):
        _compare_with_first(card.weights, found)
    return found


def find_pretrained(card: ModelCard, repo: str | None, *, offline: bool | None = None) -> Path:
    """The weights that timm names for the model of a card, downloaded if need be.

    Parameters
    ----------
    card : ModelCard
        Where it states a hash, the file has it. A card that was read from a file must state one.
    repo : str or None
        Repository on the hub that timm names.
    offline : bool, optional
        Never reach for the network. Default: the option `offline`.

    Raises
    ------
    WeightsNotFoundError
        If timm names no repository, or its file is not on this machine and cannot be downloaded.
    WeightsMismatchError
        If the file has another hash, or the card states none.
    """
    offline = get_option("offline") if offline is None else offline
    model = card.architecture["model"]
    if repo is None:
        raise WeightsNotFoundError(
            f"timm names no weights of {model} on the hub: leave out pretrained, or load them yourself and register "
            "the network, register_encoder(card, factory)"
        )
    w = Weights("published", PRETRAINED, card.weights.sha256, repo=repo, revision="main")
    advice = (
        f"The weights of {model} are {PRETRAINED} of {repo} on huggingface.co. Fetch them where there is a network, "
        f"`hf download {repo} {PRETRAINED} --cache-dir {hub_cache()}`"
    )
    if w.sha256 is None and card.folder:
        raise WeightsMismatchError(
            f"the card of {card.alias} in {card.folder} asks for weights of {repo} and states no hash of them. "
            f"Write the SHA-256 of {PRETRAINED} there into weights.sha256 of the card, or describe the model yourself, "
            "describe_timm(..., pretrained=True)"
        )
    found = _cached(w)
    if found is None:
        if offline:
            raise WeightsNotFoundError(
                f"the weights of {card.alias} are not on this machine, and offline is set "
                f"(deo_cube.set_options(offline=False) to allow the network). {advice}"
            )
        found = _download(w, advice)
    check_file(dataclasses.replace(card, weights=w), found)
    if w.sha256 is None:
        _compare_with_first(dataclasses.replace(w, revision=found.parent.name), found)
    return found


def _require_hash(card: ModelCard) -> None:
    """Refuse a download that nothing proves: of a card from elsewhere, which states no hash."""
    from deo_cube.encoder.catalog import bundled_cards

    w = card.weights
    places = [(b.weights.repo, b.weights.revision, b.weights.file, b.weights.url) for b in bundled_cards().values()]
    if w.sha256 is None and (w.repo, w.revision, w.file, w.url) not in places:
        raise WeightsMismatchError(
            f"the card of {card.alias} states no SHA-256 of {w.file} in {w.repo}, so it is not downloaded. Write the "
            "hash that the publisher gives into weights.sha256 of the card, or download the file and pass weights=PATH"
        )


def _fetchable(card: ModelCard) -> bool:
    """Whether the card says where its weights can be had from: a file of known hash, or a repository of the hub."""
    return bool(card.weights.file) and (_has_url(card.weights) or hub.address_of(card) is not None)


def _has_url(w: Weights) -> bool:
    """Whether `w.url` is the address of a file whose hash the card states."""
    names = {w.file, *(a.file for a in w.alternatives)}
    return w.url is not None and w.sha256 is not None and w.url.rpartition("/")[2] in names


def _fetch(card: ModelCard) -> Path:
    from huggingface_hub.errors import EntryNotFoundError

    w, advice = card.weights, _not_found(card, offline=False)
    if w.repo is None and _has_url(w):
        return _download_url(w, advice)
    _require_hash(card)
    address = hub.address_of(card)
    assert address is not None
    if w.repo is None:
        return hub.choose(card, address)
    try:
        return _download(w, advice)
    except WeightsNotFoundError as error:
        if w.sha256 is not None or not isinstance(error.__cause__, EntryNotFoundError):
            raise
        # The publisher may have renamed the file; no hash ties the card to its name.
        return hub.choose(card, dataclasses.replace(address, file=None), without=[w.file])


def _from_address(card: ModelCard, text: str, offline: bool) -> Path:
    address = hub.parse_address(text)
    if address.file is not None:
        cached = _cached(Weights("published", address.file, repo=address.repo, revision=address.revision))
        if cached is not None:
            return cached
    if offline:
        raise WeightsNotFoundError(
            f"weights={text!r} is not on this machine, and offline is set: deo_cube.set_options(offline=False) allows "
            "the network"
        )
    return hub.choose(card, address)


def _as_weights(choice: hub.Choice) -> Weights:
    return Weights("published", choice.file, repo=choice.repo, revision=choice.revision)


def weights_state(card: ModelCard) -> str:
    """Return where the weights of a card are and whether they are proven, without reading a file or the network."""
    if not card.weights.file:
        return "made by its factory" if card.architecture.get("family") == "callable" else "no weights file"
    proof = ", not proven"
    if card.reference is not None:
        proof = "" if card.weights.sha256 is not None else ", proven by a reference vector only"
    if local_weights(card) is not None:
        return "weights here" + proof
    if _fetchable(card):
        source = "its publisher" if card.weights.repo is None and _has_url(card.weights) else "the hub"
        return f"weights can be fetched from {source}" + proof
    return "weights not on this machine" + proof


def local_weights(card: ModelCard) -> Path | None:
    """The card's weights on this machine: in `DEO_CUBE_WEIGHTS`, beside the card, or in a cache; else None."""
    for folder in (os.environ.get(FOLDER_VARIABLE), card.folder):
        found = _in_folder(card, local_path(folder)) if folder else None
        if found is not None:
            if folder == card.folder:
                _check_inside(found, Path(folder))
            return found
    found = _cached(card.weights)
    if found is None and _has_url(card.weights):
        found = next((p for p in [_url_cache(card.weights)] if p.is_file()), None)
    if found is None and card.weights.sha256 is None and card.weights.status == "published":
        choice = hub.recorded_choice(card)
        found = None if choice is None else _cached(_as_weights(choice))
    return found


def _cached(w: Weights) -> Path | None:
    if w.repo is None or not w.file:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(w.repo, w.file, cache_dir=hub_cache(), revision=w.revision)
    return Path(cached) if isinstance(cached, str) else None


def check_file(card: ModelCard, path: Path) -> Path:
    """`path`, if it begins like weights and hashes to what the card states.

    Raises
    ------
    WeightsMismatchError
        If not.
    """
    sniff(path)
    stated = card.weights.hashes
    if stated and file_sha256(path) not in stated:
        raise WeightsMismatchError(
            f"{path} is not the weights file that the card of {card.alias} describes: expected SHA-256 "
            f"{' or '.join(sorted(stated))}, got {file_sha256(path)}. Download it again; or, if these weights are your "
            "own, give them a card of their own (ModelCard.save) and pass that folder as model"
        )
    return path


def _check_inside(path: Path, folder: Path) -> None:
    """Refuse a link of a card's folder to a file elsewhere; snapshots of the hub's cache link to the blobs beside."""
    real, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (real.is_relative_to(home) or real.is_relative_to(blobs)):
        raise WeightsMismatchError(
            f"{path} is a link out of the card's folder, which a card from elsewhere could aim at any file. Where you "
            "made the link yourself, name its target: weights=PATH"
        )


def _in_folder(card: ModelCard, folder: Path) -> Path | None:
    return next((folder / name for name in _candidates(card) if (folder / name).is_file()), None)


def _candidates(card: ModelCard) -> list[str]:
    name = card.weights.file
    if not name:
        return []
    if card.weights.sha256 is not None:
        return [name, *(a.file for a in card.weights.alternatives)]
    safe = Path(name).with_suffix(".safetensors").name
    return [name] if safe == name else [safe, name]


def _names(card: ModelCard) -> str:
    return " or ".join(_candidates(card))


def _not_found(card: ModelCard, offline: bool) -> str:
    w = card.weights
    folder = os.environ.get(FOLDER_VARIABLE)
    looked = [
        f"{FOLDER_VARIABLE} = {folder}" if folder else f"{FOLDER_VARIABLE} (not set)",
        card.folder or "no folder of the card",
    ]
    if hub.address_of(card) is not None:
        looked.append(f"hub cache {hub_cache()}")
    if _has_url(w):
        looked.append(f"download cache {_url_cache(w).parent}")
    where = f"{w.repo} at revision {w.revision} on huggingface.co" if w.repo else w.url or "its publisher"
    network = (
        "The network was not asked, because offline is set (deo_cube.set_options(offline=False) to allow it). "
        if _fetchable(card) and offline
        else ""
    )
    return (
        f"the weights of {card.alias} ({_names(card)}) are not on this machine.\n  looked in: {'; '.join(looked)}\n"
        f"{network}Get {w.file} from {where}, and put it in a folder named by {FOLDER_VARIABLE}, or pass weights=PATH"
    )


def hub_cache() -> Path:
    """Folder that downloads are kept in: `hub` in the option `cache_dir`."""
    return Path(get_option("cache_dir")) / "hub"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer, and followed by none."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def hub_silence(url: str = "", *, timeout: float = 5.0, tries: int = 2) -> str | None:
    """Why the hub does not answer, or None where it does.

    The hub's own client tries a dead network six times and gives up after 23 s; this asks first, through the proxy
    that the environment names, so that "there is no network" is said at once.

    Parameters
    ----------
    url : str
        Asked with a HEAD request; default the hub itself (`HF_ENDPOINT` where it is set).
    timeout : float
        Seconds that one try may take, beyond looking up the name.
    tries : int
        With half a second between.
    """
    request = urllib.request.Request(url or os.environ.get("HF_ENDPOINT") or HUB, method="HEAD")
    opener = urllib.request.build_opener(_NoRedirect)
    why = None
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
            why = f"HTTP {error.code} {error.reason}"
        except urllib.error.URLError as error:
            why = str(error.reason)
        except OSError as error:
            why = str(error) or type(error).__name__
    return why


def _url_cache(w: Weights) -> Path:
    return Path(get_option("cache_dir")) / "files" / str(w.sha256)[:16] / Path(w.file).name


def _download_url(w: Weights, advice: str, *, timeout: float = 30.0) -> Path:
    """Return the file at `w.url` in the cache; it is moved there once it is whole and has its hash."""
    assert w.url is not None
    place = _url_cache(w)
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=place.parent, suffix=".part")
    digest = hashlib.sha256()
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(w.url, timeout=timeout) as answer:
            while piece := answer.read(2**20):
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != w.sha256:
            raise WeightsMismatchError(
                f"{w.url} is not the file that the card describes: expected SHA-256 {w.sha256}, got "
                f"{digest.hexdigest()}. Get the file elsewhere and pass weights=PATH"
            )
        os.replace(part, place)
    except OSError as error:
        raise WeightsNotFoundError(f"{w.file} could not be downloaded from {w.url}: {error}\n{advice}") from error
    finally:
        Path(part).unlink(missing_ok=True)
    return place


def _download(w: Weights, advice: str) -> Path:
    from huggingface_hub import hf_hub_download

    assert w.repo is not None
    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    silence = hub_silence(f"{endpoint}/{w.repo}/resolve/{w.revision}/{w.file}")
    if silence is not None:
        raise WeightsNotFoundError(
            f"{w.file} could not be downloaded: {endpoint} does not answer ({silence}). Check the network or the proxy "
            "and make the call again, or bring the file from elsewhere.\n" + advice
        )
    try:
        return Path(
            hf_hub_download(
                w.repo,
                w.file,
                revision=w.revision,
                cache_dir=hub_cache(),
                endpoint=endpoint,
                library_name="deo_cube",
            )
        )
    except Exception as error:  # the client raises its own, httpx's and OSError's
        raise WeightsNotFoundError(
            f"{w.file} could not be downloaded from {w.repo} at {w.revision}: {type(error).__name__}: {error}\n"
            + advice
        ) from error


def _compare_with_first(w: Weights, path: Path) -> None:
    """Keep the hash of a first download; refuse a later one that differs."""
    record = Path(get_option("cache_dir")) / "weights_seen.json"
    key = f"{w.repo}@{w.revision}/{w.file}"
    try:
        seen: dict[str, Any] = dict(json.loads(record.read_text(encoding="utf-8"))) if record.is_file() else {}
    except (TypeError, ValueError) as error:
        raise WeightsMismatchError(
            f"{record}, which holds the hashes of first downloads, is damaged ({error}): repair it, or delete it to "
            "record the present files as the first"
        ) from error
    found = file_sha256(path)
    if seen.get(key, found) != found:
        raise WeightsMismatchError(
            f"{key} was downloaded before with SHA-256 {seen[key]}; now it has {found}, at the same revision. "
            f"Find out why; to accept it, remove the entry from {record}"
        )
    if key not in seen:
        record.parent.mkdir(parents=True, exist_ok=True)
        part = record.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(seen | {key: found}, indent=2) + "\n", encoding="utf-8")
        part.replace(record)
