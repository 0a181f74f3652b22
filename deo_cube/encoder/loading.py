"""Verify models against their cards, write models with cards of their own, and infer a card from a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from deo_cube.encoder.card import Layer, ModelCard, Weights
from deo_cube.encoder.checkpoint_format import BIAS, PREFIXES, read_state, split_key
from deo_cube.encoder.encoder import Encoder, reference_distance, reference_input, with_reference
from deo_cube.encoder.hub import file_sha256
from deo_cube.encoder.registry import card as card_of
from deo_cube.encoder.registry import resolve
from deo_cube.encoder.weights import recorded_reference
from deo_cube.errors import UnknownModelError, WeightsMismatchError
from deo_cube.notebook import facts_html
from deo_cube.paths import local_path

__all__ = [
    "Verification",
    "card_for",
    "int8_scale",
    "reference_input",
    "verify",
    "with_int8_scales",
    "with_reference",
    "write_model",
]


@dataclass(frozen=True)
class Verification:
    """The state of a model on this machine. `proven` requires the card's own hash and reference vector, both met."""

    model: str
    status: str
    """`published`, `trained` or `untrained`."""
    file: str | None
    """Path of the weights; None for a network that its factory makes."""
    sha256: str
    """Hash of the file; of a network without one, the hash of its values and source."""
    hash: Literal["as stated", "not stated"]
    """State of the hash in the card; a file with another hash than the stated one is an error, not a Verification."""
    distance: float | None
    """Largest deviation from the reference vector, relative to its largest value; None if the card has none."""
    tolerance: float | None
    device: str
    recorded: bool = False
    """True if the vector is not the card's but was recorded when the weights were downloaded from the hub."""

    @property
    def ok(self) -> bool:
        """True if the model loaded strictly and missed no reference vector."""
        return self.distance is None or (self.tolerance is not None and self.distance <= self.tolerance)

    @property
    def proven(self) -> bool:
        """True if the file has the card's hash, and the loaded model returns the card's reference vector."""
        return self.ok and self.distance is not None and self.hash == "as stated" and not self.recorded

    def __repr__(self) -> str:
        source = Path(self.file).name if self.file else "its factory"
        facts = [f"{self.model} loaded strictly from {source} on {self.device}"]
        facts.append(
            f"SHA-256 {self.sha256[:12]} is the card's" if self.hash == "as stated" else
            f"its card states no hash to compare {self.sha256[:12]} with"
        )  # fmt: skip
        if self.distance is None:
            facts.append("its card has no reference vector, so these weights are NOT proven")
        elif self.ok and self.recorded:
            facts.append(
                f"the vector recorded with this file is met (off by {self.distance:.1e}), but its card has none, so "
                "that these are the published weights is NOT proven"
            )
        elif self.ok:
            facts.append(f"the reference vector is met (off by {self.distance:.1e}, allowed {self.tolerance:.0e})")
        else:
            facts.append(f"the reference vector is MISSED (off by {self.distance:.1e}, allowed {self.tolerance:.0e})")
        if self.status == "untrained":
            facts.append("the weights are UNTRAINED (random)")
        verdict = "proven" if self.proven else "not proven" if self.ok else "WRONG"
        return f"<Verification: {verdict}. {'; '.join(facts)}>"

    def _repr_html_(self) -> str:
        reference = (
            "none" if self.distance is None else f"off by {self.distance:.1e}, allowed {self.tolerance or 0:.0e}"
        )
        rows = [
            (
                "verdict",
                "proven" if self.proven else "not proven" if self.ok else "WRONG: the reference vector is missed",
            ),
            ("weights", f"{self.status}, {self.file or 'made by its factory'}"),
            ("SHA-256", f"{self.sha256[:16]}, {self.hash}"),
            ("reference vector", reference + (" (recorded from the file)" if self.recorded else "")),
            ("device", self.device),
        ]
        return facts_html(f"verification of {self.model}", rows)


def verify(name: str | Path | ModelCard, *, weights: str | Path | None = None, device: str = "cpu") -> Verification:
    """Load a model strictly and compare it with its card.

    Parameters
    ----------
    name : str, path or ModelCard
        Alias, full name, folder of a training run, or a card.
    weights : path, optional
        See `registry.resolve`.
    device : str
        A torch device.

    Returns
    -------
    Verification
        Its repr is a sentence. A card without hash or vector (the published models') gives ``proven == False``.

    Raises
    ------
    UnknownModelError, WeightsNotFoundError, WeightsMismatchError
        See `registry.resolve`: a file that is absent, damaged, foreign or of another hash.
    """
    ref = resolve(name, weights=weights)
    encoder = ref.load(device, check=False)
    card = ref.card
    reference = card.reference or recorded_reference(card, ref.weights_sha256)
    return Verification(
        model=card.alias,
        status=card.weights.status,
        file=ref.weights,
        sha256=ref.weights_sha256,
        hash="as stated" if card.weights.sha256 is not None and ref.weights is not None else "not stated",
        distance=reference_distance(dataclasses.replace(card, reference=reference), encoder.network, device),  # type: ignore[arg-type]
        tolerance=reference.tolerance if reference is not None else None,
        device=device,
        recorded=card.reference is None and reference is not None,
    )


def write_model(
    card: ModelCard,
    network: nn.Module,
    folder: str | Path,
    *,
    card_file: str = "card.json",
    sample: NDArray[np.float32] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ModelCard:
    """Save a network's weights beside its card, then load both again to verify the files.

    Parameters
    ----------
    card : ModelCard
        Describes the network; `weights.file`, or ``weights.safetensors`` where that is empty, is the name of the
        weights. Its hash, reference vector and, given `sample`, int8 scales are filled in here.
    network : module
        Its ``state_dict`` is saved, in float32.
    folder : path
        Made if need be.
    card_file : str
        Name of the card's file.
    sample : ndarray [B, C, H, W], optional
        Typical pixels in the card's units and the first stem's bands; int8 scales are measured on them.
    metadata : mapping, optional
        Text kept in the header of the safetensors file.

    Returns
    -------
    ModelCard
        As saved.

    Raises
    ------
    WeightsMismatchError
        If the files, loaded again, do not give the same numbers.
    """
    folder = local_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / (card.weights.file or "weights.safetensors")
    state = {name: t.detach().to("cpu", torch.float32).contiguous().clone() for name, t in network.state_dict().items()}
    file.write_bytes(_serialised(state, {"format": "pt", "model": card.name, **(metadata or {})}))
    weights = dataclasses.replace(card.weights, file=file.name, sha256=file_sha256(file))
    card = dataclasses.replace(card, weights=weights, folder=str(folder.resolve()))
    card = with_reference(card, network)
    if sample is not None:
        card = with_int8_scales(card, network, sample)
    card.save(folder / card_file)
    return resolve(folder / card_file).load("cpu").card


def _serialised(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return `state` as safetensors, equal bytes for equal networks: the library itself orders metadata at random."""
    data = save(dict(state), metadata=dict(metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def with_int8_scales(card: ModelCard, network: nn.Module, sample: NDArray[np.float32]) -> ModelCard:
    """Return the card with an int8 scale per layer, measured on `sample` [B, C, H, W] (see `int8_scale`)."""
    device = next(iter(network.parameters()), torch.zeros(0)).device
    training = network.training
    network.eval()
    layers = []
    for layer in card.layers:
        encoder = Encoder(card, network, layer=layer.name, device=str(device))  # type: ignore[arg-type]
        layers.append(dataclasses.replace(layer, int8_scale=int8_scale(encoder.encode(sample))))
    network.train(training)
    return dataclasses.replace(card, layers=tuple(layers))


def int8_scale(values: NDArray[np.float32]) -> float:
    """Return the scale at which int8 (-127..127) holds `values` with the smallest mean squared error.

    Chosen among scales that put a percentile of the absolute values (95 to 100) at 127: a few outliers may be clipped.
    """
    size = np.abs(values).ravel()
    best = (np.inf, 1.0)
    for percentile in (95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.99, 100):
        scale = float(np.percentile(size, percentile)) / 127
        if scale > 0:
            held = np.clip(np.rint(values / np.float32(scale)), -127, 127) * np.float32(scale)
            best = min(best, (float(np.mean((values - held) ** 2, dtype=np.float64)), scale))
    return float(f"{best[1]:.6g}")


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
    path = local_path(path)
    if model is not None:
        base = card_of(model) if isinstance(model, str) else model
    else:
        state = {split_key(k)[1]: t for k, t in read_state(path).items() if not k.startswith("teacher.")}
        if "conv_ms.0.weight" in state:
            base = _sized(card_of("swinb"), _swin(state), path)
        elif "patch_embed_ms.proj.weight" in state:
            base = _sized(card_of("vitb"), _vit(state, card_of("vitb")), path)
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
