"""What a cube says of its numbers: in its attributes, encodings and coordinates, one time step at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from deo_cube.cube.bands import BandMatch
from deo_cube.cube.baseline import PRODUCT_KEYS, Offset, Product, decide_offset
from deo_cube.cube.grid import dims
from deo_cube.cube.sentinel2 import level_of
from deo_cube.errors import AmbiguousUnitsError, ArgumentError

if TYPE_CHECKING:
    from deo_cube.cube.units import Decided

__all__ = [
    "OFFSET_COORD",
    "REASONS",
    "Evidence",
    "cf_of",
    "number_of",
    "offset_of_steps",
    "product_levels",
    "stated_units",
]

OFFSET_COORD = "boa_add_offset"
"""Coordinate along time, or attribute, that records a decision made earlier: the DN to add; NaN where undecided."""

REASONS = "deo_cube:offset"
"""Attribute with the reasons of a recorded offset."""

_LEVEL_KEYS = (
    "product_level",
    "processing:level",
    "s2:product_type",
    "product:type",
    "s2:product_uri",
    "id",
    "item_ids",
)

_DN = {"dn", "digital number", "digital numbers", "digital_number", "digital_numbers", "counts"}
_PERCENT = {"%", "percent", "per cent", "percentage", "pct", "reflectance (%)", "percent reflectance", "% reflectance"}
#: Radiance, temperature, backscatter, lengths and angles: bands that hold another quantity than reflectance.
_OTHER_QUANTITY = re.compile(
    r"\bsr\b|steradian|radiance|\bw\b|watt|^k$|kelvin|celsius|^(?:deg|°)|^db$|decibel|^m$|^met(?:er|re)s?$"
)
_REFLECTANCE = {"reflectance", "surface reflectance", "surface_reflectance", "boa_reflectance", "toa_reflectance"}


@dataclass(frozen=True)
class Evidence:
    """A cube with its matched bands, asked for what it says."""

    cube: xr.Dataset | xr.DataArray
    match: BandMatch
    layers: tuple[xr.DataArray, ...]
    """The matched variables of a Dataset, or the one DataArray that holds them all."""
    time: str | None
    steps: int

    @classmethod
    def of(cls, cube: xr.Dataset | xr.DataArray, match: BandMatch) -> Evidence:
        """Gather the evidence about the matched bands of a cube."""
        matched = dict.fromkeys(v for v in match.variables if v is not None)
        layers = (cube,) if isinstance(cube, xr.DataArray) else tuple(cube[v] for v in matched)
        time = dims(cube).time
        return cls(cube, match, layers, time, 1 if time is None else cube.sizes[time])

    @property
    def stackstac(self) -> bool:
        """Whether these are floats as stackstac gives them."""
        floats = all(la.dtype.kind == "f" for la in self.layers)
        return floats and type(self.cube.attrs.get("spec")).__name__ == "RasterSpec"

    def of_steps(self) -> list[dict[str, Any]]:
        """What coordinates and attributes, named as the properties of STAC items, say of each time step."""
        common = {k: self.cube.attrs[k] for k in PRODUCT_KEYS if isinstance(self.cube.attrs.get(k), (str, int, float))}
        steps: list[dict[str, Any]] = [dict(common) for _ in range(self.steps)]
        for key in PRODUCT_KEYS:
            coord = self.cube.coords.get(key)
            if coord is None or coord.dims not in ((), (self.time,)):
                continue
            values = np.broadcast_to(coord.values, (self.steps,)).tolist()
            for step, value in zip(steps, values, strict=True):
                step[key] = value
        return steps

    def scales_of_step(self, t: int) -> list[tuple[Any, Any]]:
        """(scale, offset) stated by stackstac's `raster:bands` for the matched bands; (None, None) where unstated."""
        if "raster:bands" not in self.cube.coords:
            return []
        coord = self.cube.coords["raster:bands"]
        if self.time is not None and self.time in coord.dims:
            coord = coord.isel({self.time: t})
        if self.match.band_dim is not None and self.match.band_dim in coord.dims:
            coord = coord.isel({self.match.band_dim: [i for i in self.match.indices if i is not None]})
        pairs = []
        for entry in coord.values.ravel().tolist() if coord.ndim else [coord.values.item()]:
            entry = entry[0] if isinstance(entry, (list, tuple)) and entry else entry
            known = entry if isinstance(entry, Mapping) else {}
            pairs.append((known.get("scale"), known.get("offset")))
        return pairs

    @property
    def pixel_sizes(self) -> tuple[float, ...]:
        """Steps of the coordinates along x and y, in their units."""
        d = dims(self.cube)
        axes = [self.cube[n].values[:2] for n in (d.x, d.y) if n in self.cube.coords and self.cube.sizes[n] > 1]
        return tuple(abs(float(b) - float(a)) for a, b in axes)

    def recorded(self) -> tuple[float, ...] | None:
        """`boa_add_offset` per time step, as written by load_cube or synthetic_cube; None where there is none.

        Raises
        ------
        AmbiguousUnitsError
            Where the records differ, or have another number of time steps.
        """
        places = [self.cube.coords.get(OFFSET_COORD), self.cube.attrs.get(OFFSET_COORD)]
        places += [la.attrs.get(OFFSET_COORD) for la in self.layers]
        records = []
        for place in places:
            if place is None:
                continue
            values = np.asarray(place.values if isinstance(place, xr.DataArray) else place, dtype=np.float64).ravel()
            if values.size not in (1, self.steps):
                raise AmbiguousUnitsError(
                    f"{OFFSET_COORD} holds {values.size} values for {self.steps} time steps. "
                    "Pass offset=0 or offset=-1000"
                )
            records.append(tuple(np.broadcast_to(values, self.steps).tolist()))
        if len({repr(r) for r in records}) > 1:
            seen = sorted({v for r in records for v in r if math.isfinite(v)})
            raise AmbiguousUnitsError(
                f"the cube records different offsets ({OFFSET_COORD}: {', '.join(f'{v:g}' for v in seen)}), as where "
                "some bands were changed since: bring the bands to one, and pass offset=0 or offset=-1000"
            )
        return records[0] if records else None

    def dates(self, steps: Sequence[int]) -> str:
        """The first dates of time steps, in brackets for a message; nothing where the cube has no dates."""
        if self.time is None or self.time not in self.cube.coords:
            return ""
        dates = [str(self.cube.coords[self.time].values[t])[:10] for t in sorted(set(steps))[:3]]
        return f" ({', '.join(dates)}{', ...' if len(set(steps)) > 3 else ''})"


def product_levels(cube: xr.Dataset | xr.DataArray) -> frozenset[str]:
    """Levels of the products (``L1C``, ``L2A``) that attributes and coordinates name; empty where none does."""
    said: list[Any] = [cube.attrs.get(k) for k in _LEVEL_KEYS]
    said += [v for k in _LEVEL_KEYS if k in cube.coords for v in np.ravel(cube.coords[k].values).tolist()]
    return frozenset(level for v in said if (level := level_of(v)) is not None)


def stated_units(attrs: Mapping[Any, Any]) -> str | None:
    """What `units` say: "dn", "reflectance", "percent", "other: ..." for another quantity; None where unsaid.

    >>> stated_units({"units": "%"}), stated_units({"units": "W m-2 sr-1 um-1"}), stated_units({"units": "1"})
    ('percent', 'other: W m-2 sr-1 um-1', None)
    """
    said = str(attrs.get("units", "")).strip().lower()
    if said in _DN:
        return "dn"
    if said in _REFLECTANCE:
        return "reflectance"
    if said in _PERCENT:
        return "percent"
    return f"other: {attrs['units']}" if _OTHER_QUANTITY.search(said) else None


def cf_of(layer: xr.DataArray, said: Mapping[Any, Any]) -> tuple[float, float] | None:
    """CF scale and offset, of attributes or an encoding, that lead to reflectance.

    GDAL's default (1, 0) says nothing, and neither does a "scale" that is the size of a pixel in metres. An offset of
    -1000 beside no scale, or a scale of 1, is that of DN. Per cent come with scales a hundred times larger.
    """
    scale, offset = number_of(said, "scale_factor", "scales"), number_of(said, "add_offset", "offsets")
    per_cent = 100.0 if stated_units(layer.attrs) == "percent" else 1.0
    if scale is not None and 1e-5 <= scale / per_cent <= 1e-3:
        return scale, offset or 0.0
    return (1.0, offset) if scale in (None, 1.0) and offset is not None and abs(offset) >= 100 else None


def number_of(said: Mapping[Any, Any], *keys: str) -> float | None:
    """First number under the first of `keys` that is there; None for what is not a number."""
    for key in keys:
        if said.get(key) is not None:
            try:
                return float(np.ravel(said[key])[0])
            except (TypeError, ValueError, IndexError):
                return None
    return None


def offset_of_steps(
    evidence: Evidence, decided: Decided, offset: str | float | Sequence[float], hint: str
) -> tuple[tuple[float, ...], list[str]]:
    """DN to add, per time step, and why; or a refusal that names the argument to pass.

    Parameters
    ----------
    evidence : Evidence
    decided : Decided
        Units and scale, and the DN that were added before the values came here.
    offset : "auto", float or sequence of float
        As the caller passed it.
    hint : str
        What the values look like, for the message.

    Raises
    ------
    AmbiguousUnitsError
        Where one time step or more is undecided.
    """
    steps = evidence.steps
    if not isinstance(offset, str):
        given = np.asarray(offset, dtype=np.float64).ravel()
        if given.size not in (1, steps) or not np.isfinite(given).all():
            raise ArgumentError(
                f"offset must be one finite number, or one for each of {steps} time steps; got {offset!r}"
            )
        return tuple(np.broadcast_to(given, steps).tolist()), [f"offset={offset} was passed"]
    if offset != "auto":
        raise ArgumentError(f"offset must be 'auto' or the DN to add (0, -1000), got {offset!r}")
    if decided.units == "uint8_rgb":
        return (0.0,) * steps, ["a stretched image carries no offset"]
    recorded = evidence.recorded()
    by_step: list[Offset] = []
    for t, said in enumerate(evidence.of_steps()):
        if recorded is not None:
            by_step.append(_of_record(evidence, decided, recorded[t]))
        else:
            by_step.append(_of_product(evidence, decided, t, said))
    reasons: dict[str, list[int]] = {}
    for t, d in enumerate(by_step):
        reasons.setdefault(d.why, []).append(t)
    sentences = [w if len(ts) == steps else f"{w} ({len(ts)} of {steps} time steps)" for w, ts in reasons.items()]
    adds = tuple(d.add for d in by_step if d.add is not None)
    if len(adds) == steps:
        return adds, sentences
    open_steps = [t for t, d in enumerate(by_step) if d.add is None]
    where = (
        "" if len(open_steps) == steps else f" at {len(open_steps)} of {steps} time steps{evidence.dates(open_steps)}"
    )
    clash = any(d.contradiction for d in by_step)
    raise AmbiguousUnitsError(
        f"whether the values carry the +1000 of processing baseline 04.00 is {'contradictory' if clash else 'unknown'}"
        f"{where}: {'; '.join(sentences)}.{hint} Pass offset=-1000 if they carry it, offset=0 if not"
        f"{', or one number per time step' if steps > 1 else ''}. (load_cube decides it from STAC items.)"
    )


def _of_record(evidence: Evidence, decided: Decided, add: float) -> Offset:
    """What an earlier decision, recorded in the cube, leaves to be added."""
    reasons = f" ({evidence.cube.attrs[REASONS]})" if REASONS in evidence.cube.attrs else ""
    if not math.isfinite(add):
        return Offset(None, f"{OFFSET_COORD} records no decision{reasons}")
    record = f"{OFFSET_COORD} records {add:g}{reasons}"
    # A record outlives arithmetic, since xarray keeps attributes: one of DN says nothing about reflectance made of DN.
    made_here = any(stated_units(la.attrs) == decided.units for la in (*evidence.layers, evidence.cube))
    if add and decided.units != "dn" and not made_here:
        return Offset(None, f"{record}, for DN, and nothing says whether the reflectance still carries it", True)
    return Offset(add, record)


def _of_product(evidence: Evidence, decided: Decided, t: int, said: Mapping[str, Any]) -> Offset:
    """What is still to be added at one time step, as the product and its scales say."""
    scales = list(evidence.scales_of_step(t))
    stated = [cf for la in evidence.layers if (cf := cf_of(la, la.attrs)) is not None]
    if decided.units == "dn":
        return decide_offset(Product.read(said, scales=[*scales, *stated]))
    if decided.applied:
        options = {_after(Product.read(said, scales=[(1e-4, a[t] * 1e-4)]), a[t]) for a in decided.applied}
        if len({o.add for o in options}) == 1:
            return min(options, key=lambda o: o.why)
        return Offset(None, "the bands were decoded with different offsets", True)
    # Attributes of a scale that was not applied by decoding: the values became reflectance in another way.
    carried = decide_offset(Product.read(said, scales=stated))
    if carried.contradiction:
        return carried
    if carried.add:
        return Offset(
            None, f"{carried.why}, and nothing says whether the reflectance was computed with that offset", True
        )
    return Offset(0.0, "reflectance is free of the offset by definition, and nothing speaks against it")


def _after(product: Product, applied: float) -> Offset:
    """What is left to add where `applied` DN were added already, which is itself a statement about the files."""
    carried = decide_offset(product)
    if carried.contradiction:
        return carried
    # Decided always, since `applied` is a statement. They differ where stackstac applied a stale one.
    add = (carried.add or 0.0) - applied
    corrected = f", so {add:+g} DN correct what was applied wrongly" if add else ""
    return Offset(add, f"{carried.why}; {applied:g} DN were applied already{corrected}")
