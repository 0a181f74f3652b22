"""Load an encoder from a reference, verify it against its card, and write models with cards of their own."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from deo_cube.encoder.card import ModelCard, Reference
from deo_cube.encoder.devices import choose_device
from deo_cube.encoder.encoder import Encoder
from deo_cube.encoder.hub import recorded_reference
from deo_cube.encoder.matmul import encoder_products
from deo_cube.encoder.network_hash import HashedNetwork, content_hash, hash_network, network_hash
from deo_cube.encoder.networks.adapters import build_network, seeded_network
from deo_cube.encoder.registry import resolve
from deo_cube.encoder.weights import check_weights, file_sha256, load_weights
from deo_cube.errors import WeightsMismatchError
from deo_cube.paths import local_path

if TYPE_CHECKING:
    from deo_cube.encoder.registry import EncoderRef

__all__ = [
    "Verification",
    "check_structure",
    "int8_scale",
    "load",
    "reference_distance",
    "reference_input",
    "reference_output",
    "source_hash",
    "verify",
    "with_int8_scales",
    "with_reference",
    "write_model",
]


def load(ref: EncoderRef, device: str | None = "cpu", *, check: bool = True) -> Encoder:
    """See `EncoderRef.load`."""
    device = choose_device(device)
    card = ref.card
    if ref.weights is None:
        network = seeded_network(card, ref.factory)
        actual_hash = network_hash(network, dict(ref.sources))
        if actual_hash != ref.weights_sha256:
            raise WeightsMismatchError(
                f"the factory of {card.alias} made another network here than at the call (hash {actual_hash[:12]}, "
                f"expected {ref.weights_sha256[:12]}): fix its weights, or draw them from torch's default generator, "
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
            source = "the card states" if card.reference else "were recorded when the weights were downloaded"
            raise WeightsMismatchError(
                f"{card.alias} on {device} differs from its reference vector by {distance:.2g} (allowed: "
                f"{reference.tolerance:g}): weights, code or device give other numbers than {source}"
            )
    return encoder


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
    with torch.inference_mode(), encoder_products(device):
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
    """Return the hash of the network that a factory, or the family of a card without weights, makes."""
    # Part of the cache key, because a constant that the factory names may have changed since the last call.
    return _source_hash(card, factory, "" if factory is None else content_hash(factory))


@functools.lru_cache(maxsize=32)
def _source_hash(card: ModelCard, factory: Callable[[], Any] | None, content: str) -> HashedNetwork:
    return hash_network(seeded_network(card, factory))


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
    """Whether the card states a hash; another hash than the stated one is an error, never a Verification."""
    distance: float | None
    """Largest deviation from the reference vector, relative to its largest value; None if the card has none."""
    tolerance: float | None
    device: str
    recorded: bool = False
    """Whether the vector is not the card's but was recorded when the weights were taken from the hub."""

    @property
    def ok(self) -> bool:
        """Whether it loaded strictly and missed no reference vector."""
        return self.distance is None or (self.tolerance is not None and self.distance <= self.tolerance)

    @property
    def proven(self) -> bool:
        """Whether the file has the card's hash, and the loaded model returns the card's reference vector."""
        return self.ok and self.distance is not None and self.hash == "as stated" and not self.recorded

    def __repr__(self) -> str:
        source = Path(self.file).name if self.file else "its factory"
        said = [f"{self.model} loaded strictly from {source} on {self.device}"]
        said.append(
            f"SHA-256 {self.sha256[:12]} is the card's" if self.hash == "as stated" else
            f"its card states no hash to compare {self.sha256[:12]} with"
        )  # fmt: skip
        if self.distance is None:
            said.append("its card has no reference vector, so these weights are NOT proven")
        elif self.ok and self.recorded:
            said.append(
                f"the vector recorded with this file is met (off by {self.distance:.1e}), but its card has none, so "
                "that these are the published weights is NOT proven"
            )
        elif self.ok:
            said.append(f"the reference vector is met (off by {self.distance:.1e}, allowed {self.tolerance:.0e})")
        else:
            said.append(f"the reference vector is MISSED (off by {self.distance:.1e}, allowed {self.tolerance:.0e})")
        if self.status == "untrained":
            said.append("the weights are UNTRAINED (random)")
        verdict = "proven" if self.proven else "not proven" if self.ok else "WRONG"
        return f"<Verification: {verdict}. {'; '.join(said)}>"


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


#: Number of values stored of a reference vector.
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


def with_reference(card: ModelCard, network: nn.Module, *, stem: str | None = None, size: int = 64) -> ModelCard:
    """Return the card with the reference vector of `network`, on the CPU in eval mode.

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
