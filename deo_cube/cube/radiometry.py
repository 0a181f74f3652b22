"""What the numbers of a cube mean: units, the offset of baseline 04.00, nodata; decided from evidence, or refused.

Canonical values are float32 DN = surface reflectance x 10000 without offset, that is ``value * scale + add[t]``.
Evidence, strongest first: the caller's arguments; `units` and `boa_add_offset` written into the cube by `load_cube` and
`synthetic_cube`; CF scale and offset, raw in attributes or already applied according to the encoding; stackstac's
rescaling; what coordinates say of the product (`baseline`). Values are looked at only where they are in memory
already, and never decide: they confirm, contradict (`plausible`), or serve as a hint. What the caller passed is not
refused for what values look like, unless it is impossible.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from deo_cube import arguments
from deo_cube.cube.bands import BandMatch
from deo_cube.cube.evidence import OFFSET_COORD, Evidence, offset_of_steps
from deo_cube.cube.grid import dims
from deo_cube.cube.nodata import decide_nodata, stated_nodata
from deo_cube.cube.plausible import Mistake, mistakes, mixed_with_nodata, not_nodata
from deo_cube.cube.units import TCI_SCALE, UNITS, Decided, Units, units_and_scale
from deo_cube.errors import AmbiguousUnitsError, ArgumentError

__all__ = ["OFFSET_COORD", "SCL_INVALID", "TCI_SCALE", "Radiometry", "canonical", "decide_radiometry", "implausible"]

SCL_INVALID = (0, 1, 3, 8, 9, 10)
"""Classes of the scene classification that hide the ground: no data, saturated or defective, cloud shadow, cloud of
medium and of high probability, thin cirrus. Water (6) and snow (11) are ground, and stay valid."""

_SAMPLE = 1_000_000


@dataclass(frozen=True)
class Radiometry:
    """Units, offset and nodata of a cube: ``canonical DN = value * scale + add[t]``."""

    units: Units
    """Of the values in the cube."""
    scale: float
    add: tuple[float, ...]
    """DN; one for all time steps, or one per time step."""
    nodata: float | None
    """Value of the cube (before scaling) that means "no data"; NaN and infinity always do."""
    scl_invalid: tuple[int, ...] = ()
    """Classes of the scene classification that count as invalid; empty for a cube without one."""
    why: tuple[str, ...] = ()
    """The evidence, in sentences."""
    given: tuple[str, ...] = ()
    """Which of "units", "offset" and "nodata" the caller passed."""

    def __post_init__(self) -> None:
        if self.units not in UNITS:
            raise ArgumentError(f"units must be one of {', '.join(map(repr, UNITS))}, got {self.units!r}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ArgumentError(f"scale must be positive, got {self.scale}")
        if not self.add or not all(math.isfinite(a) for a in self.add):
            raise ArgumentError(f"add must hold finite numbers, one or one a time step, got {self.add}")
        if self.nodata is not None and not math.isfinite(self.nodata):
            raise ArgumentError("nodata must be a finite number or None: NaN and infinity are invalid anyhow")

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
        # The reasons change no number, and neither does who decided.
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
    return np.where(not_nodata(exact, radiometry.nodata), exact * radiometry.scale + add, np.nan).astype(np.float32)


def implausible(values: np.ndarray[Any, Any], radiometry: Radiometry, time_index: int = 0) -> str | None:
    """Tell a mistake that the values give away beyond doubt; for a sample, inside a task.

    Parameters
    ----------
    values : array (bands, ...) or of any other shape
        A sample of the cube's values at one time step, units of the cube.
    radiometry : Radiometry
    time_index : int
        Which time step.

    Returns
    -------
    str or None
        The mistakes and the arguments that decide. None for plausible or doubtful values: reflectance is refused only
        where its median or 5 % of it are above 2, DN only where all are fractions below 2, an offset of -1000 only
        where most valid values are below 900 or some below 500, a mark of no data only where it makes up more than 1 %
        of the values.
    """
    values = np.asarray(values)
    add = radiometry.add[time_index if len(radiometry.add) > 1 else 0]
    found = mistakes(list(values) if values.ndim > 1 else [values], radiometry, add=add)
    refused = [m.text for m in found if m.topic not in radiometry.given]
    return ". ".join(refused) or None


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
    units : {"auto", "dn", "reflectance", "percent", "uint8_rgb"}
        Of the values. ``reflectance``: 0 to 1. ``percent``: reflectance, 0 to 100. ``uint8_rgb``: an 8-bit true-colour
        image stretched from DN 0..2750.
    offset : "auto", float or sequence of float
        DN to add (0, or -1000 where values carry the +1000 of baseline 04.00), for all time steps or one for each.
    nodata : "auto", float or None
        Value that means "no data". Auto: as attributes or encoding say, else 0, as in the products; NaN alone for
        floats of which NaN is stated, or which were decoded with a scale.

    Returns
    -------
    Radiometry

    Raises
    ------
    AmbiguousUnitsError
        Where the evidence does not decide, or contradicts itself or the values; the message lists all that is wrong
        and names the arguments to pass.
    ArgumentError
        For arguments that cannot be.

    Warns
    -----
    UserWarning
        Where attributes or values contradict an argument that was passed, which decides all the same.
    """
    arguments.choice("units", units, ("auto", *UNITS))
    evidence = Evidence.of(cube, match)
    layers = evidence.layers
    samples = _samples(cube, match, layers)
    sample = None if samples is None else np.concatenate([s.ravel() for s in samples])
    given = tuple(
        name for name, value in (("units", units), ("offset", offset), ("nodata", nodata)) if not _is_auto(value)
    )
    problems: list[str] = []
    decided: Decided | None = None
    try:
        decided = units_and_scale(evidence, units, sample)
    except AmbiguousUnitsError as error:
        problems.append(str(error))
    try:
        void, void_why = decide_nodata(evidence, decided, nodata)
    except AmbiguousUnitsError as error:
        problems.append(str(error))
        void, void_why = None, ""
    add: tuple[float, ...] = (0.0,)
    add_why: list[str] = []
    if decided is not None:
        try:
            add, add_why = offset_of_steps(evidence, decided, offset, _hint(sample, decided.scale, void))
        except AmbiguousUnitsError as error:
            problems.append(str(error))
    if decided is None or problems:
        raise AmbiguousUnitsError(". ".join(p.rstrip(".") for p in problems))
    radiometry = Radiometry(
        units=decided.units,
        scale=decided.scale,
        add=(add[0],) if len(set(add)) == 1 else add,
        nodata=void,
        scl_invalid=_scl_invalid(cube, match, void if "nodata" in given else None),
        why=(*decided.why, *add_why, void_why),
        given=given,
    )
    doubts = list(decided.doubts)
    if samples is not None:
        refused, doubted = _against_values(samples, layers, evidence, radiometry)
        if refused:
            raise AmbiguousUnitsError(". ".join(refused))
        doubts += doubted
    if doubts:
        passed = ", ".join(
            f"{n}={v!r}" for n, v in (("units", units), ("offset", offset), ("nodata", nodata)) if n in given
        )
        warnings.warn(f"{passed} is taken as given, but {'; '.join(doubts)}", UserWarning, stacklevel=3)
        radiometry = replace(radiometry, why=(*radiometry.why, *(f"but {doubt}" for doubt in doubts)))
    return radiometry


def _is_auto(value: object) -> bool:
    return isinstance(value, str) and value == "auto"


def _scl_invalid(cube: xr.Dataset | xr.DataArray, match: BandMatch, void: float | None) -> tuple[int, ...]:
    """Classes that hide the ground, and what is stated as no data of the classification."""
    if match.scl is None:
        return ()
    stated = stated_nodata(cube[match.scl] if isinstance(cube, xr.Dataset) else cube)
    marks = (int(v) for v in (stated, void) if v is not None and math.isfinite(v) and float(v).is_integer())
    return (*SCL_INVALID, *sorted({m for m in marks if not 0 <= m <= 11}))


def _samples(
    cube: xr.Dataset | xr.DataArray, match: BandMatch, layers: Sequence[xr.DataArray]
) -> list[np.ndarray[Any, Any]] | None:
    """Up to a million values of the matched bands, (steps, values) per band; None unless all are in memory."""
    if not all(isinstance(la.variable._data, np.ndarray) for la in layers):
        return None
    d = dims(cube)
    planes = [la for layer in layers for la in _planes(layer, match)]
    stride = max(1, math.ceil(math.sqrt(sum(la.size for la in planes) / _SAMPLE)))
    thinned = [la.isel({d.y: slice(None, None, stride), d.x: slice(None, None, stride)}) for la in planes]
    order = (*([d.time] if d.time else []), d.y, d.x)
    if any(set(la.dims) - set(order) for la in planes):
        return None  # refused elsewhere, for a dimension that bands do not have
    arrays = [la.transpose(*(n for n in order if n in la.dims)).values for la in thinned]
    return [a.reshape(a.shape[0] if d.time in la.dims else 1, -1) for a, la in zip(arrays, thinned, strict=True)]


def _planes(layer: xr.DataArray, match: BandMatch) -> list[xr.DataArray]:
    """The matched bands of one layer, each an array of its own."""
    if match.band_dim is None or match.band_dim not in layer.dims:
        return [layer]
    return [layer.isel({match.band_dim: i}) for i in match.indices if i is not None]


def _against_values(
    samples: Sequence[np.ndarray[Any, Any]], layers: Sequence[xr.DataArray], evidence: Evidence, r: Radiometry
) -> tuple[list[str], list[str]]:
    """What values contradict: to be refused, and to be warned of as the caller decided it."""
    steps = evidence.steps
    add = r.add if len(r.add) > 1 else r.add * steps
    by_mistake: dict[Any, tuple[Mistake, list[int]]] = {}

    def of(chosen: Sequence[int], low_share: float) -> None:
        bands = [np.concatenate([s[t if len(s) > 1 else 0] for t in chosen]) for s in samples]
        for m in mistakes(bands, r, add=add[chosen[0]], low_share=low_share):
            # One date after the other, the same mistake has other shares.
            by_mistake.setdefault(m if low_share < 0.5 else m.topic, (m, []))[1].extend(chosen)

    # All dates of one offset together, which is more to judge by; then each by itself, as dates may differ in units.
    for value in sorted(set(add)):
        of([t for t in range(steps) if add[t] == value], 0.05)
    if not by_mistake and steps > 1:
        for t in range(steps):
            of([t], 0.5)
    refused: list[str] = []
    doubted: list[str] = []
    for m, at in by_mistake.values():
        where = "" if len(set(at)) == steps else f" at {len(set(at))} of {steps} time steps{evidence.dates(at)}"
        (doubted if m.topic in r.given else refused).append(m.text + where)
    if r.nodata is not None and "nodata" not in r.given and (mixed := _mixed(layers, evidence.match, r.nodata)):
        refused.append(MIXED.format(layers=", ".join(mixed), nodata=r.nodata))
    return refused, doubted


MIXED = (
    "beside no data, the values of {layers} lie between it and the values farther in: interpolation or resampling "
    "mixed them. Set no data to NaN before that step, cube.where(cube != {nodata:g}); or pass nodata={nodata:g} to "
    "take them as they are"
)


def _mixed(layers: Sequence[xr.DataArray], match: BandMatch, nodata: float) -> list[str]:
    """Float bands in memory that were interpolated across the edge of no data, by their middle date."""
    found = []
    for plane in (p for la in layers if la.dtype.kind == "f" for p in _planes(la, match)):
        d = dims(plane)
        image = plane.isel({d.time: plane.sizes[d.time] // 2}) if d.time in plane.dims else plane
        top, left = (max(0, (image.sizes[n] - 2048) // 2) for n in (d.y, d.x))
        window = image.transpose(d.y, d.x).values[top : top + 2048, left : left + 2048]
        if mixed_with_nodata(window, nodata):
            found.append(repr(str(plane.name if match.band_dim is None else plane[match.band_dim].item())))
    return found


def _hint(sample: np.ndarray[Any, Any] | None, scale: float, nodata: float | None) -> str:
    if sample is None:
        return ""
    valid = sample[not_nodata(sample, nodata)].astype(np.float64) * scale
    if valid.size == 0:
        return " The values are all no data."
    low, smallest = float((valid < 900).mean()), float(valid.min())
    if smallest >= 1000:
        return f" The smallest valid value is DN {smallest:.0f}: looks as if the offset is carried (offset=-1000)."
    if low > 0.05:
        return f" {low:.0%} of the valid values are below DN 900: looks as if no offset is carried (offset=0)."
    return f" The smallest valid value is DN {smallest:.0f}, which tells neither."
