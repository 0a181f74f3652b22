"""Maps from a head: one class a patch (`classify`), or one a pixel of the cube (`segment`)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube import arguments
from deo_cube.arguments import cube_of, embeddings_of
from deo_cube.cube import georeference
from deo_cube.embedding.embed import embed
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.heads.blend import blended
from deo_cube.heads.bundled import bundled_head
from deo_cube.heads.classes import NO_CLASS
from deo_cube.heads.head import Head, category_attrs, check_model, load_head
from deo_cube.heads.upernet import multiscale
from deo_cube.heads.vectors import geobox, spatial_dims
from deo_cube.heads.windows import map_windows

__all__ = ["classify", "segment"]

Array = NDArray[Any]


def classify(
    cube: xr.Dataset | xr.DataArray,
    head: Head | str | Path | None = None,
    *,
    probabilities: bool = False,
    **embed_options: Any,
) -> xr.DataArray:
    """One class a patch, from embeddings or straight from a cube.

    Parameters
    ----------
    cube : Dataset or DataArray
        A Sentinel-2 cube, which is embedded with the head's model first; or embeddings.
    head : Head or path, optional
        Of `fit_head` or `load_head`. Default: the head that comes with `model` (``model="dynamicworld"``).
    probabilities : bool
        Probabilities (time, class, y, x) float32 in place of classes.
    **embed_options
        Of `embed`, for a cube: units, offset, mask, ...

    Returns
    -------
    DataArray
        `class` (time, y, x) uint8 with CF flags, 255 where there is none; on the grid of the embeddings.

    Raises
    ------
    ValueError
        If the embeddings are of another model than the head's.
    """
    probabilities = arguments.boolean("probabilities", probabilities)
    head, embed_options = _head(head, embed_options)
    return head.predict(_embedded(cube, head, embed_options), probabilities=probabilities)


def segment(
    cube: xr.Dataset | xr.DataArray,
    head: Head | str | Path | None = None,
    *,
    probabilities: bool = False,
    blend: bool = False,
    **embed_options: Any,
) -> xr.DataArray:
    """One class a pixel: the head's probabilities, bilinear between the centres of patches, the most probable drawn.

    A head that decodes finer than patches itself (conv with `upsample`) is interpolated from there. Arguments as of
    `classify`. Given a cube, the result lies on the cube's own grid; given embeddings, on theirs made finer by the
    patch size their attributes state.

    `blend`, of a cube, embeds on four tile grids half a core apart and mixes the scores (`deo_cube.heads.blend`): for
    models whose seams no halo makes small. It takes four times as long.

    Interpolation weighs valid patches only; pixels in patches without a valid pixel get no class.

    Examples
    --------
    Dynamic World's land cover, from its published weights:

    >>> land_cover = ds.deo.segment(model="dynamicworld", weights="weights")  # doctest: +SKIP
    """
    probabilities, blend = arguments.boolean("probabilities", probabilities), arguments.boolean("blend", blend)
    head, embed_options = _head(head, embed_options)
    is_cube = not _is_embeddings(cube)
    if is_cube:
        cube = cube_of(cube)
    if blend and not is_cube:
        raise ArgumentTypeError("blend=True embeds on four tile grids: pass the cube in place of its embeddings")
    emb = _embedded(cube, head, dict(embed_options))
    patch = json.loads(emb.attrs.get("deo_cube:plan", "{}")).get("patch")
    if patch is None:
        raise ArgumentError(
            "the embeddings do not say how many pixels a patch is wide: use classify(emb, head), or give the cube"
        )
    drawn = int(getattr(head, "upsample", 1))
    factor, rest = divmod(int(patch), drawn)
    if rest or factor < 1:
        raise ArgumentError(f"the head draws {drawn} cells a patch, which does not divide the patch of {patch} pixels")
    if blend:
        p = blended(cube, head, _options(head, embed_options))
    else:
        p = head.predict(check_model(head, emb), probabilities=True)
    out = map_windows(
        Draw(factor, None if probabilities else head.classes.codes),
        p,
        along="class",
        halo=1,
        factor=factor,
        channels={"class": head.classes.names} if probabilities else None,
        dtype="float32" if probabilities else "uint8",
        name="probability" if probabilities else "class",
        attrs=category_attrs(head, probabilities=probabilities),
    )
    return _cropped(out, georeference.geobox(cube)) if is_cube else out


@dataclass(frozen=True)
class Draw:
    """From probabilities of patches (K, h + 2, w + 2) to those of pixels, or to the most probable class."""

    factor: int
    codes: tuple[int, ...] | None

    def __call__(self, tile: Array) -> Array:
        """Probabilities (K, h f, w f), or codes (h f, w f)."""
        fine = _bilinear(tile, self.factor)
        if self.codes is None:
            return fine
        best = np.array(self.codes, "uint8")[np.nan_to_num(fine, nan=-1).argmax(axis=0)]
        return np.asarray(np.where(np.isfinite(fine).all(axis=0), best, np.uint8(NO_CLASS)))


def _is_embeddings(cube: Any) -> bool:
    """Whether it is embeddings, or a Dataset that holds them."""
    if isinstance(cube, xr.Dataset):
        return any("embedding" in v.dims for v in cube.data_vars.values())
    return isinstance(cube, xr.DataArray) and "embedding" in cube.dims


def _head(head: Any, options: dict[str, Any]) -> tuple[Head, dict[str, Any]]:
    """Return the head, by default the model's own, and the options of `embed` that are left."""
    if head is None:
        model = options.get("model")
        if not isinstance(model, str):
            raise ArgumentError(
                "head: expected a head of fit_head, the path of a saved one, or a model that comes with one, "
                f"model='dynamicworld'; got model={model!r}"
            )
        # The head names model and layer; the user's other options stay.
        return bundled_head(model), {k: v for k, v in options.items() if k != "model"}
    if isinstance(head, str | os.PathLike):
        return load_head(Path(head)), options
    if not isinstance(head, Head):
        raise ArgumentTypeError(
            f"head must be a head of fit_head, or the path of one that was saved; got {type(head).__name__}"
        )
    return head, options


def _embedded(cube: xr.Dataset | xr.DataArray, head: Head, options: dict[str, Any]) -> xr.DataArray:
    if _is_embeddings(cube):
        if options:
            raise ArgumentTypeError(f"{sorted(options)} are options of embedding a cube, but embeddings were given")
        return embeddings_of(cube)
    options = _options(head, options)
    if "+" in str(options.get("layer")):
        layers = str(options.pop("layer")).split("+")
        return multiscale(cube, options.pop("model"), layers=layers, **options)
    emb: xr.DataArray = embed(cube, **options)
    return emb


def _options(head: Head, options: dict[str, Any]) -> dict[str, Any]:
    """Options of `embed` with the head's model, where none is given."""
    if "model" in options:
        return options
    if not head.model.alias:
        raise ArgumentError("the head does not say which model it is for: pass model=..., or embed first")
    return {"model": head.model.alias, "layer": head.model.layer or None} | options


def _bilinear(block: Array, factor: int) -> Array:
    """(K, h + 2, w + 2) to (K, h f, w f); weights of invalid cells go to their valid neighbours."""
    valid: Array = np.asarray(np.isfinite(block).all(axis=0))
    filled = np.where(valid, block, 0).astype("float32")
    weighted = _along(_along(filled, factor, 1), factor, 2)
    weight = _along(_along(valid[None].astype("float32"), factor, 1), factor, 2)
    own = valid[1:-1, 1:-1].repeat(factor, axis=0).repeat(factor, axis=1)
    return np.where(own, weighted / np.maximum(weight, 1e-6), np.float32(np.nan)).astype("float32")


def _along(a: Array, factor: int, axis: int) -> Array:
    """Linear interpolation along an axis from cells with one of context at each end."""
    n = a.shape[axis] - 2
    place = 1 + (np.arange(n * factor) + 0.5) / factor - 0.5
    low = np.floor(place).astype(int)
    share = (place - low).astype("float32")
    shape = [1] * a.ndim
    shape[axis] = -1
    share = share.reshape(shape)
    return np.asarray(a.take(low, axis) * (1 - share) + a.take(np.minimum(low + 1, n + 1), axis) * share)


def _cropped(out: xr.DataArray, box: GeoBox) -> xr.DataArray:
    """The part of `out` on the cube's own pixels: patches may reach over its edge."""
    y, x = spatial_dims(out)
    mine = geobox(out)
    t, m = box.transform, mine.transform
    row, col = round((t.f - m.f) / m.e), round((t.c - m.c) / m.a)
    rows, cols = box.shape
    inside = out.isel({y: slice(max(row, 0), row + rows), x: slice(max(col, 0), col + cols)})
    if (inside.sizes[y], inside.sizes[x]) == (rows, cols):
        return georeference.assign_grid(inside, box, dims=(y, x))
    return inside
