"""Is this the model that its card describes? Strict load, hash, and the numbers of the reference input."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.hub import recorded_reference
from deo_cube.encoder.registry import resolve

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """What is known of a model on this machine. `proven` needs the card's own hash and reference vector, both met."""

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
        """Nothing speaks against it: loaded strictly, and no reference vector missed."""
        return self.distance is None or (self.tolerance is not None and self.distance <= self.tolerance)

    @property
    def proven(self) -> bool:
        """The file has the card's hash, and the loaded model gives the card's reference vector."""
        return self.ok and self.distance is not None and self.hash == "as stated" and not self.recorded

    def __repr__(self) -> str:
        source = Path(self.file).name if self.file else "its factory"
        said = [f"{self.model} loaded strictly from {source} on {self.device}"]
        said.append(
            f"SHA-256 {self.sha256[:12]} is the card's" if self.hash == "as stated" else
            f"its card states no hash to compare {self.sha256[:12]} with"
        )  # fmt: skip
        if self.distance is None:
            said.append("its card has no reference vector, so that these are the weights meant is NOT proven")
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
    """Load a model strictly and hold it against its card.

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
    from deo_cube.encoder.loading import reference_distance

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
