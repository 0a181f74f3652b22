"""Which stem of a model reads the bands at hand. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from deo_cube.cube.sentinel2 import band_of_name
from deo_cube.encoder.card import ModelCard, Stem
from deo_cube.errors import MissingBandsError

__all__ = ["choose_stem"]


def choose_stem(card: ModelCard, bands: Sequence[str]) -> tuple[Stem, list[int]]:
    """The stem that can read `bands`, and where each of its bands is among them.

    The card's first stem is taken if all its bands are there (others are left out). A further one is taken only if
    its bands are exactly those given: leaving measured bands unread must be the caller's decision.

    Parameters
    ----------
    card : ModelCard
        Whose stems.
    bands : sequence of str
        Names in any spelling that `cube.sentinel2.band_of_name` reads: ``B04``, ``b4``, ``red``.

    Raises
    ------
    MissingBandsError
        If no stem can, or a band is named twice.
    """
    if isinstance(bands, str):
        raise MissingBandsError(f"bands is a list of names, one a channel; got {bands!r}")
    names = [_canonical(b) for b in bands]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise MissingBandsError(f"bands names {twice} more than once: {list(bands)}")
    for i, stem in enumerate(card.stems):
        if set(stem.bands) <= set(names) if i == 0 else set(stem.bands) == set(names):
            return stem, [names.index(b) for b in stem.bands]
    reasons = []
    for stem in card.stems:
        missing = [b for b in stem.bands if b not in names]
        more = [b for b in names if b not in stem.bands]
        reasons.append(
            f"stem {stem.name!r} reads {list(stem.bands)}: "
            + (f"missing {missing}" if missing else f"{more} would go unread, pass only its own bands")
        )
    raise MissingBandsError(f"{card.alias} cannot read the bands {list(bands)}.\n  " + "\n  ".join(reasons))


def _canonical(band: str) -> str:
    # What is no name of a Sentinel-2 band stays as it is: a card of one's own may name others.
    found = band_of_name(band)
    return band if found is None else found[0]
