"""Find the weights of a card, and load them into a network strictly.

A file is looked for where the caller says, in the user's folder, beside the card, in the caches, at the publisher's
address and on the hub. It is known by its SHA-256. Where the card states none (the publisher gives none), the hash of
the first download is kept in the cache, and later files of that name and revision must have it.

Every tensor of the network is filled from the file, and every tensor of the file is used, or is known by name to be
unused (the projection heads of training, the index buffers of Swin, the EMA teacher). Anything else is refused, because
a network that is partly random returns numbers that look like embeddings. Nothing in a file is executed.

The key forms are those that the published code writes and that its loader tried to undo by string replacement
(main_dino.py:703-715, misc.py:782-838): a training checkpoint with `student` and `teacher`, or plain tensors, under any
stacking of the prefixes `student.`, `module.`, `_orig_mod.`, `backbone.`, `feat_extr.`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import math
import os
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deo_cube import arguments
from deo_cube.encoder import hub
from deo_cube.encoder.card import ModelCard, Weights
from deo_cube.encoder.hub import HUB
from deo_cube.errors import WeightsMismatchError, WeightsNotFoundError
from deo_cube.options import get_option
from deo_cube.paths import local_path

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = [
    "HUB",
    "check_file",
    "check_weights",
    "file_sha256",
    "find_pretrained",
    "find_weights",
    "hub_cache",
    "hub_silence",
    "load_weights",
    "local_weights",
    "match_state",
    "matched_state",
    "read_state",
    "sniff",
    "weights_state",
]

#: Wrappers of training (DDP, torch.compile, the student's trunk, TorchGeo's feature extractor), outermost first or not.
PREFIXES = ("student.", "module.", "_orig_mod.", "backbone.", "feat_extr.")
#: Projection heads, used in training only (main_dino.py:464-523).
HEADS = ("head_ms", "cls_head", "patch_head_mid", "patch_head_late")
#: The stem of a ViT trunk, which the two named stems replace (misc.py:141-173).
REPLACED_STEM = "patch_embed"
#: Bytes of names and shapes at the start of a safetensors file: some 100,000 tensors.
HEADER_BYTES = 16 * 2**20
#: Files of bare values that only their size and hash tell: bytes -> (SHA-256, kind). Dynamic World's is the values file
#: of a TensorFlow checkpoint.
BARE_FILES = {964710: ("c4a38299f2c0a741682cbe48810d55afdc832ff451e3d3708082751fe655fcb1", "dynamicworld")}
INDEX = "relative_position_index"
BIAS = "relative_position_bias_table"


def sniff(path: str | Path) -> str:
    """Return the kind of a weights file from its first bytes: `safetensors`, `torch` or `dynamicworld`.

    Raises
    ------
    WeightsMismatchError
        For an empty or truncated file, a web page, a Git LFS pointer, or anything else that holds no weights.
    """
    path = local_path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip().lower()
    sha256, kind = BARE_FILES.get(size, ("", ""))
    if kind and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return kind
    if not head:
        raise WeightsMismatchError(f"{path} is empty (0 bytes): download it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise WeightsMismatchError(
            f"{path} is a web page ({size} bytes), not weights: a login or error page was saved under that name. "
            "Download the file itself (on the hub: the 'download' link, or `hf download REPO FILE`)"
        )
    if text.startswith(b"version https://git-lfs"):
        raise WeightsMismatchError(f"{path} is a Git LFS pointer ({size} bytes), not the weights: run `git lfs pull`")
    if len(head) > 8 and head[8:9] == b"{":
        header_size = 8 + int.from_bytes(head[:8], "little")
        if header_size > size:
            raise WeightsMismatchError(
                f"{path} is cut short: its header alone takes {header_size} bytes, the file has {size}. "
                "Download it again"
            )
        if header_size > HEADER_BYTES:
            raise WeightsMismatchError(
                f"{path} begins with a header of {header_size} bytes, expected at most {HEADER_BYTES}: "
                "these are not weights"
            )
        return "safetensors"
    if head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise WeightsMismatchError(f"{path} is cut short ({size} bytes): a damaged archive. Download it again")
        return "torch"
    if head.startswith(b"\x80"):
        return "torch"
    if text.startswith((b"{", b"[")):
        raise WeightsMismatchError(f"{path} is JSON text, not weights; it begins with {head[:80]!r}")
    raise WeightsMismatchError(f"{path} is neither safetensors nor a torch file; it begins with {head[:16]!r}")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file under their names in the file. Code in the file is never run.

    Parameters
    ----------
    path : path
        A safetensors file, or a torch file that ``torch.load(weights_only=True)`` accepts. `argparse.Namespace`, which
        training checkpoints contain, is accepted because it can only hold values.

    Returns
    -------
    dict of str -> Tensor
        On the CPU; of a training checkpoint, the student.

    Raises
    ------
    WeightsMismatchError
        If the file is damaged, holds anything but tensors, or no student.
    """
    path = local_path(path)
    kind = sniff(path)
    if kind == "dynamicworld":
        from deo_cube.encoder.networks.dynamicworld import read_variables

        return read_variables(path)
    if kind == "safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsMismatchError(
                f"{path} is a damaged or truncated safetensors file ({path.stat().st_size} bytes): {error}. "
                "Download it again"
            ) from error
    return _student(_load_torch(path), path)


def _load_torch(path: Path) -> Any:
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a foreign or hostile file may raise anything in the unpickler
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if any(w in line for w in ("GLOBAL", "Unsupported", "error:"))), "")
        raise WeightsMismatchError(
            f"{path} could not be read as tensors only ({type(error).__name__}). {reason} It is damaged, or "
            "contains Python objects, which are not unpickled because that would run code from the file. "
            "If you trust its source, load it yourself and save the tensors with safetensors.torch.save_file"
        ) from error


def _student(content: Any, path: Path) -> dict[str, Tensor]:
    import torch

    if isinstance(content, Mapping) and isinstance(content.get("student"), Mapping):
        content = content["student"]
    if not isinstance(content, Mapping):
        raise WeightsMismatchError(f"{path}: expected tensors by name, got a {type(content).__name__}")
    others = [str(k) for k, v in content.items() if not isinstance(v, torch.Tensor)]
    if others or not content:
        raise WeightsMismatchError(
            f"{path} is a checkpoint with the entries {_few([str(k) for k in content])}, of which {_few(others)} "
            "are not tensors. Expected tensors by name, or a training checkpoint with an entry 'student'"
        )
    return {str(k): v for k, v in content.items()}


def match_state(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Sequence[int]],
    *,
    where: str | Path,
    prefixes: Sequence[str] = (),
    indices: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the tensors of a file under the names of the network, with each one accounted for.

    Parameters
    ----------
    state : mapping of str -> Tensor
        As read from the file.
    expected : mapping of str -> shape
        Every tensor of the network.
    where : str or path
        The file, for messages.
    prefixes : sequence of str
        Prefixes of this file beyond the usual ones.
    indices : mapping of str -> Tensor, optional
        The network's own relative position indices, which copies in the file must equal.

    Raises
    ------
    WeightsMismatchError
        If a tensor is missing, left over, of another shape or kind, present twice, or if an index buffer differs.
    """
    named: dict[str, Tensor] = {}
    students = any(k.startswith("student.") for k in state)
    for key, tensor in state.items():
        if students and key.startswith("teacher."):
            continue
        name = _strip(key, (*prefixes, *PREFIXES))
        if name in named:
            raise WeightsMismatchError(f"{where} contains {name!r} twice, once as {key!r}: two networks in one file")
        named[name] = tensor
    used = {name: t for name, t in named.items() if name in expected or not _of_no_use(name, expected)}
    used = {name: t for name, t in used.items() if not _is_index(name, t, expected, indices, where)}

    _check_window(used, expected, where)
    missing = [name for name in expected if name not in used]
    leftover = [name for name in used if name not in expected]
    if missing or leftover:
        raise WeightsMismatchError(
            f"{where} does not fill the network exactly.\n"
            f"  missing in the file: {len(missing)} of {len(expected)} tensors{_list(missing)}\n"
            f"  left over in the file: {len(leftover)} of {len(state)}{_list(leftover)}\n"
            f"  the file looks like {_looks_like(named)}.\n"
            "Pass the model of these weights, or the weights of this model"
        )
    shapes = [
        f"{name}: {tuple(used[name].shape)} in the file, {tuple(shape)} in the network"
        for name, shape in expected.items()
        if tuple(used[name].shape) != tuple(shape)
    ]
    if shapes:
        raise WeightsMismatchError(
            f"{where} is of another size: {len(shapes)} of {len(expected)} tensors differ in shape{_list(shapes)}\n"
            f"  the file looks like {_looks_like(named)}"
        )
    integers = [name for name, t in used.items() if not t.dtype.is_floating_point]
    if integers:
        raise WeightsMismatchError(f"{where}: {len(integers)} tensors are not floating-point numbers{_list(integers)}")
    return used


def load_weights(network: nn.Module, path: str | Path, *, prefixes: Sequence[str] = ()) -> None:
    """Fill `network` from the file `path`, strictly, in the network's own dtype.

    Raises
    ------
    WeightsMismatchError
        See `read_state` and `match_state`; or if the file holds NaN or infinite values.
    """
    import torch

    state = matched_state(network, path, prefixes=prefixes)
    broken = [name for name, t in state.items() if not bool(torch.isfinite(t).all())]
    if broken:
        raise WeightsMismatchError(f"{path}: {len(broken)} tensors hold NaN or infinite values{_list(broken)}")
    network.load_state_dict(state, strict=True)


def check_weights(network: nn.Module, path: str | Path, *, prefixes: Sequence[str] = ()) -> None:
    """Refuse a file that would not fill `network` (which may be on the meta device); loads nothing into it.

    Raises
    ------
    WeightsMismatchError
        See `read_state` and `match_state`.
    """
    matched_state(network, path, prefixes=prefixes)


def matched_state(network: nn.Module, path: str | Path, *, prefixes: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return the tensors of a file under the names of `network`, which may be on the meta device.

    Raises
    ------
    WeightsMismatchError
        See `read_state` and `match_state`.
    """
    shapes, indices = _layout(network)
    return match_state(read_state(path), shapes, where=path, prefixes=prefixes, indices=indices)


def _layout(network: nn.Module) -> tuple[dict[str, torch.Size], dict[str, Tensor]]:
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    indices = {n: b for n, b in network.named_buffers() if n.endswith(INDEX) and not b.is_meta}
    return shapes, indices


def _strip(key: str, prefixes: Sequence[str]) -> str:
    while True:
        prefix = next((p for p in prefixes if key.startswith(p)), None)
        if prefix is None:
            return key
        key = key.removeprefix(prefix)


def _of_no_use(name: str, expected: Mapping[str, Any]) -> bool:
    first = name.split(".", 1)[0]
    if first in HEADS:
        return True
    return first == REPLACED_STEM and any(k.startswith(f"{REPLACED_STEM}_") for k in expected)


def _is_index(
    name: str, tensor: Tensor, expected: Mapping[str, Any], indices: Mapping[str, Tensor] | None, where: str | Path
) -> bool:
    """Return whether `name` is the index buffer of an attention in the network; its values must be equal."""
    import torch

    if name in expected or not name.endswith(INDEX) or name.removesuffix(INDEX) + BIAS not in expected:
        return False
    own = (indices or {}).get(name)
    if own is not None and own.numel() == tensor.numel() and not torch.equal(own.flatten(), tensor.flatten()):
        raise WeightsMismatchError(f"{where}: {name} orders the window's positions differently from this network")
    return True


def _check_window(used: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], where: str | Path) -> None:
    for name, tensor in used.items():
        if name.endswith(BIAS) and name in expected and tensor.shape[0] != expected[name][0]:
            theirs, ours = tensor.shape[0], expected[name][0]
            raise WeightsMismatchError(
                f"{where}: {name} has {theirs} rows, {_window(theirs)}; the network has {ours}, {_window(ours)}. "
                f"Set the card's architecture to the window of the weights"
            )


def _window(rows: int) -> str:
    side = math.isqrt(rows)
    if side * side != rows or side % 2 == 0:
        return "which is not a window size"
    return f"that is {side}^2, window {(side + 1) // 2}"


def _looks_like(state: Mapping[str, Tensor]) -> str:
    """Describe in words what a file seems to be."""
    parameters = sum(t.numel() for t in state.values())
    size = f"{len(state)} tensors with {parameters / 1e6:.2f} M values"

    def blocks(prefix: str, position: int) -> int:
        return len({k.split(".")[position] for k in state if k.startswith(prefix)})

    if "cls_token" in state and "blocks.0.attn.qkv.weight" in state:
        stem = next((k for k in state if k.startswith("patch_embed") and k.endswith("proj.weight")), None)
        inputs = f", stem {stem} {tuple(state[stem].shape)}" if stem else ""
        return f"a ViT of {blocks('blocks.', 1)} blocks, {state['cls_token'].shape[-1]} channels{inputs} ({size})"
    table = next((k for k in state if k.endswith(BIAS)), None)
    if table is not None:
        style = "torchvision or DEO" if table.startswith("features.") else "another library"
        return f"a Swin Transformer as named by {style}, {_window(state[table].shape[0])} ({size})"
    return f"{size}, the first named {_few(list(state), 4)}"


def _few(names: Sequence[str], count: int = 6) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(repr(n) for n in names[:count]) + more


def _list(names: Sequence[str], count: int = 5) -> str:
    if not names:
        return ""
    more = f"\n    ... and {len(names) - count} more" if len(names) > count else ""
    return ":" + "".join(f"\n    {n}" for n in names[:count]) + more


FOLDER_VARIABLE = "DEO_CUBE_WEIGHTS"
#: File name of a timm model in its repository.
PRETRAINED = "model.safetensors"


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file; computed once per process for the same path, size and time of change."""
    path = local_path(path).resolve()
    stat = path.stat()
    return _sha256(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=128)
def _sha256(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_weights(card: ModelCard, weights: str | Path | None = None, *, offline: bool | None = None) -> Path:
    """Return the weights file of a card, downloaded if necessary.

    Looked for, in this order: `weights` (a file, or a folder that holds one of the card's name); the folder
    `DEO_CUBE_WEIGHTS`; the card's own folder; the caches; and, unless offline, the publisher's address or the hub. A
    `.safetensors` of the same name is taken before the published `.pth`, unless the card states the hash of the latter.
    Where the name of the file on the hub is not known, the one that fills the network is taken (`hub.choose`).

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
            raise WeightsNotFoundError(f"weights={str(weights)!r}: there is no such file")
        return check_file(card, path)
    location = local_weights(card)
    if location is None:
        if offline or not _fetchable(card):
            raise WeightsNotFoundError(_not_found(card, offline))
        location = _fetch(card)
    check_file(card, location)
    choice = hub.recorded_choice(card) if card.weights.sha256 is None else None
    if choice is not None and location == _cached(_as_weights(choice)) and file_sha256(location) != choice.sha256:
        raise WeightsMismatchError(
            f"{location} was taken for {card.alias} with SHA-256 {choice.sha256}; now it is "
            f"{file_sha256(location)}, at the same revision. Delete the file to download it again"
        )
    if card.weights.sha256 is None and hub_cache() in location.parents and location == _cached(card.weights):
        _compare_with_first(card.weights, location)
    return location


def find_pretrained(card: ModelCard, repo: str | None, *, offline: bool | None = None) -> Path:
    """Return the weights that timm names for the model of a card, downloaded if necessary.

    Parameters
    ----------
    card : ModelCard
        If it states a hash, the file must have it. A card that was read from a file must state one.
    repo : str or None
        Repository on the hub that timm names.
    offline : bool, optional
        Do not use the network. Default: the option `offline`.

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
    location = _cached(w)
    if location is None:
        if offline:
            raise WeightsNotFoundError(
                f"the weights of {card.alias} are not on this machine, and offline is set "
                f"(deo_cube.set_options(offline=False) to allow the network). {advice}"
            )
        location = _download(w, advice)
    check_file(dataclasses.replace(card, weights=w), location)
    if w.sha256 is None:
        _compare_with_first(dataclasses.replace(w, revision=location.parent.name), location)
    return location


def _require_hash(card: ModelCard) -> None:
    """Refuse a download that nothing proves, for a card from elsewhere that states no hash."""
    from deo_cube.encoder.registry import bundled_cards

    w = card.weights
    places = [(b.weights.repo, b.weights.revision, b.weights.file, b.weights.url) for b in bundled_cards().values()]
    if w.sha256 is None and (w.repo, w.revision, w.file, w.url) not in places:
        raise WeightsMismatchError(
            f"the card of {card.alias} states no SHA-256 of {w.file} in {w.repo}, so it is not downloaded. Write the "
            "hash that the publisher gives into weights.sha256 of the card, or download the file and pass weights=PATH"
        )


def _fetchable(card: ModelCard) -> bool:
    """Return whether the card names a source of its weights: a file of known hash, or a repository of the hub."""
    return bool(card.weights.file) and (_has_url(card.weights) or hub.address_of(card) is not None)


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
        choice = hub.recorded_choice(card)
        location = None if choice is None else _cached(_as_weights(choice))
    return location


def _cached(w: Weights) -> Path | None:
    if w.repo is None or not w.file:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(w.repo, w.file, cache_dir=hub_cache(), revision=w.revision)
    return Path(cached) if isinstance(cached, str) else None


def check_file(card: ModelCard, path: Path) -> Path:
    """Return `path` if it starts like a weights file and has the hash that the card states.

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
    """Return the folder of downloads: `hub` in the option `cache_dir`."""
    return Path(get_option("cache_dir")) / "hub"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Do not follow redirects: a redirect is an answer too."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def hub_silence(url: str = "", *, timeout: float = 5.0, tries: int = 2) -> str | None:
    """Return why the hub does not answer, or None if it does.

    The hub's own client tries a dead network six times and gives up after 23 s. This asks first, through the proxy that
    the environment names, so that a missing network is reported at once.

    Parameters
    ----------
    url : str
        Address of the HEAD request; default the hub itself (`HF_ENDPOINT` where it is set).
    timeout : float
        Seconds per try, without looking up the name.
    tries : int
        Number of tries, half a second apart.
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
    """Record the hash of a first download, and refuse a later one that differs."""
    record = Path(get_option("cache_dir")) / "weights_seen.json"
    key = f"{w.repo}@{w.revision}/{w.file}"
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
        record.parent.mkdir(parents=True, exist_ok=True)
        part = record.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(seen | {key: sha256}, indent=2) + "\n", encoding="utf-8")
        part.replace(record)
