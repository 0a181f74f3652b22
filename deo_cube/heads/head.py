"""Fit a head on a few labels (`fit_head`), read a saved one (`load_head`), or take one that comes with a model."""

from __future__ import annotations

import os
import time as clock
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import xarray as xr

from deo_cube.arguments import integer
from deo_cube.errors import ArgumentError, ArgumentTypeError, WeightsMismatchError
from deo_cube.heads.base import Head, ModelId, check_model, check_same_model, read_head
from deo_cube.heads.classes import Classes
from deo_cube.heads.conv import ConvHead, UPerNetHead
from deo_cube.heads.estimators import ClassifierHead, checked_estimator, is_estimator
from deo_cube.heads.finetune import HEAD_FILE, fit_tuned
from deo_cube.heads.knn import KNNHead
from deo_cube.heads.labels import LabelOptions
from deo_cube.heads.linear import LinearHead
from deo_cube.heads.regression import ForestHead, RegressionHead, RegressorHead, RidgeHead, TargetOptions
from deo_cube.heads.vectors import as_embeddings, select_time
from deo_cube.paths import local_path

__all__ = ["BUNDLED", "HEADS", "Head", "bundled_head", "check_model", "fit_head", "load_head"]


#: Heads of classes by name.
CLASS_HEADS: dict[str, type[KNNHead | LinearHead | ConvHead]] = {
    "knn": KNNHead,
    "linear": LinearHead,
    "conv": ConvHead,
    "upernet": UPerNetHead,
}
#: Every head that is fitted by its name.
HEADS: dict[str, Any] = {**CLASS_HEADS, "ridge": RidgeHead, "forest": ForestHead}
#: Heads of an estimator of scikit-learn, by its kind.
ESTIMATOR_HEADS: dict[str, Any] = {"regressor": RegressorHead, "classifier": ClassifierHead}
TUNE_OPTIONS = ("folder", "model", "embed_options", "tune_steps", "tune_rate", "tune_batch", "seed")


@overload
def fit_head(
    kind: Literal["ridge", "forest"],
    embeddings: xr.DataArray | xr.Dataset | str | Path | Sequence[xr.DataArray | str | Path],
    labels: Any,
    *,
    time: Any = None,
    finetune: int = 0,
    **options: Any,
) -> RegressionHead: ...
@overload
def fit_head(
    kind: Any,
    embeddings: xr.DataArray | xr.Dataset | str | Path | Sequence[xr.DataArray | str | Path],
    labels: Any,
    *,
    time: Any = None,
    finetune: int = 0,
    **options: Any,
) -> Head: ...
def fit_head(
    kind: Any,
    embeddings: xr.DataArray | xr.Dataset | str | Path | Sequence[xr.DataArray | str | Path],
    labels: Any,
    *,
    time: Any = None,
    finetune: int = 0,
    **options: Any,
) -> Head:
    """Fit a head on labelled places.

    Parameters
    ----------
    kind : {"knn", "linear", "conv", "upernet", "ridge", "forest"} or estimator
        "knn": the nearest labelled vectors decide; works from one example per class. "linear": logistic regression (or
        ridge) on standardised vectors, its strength chosen by cross-validation in blocks of space. "conv": a light
        convolutional decoder that sees neighbours; needs areas, not points. "upernet": a larger one on several layers
        of the model (`deo_cube.heads.conv.multiscale`), as in the paper. "ridge", "forest": regression of numbers,
        linear or by a random forest, scored by cross-validation in blocks of space. Or an estimator of scikit-learn
        that is not fitted: a classifier, a regressor, or a pipeline.
    embeddings : DataArray, path of a store, or list of them
        Embeddings (time, embedding, y, x) or (embedding, y, x). Of a lazy array only chunks with labels are computed.
    labels : see `deo_cube.heads.labels.rasterize_labels`
        Points, polygons or rasters; a list of equally many where `embeddings` is a list. For a regression they are
        numbers, which are averaged over patches (`deo_cube.heads.regression.rasterize_targets`).
    time : label, optional
        Fit on this time only ("2024-06": the mean of that month's valid vectors). Default: every time; each labelled
        place is one case per time.
    finetune : int
        Number of the encoder's last blocks to train too. `embeddings` must then be the cube itself, `folder` the place
        for the tuned model (card and weights) and the head, `model` the one to start from (default "tiny").
        The folder is a model as any other (``embed(model=folder)``) and ``load_head(folder)`` reads the head. Further
        options: tune_steps (100), tune_rate (1e-4), tune_batch (2 tiles), and embed_options, a mapping of `embed`'s.
    **options
        Of the labels (column, layer, crs, rule, overlap, names, colors, nodata) and of the head: k (knn); estimator,
        strengths, block, buffer, balanced (linear); width, steps, upsample, seed, rate (conv and upernet). Of
        the targets of a regression (column, layer, crs, nodata, least) and of its head: units, quantity, limits, block,
        buffer, most, keep_training; strengths (ridge); trees, leaf, seed (forest).

    Returns
    -------
    Head
        With `predict`, `save`, `classes` and `report`; of a regression a `deo_cube.heads.regression.RegressionHead`,
        whose `predict` gives float32 with units, and which has `mean`.

    Raises
    ------
    MissingExtraError
        Without the extra ``heads``, for the kinds that scikit-learn fits.
    LabelsError
        If labels cannot be read, are outside the embeddings, are all of one class, or none has a valid embedding.
    ArgumentError, ArgumentTypeError
        For other kinds and unknown options.
    """
    start = clock.perf_counter()
    if is_estimator(kind) or isinstance(kind, type):
        name, head_of = type(kind).__name__, ESTIMATOR_HEADS[checked_estimator(kind)]
    elif isinstance(kind, str) and kind in HEADS:
        name, head_of = kind, HEADS[kind]
    else:
        raise ArgumentError(f"kind must be one of {', '.join(HEADS)}, or an estimator, got {kind!r:.60}")
    label_type: Any = getattr(head_of, "reads", LabelOptions)
    names = [f.name for f in fields(label_type)]
    label_options = {k: options.pop(k) for k in names if k in options}
    own_options = [f.name for f in fields(head_of.options)]
    if name != kind:
        own_options.remove("estimator")  # it is `kind`
    if head_of not in CLASS_HEADS.values() and finetune:
        raise ArgumentError(f"finetune must be 0 for {name}: blocks are trained on classes, with {list(CLASS_HEADS)}")
    if integer("finetune", finetune, minimum=0):
        own_options += TUNE_OPTIONS
    unknown = sorted(set(options) - set(own_options))
    if unknown:
        raise ArgumentTypeError(
            f"{unknown[0]!r} is not an option of a {name} head: those of the head are {own_options}, those of the "
            f"{'targets' if label_type is TargetOptions else 'labels'} {names}"
        )
    if finetune:
        if "folder" not in options:
            raise ArgumentTypeError("folder must be given with finetune: card, weights and head are written there")
        cube: Any = embeddings
        tuned: Head = fit_tuned(
            head_of, cube, labels, LabelOptions(**label_options), finetune=finetune, time=time, **options
        )
        return tuned
    arrays, label_sets = _paired(embeddings, labels)
    if time is not None:
        arrays = [select_time(a, time) for a in arrays]
    models = [ModelId.of(a) for a in arrays]
    for model in models[1:]:
        check_same_model(models[0], model, "the embeddings to fit on")
    if name != kind:
        options["estimator"] = kind
    head: Head = head_of.fit(arrays, label_sets, label_type(**label_options), models[0], head_of.options(**options))
    head.report["seconds"] = round(clock.perf_counter() - start, 2)
    return head


def _paired(
    embeddings: xr.DataArray | xr.Dataset | str | Path | Sequence[xr.DataArray | str | Path], labels: Any
) -> tuple[list[xr.DataArray], list[Any]]:
    """Return embeddings and labels as lists of equal length."""
    if isinstance(embeddings, str) or not isinstance(embeddings, Sequence):
        return [as_embeddings(embeddings, "embeddings")], [labels]
    if not isinstance(labels, Sequence) or isinstance(labels, str):
        raise ArgumentTypeError(
            f"labels must be a list of {len(embeddings)} sets of labels, as embeddings are a list; got "
            f"{type(labels).__name__}"
        )
    arrays, label_sets = [as_embeddings(e, "embeddings") for e in embeddings], list(labels)
    if len(label_sets) != len(arrays) or not arrays:
        raise ArgumentError(
            f"labels must be one set per array of embeddings, got {len(arrays)} embeddings, {len(label_sets)} sets of "
            "labels"
        )
    return arrays, label_sets


def load_head(path: str | Path) -> Head:
    """Read a head that `save` wrote, or that of a folder of ``fit_head(..., finetune=K, folder=...)``.

    Nothing in the file is executed.

    Raises
    ------
    InputNotFoundError
        If there is no file.
    WeightsMismatchError
        If it is not a head, or its numbers do not fit each other.
    ArgumentTypeError
        For anything but a path.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"path must be that of a saved head, got {type(path).__name__}")
    path = local_path(path)
    path = path / HEAD_FILE if path.is_dir() else path
    facts, tensors = read_head(path)
    kind = facts.get("kind")
    known = HEADS | ESTIMATOR_HEADS
    if not isinstance(kind, str) or kind not in known:
        raise WeightsMismatchError(
            f"{path} holds a head of kind {str(kind)[:40]!r}: this version knows {list(known)}, update deo_cube"
        )
    try:
        head: Any = known[kind].restore(facts, tensors)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsMismatchError(f"{path} is not a complete head: {error!r:.200}") from error
    except (ValueError, ArithmeticError, MemoryError, RecursionError) as error:
        raise WeightsMismatchError(f"{path} is not a valid head: {error!s:.300}") from error
    if "finetune" in head.report and (path.parent / "card.json").is_file():
        # The folder may have been moved since; the fingerprint tells whether it is still the same model.
        head = replace(head, model=replace(head.model, alias=str(path.parent.resolve())))
    restored: Head = head
    return restored


# --- Heads that come with a model: its classes without labels of your own ---


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
