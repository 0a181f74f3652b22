"""Which variable of a cube feeds which band of a model: by name and metadata, never by position.

Evidence about one variable, strongest first: the argument `bands=` of the caller; a Sentinel-2 designation as its name
(``B02``, ``b2``); a decorated designation or a word for it (``S2-L2A-B02``, ``B02_10m``, ``blue``, ``rededge1``), also
as `long_name` or `title`; the STAC `common_name`; and, only where the caller opts in, the centre wavelength.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from deo_cube.cube.grid import dims
from deo_cube.cube.sentinel2 import SENTINEL2, Band, band_of_name, bands_of_common_name, squeezed
from deo_cube.errors import MissingBandsError

__all__ = ["NEAREST_NM", "SENTINEL2", "Band", "BandMatch", "How", "band_of_name", "match_bands"]

How = Literal["name", "alias", "common_name", "wavelength", "given", "nearest", "mean"]
Missing = Literal["raise", "nearest", "mean"]

NEAREST_NM = 35.0
"""``missing="nearest"`` takes a band whose centre is at most this far off. Of the 10 and 20 m bands only B08 and B8A
are so close (32 nm); the next pair, B05 and B06, is 36 nm apart on the slope of the red edge, where the two differ."""

WAVELENGTH_NM = 15.0
"""Opted-in wavelength matching: a stated centre may be this far from the band's (the units of the mission and the
catalogues differ by up to 13 nm)."""

CONTRADICTION_NM = 60.0
"""A stated centre further than this from the band that the name says proves that the name is another sensor's."""


@dataclass(frozen=True)
class BandMatch:
    """Which variable (or label along the band dimension) feeds which band, and by what evidence."""

    model: str
    bands: tuple[str, ...]
    """In model order."""
    variables: tuple[str | None, ...]
    """Variable of the Dataset, or label along `band_dim`; None for a band that is filled with the training mean."""
    how: tuple[How, ...]
    band_dim: str | None = None
    """None for a Dataset with a variable a band."""
    indices: tuple[int | None, ...] = ()
    """Positions along `band_dim`; empty for a Dataset."""
    scl: str | None = None
    """Variable or label of the scene classification."""
    scl_index: int | None = None

    def __post_init__(self) -> None:
        n = len(self.bands)
        if n == 0 or len(self.variables) != n or len(self.how) != n or len(self.indices) not in (0, n):
            raise ValueError(f"{n} bands, {len(self.variables)} variables, {len(self.how)} reasons do not fit together")
        for band, variable, how in zip(self.bands, self.variables, self.how, strict=True):
            if (variable is None) != (how == "mean"):
                raise ValueError(f"band {band}: variable {variable!r} cannot be matched by {how!r}")

    def to_attrs(self) -> dict[str, Any]:
        """The match as plain JSON values, for the attributes of a result."""
        matched = zip(self.bands, self.variables, self.how, strict=True)
        return {
            "model": self.model,
            "bands": {b: {"variable": v, "how": h} for b, v, h in matched},
            "band_dim": self.band_dim,
            "scl": self.scl,
        }

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


@dataclass(frozen=True)
class _Layer:
    """One variable or label, and everything that is said about it."""

    label: str
    index: int | None
    names: tuple[str, ...]
    """Its name (unless that is a mere position), then its titles."""
    common_name: str | None
    wavelength: float | None
    """nm"""


@dataclass(frozen=True)
class _Claim:
    band: str
    how: How
    layer: _Layer

    @property
    def rank(self) -> int:
        return ("given", "name", "alias", "common_name", "wavelength").index(self.how)


def match_bands(
    cube: xr.Dataset | xr.DataArray,
    bands: Sequence[str],
    *,
    model: str = "",
    given: Mapping[str, str] | None = None,
    missing: Missing = "raise",
    wavelength: bool = False,
) -> BandMatch:
    """Find the bands that a model wants in a cube.

    Parameters
    ----------
    cube : Dataset or DataArray
        With a variable a band, or with a band dimension whose labels, or the coordinates along it, name the bands.
    bands : sequence of str
        Wanted, in model order, as in `SENTINEL2`.
    model : str
        For messages.
    given : mapping of str to str, optional
        Band to variable or label; beats all other evidence. ``{"SCL": ...}`` names the scene classification.
    missing : {"raise", "nearest", "mean"}
        What to do for a band that the cube lacks: refuse; take the spectrally nearest 10 or 20 m band of the cube if
        its centre is within 35 nm (B08 and B8A stand in for each other, nothing else does); or mark it to be filled
        with the training mean.
    wavelength : bool
        Also match by centre wavelength alone, within 15 nm.

    Returns
    -------
    BandMatch

    Raises
    ------
    MissingBandsError
        Where a band is missing, claimed by two variables on equal evidence, or only distinguishable by position.
    """
    if missing not in ("raise", "nearest", "mean"):
        raise ValueError(f"missing must be 'raise', 'nearest' or 'mean', got {missing!r}")
    unknown = [b for b in bands if b not in SENTINEL2]
    if unknown:
        raise MissingBandsError(f"model {model!r} wants {unknown}, which are no bands of Sentinel-2: {list(SENTINEL2)}")
    band_dim, layers = _layers(cube)
    notes: list[str] = []
    claims = _given(given or {}, bands, layers, model)
    taken = {c.layer.label for c in claims}
    claims += [c for la in layers if la.label not in taken for c in _claims(la, layers, wavelength, notes)]
    found = {b: _best(b, claims) for b in SENTINEL2}

    chosen: list[tuple[_Layer | None, How]] = []
    lacking: list[str] = []
    for band in bands:
        claim = found[band]
        if claim is not None:
            chosen.append((claim.layer, claim.how))
        elif missing == "mean":
            chosen.append((None, "mean"))
        elif missing == "nearest" and (near := _nearest(band, found)) is not None:
            chosen.append((near.layer, "nearest"))
        else:
            lacking.append(band)
    if lacking or all(layer is None for layer, _ in chosen):
        raise MissingBandsError(_missing_message(cube, model, bands, lacking, layers, found, notes, missing))
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
        strange = [str(k) for k in cube[name].dims if k not in (d.time, d.y, d.x)]
        if strange:
            raise MissingBandsError(
                f"a band has the dimensions time, y and x; {name!r} has {tuple(map(str, cube[name].dims))}. "
                f"Select from {strange[0]!r}, cube.isel({strange[0]}=0), or rename it if it is one of them"
            )


def _layers(cube: xr.Dataset | xr.DataArray) -> tuple[str | None, list[_Layer]]:
    d = dims(cube)
    if isinstance(cube, xr.DataArray):
        if d.band is None:
            raise MissingBandsError(
                f"a DataArray needs a band dimension (band, bands or channel); found {tuple(map(str, cube.dims))}. "
                "Name its bands: cube.expand_dims(band=['B02']), or give a Dataset with a variable a band"
            )
        return d.band, list(_along(cube, d.band))
    names = [str(n) for n, v in cube.data_vars.items() if {d.y, d.x} <= set(v.dims)]
    if d.band is not None:
        holder = next(n for n in names if d.band in cube[n].dims)
        if cube.sizes[d.band] == 1 and len(names) > 1:  # as of files opened one by one with rioxarray
            raise MissingBandsError(
                f"{holder!r} and others have a dimension {d.band!r} of length 1, beside a variable a band: drop it, "
                f"cube.squeeze({d.band!r}, drop=True)"
            )
        raise MissingBandsError(
            f"the Dataset keeps its bands along the dimension {d.band!r} of {holder!r}: "
            f"pass that variable, ds[{holder!r}]"
        )
    # rioxarray's band_as_variable numbers the variables by position: band_1, band_2, ...
    positional = sorted(names) == sorted(f"band_{i + 1}" for i in range(len(names)))
    layers = []
    for label in names:
        attrs = cube[label].attrs
        titles = [attrs.get(k) for k in ("long_name", "title", "description", "eo:name", "band_name")]
        common = attrs.get("common_name", attrs.get("eo:common_name"))
        layers.append(_layer(label, None, None if positional else label, titles, common, _wavelength_of(attrs)))
    return None, layers


def _along(cube: xr.DataArray, dim: str) -> Iterator[_Layer]:
    n = cube.sizes[dim]
    labels: list[Hashable] = list(cube.coords[dim].values.tolist()) if dim in cube.coords else list(range(n))
    labels = [la.decode(errors="replace") if isinstance(la, bytes) else la for la in labels]
    descriptions = cube.attrs.get("long_name", ())
    descriptions = (descriptions,) if isinstance(descriptions, str) and n == 1 else descriptions
    if isinstance(descriptions, str) or len(descriptions) != n:
        descriptions = (None,) * n

    def beside(*keys: str) -> list[Any]:
        for key in keys:
            if key in cube.coords and cube.coords[key].dims == (dim,):
                return list(cube.coords[key].values.tolist())
        return [None] * n

    titles, commons = beside("title", "band_name", "description"), beside("common_name", "eo:common_name")
    waves = beside("center_wavelength", "eo:center_wavelength", "wavelength", "central_wavelength")
    for i, label in enumerate(labels):
        text = label if isinstance(label, str) else None
        yield _layer(str(label), i, text, [descriptions[i], titles[i]], commons[i], _nm(waves[i]))


def _layer(
    label: str, index: int | None, name: str | None, titles: list[Any], common: Any, wavelength: float | None
) -> _Layer:
    names = ([] if name is None else [name]) + [t for t in titles if isinstance(t, str) and t]
    return _Layer(label, index, tuple(names), common.lower() if isinstance(common, str) else None, wavelength)


def _wavelength_of(attrs: Mapping[Any, Any]) -> float | None:
    for key in ("center_wavelength", "eo:center_wavelength", "wavelength", "central_wavelength", "wavelength_nm"):
        if key in attrs:
            return _nm(attrs[key])
    return None


def _nm(value: Any) -> float | None:
    """Nanometres of a stated wavelength, which catalogues give in micrometres."""
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


def _given(given: Mapping[str, str], bands: Sequence[str], layers: Sequence[_Layer], model: str) -> list[_Claim]:
    by_label = {la.label: la for la in layers}
    claims = []
    for key, label in given.items():
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


def _claims(layer: _Layer, layers: Sequence[_Layer], wavelength: bool, notes: list[str]) -> Iterator[_Claim]:
    """What one layer claims to be: one band at most, none where its names contradict each other."""
    said: dict[str, How] = {}
    for name in layer.names:
        named = band_of_name(name)
        # Digital Earth Australia counts B11 and B12 as swir_2 and swir_3.
        if squeezed(name) == "swir2" and any(squeezed(la.label) == "swir3" for la in layers):
            notes.append(
                f"{layer.label!r} beside a swir_3 is B11 as Digital Earth Australia counts, and B12 as others do"
            )
            named = None
        if named:
            said.setdefault(named[0], named[1])
    if len(said) > 1:
        notes.append(f"{layer.label!r} is called {' and '.join(said)} at once ({', '.join(layer.names)})")
        return
    if said:
        ((band, how),) = said.items()
        if layer.wavelength is not None and abs(layer.wavelength - SENTINEL2[band].wavelength) > CONTRADICTION_NM:
            notes.append(f"{layer.label!r} is centred at {layer.wavelength:g} nm, so it is not Sentinel-2's {band}")
            return
        meant = bands_of_common_name(layer.common_name or "")
        if meant and band not in meant:
            notes.append(f"{layer.label!r} has the common name {layer.common_name}, so it is not Sentinel-2's {band}")
            return
        yield _Claim(band, how, layer)
        return
    if (meaning := _of_common_name(layer, notes)) is not None:
        yield _Claim(meaning, "common_name", layer)
    elif wavelength and layer.wavelength is not None:
        near = min(SENTINEL2.values(), key=lambda b: abs(b.wavelength - layer.wavelength))  # type: ignore[operator]
        if abs(near.wavelength - layer.wavelength) <= WAVELENGTH_NM:
            yield _Claim(near.name, "wavelength", layer)


def _of_common_name(layer: _Layer, notes: list[str]) -> str | None:
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


def _nearest(band: str, found: Mapping[str, _Claim | None]) -> _Claim | None:
    def apart(other: str) -> float:
        return abs(SENTINEL2[other].wavelength - SENTINEL2[band].wavelength)

    near = [b for b, claim in found.items() if claim and SENTINEL2[b].gsd <= 20 and apart(b) <= NEAREST_NM]
    return found[min(near, key=apart)] if near else None


def _scl(given: Mapping[str, str], layers: Sequence[_Layer]) -> _Layer | None:
    wanted = next((str(v) for k, v in given.items() if k.upper() == "SCL"), None)
    if wanted is not None:
        for la in layers:
            if la.label == wanted:
                return la
        raise MissingBandsError(
            f"bands= says that SCL is {wanted!r}, which is not in the cube: "
            f"it has {', '.join(la.label for la in layers)}"
        )
    pattern = re.compile(r"(?:.*[^a-z0-9])?scl(?:[\s_-]?(?:20|60)m)?|scene classification(?: map)?(?: \(scl\))?")
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
    lacking: Sequence[str],
    layers: Sequence[_Layer],
    found: Mapping[str, _Claim | None],
    notes: Sequence[str],
    missing: str,
) -> str:
    labels = [la.label for la in layers]
    known = {c.layer.label: b for b, c in found.items() if c}
    called = {la.label: known.get(la.label) or next(iter(la.names), la.label) for la in layers}
    seen = ", ".join(la if name == la else f"{la} ({name})" for la, name in called.items()) or "no variable"
    lines = [
        f"{model or 'the model'} wants {', '.join(bands)}; the cube lacks {', '.join(lacking or bands)}.",
        f"Found: {seen}.",
    ]
    if isinstance(cube, xr.DataArray) and not any(la.names for la in layers):
        dim = dims(cube).band
        lines.append(
            f"The labels along {dim!r} are mere positions, which do not say what band they are. Name them, all "
            f'{len(labels)} in their true order: cube.assign_coords({dim}=["B02", "B03", ...])'
        )
    elif not any(found.values()) and layers and not any(la.names for la in layers):
        lines.append('The variables are mere positions. Name them: ds.rename({"band_1": "B02", ...})')
    lines += [f"Note: {note}." for note in dict.fromkeys(notes)]
    free = [la for la in labels if la not in known]
    mend = {}
    for band in lacking:
        near = _nearest(band, found)
        if near is not None and missing == "raise":
            apart = abs(SENTINEL2[near.band].wavelength - SENTINEL2[band].wavelength)
            lines.append(
                f'Nearest to {band}: {near.layer.label!r} ({near.band}, {apart:.0f} nm away): missing="nearest"'
            )
        words = (band, *SENTINEL2[band].aliases)
        close = [la for w in words for la in difflib.get_close_matches(w, free, 1, 0.7)]
        if {"swir2", "swir3"} <= {squeezed(la) for la in free}:
            close = [la for la in free if squeezed(la) == {"B11": "swir2", "B12": "swir3"}.get(band)] or close
        mend[band] = close[0] if close else "..."
    if mend:
        named = ", ".join(f'"{b}": "{v}"' for b, v in mend.items())
        lines.append(f'Say which variable it is: bands={{{named}}}; or fill with the training mean: missing="mean"')
    return "\n".join(lines)
