"""From a reference to a running encoder, proven by the card's reference vector. Torch begins here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.devices import choose_device
from deo_cube.encoder.encoder import Encoder
from deo_cube.encoder.families import build_network, seeded_network
from deo_cube.encoder.hub import recorded_reference
from deo_cube.encoder.matmul import prefer_onednn
from deo_cube.encoder.network_hash import HashedNetwork, content_hash, hash_network, network_hash
from deo_cube.encoder.weights import check_weights, load_weights
from deo_cube.errors import WeightsMismatchError

if TYPE_CHECKING:
    from deo_cube.encoder.ref import EncoderRef

__all__ = [
    "check_structure",
    "load",
    "reference_distance",
    "reference_input",
    "reference_output",
    "source_hash",
]


def load(ref: EncoderRef, device: str | None = "cpu", *, check: bool = True) -> Encoder:
    """See `EncoderRef.load`."""
    device = choose_device(device)
    if device == "cpu":
        prefer_onednn()
    card = ref.card
    if ref.weights is None:
        network = seeded_network(card, ref.factory)
        found = network_hash(network, dict(ref.sources))
        if found != ref.weights_sha256:
            raise WeightsMismatchError(
                f"the factory of {card.alias} made another network here than at the call (hash {found[:12]}, "
                f"then {ref.weights_sha256[:12]}): fix its weights, or draw them from torch's default generator, "
                "which is seeded before a factory runs"
            )
    else:
        path = ref.weights_path()
        network = build_network(card)
        load_weights(network, path, prefixes=card.weights.key_prefixes)
    network.eval().requires_grad_(False).to(device)
    encoder = Encoder(
        card,
        network,  # type: ignore[arg-type]
        stem=ref.stem.name,
        layer=ref.layer.name,
        normalization=ref.normalization,
        device=device,
    )
    reference = card.reference or recorded_reference(card, ref.weights_sha256)
    if check and reference is not None:
        distance = reference_distance(dataclasses.replace(card, reference=reference), network, device)
        if distance is not None and not distance <= reference.tolerance:
            source = "the card promises" if card.reference else "were recorded when the weights were taken from the hub"
            raise WeightsMismatchError(
                f"{card.alias} on {device} misses its reference vector by {distance:.2g} (allowed: "
                f"{reference.tolerance:g}): weights, code or device give other numbers than those that {source}"
            )
    return encoder


def reference_input(channels: int, size: int, batch: int = 1) -> Tensor:
    """The fixed input [batch, channels, size, size] of `card.Reference`: slow waves, different in every channel."""
    b, c, i, j = np.ogrid[0:batch, 0:channels, 0:size, 0:size]
    x = np.sin(0.013 * (c + 1) * i + 0.7 * b) * np.cos(0.017 * (c + 2) * j)
    return torch.from_numpy(x.astype(np.float32))


def reference_output(card: ModelCard, network: nn.Module, *, stem: str, size: int, device: str = "cpu") -> Tensor:
    """What `network` gives for the reference input: the mean [D] over the map of the card's default layer, float32."""
    layer = card.layer().name
    x = reference_input(len(card.stem(stem).bands), size).to(device)
    run: Any = network
    with torch.inference_mode(), _full_precision(device):
        maps: Tensor = run.forward_features(x, stem, (layer,))[layer]
    return maps[0].mean(dim=(1, 2)).cpu()


@contextlib.contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """Whole float32 on a GPU, whatever is set for speed: TF32 (torch's default in convolutions) is off by 1e-3."""
    if not device.startswith("cuda"):
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def reference_distance(card: ModelCard, network: nn.Module, device: str = "cpu") -> float | None:
    """Largest deviation from the card's reference vector, relative to its largest value; None if it has none."""
    reference = card.reference
    if reference is None:
        return None
    found = reference_output(card, network, stem=reference.stem, size=reference.size, device=device)
    wanted = torch.tensor(reference.vector, dtype=torch.float32)
    distance = (found[: len(wanted)] - wanted).abs().max() / wanted.abs().max()
    return float(distance)


def check_structure(card: ModelCard, path: str) -> None:
    """Refuse a weights file that would not fill the card's network, without building it in memory.

    Raises
    ------
    WeightsMismatchError
        See `weights.check_weights`.
    """
    with torch.device("meta"):
        network = build_network(card)
    check_weights(network, path, prefixes=card.weights.key_prefixes)


def source_hash(card: ModelCard, factory: Callable[[], Any] | None) -> HashedNetwork:
    """Hash of the network that a factory, or the family of a card without weights, makes."""
    # A constant that the factory's code names may have another value than at the last call.
    return _source_hash(card, factory, "" if factory is None else content_hash(factory))


@functools.lru_cache(maxsize=32)
def _source_hash(card: ModelCard, factory: Callable[[], Any] | None, content: str) -> HashedNetwork:
    return hash_network(seeded_network(card, factory))
