"""What a task graph carries in place of a network: which encoder, as a few hundred bytes."""

from __future__ import annotations

import functools
import hashlib
import json
import socket
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deo_cube.encoder.card import Layer, ModelCard, Normalization, Stem
from deo_cube.encoder.catalog import CARDS, bundled_cards
from deo_cube.encoder.locate import check_file, file_sha256
from deo_cube.errors import WeightsMismatchError, WeightsNotFoundError

if TYPE_CHECKING:
    from deo_cube.encoder.encoder import Encoder

__all__ = ["EncoderRef"]


@dataclass(frozen=True)
class EncoderRef:
    """Which encoder, with every choice made: card, stem, layer, statistics, and the hash of the weights.

    Frozen, picklable, and of one `fingerprint` wherever and whenever it is made from the same choices. Of a bundled
    model the pickle names the card, of any other it holds the card whole, so that a worker needs the weights file only.
    """

    card: ModelCard
    stem: Stem
    layer: Layer
    normalization: Normalization
    weights: str | None
    """Path of the weights file; None for a network that its factory makes."""
    weights_sha256: str
    """Hash of that file; of a network without one, the hash of its values and source (`network_hash`)."""
    factory: Callable[[], Any] | None = field(default=None, compare=False, repr=False)
    """Makes a registered network; None: the card's family builds it."""
    sources: tuple[tuple[str, tuple[str, tuple[str, ...]]], ...] = field(default=(), compare=False, repr=False)
    """Digests of its functions that have no source in another process (`network_hash.HashedNetwork.sources`)."""

    def load(self, device: str | None = "cpu", *, check: bool = True) -> Encoder:
        """Build the network, fill it strictly, and prove it by the card's reference vector.

        Parameters
        ----------
        device : str, optional
            A torch device; None is the first GPU if there is one, else the CPU.
        check : bool
            Compare with the card's reference vector, where it has one.

        Returns
        -------
        Encoder
            In eval mode, float32, without gradients.

        Raises
        ------
        WeightsNotFoundError
            If this process does not see the file.
        WeightsMismatchError
            If the file is another than at the call, does not fill the network, or misses the reference vector.
        """
        from deo_cube.encoder.loading import load

        return load(self, device, check=check)

    def weights_path(self) -> Path:
        """The weights file, checked to be the one that was found at the call.

        Raises
        ------
        WeightsNotFoundError, WeightsMismatchError
            See `load`.
        """
        assert self.weights is not None
        path = Path(self.weights)
        if not path.is_file():
            raise WeightsNotFoundError(
                f"the weights of {self.card.alias} were found at {path} when the call was made, but this process (on "
                f"{socket.gethostname()}) sees no such file: put them on storage that every worker sees"
            )
        check_file(self.card, path)
        if file_sha256(path) != self.weights_sha256:
            raise WeightsMismatchError(
                f"{path} has changed since the call was made: SHA-256 was {self.weights_sha256}, is {file_sha256(path)}"
            )
        return path

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides the numbers: the card's, stem, layer, statistics, and the weights' values."""
        n = self.normalization
        kept = (
            self.card.fingerprint,
            self.stem.name,
            self.layer.name,
            (n.name, n.kind, n.mean, n.std),
            self.weights_sha256,
        )
        return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:16]

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return ("deo_cube.EncoderRef", self.fingerprint)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[Any, ...]:
        bundled = bundled_cards().get(self.card.alias)
        packaged = bundled is not None and bundled == self.card
        card = self.card.alias if packaged else zlib.compress(json.dumps(self.card.to_dict()).encode())
        proof = self.card.fingerprint if packaged else self.card.folder
        beside = packaged and self.weights is not None and Path(self.weights).parent == CARDS
        weights = Path(self.weights).name if beside and self.weights is not None else self.weights
        known = self.normalization in self.stem.normalizations
        n = self.normalization
        how = n.name if known else (n.name, n.kind, n.mean, n.std)
        return (
            _restore,
            (
                *(card, proof, self.stem.name, self.layer.name, how, weights, beside, self.weights_sha256),
                *(self.factory, self.sources),
            ),
        )

    def __repr__(self) -> str:
        return (
            f"<EncoderRef {self.card.alias}: stem {self.stem.name}, layer {self.layer.name}, normalization "
            f"{self.normalization.name}, weights {self.weights_sha256[:12]}, fingerprint {self.fingerprint}>"
        )


def _restore(
    card: str | bytes,
    proof: str,
    stem: str,
    layer: str,
    how: Any,
    weights: str | None,
    beside: bool,
    sha256: str,
    factory: Callable[[], Any] | None,
    sources: tuple[tuple[str, tuple[str, tuple[str, ...]]], ...] = (),
) -> EncoderRef:
    if isinstance(card, bytes):
        found = ModelCard.from_dict(json.loads(zlib.decompress(card)), folder=proof)
    else:
        mine = bundled_cards().get(card)
        if mine is None or mine.fingerprint != proof:
            raise WeightsMismatchError(
                f"this process (on {socket.gethostname()}) has another card of {card!r} than the caller: "
                "install the same version of deo_cube on every worker"
            )
        found = mine
    entry = found.stem(stem)
    normalization = entry.normalization(how) if isinstance(how, str) else Normalization(*how)
    path = str(CARDS / weights) if beside and weights is not None else weights
    return EncoderRef(found, entry, found.layer(layer), normalization, path, sha256, factory, sources)
