"""Classify with any classifier of scikit-learn, saved as arrays where its parameters allow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import integer, number
from deo_cube.heads.base import BaseHead, ModelId, predict_classes
from deo_cube.heads.cells import TrainingVectors
from deo_cube.heads.classes import Classes
from deo_cube.heads.estimators import Fitted, Opaque, as_arrays, checked_function, fitted_copy, refuse_opaque
from deo_cube.heads.labels import LabelOptions, class_counts, label_vectors

__all__ = ["ClassifierHead"]

Array = NDArray[Any]


@dataclass(frozen=True)
class ClassifierHead(BaseHead):
    """A classifier of scikit-learn. Probabilities of one that has none are a softmax of its scores, or 0 and 1.

    Parameters
    ----------
    tensors : mapping
        Those of the steps of the estimator (`deo_cube.heads.estimators.Fitted`).
    steps : str
        Kinds of the steps, as a JSON list.
    estimator : Opaque, optional
        An estimator without a form as arrays, which is not saved.
    """

    kind: ClassVar[str] = "classifier"
    classes: Classes
    model: ModelId
    tensors: Mapping[str, Array] = field(repr=False)
    steps: str = "[]"
    report: dict[str, Any] = field(default_factory=dict, compare=False)
    estimator: Opaque | None = field(default=None, repr=False, compare=False, metadata={"saved": False})

    def __post_init__(self) -> None:
        _ = self.function

    @cached_property
    def function(self) -> Fitted | Opaque:
        """Function of vectors (n, D) that returns probabilities (n, K)."""
        return checked_function(
            self.steps, self.tensors, self.estimator, dim=self.model.dim, outputs=len(self.classes), kind="classifier"
        )

    @classmethod
    def fit(
        cls,
        arrays: Sequence[xr.DataArray],
        labels: Sequence[Any],
        label_options: LabelOptions,
        model: ModelId,
        *,
        estimator: Any,
        block: float | None = None,
        buffer: float | None = None,
        most: int = 50000,
    ) -> ClassifierHead:
        """Fit a clone of `estimator`; `block`, `buffer` and `most` as in `LinearHead.fit`."""
        most = integer("most", most)
        block = None if block is None else number("block", block, above=0)
        buffer = None if buffer is None else number("buffer", buffer, minimum=0)
        data, classes = label_vectors(arrays, labels, label_options)
        data = data.subsample_classes(most)
        report = class_counts(data, classes) | _validated(data, estimator, block, buffer)
        fitted = fitted_copy(estimator, data.vectors, data.truth, None)
        function = as_arrays(fitted, data.vectors, data.truth, classes.codes)
        own = function if isinstance(function, Opaque) else None
        tensors = function.tensors if isinstance(function, Fitted) else {}
        steps = json.dumps(function.steps if isinstance(function, Fitted) else [])
        return cls(classes, model, tensors, steps, report, own)

    def predict(self, embeddings: xr.DataArray, *, probabilities: bool = False) -> xr.DataArray:
        """Return classes or probabilities, as `Head.predict`."""
        return predict_classes(self, embeddings, self.function, self.function if probabilities else None)

    def save(self, path: Any) -> Any:
        """Write the head to one ``.safetensors`` file and return its path.

        Raises
        ------
        ArgumentError
            For an estimator without a form as arrays, with the reason.
        """
        refuse_opaque(self.estimator)
        return super().save(path)


def _validated(data: TrainingVectors, estimator: Any, block: float | None, buffer: float | None) -> dict[str, Any]:
    """Return the accuracy, balanced over classes, for cells that were not trained on, nor their neighbours."""
    folds = data.folds(4, block, buffer)
    if folds is None:
        return {"validation": "none"}
    right = np.full(len(data.truth), np.nan)
    for train, test in folds.pairs:
        fitted = fitted_copy(estimator, data.vectors[train], data.truth[train], None)
        right[test] = np.asarray(fitted.predict(data.vectors[test])) == data.truth[test]
    scored = np.isfinite(right)
    of_classes = [right[scored & (data.truth == k)].mean() for k in np.unique(data.truth[scored])]
    return {
        "validation": str(folds),
        "accuracy": round(float(np.mean(of_classes)), 3),
        "accuracy_is": "balanced over classes",
    }
