"""What the numbers of a cube mean: units, the offset of baseline 04.00, nodata; decided from evidence, or refused.

Canonical values are float32 DN = surface reflectance x 10000 without offset, that is ``value * scale + add[t]``.
Evidence, strongest first: the caller's arguments; `units` and `boa_add_offset` written into the cube by `load_cube` and
`synthetic_cube`; CF scale and offset, raw in attributes or already applied according to the encoding; stackstac's
rescaling; what coordinates say of the product (`baseline`). Values are looked at only where they are in memory
already, and never decide: they confirm, contradict, or serve as a hint.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from deo_cube.cube.bands import BandMatch
from deo_cube.cube.baseline import ADD_OFFSET, Offset, Product, decide_offset, stated_offset
from deo_cube.cube.grid import dims
from deo_cube.errors import AmbiguousUnitsError

__all__ = ["OFFSET_COORD", "SCL_INVALID", "TCI_SCALE", "Radiometry", "canonical", "decide_radiometry", "implausible"]

Units = Literal["dn", "reflectance", "uint8_rgb"]

OFFSET_COORD = "boa_add_offset"
"""Coordinate along time, or attribute, that records a decision made earlier: the DN to add; NaN where undecided."""

SCL_INVALID = (0, 1, 3, 8, 9, 10)
"""Classes of the scene classification that hide the ground: no data, saturated or defective, cloud shadow, cloud of
medium and of high probability, thin cirrus. Water (6) and snow (11) are ground, and stay valid."""

TCI_SCALE = 2750 / 255
"""DN a step of an 8-bit true-colour image stretched from DN 0..2750, as EuroSAT's and most browse images are. The
stretch clips what is brighter, so this is its inverse only below DN 2750."""

_DN = {"dn", "digital number", "digital numbers", "digital_number", "digital_numbers", "counts"}
_REFLECTANCE = {"reflectance", "surface reflectance", "surface_reflectance", "boa_reflectance", "toa_reflectance"}

# Numbers that mark "no data" in files which do not say so; none of them is a reflectance x 10000.
_FILLS = (65535.0, -9999.0, -32768.0)

_SAMPLE = 1_000_000


@dataclass(frozen=True)
class Radiometry:
    """Units, offset and nodata of a cube: ``canonical DN = value * scale + add[t]``."""

    units: Units
    """Of the values in the cube."""
    scale: float
    add: tuple[float, ...]
    """DN; one for all time steps, or one a time step."""
    nodata: float | None
    """Value of the cube (before scaling) that means "no data"; NaN and infinity always do."""
    scl_invalid: tuple[int, ...] = ()
    """Classes of the scene classification that count as invalid; empty for a cube without one."""
    why: tuple[str, ...] = ()
    """The evidence, in sentences."""

    def __post_init__(self) -> None:
        if self.units not in ("dn", "reflectance", "uint8_rgb"):
            raise ValueError(f"units must be 'dn', 'reflectance' or 'uint8_rgb', got {self.units!r}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale must be positive, got {self.scale}")
        if not self.add or not all(math.isfinite(a) for a in self.add):
            raise ValueError(f"add must hold finite numbers, one or one a time step, got {self.add}")
        if self.nodata is not None and not math.isfinite(self.nodata):
            raise ValueError("nodata must be a finite number or None: NaN and infinity are invalid anyhow")

    def to_attrs(self) -> dict[str, Any]:
        """The decision as plain JSON values, for the attributes of a result."""
        add = self.add[0] if len(set(self.add)) == 1 else list(self.add)
        return {
            "units": self.units,
            "scale": self.scale,
            "add": add,
            "nodata": self.nodata,
            "scl_invalid": list(self.scl_invalid),
            "why": list(self.why),
        }

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        # The reasons change no number.
        return ("deo_cube.Radiometry", self.units, self.scale, self.add, self.nodata, self.scl_invalid)

    def __repr__(self) -> str:
        adds = sorted(set(self.add))
        add = f"{adds[0]:+g}" if len(adds) == 1 else f"{' or '.join(f'{a:+g}' for a in adds)} by time step"
        nodata = "NaN is no data" if self.nodata is None else f"{self.nodata:g} is no data"
        return f"<Radiometry: {self.units}, DN = value x {self.scale:g} {add}; {nodata}; {'; '.join(self.why)}>"


def canonical(
    values: np.ndarray[Any, Any], radiometry: Radiometry, time_index: int = 0
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Turn values of a cube into canonical DN: the reference for what runs on a device.

    Parameters
    ----------
    values : array of any shape
        Of one time step, in the units of the cube.
    radiometry : Radiometry
    time_index : int
        Which time step.

    Returns
    -------
    float32 array
        Reflectance x 10000; NaN where there is no data. Computed in float64 and rounded once, so that raw DN,
        harmonised DN and float64 reflectance of one scene give the same bits.
    """
    add = radiometry.add[time_index if len(radiometry.add) > 1 else 0]
    exact = np.asarray(values).astype(np.float64)
    return np.where(_valid(exact, radiometry.nodata), exact * radiometry.scale + add, np.nan).astype(np.float32)


def implausible(values: np.ndarray[Any, Any], radiometry: Radiometry) -> str | None:
    """Tell a mistake that the values give away beyond doubt; for a sample, inside a task.

    Parameters
    ----------
    values : array of any shape
        A sample of the cube's values, units of the cube.

    Returns
    -------
    str or None
        The mistake and the argument that mends it. None for plausible or doubtful values: reflectance is refused only
        where its median is above 20, DN only where all are fractions below 2, an offset of -1000 only where most valid
        values are below 900, a fill value only where it makes up more than 1 % of the values.
    """
    return _mistake(np.asarray(values), radiometry, low_share=0.5, adds=radiometry.add)


def decide_radiometry(
    cube: xr.Dataset | xr.DataArray,
    match: BandMatch,
    *,
    units: str = "auto",
    offset: str | float | Sequence[float] = "auto",
    nodata: str | float | None = "auto",
) -> Radiometry:
    """Decide units, offset and nodata of the matched bands of a cube; no pixel is read that is not in memory.

    Parameters
    ----------
    cube : Dataset or DataArray
    match : BandMatch
        Of this cube.
    units : {"auto", "dn", "reflectance", "uint8_rgb"}
        Of the values. ``uint8_rgb``: an 8-bit true-colour image stretched from DN 0..2750.
    offset : "auto", float or sequence of float
        DN to add (0, or -1000 where values carry the +1000 of baseline 04.00), for all time steps or one for each.
    nodata : "auto", float or None
        Value that means "no data". Auto: as attributes or encoding say, else 0 for integers, else NaN only.

    Returns
    -------
    Radiometry

    Raises
    ------
    AmbiguousUnitsError
        Where the evidence does not decide, or contradicts itself or the values; the message names the argument to pass.
    """
    if units not in ("auto", "dn", "reflectance", "uint8_rgb"):
        raise ValueError(f"units must be 'auto', 'dn', 'reflectance' or 'uint8_rgb', got {units!r}")
    layers = _layers(cube, match)
    time = dims(cube).time
    steps = cube.sizes[time] if time is not None else 1
    evidence = _Evidence(cube, match, layers, time, steps)
    sample = _sample(cube, match, layers)

    chosen, scale, applied, why = _decide_units(evidence, units, sample)
    void, void_why = _decide_nodata(layers, chosen, nodata)
    add, add_why = _decide_offset(evidence, chosen, applied, offset, _hint(sample, scale, void))
    radiometry = Radiometry(
        units=chosen,
        scale=scale,
        add=(add[0],) if len(set(add)) == 1 else add,
        nodata=void,
        scl_invalid=SCL_INVALID if match.scl else (),
        why=(*why, *add_why, void_why),
    )
    if sample is not None:
        told = not isinstance(offset, str)
        mistake = _mistake(sample, radiometry, low_share=0.05, adds=(0.0,) if told else radiometry.add)
        if mistake:
            raise AmbiguousUnitsError(mistake)
        if told and (doubt := _mistake(sample, radiometry, low_share=0.05, adds=radiometry.add)):
            warnings.warn(f"offset={offset} is taken as given, but {doubt}", UserWarning, stacklevel=3)
            radiometry = Radiometry(**{**radiometry.__dict__, "why": (*radiometry.why, f"but {doubt}")})
    return radiometry


# --- evidence ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Evidence:
    cube: xr.Dataset | xr.DataArray
    match: BandMatch
    layers: tuple[xr.DataArray, ...]
    time: str | None
    steps: int

    def attrs(self) -> list[Mapping[Any, Any]]:
        return [la.attrs for la in self.layers]

    def of_step(self, t: int) -> dict[str, Any]:
        """Scalars that coordinates and attributes say of one time step, by name."""
        said = {str(k): v for k, v in self.cube.attrs.items() if isinstance(v, (str, int, float, bool))}
        for name, coord in self.cube.coords.items():
            if coord.ndim == 0 or (coord.ndim == 1 and coord.dims[0] == self.time and name != self.time):
                value = coord.values if coord.ndim == 0 else coord.values[t]
                said[str(name)] = value.item() if isinstance(value, (np.ndarray, np.generic)) else value
        return said

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
        places += [a.get(OFFSET_COORD) for a in self.attrs()]
        said = [p for p in places if p is not None]
        if not said:
            return None
        values = np.asarray(said[0].values if isinstance(said[0], xr.DataArray) else said[0], dtype=np.float64).ravel()
        if values.size not in (1, self.steps):
            raise AmbiguousUnitsError(
                f"{OFFSET_COORD} holds {values.size} values for {self.steps} time steps. Pass offset=0 or offset=-1000"
            )
        return tuple(np.broadcast_to(values, self.steps).tolist())


def _layers(cube: xr.Dataset | xr.DataArray, match: BandMatch) -> tuple[xr.DataArray, ...]:
    """The matched variables of a Dataset, or the one DataArray that holds them all."""
    if isinstance(cube, xr.DataArray):
        return (cube,)
    return tuple(cube[v] for v in dict.fromkeys(match.variables) if v is not None)


def _sample(
    cube: xr.Dataset | xr.DataArray, match: BandMatch, layers: Sequence[xr.DataArray]
) -> np.ndarray[Any, Any] | None:
    """Up to a million values of the matched bands; None unless all of them are in memory."""
    if not all(isinstance(la.variable._data, np.ndarray) for la in layers):
        return None
    if match.band_dim is not None:
        layers = [la.isel({match.band_dim: [i for i in match.indices if i is not None]}) for la in layers]
    stride = max(1, math.ceil(math.sqrt(sum(la.size for la in layers) / _SAMPLE)))
    d = dims(cube)
    thinned = [la.isel({d.y: slice(None, None, stride), d.x: slice(None, None, stride)}) for la in layers]
    return np.concatenate([la.values.ravel() for la in thinned])


def _hint(sample: np.ndarray[Any, Any] | None, scale: float, nodata: float | None) -> str:
    if sample is None:
        return ""
    valid = sample[_valid(sample, nodata)].astype(np.float64) * scale
    if valid.size == 0:
        return " The values are all no data."
    low, smallest = float((valid < 900).mean()), float(valid.min())
    if smallest >= 1000:
        return f" The smallest valid value is DN {smallest:.0f}: looks as if the offset is carried (offset=-1000)."
    if low > 0.05:
        return f" {low:.0%} of the valid values are below DN 900: looks as if no offset is carried (offset=0)."
    return f" The smallest valid value is DN {smallest:.0f}, which tells neither."


def _valid(values: np.ndarray[Any, Any], nodata: float | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
    valid = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    return valid if nodata is None else valid & (values != nodata)


def _mistake(values: np.ndarray[Any, Any], r: Radiometry, *, low_share: float, adds: Sequence[float]) -> str | None:
    valid = values[_valid(values, r.nodata)]
    if valid.size < 16:
        return None
    for fill in _FILLS:
        share = float((valid == fill).mean())
        if share > 0.01:
            return f"{share:.0%} of the values are {fill:g}, which is no DN but a mark of no data: pass nodata={fill:g}"
    if r.units == "reflectance":
        median = float(np.median(valid))
        if median > 20:
            return f'units="reflectance" cannot be: the median value is {median:g}. Pass units="dn" and the offset'
    elif r.units == "uint8_rgb":
        if float(valid.max()) > 255 or float(valid.min()) < 0:
            return f'units="uint8_rgb" cannot be: values reach {float(valid.max()):g}. Pass units="dn" and the offset'
    elif valid.dtype.kind == "f" and -1 < float(valid.min()) and float(valid.max()) <= 2 and (valid % 1).any():
        return (
            f'units="dn" cannot be: all values lie between {float(valid.min()):.3g} and {float(valid.max()):.3g}. '
            'Pass units="reflectance"'
        )
    if set(adds) == {ADD_OFFSET}:
        low = float((valid.astype(np.float64) * r.scale < 900).mean())
        if low > low_share:
            return (
                f"{low:.0%} of the valid values are below DN 900, which values that carry the +1000 of baseline 04.00 "
                "cannot be: it seems to have been subtracted already. Pass offset=0 if so, offset=-1000 if not"
            )
    return None


# --- units ------------------------------------------------------------------------------------------------------------


def _decide_units(
    evidence: _Evidence, units: str, sample: np.ndarray[Any, Any] | None
) -> tuple[Units, float, tuple[float, ...] | None, list[str]]:
    """Units, scale to DN, DN that were added already a time step (None where unknown), and why."""
    layers = evidence.layers
    kinds = {la.dtype.kind for la in layers}
    names = ", ".join(sorted({str(la.dtype) for la in layers}))
    if not kinds <= set("iuf"):
        raise AmbiguousUnitsError(f"the bands hold {names}; wanted numbers (integer DN or floats)")
    if any(str(a.get("_Unsigned", "")).lower() == "true" and la.dtype.kind == "i" for la, a in _with_attrs(layers)):
        raise AmbiguousUnitsError(
            "the bands are unsigned integers read as signed ones (_Unsigned), so that large values are negative. "
            "Open the file decoded, open_dataset(path), or with mask_and_scale=False and .astype('uint16')"
        )
    if units == "reflectance" and kinds & set("iu") and not any(_cf(a) for a in evidence.attrs()):
        raise AmbiguousUnitsError(f'units="reflectance", but the bands are integers ({names}): pass units="dn"')
    if units == "uint8_rgb":
        return "uint8_rgb", TCI_SCALE, None, ['units="uint8_rgb" was passed: 0..255 stretched from DN 0..2750']

    stated = {u for a in [evidence.cube.attrs, *evidence.attrs()] if (u := _stated_units(a)) is not None}
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
        return (
            "dn",
            1e4 * cf[0],
            None,
            [f"attributes give reflectance = value x {cf[0]:g} + {cf[1]:g}, not yet applied"],
        )
    if kinds == {"f"} and cf_done is not None:
        why = [f"decoding applied scale {cf_done[0]:g} and offset {cf_done[1]:g}, so values are reflectance"]
        return "reflectance", 1e4, _already(evidence, cf_done), why
    if kinds == {"f"} and type(evidence.cube.attrs.get("spec")).__name__ == "RasterSpec":
        return _stackstac_units(evidence)
    if kinds <= set("iu"):
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


def _with_attrs(layers: Sequence[xr.DataArray]) -> list[tuple[xr.DataArray, Mapping[Any, Any]]]:
    return [(la, la.attrs) for la in layers]


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


def _already(evidence: _Evidence, decoded: tuple[float, float] | None) -> tuple[float, ...] | None:
    return None if decoded is None else (1e4 * decoded[1],) * evidence.steps


def _stackstac_units(evidence: _Evidence) -> tuple[Units, float, tuple[float, ...] | None, list[str]]:
    """What stackstac made of the values: floats times the scale plus the offset of `raster:bands`, unless told not to.

    With ``rescale=False`` its metadata are the same; values then give it away, here or inside a task.
    """
    steps = [evidence.scales_of_step(t) for t in range(evidence.steps)]
    pairs = {p for step in steps for p in step}
    if not pairs or pairs == {(None, None)} or {p[0] for p in pairs} <= {None, 1}:
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


def _is_visual(evidence: _Evidence) -> bool:
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


# --- offset -----------------------------------------------------------------------------------------------------------


def _decide_offset(
    evidence: _Evidence,
    units: Units,
    applied: tuple[float, ...] | None,
    offset: str | float | Sequence[float],
    hint: str,
) -> tuple[tuple[float, ...], list[str]]:
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
    decided: list[Offset] = []
    for t in range(steps):
        if recorded is not None and math.isfinite(recorded[t]):
            decided.append(Offset(recorded[t], f"{OFFSET_COORD} records {recorded[t]:g}"))
        else:
            decided.append(_of_product(evidence, units, None if applied is None else applied[t], t))
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


def _of_product(evidence: _Evidence, units: Units, applied: float | None, t: int) -> Offset:
    """What is still to be added at one time step."""
    said = evidence.of_step(t)
    scales = evidence.scales_of_step(t)
    if applied is not None:
        # What was applied is itself a statement about the files, to be weighed against the others.
        scales = [(1e-4, applied * 1e-4)]
    elif units == "dn" and (cf := next(iter({_cf(a) for a in evidence.attrs()}), None)) is not None:
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


def _dates(evidence: _Evidence, steps: Sequence[int]) -> str:
    if evidence.time is None or evidence.time not in evidence.cube.coords:
        return ""
    dates = [str(evidence.cube.coords[evidence.time].values[t])[:10] for t in steps[:3]]
    return f" ({', '.join(dates)}{', ...' if len(steps) > 3 else ''})"


# --- nodata -----------------------------------------------------------------------------------------------------------


def _decide_nodata(
    layers: Sequence[xr.DataArray], units: Units, nodata: str | float | None
) -> tuple[float | None, str]:
    if nodata is None:
        return None, "nodata=None was passed"
    if not isinstance(nodata, str):
        value = float(nodata)
        return (value, f"nodata={value:g} was passed") if math.isfinite(value) else (None, "nodata=NaN was passed")
    if nodata != "auto":
        raise ValueError(f"nodata must be 'auto', a number or None, got {nodata!r}")
    said = {_stated_nodata(la) for la in layers}
    if len(said - {None}) > 1:
        raise AmbiguousUnitsError(f"the bands state different nodata values ({said}): unify them and pass nodata=")
    if said != {None}:
        stated = next(v for v in said if v is not None)
        finite = math.isfinite(stated)
        return (stated, f"{stated:g} is stated as nodata") if finite else (None, "NaN is stated as nodata")
    if units != "uint8_rgb" and all(la.dtype.kind in "iu" for la in layers):
        return 0.0, "0 is no data in Sentinel-2 DN"
    return None, "no nodata is stated, so NaN alone is no data"


def _stated_nodata(layer: xr.DataArray) -> float | None:
    """The stated nodata of one variable; NaN where NaN is stated; None where nothing is."""
    # A fill value in the encoding was turned into NaN on decoding to floats; of integers it is still the raw mark.
    places = [layer.attrs] + ([layer.encoding] if layer.dtype.kind in "iu" else [])
    for attrs in places:
        for key in ("_FillValue", "nodata", "missing_value", "nodatavals"):
            if attrs.get(key) is None:
                continue
            value = float(np.ravel(attrs[key])[0])
            if layer.dtype.kind in "iu" and not (np.iinfo(layer.dtype).min <= value <= np.iinfo(layer.dtype).max):
                continue
            return value
    return None
