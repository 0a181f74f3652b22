"""Names that count positions in a file ("Band1", "Band 1", "band_1", "B1 ... B4"), which say nothing about the band.

GDAL, rioxarray and many other writers number what has no name. The same texts are designations of Sentinel-2 where a
producer chose them, so a single text does not decide: the set does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deo_cube.cube.sentinel2 import names_colour

__all__ = ["counted"]

_NUMBERED = re.compile(r"(?<![a-z])(bands?|b|channel|layer)[\s_.:-]*(\d+a?)(?![a-z0-9])")


@dataclass(frozen=True)
class _Numbered:
    """A text with one number after "b" or "band"."""

    scheme: str
    """The text without its number: texts of one scheme are judged together."""
    word: bool
    """The number follows a word ("Band 2"), not the letter alone ("B2")."""
    number: str


def counted(texts: Sequence[str | None]) -> tuple[bool, ...]:
    """Tell which of the texts that name the layers of one cube only count them.

    Parameters
    ----------
    texts : sequence of str or None
        One per layer, all from the same place: the names of the variables, or their titles.

    Returns
    -------
    tuple of bool
        True for a text that is a position. A scheme in which ``8A`` occurs names bands of Sentinel-2, and so does a
        colour beside the number. Otherwise a number after a word ("Band 2", "band_2") is a position; a number after
        the letter alone is one where the set counts from 0 or 1 without a gap and without a leading zero ("B1", "B2",
        "B3").

    Examples
    --------
    >>> counted(["Band1", "Band2"]), counted(["B1", "B2", "B3"]), counted(["B2", "B3", "B4"]), counted(["B01", "B02"])
    ((True, True), (True, True, True), (False, False, False), (False, False))
    >>> counted(["band_2", "band_8A"]), counted(["Blue (band 1)", "SCL"])
    ((False, False), (False, False))
    """
    numbered = [None if text is None else _numbered(text) for text in texts]
    members: dict[str, list[_Numbered]] = {}
    for entry in numbered:
        if entry is not None:
            members.setdefault(entry.scheme, []).append(entry)
    positions = {scheme for scheme, entries in members.items() if _counts(entries)}
    return tuple(entry is not None and entry.scheme in positions for entry in numbered)


def _numbered(text: str) -> _Numbered | None:
    lower = text.strip().lower()
    found = list(_NUMBERED.finditer(lower))
    if len(found) != 1 or names_colour(lower):
        return None
    (match,) = found
    rest = lower[: match.start()] + match[1] + "#" + lower[match.end() :]
    return _Numbered(re.sub(r"[\s_.:-]+", "", rest), match[1] != "b", match[2])


def _counts(entries: Sequence[_Numbered]) -> bool:
    numbers = [entry.number for entry in entries]
    if any(number.endswith("a") for number in numbers):
        return False
    counting = sorted({int(n) for n in numbers})
    gapless = counting[0] in (0, 1) and counting == list(range(counting[0], counting[0] + len(counting)))
    padded = any(n.startswith("0") and n != "0" for n in numbers)
    return (gapless or not padded) if entries[0].word else (gapless and not padded)
