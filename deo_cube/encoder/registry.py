"""From a model's name to an encoder: the door of this room. Loads no torch before a network is needed."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deo_cube.encoder.card import ModelCard, Normalization
from deo_cube.encoder.catalog import Entry, card, find, list_models, register_encoder
from deo_cube.encoder.hub import place_in_cache, recorded_reference, remember
from deo_cube.encoder.locate import file_sha256, find_weights
from deo_cube.encoder.normalize import choose_normalization
from deo_cube.encoder.ref import EncoderRef
from deo_cube.encoder.stems import choose_stem
from deo_cube.errors import ArgumentError

if TYPE_CHECKING:
    from deo_cube.encoder.encoder import Encoder

__all__ = ["EncoderRef", "card", "list_models", "load_encoder", "register_encoder", "resolve"]


def resolve(
    model: str | Path | ModelCard | EncoderRef,
    *,
    weights: str | Path | None = None,
    bands: Sequence[str] | None = None,
    layer: str | None = None,
    normalize: str | Mapping[str, tuple[float, float]] | Normalization | None = None,
    locate: bool = True,
) -> EncoderRef:
    """Decide which encoder, with every choice made, and find its weights: what can fail, fails here.

    Parameters
    ----------
    model : str, path or ModelCard
        Alias, full name, folder of a training run, or a card. A reference is returned as it is.
    weights : path, optional
        Its weights file, or the folder that holds it; else see `locate.find_weights`.
    bands : sequence of str, optional
        Bands at hand, by name: decides between a multispectral and an RGB stem. Default: the card's first stem.
    layer : str, optional
        Layer to give out; the card's last by default.
    normalize : str or mapping, optional
        See `normalize.choose_normalization`.
    locate : bool
        False: leave the weights be, to count or describe what a model would do; the reference cannot be loaded.

    Returns
    -------
    EncoderRef

    Raises
    ------
    UnknownModelError
        No such model, layer or normalization.
    MissingBandsError
        No stem reads `bands`.
    WeightsNotFoundError, WeightsMismatchError
        See `locate.find_weights`; files without a stated hash are also held against the network's structure.
    """
    if isinstance(model, EncoderRef):
        return model
    entry = find(model)
    c = entry.card
    stem = c.stem()
    if bands is not None:
        stem = choose_stem(c, bands)[0]
    chosen_layer = c.layer(layer)
    how = choose_normalization(stem, normalize)
    path, sha256, sources = _weights(entry, weights) if locate else (None, "", ())
    return EncoderRef(c, stem, chosen_layer, how, path, sha256, entry.factory, sources)


def _weights(entry: Entry, weights: str | Path | None) -> tuple[str | None, str, tuple[Any, ...]]:
    c = entry.card
    if entry.factory is not None or (not c.weights.file and weights is None):
        if weights is not None:
            raise ArgumentError(
                f"{c.alias} is made by its own factory, which takes no weights file: leave out weights="
            )
        from deo_cube.encoder.loading import source_hash

        hashed = source_hash(c, entry.factory)
        return None, hashed.sha256, tuple(sorted(hashed.sources.items()))
    found = find_weights(c, weights)
    path = found.resolve()
    sha256 = file_sha256(path)
    if c.weights.sha256 is None:
        _check_structure(c, str(path), sha256)
        address = place_in_cache(found)
        if address is not None and c.reference is None and recorded_reference(c, sha256) is None:
            remember(c, address, path, sha256)
    return str(path), sha256, ()


@functools.lru_cache(maxsize=32)
def _check_structure(c: ModelCard, path: str, sha256: str) -> None:
    from deo_cube.encoder.loading import check_structure

    check_structure(c, path)


def load_encoder(
    name: str | Path | ModelCard, *, weights: str | Path | None = None, device: str | None = None
) -> Encoder:
    """Load a model, ready for arrays: ``.encode(array, bands=[...])`` and ``.pool(array, bands=[...])``.

    Parameters
    ----------
    name : str, path or ModelCard
        Alias, full name, folder of a training run, or a card.
    weights : path, optional
        See `resolve`.
    device : str, optional
        A torch device; default the first GPU if there is one, else the CPU.

    Returns
    -------
    Encoder

    Raises
    ------
    UnknownModelError, WeightsNotFoundError, WeightsMismatchError
        See `resolve` and `EncoderRef.load`.

    Examples
    --------
    >>> import numpy as np
    >>> from deo_cube.encoder.registry import load_encoder
    >>> encoder = load_encoder("tiny", device="cpu")
    >>> encoder.pool(np.full((2, 10, 64, 64), 1200.0)).shape[0]
    2
    """
    return resolve(name, weights=weights).load(device)
