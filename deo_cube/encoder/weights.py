"""Find the weights of a card, where the card alone does not say which file they are.

A file is looked for where the caller says, in the user's folder, beside the card, in the caches, at the publisher's
address and on the hub. It is known by its SHA-256. Where the card states none (the publisher gives none), the hash of
the first download is kept in the cache, and later files of that name and revision must have it.

Where the name of the file on the hub is not known, the files of the repository at one commit are listed, those that can
hold the network are downloaded and compared with it strictly, and the one that fits is taken. Two files that fit with
different values are refused, because nothing says which one is meant. The choice is recorded in the cache with its hash
and a reference vector, and compared from then on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deo_cube import arguments
from deo_cube.encoder.card import ModelCard, Reference, Weights, bundled_cards
from deo_cube.encoder.checkpoint_format import check_file, load_weights, matched_state
from deo_cube.encoder.hub import (
    Address,
    address_of,
    cached,
    compare_with_first,
    download,
    file_sha256,
    hub_cache,
    list_files,
    parse_address,
    write_record,
)
from deo_cube.errors import DeoCubeError, WeightsMismatchError, WeightsNotFoundError
from deo_cube.options import allow_network, get_option
from deo_cube.paths import local_path, not_found

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "FOLDER_VARIABLE",
    "Choice",
    "check_structure",
    "choose_file",
    "find_weights",
    "local_weights",
    "recorded_choice",
    "recorded_reference",
    "remember",
    "weights_state",
]

#: Endings of files that can hold weights, the safest format first.
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
#: Files that are downloaded and tried at most.
MAX_CANDIDATES = 8
#: Bytes per parameter of a file: float16 at least; at most student, teacher and two moments in float32, twice over.
BYTES_PER_PARAMETER = (2, 40)
FOLDER_VARIABLE = "DEO_CUBE_WEIGHTS"


def find_weights(card: ModelCard, weights: str | Path | None = None, *, offline: bool | None = None) -> Path:
    """Return the weights file of a card, downloaded if necessary.

    Looked for, in this order: `weights` (a file, or a folder that holds one of the card's name); the folder
    `DEO_CUBE_WEIGHTS`; the card's own folder; the caches; and, unless offline, the publisher's address or the hub. A
    `.safetensors` of the same name is taken before the published `.pth`, unless the card states the hash of the latter.
    Where the name of the file on the hub is not known, the one that fills the network is taken (`choose_file`).

    Parameters
    ----------
    card : ModelCard
        Names the file and its hash.
    weights : path or str, optional
        A file or folder, or an address on the hub, ``hf://OWNER/NAME[@REVISION][/FILE]``.
    offline : bool, optional
        Do not use the network. Default: the option `offline`.

    Returns
    -------
    Path
        A file whose first bytes are those of weights and whose hash is the card's, where the card states one.

    Raises
    ------
    WeightsNotFoundError
        The message lists the places that were searched, and what to put where.
    WeightsMismatchError
        If the file is not a weights file, or has another hash.
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
            raise not_found("weights", weights, f"the file {_names(card)}", error=WeightsNotFoundError)
        return check_file(card, path)
    location = local_weights(card)
    if location is None:
        if offline or not _fetchable(card):
            raise WeightsNotFoundError(_not_found(card, offline))
        location = _fetch(card)
    check_file(card, location)
    choice = recorded_choice(card) if card.weights.sha256 is None else None
    if choice is not None and location == cached(choice.address) and file_sha256(location) != choice.sha256:
        raise WeightsMismatchError(
            f"{location} was taken for {card.alias} with SHA-256 {choice.sha256}; now it is "
            f"{file_sha256(location)}, at the same revision. Delete the file to download it again"
        )
    if card.weights.sha256 is None and hub_cache() in location.parents and location == _cached(card.weights):
        compare_with_first(_address(card.weights), location)
    return location


def _require_hash(card: ModelCard) -> None:
    """Refuse a download that nothing proves, for a card from elsewhere that states no hash."""
    w = card.weights
    places = [(b.weights.repo, b.weights.revision, b.weights.file, b.weights.url) for b in bundled_cards().values()]
    if w.sha256 is None and (w.repo, w.revision, w.file, w.url) not in places:
        raise WeightsMismatchError(
            f"the card of {card.alias} states no SHA-256 of {w.file} in {w.repo}, so it is not downloaded. Write the "
            "hash that the publisher gives into weights.sha256 of the card, or download the file and pass weights=PATH"
        )


def _fetchable(card: ModelCard) -> bool:
    """Return whether the card names a source of its weights: a file of known hash, or a repository of the hub."""
    return bool(card.weights.file) and (_has_url(card.weights) or address_of(card) is not None)


def _has_url(w: Weights) -> bool:
    """Return whether `w.url` is the address of a file whose hash the card states."""
    names = {w.file, *(a.file for a in w.alternatives)}
    return w.url is not None and w.sha256 is not None and w.url.rpartition("/")[2] in names


def _fetch(card: ModelCard) -> Path:
    from huggingface_hub.errors import EntryNotFoundError

    w, advice = card.weights, _not_found(card, offline=False)
    if w.repo is None and _has_url(w):
        return _download_url(w, advice)
    _require_hash(card)
    address = address_of(card)
    assert address is not None
    if w.repo is None:
        return choose_file(card, address)
    try:
        return download(_address(w), advice)
    except WeightsNotFoundError as error:
        if w.sha256 is not None or not isinstance(error.__cause__, EntryNotFoundError):
            raise
        # The publisher may have renamed the file; no hash ties the card to its name.
        return choose_file(card, dataclasses.replace(address, file=None), without=[w.file])


def _from_address(card: ModelCard, text: str, offline: bool) -> Path:
    address = parse_address(text)
    if address.file is not None:
        location = cached(address)
        if location is not None:
            return location
    if offline:
        raise WeightsNotFoundError(
            f"weights={text!r} is not on this machine, and offline is set: {allow_network()} allows the network"
        )
    return choose_file(card, address)


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
    """Return the card's weights on this machine: in `DEO_CUBE_WEIGHTS`, beside the card, or in a cache; else None."""
    for folder in (os.environ.get(FOLDER_VARIABLE), card.folder):
        location = _in_folder(card, local_path(folder)) if folder else None
        if location is not None:
            if folder == card.folder:
                _check_inside(location, Path(folder))
            return location
    location = _cached(card.weights)
    if location is None and _has_url(card.weights):
        location = next((p for p in [_url_cache(card.weights)] if p.is_file()), None)
    if location is None and card.weights.sha256 is None and card.weights.status == "published":
        choice = recorded_choice(card)
        location = None if choice is None else cached(choice.address)
    return location


def _cached(w: Weights) -> Path | None:
    return None if w.repo is None else cached(_address(w))


def _address(w: Weights) -> Address:
    assert w.repo is not None
    return Address(w.repo, w.revision or "main", w.file)


def _check_inside(path: Path, folder: Path) -> None:
    """Refuse a link from a card's folder to a file elsewhere, except from snapshots of the hub's cache to its blobs."""
    real, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (real.is_relative_to(home) or real.is_relative_to(blobs)):
        raise WeightsMismatchError(
            f"{path} is a link out of the card's folder, which a card from elsewhere could point at any file. If you "
            "made the link yourself, pass its target: weights=PATH"
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
    if address_of(card) is not None:
        looked.append(f"hub cache {hub_cache()}")
    if _has_url(w):
        looked.append(f"download cache {_url_cache(w).parent}")
    where = f"{w.repo} at revision {w.revision} on huggingface.co" if w.repo else w.url or "its publisher"
    network = (
        f"The network was not asked, because offline is set ({allow_network()} allows it). "
        if _fetchable(card) and offline
        else ""
    )
    return (
        f"the weights of {card.alias} ({_names(card)}) are not on this machine.\n  looked in: {'; '.join(looked)}\n"
        f"{network}Get {w.file} from {where}, and put it in a folder named by {FOLDER_VARIABLE}, or pass weights=PATH"
    )


def _url_cache(w: Weights) -> Path:
    return Path(get_option("cache_dir")) / "files" / str(w.sha256)[:16] / Path(w.file).name


def _download_url(w: Weights, advice: str) -> Path:
    """Return the file at `w.url` in the cache; it is moved there once it is whole and has its hash."""
    assert w.url is not None
    place = _url_cache(w)
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=place.parent, suffix=".part")
    digest = hashlib.sha256()
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(w.url, timeout=30) as answer:
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


@dataclass(frozen=True)
class Choice:
    """The file that was taken for a card.

    Parameters
    ----------
    repo, revision, file : str
        Where it is on the hub; `revision` is a commit.
    sha256 : str
        Hash of the file as downloaded.
    reference : Reference, optional
        What the network gave for the reference input when the file was taken.
    """

    repo: str
    revision: str
    file: str
    sha256: str
    reference: Reference | None = None

    @property
    def address(self) -> Address:
        """Address of the file."""
        return Address(self.repo, self.revision, self.file)


def choose_file(card: ModelCard, address: Address, *, without: Sequence[str] = ()) -> Path:
    """Return the file of a repository that fills a card's network, downloaded, and record the choice.

    Parameters
    ----------
    card : ModelCard
        Its network decides.
    address : Address
        Repository and revision; with a file, only that one is tried.
    without : sequence of str
        Files that were tried before.

    Raises
    ------
    WeightsNotFoundError
        If the hub does not answer, or has no such repository, revision or file.
    WeightsMismatchError
        If no file fits, or several do with different values.
    """
    commit, sizes = list_files(address)
    names, left_out = _worth_trying(card, sizes, address, without)
    fitting: dict[str, tuple[Path, str]] = {}
    reasons = dict(left_out)
    for name in names:
        path = download(Address(address.repo, commit, name), "Then pass weights=PATH")
        try:
            fitting[name] = path, _content(card, path)
        except DeoCubeError as error:
            reasons[name] = str(error).strip().splitlines()[0]
    tried = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
    place = Address(address.repo, commit)
    if not fitting:
        raise WeightsMismatchError(
            f"no file of {place} fills the network of {card.alias}:{tried or ' it holds no weights'}\n"
            "Name one that does, weights='hf://OWNER/NAME@REVISION/FILE', or a local file, weights=PATH"
        )
    if len({content for _, content in fitting.values()}) > 1:
        listed = "".join(f"\n  weights='{Address(address.repo, commit, name)}'" for name in fitting)
        raise WeightsMismatchError(
            f"{len(fitting)} files of {place} fill the network of {card.alias} with different values, and nothing says "
            f"which one is meant. Choose one:{listed}"
        )
    name = min(fitting, key=lambda n: (SUFFIXES.index(_suffix(n)), n))
    path = fitting[name][0]
    choice = remember(card, Address(address.repo, commit, name), path, file_sha256(path))
    warnings.warn(
        f"{card.alias}: took {choice.address}, the only one of {len(sizes)} files that fills its network strictly "
        f"(SHA-256 {choice.sha256[:16]}). Hash and reference vector are recorded in {_record()} and compared from now "
        "on. The card states neither, so these weights are NOT PROVEN to be the published ones: "
        f"`deo-cube verify --published {path}` checks them and ends with a card to contribute",
        UserWarning,
        stacklevel=2,
    )
    return path


def remember(card: ModelCard, address: Address, path: Path, sha256: str) -> Choice:
    """Record a file of the hub, with a reference vector, as one that fills the network of a card.

    The first file recorded for a card is the one that is taken when nothing else is asked for.
    """
    known = _read_record()
    choices = known.get(card.name, ())
    for choice in choices:
        if choice.address == address and choice.sha256 == sha256:
            return choice
    assert address.file is not None
    choice = Choice(address.repo, address.revision, address.file, sha256, _reference(card, path))
    _write_record({**known, card.name: (*(c for c in choices if c.address != address), choice)})
    return choice


def recorded_choice(card: ModelCard) -> Choice | None:
    """Return the file that was taken for a card before, or None."""
    return next(iter(_read_record().get(card.name, ())), None)


def recorded_reference(card: ModelCard, sha256: str) -> Reference | None:
    """Return the reference vector that was recorded with the file of this hash, for a card that states none."""
    choices = _read_record().get(card.name, ()) if card.reference is None else ()
    return next((c.reference for c in choices if c.sha256 == sha256), None)


def _worth_trying(
    card: ModelCard, sizes: Mapping[str, int | None], address: Address, without: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Return the files worth a download, and why others that hold weights are not."""
    if address.file is not None:
        if address.file not in sizes:
            raise WeightsNotFoundError(
                f"weights: {Address(address.repo, address.revision)} has no file {address.file!r}, but {sorted(sizes)}"
            )
        return [address.file], {}
    low, high = (b * _parameters(card) for b in BYTES_PER_PARAMETER)
    names, left_out = [], {}
    for name, size in sorted(sizes.items()):
        if _suffix(name) not in SUFFIXES:
            continue
        if name in without:
            left_out[name] = "it was tried before and does not fill the network"
        elif size is not None and not low <= size <= high:
            left_out[name] = f"expected {low / 1e6:.0f} to {high / 1e6:.0f} MB, got {size / 1e6:.1f} MB"
        else:
            names.append(name)
    if len(names) > MAX_CANDIDATES:
        raise WeightsMismatchError(
            f"{address} has {len(names)} files that could hold the weights of {card.alias}, expected at most "
            f"{MAX_CANDIDATES}. Choose one, weights='{address}/FILE': {names}"
        )
    return names, left_out


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _empty_network(card: ModelCard) -> nn.Module:
    """Return the card's network without memory for its tensors."""
    import torch

    from deo_cube.encoder.networks.adapters import build_network

    with torch.device("meta"):
        return build_network(card)


def _parameters(card: ModelCard) -> int:
    return sum(t.numel() for t in _empty_network(card).state_dict().values())


def check_structure(card: ModelCard, path: str | Path) -> None:
    """Refuse a weights file that would not fill the card's network, without loading it.

    Raises
    ------
    WeightsMismatchError
        See `checkpoint_format.matched_state`.
    """
    matched_state(_empty_network(card), path, prefixes=card.weights.key_prefixes, unused=card.weights.unused)


def _content(card: ModelCard, path: Path) -> str:
    """Return a hash of the tensors that fill the network, equal for equal values in whatever format."""
    state = matched_state(_empty_network(card), path, prefixes=card.weights.key_prefixes, unused=card.weights.unused)
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _reference(card: ModelCard, path: Path) -> Reference:
    from deo_cube.encoder.encoder import with_reference
    from deo_cube.encoder.networks.adapters import build_network

    network = build_network(card)
    load_weights(network, path, prefixes=card.weights.key_prefixes, unused=card.weights.unused)
    reference = with_reference(card, network).reference
    assert reference is not None
    return reference


def _record() -> Path:
    return Path(get_option("cache_dir")) / "weights_found.json"


def _read_record() -> dict[str, tuple[Choice, ...]]:
    path = _record()
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {name: tuple(map(_choice, choices)) for name, choices in values.items()}
    except (AttributeError, KeyError, TypeError, ValueError, DeoCubeError) as error:
        raise WeightsMismatchError(
            f"{path}, which records the weights taken from the hub, is damaged ({error}): repair it, or delete it to "
            "choose anew"
        ) from error


def _choice(values: Mapping[str, Any]) -> Choice:
    reference = values.get("reference")
    if reference is not None:
        reference = Reference(**{**reference, "vector": tuple(reference["vector"])})
    repo, revision, file, sha256 = (str(values[k]) for k in ("repo", "revision", "file", "sha256"))
    return Choice(repo, revision, file, sha256, reference)


def _write_record(record: Mapping[str, Sequence[Choice]]) -> None:
    write_record(_record(), {name: [dataclasses.asdict(c) for c in choices] for name, choices in record.items()})
