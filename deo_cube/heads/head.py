"""Heads: fitted on a few labels, applied to any embeddings of the same model, saved without pickle."""

from __future__ import annotations

import inspect
import os
import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import integer
from deo_cube.errors import ArgumentError, ArgumentTypeError, LabelsError, WeightsMismatchError
from deo_cube.heads import saved
from deo_cube.heads.classes import Classes
from deo_cube.heads.labels import Cases, burn_all, cases
from deo_cube.heads.vectors import as_embeddings, select_time
from deo_cube.paths import local_path

__all__ = ["Head", "Model", "check_model", "fit_head", "load_head"]

Array = NDArray[Any]
MOST_NUMBERS = 1_000_000
"""Of a vector, in a file of a head."""
BURN_OPTIONS = ("column", "layer", "crs", "rule", "overlap", "names", "colors", "nodata")


@dataclass(frozen=True)
class Model:
    """Which embeddings a head was fitted on."""

    dim: int
    alias: str = ""
    fingerprint: str = ""
    layer: str = ""

    @classmethod
    def of(cls, emb: xr.DataArray) -> Model:
        """What the attributes of embeddings say of their model; empty where they say nothing."""
        a = emb.attrs
        return cls(
            emb.sizes["embedding"],
            str(a.get("deo_cube:model_alias", "")),
            str(a.get("deo_cube:model_fingerprint", "")),
            str(a.get("deo_cube:layer", "")),
        )

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Model:
        """What a file says; a model is a name or a folder of this machine there, never an address."""
        other = set(values) - {"dim", "alias", "fingerprint", "layer"}
        if other:
            raise TypeError(f"the model has {sorted(map(str, other))[:3]}")
        dim, *names = values["dim"], *(values.get(k, "") for k in ("alias", "fingerprint", "layer"))
        if isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= MOST_NUMBERS:
            raise ValueError(f"vectors of {dim!r:.40} numbers")
        if not all(isinstance(n, str) and len(n) <= 4096 for n in names):
            raise ValueError("the names of the model are no texts")
        if "://" in names[0] or names[0].startswith(("//", "\\\\")):
            raise ValueError(f"the model is an address, {names[0][:80]!r}")
        return cls(dim, *names)


@runtime_checkable
class Head(Protocol):
    """What `fit_head` returns and `load_head` reads."""

    kind: ClassVar[str]

    @property
    def classes(self) -> Classes:
        """The categories it tells apart."""
        ...

    @property
    def model(self) -> Model:
        """Whose embeddings it reads."""
        ...

    @property
    def report(self) -> dict[str, Any]:
        """Labels a class, what was chosen and how it scored, seconds."""
        ...

    def predict(self, embeddings: xr.DataArray, *, probabilities: bool = False) -> xr.DataArray:
        """Classes (time, y, x) uint8, or probabilities (time, class, y, x) float32; lazy on Dask."""
        ...

    def save(self, path: str | Path) -> Path:
        """Write to one ``.safetensors`` file."""
        ...


def _kinds() -> dict[str, Any]:
    # Imported late: each kind brings its library.
    from deo_cube.heads.decoder import ConvHead
    from deo_cube.heads.knn import KNNHead
    from deo_cube.heads.linear import LinearHead
    from deo_cube.heads.upernet import UPerNetHead

    return {"knn": KNNHead, "linear": LinearHead, "conv": ConvHead, "upernet": UPerNetHead}


def fit_head(
    kind: Literal["knn", "linear", "conv", "upernet"],
    embeddings: xr.DataArray | xr.Dataset | Sequence[xr.DataArray],
    labels: Any,
    *,
    time: Any = None,
    finetune: int = 0,
    **options: Any,
) -> Head:
    """Fit a head on labelled places.

    Parameters
    ----------
    kind : {"knn", "linear", "conv", "upernet"}
        "knn": the nearest labelled vectors decide; good from one example a class. "linear": logistic regression (or
        ridge) on standardised vectors, its strength chosen by cross-validation in blocks of space. "conv": a light
        convolutional decoder that sees neighbours; wants areas, not points. "upernet": a larger one on several layers
        of the model (`deo_cube.heads.upernet.multiscale`), as in the paper.
    embeddings : DataArray or list of DataArray
        Embeddings (time, embedding, y, x) or (embedding, y, x). Of a lazy array only chunks with labels are computed.
    labels : see `deo_cube.heads.labels.burn`
        Points, polygons or rasters; a list of as many where `embeddings` is a list.
    time : label, optional
        Fit on this time only ("2024-06": the mean of that month's valid vectors). Default: every time, each labelled
        place being a case at each.
    finetune : int
        Train so many of the encoder's last blocks too. `embeddings` must then be the cube itself, `folder` says where
        the tuned model (card and weights) and the head are written, `model` which one to start from (default "tiny").
        The folder is a model as any other (``embed(model=folder)``) and ``load_head(folder)`` reads the head. Further
        options: tune_steps (100), tune_rate (1e-4), tune_batch (2 tiles), and embed_options, a mapping of `embed`'s.
    **options
        Of the labels (column, layer, crs, rule, overlap, names, colors, nodata) and of the head: knn takes k; linear
        takes estimator, strengths, block, buffer, balanced; conv and upernet take width, steps, upsample, seed, rate.

    Returns
    -------
    Head
        With `predict`, `save`, `classes` and `report`.

    Raises
    ------
    LabelsError
        If labels cannot be read, lie outside, are all of one class, or none has a valid embedding.
    ArgumentError, ArgumentTypeError
        For other kinds and unknown options.
    """
    kinds = _kinds()
    if not isinstance(kind, str) or kind not in kinds:
        raise ArgumentError(f"kind must be one of {', '.join(kinds)}, got {kind!r}")
    start = clock.perf_counter()
    if integer("finetune", finetune, minimum=0):
        from deo_cube.heads.finetune import fit_tuned

        if "folder" not in options:
            raise ArgumentTypeError(
                "finetune writes a model of its own: pass folder=..., where card, weights and head go"
            )
        cube: Any = embeddings
        labels_as = {k: options.pop(k) for k in BURN_OPTIONS if k in options}
        tuned: Head = fit_tuned(kind, cube, labels, finetune=finetune, time=time, burn_options=labels_as, **options)
        return tuned
    known = [k for k in inspect.signature(kinds[kind].fit).parameters][4:]
    unknown = sorted(set(options) - {*known, *BURN_OPTIONS})
    if unknown:
        raise ArgumentTypeError(
            f"a {kind} head has no option {unknown[0]!r}: those of the head are {known}, those of the labels "
            f"{list(BURN_OPTIONS)}"
        )
    several = isinstance(embeddings, Sequence)
    if several and not (isinstance(labels, Sequence) and not isinstance(labels, str)):
        raise ArgumentTypeError(
            f"embeddings are a list of {len(embeddings)}: labels are a list of as many, got {type(labels).__name__}"
        )
    arrays = [as_embeddings(e) for e in (embeddings if isinstance(embeddings, Sequence) else [embeddings])]
    many = list(labels) if several else [labels]
    if len(many) != len(arrays) or not arrays:
        raise ArgumentError(f"{len(arrays)} embeddings, {len(many)} sets of labels: wanted one set each")
    if time is not None:
        arrays = [select_time(a, time) for a in arrays]
    models = [Model.of(a) for a in arrays]
    for m in models[1:]:
        _same_model(models[0], m, "the embeddings to fit on")
    burn_options = {k: options.pop(k) for k in BURN_OPTIONS if k in options}
    head: Head = kinds[kind].fit(arrays, many, burn_options, models[0], **options)
    head.report["seconds"] = round(clock.perf_counter() - start, 2)
    return head


class Fitted:
    """What every kind of head shares: its fields say what is written to a file and read from it.

    `classes`, `model` and `report` are facts; fields without a default are tensors (or, called `tensors`, a mapping of
    them); the others are options, read as the type of their default.
    """

    kind: ClassVar[str]
    classes: Classes
    model: Model
    report: dict[str, Any]

    def save(self, path: str | Path) -> Path:
        """Write to one ``.safetensors`` file."""
        options: dict[str, Any] = {}
        tensors: dict[str, Array] = {}
        for name, default in _written(type(self)):
            value = getattr(self, name)
            if default is MISSING:
                tensors |= value if isinstance(value, Mapping) else {name: value}
            else:
                options[name] = list(value) if isinstance(value, tuple) else value
        m = self.model
        facts = {
            "kind": self.kind,
            "classes": self.classes.to_dict(),
            "model": {"dim": m.dim, "alias": m.alias, "fingerprint": m.fingerprint, "layer": m.layer},
            "report": dict(self.report),
            "options": options,
        }
        return saved.write(path, facts, tensors)

    @classmethod
    def restore(cls, facts: Mapping[str, Any], tensors: Mapping[str, Array]) -> Any:
        """From what `save` wrote."""
        options = dict(facts["options"])
        given: dict[str, Any] = {
            "classes": Classes.from_dict(facts["classes"]),
            "model": Model.read(facts["model"]),
            "report": dict(facts["report"]),
        }
        for name, default in _written(cls):
            if default is MISSING:
                given[name] = tensors if name == "tensors" else tensors[name]
            elif isinstance(default, tuple):
                given[name] = tuple(int(v) for v in options[name])
            else:
                given[name] = type(default)(options[name])
        return cls(**given)


def _written(kind: type) -> list[tuple[str, Any]]:
    """Fields of a head beside its facts: name and default."""
    every = fields(kind)  # type: ignore[arg-type]
    return [(f.name, f.default) for f in every if f.name not in ("classes", "model", "report")]


def load_head(path: str | Path) -> Head:
    """Read a head that `save` wrote, or that of a folder of ``fit_head(..., finetune=K, folder=...)``.

    Executes nothing of what the file holds.

    Raises
    ------
    InputNotFoundError
        If there is no file.
    WeightsMismatchError
        If it is no head, or its numbers do not fit each other.
    ArgumentTypeError
        For anything but a path.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"path must be that of a saved head, got {type(path).__name__}")
    path = local_path(path)
    path = path / "head.safetensors" if path.is_dir() else path
    facts, tensors = saved.read(path)
    kinds = _kinds()
    if not isinstance(facts.get("kind"), str) or facts["kind"] not in kinds:
        raise WeightsMismatchError(
            f"{path} holds a head of kind {str(facts.get('kind'))[:40]!r}: this version knows {list(kinds)}"
        )
    try:
        head: Any = kinds[facts["kind"]].restore(facts, tensors)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsMismatchError(f"{path} is no complete head: {error!r:.200}") from error
    except (ValueError, ArithmeticError, MemoryError, RecursionError) as error:
        raise WeightsMismatchError(f"{path} is no head that can be: {error!s:.300}") from error
    if "finetune" in head.report and (path.parent / "card.json").is_file():
        # The folder may have been moved since; the fingerprint tells whether it is still the same model.
        head = replace(head, model=replace(head.model, alias=str(path.parent.resolve())))
    found: Head = head
    return found


def _same_model(wanted: Model, found: Model, what: str) -> None:
    named = bool(wanted.fingerprint and found.fingerprint)
    other = named and (wanted.fingerprint, wanted.layer) != (found.fingerprint, found.layer)
    differs = wanted.dim != found.dim or other
    if differs:
        raise ArgumentError(
            f"{what} are of {_said(found)}, the head is for {_said(wanted)}: embed with the model that the head was "
            "fitted on, or fit another head"
        )


def _said(m: Model) -> str:
    name = f"model {m.alias or m.fingerprint}" if m.fingerprint or m.alias else "an unnamed model"
    facts = [m.layer, f"vectors of {m.dim}", m.fingerprint]
    return f"{name} ({', '.join(f for f in facts if f)})"


def check_model(head: Head, emb: xr.DataArray) -> xr.DataArray:
    """Embeddings that the head can read, or an error that says whose they are."""
    emb = as_embeddings(emb)
    _same_model(head.model, Model.of(emb), "the embeddings")
    return emb


def labelled(arrays: Sequence[xr.DataArray], many: Sequence[Any], burn_options: Mapping[str, Any]) -> Cases:
    """Labelled vectors of all arrays together, under one set of classes."""
    burnt = burn_all(many, arrays, **burn_options)
    if len(arrays) == 1:
        return cases(arrays[0], burnt[0])
    parts = [cases(a, b, lone=True) for a, b in zip(arrays, burnt, strict=True)]
    each = (zip(p.classes.codes, p.classes.names, p.classes.colors, strict=True) for p in parts)
    known = {c: (n, h) for triples in each for c, n, h in triples}
    codes = np.concatenate([p.codes for p in parts])
    present = [c for c in sorted(known) if c in codes]
    if len(present) < 2:
        raise LabelsError(
            f"all labels are of one class, {known[present[0]][0]!r}: a head wants examples of at least two"
        )
    classes = Classes(tuple(present), tuple(known[c][0] for c in present), tuple(known[c][1] for c in present))
    ends = np.cumsum([0] + [int(p.cell.max(initial=0)) + 1 for p in parts])
    cell = np.concatenate([p.cell + e for p, e in zip(parts, ends[:-1], strict=True)])
    # Arrays may be in different CRSs: they are set far apart, so that no block of space holds cells of two.
    far = max((np.ptp(v) for p in parts for v in (p.x, p.y) if len(v)), default=0.0) * 4 + 1000 * parts[0].size
    x = np.concatenate([p.x - p.x.min(initial=np.inf) + i * far if len(p.x) else p.x for i, p in enumerate(parts)])
    y = np.concatenate([p.y - p.y.min(initial=np.inf) if len(p.y) else p.y for p in parts])
    vectors = np.concatenate([p.vectors for p in parts])
    return Cases(vectors, codes, classes, x, y, cell, parts[0].size)


def counted(c: Cases) -> dict[str, Any]:
    """How many labelled cells each class has, for the report."""
    first = np.unique(c.cell, return_index=True)[1]
    return {
        "cells": {n: int((c.codes[first] == k).sum()) for k, n in zip(c.classes.codes, c.classes.names, strict=True)},
        "vectors": len(c.codes),
    }


def thinned(codes: Array, most: int, *, least: int = 100) -> Array:
    """Indices, rising, of a random `most` cases where there are more, and of `least` of each class that has them."""
    if len(codes) <= most:
        return np.arange(len(codes))
    rng = np.random.default_rng(0)
    kept = rng.choice(np.arange(len(codes)), most, replace=False)
    for c in np.unique(codes):
        own = np.flatnonzero(codes == c)
        if np.isin(own, kept).sum() < least:
            kept = np.union1d(kept, rng.choice(own, min(least, len(own)), replace=False))
    return np.sort(kept)


def category_attrs(head: Head, *, probabilities: bool) -> dict[str, Any]:
    """Attributes of a prediction."""
    attrs: dict[str, Any] = {"long_name": "probability of each class" if probabilities else "class"}
    attrs["deo_cube:head"] = head.kind
    attrs["deo_cube:model_fingerprint"] = head.model.fingerprint
    return attrs if probabilities else attrs | head.classes.attrs()
