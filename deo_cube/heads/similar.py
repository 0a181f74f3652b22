"""Read examples, and compare every patch with one or several of them (`similar`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
import xarray as xr
from numpy.typing import NDArray
from pyproj import Transformer

from deo_cube.arguments import embeddings_of
from deo_cube.constants import Attribute
from deo_cube.errors import ArgumentError, ArgumentTypeError, StorageError
from deo_cube.extras import require
from deo_cube.heads.geometries import cells_of, clean, into_grid, north_up
from deo_cube.heads.places import read_places
from deo_cube.heads.tables import geojson_crs, located, parsed_crs
from deo_cube.heads.vectors import (
    as_embeddings,
    crs_or_none,
    geobox,
    map_vectors,
    select_time,
    spatial_dims,
    subsample,
    unit,
)

__all__ = [
    "BACKGROUND",
    "cells_of_examples",
    "direction",
    "has_geometries",
    "patch_at",
    "of_texts",
    "read_examples",
    "similar",
    "vectors_of",
    "write_results",
]


Array = NDArray[Any]

# --- Examples of a search: points, geometries, tables, vectors; and a direction between positives and negatives ---
#
# With negatives the query is the direction of a logistic regression that separates positives from negatives and, with
# a fifth of the weight, from a sample of all patches, so that it stays defined with a single negative. On labelled
# chips it ranks better than the mean of the positives less that of the negatives (Rocchio), or than the nearest
# positive less the nearest negative (`python -m benchmarks.index`, docs/data/index.json).

RESULT_SUFFIXES = (".parquet", ".geojson", ".gpkg", ".fgb")

BACKGROUND = 200
"""Vectors of the sample of all patches that negatives are completed with."""
NEGATIVES_WEIGHT = 0.8
"""Weight of the negatives; the sample has the rest."""


def direction(positives: Array, negatives: Array, background: Array) -> Array:
    """Return the direction (1, D) that separates positives from negatives.

    Parameters
    ----------
    positives, negatives : (n, D)
        Rows with a NaN are left out.
    background : (n, D)
        Sample of all patches.

    Raises
    ------
    ArgumentError
        Where no positive or no negative is finite.
    """
    require("sklearn", extra="heads", purpose="a search with negatives")
    from sklearn.linear_model import LogisticRegression

    p, n, b = (unit(v[np.isfinite(v).all(axis=1)].astype("float64")) for v in (positives, negatives, background))
    for vectors, name in ((p, "the positive examples"), (n, "negatives")):
        if not len(vectors):
            raise ArgumentError(f"{name} must have a valid embedding, but have none: choose other points or times")
    b = b[:BACKGROUND]
    of_negatives = NEGATIVES_WEIGHT if len(b) else 1.0
    weights = [(p, 1.0), (n, of_negatives), (b, 1 - of_negatives)]
    fitted = LogisticRegression(max_iter=200).fit(
        np.concatenate([p, n, b]),
        np.repeat([1, 0, 0], [len(p), len(n), len(b)]),
        # 100 for each side: what the strength of the regularization is relative to.
        sample_weight=np.concatenate([np.full(len(v), 100 * w / max(len(v), 1)) for v, w in weights]),
    )
    return unit(fitted.coef_)


def read_examples(
    emb: xr.DataArray, examples: Any, *, time: Any = None, crs: Any = None, argument: str = "to"
) -> tuple[xr.DataArray, str]:
    """Return vectors (case, embedding) or (time, case, embedding), and a description of them.

    Parameters
    ----------
    emb : DataArray
        Embeddings, as `as_embeddings` returns them.
    examples, time, crs
        As `similar` takes them.
    argument : str
        Name of the argument that holds the examples, for messages.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        For places outside the embeddings, vectors of another length or model, and anything else.
    """
    vectors = vectors_of(examples, emb.sizes["embedding"], emb.attrs, argument)
    if vectors is not None:
        return vectors, "the examples" if isinstance(examples, xr.DataArray | xr.Dataset) else "the vectors"
    rows, cols, described = cells_of_examples(emb, examples, crs, argument)
    return _at_cells(emb, rows, cols, time, described)


def vectors_of(examples: Any, dim: int, attrs: Mapping[str, Any], argument: str) -> xr.DataArray | None:
    """Return examples that are vectors of length `dim` as (case, embedding); None for places.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        For vectors of another length, or of another model than that in `attrs`.
    """
    if isinstance(examples, xr.Dataset):
        examples = embeddings_of(examples, argument=argument)
    if isinstance(examples, xr.DataArray):
        if examples.sizes.get("embedding") != dim or examples.ndim > 2:
            raise ArgumentError(
                f"{argument} must have dimensions (embedding: {dim}) and at most one more, got "
                f"{dict(examples.sizes)}: select from it"
            )
        model, other = (str(a.get(Attribute.MODEL_FINGERPRINT, "")) for a in (attrs, examples.attrs))
        if model and other and model != other:
            raise ArgumentError(
                f"{argument} must be of the model of the embeddings, {model}, got vectors of model {other}: embed both "
                "with one"
            )
        return _cases(examples)
    if has_geometries(examples):
        return None
    values = _numbers(examples, dim, argument)
    if values.shape == (2,) or (values.ndim == 2 and values.shape[1] == 2 and dim != 2):
        return None
    if values.ndim in (1, 2) and values.shape[-1] == dim:
        return xr.DataArray(values.reshape(-1, dim), dims=("case", "embedding"))
    raise ArgumentError(
        f"{argument} must be a point (x, y), a list of points, or vectors of length {dim}; got shape {values.shape}"
    )


def _numbers(examples: Any, dim: int, argument: str) -> Array:
    try:
        return np.asarray(examples, dtype="float64")
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(
            f"{argument} must be a point (x, y), a list of points, geometries, or vectors of length {dim}; got "
            f"{examples!r:.80}"
        ) from error


def cells_of_examples(emb: xr.DataArray, places: Any, crs: Any, argument: str) -> tuple[Array, Array, str]:
    """Return rows and columns of the patches of points or geometries, and a description of the places.

    Raises
    ------
    ArgumentError
        For a point outside the embeddings, or where no geometry is within them.
    """
    if has_geometries(places):
        return *_cells(emb, places, crs, argument), "the geometries"
    points = _numbers(places, emb.sizes["embedding"], argument).reshape(-1, 2)
    if crs is not None:
        points = _projected(emb, points, crs)
    cells = np.array([patch_at(emb, px, py, argument) for px, py in points.tolist()], dtype=int).reshape(-1, 2)
    described = f"({points[0, 0]:.8g}, {points[0, 1]:.8g})" if len(points) == 1 else f"{len(points)} points"
    return cells[:, 0], cells[:, 1], described


def _cases(vectors: xr.DataArray) -> xr.DataArray:
    others = [k for k in vectors.dims if k != "embedding"]
    plain = xr.DataArray(vectors.variable).transpose(..., "embedding")
    return plain.rename({others[0]: "case"}) if others else plain.expand_dims("case")


def has_geometries(to: Any) -> bool:
    """Return whether examples are geometries, tables or GeoJSON, not numbers."""
    if isinstance(to, str | os.PathLike):
        return True  # a file
    several = isinstance(to, Sequence) and len(to) > 0 and isinstance(to[0], shapely.Geometry)
    return several or isinstance(to, Mapping) or hasattr(to, "__geo_interface__")


def _cells(emb: xr.DataArray, to: Any, crs: Any, argument: str) -> tuple[Array, Array]:
    """Return rows and columns of the patches that geometries label."""
    own: Any
    if isinstance(to, str | os.PathLike):
        places = read_places(located(to, argument), crs=crs)
        shapes, own = list(places.shapes), places.crs
    elif isinstance(to, shapely.Geometry) or isinstance(to, Sequence):
        shapes, own = [to] if isinstance(to, shapely.Geometry) else list(to), None
    elif hasattr(to, "geometry") and hasattr(to, "crs"):
        shapes, own = list(to.geometry), to.crs
    else:
        geojson = to if isinstance(to, Mapping) else to.__geo_interface__
        shapes, own = _of_geojson(geojson, argument), geojson_crs(geojson) or 4326
    array = np.empty(len(shapes), dtype=object)
    array[:] = shapes
    cleaned = clean(array)
    cleaned.warn(len(shapes), f"geometries of `{argument}`")
    box = geobox(emb)
    placed = into_grid(cleaned.shapes, parsed_crs(own if crs is None else crs), box)
    _, rows, cols = cells_of(placed, north_up(box), "majority")
    if not len(rows):
        raise ArgumentError(f"{argument} must be within the embeddings, but no geometry is: pass their CRS, crs=")
    return (box.shape[0] - 1 - rows if box.transform.e > 0 else rows), cols


def _of_geojson(geojson: Mapping[str, Any], argument: str) -> list[Any]:
    features = geojson.get("features") if geojson.get("type") == "FeatureCollection" else [geojson]
    try:
        return [shapely.geometry.shape(f["geometry"] if f.get("type") == "Feature" else f) for f in features or []]
    except Exception as error:
        raise ArgumentError(f"{argument} cannot be read as GeoJSON ({error})") from error


def _projected(emb: xr.DataArray, points: Array, crs: Any) -> Array:
    """Return points in the CRS of the embeddings."""
    t = Transformer.from_crs(parsed_crs(crs), geobox(emb).crs.proj, always_xy=True)
    return np.stack(t.transform(points[:, 0], points[:, 1]), axis=1)


def _at_cells(emb: xr.DataArray, rows: Array, cols: Array, time: Any, described: str) -> tuple[xr.DataArray, str]:
    y, x = spatial_dims(emb)
    cells = {y: xr.DataArray(rows, dims="case"), x: xr.DataArray(cols, dims="case")}
    vectors = (emb if time is None else select_time(emb, time)).isel(cells)
    plain = xr.DataArray(vectors.variable).transpose(..., "case", "embedding")
    return plain, described + ("" if time is None else f" at {time}")


def patch_at(emb: xr.DataArray, px: float, py: float, argument: str = "to") -> tuple[int, int]:
    """Return row and column of the patch that contains a point in the CRS of the embeddings.

    A patch includes its west and north edges, not its east and south ones: a point on a shared edge belongs to the
    patch east or south of it, whether the array is north-up or south-up.

    Raises
    ------
    ArgumentError
        For a point outside the embeddings.
    """
    y, x = spatial_dims(emb)
    if not np.isfinite([px, py]).all():
        raise ArgumentError(f"{argument} must be points of two finite numbers (x, y), got ({px}, {py})")
    for dim in (y, x):
        if (steps := _irregular(emb, dim)) is not None:
            row, col = (int(np.abs(np.asarray(emb[d].values, "float64") - v).argmin()) for d, v in ((y, py), (x, px)))
            raise ArgumentError(
                f"{argument} is a point, and emb has steps from {steps[0]:g} to {steps[1]:g} along {dim}, as where "
                "windows were joined across a gap, so that the patch of a point is unknown. Join windows with "
                "deo_cube.mosaic, which leaves the gap missing; or pass the vector of the nearest patch, "
                f"{argument}=emb.isel({y}={row}, {x}={col})"
            )
    (north, rows, southward), (west, columns, westward) = _edges(emb, y, rising=False), _edges(emb, x, rising=True)
    row, col = _cell((north - py) / rows), _cell((px - west) / columns)
    if not (0 <= row < emb.sizes[y] and 0 <= col < emb.sizes[x]):
        raise ArgumentError(
            f"{argument} must be within the embeddings, {x} from {west:.8g} to {west + columns * emb.sizes[x]:.8g} and "
            f"{y} from {north - rows * emb.sizes[y]:.8g} to {north:.8g} (CRS {crs_or_none(emb) or 'unknown'}), got the "
            f"point ({px:.8g}, {py:.8g}). Points are (x, y) in the CRS of the embeddings{_hint(emb, px, py)}"
        )
    return (row if southward else emb.sizes[y] - 1 - row), (emb.sizes[x] - 1 - col if westward else col)


def _irregular(emb: xr.DataArray, dim: str) -> tuple[float, float] | None:
    """Return the smallest and the largest step of coordinates that are not regular, to a tenth of a cell; else None."""
    c = np.asarray(emb[dim].values, dtype="float64")
    even = np.linspace(c[0], c[-1], len(c))
    cell = abs(c[-1] - c[0]) / max(len(c) - 1, 1)
    if np.abs(c - even).max() <= 0.1 * cell:  # coordinates in float32 are rounded by less
        return None
    steps = np.diff(c)
    return float(steps.min()), float(steps.max())


def _hint(emb: xr.DataArray, px: float, py: float) -> str:
    """Return how a point outside could be meant: with x and y exchanged, or in degrees."""
    crs = crs_or_none(emb)
    y, x = spatial_dims(emb)
    (north, rows, _), (west, columns, _) = _edges(emb, y, rising=False), _edges(emb, x, rising=True)

    def inside(a: float, b: float) -> bool:
        return 0 <= (a - west) / columns < emb.sizes[x] and 0 <= (north - b) / rows < emb.sizes[y]

    if inside(py, px):
        return f". x and y are swapped: pass ({py:.8g}, {px:.8g})"
    if crs is None or crs.geographic or abs(px) > 180 or abs(py) > 180:
        return ""
    for a, b in ((px, py), (py, px)):
        if abs(b) <= 90 and inside(*_projected(emb, np.array([[a, b]]), 4326)[0]):
            return f'. In degrees it is inside: pass ({a:.8g}, {b:.8g}) with crs="EPSG:4326"'
    return ""


def _cell(place: float) -> int:
    """Return the cell of a place counted in cells; float noise of a millionth of a cell moves nothing over an edge."""
    nearest = round(place)
    return int(nearest if abs(place - nearest) < 1e-6 else np.floor(place))


def _edges(emb: xr.DataArray, dim: str, *, rising: bool) -> tuple[float, float, bool]:
    """Return the lowest outer edge (the highest if not `rising`), the cell size, and whether coordinates decrease."""
    c = np.asarray(emb[dim].values, dtype="float64")
    if len(c) > 1:
        size, falling = abs(c[-1] - c[0]) / (len(c) - 1), bool(c[-1] < c[0])
    else:
        # The size of a single cell is known from the transform only.
        box = geobox(emb) if crs_or_none(emb) is not None else None
        t = 1.0 if box is None else (box.transform.a if rising else box.transform.e)
        size, falling = abs(t), not rising and (box is None or t < 0)
    return (float(c.min() - size / 2) if rising else float(c.max() + size / 2)), float(size), falling


def of_texts(texts: Sequence[str], argument: str) -> Any:
    """Return examples that a command line names: points ``x,y``, or one file; None for none.

    Raises
    ------
    ArgumentError
        For anything else, or both.
    """
    if not texts:
        return None
    if len(texts) == 1 and _point(texts[0]) is None:
        return texts[0]
    points = [_point(text) for text in texts]
    wrong = [text for text, point in zip(texts, points, strict=True) if point is None]
    if wrong:
        raise ArgumentError(f"{argument} must be points x,y, or one file, got {wrong[0]!r} among {len(texts)}")
    return points


def _point(text: str) -> tuple[float, float] | None:
    parts = text.split(",")
    try:
        x, y = (float(part) for part in parts)
    except ValueError:
        return None
    return x, y


def write_results(found: Any, path: Path) -> None:
    """Write a table of results in the format of the path's suffix.

    Raises
    ------
    ArgumentError
        For a suffix that is not in `RESULT_SUFFIXES`.
    StorageError
        If the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in RESULT_SUFFIXES:
        raise ArgumentError(f"out must be one of {', '.join(RESULT_SUFFIXES)}, got {path.name}")
    try:
        if suffix == ".parquet":
            found.to_parquet(path)
        else:
            # As text: GDAL writes dates of GeoJSON as text anyway, and warns of it.
            found.assign(**{k: found[k].astype(str) for k in found.columns if k == "time"}).to_file(path)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


# --- similarity ---


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
