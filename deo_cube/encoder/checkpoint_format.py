"""How a weights file names its tensors: container, prefixes, and what of it the network has no use for."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deo_cube.encoder.card import Layer, ModelCard, Weights
from deo_cube.encoder.weights import BIAS, HEADS, INDEX, PREFIXES, REPLACED_STEM, read_state, sniff
from deo_cube.errors import UnknownModelError, WeightsMismatchError
from deo_cube.paths import local_path

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KeyForm", "card_for", "key_form"]


@dataclass(frozen=True)
class KeyForm:
    """The form of the names in a weights file.

    Parameters
    ----------
    container : str
        `safetensors`, `torch, plain tensors` or `torch, training checkpoint`.
    prefixes : mapping of str -> int
        Whole stack of prefixes (`student.module.backbone.`; "" for none) -> tensors of the network that carry it.
    heads, indices, stems, teacher : int
        Numbers of unused tensors: projection heads of training, index buffers of attention, the trunk's own stem of a
        ViT, and tensors of the EMA teacher.
    """

    container: str
    prefixes: Mapping[str, int]
    heads: int = 0
    indices: int = 0
    stems: int = 0
    teacher: int = 0

    def __str__(self) -> str:
        parts = [f"{n} tensors under {p!r}" if p else f"{n} tensors without prefix" for p, n in self.prefixes.items()]
        left = {
            "of projection heads": self.heads,
            "index buffers": self.indices,
            "of the trunk's own stem": self.stems,
            "of the EMA teacher": self.teacher,
        }
        unused = [f"{n} {what}" for what, n in left.items() if n]
        return f"{self.container}: {', '.join(parts)}" + (f"; not used: {', '.join(unused)}" if unused else "")


def key_form(path: str | Path) -> KeyForm:
    """Return how the file at `path` names its tensors. Nothing in it is executed.

    Raises
    ------
    WeightsMismatchError
        See `weights.read_state`.
    """
    state, container = read_state(path), sniff(path)
    if container == "torch":
        plain = not _is_checkpoint(Path(path))
        container = "torch, plain tensors" if plain else "torch, training checkpoint (entry 'student')"
    counts: Counter[str] = Counter()
    students = any(k.startswith("student.") for k in state)
    named = [(k, *_split(k)) for k in state if not (students and k.startswith("teacher."))]
    names = {name for _, _, name in named}
    heads = indices = stems = 0
    for _, prefix, name in named:
        first = name.split(".", 1)[0]
        if first in HEADS:
            heads += 1
        elif name.endswith(INDEX) and name.removesuffix(INDEX) + BIAS in names:
            indices += 1
        elif first == REPLACED_STEM and any(n.startswith(f"{REPLACED_STEM}_") for n in names):
            stems += 1
        else:
            counts[prefix] += 1
    return KeyForm(container, dict(counts.most_common()), heads, indices, stems, len(state) - len(named))


def _is_checkpoint(path: Path) -> bool:
    import argparse
    import zipfile

    import torch

    with torch.serialization.safe_globals([argparse.Namespace]):
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    return isinstance(content.get("student"), Mapping)


def _split(key: str) -> tuple[str, str]:
    name = key
    while prefix := next((p for p in PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return key.removesuffix(name), name


def card_for(path: str | Path, *, model: str | ModelCard | None = None) -> ModelCard:
    """Return the card of the published network that the file fills, with the sizes of its tensors.

    Parameters
    ----------
    path : path
        Weights of a Swin or ViT with the stems `conv_ms` and `conv_rgb`, or `patch_embed_ms` and `patch_embed_rgb`.
    model : str or ModelCard, optional
        Take this card as it is.

    Returns
    -------
    ModelCard
        `swinb` or `vitb` where the sizes are theirs; else that card with the sizes read off the tensors, under the name
        of the file. Weights: this file, with no hash stated.

    Raises
    ------
    UnknownModelError
        If it is neither, or a ViT whose number of heads cannot be read from its tensors: pass its card.
    """
    from deo_cube.encoder.registry import card

    path = local_path(path)
    if model is not None:
        base = card(model) if isinstance(model, str) else model
    else:
        state = {_split(k)[1]: t for k, t in read_state(path).items() if not k.startswith("teacher.")}
        if "conv_ms.0.weight" in state:
            base = _sized(card("swinb"), _swin(state), path)
        elif "patch_embed_ms.proj.weight" in state:
            base = _sized(card("vitb"), _vit(state, card("vitb")), path)
        else:
            raise UnknownModelError(
                f"{path} holds neither 'conv_ms.0.weight' (DEO's Swin) nor 'patch_embed_ms.proj.weight' (its ViT), "
                f"under any of the prefixes {list(PREFIXES)}; its first tensors are {sorted(state)[:4]}"
            )
    weights = dataclasses.replace(base.weights, sha256=None, file=path.name, repo=None, revision=None)
    return dataclasses.replace(base, weights=weights, reference=None)


def _swin(state: Mapping[str, Tensor]) -> dict[str, Any]:
    stages = sorted({int(k.split(".")[1]) for k in state if k.startswith("features.") and k.endswith(BIAS)})
    depths = [len({k.split(".")[2] for k in state if k.startswith(f"features.{i}.") and k.endswith(BIAS)})
              for i in stages]  # fmt: skip
    tables = [state[f"features.{i}.0.attn.{BIAS}"] for i in stages]
    stem = state["conv_ms.0.weight"]
    if not stages:
        raise WeightsMismatchError("the file has a stem 'conv_ms' and no attention under 'features.'")
    return {
        "family": "swin",
        "dim": int(stem.shape[0]),
        "depths": depths,
        "heads": [int(t.shape[1]) for t in tables],
        "window": (int(tables[0].shape[0] ** 0.5) + 1) // 2,
        "patch": int(stem.shape[2]),
        "mlp_ratio": state["features.0.0.mlp.0.weight"].shape[0] / int(stem.shape[0]),
    }


def _vit(state: Mapping[str, Tensor], base: ModelCard) -> dict[str, Any]:
    stem = state["patch_embed_ms.proj.weight"]
    dim = int(stem.shape[0])
    if dim != base.architecture["dim"]:
        raise UnknownModelError(
            f"a ViT of {dim} channels is not a published model ({base.alias} has {base.architecture['dim']}), and its "
            "number of attention heads cannot be read from its tensors: pass its card, --model FOLDER"
        )
    return {
        **base.architecture,
        "depth": len({k.split(".")[1] for k in state if k.startswith("blocks.")}),
        "patch": int(stem.shape[2]),
        "grid": int((state["pos_embed"].shape[1] - 1) ** 0.5),
    }


def _sized(base: ModelCard, sizes: dict[str, Any], path: Path) -> ModelCard:
    if dict(base.architecture) == sizes:
        return base
    if sizes["family"] == "swin":
        n = len(sizes["depths"])
        layers = [Layer(f"stage{i + 1}", sizes["dim"] << i, sizes["patch"] << i) for i in range(n)]
    else:
        n = sizes["depth"]
        layers = [Layer(f"block{i}", sizes["dim"], sizes["patch"]) for i in range(n)]
    layers.append(Layer("norm", layers[-1].dim, layers[-1].stride))
    tile = -(-base.tile // (2 * layers[-1].stride)) * 2 * layers[-1].stride
    return dataclasses.replace(
        base,
        name=f"{path.stem}.file",
        alias=path.stem,
        architecture=sizes,
        layers=tuple(layers),
        tile=tile,
        weights=Weights("published", path.name, key_prefixes=base.weights.key_prefixes),
        scores=(),
    )
