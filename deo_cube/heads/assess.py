"""Assess a map against reference places: accuracies and areas with intervals, and where to look first.

A map of classes gets the confusion, and user's and producer's accuracy, F1 and area of each class, weighted by the area
of the strata from which the reference places were drawn (`deo_cube.heads.intervals`). A map of a quantity gets R2,
RMSE, MAE, bias, and the mean over the map corrected by the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import integer, number
from deo_cube.errors import (
    ArgumentError,
    ArgumentTypeError,
    LabelsError,
)
from deo_cube.heads.areas import cell_areas, mean_of
from deo_cube.heads.assessment import ClassAssessment, QuantityAssessment
from deo_cube.heads.base import Head
from deo_cube.heads.classes import NO_CLASS, Classes
from deo_cube.heads.doubt import check_leak, doubt_sources, look_first_at
from deo_cube.heads.intervals import Interval, Sample, difference, regression_scores
from deo_cube.heads.reference_places import Places, read_map, reference_places, values_at
from deo_cube.heads.vectors import as_embeddings, geobox, spatial_dims

__all__ = ["ClassAssessment", "QuantityAssessment", "assess"]

Array = NDArray[Any]


def assess(
    map: xr.DataArray | xr.Dataset | str | Path,
    reference: Any,
    *,
    time: Any = None,
    column: str | None = None,
    layer: str | int | None = None,
    crs: Any = None,
    nodata: float | Sequence[float] | None = None,
    mapping: Mapping[Any, Any] | None = None,
    strata: xr.DataArray | str | Path | None = None,
    probabilities: xr.DataArray | None = None,
    embeddings: xr.DataArray | str | Path | None = None,
    head: Head | None = None,
    training: Any = None,
    training_column: str | None = None,
    reach: float | None = None,
    look: int = 20,
    confidence: float = 0.95,
) -> ClassAssessment | QuantityAssessment:
    """Compare a map with reference places: accuracies and areas with intervals, and where to look first.

    The reference should be a random sample, of the whole map or of each class of it, that trained nothing. Accuracies
    and areas are weighted by the area of the strata (Olofsson et al. 2014; Stehman 2014), so that a class of which many
    places were checked does not count for more than its area. For a simple random sample the classes of the map are
    strata after the fact.

    Parameters
    ----------
    map : DataArray, Dataset or path
        Classes (y, x) of `segment` or `classify`, or with several dates and `time`; or a quantity of a regression head.
        A path is that of a GeoTIFF or a Zarr store.
    reference : table, path, dict, DataArray, or list of (x, y, label)
        As labels of `fit_head`. Each point is one place. The cells of a polygon are places that are not independent:
        the intervals are those of the polygons. Of a raster every cell is a place.
    time : label, optional
        Date of a map with several.
    column, layer, crs, nodata
        Of the reference, as in `rasterize_labels`.
    mapping : mapping, optional
        Class of the map for a class of the reference, ``{"spruce": "forest"}``; None leaves places of it out. A class
        that the map lacks counts as wrong everywhere.
    strata : DataArray or path, optional
        Map of integers whose values are the strata that the places were drawn from. Default: the classes of the map.
    probabilities : DataArray, optional
        ``head.predict(emb, probabilities=True)``, for places with a low margin. Any grid in the CRS of the map.
    embeddings, head : DataArray or path of a store, Head, optional
        Embeddings and the head that made the map, instead of `probabilities`; and, with a regression head or
        `training`, for places unlike the training data.
    training : labels, optional
        Labels that the head was fitted on, for the warning of leaks and the area of applicability, with
        `training_column` where a table has several. Default: those that a regression head keeps.
    reach : float, optional
        Distance in units of the map's CRS within which a reference place and a training place are not independent.
        Default: the side of a patch of `embeddings` or of the training data, else of a cell of the map.
    look : int
        Number of places in `look_first`.
    confidence : float
        Of the intervals.

    Returns
    -------
    ClassAssessment or QuantityAssessment
        With `table`, `plot()`, `look_first`, `notes` and `to_json()`.

    Raises
    ------
    LabelsError
        If no reference place is on the map, or a class of the reference is not one of the map.
    ArgumentError, ArgumentTypeError
        For several dates without `time`, and objects that are not maps.
    InputNotFoundError
        If there is nothing at a path.

    Examples
    --------
    >>> result = deo_cube.assess(land_cover, "checked.gpkg", column="class")  # doctest: +SKIP
    >>> print(result)  # doctest: +SKIP
    >>> result.plot().savefig("accuracy.png")  # doctest: +SKIP
    """
    confidence, look = number("confidence", confidence, minimum=0.5, maximum=0.9999), integer("look", look, minimum=0)
    reach = None if reach is None else number("reach", reach, above=0)
    drawn, classes = read_map(map, time)
    options = {"column": column, "layer": layer, "crs": crs, "nodata": nodata}
    of_training = {"column": training_column, "crs": crs}
    emb = None if embeddings is None else as_embeddings(embeddings, "embeddings")
    notes: list[str] = []
    sources = doubt_sources(head, emb, probabilities, training, time, of_training, notes)
    if classes is None:
        places = reference_places(reference, drawn, None, options, mapping)
        result: ClassAssessment | QuantityAssessment = _of_quantity(drawn, places, notes, confidence)
    else:
        places = reference_places(reference, drawn, classes, options, mapping)
        result = _of_classes(drawn, classes, places, strata, notes, confidence)
    check_leak(places, drawn, head, training, emb, reach, of_training, notes)
    first = look_first_at(drawn, classes, places, sources, look, notes)
    return replace(result, look_first=first, notes=tuple(notes))


# ---- classes --------------------------------------------------------------------------------------------------------


def _of_classes(
    drawn: xr.DataArray, classes: Classes, places: Places, strata: Any, notes: list[str], confidence: float
) -> ClassAssessment:
    import dask

    k = len(places.names)
    x = spatial_dims(drawn)[1]
    counted = dask.compute(*[(drawn == c).sum(x) for c in classes.codes])
    area = cell_areas(drawn)
    per_row = np.zeros((k, drawn.shape[0]))
    per_row[: len(classes)] = [np.asarray(c.values, "float64") for c in counted]
    mapped_ha = per_row @ area / 1e4
    if strata is None:
        stratum, sizes, weights = places.mapped, per_row.sum(axis=1), mapped_ha / mapped_ha.sum()
        notes.append("strata: the classes of the map; right for a random sample of the map, or of each class")
        names: Sequence[Any] = places.names
    else:
        stratum, sizes, weights, names = _strata(strata, places, drawn)
        notes.append(f"strata: {len(sizes)} of the map of strata")
    sample = Sample(stratum, sizes, weights, places.clusters)
    notes += _notes_on(sample, places, names, confidence, own_strata=strata is not None)
    m, r = places.mapped, places.truth
    confusion = np.zeros((k, k), int)
    np.add.at(confusion, (m, r), 1)
    overall = sample.ratio(m == r, np.ones(len(m)), confidence)
    overall = Interval(overall.value, max(overall.low, 0.0), min(overall.high, 1.0))
    return ClassAssessment(
        places.colors,
        pd.DataFrame(confusion, index=list(places.names), columns=list(places.names)),
        overall,
        _table_of_classes(sample, places, mapped_ha, confidence),
        pd.DataFrame(),
        (),
        confidence,
    )


def _notes_on(
    sample: Sample, places: Places, strata: Sequence[Any], confidence: float, *, own_strata: bool
) -> list[str]:
    """Return what limits the estimates from a sample."""
    notes = []
    missing = [str(n) for n, c, s in zip(strata, sample.counts, sample.sizes, strict=True) if s and not c]
    if missing:
        notes.append(f"no reference place in {', '.join(missing)}: the estimates are of the other strata")
    single = [str(n) for n, c in zip(strata, sample.counts, strict=True) if c == 1]
    if single:
        notes.append(f"one reference place in {', '.join(single)}: the intervals are too narrow")
    if places.clusters is not None:
        notes.append(f"the intervals are between {len(np.unique(places.clusters))} polygons")
    elif not own_strata and not places.census:
        notes += _without_width(places, confidence)
    if places.census:
        notes.append("every cell of the reference raster is a place: the intervals hold for a random choice of cells")
    if places.by_number:
        listed = ", ".join(places.by_number[:12])
        notes.append(f"numbers of the reference are read as those of the map ({listed}): pass mapping= if they differ")
    if places.left_out:
        notes.append(f"{places.left_out} reference places are where the map has no class, and are left out")
    return notes


def _table_of_classes(sample: Sample, places: Places, mapped_ha: Array, confidence: float) -> pd.DataFrame:
    """Return accuracies and area of each class, with their intervals."""
    ones = np.ones(len(places.mapped))
    rows = []
    for i, name in enumerate(places.names):
        on_map, on_ground = places.mapped == i, places.truth == i
        both = on_map & on_ground
        row: dict[str, Any] = {
            "class": name,
            "mapped_ha": mapped_ha[i],
            "places_map": int(on_map.sum()),
            "places_reference": int(on_ground.sum()),
        }
        ratios = {
            "users": sample.ratio(both, on_map, confidence),
            "producers": sample.ratio(both, on_ground, confidence),
            "f1": sample.ratio(2.0 * both, on_map.astype(float) + on_ground, confidence),
            "area_ha": Interval(*(v * mapped_ha.sum() for v in sample.ratio(on_ground, ones, confidence))),
        }
        for key, interval in ratios.items():
            highest = np.inf if key == "area_ha" else 1.0
            low, high = max(interval.low, 0.0), min(interval.high, highest)
            row |= {key: interval.value, f"{key}_low": low, f"{key}_high": high}
        rows.append(row)
    return pd.DataFrame(rows).set_index("class")


def _without_width(places: Places, confidence: float) -> list[str]:
    """Return a note per class of the map of which all places are right, whose interval has no width."""
    notes = []
    for i, name in enumerate(places.names):
        right = places.truth[places.mapped == i] == i
        if len(right) > 1 and right.all():
            least = (1 - confidence) ** (1 / len(right))
            notes.append(f"all {len(right)} places in {name} are right: user's accuracy is at least {least:.2f}")
    return notes


def _strata(strata: Any, places: Places, drawn: xr.DataArray) -> tuple[Array, Array, Array, Sequence[Any]]:
    """Return the stratum of each place, cells and share of the area of each, and their values."""
    layer, classes = read_map(strata, None, "strata")
    if classes is None:
        raise ArgumentTypeError("strata must be a map of integers, got fractions")
    at = values_at(layer, geobox(drawn), places)
    if (at == NO_CLASS).any() or not np.isfinite(at).all():
        raise ArgumentError(
            f"strata must cover the reference places, {int((at == NO_CLASS).sum())} are where it has no value"
        )
    x = spatial_dims(layer)[1]
    per_row = np.stack([(layer == c).sum(x).values.astype("float64") for c in classes.codes])
    hectares = per_row @ cell_areas(layer)
    stratum = np.searchsorted(np.array(classes.codes), at.astype(int))
    return stratum, per_row.sum(axis=1), hectares / hectares.sum(), classes.names


# ---- quantities -----------------------------------------------------------------------------------------------------


def _of_quantity(drawn: xr.DataArray, places: Places, notes: list[str], confidence: float) -> QuantityAssessment:
    if len(places.truth) < 2:
        raise LabelsError(f"at least two reference places must be on the map, found {len(places.truth)}")
    weights = np.ones(len(places.truth))
    scores = dict(regression_scores(places.truth, places.mapped, weights, places.clusters, confidence))
    mapped, hectares = mean_of(drawn)
    residual = places.truth - places.mapped
    scores["mean"] = difference(mapped, residual, weights, places.clusters, confidence)
    notes.append("the mean is that of the map plus the mean residual; right for a random sample of the map")
    if places.clusters is not None:
        notes.append(f"the intervals are between {len(np.unique(places.clusters))} polygons")
    if places.census:
        notes.append("every cell of the reference raster is a place: neighbours are alike, and the intervals narrow")
    if places.left_out:
        notes.append(f"{places.left_out} reference places are where the map is missing, and are left out")
    return QuantityAssessment(
        pd.DataFrame({k: i._asdict() for k, i in scores.items()}).T,
        pd.DataFrame({"x": places.x, "y": places.y, "reference": places.truth, "map": places.mapped}),
        hectares,
        str(drawn.attrs.get("units", "")),
        str(drawn.attrs.get("long_name", "value")),
        pd.DataFrame(),
        (),
        confidence,
    )
