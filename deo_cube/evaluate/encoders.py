"""Models as the protocols see them: ``encode(array of DN, names of the bands)`` with a name, a tile and a halo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.encoder.card import ModelCard
from deo_cube.errors import ArgumentTypeError

__all__ = ["ModelEncode", "as_encode", "untrained"]

Array = NDArray[Any]


@dataclass(frozen=True)
class ModelEncode:
    """A loaded `Encoder` of this package: bands are chosen by name, tile and halo are the card's."""

    encoder: Any = field(repr=False)
    name: str

    @property
    def card(self) -> ModelCard:
        """Of the model."""
        card: ModelCard = self.encoder.card
        return card

    @property
    def tile(self) -> int:
        """Native input, pixels."""
        return self.card.tile

    @property
    def halo(self) -> int:
        """Context on each side, a multiple of the stride, pixels."""
        stride = int(self.encoder.layer.stride)
        return -(-self.card.halo // stride) * stride

    def __call__(self, array: Array, bands: Sequence[str]) -> Array:
        """(B, C, H, W) DN -> (B, D, h, w)."""
        return np.asarray(self.encoder.encode(np.asarray(array, "float32"), bands=list(bands), units="dn"))

    def pyramid(self, array: Array, bands: Sequence[str]) -> list[Array]:
        """(B, C, H, W) DN -> a map (B, D, h, w) of each layer on offer: what UPerNet decodes."""
        import torch

        from deo_cube.encoder.normalize import normalize, to_units
        from deo_cube.encoder.stems import choose_stem

        e = self.encoder
        stem, order = choose_stem(self.card, list(bands))
        x = torch.from_numpy(np.asarray(array, "float32")).to(e.device)
        x = to_units(x[:, order], "dn", self.card.units)
        how = e.normalization if stem == e.stem else stem.normalizations[0]
        with torch.inference_mode():
            maps = e.network.forward_features(normalize(x, stem, how), stem.name, self.card.layer_names)
        return [maps[n].cpu().numpy() for n in self.card.layer_names]

    def pool(self, array: Array, bands: Sequence[str]) -> Array:
        """(B, C, H, W) DN -> (B, D): the model's own vector of a chip."""
        return np.asarray(self.encoder.pool(np.asarray(array, "float32"), bands=list(bands), units="dn"))


def as_encode(model: Any, *, device: str | None = None) -> Any:
    """Anything that can be scored: a model's name, card or folder, a loaded encoder, or a function as it is."""
    if isinstance(model, str | Path | ModelCard):
        from deo_cube.encoder.registry import load_encoder

        model = load_encoder(model, device=device)
    if hasattr(model, "encode") and hasattr(model, "card"):
        return ModelEncode(model, model.card.alias)
    if not callable(model):
        raise ArgumentTypeError(
            "a model to score is a name, a card, a loaded encoder, or a function (array, bands) -> features; got "
            f"{type(model).__name__}"
        )
    return model


def untrained(card: ModelCard, *, device: str = "cpu") -> ModelEncode:
    """The network of a card with the random weights of its initialisation: what its shape gives without training."""
    from deo_cube.encoder.encoder import Encoder
    from deo_cube.encoder.families import seeded_network

    network: Any = seeded_network(card, None).to(device).eval()
    return ModelEncode(Encoder(card, network, device=device), f"{card.alias}, untrained")
