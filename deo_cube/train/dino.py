"""Weights of DINOv2 and DINOv3 teachers: from a file as published by Meta or by timm, or from the hub at a revision.

timm translates names; what it reads is loaded strictly here, and what it leaves aside must be known to be of no use.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deo_cube.encoder.weights import HUB, hub_cache, hub_silence
from deo_cube.errors import WeightsMismatchError, WeightsNotFoundError
from deo_cube.options import get_option

__all__ = ["fill", "from_hub"]

HUB_FILE = "model.safetensors"
LEFT_ASIDE = (".periods", ".bias_mask", "mask_token")
"""Ends of names that serve pretraining, or can be computed."""


def from_hub(repo: str, revision: str = "") -> Path:
    """The file of timm's repository `repo` (``timm/vit_base_patch14_dinov2.lvd142m``), downloaded once.

    Parameters
    ----------
    repo : str
        On the hub, or on the server that HF_ENDPOINT names.
    revision : str
        Commit; the newest where empty. The run's `teachers.json` says which it was.

    Raises
    ------
    WeightsNotFoundError
        If it is neither cached nor to be had.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    wanted = revision or "main"
    advice = (
        f"Fetch {HUB_FILE} of {repo} where there is a network and give --optical.weights FILE, or choose --teacher "
        "mobilenet"
    )
    # Without a revision the hub is asked which is the newest; a pinned one that is here needs no network.
    cached = try_to_load_from_cache(repo, HUB_FILE, cache_dir=hub_cache(), revision=wanted)
    if isinstance(cached, str) and (revision or get_option("offline")):
        return Path(cached)
    if get_option("offline"):
        raise WeightsNotFoundError(
            f"weights of the teacher {repo}@{wanted} are not cached, and offline is set. {advice}"
        )
    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    silence = hub_silence(f"{endpoint}/{repo}/resolve/{wanted}/{HUB_FILE}")
    if silence is not None:
        raise WeightsNotFoundError(
            f"weights of the teacher {repo}@{wanted}: {endpoint} does not answer ({silence}). {advice}"
        )
    try:
        found = hf_hub_download(
            repo, HUB_FILE, revision=wanted, cache_dir=hub_cache(), endpoint=endpoint, library_name="deo_cube"
        )
    except Exception as error:  # the client raises its own, httpx's and OSError's
        raise WeightsNotFoundError(
            f"weights of the teacher {repo}@{wanted} could not be had: {type(error).__name__}: {error}. {advice}"
        ) from error
    return Path(found)


def fill(net: nn.Module, path: Path) -> None:
    """Fill a ViT of timm from `path`, strictly: names as timm's, or as Meta published them.

    Raises
    ------
    WeightsNotFoundError
        If there is no such file.
    WeightsMismatchError
        If a tensor is missing, of another shape, left over, or lost in translation though it says something.
    """
    if not path.is_file():
        raise WeightsNotFoundError(f"--optical.weights: no weights at {path}")
    published = _read(path)
    translate: Any = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    try:
        state = translate(dict(published), net) if translate else published
        lost = _lost(published, net)
        if lost:
            raise WeightsMismatchError(f"the network has no place for {', '.join(lost[:3])}")
        net.load_state_dict(state, strict=True)
    except (RuntimeError, KeyError, AttributeError, ValueError) as error:
        raise WeightsMismatchError(f"{path} does not hold {type(net).__name__} as asked for: {error}") from error


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors each raise their own
        raise WeightsMismatchError(f"{path} is no file of weights: {type(error).__name__}: {error}") from error
    for key in ("teacher", "model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise WeightsMismatchError(f"{path} holds no table of tensors")
    return found


def _lost(published: dict[str, Tensor], net: nn.Module) -> list[str]:
    """Published biases of queries and values that are not zero, where the network has none.

    timm has DINOv3 with and without them, and drops those it has no place for. Keys have none: their part is masked.
    """
    own = dict(net.named_parameters())
    lost = []
    for name, value in published.items():
        if name.endswith("qkv.bias") and name not in own and name.replace("qkv.bias", "q_bias") not in own:
            q, _, v = value.chunk(3)
            if bool(q.any()) or bool(v.any()):
                lost.append(name)
    return lost
