"""The nearest labelled vectors decide: works from one example a class, and can be extended without fitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import boolean, integer
from deo_cube.errors import ArgumentError
from deo_cube.heads.classes import NO_CLASS, Classes
from deo_cube.heads.head import Fitted, Model, category_attrs, check_model, counted, labelled, thinned
from deo_cube.heads.vectors import map_vectors

__all__ = ["KNNHead"]

Array = NDArray[Any]


@dataclass(frozen=True)
class KNNHead(Fitted):
    """k nearest neighbours in cosine distance; each votes with a weight that falls with its distance.

    Vectors are centred on the mean of the labelled ones first: raw embeddings of one scene point much the same way.
    A class's votes are divided by its share among the labels where `balanced`.
    """

    kind: ClassVar[str] = "knn"
    classes: Classes
    model: Model
    vectors: Array = field(repr=False)
    """(n, D) float32, unit vectors after centring."""
    codes: Array = field(repr=False)
    """(n,) uint8."""
    mean: Array = field(repr=False)
    k: int = 5
    balanced: bool = True
    report: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        n, d = len(self.codes), self.model.dim
        if self.vectors.shape != (n, d) or self.codes.shape != (n,) or self.mean.shape != (d,) or not 1 <= self.k:
            raise ArgumentError(
                f"a knn head's parts do not fit: vectors {self.vectors.shape}, codes {self.codes.shape}, mean "
                f"{self.mean.shape}, vectors of {d}, k={self.k}"
            )
        if set(np.unique(self.codes)) != set(self.classes.codes):
            raise ArgumentError("a knn head has examples of each of its classes and of no other")

    @classmethod
    def fit(
        cls,
        arrays: Sequence[xr.DataArray],
        many: Sequence[Any],
        burn_options: Mapping[str, Any],
        model: Model,
        *,
        k: int = 5,
        balanced: bool = True,
        most: int = 20000,
    ) -> KNNHead:
        """Keep the labelled vectors, a random `most` of them where there are more."""
        k, most, balanced = integer("k", k), integer("most", most), boolean("balanced", balanced)
        c = labelled(arrays, many, burn_options)
        keep = thinned(c.codes, most)
        mean = c.vectors.mean(axis=0, dtype="float64")
        rarest = int(np.unique(c.codes[keep], return_counts=True)[1].min())
        # A class with two examples can never win among five neighbours.
        used = min(k, max(2 * rarest - 1, 1))
        report = counted(c) | {"k": used}
        return cls(c.classes, model, _unit(c.vectors[keep] - mean).astype("float32"), c.codes[keep],
                   mean.astype("float32"), used, balanced, report)  # fmt: skip

    def predict(self, embeddings: xr.DataArray, *, probabilities: bool = False) -> xr.DataArray:
        """See `Head.predict`; probabilities are shares of the votes."""
        emb = check_model(self, embeddings)
        codes = np.array(self.classes.codes)
        known = self.vectors.astype("float64")
        hot = (self.codes[:, None] == codes).astype("float64")
        prior = hot.mean(axis=0) if self.balanced else np.ones(len(codes))
        k = min(self.k, len(known))

        def votes(v: Array) -> Array:
            near = _unit(v - self.mean) @ known.T
            top = np.argpartition(-near, k - 1, axis=1)[:, :k]
            weight = np.maximum(np.take_along_axis(near, top, axis=1) + 1, 1e-6) ** 4
            share = np.einsum("nk,nkc->nc", weight, hot[top]) / prior
            return np.asarray(share / share.sum(axis=1, keepdims=True))

        attrs = category_attrs(self, probabilities=probabilities)
        if probabilities:
            channels = {"class": list(self.classes.names)}
            return map_vectors(votes, [emb], channels=channels, name="probability", attrs=attrs)
        return map_vectors(
            lambda v: codes[votes(v).argmax(axis=1)], [emb], dtype="uint8", fill=NO_CLASS, name="class", attrs=attrs
        )


def _unit(v: Array) -> Array:
    return np.asarray(v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12))
