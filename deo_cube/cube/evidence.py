"""What a cube says of its numbers: in its attributes, encodings and coordinates, one time step at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from deo_cube.cube.bands import BandMatch
from deo_cube.cube.baseline import PRODUCT_KEYS, Offset, Product, decide_offset, stated_offset
from deo_cube.cube.grid import dims
from deo_cube.cube.sentinel2 import level_of
from deo_cube.errors import AmbiguousUnitsError

__all__ = [
    "OFFSET_COORD",
    "REASONS",
    "TCI_SCALE",
    "Evidence",
    "Units",
    "offset_of_steps",
    "product_levels",
    "units_and_scale",
]

Units = Literal["dn", "reflectance", "uint8_rgb"]

OFFSET_COORD = "boa_add_offset"
"""Coordinate along time, or attribute, that records a decision made earlier: the DN to add; NaN where undecided."""

REASONS = "deo_cube:offset"
"""Attribute with the reasons of a recorded offset."""

TCI_SCALE = 2750 / 255
"""DN a step of an 8-bit true-colour image stretched from DN 0..2750, as EuroSAT's and most browse images are. The
stretch clips what is brighter, so this is its inverse only below DN 2750."""

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

    def recorded(self) -> tuple[float, ...] | None:
        """`boa_add_offset` a time step, as written by load_cube or synthetic_cube; None where there is none."""
        places = [self.cube.coords.get(OFFSET_COORD), self.cube.attrs.get(OFFSET_COORD)]
        places += [la.attrs.get(OFFSET_COORD) for la in self.layers]
        said = [p for p in places if p is not None]
        if not said:
            return None
        values = np.asarray(said[0].values if isinstance(said[0], xr.DataArray) else said[0], dtype=np.float64).ravel()
        if values.size not in (1, self.steps):
            raise AmbiguousUnitsError(
                f"{OFFSET_COORD} holds {values.size} values for {self.steps} time steps. Pass offset=0 or offset=-1000"
            )
        return tuple(np.broadcast_to(values, self.steps).tolist())


def product_levels(cube: xr.Dataset | xr.DataArray) -> frozenset[str]:
    """Levels of the products (``L1C``, ``L2A``) that attributes and coordinates name; empty where none does."""
    said: list[Any] = [cube.attrs.get(k) for k in _LEVEL_KEYS]
    said += [v for k in _LEVEL_KEYS if k in cube.coords for v in np.ravel(cube.coords[k].values).tolist()]
    return frozenset(level for v in said if (level := level_of(v)) is not None)


def units_and_scale(
    evidence: Evidence, units: str, sample: np.ndarray[Any, Any] | None
) -> tuple[Units, float, tuple[float, ...] | None, list[str]]:
    """Units, scale to DN, DN that were added already a time step (None where unknown), and why."""
    layers = evidence.layers
    kinds = {la.dtype.kind for la in layers}
    names = ", ".join(sorted({str(la.dtype) for la in layers}))
    if not kinds <= set("iuf"):
        raise AmbiguousUnitsError(f"the bands hold {names}; wanted numbers (integer DN or floats)")
    if any(str(la.attrs.get("_Unsigned", "")).lower() == "true" and la.dtype.kind == "i" for la in layers):
        raise AmbiguousUnitsError(
            "the bands are unsigned integers read as signed ones (_Unsigned), so that large values are negative. "
            "Open the file decoded, open_dataset(path), or with mask_and_scale=False and .astype('uint16')"
        )
    if units == "reflectance" and kinds & set("iu"):
        raise AmbiguousUnitsError(f'units="reflectance", but the bands are integers ({names}): pass units="dn"')
    if units == "uint8_rgb":
        return "uint8_rgb", TCI_SCALE, None, ['units="uint8_rgb" was passed: 0..255 stretched from DN 0..2750']

    stated = {u for a in [evidence.cube.attrs, *(la.attrs for la in layers)] if (u := _stated_units(a)) is not None}
    raw, decoded = {_cf(la.attrs) for la in layers}, {_cf(la.encoding) for la in layers}
    if len(stated) > 1 or len(raw) > 1 or len(decoded) > 1:
        raise AmbiguousUnitsError(
            "the bands have different units, scales or offsets "
            f"({', '.join(f'{la.name}: {_said_of(la)}' for la in layers)}): bring them to one, and pass units="
        )
    (cf,), (cf_done,) = raw, decoded
    if units == "dn":
        return "dn", 1.0, None, ['units="dn" was passed']
    if units == "reflectance":
        return "reflectance", 1e4, _already(evidence, cf_done), ['units="reflectance" was passed']
    if stated:
        (said,) = stated
        if said == "reflectance" and kinds & set("iu"):
            raise AmbiguousUnitsError(f'attrs say reflectance, but the bands are {names}. Pass units="dn" and offset=')
        why = [f"units {said!r} stand in the attributes"]
        return (said, 1.0, None, why) if said == "dn" else (said, 1e4, _already(evidence, cf_done), why)
    if cf is not None:
        why = [f"attributes give reflectance = value x {cf[0]:g} + {cf[1]:g}, not yet applied"]
        return "dn", 1e4 * cf[0], None, why
    if kinds == {"f"} and cf_done is not None:
        why = [f"decoding applied scale {cf_done[0]:g} and offset {cf_done[1]:g}, so values are reflectance"]
        return "reflectance", 1e4, _already(evidence, cf_done), why
    if evidence.stackstac:
        return _stackstac_units(evidence)
    if kinds <= set("iu"):
        if all(la.dtype == np.int8 for la in layers):
            raise AmbiguousUnitsError(
                "the bands are int8, which cannot hold DN (reflectance x 10000): the values were scaled or cut. Open "
                'them with their scale applied, or pass units="dn" if they are DN below 128'
            )
        if {la.dtype for la in layers} != {np.dtype("uint8")}:
            return "dn", 1.0, None, [f"{names} values are DN"]
        if _is_visual(evidence):
            why = ["uint8 values of a true-colour image (visual, TCI) are taken as stretched from DN 0..2750"]
            return "uint8_rgb", TCI_SCALE, None, why
        raise AmbiguousUnitsError(
            'the bands are uint8, which may be a stretched true-colour image: pass units="uint8_rgb" (0..255 stretched '
            'from DN 0..2750), or units="dn"'
        )
    hint = ""
    if sample is not None and (finite := sample[np.isfinite(sample)]).size:
        low, mid, high = np.percentile(finite.astype(np.float64), [0, 50, 100])
        hint = f" Values run from {low:.4g} to {high:.4g}, median {mid:.4g}."
    raise AmbiguousUnitsError(
        f"the bands are {names}, and nothing says whether they are DN or reflectance.{hint} "
        'Pass units="reflectance" for 0..1, or units="dn" and offset=0 or offset=-1000'
    )


def _said_of(layer: xr.DataArray) -> str:
    said = {k: v for k, v in {**layer.encoding, **layer.attrs}.items() if k in ("units", "scale_factor", "add_offset")}
    return str(said) if said else "nothing stated"


def _stated_units(attrs: Mapping[Any, Any]) -> Literal["dn", "reflectance"] | None:
    said = str(attrs.get("units", "")).strip().lower()
    return "dn" if said in _DN else "reflectance" if said in _REFLECTANCE else None


def _cf(attrs: Mapping[Any, Any]) -> tuple[float, float] | None:
    """CF scale and offset that lead to reflectance; GDAL's default (1, 0) says nothing."""
    if "scale_factor" not in attrs:
        return None
    scale = float(np.ravel(attrs["scale_factor"])[0])
    offset = float(np.ravel(attrs.get("add_offset", 0.0))[0])
    return (scale, offset) if 1e-5 <= scale <= 1e-3 else None


def _already(evidence: Evidence, decoded: tuple[float, float] | None) -> tuple[float, ...] | None:
    """DN added to reflectance before it came here, a time step; None where unknown."""
    if decoded is not None:
        return (1e4 * decoded[1],) * evidence.steps
    return _stackstac_units(evidence)[2] if evidence.stackstac and evidence.scales_of_step(0) else None


def _stackstac_units(evidence: Evidence) -> tuple[Units, float, tuple[float, ...] | None, list[str]]:
    """What stackstac made of the values: floats times the scale plus the offset of `raster:bands`, unless told not to.

    With ``rescale=False`` its metadata are the same; values then give it away, here or inside a task.
    """
    steps = [evidence.scales_of_step(t) for t in range(evidence.steps)]
    pairs = {p for step in steps for p in step}
    if not pairs:
        raise AmbiguousUnitsError(
            "stackstac gave floats without raster:bands, which it also drops where items differ in it: it may have "
            'applied scales and offsets or not. Pass units="reflectance" and offset= (0 if what it applied was right), '
            'or units="dn" and offset=; or stack raw, dtype="uint16", fill_value=np.uint16(0), rescale=False'
        )
    if {p[0] for p in pairs} <= {None, 1}:
        return "dn", 1.0, None, ["stackstac had no scale to apply (raster:bands), so values are DN"]
    if any(stated_offset(scale, offset or 0.0) is None for scale, offset in pairs):
        raise AmbiguousUnitsError(
            f"stackstac applied scales and offsets {sorted(map(str, pairs))} that do not lead to reflectance. "
            "Pass units= and offset=, or stack with rescale=False"
        )
    applied = []
    for step in steps:
        offsets = {stated_offset(scale, offset or 0.0) for scale, offset in step}
        if len(offsets) != 1:
            raise AmbiguousUnitsError(
                "raster:bands gives the matched bands different offsets, which stackstac applied. "
                "Stack with rescale=False and pass offset="
            )
        applied.append(float(offsets.pop() or 0.0))
    seen = " or ".join(f"{a:g}" for a in sorted(set(applied)))
    return "reflectance", 1e4, tuple(applied), [f"stackstac rescaled by raster:bands (1e-4, offset {seen} DN)"]


def _is_visual(evidence: Evidence) -> bool:
    cube = evidence.cube
    names = [
        cube.name if isinstance(cube, xr.DataArray) else None,
        *(cube.attrs.get(k) for k in ("long_name", "title")),
    ]
    for key in ("band", "title", "common_name"):
        if key in cube.coords:
            names += cube.coords[key].values.ravel().tolist()
    for layer in evidence.layers:
        names += [layer.name, layer.encoding.get("source"), layer.attrs.get("long_name")]
    words = (str(n).lower() for n in names if isinstance(n, str))
    return any(w in ("visual", "true color image", "rgb") or "tci" in w.replace(".", "_").split("_") for w in words)


def offset_of_steps(
    evidence: Evidence,
    units: Units,
    applied: tuple[float, ...] | None,
    offset: str | float | Sequence[float],
    hint: str,
) -> tuple[tuple[float, ...], list[str]]:
    """DN to add, a time step, and why; or a refusal that names the argument to pass.

    Parameters
    ----------
    evidence : Evidence
    units : {"dn", "reflectance", "uint8_rgb"}
    applied : tuple of float or None
        DN that were added before the values came here, a time step; None where unknown.
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
            raise ValueError(f"offset must be one finite number, or one for each of {steps} time steps; got {offset!r}")
        return tuple(np.broadcast_to(given, steps).tolist()), [f"offset={offset} was passed"]
    if offset != "auto":
        raise ValueError(f"offset must be 'auto' or the DN to add (0, -1000), got {offset!r}")
    if units == "uint8_rgb":
        return (0.0,) * steps, ["a stretched image carries no offset"]
    recorded = evidence.recorded()
    reasons_recorded = f" ({evidence.cube.attrs[REASONS]})" if REASONS in evidence.cube.attrs else ""
    decided: list[Offset] = []
    for t, said in enumerate(evidence.of_steps()):
        if recorded is not None:
            known = math.isfinite(recorded[t])
            record = f"{OFFSET_COORD} records {f'{recorded[t]:g}' if known else 'no decision'}{reasons_recorded}"
            decided.append(Offset(recorded[t] if known else None, record))
        else:
            decided.append(_of_product(evidence, units, None if applied is None else applied[t], t, said))
    reasons: dict[str, list[int]] = {}
    for t, d in enumerate(decided):
        reasons.setdefault(d.why, []).append(t)
    sentences = [w if len(ts) == steps else f"{w} ({len(ts)} of {steps} time steps)" for w, ts in reasons.items()]
    adds = tuple(d.add for d in decided if d.add is not None)
    if len(adds) == steps:
        return adds, sentences
    open_steps = [t for t, d in enumerate(decided) if d.add is None]
    where = (
        "" if len(open_steps) == steps else f" at {len(open_steps)} of {steps} time steps{_dates(evidence, open_steps)}"
    )
    clash = any(d.contradiction for d in decided)
    raise AmbiguousUnitsError(
        f"whether the values carry the +1000 of processing baseline 04.00 is {'contradictory' if clash else 'unknown'}"
        f"{where}: {'; '.join(sentences)}.{hint} Pass offset=-1000 if they carry it, offset=0 if not"
        f"{', or one number a time step' if steps > 1 else ''}. (load_cube decides it from STAC items.)"
    )


def _of_product(evidence: Evidence, units: Units, applied: float | None, t: int, said: Mapping[str, Any]) -> Offset:
    """What is still to be added at one time step."""
    scales = evidence.scales_of_step(t)
    if applied is not None:
        # What was applied is itself a statement about the files, to be weighed against the others.
        scales = [(1e-4, applied * 1e-4)]
    elif units == "dn" and (cf := _cf(evidence.layers[0].attrs)) is not None:
        scales = [*scales, cf]
    elif units == "reflectance":
        scales = []
    carried = decide_offset(Product.read(said, scales=scales))
    if units == "dn" or carried.contradiction:
        return carried
    if applied is not None:
        # Decided always, since `applied` is a statement. They differ where stackstac applied a stale one.
        add = (carried.add or 0.0) - applied
        mended = f", so {add:+g} DN mend what was applied wrongly" if add else ""
        return Offset(add, f"{carried.why}; {applied:g} DN were applied already{mended}")
    if carried.add:
        return Offset(
            None, f"{carried.why}, and nothing says whether the reflectance was computed with that offset", True
        )
    return Offset(0.0, "reflectance is free of the offset by definition, and nothing speaks against it")


def _dates(evidence: Evidence, steps: Sequence[int]) -> str:
    if evidence.time is None or evidence.time not in evidence.cube.coords:
        return ""
    dates = [str(evidence.cube.coords[evidence.time].values[t])[:10] for t in steps[:3]]
    return f" ({', '.join(dates)}{', ...' if len(steps) > 3 else ''})"
