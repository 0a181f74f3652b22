"""Write a network and its card, so that `model="folder"` works at once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from deo_cube.encoder.card import ModelCard, Reference
from deo_cube.encoder.encoder import Encoder
from deo_cube.encoder.loading import reference_output
from deo_cube.encoder.locate import file_sha256
from deo_cube.encoder.registry import resolve
from deo_cube.paths import local_path

__all__ = ["int8_scale", "with_int8_scales", "with_reference", "write_model"]

#: Values kept of a reference vector.
REFERENCE_VALUES = 16


def write_model(
    card: ModelCard,
    network: nn.Module,
    folder: str | Path,
    *,
    card_file: str = "card.json",
    sample: NDArray[np.float32] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ModelCard:
    """Save a network's weights beside its card, then load both anew to prove the files.

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
        Typical pixels in the card's units and first stem's bands, to measure int8 scales on.
    metadata : mapping, optional
        Text kept in the header of the safetensors file.

    Returns
    -------
    ModelCard
        As saved.

    Raises
    ------
    WeightsMismatchError
        If the files, loaded anew, do not give the same numbers.
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
    """`state` as safetensors, of which equal networks give equal bytes: the library orders metadata at random."""
    data = save(dict(state), metadata=dict(metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def with_reference(card: ModelCard, network: nn.Module, *, stem: str | None = None, size: int = 64) -> ModelCard:
    """The card with the reference vector that `network` gives, on the CPU in eval mode.

    Parameters
    ----------
    card : ModelCard
        Names stem and default layer.
    network : module
        Put into eval mode, and back.
    stem : str, optional
        Which stem reads the reference input; the first by default.
    size : int
        Side of the reference input, pixels.
    """
    training, device = network.training, next(iter(network.parameters()), torch.zeros(0)).device
    name = card.stem(stem).name
    vector = reference_output(card, network.eval(), stem=name, size=size, device=str(device))
    network.train(training)
    values = tuple(float(f"{v:.7g}") for v in vector[:REFERENCE_VALUES].tolist())
    return dataclasses.replace(card, reference=Reference(stem=name, size=size, vector=values))


def with_int8_scales(card: ModelCard, network: nn.Module, sample: NDArray[np.float32]) -> ModelCard:
    """The card with an int8 scale for each layer, measured on `sample` [B, C, H, W] (see `int8_scale`)."""
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
    """The scale at which int8 (-127..127) holds `values` with the smallest mean squared error.

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
