"""Mistakes about units, offset and nodata that values give away, whatever metadata say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deo_cube.cube.baseline import ADD_OFFSET

if TYPE_CHECKING:
    from deo_cube.cube.radiometry import Radiometry

__all__ = ["Mistake", "mistakes", "mixed_with_nodata", "not_nodata"]

Array = NDArray[Any]

#: Fewer values than this tell nothing.
_FEWEST = 16
#: Marks of no data in files that do not say so.
_MARKS = (65535.0, -9999.0, -32768.0, -999.0, -99999.0)
#: DN above which a value that occurs again and again is a mark: clouds and snow reach 20000, sun glint little more.
_BRIGHTEST = 30000.0


class Mistake(NamedTuple):
    """A contradiction between what was decided and the values."""

    topic: str
    """The argument that decides: "units", "offset", "nodata"; "" where no argument can make it right."""
    text: str
    """What was found and what to pass."""


def not_nodata(values: Array, nodata: float | None) -> NDArray[np.bool_]:
    """Where values are finite and not `nodata`."""
    valid = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
    return valid if nodata is None else valid & (values != nodata)


def mistakes(bands: Sequence[Array], r: Radiometry, *, add: float, low_share: float = 0.5) -> list[Mistake]:
    """List what the values contradict.

    Parameters
    ----------
    bands : sequence of arrays
        Samples of one time step, per band, in the units of the cube.
    r : Radiometry
        As decided.
    add : float
        The offset that is added at this time step, DN.
    low_share : float
        Share of values below DN 900 that contradicts an offset of -1000.
    """
    empty = _empty_pixels(bands, r)
    kept = [b[not_nodata(b, r.nodata)].ravel() for b in bands]
    # float16 has no 65535, and its arithmetic overflows.
    kept = [b.astype(np.float32) if b.dtype == np.float16 else b for b in kept]
    if sum(b.size for b in kept) < _FEWEST:
        return []
    found: list[Mistake] = [] if empty is None else [empty]
    while (mark := _mark_of_nodata(np.concatenate(kept), r)) is not None:
        value, text = mark
        found.append(Mistake("nodata", text))
        kept = [b[b != value] for b in kept]
        if sum(b.size for b in kept) < _FEWEST:
            return found
    values = np.concatenate(kept)
    if (wrong := _wrong_units(values, kept, r)) is not None:
        return [*found, wrong]
    if add == ADD_OFFSET:
        dn = values.astype(np.float64) * r.scale
        low, very_low = float((dn < 900).mean()), float((dn < 500).mean())
        if low > low_share or very_low > 0.01:
            share, limit = (low, 900) if low > low_share else (very_low, 500)
            found.append(
                Mistake(
                    "offset",
                    f"{share:.0%} of the valid values are below DN {limit}, which values that carry the +1000 of "
                    "baseline 04.00 cannot be: it seems to have been subtracted already. Pass offset=0 if so, "
                    "offset=-1000 if not",
                )
            )
    return found


def _mark_of_nodata(values: Array, r: Radiometry) -> tuple[Any, str] | None:
    """A value outside the range of reflectance that more than 1 % of the values share."""
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
        share = float(same.mean())
        if share > 0.01:
            unit = "DN" if r.units == "dn" else "reflectance"
            text = f"{share:.0%} of the values are {value:.9g}, which is not a {unit} but a mark of no data"
            return value, f"{text}: pass nodata={value:.9g}"
    if abs(float(values.min()) * r.scale + 1000) < 1:
        # What 0, no data, becomes where the offset of -1000 is added to it.
        value = values.min()
        share = float((values == value).mean())
        if share > 0.01:
            text = f"{share:.0%} of the values are {value:.9g}, as no data becomes where the offset is added to it"
            return value, f"{text}: pass nodata={value:.9g}"
    return None


def _empty_pixels(bands: Sequence[Array], r: Radiometry) -> Mistake | None:
    """Pixels that are 0 in all bands, as products are beyond the swath, where another value is taken for no data.

    A fill value is often stated by a format alone: netCDF's 65535, a writer's -9999. No surface reflects nothing in
    three bands or more at once, while one band may well be 0.
    """
    if r.units == "uint8_rgb" or r.nodata == 0 or len(bands) < 3 or len({b.shape for b in bands}) > 1:
        return None
    valid = np.logical_and.reduce([not_nodata(b, r.nodata) for b in bands])
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
            reach = high if high > 255 else low
            return Mistake("", f'units="uint8_rgb" cannot be: values reach {reach:g}. Pass units="dn" and the offset')
        return None
    if r.units in ("reflectance", "percent"):
        return _wrong_reflectance(values, r)
    if floats and -1 < low and high <= 2 and (values % 1).any():
        return Mistake(
            "",
            f'units="dn" cannot be: all values lie between {low:.3g} and {high:.3g}. '
            'Pass units="reflectance" and offset= (0 if it was subtracted, -1000 if the values carry it)',
        )
    if values.dtype.kind == "u" and float((values > 60000).mean()) > 0.01:
        return Mistake(
            "units",
            f"{float((values > 60000).mean()):.0%} of the values are above 60000, as unsigned integers are that were "
            'taken below zero. Subtract as signed ones, cube.astype("int32") - 1000, and pass offset=0',
        )
    if "units" in r.given:
        return None
    if floats and high <= 100 and (values % 1).any():
        return Mistake(
            "units",
            f"all values lie between {low:.3g} and {high:.3g}: hardly DN (reflectance x 10000). "
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
        instead = (
            'units="percent" for 0 to 100, or units="dn" and the offset' if per_cent else 'units="dn" and the offset'
        )
        return Mistake(
            "",
            f'units="{r.units}" cannot be: the median value is {median:g}, and {bright:.0%} are reflectance above 2. '
            f"Pass {instead}",
        )
    if r.units == "percent" and "units" not in r.given and float(values.max()) <= 2:
        return Mistake(
            "units",
            f'attributes say per cent, but no value is above {float(values.max()):.3g}: pass units="reflectance" for '
            '0 to 1, units="percent" for 0 to 100',
        )
    return None


def mixed_with_nodata(plane: Array, nodata: float) -> bool:
    """Whether values beside no data lie between it and those farther in, as interpolation across its edge leaves them.

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
