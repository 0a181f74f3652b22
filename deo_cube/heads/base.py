"""The protocol of heads, what every kind of head shares, and the files of fitted results."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deo_cube.constants import Attribute
from deo_cube.errors import (
    ArgumentError,
    ArgumentTypeError,
    InputNotFoundError,
    StorageError,
    WeightsMismatchError,
)
from deo_cube.heads.classes import NO_CLASS, Classes
from deo_cube.heads.vectors import as_embeddings, map_vectors
from deo_cube.paths import local_path, not_found, unreadable

__all__ = [
    "BaseHead",
    "Head",
    "ModelId",
    "category_attrs",
    "check_model",
    "check_same_model",
    "predict_classes",
    "read_head",
    "read_json",
    "write_head",
    "write_json",
]


Array = NDArray[Any]

# --- Read and write files of fitted results: heads as safetensors, bases, clusters and calibrations as JSON ---
#
# Reading parses numbers and text and executes nothing: there is no pickle, and no class named in a file is looked up.

KEY = "deo_cube.head"
FORMAT = 1
MAX_HEAD_BYTES = 4 * 2**30
"""Largest head file that is read; more than the largest head that can be fitted."""
MAX_JSON_BYTES = 512 * 2**20
"""Largest JSON file that is read."""


def write_head(path: str | Path, facts: Mapping[str, Any], tensors: Mapping[str, Array]) -> Path:
    """Write a head to one safetensors file: numbers in its tensors, everything else as JSON in its header.

    ``.safetensors`` is appended to a name without that suffix. The file appears only when it is complete.

    Raises
    ------
    ArgumentError, StorageError
        If `path` names no file, or the file cannot be written.
    """
    path = local_path(path)
    if not path.name:
        raise ArgumentError(f"path must name the file of a head, got {str(path)!r}")
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    header = json.dumps({"format": FORMAT} | dict(facts), sort_keys=True)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, part, metadata={KEY: header})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"the head cannot be written to {path}: {error}") from error
    return path


def read_head(path: str | Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the facts and the tensors that `write_head` wrote.

    Raises
    ------
    InputNotFoundError
        If there is no such file.
    WeightsMismatchError
        If it is not a safetensors file, not a head, larger than `MAX_HEAD_BYTES`, or of a later format.
    StorageError
        If it cannot be read.
    """
    path = _head_file(path)
    size = path.stat().st_size
    if size > MAX_HEAD_BYTES:
        raise WeightsMismatchError(
            f"{path} has {size / 2**30:.1f} GiB: expected a head, which has at most {MAX_HEAD_BYTES / 2**30:g} GiB"
        )
    try:
        with safe_open(path, framework="numpy") as f:
            header = (f.metadata() or {}).get(KEY)
            tensors = {k: f.get_tensor(k) for k in f.keys()}
    except TypeError as error:
        # safetensors has dtypes that NumPy does not have.
        raise WeightsMismatchError(f"{path} holds a dtype that a head never has: {error}") from error
    except SafetensorError as error:
        expected = "the .safetensors file that head.save(path) writes, never a pickle"
        raise unreadable("head", path, expected, error, error=WeightsMismatchError) from error
    except OSError as error:
        raise StorageError(f"head: {path} cannot be read: {error}") from error
    if header is None:
        raise WeightsMismatchError(
            f"head: {path} is a safetensors file, but not a head: its header has no entry {KEY!r}. Expected the file "
            "that head.save(path) writes"
        )
    _check_tensors(path, tensors)
    return _head_facts(path, header), tensors


def _head_file(path: str | Path) -> Path:
    """Return the file of a head, whose suffix may be left out."""
    path = local_path(path)
    if not path.exists() and path.with_name(path.name + ".safetensors").exists():
        path = path.with_name(path.name + ".safetensors")
    if path.is_dir():
        raise InputNotFoundError(
            f"head: {path} is a folder. Expected the .safetensors file that head.save(path) writes"
        )
    if not path.is_file():
        raise not_found("head", path, "the .safetensors file that head.save(path) writes")
    return path


def _head_facts(path: Path, header: str) -> dict[str, Any]:
    try:
        facts = json.loads(header)
    except (ValueError, RecursionError) as error:  # also integers with too many digits, and lists nested too deep
        raise WeightsMismatchError(f"{path} is damaged: the header of the head is not JSON ({error})") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        version = facts.get("format") if isinstance(facts, dict) else None
        raise WeightsMismatchError(f"{path} has format {version}, this version reads format {FORMAT}: update deo_cube")
    return facts


def _check_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    not_numbers = sorted(k for k, v in tensors.items() if v.dtype.kind not in "biuf")
    if not_numbers:
        raise WeightsMismatchError(f"{path} holds tensors of a dtype that a head never has: {not_numbers[:3]}")
    not_finite = sorted(k for k, v in tensors.items() if not np.isfinite(v).all())
    if not_finite:
        raise WeightsMismatchError(f"{path} is damaged: there are numbers that are not finite in {not_finite}")


def write_json(path: Any, values: Mapping[str, Any]) -> None:
    """Write `values` to a file as JSON.

    Raises
    ------
    ArgumentTypeError, StorageError
        If `path` is not a path, or the file cannot be written.
    """
    try:
        _json_file(path).write_text(json.dumps(values), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


def read_json(path: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """Return what `write_json` wrote: finite numbers (or lists of them) under `names`; the last name holds text.

    Parameters
    ----------
    names : sequence of str
        Expected keys; the last one may be missing.
    what : str
        What the file holds, with its article, for messages.

    Raises
    ------
    InputNotFoundError, StorageError
        If there is no file, or it cannot be read.
    WeightsMismatchError
        If its content is not as described.
    """
    file = _json_file(path)
    if not file.is_file():
        raise not_found("file", file, f"a file of {what}")
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise WeightsMismatchError(f"{file} is not {what}: it has more than {MAX_JSON_BYTES // 2**20} MiB")
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise WeightsMismatchError(f"{file} is not {what}: {str(error)[:200]}") from error
    *numbers, text = names
    if not isinstance(values, dict) or not set(numbers) <= set(values) <= set(names):
        keys = sorted(map(str, values))[:8] if isinstance(values, dict) else type(values).__name__
        raise WeightsMismatchError(f"{file} is not {what}: expected {list(names)}, found {keys}")
    if not isinstance(values.get(text, ""), str):
        raise WeightsMismatchError(f"{file} is not {what}: {text} must be text")
    for name in numbers:
        try:
            finite = bool(np.isfinite(np.asarray(values[name], dtype="float64")).all())
        except (TypeError, ValueError, OverflowError) as error:
            raise WeightsMismatchError(f"{file} is not {what}: {name} must be numbers") from error
        if not finite:
            raise WeightsMismatchError(f"{file} is damaged: {name} are not all finite")
    return values


def _json_file(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"path must be text or a path, got {type(path).__name__}")
    return local_path(os.fsdecode(path))


# --- base of heads ---

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
