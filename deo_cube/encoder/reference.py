"""Reference vectors: what a network must return for a fixed input, so that weights, code and device are proven."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deo_cube.encoder.card import ModelCard, Reference
from deo_cube.encoder.torch_settings import encoder_products, plain_torch

__all__ = ["reference_distance", "reference_input", "reference_output", "with_reference"]

#: Number of values stored of a reference vector.
REFERENCE_VALUES = 16
#: Side of the reference input, pixels.
REFERENCE_SIZE = 64


def reference_input(channels: int, size: int, batch: int = 1) -> Tensor:
    """Return the fixed input [batch, channels, size, size] of `card.Reference`: slow waves, one per channel."""
    b, c, i, j = np.ogrid[0:batch, 0:channels, 0:size, 0:size]
    x = np.sin(0.013 * (c + 1) * i + 0.7 * b) * np.cos(0.017 * (c + 2) * j)
    return torch.from_numpy(x.astype(np.float32))


def reference_output(card: ModelCard, network: nn.Module, *, stem: str, size: int, device: str = "cpu") -> Tensor:
    """Return the mean [D] over the map of the card's default layer for the reference input, float32."""
    layer = card.layer().name
    x = reference_input(len(card.stem(stem).bands), size).to(device)
    run: Any = network
    with plain_torch(device), torch.inference_mode(), encoder_products(device):
        maps: Tensor = run.forward_features(x, stem, (layer,))[layer]
    return maps[0].mean(dim=(1, 2)).cpu()


def reference_distance(card: ModelCard, network: nn.Module, device: str = "cpu") -> float | None:
    """Return the largest deviation from the reference vector, relative to its largest value; None without one."""
    reference = card.reference
    if reference is None:
        return None
    output = reference_output(card, network, stem=reference.stem, size=reference.size, device=device)
    expected = torch.tensor(reference.vector, dtype=torch.float32)
    distance = (output[: len(expected)] - expected).abs().max() / expected.abs().max()
    return float(distance)


def with_reference(card: ModelCard, network: nn.Module) -> ModelCard:
    """Return the card with the reference vector of `network`, on the CPU in eval mode.

    Parameters
    ----------
    card : ModelCard
        Names stem and default layer.
    network : module
        Put into eval mode, and back. Its first stem reads the reference input.
    """
    training, device = network.training, next(iter(network.parameters()), torch.zeros(0)).device
    name = card.stem().name
    vector = reference_output(card, network.eval(), stem=name, size=REFERENCE_SIZE, device=str(device))
    network.train(training)
    values = tuple(float(f"{v:.7g}") for v in vector[:REFERENCE_VALUES].tolist())
    return dataclasses.replace(card, reference=Reference(stem=name, size=REFERENCE_SIZE, vector=values))
