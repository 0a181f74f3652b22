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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from deo_cube.cube.bands import BandMatch
from deo_cube.cube.baseline import ADD_OFFSET
from deo_cube.cube.evidence import OFFSET_COORD, TCI_SCALE, Evidence, Units, offset_of_steps, units_and_scale
from deo_cube.cube.grid import dims
from deo_cube.errors import AmbiguousUnitsError

__all__ = ["OFFSET_COORD", "SCL_INVALID", "TCI_SCALE", "Radiometry", "canonical", "decide_radiometry", "implausible"]

SCL_INVALID = (0, 1, 3, 8, 9, 10)
"""Classes of the scene classification that hide the ground: no data, saturated or defective, cloud shadow, cloud of
medium and of high probability, thin cirrus. Water (6) and snow (11) are ground, and stay valid."""

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
        where its median is above 3, DN only where all are fractions below 2, an offset of -1000 only where most valid
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
    evidence = Evidence.of(cube, match)
    layers = evidence.layers
    sample = _sample(cube, match, layers)

    chosen, scale, applied, why = units_and_scale(evidence, units, sample)
    void, void_why = _decide_nodata(layers, chosen, nodata)
    add, add_why = offset_of_steps(evidence, chosen, applied, offset, _hint(sample, scale, void))
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
    valid = valid.astype(np.float32) if valid.dtype == np.float16 else valid  # which has no 65535
    if valid.size < 16:
        return None
    for fill in _FILLS:
        share = float((valid == fill).mean())
        if share > 0.01:
            return f"{share:.0%} of the values are {fill:g}, which is no DN but a mark of no data: pass nodata={fill:g}"
    if r.units == "reflectance":
        median = float(np.median(valid))
        if median > 3:
            per_cent = " (divide per cent by 100)" if median <= 100 else ""
            return (
                f'units="reflectance" cannot be: the median value is {median:g}. Pass units="dn" and the offset'
                + per_cent
            )
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
    """The stated nodata of one variable; infinite where NaN is stated; None where nothing is."""
    # A fill value in the encoding was turned into NaN on decoding to floats; of integers it is still the raw mark.
    places = [layer.attrs] + ([layer.encoding] if layer.dtype.kind in "iu" else [])
    for attrs in places:
        for key in ("_FillValue", "nodata", "missing_value", "nodatavals"):
            if attrs.get(key) is None:
                continue
            value = float(np.ravel(attrs[key])[0])
            if layer.dtype.kind in "iu" and not (np.iinfo(layer.dtype).min <= value <= np.iinfo(layer.dtype).max):
                continue
            return value if math.isfinite(value) else math.inf
    return None
