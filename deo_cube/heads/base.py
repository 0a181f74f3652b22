"""The protocol of heads, and what every kind of head shares."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.constants import Attribute
from deo_cube.errors import ArgumentError
from deo_cube.heads.classes import NO_CLASS, Classes
from deo_cube.heads.saved import write_head
from deo_cube.heads.vectors import as_embeddings, map_vectors

__all__ = ["BaseHead", "Head", "ModelId", "category_attrs", "check_model", "check_same_model", "predict_classes"]

Array = NDArray[Any]

MAX_DIM = 1_000_000
"""Largest length of a vector that a head file may state."""


@dataclass(frozen=True)
class ModelId:
    """Identity of the model whose embeddings a head was fitted on.

    Parameters
    ----------
    dim : int
        Length of a vector.
    alias, fingerprint, layer : str
        Of the model; empty where unknown.
    """

    dim: int
    alias: str = ""
    fingerprint: str = ""
    layer: str = ""

    @classmethod
    def of(cls, emb: xr.DataArray) -> ModelId:
        """Return the model that the attributes of embeddings name."""
        names = (
            str(emb.attrs.get(k, "")) for k in (Attribute.MODEL_ALIAS, Attribute.MODEL_FINGERPRINT, Attribute.LAYER)
        )
        return cls(emb.sizes["embedding"], *names)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> ModelId:
        """Return the model that a head file names: by alias or by a folder of this machine, never by an address."""
        unknown = set(values) - {"dim", "alias", "fingerprint", "layer"}
        if unknown:
            raise TypeError(f"the model has unknown fields {sorted(map(str, unknown))[:3]}")
        dim, *names = values["dim"], *(values.get(k, "") for k in ("alias", "fingerprint", "layer"))
        if isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= MAX_DIM:
            raise ValueError(f"the length of a vector is {dim!r:.40}")
        if not all(isinstance(n, str) and len(n) <= 4096 for n in names):
            raise ValueError("the names of the model are not text")
        if "://" in names[0] or names[0].startswith(("//", "\\\\")):
            raise ValueError(f"the model is an address, {names[0][:80]!r}")
        return cls(dim, *names)

    def __str__(self) -> str:
        name = f"model {self.alias or self.fingerprint}" if self.fingerprint or self.alias else "an unnamed model"
        facts = [self.layer, f"vectors of {self.dim}", self.fingerprint]
        return f"{name} ({', '.join(f for f in facts if f)})"


@runtime_checkable
class Head(Protocol):
    """A fitted classifier or regression of embeddings, as `fit_head` returns it and `load_head` reads it."""

    kind: ClassVar[str]

    @property
    def classes(self) -> Classes:
        """Classes that the head tells apart; none for a regression."""
        ...

    @property
    def model(self) -> ModelId:
        """Model whose embeddings the head reads."""
        ...

    @property
    def report(self) -> dict[str, Any]:
        """Labels per class, chosen options, scores, and seconds that fitting took."""
        ...

    def predict(self, embeddings: xr.DataArray, *, probabilities: bool = False) -> xr.DataArray:
        """Return classes (time, y, x) uint8, or probabilities (time, class, y, x) float32; lazy on Dask."""
        ...

    def save(self, path: str | Path) -> Path:
        """Write the head to one ``.safetensors`` file and return its path."""
        ...


class BaseHead:
    """Saving, reading and display of a head, from the fields of its dataclass.

    `classes`, `model` and `report` are facts. Of the other fields, those without a default are tensors (the field
    `tensors` is a mapping of tensors), and those with one are options, which are read as the type of their default.
    """

    kind: ClassVar[str]
    classes: Classes
    model: ModelId
    report: dict[str, Any]

    def save(self, path: str | Path) -> Path:
        """Write the head to one ``.safetensors`` file and return its path."""
        options: dict[str, Any] = {}
        tensors: dict[str, Array] = {}
        for name, default in _own_fields(type(self)):
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
        return write_head(path, facts, tensors)

    @classmethod
    def restore(cls, facts: Mapping[str, Any], tensors: Mapping[str, Array]) -> Self:
        """Return the head that `save` wrote, from the facts and tensors of its file."""
        options = dict(facts["options"])
        values: dict[str, Any] = {
            "classes": Classes.from_dict(facts["classes"]),
            "model": ModelId.read(facts["model"]),
            "report": dict(facts["report"]),
        }
        for name, default in _own_fields(cls):
            if default is MISSING:
                values[name] = tensors if name == "tensors" else tensors[name]
            elif isinstance(default, tuple):
                values[name] = tuple(int(v) for v in options[name])
            else:
                values[name] = type(default)(options[name])
        return cls(**values)

    def _repr_html_(self) -> str:
        cells = self.report.get("cells", {})
        facts = {"model": str(self.model)} | {k: v for k, v in self.report.items() if k != "cells"}
        rows = "".join(
            f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items()
        )
        legend = self.classes.legend_html({n: f"{c} cells" for n, c in cells.items()} if cells else None)
        return f"<div><b>{html.escape(self.kind)} head</b>{legend}<table>{rows}</table></div>"


def _own_fields(kind: type) -> list[tuple[str, Any]]:
    """Return name and default of the fields of a head beside its facts."""
    every = fields(kind)  # type: ignore[arg-type]
    facts = ("classes", "model", "report")
    return [(f.name, f.default) for f in every if f.name not in facts and f.metadata.get("saved", True)]


def check_same_model(expected: ModelId, found: ModelId, what: str) -> None:
    """Raise ArgumentError if embeddings are of another model; unnamed models differ by the length of vectors only."""
    both_named = bool(expected.fingerprint and found.fingerprint)
    differ = both_named and (expected.fingerprint, expected.layer) != (found.fingerprint, found.layer)
    if expected.dim != found.dim or differ:
        raise ArgumentError(
            f"{what} are of {found}, the head is for {expected}: embed with the model that the head was fitted on, "
            "or fit another head"
        )


def check_model(head: Head, emb: xr.DataArray) -> xr.DataArray:
    """Return `emb` as heads read it, if it is of the model of the head."""
    emb = as_embeddings(emb)
    # The fingerprint distinguishes stems too, but a user who gave red, green and blue needs to read about bands.
    stem, own = head.report.get("stem"), emb.attrs.get(Attribute.STEM)
    if stem and own and stem != own:
        raise ArgumentError(
            f"the head reads vectors of the bands {head.report.get('bands', stem)}, the embeddings are of the model's "
            f"stem {own!r}: give the cube these bands, or fit a head of your own, head=fit_head('linear', emb, labels)"
        )
    check_same_model(head.model, ModelId.of(emb), "the embeddings")
    return emb


def predict_classes(
    head: Head,
    embeddings: xr.DataArray,
    scores: Callable[[Array], Array],
    probabilities: Callable[[Array], Array] | None,
) -> xr.DataArray:
    """Return the class of each vector with the highest score (n, K), or its probabilities.

    Parameters
    ----------
    head : Head
        Names classes and model.
    embeddings : DataArray
        Of the head's model.
    scores : callable
        Of vectors (n, D).
    probabilities : callable, optional
        Of vectors (n, D); None: return classes.
    """
    emb = check_model(head, embeddings)
    attrs = category_attrs(head, probabilities=probabilities is not None)
    if probabilities is not None:
        channels = {"class": list(head.classes.names)}
        return map_vectors(probabilities, [emb], channels=channels, name="probability", attrs=attrs)
    codes = np.array(head.classes.codes)
    return map_vectors(
        lambda v: codes[scores(v).argmax(axis=1)], [emb], dtype="uint8", fill=NO_CLASS, name="class", attrs=attrs
    )


def category_attrs(head: Head, *, probabilities: bool) -> dict[str, Any]:
    """Return the attributes of a prediction."""
    attrs: dict[str, Any] = {"long_name": "probability of each class" if probabilities else "class"}
    attrs[Attribute.HEAD] = head.kind
    attrs[Attribute.MODEL_FINGERPRINT] = head.model.fingerprint
    if head.model.alias:
        attrs[Attribute.MODEL_ALIAS] = Path(head.model.alias).name  # of a tuned model it is a folder
    # What a bundled head states of its map goes with the map (CF's names for it).
    attrs |= {k: str(head.report[k]) for k in ("comment", "references") if k in head.report}
    return attrs if probabilities else attrs | head.classes.attrs()
