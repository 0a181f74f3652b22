"""Heads that come with a model: its classes without labels of your own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from deo_cube.errors import ArgumentError
from deo_cube.heads.base import Head, ModelId
from deo_cube.heads.classes import Classes
from deo_cube.heads.head import load_head
from deo_cube.heads.linear import LinearHead

__all__ = ["BUNDLED", "bundled_head"]


def _dynamicworld() -> Head:
    from deo_cube.encoder.networks.dynamicworld import CLASSES, COLORS

    n = len(CLASSES)
    report = {
        "source": "the published network's own last layer, whose softmax are its probabilities",
        "paper": "doi:10.1038/s41597-022-01307-4",
    }
    # Without a fingerprint: the layer `logits` belongs to the network, whichever of its files the weights are from.
    model = ModelId(n, "dynamicworld", layer="logits")
    return LinearHead(Classes(tuple(range(n)), CLASSES, COLORS), model, np.eye(n), np.zeros(n), report=report)


def _tiny() -> Head:
    return load_head(LAND_COVER)


#: Land cover from the vectors of `tiny`; ``python -m benchmarks.default_map`` makes it.
LAND_COVER = Path(__file__).parent / "bases" / "tiny_landcover.safetensors"
#: Alias of a model -> function that returns its head.
BUNDLED: dict[str, Callable[[], Head]] = {"dynamicworld": _dynamicworld, "tiny": _tiny}


def bundled_head(model: str) -> Head:
    """Return the head that comes with a model.

    Parameters
    ----------
    model : str
        Alias of the model.

    Raises
    ------
    ArgumentError
        If none comes with it.
    """
    if model not in BUNDLED:
        raise ArgumentError(
            f"head: none comes with model {model!r}, expected one of {sorted(BUNDLED)}. Fit one on labels of your own, "
            "head=fit_head('linear', emb, labels)"
        )
    return BUNDLED[model]()
