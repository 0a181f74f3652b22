"""Assess a class layer of the page against reference labels, as JSON for the page."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import xarray as xr
from pyproj import Transformer

from deo_cube.heads.assess import assess
from deo_cube.heads.assessment import ClassAssessment
from deo_cube.heads.splits import LeakWarning
from deo_cube.viewer.layers import ClassLayer
from deo_cube.viewer.requests import LabelSet

__all__ = ["assess_layer", "mapping_by_name", "result_of", "without_training"]

SHOWN = 12
"""Doubtful places that are shown."""


def without_training(labels: LabelSet, training: LabelSet | None) -> LabelSet:
    """Return the labels whose geometry did not train the head."""
    if training is None:
        return labels
    used = {json.dumps(g, sort_keys=True) for g in training.geometries}
    kept = [n for n, g in enumerate(labels.geometries) if json.dumps(g, sort_keys=True) not in used]
    return LabelSet(
        labels.names,
        labels.colors,
        tuple(labels.geometries[n] for n in kept),
        tuple(labels.codes[n] for n in kept),
    )


def mapping_by_name(layer: ClassLayer, labels: LabelSet) -> dict[str, str]:
    """Return the class of the head for each class of the labels; one that the head lacks stays as it is."""
    own = {e["name"]: n for e, n in zip(layer.legend(), layer.head.classes.names, strict=True)}
    # Files often have the codes of the map instead of its names.
    own = {str(k): n for k, n in zip(layer.head.classes.codes, layer.head.classes.names, strict=True)} | own
    return {name: str(own.get(name, name)) for code, name in labels.names.items() if code in labels.codes}


def assess_layer(
    layer: ClassLayer, emb: xr.DataArray, reference: Any, training: LabelSet | None, **options: Any
) -> tuple[ClassAssessment, str]:
    """Return the assessment of a layer on one date of embeddings, and the warning of a leak; "" without one."""
    trained: dict[str, Any] = {}
    if training is not None:
        trained = {"training": training.to_geopandas(), "training_column": "class"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = assess(
            layer.head.predict(emb), reference, embeddings=emb, head=layer.head, look=SHOWN, **trained, **options
        )
    assert isinstance(result, ClassAssessment)
    leaks = [str(w.message) for w in caught if issubclass(w.category, LeakWarning)]
    return result, leaks[0] if leaks else ""


def result_of(result: ClassAssessment, leak: str, layer: ClassLayer, crs: Any) -> dict[str, Any]:
    """Return an assessment as the page reads it, with the names of classes that the user gave them."""
    shown = dict(zip(layer.head.classes.names, (e["name"] for e in layer.legend()), strict=True))
    names = [str(shown.get(n, n)) for n in map(str, result.table.index)]
    keys = ("mapped_ha", "users", "users_low", "users_high", "producers", "producers_low", "producers_high")
    classes = [
        {"name": name, "color": color, "places": int(row["places_reference"])} | {k: _number(row[k]) for k in keys}
        for name, color, (_, row) in zip(names, result.colors, result.table.iterrows(), strict=True)
    ]
    doubtful: list[dict[str, Any]] = result.look_first.to_dict("records")  # type: ignore[assignment]
    to_degrees = Transformer.from_crs(crs, 4326, always_xy=True)
    look = []
    for row in doubtful:
        lon, lat = to_degrees.transform(row["x"], row["y"])
        look.append(
            {
                "lon": float(lon),
                "lat": float(lat),
                "class": str(shown.get(row["map"], row["map"])),
                "margin": _number(row["margin"]),
                "dissimilarity": _number(row["dissimilarity"]),
                "reason": str(row["reason"]),
            }
        )
    return {
        "overall": {k: _number(v) for k, v in result.overall._asdict().items()},
        "confidence": result.confidence,
        "places": int(result.confusion.to_numpy().sum()),
        "classes": classes,
        "confusion": result.confusion.to_numpy().astype(int).tolist(),
        "leak": leak,
        "notes": list(result.notes),
        "look_first": look,
    }


def _number(value: Any) -> float | None:
    """Return a number as JSON takes it: None for NaN."""
    return round(float(value), 4) if np.isfinite(value) else None
