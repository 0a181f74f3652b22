"""Classify by the nearest labelled vectors; works from one example per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import boolean, integer
from deo_cube.errors import ArgumentError
from deo_cube.heads.base import BaseHead, ModelId, predict_classes
from deo_cube.heads.cells import set_checked
from deo_cube.heads.classes import Classes
from deo_cube.heads.labels import LabelOptions, class_counts, label_vectors
from deo_cube.heads.vectors import unit

__all__ = ["KNNHead", "KNNOptions"]

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class KNNOptions:
    """Options of a head of nearest neighbours, which `KNNHead` documents.

    Parameters
    ----------
    most : int
        Keep a random subsample of this size where there are more vectors.
    """

    k: int = 5
    balanced: bool = True
    most: int = 20000

    def __post_init__(self) -> None:
        k, most = integer("k", self.k), integer("most", self.most)
        set_checked(self, k=k, most=most, balanced=boolean("balanced", self.balanced))


@dataclass(frozen=True)
class KNNHead(BaseHead):
    """k nearest neighbours in cosine distance, whose votes are weighted by their similarity.

    Vectors are centred on the mean of the labelled ones first, because raw embeddings of one scene have similar
    directions.

    Parameters
    ----------
    vectors : (n, D) float32
        Labelled vectors, centred and of unit length.
    codes : (n,) uint8
        Class of each.
    mean : (D,) float32
        Mean of the labelled vectors.
    k : int
        Number of neighbours.
    balanced : bool
        Divide the votes for a class by its share among the labels.
    """

    kind: ClassVar[str] = "knn"
    options: ClassVar[type[KNNOptions]] = KNNOptions
    classes: Classes
    model: ModelId
    vectors: Array = field(repr=False)
    codes: Array = field(repr=False)
    mean: Array = field(repr=False)
    k: int = 5
    balanced: bool = True
    report: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        n, d = len(self.codes), self.model.dim
        if self.vectors.shape != (n, d) or self.codes.shape != (n,) or self.mean.shape != (d,) or self.k < 1:
            raise ArgumentError(
                f"vectors, codes, mean and k of a knn head must be (n, {d}), (n,), ({d},) and at least 1, got "
                f"{self.vectors.shape}, {self.codes.shape}, {self.mean.shape} and {self.k}"
            )
        if set(np.unique(self.codes)) != set(self.classes.codes):
            raise ArgumentError("codes of a knn head must be those of its classes, each at least once")

    @classmethod
    def fit(
        cls,
        arrays: Sequence[xr.DataArray],
        labels: Sequence[Any],
        label_options: LabelOptions,
        model: ModelId,
        options: KNNOptions,
    ) -> KNNHead:
        """Store the labelled vectors, a random subsample of `most` of them where there are more."""
        labelled, classes = label_vectors(arrays, labels, label_options)
        mean = labelled.vectors.mean(axis=0, dtype="float64")
        stored = labelled.subsample_classes(options.most)
        rarest = int(np.unique(stored.truth, return_counts=True)[1].min())
        # A class with two examples could never win a vote among five neighbours.
        neighbours = min(options.k, max(2 * rarest - 1, 1))
        return cls(
            classes,
            model,
            unit(stored.vectors - mean).astype("float32"),
            stored.truth,
            mean.astype("float32"),
            neighbours,
            options.balanced,
            class_counts(labelled, classes) | {"k": neighbours},
        )

    def predict(self, embeddings: xr.DataArray, *, probabilities: bool = False) -> xr.DataArray:
        """Return classes or probabilities, as `Head.predict`; probabilities are shares of the votes."""
        known = self.vectors.astype("float64")
        codes = np.array(self.classes.codes)
        one_hot = (self.codes[:, None] == codes).astype("float64")
        prior = one_hot.mean(axis=0) if self.balanced else np.ones(len(codes))
        k = min(self.k, len(known))

        def votes(v: Array) -> Array:
            similarity = unit(v - self.mean) @ known.T
            nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
            weight = np.maximum(np.take_along_axis(similarity, nearest, axis=1) + 1, 1e-6) ** 4
            share = np.einsum("nk,nkc->nc", weight, one_hot[nearest]) / prior
            return np.asarray(share / share.sum(axis=1, keepdims=True))

        return predict_classes(self, embeddings, votes, votes if probabilities else None)
