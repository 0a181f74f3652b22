"""Estimators of scikit-learn as arrays, which are saved without pickle and predict without scikit-learn.

An estimator is a sequence of steps, each a pure function of its tensors: an affine map of every column, a matrix,
trees, neighbours, a link. `as_arrays` translates a fitted estimator (also a pipeline, or a search whose best estimator
it is) and compares the translation with the estimator's own predictions; one that it cannot translate stays in memory.

skops, which stores any estimator as a zip of its parts, was not chosen: a file of it names classes that are looked up
and filled when it is read, which heads never do, and it is bound to the release of scikit-learn that wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.extras import require
from deo_cube.heads.base import BaseHead, ModelId, predict_classes
from deo_cube.heads.cells import FoldOptions, TrainingVectors
from deo_cube.heads.classes import Classes
from deo_cube.heads.labels import LabelOptions, class_counts, label_vectors
from deo_cube.heads.vectors import softmax, unit

__all__ = [
    "ClassifierHead",
    "ClassifierOptions",
    "Fitted",
    "Opaque",
    "as_arrays",
    "checked_estimator",
    "checked_function",
    "fitted_classifier",
    "fitted_copy",
    "is_estimator",
    "refuse_opaque",
]


Array = NDArray[Any]
Tensors = Mapping[str, Array]

ROWS = 2048
"""Vectors that descend a tree at once: they and a tree fit into the cache."""
SAVED = "linear models, trees, forests, gradient boosting, nearest neighbours, multi-layer perceptrons, and pipelines"


@dataclass(frozen=True)
class Fitted:
    """A fitted estimator as arrays: vectors (n, D) to outputs (n, K).

    Parameters
    ----------
    steps : tuple of str
        Kinds of the steps, keys of `STEPS`.
    tensors : mapping
        Tensors of step i under ``"i.name"``.

    Raises
    ------
    ArgumentError
        For unknown steps, and tensors that do not fit each other.
    """

    steps: tuple[str, ...]
    tensors: Tensors = field(repr=False)

    def __post_init__(self) -> None:
        for i, kind in enumerate(self.steps):
            if kind not in STEPS:
                raise ArgumentError(f"step {i} of an estimator is of the unknown kind {kind!r:.40}")
            missing = set(TENSORS[kind]) - set(self._of(i))
            if missing:
                raise ArgumentError(f"step {i} ({kind}) of an estimator lacks the tensors {sorted(missing)}")
            if kind == "trees":
                _check_trees(self._of(i))

    def _of(self, i: int) -> dict[str, Array]:
        prefix = f"{i}."
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def __call__(self, vectors: Array) -> Array:
        """Return the outputs (n, K) float64 of vectors (n, D)."""
        out = np.asarray(vectors, "float64")
        for i, kind in enumerate(self.steps):
            out = STEPS[kind](out, self._of(i))
        return out

    def then(self, kind: str, **tensors: Any) -> Fitted:
        """Return the estimator with one more step."""
        i = len(self.steps)
        # A file has no tensors without dimensions.
        added = {f"{i}.{k}": np.atleast_1d(v) for k, v in tensors.items()}
        return Fitted((*self.steps, kind), {**self.tensors, **added})


@dataclass(frozen=True)
class Opaque:
    """A fitted estimator that cannot be translated: it predicts in this process, and is not saved.

    Parameters
    ----------
    estimator : object
        With `predict`, or with `predict_proba` where `classes` are given.
    reason : str
        Why it cannot be saved.
    classes : tuple
        Classes of the columns of the output; empty for a regression.
    """

    estimator: Any
    reason: str
    classes: tuple[Any, ...] = ()

    def __call__(self, vectors: Array) -> Array:
        """Return the outputs (n, K) float64 of vectors (n, D)."""
        v = np.asarray(vectors, "float32")
        if not self.classes:
            return np.asarray(self.estimator.predict(v), "float64").reshape(len(v), 1)
        return class_outputs(self.estimator, v, self.classes)


def checked_function(
    steps: str, tensors: Tensors, estimator: Opaque | None, *, dim: int, outputs: int, kind: str
) -> Fitted | Opaque:
    """Return the function of a head from the fields of its file.

    Parameters
    ----------
    steps : str
        Kinds of the steps, as a JSON list.
    tensors : mapping
        Those of the steps.
    estimator : Opaque, optional
        Taken instead of `steps` and `tensors`.
    dim, outputs : int
        Length of a vector, and numbers that the function must return per vector.
    kind : str
        Of the head, for messages.

    Raises
    ------
    ArgumentError
        For steps and tensors that do not give such a function.
    """
    names = json.loads(steps)
    if not isinstance(names, list) or not all(isinstance(s, str) for s in names):
        raise ArgumentError(f"steps of a {kind} head must be a JSON list of names")
    function = estimator or Fitted(tuple(names), tensors)
    try:
        shape = function(np.zeros((1, dim))).shape
    except (ValueError, IndexError, KeyError) as error:
        raise ArgumentError(f"the tensors of a {kind} head do not fit each other: {error}") from error
    if shape != (1, outputs):
        raise ArgumentError(f"a {kind} head must return {outputs} numbers per vector, got {shape[1:]}")
    return function


def refuse_opaque(estimator: Opaque | None) -> None:
    """Raise if a head cannot be saved.

    Raises
    ------
    ArgumentError
        For an estimator without a form as arrays, with the reason.
    """
    if estimator is not None:
        raise ArgumentError(
            f"path: this head cannot be saved, because {estimator.reason}. Heads are saved as arrays, never as "
            "pickles; the head predicts in this process. Save the map instead, head.predict(emb).to_zarr(path)"
        )


def class_outputs(estimator: Any, vectors: Array, classes: Sequence[Any]) -> Array:
    """Return probabilities (n, K) of a fitted classifier; 1 for its class where it has no probabilities."""
    if hasattr(estimator, "predict_proba"):
        return np.asarray(estimator.predict_proba(vectors), "float64")
    chosen = np.asarray(estimator.predict(vectors))
    return np.asarray(chosen[:, None] == np.asarray(classes), "float64")


# ---- steps ----------------------------------------------------------------------------------------------------------


def _affine(v: Array, t: Tensors) -> Array:
    return np.asarray(v * t["scale"] + t["shift"])


def _linear(v: Array, t: Tensors) -> Array:
    return np.asarray(v @ t["weights"] + t["bias"])


def _unit(v: Array, t: Tensors) -> Array:
    return unit(v)


def _relu(v: Array, t: Tensors) -> Array:
    return np.maximum(v, 0)


def _tanh(v: Array, t: Tensors) -> Array:
    return np.tanh(v)


def _softmax(v: Array, t: Tensors) -> Array:
    return softmax(v)


def _two(v: Array, t: Tensors) -> Array:
    """Turn the score of the second of two classes into two scores whose softmax is the logistic function of it."""
    return np.concatenate([np.zeros_like(v), v], axis=1)


def _clip(v: Array, t: Tensors) -> Array:
    return np.asarray(np.clip(v, t["low"], t["high"]))


def _expm1(v: Array, t: Tensors) -> Array:
    return np.expm1(v)


def _exp(v: Array, t: Tensors) -> Array:
    return np.exp(v)


def _square(v: Array, t: Tensors) -> Array:
    return np.square(v)


def _trees(v: Array, t: Tensors) -> Array:
    """Return ``base + factor * sum of the leaves of all trees``; a node whose left child is itself is a leaf."""
    x = np.ascontiguousarray(v, "float32")  # as scikit-learn, which compares 32 bits with thresholds of 64
    if t["feature"].max() >= x.shape[1]:
        raise ArgumentError(f"the trees of an estimator read number {t['feature'].max()} of vectors of {x.shape[1]}")
    out = np.zeros((len(x), t["values"].shape[1]))
    # Indices of the platform's own type, and flat arrays, which NumPy gathers from fastest.
    feature, threshold = t["feature"].astype("intp"), t["threshold"]
    children = np.stack([t["left"], t["right"]], axis=1).astype("intp").ravel()
    inner = children[::2] != np.arange(len(feature))
    for start in range(0, len(x), ROWS):
        part = x[start : start + ROWS]
        numbers, first = part.ravel(), np.arange(len(part)) * part.shape[1]
        total = np.zeros((len(part), out.shape[1]))
        for root in t["roots"]:
            node = np.full(len(part), root, "intp")
            moving = np.arange(len(part)) if inner[root] else np.empty(0, "intp")
            at = node[moving]
            while len(moving):
                beyond = numbers.take(first.take(moving) + feature.take(at)) > threshold.take(at)
                at = children.take(2 * at + beyond)
                node[moving] = at
                is_inner = inner.take(at)
                moving, at = moving[is_inner], at[is_inner]
            total += t["values"].take(node, axis=0)
        out[start : start + ROWS] = total
    return np.asarray(t["base"] + t["factor"] * out)


def _check_trees(t: Tensors) -> None:
    n = len(t["feature"])
    order = np.arange(n)
    left, right, roots = t["left"], t["right"], t["roots"]
    ints = all(t[k].dtype.kind in "iu" for k in ("feature", "left", "right", "roots"))
    shapes = all(t[k].shape == (n,) for k in ("threshold", "left", "right")) and t["values"].shape[:1] == (n,)
    if not ints or not shapes or t["values"].ndim != 2 or roots.ndim != 1 or not n:
        raise ArgumentError("the trees of an estimator must be arrays of one length with integer links")
    # Children come after their parents, so that no walk is endless.
    forward = ((left == order) & (right == order)) | ((left > order) & (right > order))
    inside = (left < n) & (right < n) & (t["feature"] >= 0)
    if not forward.all() or not inside.all() or ((roots < 0) | (roots >= n)).any():
        raise ArgumentError("the links of the trees of an estimator must lead to later nodes")


def _neighbours(v: Array, t: Tensors) -> Array:
    """Return the mean value of the k nearest known vectors; weighted by inverse distance where `by_distance`."""
    known, values = t["known"].astype("float64"), t["values"].astype("float64")
    k = int(t["k"][0])
    out = np.empty((len(v), values.shape[1]))
    square = (known**2).sum(axis=1)
    for start in range(0, len(v), ROWS):
        part = v[start : start + ROWS]
        if t["cosine"][0]:
            distance = 1 - unit(part) @ unit(known).T
        else:
            distance = np.sqrt(np.maximum((part**2).sum(axis=1)[:, None] - 2 * part @ known.T + square, 0))
        nearest = np.argpartition(distance, k - 1, axis=1)[:, :k]
        near = np.take_along_axis(distance, nearest, axis=1)
        weight = np.ones_like(near)
        if t["by_distance"][0]:
            exact = near < 1e-7
            weight = np.where(exact.any(axis=1, keepdims=True), exact, 1 / np.maximum(near, 1e-7))
        out[start : start + ROWS] = np.einsum("nk,nkc->nc", weight, values[nearest]) / weight.sum(axis=1)[:, None]
    return out


STEPS: dict[str, Callable[[Array, Tensors], Array]] = {
    "affine": _affine,
    "linear": _linear,
    "unit": _unit,
    "relu": _relu,
    "tanh": _tanh,
    "softmax": _softmax,
    "two": _two,
    "clip": _clip,
    "expm1": _expm1,
    "exp": _exp,
    "square": _square,
    "trees": _trees,
    "neighbours": _neighbours,
}
TENSORS: dict[str, tuple[str, ...]] = dict.fromkeys(STEPS, ()) | {
    "affine": ("scale", "shift"),
    "linear": ("weights", "bias"),
    "clip": ("low", "high"),
    "trees": ("roots", "feature", "threshold", "left", "right", "values", "base", "factor"),
    "neighbours": ("known", "values", "k", "cosine", "by_distance"),
}


# ---- translation ----------------------------------------------------------------------------------------------------


class _Unknown(Exception):
    """An estimator, or a setting of one, that has no translation; its text is the reason."""


def is_estimator(value: Any) -> bool:
    """Return whether `value` has the interface of an estimator of scikit-learn."""
    return not isinstance(value, type) and all(callable(getattr(value, k, None)) for k in ("fit", "predict"))


def checked_estimator(estimator: Any) -> str:
    """Return "regressor" or "classifier", the kind of an estimator.

    Raises
    ------
    ArgumentTypeError
        For classes instead of objects, and estimators of another kind.
    """
    base = require("sklearn.base", extra="heads", purpose="a head of an estimator")
    if isinstance(estimator, type):
        raise ArgumentTypeError(f"kind must be an estimator, got the class {estimator.__name__}: add (), with options")
    try:
        if base.is_regressor(estimator):
            return "regressor"
        if base.is_classifier(estimator):
            return "classifier"
    except AttributeError as error:  # without the tags of scikit-learn
        raise ArgumentTypeError(
            f"kind must be an estimator of scikit-learn, got {type(estimator).__name__}, which only has its methods: "
            "derive it from sklearn.base.ClassifierMixin or RegressorMixin, and then from BaseEstimator"
        ) from error
    raise ArgumentTypeError(
        f"kind must be a classifier or a regressor of scikit-learn, got {type(estimator).__name__}: for groups without "
        "labels use deo_cube.cluster(emb, k)"
    )


def fitted_copy(estimator: Any, vectors: Array, values: Array, weights: Array | None) -> Any:
    """Return a fitted clone of an estimator; `weights` are passed where its last step takes them.

    Raises
    ------
    ArgumentError
        If the estimator refuses the vectors or its parameters.
    """
    from sklearn.base import clone
    from sklearn.pipeline import Pipeline
    from sklearn.utils.validation import has_fit_parameter

    copy = clone(estimator)
    options = {}
    if weights is not None and np.ptp(weights) > 0:
        if isinstance(copy, Pipeline):
            name, last = copy.steps[-1]
            options = {f"{name}__sample_weight": weights} if has_fit_parameter(last, "sample_weight") else {}
        elif has_fit_parameter(copy, "sample_weight"):
            options = {"sample_weight": weights}
    try:
        return copy.fit(vectors, values, **options)
    except (ValueError, TypeError) as error:
        raise ArgumentError(f"kind: {type(estimator).__name__} cannot be fitted on the vectors: {error}") from error


def fitted_classifier(estimator: Any, vectors: Array, truth: Array) -> tuple[Any, Array]:
    """Return a fitted clone of a classifier, and what it calls the sorted classes of `truth`.

    These are the codes; 0, 1, ... where the classifier refuses other codes, as those of XGBoost do.

    Raises
    ------
    ArgumentError
        As `fitted_copy`.
    """
    codes, positions = np.unique(truth, return_inverse=True)
    numbers = np.arange(len(codes))
    try:
        return fitted_copy(estimator, vectors, truth, None), codes
    except ArgumentError as refused:
        if np.array_equal(codes, numbers):
            raise
        try:
            return fitted_copy(estimator, vectors, positions.reshape(-1), None), numbers
        except ArgumentError:
            raise refused from refused.__cause__


def as_arrays(estimator: Any, vectors: Array, values: Array, classes: Sequence[Any] = ()) -> Fitted | Opaque:
    """Return a fitted estimator as arrays, or as it is with the reason where it has no translation.

    Parameters
    ----------
    vectors, values : (n, D), (n,)
        What it was fitted on.
    classes : sequence
        Its classes; empty for a regression. The outputs are probabilities (n, K), or a column of values.
    """
    name = type(estimator).__name__
    try:
        fitted = _translate(estimator, Fitted((), {}), vectors, values, tuple(classes))
    except _Unknown as unknown:
        return Opaque(estimator, str(unknown), tuple(classes))
    except (AttributeError, KeyError, IndexError, ValueError) as error:
        return Opaque(estimator, f"this release of scikit-learn stores {name} in another way ({error})", tuple(classes))
    check = np.asarray(vectors[:512], "float32")
    expected = Opaque(estimator, "", tuple(classes))(check)
    own = fitted(check)
    # Classifiers without probabilities have scores here, whose order must agree.
    agrees = (
        np.allclose(own, expected, rtol=1e-4, atol=1e-5 + 1e-4 * float(np.abs(expected).mean()))
        if not classes or hasattr(estimator, "predict_proba")
        else bool((own.argmax(axis=1) == expected.argmax(axis=1)).all())
    )
    if not agrees:
        return Opaque(estimator, f"the arrays of {name} do not give its own predictions", tuple(classes))
    return fitted


def _translate(e: Any, before: Fitted, vectors: Array, values: Array, classes: tuple[Any, ...]) -> Fitted:
    """Return `before` and the steps of a fitted estimator.

    The names of classes are compared rather than the classes, so that what is not used is not imported.
    """
    name = type(e).__name__
    if hasattr(e, "best_estimator_"):
        return _translate(e.best_estimator_, before, vectors, values, classes)
    if name == "Pipeline":
        for _, step in e.steps[:-1]:
            before = _transformer(step, before)
        return _translate(e.steps[-1][1], before, vectors, values, classes)
    if name == "TransformedTargetRegressor":
        return _of_transformed_target(e, before, vectors, values)
    if not type(e).__module__.startswith("sklearn."):
        raise _Unknown(f"{name} is not of scikit-learn, and its parameters are not known")
    if name.startswith(("RandomForest", "ExtraTrees", "DecisionTree", "ExtraTree")):
        return _of_forest(e, before, classes)
    if name == "GradientBoostingRegressor":
        return _of_boosting(e, before, vectors)
    if name.startswith("KNeighbors"):
        return _of_neighbours(e, before, vectors, values, classes)
    if name.startswith("MLP"):
        return _of_perceptron(e, before, classes)
    if hasattr(e, "coef_") and hasattr(e, "intercept_"):
        return _of_linear(e, before, classes)
    raise _Unknown(f"{name} has no form as arrays here; those that have are {SAVED} of them")


def _transformer(e: Any, before: Fitted) -> Fitted:
    name = type(e).__name__
    if e is None or e == "passthrough":
        return before
    if name == "StandardScaler":
        scale = 1.0 if e.scale_ is None else e.scale_
        mean = 0.0 if e.mean_ is None or not e.with_mean else e.mean_
        return before.then("affine", scale=1 / np.asarray(scale), shift=-np.asarray(mean) / scale)
    if name == "RobustScaler":
        scale = 1.0 if e.scale_ is None else e.scale_
        centre = 0.0 if e.center_ is None else e.center_
        return before.then("affine", scale=1 / np.asarray(scale), shift=-np.asarray(centre) / scale)
    if name == "MinMaxScaler" and not e.clip:
        return before.then("affine", scale=e.scale_, shift=e.min_)
    if name == "MaxAbsScaler":
        return before.then("affine", scale=1 / e.scale_, shift=np.zeros_like(e.scale_))
    if name == "Normalizer" and e.norm == "l2":
        return before.then("unit")
    if name == "PCA":
        weights = e.components_.T / (np.sqrt(e.explained_variance_) if e.whiten else 1.0)
        return before.then("linear", weights=weights, bias=-e.mean_ @ weights)
    raise _Unknown(f"the step {name} of the pipeline has no form as arrays here")


def _of_transformed_target(e: Any, before: Fitted, vectors: Array, values: Array) -> Fitted:
    inverse = {np.expm1: "expm1", np.exp: "exp", np.square: "square"}.get(e.inverse_func)
    if inverse is None or e.transformer is not None:
        raise _Unknown("of the transformations of targets numpy.expm1, exp and square have a form as arrays here")
    own = np.asarray(e.func(values))
    return _translate(e.regressor_, before, vectors, own, ()).then(inverse)


def _of_linear(e: Any, before: Fitted, classes: tuple[Any, ...]) -> Fitted:
    coef, intercept = np.atleast_2d(e.coef_), np.atleast_1d(e.intercept_)
    linear = before.then("linear", weights=coef.T, bias=np.broadcast_to(intercept, len(coef)))
    if not classes:
        name = type(e).__name__
        if name in ("PoissonRegressor", "GammaRegressor"):
            return linear.then("exp")
        if name == "TweedieRegressor":
            raise _Unknown("TweedieRegressor has no form as arrays here; PoissonRegressor and GammaRegressor have")
        return linear
    if len(classes) == 2:
        linear = linear.then("two")
    return linear.then("softmax")


def _of_forest(e: Any, before: Fitted, classes: tuple[Any, ...]) -> Fitted:
    trees = [m.tree_ for m in getattr(e, "estimators_", [e])]
    values = []
    for tree in trees:
        v = np.asarray(tree.value, "float64")[:, 0, :]
        values.append(v / v.sum(axis=1, keepdims=True) if classes else v)
    return before.then("trees", **_joined(trees, values), base=np.zeros(1), factor=np.float64(1 / len(trees)))


def _of_boosting(e: Any, before: Fitted, vectors: Array) -> Fitted:
    trees = [m.tree_ for m in e.estimators_[:, 0]]
    values = [np.asarray(t.value, "float64")[:, 0, :] for t in trees]
    steps = before.then("trees", **_joined(trees, values), base=np.zeros(1), factor=np.float64(e.learning_rate))
    first = np.asarray(vectors[:1], "float32")
    # The starting value is a constant, which is the difference that is left.
    base = float(e.predict(first)[0]) - float(steps(first)[0, 0])
    return before.then("trees", **_joined(trees, values), base=np.array([base]), factor=np.float64(e.learning_rate))


def _joined(trees: Sequence[Any], values: Sequence[Array]) -> dict[str, Array]:
    """Return the nodes of all trees in one set of arrays."""
    sizes = [t.node_count for t in trees]
    roots = np.cumsum([0, *sizes[:-1]])
    parts: dict[str, list[Array]] = {k: [] for k in ("feature", "threshold", "left", "right")}
    for tree, root in zip(trees, roots, strict=True):
        own = np.arange(tree.node_count)
        leaf = tree.children_left < 0
        parts["feature"].append(np.where(leaf, 0, tree.feature))
        parts["threshold"].append(np.where(leaf, 0.0, tree.threshold))
        parts["left"].append(np.where(leaf, own, tree.children_left) + root)
        parts["right"].append(np.where(leaf, own, tree.children_right) + root)
    arrays = {k: np.concatenate(v) for k, v in parts.items()}
    links = {k: arrays[k].astype("int32") for k in ("feature", "left", "right")}
    return {
        **links,
        "threshold": arrays["threshold"],
        "roots": roots.astype("int32"),
        "values": np.concatenate(values).astype("float32"),
    }


def _of_neighbours(e: Any, before: Fitted, vectors: Array, values: Array, classes: tuple[Any, ...]) -> Fitted:
    cosine = e.effective_metric_ == "cosine"
    if not cosine and e.effective_metric_ not in ("euclidean", "l2"):
        raise _Unknown(f"{type(e).__name__} with metric={e.effective_metric_!r}; euclidean and cosine have a form here")
    if e.weights not in ("uniform", "distance"):
        raise _Unknown(f"{type(e).__name__} with a function as weights")
    known = before(vectors).astype("float32")
    own = (np.asarray(values)[:, None] == np.asarray(classes)) if classes else np.asarray(values, "float64")[:, None]
    flags = {"k": e.n_neighbors, "cosine": cosine, "by_distance": e.weights == "distance"}
    return before.then("neighbours", known=known, values=own.astype("float32"), **{k: int(v) for k, v in flags.items()})


def _of_perceptron(e: Any, before: Fitted, classes: tuple[Any, ...]) -> Fitted:
    if e.activation not in ("relu", "tanh", "identity"):
        raise _Unknown(f"{type(e).__name__} with activation={e.activation!r}; relu and tanh have a form as arrays here")
    fitted = before
    for i, (weights, bias) in enumerate(zip(e.coefs_, e.intercepts_, strict=True)):
        if i and e.activation != "identity":
            fitted = fitted.then(e.activation)
        fitted = fitted.then("linear", weights=weights, bias=bias)
    if not classes:
        return fitted
    return (fitted.then("two") if len(classes) == 2 else fitted).then("softmax")


# --- Classify with any classifier of scikit-learn, saved as arrays where its parameters allow ---


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions(FoldOptions):
    """Options of a head of a classifier: how it is validated, and the estimator, which `fit_head` calls kind."""

    estimator: Any


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
    options: ClassVar[type[ClassifierOptions]] = ClassifierOptions
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
        options: ClassifierOptions,
    ) -> ClassifierHead:
        """Fit a clone of the estimator."""
        data, classes = label_vectors(arrays, labels, label_options)
        data = data.subsample_classes(options.most)
        report = class_counts(data, classes) | _validated(data, options)
        fitted, called = fitted_classifier(options.estimator, data.vectors, data.truth)
        truth = called[np.searchsorted(classes.codes, data.truth)]
        function = as_arrays(fitted, data.vectors, truth, called.tolist())
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


def _validated(data: TrainingVectors, options: ClassifierOptions) -> dict[str, Any]:
    """Return the accuracy, balanced over classes, for cells that were not trained on, nor their neighbours."""
    folds = data.folds(4, options.block, options.buffer)
    if folds is None:
        return {"validation": "none"}
    right = np.full(len(data.truth), np.nan)
    for train, test in folds.pairs:
        fitted, called = fitted_classifier(options.estimator, data.vectors[train], data.truth[train])
        codes = np.unique(data.truth[train])
        predicted = codes[np.searchsorted(called, np.asarray(fitted.predict(data.vectors[test])))]
        right[test] = predicted == data.truth[test]
    scored = np.isfinite(right)
    of_classes = [right[scored & (data.truth == k)].mean() for k in np.unique(data.truth[scored])]
    return {
        "validation": str(folds),
        "accuracy": round(float(np.mean(of_classes)), 3),
        "accuracy_is": "balanced over classes",
    }
