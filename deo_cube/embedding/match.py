"""`ds.deo.match()`: which of a cube's variables would feed which of a model's bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from deo_cube import arguments
from deo_cube.arguments import cube_of
from deo_cube.cube.bands import BandMatch, match_bands
from deo_cube.embedding.prepare import Cube
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import card
from deo_cube.options import Default
from deo_cube.options import resolve as option

__all__ = ["match"]


def match(
    cube: Cube,
    model: str | Path | ModelCard = Default("tiny"),
    *,
    bands: Sequence[str] | Mapping[str, str] | None = None,
    missing: Literal["raise", "nearest", "mean"] = "raise",
    wavelength: bool = False,
) -> BandMatch:
    """Match a cube's bands to a model's, by name, alias, STAC common name and, if asked, wavelength.

    Needs no weights. `bands` and `missing` are as in `embed`.

    Raises
    ------
    MissingBandsError
        If a band is missing, or matched twice.
    """
    cube = cube_of(cube)
    wavelength = arguments.boolean("wavelength", wavelength)
    if bands is not None and not isinstance(bands, Mapping):
        bands = arguments.sequence("bands", bands, "bands, or a mapping of bands to variables")
    chosen = option("model", model)
    described = chosen if isinstance(chosen, ModelCard) else card(chosen)
    given = dict(bands) if isinstance(bands, Mapping) else None
    return match_bands(
        cube,
        described.bands if bands is None or given is not None else tuple(bands),
        model=described.alias,
        given=given,
        missing=missing,
        wavelength=wavelength,
        alternatives=[stem.bands for stem in described.stems],
    )
