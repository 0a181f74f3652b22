"""Write a web page of embeddings that needs no server (`page`): colours, similarity to any place, search by label.

The folder holds ``index.html``, its script and style, one picture of `pca_rgb` per date, and the vectors as scripts,
which browsers load from any static host, from ``python -m http.server`` and from a file opened by a double-click alike.

Vectors are prepared for cosine similarity: each is divided by its length, projected on the first `dims` directions of
the store (without subtracting a mean, so that angles are kept), and stored as int8. The error of the cosine is
measured on pairs of patches and shown on the page.
"""

from __future__ import annotations

import base64
import json
import math
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from deo_cube import arguments
from deo_cube.constants import Attribute
from deo_cube.cube.categories import own_classes, read_categories
from deo_cube.cube.georeference import ground_resolution
from deo_cube.cube.times import read_times
from deo_cube.errors import ArgumentError, ArgumentTypeError, StorageError
from deo_cube.extras import require
from deo_cube.heads.classes import NO_CLASS, Classes
from deo_cube.heads.labels import rasterize_labels
from deo_cube.heads.pca import basis_of
from deo_cube.heads.vectors import as_embeddings, geobox, select_time, spatial_dims, subsample
from deo_cube.notebook import facts_html
from deo_cube.paths import local_path
from deo_cube.progress import Progress, size
from deo_cube.store.open import opened

__all__ = ["Page", "page"]

Array = NDArray[Any]

MAX_BYTES = 96 * 2**20
"""Default of the largest size of all vectors of a page."""
MAX_PATCHES = 4_000_000
"""Largest number of patches of a date, which a browser still compares in some seconds."""
PART = 3 * 2**20
"""Bytes of vectors in one script."""
MESH = 17
"""Places along a side of the table from which the page interpolates longitude and latitude."""
MAIN = "index.html"


@dataclass(frozen=True)
class Page:
    """A page that was written."""

    path: Path
    """Of its ``index.html``."""
    dates: int
    shape: tuple[int, int]
    """Rows and columns of patches, after coarsening."""
    dims: int
    bytes: int
    """Of all files."""
    cosine_error: float
    """95th percentile of the absolute error of the cosine of pairs of patches."""
    labels: tuple[str, ...] = ()

    def __repr__(self) -> str:
        dates = "1 date" if self.dates == 1 else f"{self.dates} dates"
        named = f", {len(self.labels)} labels" if self.labels else ""
        return (
            f"<Page {self.path}: {dates} of {self.shape[0]} x {self.shape[1]} patches, {self.dims} numbers per patch, "
            f"cosine within {self.cosine_error:.3f}, {size(self.bytes)}{named}>"
        )

    def _repr_html_(self) -> str:
        facts = [
            ("open", str(self.path)),
            ("size", f"{self.dates} x {self.shape[0]} x {self.shape[1]} patches; {size(self.bytes)}"),
            ("vectors", f"{self.dims} numbers of 8 bits; 95 % of cosines within {self.cosine_error:.3f}"),
            ("labels", ", ".join(self.labels) or "none"),
        ]
        return facts_html("deo_cube page", facts)


def page(
    emb: xr.DataArray | str | Path,
    out: str | Path,
    *,
    time: Any = None,
    labels: Any = None,
    coarsen: int = 1,
    dims: int = 64,
    title: str | None = None,
    max_bytes: int = MAX_BYTES,
    overwrite: bool = False,
    progress: bool = True,
) -> Page:
    """Write a static web page: colours of the embeddings, similarity to any place, and search by label.

    Parameters
    ----------
    emb : DataArray or path
        Embeddings with a CRS, or their store.
    out : path
        Folder of the page: new, empty, or a page that is replaced with `overwrite`.
    time : label, optional
        Date to show, as in `select_time`. Default: all.
    labels : optional
        Labelled places for the search by label: anything that `fit_head` takes (points, polygons, rasters), or a map of
        classes on the grid of `emb`. Of each label the mean direction of its patches is what is searched for.
    coarsen : int
        Patches along a side that are averaged to one, weighted by `valid`.
    dims : int
        Numbers per patch; fewer are smaller and less exact.
    title : str, optional
        Heading. Default: the model.
    max_bytes : int
        Largest size of the vectors of all dates.
    overwrite : bool
        Replace a page that is there.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Page
        With the path of ``index.html`` and the error of the cosine.

    Raises
    ------
    ArgumentError
        If the page would be too large: the message names the `coarsen` and `dims` that fit. If something else is in
        `out`.
    MissingExtraError
        Without pillow.
    MissingCRSError
        For an array that is not on the map.
    StorageError
        If the folder cannot be written.
    """
    require("PIL.Image", extra="view", purpose="page")
    coarsen, dims = arguments.integer("coarsen", coarsen), arguments.integer("dims", dims, minimum=2)
    max_bytes = arguments.integer("max_bytes", max_bytes)
    overwrite, progress = arguments.boolean("overwrite", overwrite), arguments.boolean("progress", progress)
    if title is not None and not isinstance(title, str):
        raise ArgumentTypeError(f"title must be text, got {title!r:.60}")
    given = opened(emb)
    array = as_embeddings(given if time is None else select_time(given, time))
    y, x = spatial_dims(array)
    if geobox(array).transform.e > 0:
        array = array.isel({y: slice(None, None, -1)})  # the picture is north-up
    box = geobox(array)
    if "time" not in array.dims:
        array = array.expand_dims("time")
    array = array.transpose("time", "embedding", y, x)
    dims = min(dims, array.sizes["embedding"])
    times, _, rows, columns = array.shape
    shape = (-(-rows // coarsen), -(-columns // coarsen))
    _check_size(times, (rows, columns), coarsen, dims, max_bytes)
    folder = _folder(out, overwrite)
    legend, codes = _labelled(labels, box)
    vectors = np.asarray(subsample(array, 16384).values, dtype="float64")
    vectors = vectors[np.isfinite(vectors).all(axis=1)]
    vectors = vectors[np.linalg.norm(vectors, axis=1) > 0]
    if len(vectors) < 2:
        raise ArgumentError("emb must have at least two valid vectors in its sample, found fewer: choose another date")
    projection, scale, error = _projection(vectors, dims)
    basis = basis_of(array)
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        (draft / "data").mkdir(parents=True)
        sums = np.zeros((0 if legend is None else len(legend), array.shape[1]))
        counts = np.zeros(len(sums), int)
        dates = []
        with Progress(times, title="page", unit="date", shown=progress) as bar:
            for t in range(times):
                parts, rgb = _date(array.isel(time=t), (y, x), coarsen, projection, scale, basis, codes, sums, counts)
                files = _write_vectors(draft, t, parts)
                (draft / "data" / f"colours_{t}.png").write_bytes(_png(rgb))
                dates.append({"label": _label(array, t), "parts": files, "picture": f"data/colours_{t}.png"})
                bar.advance()
        prototypes = _prototypes(legend, sums, counts, projection)
        meta = {
            "title": title or str(array.attrs.get(Attribute.MODEL_ALIAS, "embeddings")),
            "model": str(array.attrs.get(Attribute.MODEL, "")),
            "rows": shape[0],
            "columns": shape[1],
            "dims": dims,
            "metres": [m * coarsen for m in ground_resolution(box)],
            "mesh": _mesh(box, coarsen, shape),
            "error": error,
            "dates": dates,
            "labels": prototypes,
        }
        _write_page(draft, meta)
        written = sum(f.stat().st_size for f in draft.rglob("*") if f.is_file())
        if folder.exists():
            shutil.rmtree(folder)
        draft.replace(folder)
    except OSError as failure:
        raise StorageError(f"the page cannot be written to {folder}: {failure}") from failure
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Page(folder / MAIN, times, shape, dims, written, error, tuple(p["name"] for p in prototypes))


def _check_size(times: int, shape: tuple[int, int], coarsen: int, dims: int, max_bytes: int) -> None:
    """Refuse a page that is too large, and name what fits."""

    def patches(c: int) -> int:
        return -(-shape[0] // c) * -(-shape[1] // c)

    def fits(c: int, d: int, t: int) -> bool:
        return t * patches(c) * d <= max_bytes and patches(c) <= MAX_PATCHES

    if fits(coarsen, dims, times):
        return
    advice = []
    larger = next((c for c in range(coarsen + 1, max(shape) + 1) if fits(c, dims, times)), None)
    if larger is not None:
        advice.append(f"coarsen={larger}")
    if times > 1 and fits(coarsen, dims, 1):
        advice.append("one date, time=...")
    fewer = next((d for d in (32, 16, 8) if d < dims and fits(coarsen, d, times)), None)
    if fewer is not None:
        advice.append(f"dims={fewer}")
    if patches(coarsen) <= MAX_PATCHES:
        advice.append(f"max_bytes={times * patches(coarsen) * dims}")
    raise ArgumentError(
        f"the page would hold {size(times * patches(coarsen) * dims)} of vectors ({times} x {patches(coarsen):,} "
        f"patches), a page holds at most {size(max_bytes)} and {MAX_PATCHES:,} patches per date: pass "
        f"{', or '.join(advice)}"
    )


def _folder(out: str | Path, overwrite: bool) -> Path:
    """Return the folder of the page, if nothing but a page is replaced."""
    folder = local_path(arguments.path("out", out))
    if folder.is_file():
        raise ArgumentError(f"out must be a folder, got the file {folder}")
    if folder.is_dir() and any(folder.iterdir()):
        ours = (folder / "data" / "meta.js").is_file()
        if not ours:
            raise ArgumentError(f"out must be a new folder: {folder} holds something other than a page")
        if not overwrite:
            raise ArgumentError(f"{folder} holds a page: pass overwrite=True to replace it, or choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _labelled(labels: Any, box: GeoBox) -> tuple[Classes | None, Array | None]:
    """Return the classes of labels, and the position of each patch's label, -1 for none."""
    if labels is None:
        return None, None
    labels = own_classes(labels) if isinstance(labels, xr.DataArray) else labels
    if isinstance(labels, xr.DataArray) and read_categories(labels) is not None and "time" in labels.dims:
        labels = labels.isel(time=0)
    raster = rasterize_labels(labels, box)
    found = read_categories(raster)
    assert found is not None
    codes = np.asarray(raster.values)
    positions = np.full(codes.shape, -1)
    for i, code in enumerate(found.codes):
        positions[codes == code] = i
    positions[codes == NO_CLASS] = -1
    return Classes(found.codes, found.names, found.colors), positions


def _projection(vectors: Array, dims: int) -> tuple[Array, float, float]:
    """Return directions (dims, D), the scale of int8, and the error of the cosine of random pairs."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    _, directions = np.linalg.eigh(unit.T @ unit)
    projection = np.ascontiguousarray(directions[:, ::-1][:, :dims].T)
    projected = unit @ projection.T
    scale = 127 / float(np.abs(projected).max())
    stored = np.rint(projected * scale).clip(-127, 127)
    stored /= np.maximum(np.linalg.norm(stored, axis=1, keepdims=True), 1e-9)
    order = np.random.default_rng(0).permutation(len(unit))
    exact, approximate = ((a * a[order]).sum(axis=1) for a in (unit, stored))
    return projection, scale, float(np.percentile(np.abs(exact - approximate), 95))


def _date(
    emb: xr.DataArray,
    dims: tuple[str, str],
    coarsen: int,
    projection: Array,
    scale: float,
    basis: Any,
    codes: Array | None,
    sums: Array,
    counts: Array,
) -> tuple[Array, Array]:
    """Return vectors (patches, dims) int8 and colours (rows, columns, 3) of a date; add labelled vectors to `sums`."""
    y, x = dims
    rows, columns = emb.sizes[y], emb.sizes[x]
    shape = (-(-rows // coarsen), -(-columns // coarsen))
    stored = np.zeros((*shape, len(projection)), "int8")
    rgb = np.full((*shape, 3), np.nan, "float32")
    for top, bottom in _bands(rows, emb, y, coarsen):
        part = emb.isel({y: slice(top, bottom)})
        values = np.asarray(part.values, dtype="float32")
        there = np.isfinite(values).all(axis=0)
        weights = there.astype("float32")
        if "valid" in part.coords:
            weights = np.where(there, np.asarray(part["valid"].values, dtype="float32"), 0)
        values = np.where(weights > 0, values, 0)
        if codes is not None:
            _add(sums, counts, values, weights, codes[top:bottom])
        if coarsen > 1:
            values, weights = _averaged(values, weights, coarsen)
        flat = values.reshape(len(values), -1).T.astype("float64")
        valid = (weights > 0).ravel() & (np.linalg.norm(flat, axis=1) > 0)
        unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
        block = np.where(valid[:, None], np.rint(unit @ projection.T * scale).clip(-127, 127), 0).astype("int8")
        colours = (flat - basis.mean) @ basis.components.T
        colours = ((colours - basis.low) / np.maximum(basis.high - basis.low, 1e-12)).clip(0, 1)
        rows_here = slice(top // coarsen, top // coarsen + weights.shape[0])
        stored[rows_here] = block.reshape(*weights.shape, -1)
        rgb[rows_here] = np.where(valid[:, None], colours, np.nan).reshape(*weights.shape, 3)
    return stored.reshape(-1, len(projection)), rgb


def _bands(rows: int, emb: xr.DataArray, y: str, coarsen: int) -> Iterator[tuple[int, int]]:
    """Yield the rows that are read at a time: whole chunks, cut where averaging allows it."""
    chunk = max(emb.variable.chunksizes.get(y, (256,)))
    step = max(coarsen, -(-chunk // coarsen) * coarsen)
    for top in range(0, rows, step):
        yield top, min(top + step, rows)


def _averaged(values: Array, weights: Array, n: int) -> tuple[Array, Array]:
    """Return means (D, h, w) of windows of n x n weighted by (h, w), and sums of the weights."""
    h, w = weights.shape
    up = ((0, -h % n), (0, -w % n))
    weights = np.pad(weights, up)
    values = np.pad(values, ((0, 0), *up)) * weights
    hh, ww = weights.shape[0] // n, weights.shape[1] // n
    total = weights.reshape(hh, n, ww, n).sum((1, 3))
    mean = values.reshape(len(values), hh, n, ww, n).sum((2, 4)) / np.maximum(total, 1e-9)
    return mean, total


def _add(sums: Array, counts: Array, values: Array, weights: Array, codes: Array) -> None:
    """Add the directions of labelled patches to the sums of their labels."""
    for i in range(len(sums)):
        chosen = (codes == i) & (weights > 0)
        if chosen.any():
            v = values[:, chosen].astype("float64")
            sums[i] += (v / np.maximum(np.linalg.norm(v, axis=0), 1e-12)).sum(axis=1)
            counts[i] += int(chosen.sum())


def _prototypes(legend: Classes | None, sums: Array, counts: Array, projection: Array) -> list[dict[str, Any]]:
    if legend is None:
        return []
    found = []
    for name, color, total, count in zip(legend.names, legend.colors, sums, counts, strict=True):
        length = float(np.linalg.norm(total))
        if count and length > 0:
            vector = [round(float(v), 5) for v in projection @ (total / length)]
            found.append({"name": name.replace("_", " "), "color": color, "count": int(count), "vector": vector})
    return found


def _write_vectors(folder: Path, t: int, vectors: Array) -> list[str]:
    """Write the vectors of a date as scripts of at most `PART` bytes each; return their names."""
    names = []
    per_part = max(PART // vectors.shape[1], 1)
    for k, start in enumerate(range(0, len(vectors), per_part)):
        name = f"data/vectors_{t}_{k}.js"
        text = base64.b64encode(vectors[start : start + per_part].tobytes()).decode()
        (folder / name).write_text(f'deoVectors({t},{k},"{text}")\n', encoding="ascii")
        names.append(name)
    return names


def _png(rgb: Array) -> bytes:
    from deo_cube.viewer.layers import colour_png

    return colour_png(rgb)


def _label(array: xr.DataArray, t: int) -> str:
    if "time" not in array.coords:
        return ""
    labels = read_times(array["time"].variable)
    value = labels.values[t] if labels.values is not None and labels.dated else array["time"].values[t]
    return str(value)[:10]


def _mesh(box: GeoBox, coarsen: int, shape: tuple[int, int]) -> list[list[list[float]]]:
    """Return longitude and latitude at MESH x MESH places of the picture, corner to corner."""
    transform = box.transform * Affine.scale(coarsen)
    columns, rows = np.meshgrid(np.linspace(0, shape[1], MESH), np.linspace(0, shape[0], MESH))
    px, py = transform * (columns, rows)
    lon, lat = Transformer.from_crs(box.crs.proj, 4326, always_xy=True).transform(px, py)
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        raise ArgumentError(f"the corners of emb have no place on the globe in {box.crs}: select a part of it")
    middle = float(lon.mean())
    lon = lon + 360 * np.round((middle - lon) / 360)
    return [np.round(a, 7).tolist() for a in (lon, lat)]


def _write_page(folder: Path, meta: dict[str, Any]) -> None:
    files = resources.files("deo_cube.viewer") / "static_page"
    for name in (MAIN, "page.css", "page.js"):
        (folder / name).write_text((files / name).read_text(encoding="utf-8"), encoding="utf-8")
    text = json.dumps(meta, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    (folder / "data" / "meta.js").write_text(f"const deoMeta = {text};\n", encoding="ascii")
    assert math.isfinite(meta["error"])
