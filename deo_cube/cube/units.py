"""Units and scale of a cube's values: DN, reflectance, per cent or an 8-bit image, from attributes and encodings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import xarray as xr

from deo_cube.cube.baseline import stated_offset
from deo_cube.cube.evidence import Evidence, cf_of, number_of, stated_units
from deo_cube.errors import AmbiguousUnitsError

__all__ = ["TCI_SCALE", "UNITS", "Decided", "Units", "units_and_scale"]

Units = Literal["dn", "reflectance", "percent", "uint8_rgb"]
UNITS: tuple[Units, ...] = ("dn", "reflectance", "percent", "uint8_rgb")

TCI_SCALE = 2750 / 255
"""DN per step of an 8-bit true-colour image stretched from DN 0..2750, as EuroSAT's and most browse images are. The
stretch clips what is brighter, so this is its inverse only below DN 2750."""

_SCALE = {"dn": 1.0, "reflectance": 1e4, "percent": 100.0, "uint8_rgb": TCI_SCALE}


@dataclass(frozen=True)
class Decided:
    """Units and scale, before the offset."""

    units: Units
    scale: float
    """DN per unit of the values."""
    applied: tuple[tuple[float, ...], ...] = ()
    """DN that were added before the values came here, per time step; several where bands differ, none where unknown."""
    why: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    """What metadata say against the units that the caller passed."""
    masked: bool = False
    """Values were decoded, or loaded as floats, which made NaN of no data."""


def units_and_scale(evidence: Evidence, units: str, sample: np.ndarray[Any, Any] | None) -> Decided:
    """Decide units and scale to DN.

    Parameters
    ----------
    evidence : Evidence
    units : {"auto", "dn", "reflectance", "percent", "uint8_rgb"}
        As the caller passed them, which decides.
    sample : array or None
        Values in memory, for the message.

    Raises
    ------
    AmbiguousUnitsError
        Where metadata do not decide or contradict each other, and where the dtype cannot hold the units.
    """
    layers = evidence.layers
    kinds: set[str] = {la.dtype.kind for la in layers}
    names = ", ".join(sorted({str(la.dtype) for la in layers}))
    if not kinds <= set("iuf"):
        raise AmbiguousUnitsError(f"the bands hold {names}; expected numbers (integer DN or floats)")
    if any(str(la.attrs.get("_Unsigned", "")).lower() == "true" and la.dtype.kind == "i" for la in layers):
        raise AmbiguousUnitsError(
            "the bands are unsigned integers read as signed ones (_Unsigned), so that large values are negative. "
            "Open the file decoded, open_dataset(path), or with mask_and_scale=False and .astype('uint16')"
        )
    if units != "auto":
        return _passed(evidence, cast(Units, units), kinds, names)
    stated = {stated_units(la.attrs) or stated_units(evidence.cube.attrs) for la in layers}
    raw, decoded = {cf_of(la, la.attrs) for la in layers}, {cf_of(la, la.encoding) for la in layers}
    if len(stated) > 1 or len(raw) > 1 or len(decoded) > 1:
        listed = ", ".join(f"{la.name}: {_said_of(la)}" for la in layers)
        raise AmbiguousUnitsError(
            f"the bands have different units, scales or offsets ({listed}). If their values are alike all the same, "
            'pass units="reflectance" (0 to 1), units="percent" or units="dn", and offset=; if not, bring them to one '
            "first"
        )
    (said,), (cf,), (cf_done,) = stated, raw, decoded
    if said is not None and said.startswith("other"):
        raise AmbiguousUnitsError(
            f"attributes give the units {said.partition(': ')[2]!r}, which are not reflectance. If they are wrong, "
            'pass units="dn", "reflectance" or "percent", and offset='
        )
    if cf is not None:
        _check_scale(evidence, cf)
    known = cast("Units | None", said)
    if kinds <= set("iu") and known in ("reflectance", "percent"):
        if cf is None and known == "reflectance":
            raise AmbiguousUnitsError(f'attrs say reflectance, but the bands are {names}. Pass units="dn" and offset=')
        if cf is not None:  # CF: the units are those of the values once scale and offset are applied
            return _packed(cf, _SCALE[known])
    if known is not None:
        why = (f"units {known!r} stand in the attributes",)
        masked = cf_done is not None
        applied = () if known == "dn" else _applied(evidence, [cf_done])
        return Decided(known, _SCALE[known], applied, why, masked=masked or (known != "dn" and evidence.stackstac))
    if cf is not None:
        return _packed(cf, 1e4)
    if kinds == {"f"} and cf_done is not None:
        why = (f"decoding applied scale {cf_done[0]:g} and offset {cf_done[1]:g}, so values are reflectance",)
        return Decided("reflectance", 1e4, _applied(evidence, [cf_done]), why, masked=True)
    if evidence.stackstac:
        return _stackstac(evidence)
    if kinds <= set("iu"):
        return _integers(evidence, names)
    hint = ""
    if sample is not None and (finite := sample[np.isfinite(sample)]).size:
        low, mid, high = np.percentile(finite.astype(np.float64), [0, 50, 100])
        hint = f" Values run from {low:.4g} to {high:.4g}, median {mid:.4g}."
    raise AmbiguousUnitsError(
        f"the bands are {names}, and nothing says whether they are DN or reflectance.{hint} "
        'Pass units="reflectance" for 0..1, units="percent" for 0..100, or units="dn" and offset=0 or offset=-1000'
    )


def _passed(evidence: Evidence, units: Units, kinds: set[str], names: str) -> Decided:
    """What the caller passed, with what metadata say against it."""
    layers = evidence.layers
    if units == "reflectance" and kinds & set("iu"):
        raise AmbiguousUnitsError(f'units="reflectance", but the bands are integers ({names}): pass units="dn"')
    if units == "uint8_rgb":
        return Decided("uint8_rgb", TCI_SCALE, (), ('units="uint8_rgb" was passed: 0..255 stretched from DN 0..2750',))
    said = {stated_units(la.attrs) or stated_units(evidence.cube.attrs) for la in layers} - {None}
    against = sorted({"DN" if s == "dn" else str(s).removeprefix("other: ") for s in said if s != units})
    doubts: tuple[str, ...] = ()
    if "percent" in said and units == "reflectance":
        doubts = ('attributes say per cent: pass units="percent" if values run from 0 to 100',)
    elif "reflectance" in said and units == "percent":
        doubts = ('attributes say reflectance: pass units="reflectance" if values run from 0 to 1',)
    why = [f'units="{units}" was passed' + (f" (attributes say {', '.join(against)})" if against else "")]
    if units == "dn":
        return Decided("dn", 1.0, (), tuple(why), doubts)
    encodings = [cf_of(la, la.encoding) for la in layers]
    masked = all(e is not None for e in encodings) or evidence.stackstac
    return Decided(units, _SCALE[units], _applied(evidence, encodings), tuple(why), doubts, masked)


def _packed(cf: tuple[float, float], per_unit: float) -> Decided:
    scale, offset = (number * per_unit / 1e4 for number in cf)
    why = f"attributes give reflectance = value x {scale:g} + {offset:g}, not yet applied"
    return Decided("dn", cf[0] * per_unit if cf[0] != 1 else 1.0, (), (why,))


def _check_scale(evidence: Evidence, cf: tuple[float, float]) -> None:
    """Refuse a scale that may be something else, and an offset that the DN of no product have."""
    scale, offset = cf
    if any(abs(scale - size) <= 0.01 * size for size in evidence.pixel_sizes) and not 0.99e-4 < scale < 1.01e-4:
        raise AmbiguousUnitsError(
            f"attributes give a scale_factor of {scale:g}, which is also the size of a pixel: pass units= and offset= "
            '(units="dn" leaves it out), or delete the attribute'
        )
    if offset and stated_offset(scale, offset) is None:
        raise AmbiguousUnitsError(
            f"attributes give scale {scale:g} and offset {offset:g}, as packed values have them. Open the file decoded "
            "(mask_and_scale=True), or xr.decode_cf(cube); or pass units= and offset="
        )


def _integers(evidence: Evidence, names: str) -> Decided:
    layers = evidence.layers
    scales = {s for la in layers if (s := number_of(la.attrs, "scale_factor", "scales")) not in (None, 1.0, 0.01)}
    if odd := sorted(s for s in scales if not any(abs(s - size) <= 0.01 * size for size in evidence.pixel_sizes)):
        raise AmbiguousUnitsError(
            f"attributes give a scale_factor of {odd[0]:g}, which does not lead from DN to reflectance: pass units= "
            'and offset= (units="dn" leaves it out), or delete the attribute'
        )
    if all(la.dtype == np.int8 for la in layers):
        raise AmbiguousUnitsError(
            "the bands are int8, which cannot hold DN (reflectance x 10000): the values were scaled or cut. Open "
            'them with their scale applied, or pass units="dn" if they are DN below 128'
        )
    if {la.dtype for la in layers} != {np.dtype("uint8")}:
        return Decided("dn", 1.0, (), (f"{names} values are DN",))
    if _is_visual(evidence):
        why = "uint8 values of a true-colour image (visual, TCI) are taken as stretched from DN 0..2750"
        return Decided("uint8_rgb", TCI_SCALE, (), (why,))
    raise AmbiguousUnitsError(
        'the bands are uint8, which may be a stretched true-colour image: pass units="uint8_rgb" (0..255 stretched '
        'from DN 0..2750), units="percent" (reflectance, 0..100), or units="dn"'
    )


def _said_of(layer: xr.DataArray) -> str:
    said = {k: v for k, v in {**layer.encoding, **layer.attrs}.items() if k in ("units", "scale_factor", "add_offset")}
    return str(said) if said else "nothing stated"


def _applied(evidence: Evidence, encodings: list[tuple[float, float] | None]) -> tuple[tuple[float, ...], ...]:
    """DN added to reflectance before it came here, per time step; several where bands differ, none where unknown."""
    known = dict.fromkeys(1e4 * cf[1] for cf in encodings if cf is not None)
    # Another offset than that of the baseline belongs to a packing, which decoding undid.
    offsets = [o for o in known if stated_offset(1e-4, o * 1e-4) in (0.0, -1000.0)]
    if offsets:
        return tuple((o,) * evidence.steps for o in offsets)
    return _stackstac(evidence).applied if evidence.stackstac and evidence.scales_of_step(0) else ()


def _stackstac(evidence: Evidence) -> Decided:
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
        return Decided("dn", 1.0, (), ("stackstac had no scale to apply (raster:bands), so values are DN",))
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
    why = f"stackstac rescaled by raster:bands (1e-4, offset {seen} DN)"
    return Decided("reflectance", 1e4, (tuple(applied),), (why,), masked=True)


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
