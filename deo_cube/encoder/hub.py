"""Find the weights of a card in a repository of the hub, where the name of the file is not known.

The files of the repository at one commit are listed, those that can hold the network are downloaded and compared with
it strictly, and the one that fits is taken. Two files that fit with different values are refused, because nothing says
which one is meant. The choice is recorded in the cache with its hash and a reference vector, and compared from then on.
An address ``hf://OWNER/NAME[@REVISION][/FILE]`` in place of a path chooses repository, commit and file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deo_cube.encoder.card import ModelCard, Reference
from deo_cube.errors import ArgumentError, DeoCubeError, WeightsMismatchError, WeightsNotFoundError
from deo_cube.options import get_option

__all__ = [
    "HUB",
    "Address",
    "Choice",
    "address_of",
    "choose",
    "parse_address",
    "place_in_cache",
    "recorded_choice",
    "recorded_reference",
    "remember",
]

HUB = "https://huggingface.co"
#: Endings of files that can hold weights, the safest format first.
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
#: Files that are downloaded and tried at most.
MAX_CANDIDATES = 8
#: Bytes per parameter of a file: float16 at least; at most student, teacher and two moments in float32, twice over.
BYTES_PER_PARAMETER = (2, 40)
RECORD = "weights_found.json"
_NAME = r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*"


@dataclass(frozen=True)
class Address:
    """A place on the hub."""

    repo: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.revision}" + (f"/{self.file}" if self.file else "")


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
        """Where the file is."""
        return Address(self.repo, self.revision, self.file)


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


def choose(card: ModelCard, address: Address, *, without: Sequence[str] = ()) -> Path:
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
    from deo_cube.encoder.weights import file_sha256

    commit, sizes = _list(address)
    names, left_out = _candidates(card, sizes, address, without)
    fitting: dict[str, tuple[Path, str]] = {}
    reasons = dict(left_out)
    for name in names:
        path = _download(Address(address.repo, commit, name))
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


def place_in_cache(path: Path) -> Address | None:
    """Return where a file of the hub's cache comes from; None for any other file."""
    parts = path.parts
    if "snapshots" not in parts:
        return None
    i = parts.index("snapshots")
    folder, inside = parts[i - 1], parts[i + 1 :]
    if not folder.startswith("models--") or folder.count("--") < 2 or len(inside) < 2:
        return None
    return Address(folder.removeprefix("models--").replace("--", "/", 1), inside[0], "/".join(inside[1:]))


def recorded_choice(card: ModelCard) -> Choice | None:
    """Return the file that was taken for a card before, or None."""
    return next(iter(_read_record().get(card.name, ())), None)


def recorded_reference(card: ModelCard, sha256: str) -> Reference | None:
    """Return the reference vector that was recorded with the file of this hash, for a card that states none."""
    choices = _read_record().get(card.name, ()) if card.reference is None else ()
    return next((c.reference for c in choices if c.sha256 == sha256), None)


def endpoint() -> str:
    """Return the address of the hub: `HF_ENDPOINT` where it is set."""
    return os.environ.get("HF_ENDPOINT") or HUB


def _list(address: Address) -> tuple[str, dict[str, int | None]]:
    """Return the commit of a revision and the files there with their sizes."""
    from huggingface_hub import HfApi

    from deo_cube.encoder.weights import hub_silence

    silence = hub_silence(f"{endpoint()}/api/models/{address.repo}")
    if silence is not None:
        raise WeightsNotFoundError(
            f"{endpoint()} does not answer ({silence}), so the files of {address.repo} cannot be listed. Check the "
            "network or the proxy, or bring the file from elsewhere and pass weights=PATH"
        )
    try:
        api = HfApi(endpoint=endpoint(), library_name="deo_cube")
        info = api.model_info(address.repo, revision=address.revision, files_metadata=True, timeout=30)
    except Exception as error:  # the client raises its own, httpx's and OSError's
        raise WeightsNotFoundError(
            f"the files of {address} cannot be listed: {type(error).__name__}: {error}. Name another repository or "
            "revision, weights='hf://OWNER/NAME@REVISION', or a local file, weights=PATH"
        ) from error
    return str(info.sha or address.revision), {s.rfilename: s.size for s in info.siblings or []}


def _candidates(
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


def _parameters(card: ModelCard) -> int:
    import torch

    from deo_cube.encoder.networks.adapters import build_network

    with torch.device("meta"):
        return sum(t.numel() for t in build_network(card).state_dict().values())


def _content(card: ModelCard, path: Path) -> str:
    """Return a hash of the tensors that fill the network, equal for equal values in whatever format."""
    import hashlib

    import torch

    from deo_cube.encoder.networks.adapters import build_network
    from deo_cube.encoder.weights import matched_state

    with torch.device("meta"):
        network = build_network(card)
    digest = hashlib.sha256()
    for name, tensor in sorted(matched_state(network, path, prefixes=card.weights.key_prefixes).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _reference(card: ModelCard, path: Path) -> Reference:
    from deo_cube.encoder.loading import with_reference
    from deo_cube.encoder.networks.adapters import build_network
    from deo_cube.encoder.weights import load_weights

    network = build_network(card)
    load_weights(network, path, prefixes=card.weights.key_prefixes)
    reference = with_reference(card, network).reference
    assert reference is not None
    return reference


def _download(address: Address) -> Path:
    from huggingface_hub import hf_hub_download

    from deo_cube.encoder.weights import hub_cache

    assert address.file is not None
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
            f"{address} could not be downloaded: {type(error).__name__}: {error}. Make the call again, or bring the "
            "file from elsewhere and pass weights=PATH"
        ) from error


def _record() -> Path:
    return Path(get_option("cache_dir")) / RECORD


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
    path = _record()
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: [dataclasses.asdict(c) for c in choices] for name, choices in record.items()}
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
