"""Match the variables of a cube to the bands of a model, by name and metadata, never by position.

Evidence about one variable, strongest first: the argument `bands=` of the caller; a Sentinel-2 designation as its name
(``B02``, ``b2``); a decorated designation or a word for it (``S2-L2A-B02``, ``B02_10m``, ``blue``, ``rededge1``), also
as `long_name` or `title`; the STAC `common_name`; and, only where the caller opts in, the centre wavelength.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from deo_cube.cube.georeference import dims
from deo_cube.cube.sentinel2 import (
    SENTINEL2,
    band_of_name,
    bands_of_common_name,
    counted,
    is_designation,
    other_sensor,
    squeezed,
)
from deo_cube.errors import ArgumentError, MissingBandsError
from deo_cube.notebook import facts_html

__all__ = ["FILL_WITH_MEAN", "LEAVE_OUT", "NEAREST_NM", "BandMatch", "How", "BandLayer", "layers_of", "match_bands"]

# --- layers of a cube ---


WAVELENGTH_NM = 15.0
"""Largest distance between a stated centre and the band's where wavelengths are matched on request. The units of the
mission and the catalogues differ by up to 13 nm."""

CONTRADICTION_NM = 60.0
"""If a stated centre is farther than this from the band of the name, the name is another sensor's."""

_TITLES = ("long_name", "title", "description", "eo:name", "band_name")
_SENSOR_KEYS = frozenset(
    "platform platforms platform_name constellation instruments instrument sensor sensors satellite mission "
    "spacecraft spacecraft_id spacecraft_name collection id item_ids".split()
)


@dataclass(frozen=True)
class BandLayer:
    """One variable or label, with all its names and metadata."""

    label: str
    index: int | None
    """Position along the band dimension; None for a variable of a Dataset."""
    names: tuple[str, ...]
    """Its name, then its titles; without those that only count positions or follow the numbers of another sensor."""
    common_name: str | None
    wavelength: float | None
    """nm"""
    positions: tuple[str, ...] = ()
    """Names and titles that only count positions."""
    foreign: str | None = None
    """The other sensor whose numbers its designation follows, where metadata name one."""


@dataclass(frozen=True)
class _LayerTexts:
    layer: BandLayer
    texts: tuple[str | None, ...]
    """Its name and titles, each from one place; None where that place is empty."""


def layers_of(cube: xr.Dataset | xr.DataArray) -> tuple[str | None, list[BandLayer]]:
    """Return the name of the band dimension (None for a Dataset) and the layers that may be bands.

    Raises
    ------
    MissingBandsError
        If the cube has no dimension or variables that could be bands.
    """
    d = dims(cube)
    if isinstance(cube, xr.DataArray):
        if d.band is None:
            raise MissingBandsError(
                f"a DataArray needs a band dimension (band, bands or channel); found {tuple(map(str, cube.dims))}. "
                "Name its bands: cube.expand_dims(band=['B02']), or give a Dataset with one variable per band"
            )
        return d.band, _named_layers(_along(cube, d.band), cube)
    keys = [n for n, v in cube.data_vars.items() if {d.y, d.x} <= set(v.dims)]
    if odd := [n for n in keys if not isinstance(n, str)]:  # as of to_dataset("band") on a file's numbered bands
        first = ", ".join(f'{n!r}: "B.."' for n in odd[:2])
        raise MissingBandsError(
            f"names of variables must be text; found {', '.join(map(repr, odd))}. Look up the order of the bands where "
            f"the file comes from, and name them: ds.rename({{{first}{', ...' if len(odd) > 2 else ''}}})"
        )
    names = [str(n) for n in keys]
    if d.band is not None:
        holder = next(n for n in names if d.band in cube[n].dims)
        if cube.sizes[d.band] == 1 and len(names) > 1:  # as of files opened one by one with rioxarray
            raise MissingBandsError(
                f"{holder!r} and others have a dimension {d.band!r} of length 1 and a variable per band: drop it, "
                f"cube.squeeze({d.band!r}, drop=True)"
            )
        raise MissingBandsError(
            f"the Dataset keeps its bands along the dimension {d.band!r} of {holder!r}: "
            f"pass that variable, ds[{holder!r}]"
        )
    return None, _named_layers([_of_variable(label, cube[label].attrs) for label in names], cube)


def _of_variable(label: str, attrs: Mapping[Any, Any]) -> _LayerTexts:
    titles = [attrs.get(k) for k in _TITLES]
    common = attrs.get("common_name", attrs.get("eo:common_name"))
    return _entry(label, None, label, titles, common, _wavelength_of(attrs))


def _along(cube: xr.DataArray, dim: str) -> list[_LayerTexts]:
    n = cube.sizes[dim]
    labels: list[Hashable] = list(cube.coords[dim].values.tolist()) if dim in cube.coords else list(range(n))
    labels = [la.decode(errors="replace") if isinstance(la, bytes) else la for la in labels]
    descriptions = cube.attrs.get("long_name", ())
    descriptions = (descriptions,) if isinstance(descriptions, str) and n == 1 else descriptions
    if isinstance(descriptions, str) or len(descriptions) != n:
        descriptions = (None,) * n

    def coordinate(*keys: str) -> list[Any]:
        for key in keys:
            if key in cube.coords and cube.coords[key].dims == (dim,):
                return list(cube.coords[key].values.tolist())
        return [None] * n

    titles, commons = coordinate("title", "band_name", "description"), coordinate("common_name", "eo:common_name")
    waves = coordinate("center_wavelength", "eo:center_wavelength", "wavelength", "central_wavelength")
    return [
        _entry(
            str(label),
            i,
            label if isinstance(label, str) else None,
            [descriptions[i], titles[i]],
            commons[i],
            _nm(waves[i]),
        )
        for i, label in enumerate(labels)
    ]


def _entry(
    label: str, index: int | None, name: str | None, titles: Sequence[Any], common: Any, wavelength: float | None
) -> _LayerTexts:
    texts = (name, *(t if isinstance(t, str) and t else None for t in titles))
    return _LayerTexts(
        BandLayer(label, index, (), common.lower() if isinstance(common, str) else None, wavelength), texts
    )


def _named_layers(entries: Sequence[_LayerTexts], cube: xr.Dataset | xr.DataArray) -> list[BandLayer]:
    """Drop the names of each layer that only count positions or follow the numbers of another sensor."""
    places = list(zip(*(s.texts for s in entries), strict=True))
    positional = list(zip(*(counted(place) for place in places), strict=True)) if entries else []
    sensor = _other_sensor(cube)
    layers = []
    for entry, flags in zip(entries, positional, strict=True):
        layer = entry.layer
        texts = [(t, flag) for t, flag in zip(entry.texts, flags, strict=True) if t is not None]
        names = [t for t, flag in texts if not flag or _at_wavelength(t, layer.wavelength)]
        foreign = sensor if any(is_designation(t) for t in names) else None
        if foreign is not None:
            names = [t for t in names if not is_designation(t)]
        counts = tuple(t for t, flag in texts if flag and t not in names)
        layers.append(replace(layer, names=tuple(names), positions=counts, foreign=foreign))
    return layers


def _at_wavelength(text: str, wavelength: float | None) -> bool:
    """Return whether the stated centre confirms the band that a text names."""
    named = band_of_name(text)
    return (
        named is not None
        and wavelength is not None
        and abs(SENTINEL2[named[0]].wavelength - wavelength) <= (WAVELENGTH_NM)
    )


def _other_sensor(cube: xr.Dataset | xr.DataArray) -> str | None:
    """Return another sensor that attributes or coordinates name as the source of the cube, if any."""
    values: list[Any] = [v for k, v in cube.attrs.items() if str(k).lower().split(":")[-1] in _SENSOR_KEYS]
    for key, coord in cube.coords.items():
        if str(key).lower().split(":")[-1] in _SENSOR_KEYS and coord.ndim <= 1:
            values += np.ravel(coord.values).tolist()
    return next((word for v in values if (word := other_sensor(v)) is not None), None)


def _wavelength_of(attrs: Mapping[Any, Any]) -> float | None:
    for key in ("center_wavelength", "eo:center_wavelength", "wavelength", "central_wavelength", "wavelength_nm"):
        if key in attrs:
            return _nm(attrs[key])
    return None


def _nm(value: Any) -> float | None:
    """Convert a stated wavelength to nanometres; catalogues give micrometres."""
    if isinstance(value, str):
        parsed = re.match(r"\s*([0-9.]+)", value)
        value = parsed[1] if parsed else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if not np.isfinite(number) or number <= 0:
        return None
    return number * 1000 if number < 10 else number


# --- matching ---


How = Literal["name", "alias", "common_name", "wavelength", "given", "nearest", "mean"]
Missing = Literal["raise", "nearest", "mean"]

NEAREST_NM = 35.0
"""``missing="nearest"`` takes a band whose centre is at most this far off. Of the 10 and 20 m bands only B08 and B8A
are so close (32 nm); the next pair, B05 and B06, is 36 nm apart on the slope of the red edge, where the two differ."""


@dataclass(frozen=True)
class BandMatch:
    """The variable (or label along the band dimension) of each band, and how it was found."""

    model: str
    bands: tuple[str, ...]
    """In model order."""
    variables: tuple[str | None, ...]
    """Variable of the Dataset, or label along `band_dim`; None for a band that is filled with the training mean."""
    how: tuple[How, ...]
    band_dim: str | None = None
    """None for a Dataset with one variable per band."""
    indices: tuple[int | None, ...] = ()
    """Positions along `band_dim`; empty for a Dataset."""
    scl: str | None = None
    """Variable or label of the scene classification."""
    scl_index: int | None = None

    def __post_init__(self) -> None:
        n = len(self.bands)
        if n == 0 or len(self.variables) != n or len(self.how) != n or len(self.indices) not in (0, n):
            raise ArgumentError(
                f"bands, variables, how and indices must be of one length, got {n}, {len(self.variables)}, "
                f"{len(self.how)} and {len(self.indices)}"
            )
        for band, variable, how in zip(self.bands, self.variables, self.how, strict=True):
            if (variable is None) != (how == "mean"):
                raise ArgumentError(f"band {band}: variable {variable!r} cannot be matched by {how!r}")

    def to_attrs(self) -> dict[str, Any]:
        """Return the match as JSON values, for the attributes of a result."""
        matched = zip(self.bands, self.variables, self.how, strict=True)
        return {
            "model": self.model,
            "bands": {b: {"variable": v, "how": h} for b, v, h in matched},
            "band_dim": self.band_dim,
            "scl": self.scl,
        }

    def stack(self, cube: xr.Dataset | xr.DataArray) -> xr.DataArray:
        """Return the matched bands of a cube, none of which is filled, along the dimension `band`."""
        if isinstance(cube, xr.Dataset):
            return cube[list(self.variables)].to_dataarray("band")
        return cube.isel({self.band_dim: list(self.indices)}).rename({self.band_dim: "band"})

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ("deo_cube.BandMatch", self.bands, self.variables, self.how, self.band_dim, self.indices, self.scl)

    def __repr__(self) -> str:
        parts = []
        for band, variable, how in zip(self.bands, self.variables, self.how, strict=True):
            if variable is None:
                parts.append(f"{band} is missing and filled with the training mean")
            else:
                parts.append(band if how == "name" and variable == band else f"{band} from {variable!r} ({how})")
        scl = f"clouds from {self.scl!r}" if self.scl else "no scene classification"
        return f"<BandMatch{f' for {self.model}' if self.model else ''}: {', '.join(parts)}; {scl}>"

    def _repr_html_(self) -> str:
        rows = [
            (band, "missing: filled with the training mean" if variable is None else f"{variable} ({how})")
            for band, variable, how in zip(self.bands, self.variables, self.how, strict=True)
        ]
        rows.append(("clouds", self.scl or "no scene classification (SCL)"))
        return facts_html(f"bands of {self.model or 'a model'}", rows)


@dataclass(frozen=True)
class _Claim:
    band: str
    how: How
    layer: BandLayer

    @property
    def rank(self) -> int:
        return ("given", "name", "alias", "common_name", "wavelength").index(self.how)


#: What a message advises for a band that a cube does not have.
FILL_WITH_MEAN = 'fill with the training mean: missing="mean"'
LEAVE_OUT = 'leave out its group of bands: missing="leave_out"'


def match_bands(
    cube: xr.Dataset | xr.DataArray,
    bands: Sequence[str],
    *,
    model: str = "",
    given: Mapping[str, str] | None = None,
    missing: Missing = "raise",
    wavelength: bool = False,
    alternatives: Sequence[Sequence[str]] = (),
    filling: str = FILL_WITH_MEAN,
) -> BandMatch:
    """Find the bands that a model expects in a cube.

    Parameters
    ----------
    cube : Dataset or DataArray
        With one variable per band, or with a band dimension whose labels, or the coordinates along it, name the bands.
    bands : sequence of str
        Expected, in model order, as in `SENTINEL2`.
    model : str
        For messages.
    given : mapping of str to str, optional
        Band to variable or label; overrides all other evidence. ``{"SCL": ...}`` names the scene classification.
    missing : {"raise", "nearest", "mean"}
        How to treat a band that the cube lacks: refuse; take the spectrally nearest 10 or 20 m band of the cube if
        its centre is within 35 nm (B08 and B8A replace each other, no other pair does); or mark it to be filled with
        the training mean.
    wavelength : bool
        Also match by centre wavelength alone, within 15 nm.
    alternatives : sequence of sequence of str
        Other sets of bands that the model reads, for the message where some of `bands` are missing.
    filling : str
        What the message advises for a band that the cube does not have.

    Returns
    -------
    BandMatch

    Raises
    ------
    MissingBandsError
        Where a band is missing, claimed by two variables on equal evidence, or only distinguishable by position.
    """
    if missing not in ("raise", "nearest", "mean"):
        raise ArgumentError(f"missing must be 'raise', 'nearest' or 'mean', got {missing!r}")
    unknown = [b for b in bands if b not in SENTINEL2]
    if unknown:
        raise MissingBandsError(
            f"model {model!r} expects {unknown}, which are not bands of Sentinel-2: {list(SENTINEL2)}"
        )
    band_dim, layers = layers_of(cube)
    notes: list[str] = []
    claims = _claims_of_caller(given or {}, bands, layers, model)
    claims = _all_claims(layers, claims, wavelength, notes)
    best = {b: _best(b, claims) for b in SENTINEL2}

    chosen: list[tuple[BandLayer | None, How]] = []
    missing_bands: list[str] = []
    for band in bands:
        claim = best[band]
        if claim is not None:
            chosen.append((claim.layer, claim.how))
        elif missing == "mean":
            chosen.append((None, "mean"))
        elif missing == "nearest" and (near := _nearest(band, best)) is not None:
            chosen.append((near.layer, "nearest"))
        else:
            missing_bands.append(band)
    if missing_bands or all(layer is None for layer, _ in chosen):
        raise MissingBandsError(
            _missing_message(cube, model, bands, missing_bands, layers, best, notes, missing, alternatives, filling)
        )
    scl = _scl(given or {}, layers)
    if isinstance(cube, xr.Dataset):
        _check_dims(cube, [la.label for la in (*(la for la, _ in chosen), scl) if la is not None])
    return BandMatch(
        model=model,
        bands=tuple(bands),
        variables=tuple(None if la is None else la.label for la, _ in chosen),
        how=tuple(h for _, h in chosen),
        band_dim=band_dim,
        indices=tuple(None if la is None else la.index for la, _ in chosen) if band_dim else (),
        scl=scl.label if scl else None,
        scl_index=scl.index if scl else None,
    )


def _check_dims(cube: xr.Dataset, names: Iterable[str]) -> None:
    d = dims(cube)
    for name in names:
        extra_dims = [str(k) for k in cube[name].dims if k not in (d.time, d.y, d.x)]
        if extra_dims:
            raise MissingBandsError(
                f"a band has the dimensions time, y and x; {name!r} has {tuple(map(str, cube[name].dims))}. "
                f"Select from {extra_dims[0]!r}, cube.isel({extra_dims[0]}=0), or rename it if it is one of them"
            )


def _claims_of_caller(
    given: Mapping[str, str], bands: Sequence[str], layers: Sequence[BandLayer], model: str
) -> list[_Claim]:
    by_label = {la.label: la for la in layers}
    claims = []
    for key, label in given.items():
        if not isinstance(key, str):
            raise MissingBandsError(
                f"bands= must map names of bands to variables, {{'B04': {key!r}}}, got the key {key!r}"
            )
        if key.upper() == "SCL":
            continue
        named = band_of_name(key)
        if named is None or named[0] not in bands:
            raise MissingBandsError(f"bands= names {key!r}; {model or 'the model'} takes {', '.join(bands)}")
        if str(label) not in by_label:
            raise MissingBandsError(
                f"bands= says that {key} is {label!r}, which is not in the cube: it has {', '.join(by_label)}"
            )
        claims.append(_Claim(named[0], "given", by_label[str(label)]))
    return claims


def _all_claims(
    layers: Sequence[BandLayer], given: Sequence[_Claim], wavelength: bool, notes: list[str]
) -> list[_Claim]:
    """Return the claims of all layers, those of the caller first.

    If two or more layers prove to be another sensor's, the bare designations of the others are dropped, as they follow
    the numbers of that sensor.
    """
    taken = {c.layer.label for c in given}
    claims: list[_Claim] = []
    contradicted = 0
    for layer in layers:
        if layer.label in taken:
            continue
        against: list[str] = []
        claims += _claims_of_layer(layer, layers, wavelength, notes, against)
        notes += against
        contradicted += bool(against)
    if contradicted >= 2:
        doubtful = [
            c for c in claims if is_designation(c.layer.names[0] if c.layer.names else "") and not _confirmed(c)
        ]
        if doubtful:
            names = ", ".join(repr(c.layer.label) for c in doubtful)
            notes.append(f"{names} may follow the numbers of another sensor, as the bands above do")
        claims = [c for c in claims if c not in doubtful]
    return [*given, *claims]


def _squeezed_names(layers: Sequence[BandLayer]) -> set[str]:
    """Return labels, titles and descriptions of all layers: in a GeoTIFF the labels are positions."""
    return {squeezed(n) for la in layers for n in (la.label, *la.names)}


def _confirmed(claim: _Claim) -> bool:
    """Return whether more than a bare designation identifies the layer as this band."""
    layer, band = claim.layer, claim.band
    near = layer.wavelength is not None and abs(layer.wavelength - SENTINEL2[band].wavelength) <= CONTRADICTION_NM
    words = any(not is_designation(n) and (band_of_name(n) or ("",))[0] == band for n in layer.names)
    return near or words or band in bands_of_common_name(layer.common_name or "")


def _claims_of_layer(
    layer: BandLayer, layers: Sequence[BandLayer], wavelength: bool, notes: list[str], against: list[str]
) -> Iterator[_Claim]:
    """Yield the band that one layer claims to be, if its names do not contradict each other.

    `against` collects the proofs that the layer is not the band of its name.
    """
    if layer.foreign is not None:
        against.append(f"{layer.label!r} follows the numbers of {layer.foreign}, which metadata name as the sensor")
    named_bands: dict[str, How] = {}
    all_names = _squeezed_names(layers)
    for name in layer.names:
        named = band_of_name(name)
        # Digital Earth Australia counts B11 and B12 as swir_2 and swir_3.
        if squeezed(name) == "swir2" and "swir3" in all_names:
            notes.append(
                f"{layer.label!r} beside a swir_3 is B11 as Digital Earth Australia counts, and B12 as others do"
            )
            named = None
        # FORCE calls B08 BROADNIR, and then B8A NIR.
        if squeezed(name) == "nir" and all_names & {"broadnir", "nirbroad"}:
            named = ("B8A", "alias")
        if named:
            named_bands.setdefault(named[0], named[1])
    thermal = next((n for n in layer.names if named_bands and _OTHER_RANGE.search(n.lower())), None)
    if thermal is not None:
        against.append(f"{layer.label!r} is called {thermal!r}, so it is not Sentinel-2's {next(iter(named_bands))}")
        return
    if len(named_bands) > 1:
        names = ", ".join(layer.names)
        against.append(f"{layer.label!r} is called {' and '.join(named_bands)} at once ({names})")
        return
    if named_bands:
        ((band, how),) = named_bands.items()
        if layer.wavelength is not None and abs(layer.wavelength - SENTINEL2[band].wavelength) > CONTRADICTION_NM:
            against.append(f"{layer.label!r} is centred at {layer.wavelength:g} nm, so it is not Sentinel-2's {band}")
            return
        meant = bands_of_common_name(layer.common_name or "")
        if meant and band not in meant:
            against.append(f"{layer.label!r} has the common name {layer.common_name}, so it is not Sentinel-2's {band}")
            return
        yield _Claim(band, how, layer)
        return
    if (meaning := _of_common_name(layer, notes)) is not None:
        yield _Claim(meaning, "common_name", layer)
    elif wavelength and layer.wavelength is not None:
        near = min(SENTINEL2.values(), key=lambda b: abs(b.wavelength - layer.wavelength))  # type: ignore[operator]
        if abs(near.wavelength - layer.wavelength) <= WAVELENGTH_NM:
            yield _Claim(near.name, "wavelength", layer)


_OTHER_RANGE = re.compile(r"(?<![a-z])(?:tirs\d*|thermal|lwir\d*|pan(?:chromatic)?)(?![a-z])")


def _of_common_name(layer: BandLayer, notes: list[str]) -> str | None:
    meant = bands_of_common_name(layer.common_name or "")
    if layer.wavelength is not None and meant:
        near = min(meant, key=lambda b: abs(SENTINEL2[b].wavelength - layer.wavelength))  # type: ignore[operator]
        limit = WAVELENGTH_NM if len(meant) > 1 else CONTRADICTION_NM
        return near if abs(SENTINEL2[near].wavelength - layer.wavelength) <= limit else None
    if layer.common_name == "rededge":
        notes.append(f"{layer.label!r} has the common name rededge, which B05, B06, B07 and B8A share")
        return None
    return meant[0] if meant else None


def _best(band: str, claims: Sequence[_Claim]) -> _Claim | None:
    of_band = sorted((c for c in claims if c.band == band), key=lambda c: c.rank)
    if len(of_band) > 1 and of_band[0].rank == of_band[1].rank:
        a, b = of_band[:2]
        if a.layer.label == b.layer.label:
            raise MissingBandsError(
                f"{band} occurs twice, as {a.layer.label!r} at positions {a.layer.index} and {b.layer.index}: "
                "keep one, cube.isel(band=[...]) or cube.drop_duplicates('band')"
            )
        raise MissingBandsError(
            f"{band} may be {a.layer.label!r} or {b.layer.label!r}, both by {a.how}. Say which: "
            f'bands={{"{band}": "{a.layer.label}"}}'
        )
    return of_band[0] if of_band else None


def _nearest(band: str, best: Mapping[str, _Claim | None]) -> _Claim | None:
    def distance(other: str) -> float:
        return abs(SENTINEL2[other].wavelength - SENTINEL2[band].wavelength)

    near = [b for b, claim in best.items() if claim and SENTINEL2[b].gsd <= 20 and distance(b) <= NEAREST_NM]
    return best[min(near, key=distance)] if near else None


def _scl(given: Mapping[str, str], layers: Sequence[BandLayer]) -> BandLayer | None:
    label = next((str(v) for k, v in given.items() if k.upper() == "SCL"), None)
    if label is not None:
        for la in layers:
            if la.label == label:
                return la
        raise MissingBandsError(
            f"bands= says that SCL is {label!r}, which is not in the cube: "
            f"it has {', '.join(la.label for la in layers)}"
        )
    pattern = re.compile(
        r"(?:.*[^a-z0-9])?scl(?:[\s_-]?(?:20|60)m)?|(?:scl, )?scene classification(?: map)?(?: \(scl\))?"
        r"|(?:quality_)?scene_classification"
    )
    named = [la for la in layers if any(pattern.fullmatch(n.strip().lower()) for n in la.names)]
    exact = [la for la in named if la.label.lower() == "scl"]
    if len(exact or named) > 1:
        both = " or ".join(repr(la.label) for la in exact or named)
        raise MissingBandsError(
            f'the scene classification may be {both}. Say which: bands={{"SCL": "{named[0].label}"}}'
        )
    return next(iter(exact or named), None)


def _missing_message(
    cube: xr.Dataset | xr.DataArray,
    model: str,
    bands: Sequence[str],
    missing_bands: Sequence[str],
    layers: Sequence[BandLayer],
    matched: Mapping[str, _Claim | None],
    notes: Sequence[str],
    missing: str,
    alternatives: Sequence[Sequence[str]],
    filling: str,
) -> str:
    known = {c.layer.label: band for band, c in matched.items() if c}
    called = {la.label: known.get(la.label) or next(iter(la.names), la.label) for la in layers}
    seen = ", ".join(la if name == la else f"{la} ({name})" for la, name in called.items()) or "no variable"
    lines = [
        f"{model or 'the model'} expects {', '.join(bands)}; the cube lacks {', '.join(missing_bands or bands)}.",
        f"Found: {seen}.",
    ]
    unknown = [la for la in layers if la.label not in known and la.foreign is None]
    # A label without any name is an integer along the band dimension, or nothing.
    counted = [la for la in unknown if not la.names or la.label in la.positions]
    if counted and (isinstance(cube, xr.DataArray) or any(la.positions for la in counted)):
        lines.append(_naming(cube, counted, len(layers)))
    lines += [f"Note: {note}." for note in dict.fromkeys(notes)]
    for choice in alternatives:
        if missing_bands and set(choice) < set(bands) and all(matched[b] for b in choice):
            named = ", ".join(f'"{b}"' for b in choice)
            lines.append(f"{model or 'the model'} also reads {', '.join(choice)} alone: bands=[{named}]")
    rejected = {la.label for la in layers if any(repr(la.label) in note for note in notes)}
    free = [la for la in layers if la.label not in known and la.label not in rejected and la.names]
    proposals: dict[str, str] = {}
    for band in missing_bands:
        near = _nearest(band, matched)
        if near is not None and missing == "raise":
            distance = abs(SENTINEL2[near.band].wavelength - SENTINEL2[band].wavelength)
            lines.append(
                f'Nearest to {band}: {near.layer.label!r} ({near.band}, {distance:.0f} nm away): missing="nearest"'
            )
        proposals[band] = _similar(band, free, layers, proposals.values())
    if proposals:
        named = ", ".join(f'"{b}": "{v}"' for b, v in proposals.items())
        lines.append(f"Say which variable each is: bands={{{named}}}; or {filling}")
    return "\n".join(lines)


def _naming(cube: xr.Dataset | xr.DataArray, counted: Sequence[BandLayer], n: int) -> str:
    """Return advice on naming bands that only have positions; only the file's producer knows their order."""
    if isinstance(cube, xr.DataArray):
        dim = dims(cube).band
        return (
            f"The labels along {dim!r} are only positions, which do not identify a band. Look up the order of "
            f'the bands where the file comes from, and name all {n} in that order: cube.assign_coords({dim}=["B..", '
            "...])"
        )
    first = ", ".join(f'"{la.label}": "B.."' for la in counted[:2])
    more = ", ..." if len(counted) > 2 else ""
    return (
        f"{', '.join(la.label for la in counted)} are only positions, which do not identify a band. Look up the "
        f"order of the bands where the file comes from, and name them: ds.rename({{{first}{more}}})"
    )


def _similar(band: str, free: Sequence[BandLayer], layers: Sequence[BandLayer], proposed: Iterable[str]) -> str:
    """Return the label that is spelled like a name of `band`, with the same numbers; "..." without one."""
    labels = [la.label for la in free if la.label not in set(proposed)]
    if {"swir2", "swir3"} <= _squeezed_names(layers):
        as_counted = {"B11": "swir2", "B12": "swir3"}.get(band)
        counted_so = [la.label for la in layers if as_counted in _squeezed_names([la])]
        if counted_so:
            return counted_so[0]
    for word in (band, *SENTINEL2[band].aliases):
        digits = re.findall(r"\d+", word)
        alike = [la for la in labels if re.findall(r"\d+", la) == digits and not la.isdigit()]
        if close := difflib.get_close_matches(word, alike, 1, 0.7):
            return close[0]
    return "..."
