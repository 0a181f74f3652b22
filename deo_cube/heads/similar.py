"""Compare every patch with one or several examples (`similar`)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.errors import ArgumentError
from deo_cube.heads.examples import direction, locate, read_examples
from deo_cube.heads.vectors import as_embeddings, map_vectors, subsample

__all__ = ["locate", "similar"]

Array = NDArray[Any]


def similar(
    emb: xr.DataArray,
    to: Any,
    *,
    negatives: Any = None,
    metric: Literal["cosine", "euclidean"] = "cosine",
    time: Any = None,
    crs: Any = None,
) -> xr.DataArray:
    """Return the similarity of every patch to an example, or to the nearest of several.

    Parameters
    ----------
    emb : DataArray, or path of a store
        Embeddings (time, embedding, y, x) or (embedding, y, x).
    to : (x, y), list of (x, y), geometry, table, file, vector, or DataArray
        Points in the CRS of the embeddings; a point selects the patch that contains it, a polygon those of which
        it covers at least half. Shapely geometries are in the CRS of the embeddings, GeoSeries and GeoDataFrames in
        their own, GeoJSON in degrees. Or a vector (D,), vectors (n, D), or a DataArray with a dimension `embedding` of
        that length (and at most one more).
    negatives : as `to`, optional
        Counter-examples. A linear direction then separates `to` from them and from a fixed subsample of `emb`, and the
        similarity is the cosine between a patch and that direction.
    metric : {"cosine", "euclidean"}
        "cosine": cosine similarity, -1 to 1, 1 for the same direction. "euclidean": distance, 0 for the same vector.
    time : label, optional
        Time at which the points are read ("2024-06": the mean of that month's valid vectors). Default: each time is
        compared with the points at that same time.
    crs : CRS, optional
        CRS of the points or geometries, where it is not that of the embeddings:
        ``similar(emb, (lon, lat), crs="EPSG:4326")``.

    Returns
    -------
    DataArray
        `similarity` or `distance` (time, y, x) float32; NaN where a patch is invalid. Of several examples the most
        similar counts.

    Raises
    ------
    ArgumentError, LabelsError
        For a point outside the embeddings or a vector of the wrong length; when computed, for points without a valid
        embedding.
    MissingCRSError
        For geometries in another CRS, where the embeddings have none.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> places = {"y": [2.5, 1.5, 0.5], "x": [0.5]}
    >>> emb = xr.DataArray(np.eye(3)[:, :, None], dims=("embedding", "y", "x"), coords=places)
    >>> similar(emb, (0.5, 1.5)).values.ravel()
    array([0., 1., 0.], dtype=float32)
    """
    emb = as_embeddings(emb)
    if metric not in ("cosine", "euclidean"):
        raise ArgumentError(f"metric must be 'cosine' or 'euclidean', got {metric!r}")
    examples, described = read_examples(emb, to, time=time, crs=crs)
    if negatives is not None:
        if metric != "cosine":
            raise ArgumentError(f"metric must be 'cosine' where negatives are passed, got {metric!r}")
        counter, other = read_examples(emb, negatives, time=time, crs=crs, argument="negatives")
        examples, described = _separated(emb, examples, counter), f"{described}, unlike {other}"

    def compare(v: Array, q: Array) -> Array:
        q = np.asarray(q, dtype="float64").reshape(-1, q.shape[-1])
        q = q[np.isfinite(q).all(axis=1)]
        if not len(q):
            raise ArgumentError(
                f"to must have a valid embedding, but {described} has none: choose other points or times"
            )
        if metric == "cosine":
            norms = np.linalg.norm(v, axis=1)[:, None] * np.linalg.norm(q, axis=1)
            return np.asarray((v @ q.T / np.maximum(norms, 1e-12)).max(axis=1).clip(-1, 1))
        squares = (v**2).sum(axis=1)[:, None] - 2 * v @ q.T + (q**2).sum(axis=1)
        return np.asarray(np.sqrt(np.maximum(squares, 0)).min(axis=1))

    name = "similarity" if metric == "cosine" else "distance"
    attrs = {"long_name": f"{metric} {name} to {described}", "units": "1"}
    if "time" not in examples.dims:
        return map_vectors(compare, [emb], parameters=examples, name=name, attrs=attrs)
    per_time = [
        map_vectors(compare, [emb.isel(time=i)], parameters=examples.isel(time=i, drop=True), name=name, attrs=attrs)
        for i in range(emb.sizes["time"])
    ]
    joined = xr.concat(per_time, dim="time", coords="minimal", compat="override", join="override")
    return joined.assign_coords({k: c for k, c in emb.coords.items() if "embedding" not in c.dims})


def _separated(emb: xr.DataArray, positives: xr.DataArray, negatives: xr.DataArray) -> xr.DataArray:
    """Return the direction (case, embedding) or (time, case, embedding) between examples. Lazy."""
    vectors = [positives, negatives.rename(case="negative"), subsample(emb).rename(case="sample")]
    cases = ("case", "negative", "sample")
    # One chunk along all but time: the direction is fitted on all examples.
    whole = [v if v.chunks is None else v.chunk({k: -1, "embedding": -1}) for v, k in zip(vectors, cases, strict=True)]
    fitted: xr.DataArray = xr.apply_ufunc(
        direction,
        *whole,
        input_core_dims=[[k, "embedding"] for k in cases],
        output_core_dims=[["direction", "embedding"]],
        exclude_dims={"embedding"},
        vectorize=True,
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"direction": 1, "embedding": emb.sizes["embedding"]}},
    )
    return fitted.rename(direction="case")
