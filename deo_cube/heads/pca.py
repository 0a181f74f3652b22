"""Show embeddings as colours (`pca_rgb`): three principal components, with the same colours in any window."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import integer
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.heads.base import read_json, write_json
from deo_cube.heads.vectors import as_embeddings, fit_lazily, map_vectors, model_fingerprint, subsample

__all__ = ["PCA", "basis_of", "fit_pca", "pca_rgb"]

Array = NDArray[Any]


@dataclass(frozen=True)
class PCA:
    """Principal components as colours, fitted once and applied to any window, date or store of the same model.

    Parameters
    ----------
    mean : (D,) float
        Mean of the vectors that the basis was fitted on.
    components : (3, D) float
        Unit vectors, in the direction in which their largest loading is positive.
    low, high : (3,) float
        Projections that become 0 and 1: the 2nd and 98th percentile of the vectors that the basis was fitted on.
    model : str
        Fingerprint of the model whose embeddings they are; empty where unknown.
    """

    mean: Array = field(repr=False)
    components: Array = field(repr=False)
    low: Array
    high: Array
    model: str = ""

    def __post_init__(self) -> None:
        for name in ("mean", "components", "low", "high"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype="float64"))
        d = self.mean.size
        if self.mean.ndim != 1 or self.components.shape != (3, d) or self.low.shape != (3,) or self.high.shape != (3,):
            raise ArgumentError(
                f"mean, components, low and high of a PCA must be (D,), (3, D), (3,) and (3,); got {self.mean.shape}, "
                f"{self.components.shape}, {self.low.shape}, {self.high.shape}"
            )

    @property
    def array(self) -> Array:
        """All numbers in one (3, 2 D + 2) array, as chunks get them."""
        mean = np.broadcast_to(self.mean, self.components.shape)
        return np.concatenate([self.components, mean, self.low[:, None], self.high[:, None]], axis=1)

    def save(self, path: str | Path) -> None:
        """Write the basis to a JSON file."""
        d = {k: getattr(self, k).tolist() for k in ("mean", "components", "low", "high")} | {"model": self.model}
        write_json(path, d)

    @classmethod
    def load(cls, path: str | Path) -> PCA:
        """Read a file that `save` wrote."""
        return cls(**read_json(path, ("mean", "components", "low", "high", "model"), "a PCA basis"))


def fit_pca(emb: xr.DataArray | Sequence[xr.DataArray], *, most: int = 16384) -> PCA:
    """Fit a basis now, on a fixed subsample of about `most` vectors of each array (8 x 8 windows, 4 times).

    Parameters
    ----------
    emb : DataArray or sequence of DataArray
        Embeddings of one model; several scenes give a basis that serves many.

    Examples
    --------
    >>> basis = fit_pca(store)                      # doctest: +SKIP
    >>> pca_rgb(store.isel(time=3), basis=basis)    # doctest: +SKIP
    """
    arrays = [as_embeddings(e) for e in (emb if isinstance(emb, list | tuple) else [emb])]
    if not arrays:
        raise ArgumentError("emb must be embeddings, or a list of them; got an empty list")
    integer("most", most, minimum=3)
    models = {model_fingerprint(a) for a in arrays}
    if len(models) != 1 or len({a.sizes["embedding"] for a in arrays}) != 1:
        raise ArgumentError(f"emb must be embeddings of one model and length, got models {sorted(models)}")
    _check_length(arrays[0])
    vectors = np.concatenate([np.asarray(subsample(a, most).values, dtype="float64") for a in arrays])
    return _unpacked(_fit(vectors[np.isfinite(vectors).all(axis=1)]), models.pop())


def pca_rgb(emb: xr.DataArray, *, basis: PCA | str | Path | None = None) -> xr.DataArray:
    """Return red, green and blue from the first three principal components.

    Parameters
    ----------
    emb : DataArray, or path of a store
        Embeddings (time, embedding, y, x) or (embedding, y, x).
    basis : PCA or path, optional
        Components and stretch. With one basis the same place has the same colours in any window. Default: the basis
        bundled with the model; of a model without one, a basis fitted on a fixed subsample of this array, lazily, so
        that another window gets other colours (`fit_pca` makes a basis to keep).

    Returns
    -------
    DataArray
        `rgb` (time, band, y, x) float32 in 0..1, bands "red", "green", "blue"; NaN where invalid. The attribute
        ``pca_basis`` says which basis was used.
    """
    emb = as_embeddings(emb)
    basis, source = _chosen(emb, basis)
    parameters: Any = _fit_lazily(emb, 16384) if basis is None else basis.array
    d = emb.sizes["embedding"]

    def colour(v: Array, p: Array) -> Array:
        z = (v - p[0, d : 2 * d]) @ p[:, :d].T
        return np.asarray(((z - p[:, -2]) / np.maximum(p[:, -1] - p[:, -2], 1e-12)).clip(0, 1))

    attrs = {"long_name": "principal components as colours"}
    attrs["pca_basis"] = "fitted on a subsample of this array" if basis is None else source
    return map_vectors(
        colour, [emb], parameters=parameters, channels={"band": ["red", "green", "blue"]}, name="rgb", attrs=attrs
    )


def basis_of(emb: xr.DataArray, basis: PCA | str | Path | None = None) -> PCA:
    """Return the basis whose colours `pca_rgb` shows: the given one, that of the model, or one fitted now.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        For a basis of another model or length, and for anything else.
    """
    emb = as_embeddings(emb)
    chosen = _chosen(emb, basis)[0]
    return fit_pca(emb) if chosen is None else chosen


def _chosen(emb: xr.DataArray, basis: PCA | str | Path | None) -> tuple[PCA | None, str]:
    """Return the given basis or that of the model, None where there is neither; and its source."""
    if isinstance(basis, str | os.PathLike):
        basis = PCA.load(Path(basis))
    if not (basis is None or isinstance(basis, PCA)):
        raise ArgumentTypeError(
            f"basis must be a PCA of fit_pca, or the path of a saved one; got {type(basis).__name__}"
        )
    source = "given"
    if basis is None:
        basis, source = _bundled(emb), "bundled with the model"
    if basis is not None and len(basis.mean) != emb.sizes["embedding"]:
        raise ArgumentError(
            f"basis must be for vectors of length {emb.sizes['embedding']}, got one for length {len(basis.mean)}"
        )
    model = model_fingerprint(emb)
    if basis is not None and basis.model and model and basis.model != model:
        raise ArgumentError(f"basis must be of the model of the embeddings, {model}, got one of model {basis.model}")
    return basis, source


def _check_length(emb: xr.DataArray) -> None:
    if emb.sizes["embedding"] < 3:
        raise ArgumentError(f"emb must have vectors of length 3 or more, got {emb.sizes['embedding']}")


def _fit_lazily(emb: xr.DataArray, most: int) -> xr.DataArray:
    _check_length(emb)
    d = emb.sizes["embedding"]
    return fit_lazily(_fit, subsample(emb, most), ["rgb", "loading"], [3, 2 * d + 2])


def _fit(v: Array) -> Array:
    if len(v) < 3:
        raise ArgumentError(f"emb must have at least 3 valid vectors in the subsample, found {len(v)}")
    mean = v.mean(axis=0)
    _, vectors = np.linalg.eigh((v - mean).T @ (v - mean))
    components = vectors[:, ::-1][:, :3].T
    # The sign of an eigenvector is arbitrary. It is fixed here, so that fitting again does not invert the colours.
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(3), largest])[:, None]
    low, high = np.percentile((v - mean) @ components.T, [2, 98], axis=0)
    return PCA(mean, components, low, high).array


def _unpacked(array: Array, model: str) -> PCA:
    d = (array.shape[1] - 2) // 2
    return PCA(array[0, d : 2 * d], array[:, :d], array[:, -2], array[:, -1], model)


def _bundled(emb: xr.DataArray) -> PCA | None:
    """Return the basis in the package for the model that the embeddings name; None where there is none."""
    model = model_fingerprint(emb)
    if not model:
        return None
    file = resources.files("deo_cube.heads") / "bases" / f"{model}.json"
    if not file.is_file():
        return None
    basis = PCA(**json.loads(file.read_text(encoding="utf-8")))
    return basis if len(basis.mean) == emb.sizes["embedding"] else None
