"""The layers of a cube, one per variable or label, and everything that names and metadata say about each."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from deo_cube.cube.grid import dims
from deo_cube.cube.positions import counted
from deo_cube.cube.sentinel2 import SENTINEL2, band_of_name, is_designation, other_sensor
from deo_cube.errors import MissingBandsError

__all__ = ["CONTRADICTION_NM", "WAVELENGTH_NM", "Layer", "layers_of"]

WAVELENGTH_NM = 15.0
"""Opted-in wavelength matching: a stated centre may be this far from the band's (the units of the mission and the
catalogues differ by up to 13 nm)."""

CONTRADICTION_NM = 60.0
"""A stated centre further than this from the band that the name says proves that the name is another sensor's."""

_TITLES = ("long_name", "title", "description", "eo:name", "band_name")
_SENSOR_KEYS = frozenset(
    "platform platforms platform_name constellation instruments instrument sensor sensors satellite mission "
    "spacecraft spacecraft_id spacecraft_name collection id item_ids".split()
)


@dataclass(frozen=True)
class Layer:
    """One variable or label, and everything that is said about it."""

    label: str
    index: int | None
    """Position along the band dimension; None for a variable of a Dataset."""
    names: tuple[str, ...]
    """Its name, then its titles; without those that only count positions or follow another sensor's numbers."""
    common_name: str | None
    wavelength: float | None
    """nm"""
    positions: tuple[str, ...] = ()
    """Names and titles that only count positions."""
    foreign: str | None = None
    """The other sensor whose numbers its designation follows, where metadata name one."""


@dataclass(frozen=True)
class _Said:
    layer: Layer
    texts: tuple[str | None, ...]
    """Its name and titles, each from one place; None where that place is empty."""


def layers_of(cube: xr.Dataset | xr.DataArray) -> tuple[str | None, list[Layer]]:
    """Name of the band dimension (None for a Dataset), and the layers that may be bands.

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
        return d.band, _read(_along(cube, d.band), cube)
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
                f"{holder!r} and others have a dimension {d.band!r} of length 1, beside a variable per band: drop it, "
                f"cube.squeeze({d.band!r}, drop=True)"
            )
        raise MissingBandsError(
            f"the Dataset keeps its bands along the dimension {d.band!r} of {holder!r}: "
            f"pass that variable, ds[{holder!r}]"
        )
    return None, _read([_of_variable(label, cube[label].attrs) for label in names], cube)


def _of_variable(label: str, attrs: Mapping[Any, Any]) -> _Said:
    titles = [attrs.get(k) for k in _TITLES]
    common = attrs.get("common_name", attrs.get("eo:common_name"))
    return _said(label, None, label, titles, common, _wavelength_of(attrs))


def _along(cube: xr.DataArray, dim: str) -> list[_Said]:
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
    return [
        _said(
            str(label),
            i,
            label if isinstance(label, str) else None,
            [descriptions[i], titles[i]],
            commons[i],
            _nm(waves[i]),
        )
        for i, label in enumerate(labels)
    ]


def _said(
    label: str, index: int | None, name: str | None, titles: Sequence[Any], common: Any, wavelength: float | None
) -> _Said:
    texts = (name, *(t if isinstance(t, str) and t else None for t in titles))
    return _Said(Layer(label, index, (), common.lower() if isinstance(common, str) else None, wavelength), texts)


def _read(said: Sequence[_Said], cube: xr.Dataset | xr.DataArray) -> list[Layer]:
    """Keep of each layer's names those that say something about the band."""
    places = list(zip(*(s.texts for s in said), strict=True))
    positional = list(zip(*(counted(place) for place in places), strict=True)) if said else []
    sensor = _other_sensor(cube)
    layers = []
    for entry, flags in zip(said, positional, strict=True):
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
    """Whether the stated centre confirms the band that a text names."""
    named = band_of_name(text)
    return (
        named is not None
        and wavelength is not None
        and abs(SENTINEL2[named[0]].wavelength - wavelength) <= (WAVELENGTH_NM)
    )


def _other_sensor(cube: xr.Dataset | xr.DataArray) -> str | None:
    """Another sensor that attributes or coordinates name as the source of the cube."""
    said: list[Any] = [v for k, v in cube.attrs.items() if str(k).lower().split(":")[-1] in _SENSOR_KEYS]
    for key, coord in cube.coords.items():
        if str(key).lower().split(":")[-1] in _SENSOR_KEYS and coord.ndim <= 1:
            said += np.ravel(coord.values).tolist()
    return next((word for v in said if (word := other_sensor(v)) is not None), None)


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
