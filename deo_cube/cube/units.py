"""Decide what the numbers of a cube mean: units, the offset of processing baseline 04.00, and nodata.

Canonical values are float32 DN = surface reflectance x 10000 without offset, that is ``value * scale + offset[t]``.

Evidence, strongest first: the caller's arguments; `units` and `boa_add_offset` written into the cube by `load_cube` and
`synthetic_cube`; CF scale and offset, raw in attributes or already applied according to the encoding; stackstac's
rescaling; coordinates that describe the product (`boa_offset`). Pixels are only examined where they are in memory
already, and never decide: they confirm, contradict or serve as a hint. An argument that the caller passed is refused
because of pixel values only if it is impossible.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube import arguments
from deo_cube.constants import SCL_INVALID, TCI_SCALE, Attribute
from deo_cube.cube.bands import BandMatch
from deo_cube.cube.boa_offset import ADD_OFFSET, PRODUCT_KEYS, Offset, Product, decide_offset, stated_offset
from deo_cube.cube.georeference import dims
from deo_cube.cube.sentinel2 import level_of
from deo_cube.errors import AmbiguousUnitsError, ArgumentError

__all__ = [
    "CARRIED",
    "OFFSET_COORD",
    "SCL_INVALID",
    "TCI_SCALE",
    "Radiometry",
    "canonical",
    "decide_radiometry",
    "find_mistakes",
    "find_unit_error",
    "looks_carried",
    "mixed_with_nodata",
    "product_levels",
    "to_layers",
]

T = TypeVar("T")
Array = NDArray[Any]
Units = Literal["dn", "reflectance", "percent", "uint8_rgb"]

#: DN per unit of the values.
_SCALE: dict[Units, float] = {"dn": 1.0, "reflectance": 1e4, "percent": 100.0, "uint8_rgb": TCI_SCALE}
OFFSET_COORD = "boa_add_offset"
"""Coordinate along time, or attribute, that records an earlier decision: the DN to add; NaN where undecided."""
#: Most values that are examined.
_SAMPLE = 1_000_000


@dataclass(frozen=True)
class Radiometry:
    """Units, offset and nodata of a cube: ``canonical DN = value * scale + offset[t]``."""

    units: Units
    """Of the values in the cube."""
    scale: float
    offset: tuple[float, ...]
    """DN to add; one for all time steps, or one per time step."""
    nodata: float | None
    """Value of the cube (before scaling) that means "no data"; NaN and infinity always do."""
    scl_invalid: tuple[int, ...] = ()
    """Classes of the scene classification that count as invalid; empty for a cube without one."""
    reasons: tuple[str, ...] = ()
    """The evidence, in sentences."""
    given: tuple[str, ...] = ()
    """Those of "units", "offset" and "nodata" that the caller passed."""

    def __post_init__(self) -> None:
        if self.units not in _SCALE:
            raise ArgumentError(f"units must be one of {', '.join(map(repr, _SCALE))}, got {self.units!r}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ArgumentError(f"scale must be positive, got {self.scale}")
        if not self.offset or not all(math.isfinite(a) for a in self.offset):
            raise ArgumentError(f"offset must hold finite numbers, one or one per time step, got {self.offset}")
        if self.nodata is not None and not math.isfinite(self.nodata):
            raise ArgumentError(
                f"nodata must be a finite number or None, got {self.nodata}: NaN and infinity are invalid anyhow"
            )

    def at(self, time_index: int) -> float:
        """Return the DN to add at a time step."""
        return self.offset[time_index if len(self.offset) > 1 else 0]

    def to_attrs(self) -> dict[str, Any]:
        """Return the decision as JSON values, for the attributes of a result. Stores hold these names."""
        return {
            "units": self.units,
            "scale": self.scale,
            "add": self.offset[0] if len(set(self.offset)) == 1 else list(self.offset),
            "nodata": self.nodata,
            "scl_invalid": list(self.scl_invalid),
            "why": list(self.reasons),
        }

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        # The reasons change no number, and neither does the origin of the decision.
        return ("deo_cube.Radiometry", self.units, self.scale, self.offset, self.nodata, self.scl_invalid)

    def __repr__(self) -> str:
        offsets = sorted(set(self.offset))
        several = f"{' or '.join(f'{v:+g}' for v in offsets)} by time step"
        offset = f"{offsets[0]:+g}" if len(offsets) == 1 else several
        nodata = "NaN is no data" if self.nodata is None else f"{self.nodata:g} is no data"
        return f"<Radiometry: {self.units}, DN = value x {self.scale:g} {offset}; {nodata}; {'; '.join(self.reasons)}>"


def canonical(
    values: np.ndarray[Any, Any], radiometry: Radiometry, time_index: int = 0
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Convert values of a cube to canonical DN. This is the reference for the conversion on a device.

    Parameters
    ----------
    values : array of any shape
        Of one time step, in the units of the cube.
    radiometry : Radiometry
    time_index : int
        Index of the time step.

    Returns
    -------
    float32 array
        Reflectance x 10000; NaN where there is no data. Computed in float64 and rounded once, so that raw DN,
        harmonised DN and float64 reflectance of one scene give the same bits.
    """
    exact = np.asarray(values).astype(np.float64)
    dn = exact * radiometry.scale + radiometry.at(time_index)
    return np.where(_is_data(exact, radiometry.nodata), dn, np.nan).astype(np.float32)


def decide_radiometry(
    cube: xr.Dataset | xr.DataArray,
    match: BandMatch,
    *,
    units: str = "auto",
    offset: str | float | Sequence[float] = "auto",
    nodata: str | float | None = "auto",
) -> Radiometry:
    """Decide units, offset and nodata of the matched bands of a cube. No pixel is read that is not in memory.

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
        Value that means "no data". Auto: as attributes or encoding state, else 0, as in the products; NaN alone for
        floats whose attributes state NaN, or that were decoded with a scale.

    Returns
    -------
    Radiometry

    Raises
    ------
    AmbiguousUnitsError
        Where the evidence does not decide, or contradicts itself or the values. The message lists all problems and
        names the arguments to pass.
    ArgumentError
        For arguments that are not acceptable.

    Warns
    -----
    UserWarning
        Where attributes or values contradict an argument that was passed, which decides all the same.
    """
    arguments.choice("units", units, ("auto", *_SCALE))
    passed = {"units": units, "offset": offset, "nodata": nodata}
    given = tuple(name for name, value in passed.items() if not (isinstance(value, str) and value == "auto"))
    evidence = Evidence.from_cube(cube, match)
    samples = _samples(evidence)
    sample = None if samples is None else np.concatenate([s.ravel() for s in samples])
    # All problems are collected, so that the message lists every argument that is needed.
    problems: list[str] = []
    decided = _collect(problems, partial(_units_and_scale, evidence, units, sample))
    nodata_value, nodata_reason = _collect(problems, partial(_decide_nodata, evidence, decided, nodata)) or (None, "")
    offsets_and_reasons = None
    if decided is not None:
        hint = _offset_hint(sample, decided.scale, nodata_value)
        offsets_and_reasons = _collect(problems, partial(_decide_offsets, evidence, decided, offset, hint))
    if decided is None or offsets_and_reasons is None or problems:
        raise AmbiguousUnitsError(". ".join(p.rstrip(".") for p in problems))
    offsets, offset_reasons = offsets_and_reasons
    radiometry = Radiometry(
        units=decided.units,
        scale=decided.scale,
        offset=(offsets[0],) if len(set(offsets)) == 1 else offsets,
        nodata=nodata_value,
        scl_invalid=_scl_invalid(cube, match, nodata_value if "nodata" in given else None),
        reasons=(*decided.reasons, *offset_reasons, nodata_reason),
        given=given,
    )
    doubts = list(decided.doubts)
    if samples is not None:
        refused, doubted = _check_values(samples, evidence, radiometry)
        if refused:
            raise AmbiguousUnitsError(". ".join(refused))
        doubts += doubted
    if doubts:
        listed = ", ".join(f"{name}={passed[name]!r}" for name in given)
        warnings.warn(f"{listed} is taken as given, but {'; '.join(doubts)}", UserWarning, stacklevel=3)
        radiometry = replace(radiometry, reasons=(*radiometry.reasons, *(f"but {doubt}" for doubt in doubts)))
    return radiometry


def _collect(problems: list[str], decide: Callable[[], T]) -> T | None:
    """Return what `decide` returns; None if the evidence is ambiguous, with the message added to `problems`."""
    try:
        return decide()
    except AmbiguousUnitsError as error:
        problems.append(str(error))
        return None


def _scl_invalid(cube: xr.Dataset | xr.DataArray, match: BandMatch, nodata: float | None) -> tuple[int, ...]:
    """Return the classes that hide the ground, and the values stated as no data of the classification."""
    if match.scl is None:
        return ()
    stated = _stated_nodata(cube[match.scl] if isinstance(cube, xr.Dataset) else cube)
    marks = (int(v) for v in (stated, nodata) if v is not None and math.isfinite(v) and float(v).is_integer())
    return (*SCL_INVALID, *sorted({m for m in marks if not 0 <= m <= 11}))


# --- metadata of the cube ---

_LEVEL_KEYS = (
    *("product_level", "processing:level", "s2:product_type", "product:type", "s2:product_uri"),
    *("id", "item_ids"),
)
_DN = {"dn", "digital number", "digital numbers", "digital_number", "digital_numbers", "counts"}
_PERCENT = {"%", "percent", "per cent", "percentage", "pct", "reflectance (%)", "percent reflectance", "% reflectance"}
_REFLECTANCE = {"reflectance", "surface reflectance", "surface_reflectance", "boa_reflectance", "toa_reflectance"}
#: Radiance, temperature, backscatter, lengths and angles: bands that hold another quantity than reflectance.
_OTHER_QUANTITY = re.compile(
    r"\bsr\b|steradian|radiance|\bw\b|watt|^k$|kelvin|celsius|^(?:deg|°)|^db$|decibel|^m$|^met(?:er|re)s?$"
)


@dataclass(frozen=True)
class Evidence:
    """A cube with its matched bands, and what its metadata state about their numbers."""

    cube: xr.Dataset | xr.DataArray
    match: BandMatch
    layers: tuple[xr.DataArray, ...]
    """The matched variables of a Dataset, or the one DataArray that holds them all."""
    time: str | None
    steps: int

    @classmethod
    def from_cube(cls, cube: xr.Dataset | xr.DataArray, match: BandMatch) -> Evidence:
        """Collect the evidence about the matched bands of a cube."""
        matched = dict.fromkeys(v for v in match.variables if v is not None)
        layers = (_of_matched(cube, match),) if isinstance(cube, xr.DataArray) else tuple(cube[v] for v in matched)
        time = dims(cube).time
        return cls(cube, match, layers, time, 1 if time is None else cube.sizes[time])

    @property
    def stackstac(self) -> bool:
        """True if these are floats as stackstac returns them."""
        floats = all(la.dtype.kind == "f" for la in self.layers)
        return floats and type(self.cube.attrs.get("spec")).__name__ == "RasterSpec"

    @property
    def dtypes(self) -> str:
        """The dtypes of the bands, for messages."""
        return ", ".join(sorted({str(la.dtype) for la in self.layers}))

    @property
    def pixel_sizes(self) -> tuple[float, ...]:
        """Steps of the coordinates along x and y, in their units."""
        d = dims(self.cube)
        axes = [self.cube[n].values[:2] for n in (d.x, d.y) if n in self.cube.coords and self.cube.sizes[n] > 1]
        return tuple(abs(float(b) - float(a)) for a, b in axes)

    def product_properties(self) -> list[dict[str, Any]]:
        """Return, per time step, the coordinates and attributes that are named as properties of STAC items."""
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

    def stackstac_scales(self, t: int) -> list[tuple[Any, Any]]:
        """Return (scale, offset) of stackstac's `raster:bands` per matched band; (None, None) where not stated."""
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
            fields = entry if isinstance(entry, Mapping) else {}
            pairs.append((fields.get("scale"), fields.get("offset")))
        return pairs

    def recorded_offsets(self) -> tuple[float, ...] | None:
        """Return `boa_add_offset` per time step, as `load_cube` and `synthetic_cube` write it; None without a record.

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
                "some bands were changed later: bring the bands to one, and pass offset=0 or offset=-1000"
            )
        return records[0] if records else None

    def dates(self, steps: Sequence[int]) -> str:
        """Return the first dates of time steps, in brackets for a message; empty where the cube has no dates."""
        if self.time is None or self.time not in self.cube.coords:
            return ""
        dates = [str(self.cube.coords[self.time].values[t])[:10] for t in sorted(set(steps))[:3]]
        return f" ({', '.join(dates)}{', ...' if len(set(steps)) > 3 else ''})"


#: Attributes that rasterio and xarray give a stack of bands that differ in them: one entry per band.
_PER_BAND = ("scales", "offsets", "nodatavals")


def to_layers(stack: xr.DataArray, dim: str) -> xr.Dataset:
    """Return a stack of bands as a Dataset of one variable per band, each with its own scale, offset and nodata."""
    labels = [str(v) for v in stack[dim].values]
    layers = stack.assign_coords({dim: labels}).to_dataset(dim)
    for key in _PER_BAND:
        entries = _entries(stack.attrs.get(key), len(labels))
        for label, value in zip(labels if entries else (), entries, strict=True):
            layers[label].attrs[key] = value
    return layers


def _entries(values: Any, n: int) -> tuple[Any, ...]:
    """Return the entries of an attribute that has one per band of `n`; none where it has not."""
    return tuple(values) if isinstance(values, tuple | list | np.ndarray) and len(values) == n else ()


def _of_matched(stack: xr.DataArray, match: BandMatch) -> xr.DataArray:
    """Return a stack whose attributes per band are those of its matched bands: one value where these agree."""
    stated: dict[str, Any] = {}
    for key in _PER_BAND:
        entries = () if match.band_dim is None else _entries(stack.attrs.get(key), stack.sizes[match.band_dim])
        if entries:
            own = tuple(dict.fromkeys(entries[i] for i in match.indices if i is not None))
            stated[key] = own[0] if len(own) == 1 else own
    return stack.assign_attrs(stated) if stated else stack


def product_levels(cube: xr.Dataset | xr.DataArray) -> frozenset[str]:
    """Return the levels of the products (``L1C``, ``L2A``) that attributes and coordinates name; empty without any."""
    texts: list[Any] = [cube.attrs.get(k) for k in _LEVEL_KEYS]
    texts += [v for k in _LEVEL_KEYS if k in cube.coords for v in np.ravel(cube.coords[k].values).tolist()]
    return frozenset(level for v in texts if (level := level_of(v)) is not None)


def _read_units(attrs: Mapping[Any, Any]) -> str | None:
    """Return the units of attributes: "dn", "reflectance", "percent", "other: ..." for another quantity, or None.

    >>> _read_units({"units": "%"}), _read_units({"units": "W m-2 sr-1 um-1"}), _read_units({"units": "1"})
    ('percent', 'other: W m-2 sr-1 um-1', None)
    """
    text = str(attrs.get("units", "")).strip().lower()
    for units, words in (("dn", _DN), ("reflectance", _REFLECTANCE), ("percent", _PERCENT)):
        if text in words:
            return units
    return f"other: {attrs['units']}" if _OTHER_QUANTITY.search(text) else None


def _cf_scale(layer: xr.DataArray, attrs: Mapping[Any, Any]) -> tuple[float, float] | None:
    """Return the CF scale and offset, of attributes or an encoding, that lead to reflectance.

    GDAL's default (1, 0) states nothing, and neither does a "scale" that is the size of a pixel in metres. An offset of
    -1000 beside no scale, or a scale of 1, is that of DN. Per cent come with scales a hundred times larger.
    """
    scale, offset = _first_number(attrs, "scale_factor", "scales"), _first_number(attrs, "add_offset", "offsets")
    per_cent = 100.0 if _read_units(layer.attrs) == "percent" else 1.0
    if scale is not None and 1e-5 <= scale / per_cent <= 1e-3:
        return scale, offset or 0.0
    return (1.0, offset) if scale in (None, 1.0) and offset is not None and abs(offset) >= 100 else None


def _first_number(attrs: Mapping[Any, Any], *keys: str) -> float | None:
    """Return the first number under the first of `keys` that is present; None if it is not a number."""
    for key in keys:
        if attrs.get(key) is not None:
            try:
                return float(np.ravel(attrs[key])[0])
            except (TypeError, ValueError, IndexError):
                return None
    return None


# --- units and scale ---


@dataclass(frozen=True)
class Decided:
    """Units and scale, before the offset."""

    units: Units
    scale: float
    """DN per unit of the values."""
    applied: tuple[tuple[float, ...], ...] = ()
    """DN that were already added, per time step; several entries where bands differ, none where unknown."""
    reasons: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    """Statements of metadata against the units that the caller passed."""
    masked: bool = False
    """Values were decoded, or loaded as floats, which replaced no data by NaN."""


def _units_and_scale(evidence: Evidence, units: str, sample: Array | None) -> Decided:
    """Decide units and scale to DN.

    The first row that holds decides, after `units` of the caller:

    ================================================  ============================================
    metadata and dtype                                values are
    ================================================  ============================================
    integers, units of reflectance or per cent, CF    DN, packed with the CF scale
    units in the attributes                           in these units
    CF scale in the attributes                        DN, packed with the CF scale
    floats, CF scale in the encoding                  reflectance, decoded by xarray
    floats of stackstac                               as stackstac rescaled them
    integers                                          DN, or a true-colour image
    ================================================  ============================================

    Raises
    ------
    AmbiguousUnitsError
        Where metadata do not decide or contradict each other, and where the dtype cannot hold the units.
    """
    layers = evidence.layers
    kinds = _check_dtypes(evidence)
    integers = kinds <= set("iu")
    if units != "auto":
        return _passed_units(evidence, cast(Units, units), kinds)
    stated, raw, decoded = _common_statements(evidence)
    if raw is not None:
        _check_scale(evidence, raw)
    if integers and stated == "reflectance" and raw is None:
        raise AmbiguousUnitsError(
            f'attrs say reflectance, but the bands are {evidence.dtypes}. Pass units="dn" and offset='
        )
    if integers and stated in ("reflectance", "percent") and raw is not None:
        return _packed(raw, _SCALE[stated])  # CF: the units are those of the values once scale and offset are applied
    if stated is not None:
        masked = decoded is not None or (stated != "dn" and evidence.stackstac)
        applied = () if stated == "dn" else _applied_offsets(evidence, [decoded])
        return Decided(stated, _SCALE[stated], applied, (f"attributes state the units {stated!r}",), masked=masked)
    if raw is not None:
        return _packed(raw, 1e4)
    if kinds == {"f"} and decoded is not None:
        reason = f"decoding applied scale {decoded[0]:g} and offset {decoded[1]:g}, so values are reflectance"
        return Decided("reflectance", 1e4, _applied_offsets(evidence, [decoded]), (reason,), masked=True)
    if evidence.stackstac:
        return _rescaled_by_stackstac(evidence)
    if integers:
        return _integers(evidence)
    hint = ""
    if sample is not None and (finite := sample[np.isfinite(sample)]).size:
        low, mid, high = np.percentile(finite.astype(np.float64), [0, 50, 100])
        hint = f" Values run from {low:.4g} to {high:.4g}, median {mid:.4g}."
    names = ", ".join(sorted({str(la.dtype) for la in layers}))
    raise AmbiguousUnitsError(
        f"the bands are {names}, and no metadata say whether they are DN or reflectance.{hint} "
        'Pass units="reflectance" for 0..1, units="percent" for 0..100, or units="dn" and offset=0 or offset=-1000'
    )


def _check_dtypes(evidence: Evidence) -> set[str]:
    """Return the kinds of the dtypes, if all are numbers that were read as they were written."""
    kinds: set[str] = {la.dtype.kind for la in evidence.layers}
    if not kinds <= set("iuf"):
        raise AmbiguousUnitsError(f"the bands hold {evidence.dtypes}; expected numbers (integer DN or floats)")
    if any(str(la.attrs.get("_Unsigned", "")).lower() == "true" and la.dtype.kind == "i" for la in evidence.layers):
        raise AmbiguousUnitsError(
            "the bands are unsigned integers read as signed ones (_Unsigned), so that large values are negative. "
            "Open the file decoded, open_dataset(path), or with mask_and_scale=False and .astype('uint16')"
        )
    return kinds


def _common_statements(
    evidence: Evidence,
) -> tuple[Units | None, tuple[float, float] | None, tuple[float, float] | None]:
    """Return the units, the CF scale of the attributes and that of the encodings, if all bands agree on them."""
    layers = evidence.layers
    stated = {_read_units(la.attrs) or _read_units(evidence.cube.attrs) for la in layers}
    raw, decoded = {_cf_scale(la, la.attrs) for la in layers}, {_cf_scale(la, la.encoding) for la in layers}
    if len(stated) > 1 or len(raw) > 1 or len(decoded) > 1:
        keys = ("units", "scale_factor", "add_offset")
        statements = [{k: v for k, v in {**la.encoding, **la.attrs}.items() if k in keys} for la in layers]
        listed = ", ".join(f"{la.name}: {s or 'nothing stated'}" for la, s in zip(layers, statements, strict=True))
        raise AmbiguousUnitsError(
            f"the bands have different units, scales or offsets ({listed}). If their values are alike all the same, "
            'pass units="reflectance" (0 to 1), units="percent" or units="dn", and offset=; if not, bring them to one '
            "first"
        )
    # Of a stack, one entry per matched band where these differ (`_of_matched`).
    entries = {k: v for k in ("scales", "offsets") if isinstance(v := layers[0].attrs.get(k), tuple | list)}
    if any(len(set(v)) > 1 for v in entries.values()):
        listed = "; ".join(f"{k}: {', '.join(f'{number:g}' for number in v)}" for k, v in entries.items())
        raise AmbiguousUnitsError(
            f"the bands state different scales or offsets ({listed}): bring them to one first. If their values are "
            'alike all the same, pass units="dn" (or "reflectance", "percent") and offset='
        )
    (units,), (cf_raw,), (cf_decoded,) = stated, raw, decoded
    if units is not None and units.startswith("other"):
        raise AmbiguousUnitsError(
            f"attributes give the units {units.partition(': ')[2]!r}, which are not reflectance. If they are wrong, "
            'pass units="dn", "reflectance" or "percent", and offset='
        )
    return cast("Units | None", units), cf_raw, cf_decoded


def _passed_units(evidence: Evidence, units: Units, kinds: set[str]) -> Decided:
    """Return the units that the caller passed, with the statements of metadata against them."""
    if units == "reflectance" and kinds & set("iu"):
        raise AmbiguousUnitsError(
            f'units="reflectance", but the bands are integers ({evidence.dtypes}): pass units="dn"'
        )
    if units == "uint8_rgb":
        return Decided("uint8_rgb", TCI_SCALE, (), ('units="uint8_rgb" was passed: 0..255 stretched from DN 0..2750',))
    stated = {_read_units(la.attrs) or _read_units(evidence.cube.attrs) for la in evidence.layers} - {None}
    against = sorted({"DN" if s == "dn" else str(s).removeprefix("other: ") for s in stated if s != units})
    doubts: tuple[str, ...] = ()
    if "percent" in stated and units == "reflectance":
        doubts = ('attributes say per cent: pass units="percent" if values run from 0 to 100',)
    elif "reflectance" in stated and units == "percent":
        doubts = ('attributes say reflectance: pass units="reflectance" if values run from 0 to 1',)
    reason = f'units="{units}" was passed' + (f" (attributes say {', '.join(against)})" if against else "")
    if units == "dn":
        return Decided("dn", 1.0, (), (reason,), doubts)
    encodings = [_cf_scale(la, la.encoding) for la in evidence.layers]
    masked = all(e is not None for e in encodings) or evidence.stackstac
    return Decided(units, _SCALE[units], _applied_offsets(evidence, encodings), (reason,), doubts, masked)


def _packed(cf: tuple[float, float], per_unit: float) -> Decided:
    scale, offset = (number * per_unit / 1e4 for number in cf)
    reason = f"attributes give reflectance = value x {scale:g} + {offset:g}, not yet applied"
    return Decided("dn", cf[0] * per_unit if cf[0] != 1 else 1.0, (), (reason,))


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


def _integers(evidence: Evidence) -> Decided:
    """Decide on integers without any statement: DN, except 8-bit images."""
    layers = evidence.layers
    scales = {s for la in layers if (s := _first_number(la.attrs, "scale_factor", "scales")) not in (None, 1.0, 0.01)}
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
        return Decided("dn", 1.0, (), (f"{evidence.dtypes} values are DN",))
    if _is_visual(evidence):
        reason = "uint8 values of a true-colour image (visual, TCI) are taken as stretched from DN 0..2750"
        return Decided("uint8_rgb", TCI_SCALE, (), (reason,))
    raise AmbiguousUnitsError(
        'the bands are uint8, which may be a stretched true-colour image: pass units="uint8_rgb" (0..255 stretched '
        'from DN 0..2750), units="percent" (reflectance, 0..100), or units="dn"'
    )


def _is_visual(evidence: Evidence) -> bool:
    """Return whether names or titles call the bands a true-colour image."""
    cube = evidence.cube
    names: list[Any] = [cube.name if isinstance(cube, xr.DataArray) else None]
    names += [cube.attrs.get(k) for k in ("long_name", "title")]
    for key in ("band", "title", "common_name"):
        if key in cube.coords:
            names += cube.coords[key].values.ravel().tolist()
    for layer in evidence.layers:
        names += [layer.name, layer.encoding.get("source"), layer.attrs.get("long_name")]
    words = (str(n).lower() for n in names if isinstance(n, str))
    return any(w in ("visual", "true color image", "rgb") or "tci" in w.replace(".", "_").split("_") for w in words)


def _rescaled_by_stackstac(evidence: Evidence) -> Decided:
    """Read what stackstac did to the values: times the scale plus the offset of `raster:bands`, by default.

    With ``rescale=False`` its metadata are the same; the values then contradict, at the call or inside a task.
    """
    steps = [evidence.stackstac_scales(t) for t in range(evidence.steps)]
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
    reason = f"stackstac rescaled by raster:bands (1e-4, offset {seen} DN)"
    return Decided("reflectance", 1e4, (tuple(applied),), (reason,), masked=True)


def _applied_offsets(
    evidence: Evidence, encodings: Sequence[tuple[float, float] | None]
) -> tuple[tuple[float, ...], ...]:
    """Return the DN that decoding added to reflectance, as in `Decided.applied`."""
    candidates = dict.fromkeys(1e4 * cf[1] for cf in encodings if cf is not None)
    # Another offset than that of the baseline belongs to a packing, which decoding undid.
    offsets = [o for o in candidates if stated_offset(1e-4, o * 1e-4) in (0.0, -1000.0)]
    if offsets:
        return tuple((o,) * evidence.steps for o in offsets)
    return _rescaled_by_stackstac(evidence).applied if evidence.stackstac and evidence.stackstac_scales(0) else ()


# --- nodata ---

_NODATA_KEYS = ("_FillValue", "nodata", "missing_value", "nodatavals")


def _decide_nodata(evidence: Evidence, decided: Decided | None, nodata: Any) -> tuple[float | None, str]:
    """Return the value that means "no data" (None: NaN alone), and the reason; `nodata` of the caller decides.

    `decided` is None where units and scale are undecided.
    """
    if nodata is None:
        return None, "nodata=None was passed"
    if not isinstance(nodata, str):
        value = float(nodata)
        return (value, f"nodata={value:g} was passed") if math.isfinite(value) else (None, "nodata=NaN was passed")
    if nodata != "auto":
        raise ArgumentError(f"nodata must be 'auto', a number or None, got {nodata!r}")
    layers = evidence.layers
    for layer in layers:
        _check_marks(layer)
    stated = {str(la.name): _stated_nodata(la) for la in layers}
    finite = {v for v in stated.values() if v is not None and math.isfinite(v)}
    if len(finite) > 1:
        listed = ", ".join(f"{n}: {v:g}" for n, v in stated.items() if v is not None)
        first = min(finite, key=abs)
        name, other = next((n, v) for n, v in stated.items() if v is not None and math.isfinite(v) and v != first)
        raise AmbiguousUnitsError(
            f"the bands state different nodata values ({listed}). Set others than one to NaN, "
            f"cube[{name!r}] = cube[{name!r}].where(cube[{name!r}] != {other:g}), and pass nodata={first:g}"
        )
    if finite:
        (value,) = finite
        return value, f"{value:g} is stated as nodata"
    if decided is not None and decided.units == "uint8_rgb":
        return None, "no nodata is stated, so NaN alone is no data"
    if any(la.dtype.kind in "iu" for la in layers):
        return 0.0, "0 is no data in Sentinel-2 products"
    if all(v is not None for v in stated.values()):
        return None, "NaN is stated as nodata"
    if decided is not None and decided.masked:
        return None, "decoding replaced no data by NaN"
    return 0.0, "0 is no data in Sentinel-2 products, and stays so in floats"


def _check_marks(layer: xr.DataArray) -> None:
    """Refuse a variable with two marks of no data, of which only one would be used: CF's two attributes may differ."""
    if layer.dtype.kind not in "iu":
        return
    marks = [_first_number(layer.attrs, key) for key in ("_FillValue", "missing_value")]
    first, second = (m if m is not None and math.isfinite(m) else None for m in marks)
    if first is not None and second is not None and first != second:
        raise AmbiguousUnitsError(
            f"{str(layer.name)!r} states two marks of no data, _FillValue={first:g} and missing_value={second:g}. Make "
            f"them one, cube = cube.where(cube != {second:g}, {first:g}), and pass nodata={first:g}"
        )


def _stated_nodata(layer: xr.DataArray) -> float | None:
    """Return the stated nodata of one variable; infinity where NaN is stated; None where nothing is.

    An encoding of floats that has a fill value and no scale states it too: values were decoded, which replaced it by
    NaN, or were integers and cast later.
    """
    unscaled = "scale_factor" not in layer.encoding and "add_offset" not in layer.encoding
    places = [layer.attrs] + ([layer.encoding] if layer.dtype.kind in "iu" or unscaled else [])
    for attrs in places:
        for key in _NODATA_KEYS:
            if attrs.get(key) is None:
                continue
            try:
                value = float(np.ravel(attrs[key])[0])
            except (TypeError, ValueError, IndexError):
                continue
            if layer.dtype.kind in "iu" and not (np.iinfo(layer.dtype).min <= value <= np.iinfo(layer.dtype).max):
                continue
            return value if math.isfinite(value) else math.inf
    return None


# --- offset ---


def _decide_offsets(
    evidence: Evidence, decided: Decided, offset: str | float | Sequence[float], hint: str
) -> tuple[tuple[float, ...], list[str]]:
    """Return the DN to add per time step, and the reasons; `hint` describes the values, for the message."""
    steps = evidence.steps
    if not isinstance(offset, str):
        passed = np.asarray(offset, dtype=np.float64).ravel()
        if passed.size not in (1, steps) or not np.isfinite(passed).all():
            raise ArgumentError(
                f"offset must be one finite number, or one for each of {steps} time steps; got {offset!r}"
            )
        return tuple(np.broadcast_to(passed, steps).tolist()), [f"offset={offset} was passed"]
    if offset != "auto":
        raise ArgumentError(f"offset must be 'auto' or the DN to add (0, -1000), got {offset!r}")
    if decided.units == "uint8_rgb":
        return (0.0,) * steps, ["a stretched image carries no offset"]
    recorded = evidence.recorded_offsets()
    by_step = (
        [_offset_of_product(evidence, decided, t, p) for t, p in enumerate(evidence.product_properties())]
        if recorded is None
        else [_offset_of_record(evidence, decided, record) for record in recorded]
    )
    reasons: dict[str, list[int]] = {}
    for t, step in enumerate(by_step):
        reasons.setdefault(step.reason, []).append(t)
    sentences = [w if len(ts) == steps else f"{w} ({len(ts)} of {steps} time steps)" for w, ts in reasons.items()]
    offsets = tuple(step.dn for step in by_step if step.dn is not None)
    if len(offsets) == steps:
        return offsets, sentences
    undecided = [t for t, step in enumerate(by_step) if step.dn is None]
    where = f" at {len(undecided)} of {steps} time steps{evidence.dates(undecided)}" if len(undecided) < steps else ""
    state = "contradictory" if any(step.contradiction for step in by_step) else "unknown"
    raise AmbiguousUnitsError(
        f"whether the values carry the +1000 of processing baseline 04.00 is {state}"
        f"{where}: {'; '.join(sentences)}.{hint} Pass offset=-1000 if they carry it, offset=0 if not"
        f"{', or one number per time step' if steps > 1 else ''}. (load_cube decides it from STAC items.)"
    )


def _offset_of_record(evidence: Evidence, decided: Decided, recorded: float) -> Offset:
    """Return the offset that an earlier decision, recorded in the cube, leaves to be added."""
    reasons = f" ({evidence.cube.attrs[Attribute.OFFSET]})" if Attribute.OFFSET in evidence.cube.attrs else ""
    if not math.isfinite(recorded):
        return Offset(None, f"{OFFSET_COORD} records no decision{reasons}")
    record = f"{OFFSET_COORD} records {recorded:g}{reasons}"
    # A record outlives arithmetic, since xarray keeps attributes: one of DN says nothing about reflectance made of DN.
    same_units = any(_read_units(la.attrs) == decided.units for la in (*evidence.layers, evidence.cube))
    if recorded and decided.units != "dn" and not same_units:
        return Offset(None, f"{record}, for DN, and nothing says whether the reflectance still carries it", True)
    return Offset(recorded, record)


def _offset_of_product(evidence: Evidence, decided: Decided, t: int, properties: Mapping[str, Any]) -> Offset:
    """Return the offset that is still to be added at one time step, from the product and its scales."""
    stated = [cf for la in evidence.layers if (cf := _cf_scale(la, la.attrs)) is not None]
    if decided.units == "dn":
        return decide_offset(Product.read(properties, scales=[*evidence.stackstac_scales(t), *stated]))
    if decided.applied:
        options = {
            _offset_left(Product.read(properties, scales=[(1e-4, applied[t] * 1e-4)]), applied[t])
            for applied in decided.applied
        }
        if len({o.dn for o in options}) == 1:
            return min(options, key=lambda o: o.reason)
        return Offset(None, "the bands were decoded with different offsets", True)
    # Attributes of a scale that was not applied by decoding: the values became reflectance in another way.
    carried = decide_offset(Product.read(properties, scales=stated))
    if carried.contradiction:
        return carried
    if carried.dn:
        return Offset(
            None, f"{carried.reason}, and nothing says whether the reflectance was computed with that offset", True
        )
    return Offset(0.0, _FREE)


_FREE = "reflectance is free of the offset by definition, and nothing speaks against it"


def _offset_left(product: Product, applied: float) -> Offset:
    """Return the offset left to add after `applied` DN, which are themselves a statement about the files."""
    carried = decide_offset(product)
    if carried.contradiction:
        return carried
    # Decided always, since `applied` is a statement. They differ where stackstac applied a stale one.
    left = (carried.dn or 0.0) - applied
    corrected = f", so {left:+g} DN correct what was applied wrongly" if left else ""
    return Offset(left, f"{carried.reason}; {applied:g} DN were applied already{corrected}")


def _offset_hint(sample: Array | None, scale: float, nodata: float | None) -> str:
    if sample is None:
        return ""
    valid = sample[_is_data(sample, nodata)].astype(np.float64) * scale
    if valid.size == 0:
        return " The values are all no data."
    low, smallest = float((valid < 900).mean()), float(valid.min())
    if smallest >= 1000:
        return f" The smallest valid value is DN {smallest:.0f}: looks as if the offset is carried (offset=-1000)."
    if low > 0.05:
        return f" {low:.0%} of the valid values are below DN 900: looks as if no offset is carried (offset=0)."
    return f" The smallest valid value is DN {smallest:.0f}, which fits both."


# --- values that contradict the decision ---

#: Smallest number of values that are judged.
_FEWEST = 16
#: Smallest number of values that show how dark a scene is.
_FEWEST_OF_A_SCENE = 16384
#: Values that mark no data in files that do not state them.
_MARKS = (65535.0, -9999.0, -32768.0, -999.0, -99999.0)
#: DN above which a frequent value is a mark: clouds and snow reach 20000, sun glint little more.
_BRIGHTEST = 30000.0

MIXED = (
    "beside no data, the values of {layers} are between it and the values farther in: interpolation or resampling "
    "mixed them. Set no data to NaN before that step, cube.where(cube != {nodata:g}); or pass nodata={nodata:g} to "
    "take them as they are"
)
"""Message for `mixed_with_nodata`."""


CARRIED = (
    "hardly a valid value is below DN 1000 and many are just above it, as in values that carry the +1000 of baseline "
    "04.00: pass offset=-1000 if they do, offset=0 if not"
)
"""Message for `looks_carried`."""


class Mistake(NamedTuple):
    """A contradiction between the decision and the values."""

    topic: str
    """The argument that decides: "units", "offset", "nodata"; "" where no argument can make it right."""
    text: str
    """The contradiction, and the argument to pass."""


def find_unit_error(values: Array, radiometry: Radiometry, time_index: int = 0) -> str | None:
    """Return an error message if a sample of values contradicts the decision beyond doubt, else None.

    Called inside tasks. Reflectance is refused only where its median or 5 % of it are above 2, DN only where all are
    fractions below 2, an offset of -1000 only where most valid values are below 900 or some below 500, a mark of no
    data only where it makes up more than 1 % of the values.

    Parameters
    ----------
    values : array (bands, ...) or of any other shape
        A sample of the cube's values at one time step, units of the cube.
    radiometry : Radiometry
    time_index : int
        Index of the time step.
    """
    values = np.asarray(values)
    bands = list(values) if values.ndim > 1 else [values]
    mistakes = find_mistakes(bands, radiometry, offset=radiometry.at(time_index))
    return ". ".join(m.text for m in mistakes if m.topic not in radiometry.given) or None


def find_mistakes(bands: Sequence[Array], r: Radiometry, *, offset: float, low_share: float = 0.5) -> list[Mistake]:
    """List the contradictions between a decision and values.

    Parameters
    ----------
    bands : sequence of arrays
        Samples of one time step, per band, in the units of the cube.
    r : Radiometry
        The decision.
    offset : float
        DN that are added at this time step.
    low_share : float
        Share of values below DN 900 that contradicts an offset of -1000.
    """
    empty = _empty_pixels(bands, r)
    valid = [b[_is_data(b, r.nodata)].ravel() for b in bands]
    # float16 has no 65535, and its arithmetic overflows.
    valid = [b.astype(np.float32) if b.dtype == np.float16 else b for b in valid]
    if sum(b.size for b in valid) < _FEWEST:
        return []
    mistakes: list[Mistake] = [] if empty is None else [empty]
    while (mark := _nodata_mark(np.concatenate(valid), r)) is not None:
        value, text = mark
        mistakes.append(Mistake("nodata", text))
        valid = [b[b != value] for b in valid]
        if sum(b.size for b in valid) < _FEWEST:
            return mistakes
    values = np.concatenate(valid)
    if (wrong := _wrong_units(values, valid, r)) is not None:
        return [*mistakes, wrong]
    if offset == ADD_OFFSET:
        dn = values.astype(np.float64) * r.scale
        low, very_low = float((dn < 900).mean()), float((dn < 500).mean())
        if low > low_share or very_low > 0.01:
            share, limit = (low, 900) if low > low_share else (very_low, 500)
            text = (
                f"{share:.0%} of the valid values are below DN {limit}, which values that carry the +1000 of baseline "
                "04.00 cannot be: it seems to have been subtracted already. Pass offset=0 if so, offset=-1000 if not"
            )
            mistakes.append(Mistake("offset", text))
    return mistakes


def looks_carried(bands: Sequence[Array], r: Radiometry, offset: float) -> bool:
    """Return whether values look as if they carry an offset of which metadata say nothing.

    Shadows, water and the short waves over plants are close to 0 in nearly every scene. Clouds, haze and bright deserts
    may look as if they carried it, so that this does not decide.

    Parameters
    ----------
    bands : sequence of arrays
        Samples of one time step, per band, in the units of the cube.
    r : Radiometry
        The decision. Only an offset of 0 that was passed, or that is that of reflectance by definition, is doubted.
    offset : float
        DN that are added at this time step.
    """
    unproven = "offset" in r.given or _FREE in r.reasons
    if offset != 0 or not unproven or r.units == "uint8_rgb":
        return False
    dn = np.concatenate([b[_is_data(b, r.nodata)].ravel() for b in bands]).astype(np.float64) * r.scale
    if dn.size < _FEWEST_OF_A_SCENE:
        return False
    # Few values are so dark that noise or the correction of the atmosphere takes them below 0, and hardly one by 0.01.
    far, below = float((dn < 900).mean()), float((dn < 1000).mean())
    return far <= 0.0005 and below <= 0.005 and float(((dn >= 1000) & (dn < 1300)).mean()) >= 0.005


def _is_data(values: Array, nodata: float | None) -> NDArray[np.bool_]:
    """Return where values are finite and not `nodata`."""
    valid = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    return valid if nodata is None else valid & (values != nodata)


def _nodata_mark(values: Array, r: Radiometry) -> tuple[Any, str] | None:
    """Return a value outside the range of reflectance that more than 1 % of the values share, and the message."""
    if r.units == "uint8_rgb":
        return None
    for value in (values.max(), values.min()):
        dn = float(value) * r.scale
        if -1000.5 < dn < _BRIGHTEST:
            continue
        same = values == value
        others = values[~same].astype(np.float64) * r.scale
        if float(value) not in _MARKS and not (
            others.size and ((others > -1000.5) & (others < _BRIGHTEST)).mean() > 0.5
        ):
            continue  # the others are as far off: it is the units that are wrong
        if (share := float(same.mean())) > 0.01:
            unit = "DN" if r.units == "dn" else "reflectance"
            return value, _mark_message(share, value, f"which is not a {unit} but a mark of no data")
    value = values.min()
    # The value of 0, no data, after the offset of -1000 was added to it.
    if abs(float(value) * r.scale + 1000) < 1 and (share := float((values == value).mean())) > 0.01:
        return value, _mark_message(share, value, "as no data becomes where the offset is added to it")
    return None


def _mark_message(share: float, value: Any, reason: str) -> str:
    return f"{share:.0%} of the values are {value:.9g}, {reason}: pass nodata={value:.9g}"


def _empty_pixels(bands: Sequence[Array], r: Radiometry) -> Mistake | None:
    """Find pixels that are 0 in all bands, as products are beyond the swath, while another value is nodata.

    A fill value is often stated by a format alone: netCDF's 65535, a writer's -9999. No surface reflects nothing in
    three bands or more at once, while one band may well be 0.
    """
    if r.units == "uint8_rgb" or r.nodata == 0 or len(bands) < 3 or len({b.shape for b in bands}) > 1:
        return None
    valid = np.logical_and.reduce([_is_data(b, r.nodata) for b in bands])
    empty = valid & np.logical_and.reduce([b == 0 for b in bands])
    count, share = int(empty.sum()), float(empty.sum()) / max(1, int(valid.sum()))
    if count < _FEWEST or share <= 0.01:
        return None
    instead = "NaN alone" if r.nodata is None else f"{r.nodata:g}"
    first = "" if r.nodata is None else f" (where it holds {r.nodata:g} too, cube.where(cube != {r.nodata:g}, 0) first)"
    return Mistake(
        "nodata",
        f"{share:.0%} of the pixels are 0 in all bands, which is no data in Sentinel-2 products, while {instead} is "
        f"taken for no data: pass nodata=0{first}",
    )


def _wrong_units(values: Array, bands: Sequence[Array], r: Radiometry) -> Mistake | None:
    low, high = float(values.min()), float(values.max())
    floats = values.dtype.kind == "f"
    if r.units == "uint8_rgb":
        if high > 255 or low < 0:
            extreme = high if high > 255 else low
            return Mistake("", f'units="uint8_rgb" cannot be: values reach {extreme:g}. Pass units="dn" and the offset')
        return None
    if r.units in ("reflectance", "percent"):
        return _wrong_reflectance(values, r)
    if floats and -1 < low and high <= 2 and (values % 1).any():
        return Mistake(
            "",
            f'units="dn" cannot be: all values are between {low:.3g} and {high:.3g}. '
            'Pass units="reflectance" and offset= (0 if it was subtracted, -1000 if the values carry it)',
        )
    beyond = values > 60000 if values.dtype.kind == "u" else np.zeros(0, bool)
    # 65535 is also the value of saturated pixels. Few pixels are dark enough to be taken below zero.
    if beyond.any() and (float(beyond.mean()) > 0.01 or int((beyond & (values != 65535)).sum()) >= _FEWEST):
        return Mistake(
            "units",
            f"{float(beyond.mean()):.2g} of the values are above 60000, as unsigned integers become where they are "
            'taken below zero. Subtract as signed ones, cube.astype("int32") - 1000, and pass offset=0',
        )
    if "units" in r.given:
        return None
    if floats and high <= 100 and (values % 1).any():
        return Mistake(
            "units",
            f"all values are between {low:.3g} and {high:.3g}: hardly DN (reflectance x 10000). "
            'Pass units="percent" for 0 to 100, units="dn" if they are DN',
        )
    tops = [float(b.max()) for b in bands if b.size]
    if not floats and len(tops) >= 3 and all(200 <= top <= 255 for top in tops):
        return Mistake(
            "units",
            f'no value is above {high:g}, as in an 8-bit image: pass units="uint8_rgb" (0..255 stretched from DN '
            '0..2750), or units="dn"',
        )
    return None


def _wrong_reflectance(values: Array, r: Radiometry) -> Mistake | None:
    fraction = values.astype(np.float64) * (r.scale / 1e4)
    median, bright = float(np.median(values)), float((fraction > 2).mean())
    if float(np.median(fraction)) > 2 or bright > 0.05:
        # Per cent reach 100 and a little more, DN thousands.
        per_cent = r.units == "reflectance" and float(np.percentile(values, 95)) <= 200
        percent_or = 'units="percent" for 0 to 100, or '
        return Mistake(
            "",
            f'units="{r.units}" cannot be: the median value is {median:g}, and {bright:.0%} are reflectance above 2. '
            f'Pass {percent_or * per_cent}units="dn" and the offset',
        )
    if r.units == "percent" and "units" not in r.given and float(values.max()) <= 2:
        return Mistake(
            "units",
            f'attributes say per cent, but no value is above {float(values.max()):.3g}: pass units="reflectance" for '
            '0 to 1, units="percent" for 0 to 100',
        )
    return None


def mixed_with_nodata(plane: Array, nodata: float) -> bool:
    """Return whether values beside no data are between it and those farther in, as interpolation leaves them.

    Parameters
    ----------
    plane : array (rows, columns)
        Floats of one band.
    nodata : float
    """
    if plane.dtype.kind != "f" or min(plane.shape) < 8:
        return False
    plane = plane.astype(np.float32, copy=False)
    ratios = []
    for rows in (plane[::2], plane.T[::2]):
        for line in (rows, rows[:, ::-1]):
            hole = line[:, :-3] == np.float32(nodata)
            if not hole.any():
                continue
            first, inner = line[:, 1:-2][hole] - np.float32(nodata), line[:, 3:][hole] - np.float32(nodata)
            edge = (first != 0) & (inner != 0) & np.isfinite(first) & np.isfinite(inner)
            ratios.append(first[edge] / inner[edge])
    ratio = np.concatenate(ratios) if ratios else np.empty(0)
    return ratio.size >= 32 and float(np.median(ratio)) < 0.7


def _check_values(samples: Sequence[Array], evidence: Evidence, r: Radiometry) -> tuple[list[str], list[str]]:
    """Return the contradictions to be refused, and those to be warned of because the caller decided."""
    steps = evidence.steps
    offsets = [r.at(t) for t in range(steps)]
    by_mistake: dict[Any, tuple[Mistake, list[int]]] = {}

    def check(chosen: Sequence[int], low_share: float) -> None:
        bands = [np.concatenate([s[t if len(s) > 1 else 0] for t in chosen]) for s in samples]
        for m in find_mistakes(bands, r, offset=offsets[chosen[0]], low_share=low_share):
            # One date after the other, the same mistake has other shares.
            by_mistake.setdefault(m if low_share < 0.5 else m.topic, (m, []))[1].extend(chosen)

    # All dates of one offset together, which is more to judge by; then each by itself, as dates may differ in units.
    for offset in sorted(set(offsets)):
        check([t for t in range(steps) if offsets[t] == offset], 0.05)
    if not by_mistake and steps > 1:
        for t in range(steps):
            check([t], 0.5)
    refused: list[str] = []
    doubted: list[str] = []
    carried = [t for t in range(steps) if looks_carried([s[t if len(s) > 1 else 0] for s in samples], r, offsets[t])]
    if carried and not by_mistake:
        by_mistake["carried"] = (Mistake("offset", CARRIED), carried)
    for m, at in by_mistake.values():
        where = "" if len(set(at)) == steps else f" at {len(set(at))} of {steps} time steps{evidence.dates(at)}"
        (doubted if m.topic in r.given else refused).append(m.text + where)
    if r.nodata is not None and "nodata" not in r.given and (mixed := _interpolated_bands(evidence, r.nodata)):
        refused.append(MIXED.format(layers=", ".join(mixed), nodata=r.nodata))
    return refused, doubted


def _samples(evidence: Evidence) -> list[Array] | None:
    """Return up to a million values of the matched bands, (steps, values) per band; None unless all are in memory."""
    if not all(isinstance(la.variable._data, np.ndarray) for la in evidence.layers):
        return None
    d = dims(evidence.cube)
    planes = [plane for layer in evidence.layers for plane in _planes(layer, evidence.match)]
    stride = max(1, math.ceil(math.sqrt(sum(plane.size for plane in planes) / _SAMPLE)))
    thinned = [plane.isel({d.y: slice(None, None, stride), d.x: slice(None, None, stride)}) for plane in planes]
    order = (*([d.time] if d.time else []), d.y, d.x)
    if any(set(plane.dims) - set(order) for plane in planes):
        return None  # refused elsewhere, for a dimension that bands do not have
    arrays = [plane.transpose(*(n for n in order if n in plane.dims)).values for plane in thinned]
    return [a.reshape(a.shape[0] if d.time in p.dims else 1, -1) for a, p in zip(arrays, thinned, strict=True)]


def _planes(layer: xr.DataArray, match: BandMatch) -> list[xr.DataArray]:
    """Split a layer into its matched bands."""
    if match.band_dim is None or match.band_dim not in layer.dims:
        return [layer]
    return [layer.isel({match.band_dim: i}) for i in match.indices if i is not None]


def _interpolated_bands(evidence: Evidence, nodata: float) -> list[str]:
    """Return the float bands in memory that were interpolated across the edge of no data, by their middle date."""
    match = evidence.match
    names = []
    for plane in (p for la in evidence.layers if la.dtype.kind == "f" for p in _planes(la, match)):
        d = dims(plane)
        image = plane.isel({d.time: plane.sizes[d.time] // 2}) if d.time in plane.dims else plane
        top, left = (max(0, (image.sizes[n] - 2048) // 2) for n in (d.y, d.x))
        window = image.transpose(d.y, d.x).values[top : top + 2048, left : left + 2048]
        if mixed_with_nodata(window, nodata):
            names.append(repr(str(plane.name if match.band_dim is None else plane[match.band_dim].item())))
    return names
