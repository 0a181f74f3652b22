"""Draw maps with a head: one class per patch (`classify`), or one per pixel of the cube (`segment`)."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube import arguments
from deo_cube.arguments import embeddings_of
from deo_cube.constants import Attribute
from deo_cube.cube import georeference
from deo_cube.cube.esa import opened_cube
from deo_cube.cube.open import open_cube
from deo_cube.embedding.embed import embed
from deo_cube.embedding.options import split_options
from deo_cube.embedding.prepare import prepare
from deo_cube.embedding.tiles import TilePlan
from deo_cube.errors import ArgumentError, ArgumentTypeError, remedy
from deo_cube.heads.base import Head, category_attrs, check_model
from deo_cube.heads.classes import NO_CLASS
from deo_cube.heads.conv import multiscale
from deo_cube.heads.head import BUNDLED, bundled_head, load_head
from deo_cube.heads.regression import RegressionHead
from deo_cube.heads.vectors import geobox, spatial_dims
from deo_cube.heads.windows import map_windows
from deo_cube.store.open import is_embeddings, open_embeddings

__all__ = ["classify", "segment"]

Array = NDArray[Any]

DEFAULT_MODEL = "tiny"
"""Model whose own head is taken where neither a head nor a model is given."""


def classify(
    cube: xr.Dataset | xr.DataArray | str | Path,
    head: Head | str | Path | None = None,
    *,
    probabilities: bool = False,
    **embed_options: Any,
) -> xr.DataArray:
    """Return one class per patch, from embeddings or from a cube.

    Parameters
    ----------
    cube : Dataset, DataArray or path
        Embeddings; or a Sentinel-2 cube, which is embedded with the model of the head first; or the path of either.
    head : Head, path or name, optional
        Of `fit_head` or `load_head`; or the name of a model that comes with one, "tiny" (land cover) or "dynamicworld".
        Default: the head that comes with `model` (default "tiny"), or with the model of the embeddings.
    probabilities : bool
        Return probabilities (time, class, y, x) float32 instead of classes.
    **embed_options
        Of `embed`, for a cube: units, offset, mask, ...

    Returns
    -------
    DataArray
        `class` (time, y, x) uint8 with CF flags, 255 where there is none; on the grid of the embeddings. Of a
        regression head `value` (time, y, x) float32 with units, NaN where there is none.

    Raises
    ------
    ArgumentError
        If the embeddings are of another model than the head.
    """
    probabilities = arguments.boolean("probabilities", probabilities)
    source = _opened(cube)
    head, embed_options = _head(head, source, embed_options)
    return head.predict(_embedded(source, head, embed_options), probabilities=probabilities)


def segment(
    cube: xr.Dataset | xr.DataArray | str | Path,
    head: Head | str | Path | None = None,
    *,
    probabilities: bool = False,
    blend: bool = False,
    **embed_options: Any,
) -> xr.DataArray:
    """Return one class per pixel: probabilities, interpolated between the centres of patches, decide.

    A head that predicts on a finer grid itself (conv with `upsample`) is interpolated from there. Given a cube, the
    result is on the grid of the cube; given embeddings, on theirs made finer by the patch size in their attributes.
    Interpolation weighs valid patches only; pixels in patches without a valid pixel get no class. The coordinate
    `valid` is the share of valid pixels in the patch of each pixel. Of a regression head the result is `value`, float32
    with units, interpolated alike. A bundled head writes its accuracy, and what the
    map is not for, into the attribute `comment`.

    Parameters
    ----------
    cube, head, probabilities, **embed_options
        As in `classify`.
    blend : bool
        Embed the cube on four tile grids half a core apart and average the scores, for models that show seams between
        tiles with any halo. It takes four times as long.

    Examples
    --------
    Land cover of nine classes without labels, with the head of the bundled model:

    >>> land_cover = ds.deo.segment()  # doctest: +SKIP

    Dynamic World's land cover, from its published weights:

    >>> land_cover = ds.deo.segment(model="dynamicworld", weights="weights")  # doctest: +SKIP
    """
    probabilities, blend = arguments.boolean("probabilities", probabilities), arguments.boolean("blend", blend)
    source = _opened(cube)
    head, embed_options = _head(head, source, embed_options)
    is_cube = not _is_embeddings(source)
    if is_cube:
        source = opened_cube(source)
    if blend and not is_cube:
        raise ArgumentTypeError("cube must be a cube with blend=True, which embeds on four tile grids; got embeddings")
    emb = _embedded(source, head, dict(embed_options))
    patch = json.loads(emb.attrs.get(Attribute.PLAN, "{}")).get("patch")
    if patch is None:
        raise ArgumentError(
            "cube must be a cube, or embeddings that state the pixels per patch: pass the cube"
            + remedy(", or use classify(emb, head)", "")
        )
    upsample = int(getattr(head, "upsample", 1))
    factor, rest = divmod(int(patch), upsample)
    if rest or factor < 1:
        raise ArgumentError(
            f"upsample of the head must divide the patch of {patch} pixels, got upsample={upsample}: use classify"
        )
    if isinstance(head, RegressionHead):
        pixels = _quantity(head, emb, factor, blend=blend, probabilities=probabilities)
        pixels = _with_valid(pixels, emb, int(patch))
        return _cropped(pixels, georeference.geobox(source)) if is_cube else pixels
    if blend:
        p = _blended(source, head, _with_model(head, embed_options))
    else:
        p = head.predict(check_model(head, emb), probabilities=True)
    pixels = map_windows(
        _DrawPixels(factor, None if probabilities else head.classes.codes),
        p,
        along="class",
        halo=1,
        factor=factor,
        channels={"class": head.classes.names} if probabilities else None,
        dtype="float32" if probabilities else "uint8",
        name="probability" if probabilities else "class",
        attrs=category_attrs(head, probabilities=probabilities),
    )
    pixels = _with_valid(pixels, emb, int(patch))
    return _cropped(pixels, georeference.geobox(source)) if is_cube else pixels


def _quantity(
    head: RegressionHead, emb: xr.DataArray, factor: int, *, blend: bool, probabilities: bool
) -> xr.DataArray:
    """Return the quantity of a regression per pixel, interpolated between the centres of patches."""
    if blend:
        raise ArgumentError("blend must be False for a regression")
    values = head.predict(check_model(head, emb), probabilities=probabilities)
    y, x = spatial_dims(values)
    pixels = map_windows(
        _DrawPixels(factor, None),
        values.expand_dims({"class": ["value"]}).transpose(..., "class", y, x),
        along="class",
        halo=1,
        factor=factor,
        channels={"class": ["value"]},
        dtype="float32",
        name="value",
        attrs=head.attrs(),
    )
    return pixels.isel({"class": 0}, drop=True)


def _with_valid(pixels: xr.DataArray, emb: xr.DataArray, patch: int) -> xr.DataArray:
    """Return a map of pixels with the coordinate `valid` of their patches: the share of valid pixels, 0..1."""
    y, x = spatial_dims(emb)
    if "valid" not in emb.coords or emb.coords["valid"].dims[-2:] != (y, x):
        return pixels
    valid = emb.coords["valid"].variable
    fine = valid.data.repeat(patch, axis=-2).repeat(patch, axis=-1)
    if pixels.chunks is not None and hasattr(fine, "rechunk"):
        # Chunks of the map: xarray writes both to one Zarr group.
        sizes = dict(zip(pixels.dims, pixels.chunks, strict=True))
        fine = fine.rechunk(tuple(sizes[d] for d in valid.dims))
    return pixels.assign_coords(valid=xr.Variable(valid.dims, fine, valid.attrs))


@dataclass(frozen=True)
class _DrawPixels:
    """Probabilities of pixels (K, h f, w f), or their most probable class, of those of patches (K, h + 2, w + 2)."""

    factor: int
    codes: tuple[int, ...] | None

    def __call__(self, tile: Array) -> Array:
        fine = _bilinear(tile, self.factor)
        if self.codes is None:
            return fine
        best = np.array(self.codes, "uint8")[np.nan_to_num(fine, nan=-1).argmax(axis=0)]
        return np.asarray(np.where(np.isfinite(fine).all(axis=0), best, np.uint8(NO_CLASS)))


def _opened(cube: Any) -> Any:
    """Return the embeddings or the cube at a path; anything else as it is."""
    if not isinstance(cube, str | os.PathLike):
        return cube
    return open_embeddings(cube) if is_embeddings(cube) else open_cube(cube)


def _is_embeddings(cube: Any) -> bool:
    """Return whether `cube` is embeddings, or a Dataset that holds them."""
    if isinstance(cube, xr.Dataset):
        return any("embedding" in v.dims for v in cube.data_vars.values())
    return isinstance(cube, xr.DataArray) and "embedding" in cube.dims


def _head(head: Any, cube: Any, options: dict[str, Any]) -> tuple[Head, dict[str, Any]]:
    """Return the head, by default the model's own, and the options of `embed` that are left."""
    if head is None:
        model = options.get("model", getattr(cube, "attrs", {}).get(Attribute.MODEL_ALIAS) or DEFAULT_MODEL)
        if not isinstance(model, str):
            raise ArgumentError(
                "head: expected a head of fit_head, the path of a saved one, or a model that comes with one, "
                f"model='{DEFAULT_MODEL}'; got model={model!r}"
            )
        # The head names model and layer; the user's other options stay.
        return bundled_head(model), {k: v for k, v in options.items() if k != "model"}
    if isinstance(head, str | os.PathLike):
        path = Path(head)
        return (bundled_head(str(head)) if str(head) in BUNDLED and not path.exists() else load_head(path)), options
    if not isinstance(head, Head):
        raise ArgumentTypeError(
            f"head must be a head of fit_head, or the path of one that was saved; got {type(head).__name__}"
        )
    return head, options


def _embedded(cube: xr.Dataset | xr.DataArray, head: Head, options: dict[str, Any]) -> xr.DataArray:
    if _is_embeddings(cube):
        if options:
            raise ArgumentTypeError(f"{sorted(options)} are options of `embed`, but cube holds embeddings already")
        return embeddings_of(cube)
    options = _with_model(head, options)
    if "+" in str(options.get("layer")):
        layers = str(options.pop("layer")).split("+")
        return multiscale(cube, options.pop("model"), layers=layers, **options)
    emb: xr.DataArray = embed(cube, **options)
    return emb


def _with_model(head: Head, options: dict[str, Any]) -> dict[str, Any]:
    """Return options of `embed` with the model of the head, where they have none."""
    if "model" in options:
        return options
    if not head.model.alias:
        raise ArgumentError("model= must be passed, because the head does not state its model; or embed first")
    return {"model": head.model.alias, "layer": head.model.layer or None} | options


def _bilinear(block: Array, factor: int) -> Array:
    """Interpolate (K, h + 2, w + 2) to (K, h f, w f); weights of invalid cells go to their valid neighbours."""
    valid: Array = np.asarray(np.isfinite(block).all(axis=0))
    filled = np.where(valid, block, 0).astype("float32")
    weighted = _along(_along(filled, factor, 1), factor, 2)
    weight = _along(_along(valid[None].astype("float32"), factor, 1), factor, 2)
    own = valid[1:-1, 1:-1].repeat(factor, axis=0).repeat(factor, axis=1)
    return np.where(own, weighted / np.maximum(weight, 1e-6), np.float32(np.nan)).astype("float32")


def _along(a: Array, factor: int, axis: int) -> Array:
    """Interpolate linearly along an axis whose first and last cells are context."""
    n = a.shape[axis] - 2
    position = 1 + (np.arange(n * factor) + 0.5) / factor - 0.5
    low = np.floor(position).astype(int)
    share = (position - low).astype("float32")
    shape = [1] * a.ndim
    shape[axis] = -1
    share = share.reshape(shape)
    return np.asarray(a.take(low, axis) * (1 - share) + a.take(np.minimum(low + 1, n + 1), axis) * share)


def _cropped(pixels: xr.DataArray, box: GeoBox) -> xr.DataArray:
    """Return the part of `pixels` on the grid of the cube; patches may extend beyond its edge."""
    y, x = spatial_dims(pixels)
    t, p = box.transform, geobox(pixels).transform
    row, col = round((t.f - p.f) / p.e), round((t.c - p.c) / p.a)
    rows, cols = box.shape
    inside = pixels.isel({y: slice(max(row, 0), row + rows), x: slice(max(col, 0), col + cols)})
    if (inside.sizes[y], inside.sizes[x]) == (rows, cols):
        return georeference.assign_grid(inside, box, dims=(y, x))
    return inside


# ---- blending of tile grids -----------------------------------------------------------------------------------------
#
# A head of bounded reach has no seams of its own. What may be left are seams of the encoder: a patch at the border of a
# tile saw context on one side only. A halo makes them small (`deo_cube.evaluate.seam`). Where it cannot, as with
# attention over the whole tile, the tile grid is shifted by half a core along y, along x and along both, and the scores
# are averaged with the squared sine of the position within a core, which sums to one over the shifts.

MIN_WEIGHT = 1e-3
"""Weight at the border of a core: it decides where no other grid covers a patch."""


def _blended(cube: xr.Dataset | xr.DataArray, head: Head, options: dict[str, Any]) -> xr.DataArray:
    """Return probabilities (time, class, y, x) on the patches of the cube, blended over four tile grids. Lazy.

    Grids are counted from the origin of the CRS: away from the edges of the cube the result does not depend on the
    window. Within a core of its north and west edge fewer grids contribute.
    """
    if "+" in str(options.get("layer")):
        raise ArgumentError("blend=True needs a head on one layer; this head reads several")
    if options.get("anchor", "grid") != "grid":
        raise ArgumentError("anchor must be left out with blend=True, which shifts the tile grid itself")
    prepared = prepare(cube, split_options(options)[0])
    plan, world = prepared.plan, georeference.anchor(prepared.geobox)
    first = head.predict(embed(cube, **options), probabilities=True)
    y, x = spatial_dims(first)
    half = plan.core // 2 // plan.patch * plan.patch
    south_up = world.south_up
    north_up_cube = cube.isel({prepared.dims.y: slice(None, None, -1)}) if south_up else cube
    total: Any = 0.0
    weights: Any = 0.0
    for down, right in product((0, half), (0, half)):
        p = first
        if down or right:
            # A grid counted from the array begins at the first border of the shifted grid within the array.
            top, left = (down - world.row) % plan.core, (right - world.col) % plan.core
            part = north_up_cube.isel({prepared.dims.y: slice(top, None), prepared.dims.x: slice(left, None)})
            if min(part.sizes[prepared.dims.y], part.sizes[prepared.dims.x]) < plan.patch:
                continue
            p = head.predict(embed(part, **{**options, "anchor": "array"}), probabilities=True)
            tolerance = abs(float(first[x][1] - first[x][0])) / 4 if first.sizes[x] > 1 else None
            p = p.reindex({y: first[y], x: first[x]}, method="nearest", tolerance=tolerance)
        w = _weight(first, y, plan, world.row, down, south_up) * _weight(first, x, plan, world.col, right, False)
        valid = p.notnull()
        total = total + xr.where(valid, np.log(p.clip(1e-9, 1.0)) * w, 0.0)
        weights = weights + xr.where(valid, w, 0.0)
    scores = total / weights.where(weights > 0)
    e = np.exp(scores - scores.max("class"))
    blended = (e / e.sum("class")).where(first.notnull()).astype("float32").transpose(*first.dims)
    # Copied, because arithmetic drops coordinates that only some of the operands have.
    result: xr.DataArray = first.copy(data=blended.data)
    return result


def _weight(p: xr.DataArray, dim: str, plan: TilePlan, start: int, shift: int, reverse: bool) -> xr.DataArray:
    """Return the squared sine over a core for each patch along `dim`: 0 at the borders of the core, 1 in its middle."""
    index = np.arange(p.sizes[dim]) + start // plan.patch
    centre = (index + 0.5) * plan.patch - shift
    share = np.maximum(np.sin(math.pi * (centre % plan.core) / plan.core) ** 2, MIN_WEIGHT)
    return xr.DataArray((share[::-1] if reverse else share).astype("float32"), dims=dim, coords={dim: p[dim]})
