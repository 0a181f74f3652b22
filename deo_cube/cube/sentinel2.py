"""The bands of Sentinel-2's MSI, and how names, titles and labels are read as one of them.

GDAL, rioxarray and many other writers number what has no name ("Band1", "band_1", "B1 ... B4"). The same texts are
designations of Sentinel-2 where a producer chose them, so a single text does not decide: `counted` judges the set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = [
    "SENTINEL2",
    "Band",
    "band_of_name",
    "bands_of_common_name",
    "is_designation",
    "level_of",
    "names_colour",
    "other_sensor",
    "squeezed",
    "counted",
]


@dataclass(frozen=True)
class Band:
    """One spectral band of Sentinel-2's MSI: wavelengths of Sentinel-2A, nm; GSD, metres."""

    name: str
    common_name: str
    wavelength: float
    fwhm: float
    gsd: int
    aliases: tuple[str, ...] = ()
    """Other names of the band, in lower case and without separators (``red_edge_1`` is looked up as ``rededge1``)."""


def _table(*bands: Band) -> Mapping[str, Band]:
    return MappingProxyType({b.name: b for b in bands})


# Centres and widths: Sentinel-2A, Sentinel-2 User Handbook / MSI spectral responses (ESA). Common names: STAC eo
# extension v2 (rededge071 ...), with the older rededge, nir, nir08 and nir09 among the aliases or resolved below.
SENTINEL2: Mapping[str, Band] = _table(
    Band("B01", "coastal", 442.7, 21, 60, ("coastal", "coastalaerosol", "ultrablue")),
    Band("B02", "blue", 492.4, 66, 10, ("blue",)),
    Band("B03", "green", 559.8, 36, 10, ("green",)),
    Band("B04", "red", 664.6, 31, 10, ("red",)),
    Band("B05", "rededge071", 704.1, 15, 20, ("rededge1", "rededge071", "re1")),
    Band("B06", "rededge075", 740.5, 15, 20, ("rededge2", "rededge075", "re2")),
    Band("B07", "rededge078", 782.8, 20, 20, ("rededge3", "rededge078", "re3")),
    Band("B08", "nir", 832.8, 106, 10, ("nir", "nir1", "nirbroad", "broadnir")),
    Band("B8A", "nir08", 864.7, 21, 20, ("nir08", "nir2", "nirnarrow", "narrownir", "rededge4")),
    Band("B09", "nir09", 945.1, 20, 60, ("nir09",)),
    Band("B10", "cirrus", 1373.5, 31, 60, ("cirrus",)),
    Band("B11", "swir16", 1613.7, 91, 20, ("swir16", "swir1")),
    Band("B12", "swir22", 2202.4, 175, 20, ("swir22", "swir2")),
)

_ALIASES = {alias: b.name for b in SENTINEL2.values() for alias in b.aliases}

# One common name may mean several bands: catalogues before eo v2 call B05, B06, B07 and even B8A "rededge".
_COMMON_NAMES: dict[str, tuple[str, ...]] = {b.common_name: (b.name,) for b in SENTINEL2.values()}
_COMMON_NAMES |= {"rededge": ("B05", "B06", "B07", "B8A"), "nir": ("B08", "B8A")}

_BARE = re.compile(r"b(0?[1-9]|1[0-2]|0?8a)")
_DESIGNATION = re.compile(r"(?:b|band)(0?[1-9]|1[0-2]|0?8a)")
_NUMBER = re.compile(r"0?[1-9]|1[0-2]|0?8a")
# Words that may appear beside a designation without changing what it means. Landsat's SR_ is not among them.
_DECORATION = re.compile(
    r"s2[abc]?|sentinel2?[abc]?|2[abc]?|msi|msil[12][ac]|l1c|l2a|boa|toa|surface|reflectance|(?:10|20|60)m|"
    r"t\d\d[a-z]{3}|\d{8}t\d{6}"
)
_WAVELENGTH = re.compile(r"(.*?),? central wavelength (\d+(?:\.\d+)?) ?nm")
_COLOUR = re.compile(
    r"blue|green|red|edge|rededge|vegetation|nir|near|infrared|narrow|broad|swir|shortwave|coastal|aerosol|water|vapou?r|cirrus"
)
# Bands that a colour beside a designation leaves open: "Red (band 1)" is another sensor's. The first that fits counts.
_COLOUR_BANDS = (
    ("rededge", ("B05", "B06", "B07", "B8A")),
    ("nearinfrared", ("B08", "B8A")),
    ("shortwave", ("B10", "B11", "B12")),
    ("nir", ("B08", "B8A", "B09")),
    ("swir", ("B10", "B11", "B12")),
    ("coastal", ("B01",)),
    ("blue", ("B02",)),
    ("green", ("B03",)),
    ("red", ("B04",)),
    ("vapo", ("B09",)),
    ("cirrus", ("B10",)),
)


def squeezed(name: str) -> str:
    """Return `name` in lower case, without blanks, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "", name.lower())


def bands_of_common_name(name: str) -> tuple[str, ...]:
    """Return the bands that a STAC common name may mean; none for an unknown name."""
    return _COMMON_NAMES.get(name.lower(), ())


def band_of_name(name: str) -> tuple[str, Literal["name", "alias"]] | None:
    """Read a Sentinel-2 band out of a variable's name, label, title or long name.

    Parameters
    ----------
    name : str
        Such as ``B02``, ``b2``, ``band_2``, ``B02_10m``, ``S2-L2A-B02``, ``sentinel2 B8A``, ``Blue (band 2) - 10m``,
        ``rededge1``.

    Returns
    -------
    (band, how) or None
        `how` is ``name`` for a bare designation and ``alias`` for anything else. None where the text names no band,
        more than one, or holds an unknown word: ``A_B04``, ``SR_B4`` and ``4`` are not names of B04.

    Examples
    --------
    >>> band_of_name("b8a"), band_of_name("B08"), band_of_name("S2-L2A-B11"), band_of_name("11")
    (('B8A', 'name'), ('B08', 'name'), ('B11', 'alias'), None)
    """
    text = name.strip().lower()
    if stated := _WAVELENGTH.fullmatch(text):  # GDAL's driver of Sentinel-2 products
        named = band_of_name(stated[1])
        near = named is not None and abs(SENTINEL2[named[0]].wavelength - float(stated[2])) <= 20
        return named if near else None
    if bare := _BARE.fullmatch(text):
        return _designation(bare[1]), "name"
    if alias := _ALIASES.get(squeezed(text)):
        return alias, "alias"
    tokens = re.findall(r"[a-z0-9]+", text)
    designations: list[str] = []
    colours: list[str] = []
    others: list[str] = []
    while tokens:
        token = tokens.pop(0)
        if match := _DESIGNATION.fullmatch(token):
            designations.append(_designation(match[1]))
        elif token in ("b", "band") and tokens and _NUMBER.fullmatch(tokens[0]):
            designations.append(_designation(tokens.pop(0)))
        elif _COLOUR.fullmatch(token):
            colours.append(token)
        elif not _DECORATION.fullmatch(token):
            others.append(token)
    # A number may follow a colour ("NIR 2"), never a bare designation ("B02_1").
    if len(designations) != 1 or not all(colours and re.fullmatch(r"\d|\d\.\d|um|m", t) for t in others):
        return None
    colour = "".join(colours)
    open_to = next((bands for word, bands in _COLOUR_BANDS if word in colour), tuple(SENTINEL2))
    return (designations[0], "alias") if designations[0] in open_to else None


def names_colour(text: str) -> bool:
    """Return whether a text holds a word for a spectral range: ``Blue (band 2)``, ``NIR 2``, not ``B02``."""
    return any(_COLOUR.fullmatch(token) for token in re.findall(r"[a-z]+", text.lower()))


def is_designation(text: str) -> bool:
    """Return whether a text names a band by its number alone, as other sensors do: ``B05``, not ``red edge 1``."""
    return band_of_name(text) is not None and squeezed(text) not in _ALIASES and not names_colour(text)


_OTHER_SENSORS = re.compile(
    r"(?<![a-z])(?:landsat|l[ceot]0[4-9]_|oli(?:[_ -]?tirs)?(?![a-z])|etm\+?(?![a-z])|hls2?[._-]?l30|modis|viirs|"
    r"planet(?!ary)|psscene|worldview|pleiades|spot[ -]?\d|rapideye|aster(?![a-z])|"
    r"sentinel-?3|s3[abc]?_ol|prisma(?![a-z])|enmap|gaofen|naip)"
)


def other_sensor(text: object) -> str | None:
    """Return the word in a platform, sensor or product's name that means another sensor than Sentinel-2's, if any.

    >>> other_sensor("HLS.L30.T32TMT.2021152T101659.v2.0"), other_sensor("landsat-8"), other_sensor("sentinel-2a")
    ('hls.l30', 'landsat', None)
    """
    match = _OTHER_SENSORS.search(str(text).lower())
    return match[0].rstrip("_") if match else None


def level_of(text: object) -> str | None:
    """Return ``L1C`` (top of atmosphere) or ``L2A`` (surface), from a product's type, level or name, or None.

    >>> level_of("S2MSI1C"), level_of("S2A_MSIL2A_20230701T103631_N0509_R008_T31UFU"), level_of("L1C"), level_of("L2")
    ('L1C', 'L2A', 'L1C', None)
    """
    levels = set(re.findall(r"(?:^L(?:evel-?)?|MSIL?|_L)(1C|2A)(?![0-9A-Za-z])", str(text)))
    return f"L{levels.pop()}" if len(levels) == 1 else None


def _designation(number: str) -> str:
    number = number.lstrip("0").upper()
    return f"B{number}" if number == "8A" else f"B{int(number):02d}"


# --- names that count positions ---


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
    """Return which of the texts that name the layers of one cube only count them.

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
    matches = list(_NUMBERED.finditer(lower))
    if len(matches) != 1 or names_colour(lower):
        return None
    (match,) = matches
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
