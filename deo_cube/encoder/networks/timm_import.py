"""Import timm, even if torchvision's compiled operators do not fit the installed torch, and find its weights.

timm needs torchvision. A CUDA build of torchvision beside a CPU build of torch (which pip selects when only a CPU wheel
of torch is available) fails on import with ``operator torchvision::nms does not exist`` (pytorch/vision#9077, #8985).
Declaring the two missing signatures first makes the import work; nothing here ever calls those operators. Every import
of timm or torchvision in this package goes through this module.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import os
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from deo_cube.encoder.card import ModelCard, Weights
from deo_cube.encoder.checkpoint_format import check_file
from deo_cube.encoder.hub import Address, cached, compare_with_first, download, hub_cache
from deo_cube.errors import MissingExtraError, WeightsMismatchError, WeightsNotFoundError
from deo_cube.options import allow_network, get_option

__all__ = ["find_pretrained", "import_timm", "prepare_torchvision"]

#: File name of a timm model in its repository.
PRETRAINED = "model.safetensors"

_lock = threading.RLock()
# The declared signatures last only as long as their library object.
_declared: Any = None


def prepare_torchvision() -> bool:
    """Make `import torchvision` safe in this process.

    Returns
    -------
    bool
        True where torchvision's own operators are there, False where only their signatures were declared.
    """
    global _declared
    with _lock:
        if _declared is not None:
            return False
        if "torchvision" in sys.modules:
            return True
        import torch

        # Untyped functions of torch.
        ops: Any = torch.ops
        new_library: Any = torch.library.Library
        spec = importlib.util.find_spec("torchvision")
        folders = list(spec.submodule_search_locations or []) if spec is not None else []
        compiled = [path for folder in folders for ending in ("so", "pyd", "dylib")
                    for path in glob.glob(os.path.join(folder, f"_C*.{ending}"))]  # fmt: skip
        for path in compiled:
            try:
                ops.load_library(path)
            except (OSError, RuntimeError):
                continue
            if hasattr(ops.torchvision, "nms"):
                return True
        if hasattr(ops.torchvision, "nms"):
            return True
        library = new_library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared = library
        return False


def import_timm() -> ModuleType:
    """Return the module timm, imported safely.

    Raises
    ------
    MissingExtraError
        If timm is not installed.
    """
    with _lock:
        prepare_torchvision()
        try:
            import timm
        except ModuleNotFoundError as error:
            if error.name not in ("timm", "torchvision"):
                raise
            raise MissingExtraError(
                f"the networks need timm, but {error.name} is not installed: pip install timm"
            ) from error
        module: ModuleType = timm
        return module


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
    address = Address(repo, "main", PRETRAINED)
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
    location = cached(address)
    if location is None:
        if offline:
            raise WeightsNotFoundError(
                f"the weights of {card.alias} are not on this machine, and offline is set "
                f"({allow_network()} allows the network). {advice}"
            )
        location = download(address, advice)
    check_file(dataclasses.replace(card, weights=w), location)
    if w.sha256 is None:
        compare_with_first(Address(repo, location.parent.name, PRETRAINED), location)
    return location
