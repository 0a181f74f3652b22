"""Results of an assessment: accuracies of a map of classes or of a quantity, as a table, a figure, HTML and JSON."""

from __future__ import annotations

import html
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deo_cube.errors import StorageError
from deo_cube.extras import require
from deo_cube.heads.intervals import Interval
from deo_cube.paths import local_path

__all__ = ["ClassAssessment", "QuantityAssessment"]

Array = NDArray[Any]


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
