"""Assess a map against reference places: accuracies and areas with intervals, and where to look first.

A map of classes gets the confusion, and user's and producer's accuracy, F1 and area of each class, weighted by the area
of the strata from which the reference places were drawn (`deo_cube.heads.intervals`). A map of a quantity gets R2,
RMSE, MAE, bias, and the mean over the map corrected by the reference.
"""

from __future__ import annotations

import html
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

from deo_cube.arguments import integer, number
from deo_cube.errors import (
    ArgumentError,
    ArgumentTypeError,
    LabelsError,
    StorageError,
)
from deo_cube.extras import require
from deo_cube.heads.applicability import applicability, labelled_cells
from deo_cube.heads.base import Head
from deo_cube.heads.classes import NO_CLASS, Classes
from deo_cube.heads.intervals import Interval, StratifiedSample, cell_areas, difference, mean_of, regression_scores
from deo_cube.heads.reference_places import ReferencePlaces, one_time, read_map, reference_places, values_at
from deo_cube.heads.regression import RegressionHead
from deo_cube.heads.splits import LeakWarning
from deo_cube.heads.vectors import as_embeddings, geobox, spatial_dims
from deo_cube.paths import local_path

__all__ = ["ClassAssessment", "QuantityAssessment", "Sources", "assess", "check_leak", "doubt_sources", "look_first_at"]


Array = NDArray[Any]


# --- Results: accuracies of a map of classes or of a quantity, as a table, a figure, HTML and JSON ---


class _Shown(ABC):
    """Text, HTML and JSON of an assessment, from its table and facts."""

    table: pd.DataFrame
    notes: tuple[str, ...]

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return single numbers and texts by name."""

    @abstractmethod
    def text(self) -> pd.DataFrame:
        """Return the table with each value and its interval as one text."""

    def __str__(self) -> str:
        head = "\n".join(f"{k}: {v}" for k, v in self.facts().items())
        notes = "".join(f"\n- {n}" for n in self.notes)
        return f"{head}\n{self.text().to_string()}{notes}"

    def _repr_html_(self) -> str:
        head = "".join(f"<b>{html.escape(k)}</b>: {html.escape(str(v))}<br>" for k, v in self.facts().items())
        notes = "".join(f"<li>{html.escape(n)}</li>" for n in self.notes)
        return f"<div>{head}{self.text().to_html()}<ul>{notes}</ul></div>"

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the assessment as JSON, and write it to `path` where one is given.

        Raises
        ------
        StorageError
            If the file cannot be written.
        """
        text = json.dumps(_plain(self._values()), indent=1)
        if path is not None:
            try:
                local_path(path).write_text(text, encoding="utf-8")
            except OSError as error:
                raise StorageError(f"{path} cannot be written: {error}") from error
        return text

    @abstractmethod
    def _values(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class ClassAssessment(_Shown):
    """Accuracy of a map of classes.

    Parameters
    ----------
    colors : tuple of str
        Colour of each class; classes that only the reference has come last.
    confusion : DataFrame
        Reference places by class of the map (rows) and of the reference (columns).
    overall : Interval
        Share of the area that is right.
    table : DataFrame
        One row per class: ``mapped_ha``, ``places`` (of the map, of the reference), and value and interval of ``users``
        and ``producers`` accuracy, ``f1`` and ``area_ha``.
    look_first : DataFrame
        Doubtful places, most doubtful first: x, y, class of the map, margin between the two largest probabilities,
        dissimilarity to the training data, reason. Empty without `probabilities` and `embeddings`.
    notes : tuple of str
        What the numbers rest on, and warnings.
    confidence : float
        Of the intervals.
    """

    colors: tuple[str, ...] = field(repr=False)
    confusion: pd.DataFrame
    overall: Interval
    table: pd.DataFrame
    look_first: pd.DataFrame = field(repr=False)
    notes: tuple[str, ...] = ()
    confidence: float = 0.95

    def facts(self) -> dict[str, Any]:
        """Return single numbers by name."""
        return {
            "overall accuracy": f"{self.overall:.3f}",
            "reference places": int(self.confusion.to_numpy().sum()),
            "intervals": f"{self.confidence:.0%}",
        }

    def text(self) -> pd.DataFrame:
        """Return the table with each value and its interval as one text."""
        out = pd.DataFrame(index=self.table.index)
        out["mapped ha"] = [f"{v:.5g}" for v in self.table["mapped_ha"]]
        for name, spec in (("users", ".2f"), ("producers", ".2f"), ("f1", ".2f"), ("area_ha", ".4g")):
            columns = self.table[[name, f"{name}_low", f"{name}_high"]]
            out[name.replace("_", " ")] = [format(Interval(*row), spec) for row in columns.itertuples(index=False)]
        out["places"] = self.table["places_reference"]
        return out

    def plot(self) -> Any:
        """Return a figure: the confusion in shares of each class of the map, accuracies, and areas with intervals."""
        plt = _pyplot()
        names, k = list(self.table.index), len(self.table)
        figure, axes = plt.subplots(1, 3, figsize=(12, 1.6 + 0.42 * k), layout="constrained", sharey=True)
        counts = self.confusion.to_numpy()
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes[0].imshow(share, cmap="Greens", vmin=0, vmax=1, aspect="auto")
        for i in range(k):
            for j in range(k):
                if counts[i, j]:
                    dark = "white" if share[i, j] > 0.6 else "black"
                    axes[0].text(j, i, f"{counts[i, j]:g}", ha="center", va="center", color=dark, fontsize=8)
        axes[0].set(xticks=range(k), yticks=range(k), yticklabels=names, ylabel="map", xlabel="reference")
        axes[0].set_xticklabels(names, rotation=45, ha="right")
        axes[0].set_title(f"overall {self.overall:.2f}")
        for offset, name, color in ((-0.17, "users", "#0072b2"), (0.17, "producers", "#d55e00")):
            _bars(axes[1], np.arange(k) + offset, self.table, name, color)
        axes[1].set(xlim=(0, 1.02), xlabel="accuracy", title="user's and producer's accuracy")
        axes[1].legend(["user's", "producer's"], fontsize=8, loc="lower left")
        axes[2].barh(np.arange(k), self.table["mapped_ha"], color=list(self.colors), alpha=0.5)
        _bars(axes[2], np.arange(k), self.table, "area_ha", "black")
        axes[2].set(xlabel="hectares", title="mapped area (bars), estimated area (points)")
        axes[0].set_ylim(k - 0.5, -0.5)
        return figure

    def _values(self) -> dict[str, Any]:
        return {
            "overall": self.overall._asdict(),
            "confidence": self.confidence,
            "confusion": {str(k): row.to_dict() for k, row in self.confusion.iterrows()},
            "classes": {str(k): row.to_dict() for k, row in self.table.iterrows()},
            "look_first": self.look_first.to_dict("records"),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class QuantityAssessment(_Shown):
    """Accuracy of a map of a quantity.

    Parameters
    ----------
    table : DataFrame
        Value, low and high of R2, RMSE, MAE and bias (map minus reference), and of the mean over the map: the map's
        mean, corrected by the mean residual of the reference.
    pairs : DataFrame
        x, y, reference and map of each place.
    hectares : float
        Area of the map with a value.
    units, quantity : str
    look_first : DataFrame
        As in `ClassAssessment`, without margins.
    notes : tuple of str
        What the numbers rest on, and warnings.
    confidence : float
        Of the intervals.
    """

    table: pd.DataFrame
    pairs: pd.DataFrame = field(repr=False)
    hectares: float
    units: str
    quantity: str
    look_first: pd.DataFrame = field(repr=False)
    notes: tuple[str, ...] = ()
    confidence: float = 0.95

    def score(self, name: str) -> Interval:
        """Return one of "r2", "rmse", "mae", "bias" and "mean" with its interval."""
        numbers: list[float] = self.table.loc[[name]].to_numpy(dtype="float64")[0].tolist()
        return Interval(*numbers)

    def facts(self) -> dict[str, Any]:
        """Return single numbers and texts by name."""
        return {
            "quantity": f"{self.quantity}{f' ({self.units})' if self.units else ''}",
            "reference places": len(self.pairs),
            "area": f"{self.hectares:.5g} ha",
            "intervals": f"{self.confidence:.0%}",
        }

    def text(self) -> pd.DataFrame:
        """Return the table with each value and its interval as one text."""
        rows = [format(Interval(*row), ".3g") for row in self.table.itertuples(index=False)]
        return pd.DataFrame({"value": rows}, index=self.table.index)

    def plot(self) -> Any:
        """Return a figure: the map's values against those of the reference."""
        plt = _pyplot()
        figure, axes = plt.subplots(figsize=(5, 4.6), layout="constrained")
        r, m = self.pairs["reference"], self.pairs["map"]
        low, high = float(min(r.min(), m.min())), float(max(r.max(), m.max()))
        if len(r) > 1500:
            axes.hexbin(r, m, gridsize=45, bins="log", cmap="Greens", mincnt=1)
        else:
            axes.scatter(r, m, s=10, alpha=0.5, color="#1b7837")
        axes.plot([low, high], [low, high], color="black", lw=1)
        unit = f" ({self.units})" if self.units else ""
        axes.set(xlabel=f"reference{unit}", ylabel=f"map{unit}", title=self.quantity)
        lines = "\n".join(f"{k.upper()} {self.score(k):.2f}" for k in ("r2", "rmse", "bias"))
        axes.text(0.03, 0.97, lines, transform=axes.transAxes, va="top", fontsize=9)
        return figure

    def _values(self) -> dict[str, Any]:
        return {
            "scores": {str(k): row.to_dict() for k, row in self.table.iterrows()},
            "confidence": self.confidence,
            "hectares": self.hectares,
            "units": self.units,
            "quantity": self.quantity,
            "places": len(self.pairs),
            "look_first": self.look_first.to_dict("records"),
            "notes": list(self.notes),
        }


def _pyplot() -> Any:
    return require("matplotlib.pyplot", extra="viz", purpose="The plot of an assessment")


def _bars(axes: Any, at: Array, table: pd.DataFrame, name: str, color: str) -> None:
    value = table[name].to_numpy()
    ends = np.abs(table[[f"{name}_low", f"{name}_high"]].to_numpy().T - value)
    axes.errorbar(value, at, xerr=ends, fmt="o", ms=4, color=color, capsize=2, lw=1)


def _plain(value: Any) -> Any:
    """Return numbers of NumPy as those of Python, and NaN as None, for JSON."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


# --- assessment ---


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
    drawn: xr.DataArray, classes: Classes, places: ReferencePlaces, strata: Any, notes: list[str], confidence: float
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
    sample = StratifiedSample(stratum, sizes, weights, places.clusters)
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
    sample: StratifiedSample, places: ReferencePlaces, strata: Sequence[Any], confidence: float, *, own_strata: bool
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


def _table_of_classes(
    sample: StratifiedSample, places: ReferencePlaces, mapped_ha: Array, confidence: float
) -> pd.DataFrame:
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


def _without_width(places: ReferencePlaces, confidence: float) -> list[str]:
    """Return a note per class of the map of which all places are right, whose interval has no width."""
    notes = []
    for i, name in enumerate(places.names):
        right = places.truth[places.mapped == i] == i
        if len(right) > 1 and right.all():
            least = (1 - confidence) ** (1 / len(right))
            notes.append(f"all {len(right)} places in {name} are right: user's accuracy is at least {least:.2f}")
    return notes


def _strata(strata: Any, places: ReferencePlaces, drawn: xr.DataArray) -> tuple[Array, Array, Array, Sequence[Any]]:
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


def _of_quantity(
    drawn: xr.DataArray, places: ReferencePlaces, notes: list[str], confidence: float
) -> QuantityAssessment:
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


# --- Find doubtful places of a map, and reference places that are too near to those that trained its head ---

LATTICE = 500
"""Cells along a side of the map at most that are looked at to find doubtful places."""


def check_leak(
    places: ReferencePlaces,
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


def _compared(places: ReferencePlaces, some: Array) -> str:
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
    drawn: xr.DataArray, classes: Classes | None, places: ReferencePlaces, sources: Sources, look: int, notes: list[str]
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
    at = ReferencePlaces(
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


def _apart(
    score: Array, at: ReferencePlaces, most: int, apart: float, reason: str, chosen: list[tuple[int, str]]
) -> None:
    """Append the places with the lowest score that are not near one that was chosen before."""
    for i in np.argsort(score, kind="stable"):
        if most <= 0 or not np.isfinite(score[i]):
            return
        near = any(np.hypot(at.x[i] - at.x[j], at.y[i] - at.y[j]) < apart for j, _ in chosen)
        if not near:
            chosen.append((int(i), reason))
            most -= 1
