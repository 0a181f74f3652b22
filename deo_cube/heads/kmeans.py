"""Group similar patches without labels (`cluster`), by mini-batch k-means."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import integer
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.extras import require
from deo_cube.heads.base import read_json, write_json
from deo_cube.heads.classes import NO_CLASS, Classes
from deo_cube.heads.vectors import as_embeddings, fit_lazily, map_vectors, model_fingerprint, subsample

__all__ = ["Clusters", "cluster", "fit_clusters"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Clusters:
    """Centres of clusters, fitted once and used for any window.

    Parameters
    ----------
    centres : (k, D) float
        In the space of the embeddings; the most frequent cluster comes first.
    model : str
        Fingerprint of the model whose embeddings they are; empty where unknown.
    """

    centres: Array = field(repr=False)
    model: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "centres", np.asarray(self.centres, dtype="float64"))
        if np.ndim(self.centres) != 2 or not 2 <= len(self.centres) < NO_CLASS:
            raise ArgumentError(
                f"centres of clusters must be (k, D) with k from 2 to {NO_CLASS - 1}, got {np.shape(self.centres)}"
            )

    def save(self, path: str | Path) -> None:
        """Write the centres to a JSON file."""
        write_json(path, {"centres": self.centres.tolist(), "model": self.model})

    @classmethod
    def load(cls, path: str | Path) -> Clusters:
        """Read a file that `save` wrote."""
        return cls(**read_json(path, ("centres", "model"), "clusters"))


def fit_clusters(emb: xr.DataArray, k: int = 8, *, seed: int = 0, most: int = 32768) -> Clusters:
    """Fit clusters now, on a fixed subsample of at most about `most` vectors."""
    emb = as_embeddings(emb)
    model = model_fingerprint(emb)
    seed, most = integer("seed", seed, minimum=0), integer("most", most)
    return Clusters(np.asarray(_fit(emb, _checked(k), seed, most).values), model)


def cluster(
    emb: xr.DataArray, k: int = 8, *, clusters: Clusters | str | Path | None = None, seed: int = 0
) -> xr.DataArray:
    """Assign every patch to one of `k` clusters.

    Parameters
    ----------
    emb : DataArray, or path of a store
        Embeddings (time, embedding, y, x) or (embedding, y, x).
    k : int
        Number of clusters, 2 to 254.
    clusters : Clusters or path, optional
        Result of `fit_clusters`, so that several windows share it. Default: clusters are fitted on a fixed subsample of
        this array, lazily.
    seed : int
        Of the random mini-batches.

    Returns
    -------
    DataArray
        `cluster` (time, y, x) uint8 with CF flags; 0 is the most frequent in the subsample, 255 (`_FillValue`) invalid.
    """
    emb = as_embeddings(emb)
    if isinstance(clusters, str | os.PathLike):
        clusters = Clusters.load(Path(clusters))
    if not (clusters is None or isinstance(clusters, Clusters)):
        raise ArgumentTypeError(
            f"clusters must be those of fit_clusters, or the path of saved ones; got {type(clusters).__name__}"
        )
    seed = integer("seed", seed, minimum=0)
    if clusters is None:
        require("sklearn", extra="heads", purpose="cluster")
        parameters: Any = _fit(emb, _checked(k), seed, 32768)
    else:
        parameters, k = clusters.centres, len(clusters.centres)
        if parameters.shape[1] != emb.sizes["embedding"]:
            raise ArgumentError(
                f"clusters must be of vectors of length {emb.sizes['embedding']}, got length {parameters.shape[1]}"
            )
        model = model_fingerprint(emb)
        if model and clusters.model and model != clusters.model:
            raise ArgumentError(f"clusters must be of the model of the embeddings, {model}, got {clusters.model}")
    classes = Classes(tuple(range(k)), tuple(f"cluster {i}" for i in range(k)))

    def nearest(v: Array, centres: Array) -> Array:
        return np.asarray(((centres**2).sum(axis=1) - 2 * v @ centres.T).argmin(axis=1))

    attrs = {"long_name": f"cluster of {k} by k-means"} | classes.attrs()
    return map_vectors(nearest, [emb], parameters=parameters, dtype="uint8", fill=NO_CLASS, name="cluster", attrs=attrs)


def _checked(k: int) -> int:
    return integer("k", k, minimum=2, maximum=NO_CLASS - 1)


def _fit(emb: xr.DataArray, k: int, seed: int, most: int) -> xr.DataArray:
    def fit(v: Array) -> Array:
        from sklearn.cluster import MiniBatchKMeans

        if len(v) < k:
            raise ArgumentError(f"k must be at most the number of valid vectors in the subsample, {len(v)}, got {k}")
        fitted = MiniBatchKMeans(k, random_state=seed, batch_size=2048, n_init=3).fit(v)
        frequency = np.bincount(fitted.labels_, minlength=k)
        return np.asarray(fitted.cluster_centers_[np.argsort(-frequency, kind="stable")])

    return fit_lazily(fit, subsample(emb, most), ["cluster", "loading"], [k, emb.sizes["embedding"]])
