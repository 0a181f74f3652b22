"""Find doubtful places of a map, and reference places that are too near to those that trained its head."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

from deo_cube.errors import ArgumentTypeError, LabelsError
from deo_cube.extras import require
from deo_cube.heads.applicability import applicability, labelled_cells
from deo_cube.heads.base import Head
from deo_cube.heads.classes import NO_CLASS, Classes
from deo_cube.heads.reference_places import Places, one_time, values_at
from deo_cube.heads.regression import RegressionHead
from deo_cube.heads.splits import LeakWarning
from deo_cube.heads.vectors import geobox, spatial_dims

__all__ = ["Sources", "check_leak", "doubt_sources", "look_first_at"]

Array = NDArray[Any]

LATTICE = 500
"""Cells along a side of the map at most that are looked at to find doubtful places."""


def check_leak(
    places: Places,
    drawn: xr.DataArray,
    head: Head | None,
    training: Any,
    embeddings: xr.DataArray | None,
    reach: float | None,
    options: Mapping[str, Any],
    notes: list[str],
) -> None:
    """Warn where reference places are near places that the head was trained on."""
    box = geobox(drawn)
    grid = drawn if embeddings is None else embeddings
    side = abs(float(geobox(grid).resolution.x))
    if training is not None:
        rows, cols = labelled_cells(training, grid, **options)
        y, x = spatial_dims(grid)
        known = np.stack([np.asarray(grid[x].values)[cols], np.asarray(grid[y].values)[rows]], axis=1)
        source = geobox(grid).crs
    elif isinstance(head, RegressionHead) and len(head.tensors.get("training.places", ())):
        known, source = head.tensors["training.places"], head.crs
        side = float(head.tensors["training.cell_size"][0])
    else:
        notes.append("the places that trained the head are not known: pass training= to be warned of leaks")
        return
    if not len(known):
        notes.append("the places that trained the head are not within the map or the embeddings")
        return
    try:
        own = CRS.from_user_input(getattr(source, "proj", source))
    except CRSError:
        notes.append("the CRS of the places that trained the head is not known: pass training=")
        return
    if not own.equals(box.crs.proj, ignore_axis_order=True):
        moved = Transformer.from_crs(own, box.crs.proj, always_xy=True).transform(known[:, 0], known[:, 1])
        known = np.stack(moved, axis=1)
    distance = reach or max(side, abs(float(box.resolution.x)))
    tree = require("scipy.spatial", extra="heads", purpose="The check for leaks").cKDTree(known)
    near = np.isfinite(tree.query(np.stack([places.x, places.y], axis=1), distance_upper_bound=distance)[0])
    share = f"{near.mean():.0%} of the reference places are within {distance:g} of a training place"
    notes.append(share + (f": {_compared(places, near)}" if 0 < near.sum() < len(near) else ""))
    if near.mean() > 0.01:
        warnings.warn(
            f"the reference leaks: {share}, and say little about the rest of the map. Leave them out, or check others; "
            "reach= is the distance",
            LeakWarning,
            stacklevel=3,
        )


def _compared(places: Places, some: Array) -> str:
    """Return how good the map is at some of the places and at the others, without the weights of strata."""
    if places.names:
        right = places.mapped == places.truth
        return f"{right[some].mean():.0%} of them are right, {right[~some].mean():.0%} of the others"
    square = (places.mapped - places.truth) ** 2
    return f"RMSE {np.sqrt(square[some].mean()):.3g} there, {np.sqrt(square[~some].mean()):.3g} elsewhere"


@dataclass(frozen=True)
class Sources:
    """Maps that show doubt: probabilities of the classes, and dissimilarity to the training data; None if unknown."""

    probabilities: xr.DataArray | None
    dissimilarity: xr.DataArray | None


def doubt_sources(
    head: Any,
    embeddings: Any,
    probabilities: Any,
    training: Any,
    time: Any,
    options: Mapping[str, Any],
    notes: list[str],
) -> Sources:
    """Return the maps that show doubt, as far as the arguments of `assess` give them; lazy on Dask."""
    if head is not None and not isinstance(head, Head):
        raise ArgumentTypeError(f"head must be a head of fit_head, got {type(head).__name__}")
    if probabilities is not None and (not isinstance(probabilities, xr.DataArray) or "class" not in probabilities.dims):
        raise ArgumentTypeError(
            "probabilities must be a DataArray with a dimension 'class': head.predict(emb, probabilities=True)"
        )
    if embeddings is not None and "time" in embeddings.dims:
        embeddings = one_time(embeddings, time)
    if probabilities is None and head is not None and embeddings is not None and len(head.classes):
        probabilities = head.predict(embeddings, probabilities=True)
    if probabilities is not None and "time" in probabilities.dims:
        probabilities = one_time(probabilities, time)
    known = training if training is not None else head if isinstance(head, RegressionHead) else None
    unlike = None
    if embeddings is not None and known is not None:
        try:
            unlike = applicability(embeddings, known, **options)
        except LabelsError as error:
            # Labels of another scene have no vectors here.
            notes.append(f"the area of applicability is not known: {error}")
    return Sources(probabilities, unlike)


def _margin(p: Array) -> Array:
    """Return the difference of the two largest probabilities along the last axis."""
    ordered = np.sort(p, axis=-1)
    return np.asarray(ordered[..., -1] - ordered[..., -2])


def look_first_at(
    drawn: xr.DataArray, classes: Classes | None, places: Places, sources: Sources, look: int, notes: list[str]
) -> pd.DataFrame:
    """Return the most doubtful places of the map, apart from each other, and note what doubt says of the reference."""
    empty = pd.DataFrame(columns=["x", "y", "map", "margin", "dissimilarity", "reason"])
    if sources.probabilities is None and sources.dissimilarity is None:
        return empty
    box, (y, x) = geobox(drawn), spatial_dims(drawn)
    right = places.mapped == places.truth if classes is not None else None
    steps = [max(1, drawn.sizes[d] // LATTICE) for d in (y, x)]
    rows, cols = (np.arange(s // 2, drawn.sizes[d], s) for d, s in zip((y, x), steps, strict=True))
    grid_r, grid_c = (v.ravel() for v in np.meshgrid(rows, cols, indexing="ij"))
    at = Places(
        grid_r, grid_c, grid_r, grid_r, np.asarray(drawn[x].values, "float64")[grid_c],
        np.asarray(drawn[y].values, "float64")[grid_r], None, (), (), False, 0,
    )  # fmt: skip
    mapped = drawn.isel({y: rows, x: cols}).values.ravel()
    has_map = np.isfinite(mapped) if mapped.dtype.kind == "f" else mapped != NO_CLASS
    margin, unlike = np.full(len(grid_r), np.nan), np.full(len(grid_r), np.nan)
    chosen: list[tuple[int, str]] = []
    apart = max(abs(box.resolution.x) * box.shape[1], abs(box.resolution.y) * box.shape[0]) / 25
    share = look if sources.dissimilarity is None or sources.probabilities is None else (look + 1) // 2
    if sources.probabilities is not None:
        margin = _margin(values_at(sources.probabilities, box, at))
        _apart(np.where(has_map, margin, np.nan), at, share, apart, "low margin", chosen)
        if right is not None and len(right) >= 8:
            own = _margin(values_at(sources.probabilities, box, places))
            limit = np.quantile(own[np.isfinite(own)], 0.25) if np.isfinite(own).any() else np.nan
            low, high = own <= limit, own > limit
            # Heads that vote give most places the same margin, and then there are no others to compare with.
            if low.any() and high.any():
                notes.append(
                    f"of the quarter of reference places with the lowest margin {right[low].mean():.0%} are right, of "
                    f"the others {right[high].mean():.0%}"
                )
    if sources.dissimilarity is not None:
        threshold = float(sources.dissimilarity.attrs["threshold"])
        unlike = values_at(sources.dissimilarity, box, at)
        outside = np.where(has_map & (unlike > threshold), -unlike, np.nan)
        _apart(outside, at, look - len(chosen), apart, "unlike the training data", chosen)
        beyond = float((unlike[has_map & np.isfinite(unlike)] > threshold).mean())
        notes.append(f"{beyond:.1%} of the map is unlike the training data (dissimilarity above {threshold:.2f})")
    if not chosen:
        return empty
    index = np.array([i for i, _ in chosen])
    shown: Any = mapped[index]
    if classes is not None:
        names = dict(zip(classes.codes, classes.names, strict=True))
        shown = [names.get(int(v), str(v)) for v in shown]
    return pd.DataFrame(
        {
            "x": at.x[index],
            "y": at.y[index],
            "map": shown,
            "margin": margin[index].round(3),
            "dissimilarity": unlike[index].round(3),
            "reason": [r for _, r in chosen],
        }
    )


def _apart(score: Array, at: Places, most: int, apart: float, reason: str, chosen: list[tuple[int, str]]) -> None:
    """Append the places with the lowest score that are not near one that was chosen before."""
    for i in np.argsort(score, kind="stable"):
        if most <= 0 or not np.isfinite(score[i]):
            return
        near = any(np.hypot(at.x[i] - at.x[j], at.y[i] - at.y[j]) < apart for j, _ in chosen)
        if not near:
            chosen.append((int(i), reason))
            most -= 1
