"""`ds.deo.embed()`: a cube in, lazy georeferenced embeddings out.

Bands, units, grid, model and plan are decided at the call, from names and metadata, so that mistakes are raised there;
pixels are read and encoded when the result is computed, written or drawn.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from deo_cube.cube import grid
from deo_cube.cube.bands import BandMatch, match_bands
from deo_cube.cube.evidence import product_levels
from deo_cube.cube.radiometry import Radiometry, decide_radiometry
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import EncoderRef, resolve
from deo_cube.engine import graph, metadata, transfer
from deo_cube.engine.block import EmbedBlock, ValidBlock, check_mask
from deo_cube.engine.read import CACHE_BYTES
from deo_cube.engine.tiles import Edge, TilePlan, plan_tiles
from deo_cube.errors import MissingBandsError, TilePlanError, UnknownModelError
from deo_cube.options import Default, get_option
from deo_cube.options import resolve as option

__all__ = ["Prepared", "check_device", "check_dtype", "dtype_name", "embed", "prepare"]

Cube = xr.Dataset | xr.DataArray
Mask = xr.DataArray | str | bool | None


@dataclass(frozen=True)
class Prepared:
    """All that was decided at the call: what `embed` wraps and `plan` counts."""

    ref: EncoderRef
    match: BandMatch
    radiometry: Radiometry
    geobox: GeoBox
    dims: grid.Dims
    plan: TilePlan
    gather: graph.Gather
    sources: tuple[Any, ...]
    times: int
    scl: bool
    hide_scl: bool
    channels: tuple[int, ...]

    @property
    def out_geobox(self) -> GeoBox:
        """Grid of the embeddings."""
        p = self.plan
        return grid.embedding_geobox(
            self.geobox, patch=p.patch, top=-p.rows.out_offset, left=-p.columns.out_offset, shape=p.out_shape
        )


def prepare(
    cube: Cube,
    model: str | Path | ModelCard = Default("tiny"),
    *,
    weights: str | Path | None = None,
    bands: Sequence[str] | Mapping[str, str] | None = None,
    missing: Literal["raise", "nearest", "mean"] = "raise",
    units: str = "auto",
    offset: str | float = "auto",
    nodata: str | float | None = "auto",
    mask: Mask = None,
    normalize: str | Mapping[str, tuple[float, float]] | None = None,
    tile: int | None = None,
    halo: int | None = None,
    block: int | None = None,
    layer: str | None = None,
    anchor: Literal["grid", "array"] = "grid",
    edge: Edge = "pad",
    locate: bool = True,
) -> Prepared:
    """Decide everything that `embed` needs, or raise. Reads no pixel of a cube on Dask. See `embed`.

    With ``locate=False`` the weights are not looked for: enough to count and to describe.
    """
    if not isinstance(cube, (xr.Dataset, xr.DataArray)):
        raise TypeError(
            f"a cube is an xarray Dataset or DataArray, got {type(cube).__name__}"
            + (f": open it first, deo_cube.open_cube({str(cube)!r})" if isinstance(cube, (str, Path)) else "")
        )
    if isinstance(bands, str):
        raise MissingBandsError(f"bands is a list of bands, or a mapping of bands to variables; got {bands!r}")
    for name, size in (("tile", tile), ("halo", halo), ("block", block)):
        if size is not None and not isinstance(size, Integral):
            raise TilePlanError(f"{name} must be a whole number of pixels, got {size!r}")
    given = dict(bands) if isinstance(bands, Mapping) else None
    wanted = None if bands is None or given is not None else list(bands)
    named = option("model", model)
    ref = resolve(named, weights=weights, bands=wanted, layer=layer, normalize=normalize, locate=locate)
    card = ref.card
    cube = graph.with_loaded_coordinates(cube)
    dims = grid.dims(cube)
    _check_times(cube, dims.time)
    match = match_bands(cube, ref.stem.bands, model=card.alias, given=given, missing=missing)
    radiometry = decide_radiometry(cube, match, units=units, offset=offset, nodata=nodata)
    geobox = grid.geobox(cube)
    grid.check_resolution(geobox, card.gsd, model=card.alias)
    if anchor not in ("grid", "array"):
        raise TilePlanError(f"anchor must be 'grid' (the CRS origin) or 'array' (the cube's corner), got {anchor!r}")
    world = grid.anchor(geobox)
    stride = ref.layer.stride
    plan = plan_tiles(
        tuple(geobox.shape),
        origin=(world.row, world.col) if anchor == "grid" else (0, 0),
        tile=card.tile if tile is None else tile,
        halo=-(-card.halo // stride) * stride if halo is None else halo,
        patch=stride,
        block=block,
        edge=edge,
    )
    if isinstance(mask, str) and mask in ("scl", "SCL", match.scl):
        # The variable itself is no mask: its classes are numbers, of which all but one would count as True.
        mask = "scl"
        if match.scl is None:
            raise MissingBandsError(
                "mask='scl' hides clouds by the scene classification, and the cube has none: name it, "
                "bands={'SCL': ...}, or leave mask out"
            )
    if isinstance(mask, xr.DataArray) and mask.dtype != bool and match.scl is not None and mask.name == match.scl:
        raise ValueError(
            f"mask is the scene classification itself, whose classes are no truth values: pass mask='scl', or compare "
            f"it, mask=cube.{mask.name}.isin([8, 9])"
        )
    scl = match.scl is not None and mask is not False
    groups, sources = _fields(cube, dims, match, plan, scl, mask)
    return Prepared(
        ref=ref,
        match=match,
        radiometry=radiometry,
        geobox=geobox,
        dims=dims,
        plan=plan,
        gather=graph.Gather(plan, groups, south_up=world.south_up),
        sources=sources,
        times=cube.sizes[dims.time] if dims.time else 1,
        scl=scl,
        hide_scl=scl and isinstance(mask, str) and mask == "scl",
        channels=tuple(i for i, v in enumerate(match.variables) if v is not None),
    )


def embed(
    cube: Cube,
    model: str | Path | ModelCard = Default("tiny"),
    *,
    weights: str | Path | None = None,
    bands: Sequence[str] | Mapping[str, str] | None = None,
    missing: Literal["raise", "nearest", "mean"] = "raise",
    units: str = "auto",
    offset: str | float = "auto",
    nodata: str | float | None = "auto",
    mask: Mask = None,
    normalize: str | Mapping[str, tuple[float, float]] | None = None,
    tile: int | None = None,
    halo: int | None = None,
    block: int | None = None,
    layer: str | None = None,
    anchor: Literal["grid", "array"] = "grid",
    edge: Edge = "pad",
    dtype: str = Default("float16"),
    batch_size: int | None = None,
    device: str | None = None,
    precision: str = Default("float32"),
) -> xr.DataArray:
    """Embed a Sentinel-2 cube: one vector for each patch of pixels, lazy and on the map.

    Parameters
    ----------
    cube : Dataset or DataArray
        A variable a band (`B02`, `B8A`, `blue`, ... and optionally `SCL`), or a `band` dimension; with or without
        time; on Dask, in memory, or lazily opened. Its CRS must be known and its grid regular.
    model : str, path or ModelCard
        A model's name (`deo_cube.list_models()`), the folder of a training run, or a card.
    weights : path, optional
        Weights file; otherwise `DEO_CUBE_WEIGHTS`, the bundled file, or the hub.
    bands : list or mapping, optional
        A list chooses the model's stem by its bands (``["B04", "B03", "B02"]`` for the RGB stem). A mapping names the
        cube's variable for a model's band (``{"B08": "nir_10m"}``).
    missing : {"raise", "nearest", "mean"}
        For a band that the cube lacks: raise, take the spectrally nearest band (B8A for B08), or feed the training
        mean.
    units : {"auto", "dn", "reflectance", "uint8_rgb"}
        Of the stored values. "auto" decides from metadata and is refused where that does not decide.
    offset : "auto" or number
        DN to add: 0, or -1000 for raw products of processing baseline 04.00 and later.
    nodata : "auto", number or None
        Stored value that means no measurement. NaN and infinity always do.
    mask : DataArray, "scl", False or None
        A boolean array, or the name of such a variable, True where a pixel must not count: those pixels are hidden
        from the model and lower `valid`. Numbers other than 0, 1 and NaN (which excludes) are refused.
        None: clouds, shadows and gaps in `SCL` (where the cube has it) lower `valid` but are seen by the model;
        "scl": they are hidden from it too; False: SCL is ignored.
    normalize : str or mapping, optional
        A normalization of the card by name, or ``{band: (mean, std)}`` in DN. Default: the card's first.
    tile, halo, block : int, optional
        Pixels. Tile and halo decide the numbers and default to the card's; block (about 1024) is one task and one
        Zarr shard, and is rounded to whole tiles.
    layer : str, optional
        Layer of the model (`card.layer_names`). Default: the card's last.
    anchor : {"grid", "array"}
        Where the tile grid starts: the CRS origin, so that overlapping cubes agree, or the cube's corner.
    edge : {"pad", "drop"}
        Keep or drop patches that lie partly outside the cube.
    dtype : {"float16", "float32", "int8"}
        Of the result. int8 uses the card's global scale, written as CF ``scale_factor``.
    batch_size : int, optional
        Tiles at once; halved by itself where memory does not suffice. Changes no number.
    device : str, optional
        "cpu", "cuda", "cuda:1". Default: the best of the process that runs the task.
    precision : {"float32", "bfloat16"}
        Of the network's matrix products. bfloat16 gives other numbers (cosine distance below 0.01 is what to expect),
        is part of what a store is, and is refused on devices that are slow at it, the CPU first of all.

    Returns
    -------
    DataArray
        `embeddings` ``(time, embedding, y, x)``, without `time` where the cube has none; coordinates at patch
        centres, `spatial_ref`, and `valid` ``(time, y, x)``: the valid fraction of each patch, 0..1. Patches
        without one valid pixel are NaN (int8: -128).

    Raises
    ------
    MissingBandsError, AmbiguousUnitsError, MissingCRSError, ResolutionMismatchError, TilePlanError,
    UnknownModelError, WeightsNotFoundError, WeightsMismatchError, DeviceError
        At the call, each with the argument that mends it.

    Examples
    --------
    >>> import deo_cube
    >>> ds = deo_cube.synthetic_cube(size=256, times=1)
    >>> emb = ds.deo.embed()
    >>> emb.dims
    ('time', 'embedding', 'y', 'x')
    """
    dtype, precision = dtype_name(option("dtype", dtype)), str(option("precision", precision))
    if batch_size is not None and not (isinstance(batch_size, Integral) and batch_size >= 1):
        raise ValueError(f"batch_size must be a whole number, at least 1; got {batch_size!r}")
    p = prepare(
        cube,
        model,
        weights=weights,
        bands=bands,
        missing=missing,
        units=units,
        offset=offset,
        nodata=nodata,
        mask=mask,
        normalize=normalize,
        tile=tile,
        halo=halo,
        block=block,
        layer=layer,
        anchor=anchor,
        edge=edge,
    )
    check_dtype(p.ref, dtype)
    check_device(device, precision)
    cube = graph.with_loaded_coordinates(cube)
    _warn_of_level(cube, p.ref.card)
    _warn_of_chunks(p)
    how = (dtype, batch_size, device, precision, get_option("compile"))
    run = EmbedBlock(p.ref, p.plan, p.radiometry, p.channels, p.scl, p.hide_scl, *how)
    options: dict[str, Any] = {"times": p.times, "reverse_rows": p.gather.south_up}
    values = graph.map_blocks_with_halo(
        run, p.gather, p.sources, leading=(p.ref.layer.dim,), dtype=np.dtype(dtype), name="embed", **options
    )
    valid = graph.map_blocks_with_halo(
        ValidBlock(p.plan, p.radiometry, p.scl),
        p.gather,
        p.sources,
        leading=(),
        dtype=np.dtype("float32"),
        name="valid",
        **options,
    )
    said = {"precision": precision, "tolerance": transfer.TOLERANCE[precision]}
    return _wrap(cube, p, values, valid, dtype).assign_attrs({metadata.PREFIX + k: v for k, v in said.items()})


def _wrap(cube: Cube, p: Prepared, values: Any, valid: Any, dtype: str) -> xr.DataArray:
    y, x = p.dims.y, p.dims.x
    time = ("time",) if p.dims.time else ()
    if not time:
        values, valid = values[0], valid[0]
    attrs = {"long_name": f"{p.ref.card.alias} embeddings", "units": "1"} | metadata.provenance(p, dtype, cube)
    out = xr.DataArray(values, dims=(*time, "embedding", y, x), name="embeddings", attrs=attrs)
    if dtype == "int8":
        out.attrs["scale_factor"] = p.ref.layer.int8_scale
        out.attrs["_FillValue"] = np.int8(-128)
    valid_attrs = {"long_name": "valid fraction of the patch's pixels", "units": "1"}
    out = out.assign_coords(valid=xr.Variable((*time, y, x), valid, valid_attrs))
    if p.dims.time:
        taken = (y, x, "time", "embedding", "valid", "spatial_ref")
        along = {
            ("time" if n == p.dims.time else n): xr.Variable(("time",), c.variable.data, c.attrs)
            for n, c in cube.coords.items()
            if c.dims == (p.dims.time,) and (n == p.dims.time or n not in taken)
        }
        out = out.assign_coords(along)
    elif "time" in cube.coords and cube.coords["time"].ndim == 0:
        out = out.assign_coords(time=cube.coords["time"].variable)
    placed: xr.DataArray = grid.assign_grid(out, p.out_geobox, dims=(y, x))
    return placed


def _fields(
    cube: Cube, dims: grid.Dims, match: BandMatch, plan: TilePlan, scl: bool, mask: Mask
) -> tuple[tuple[tuple[graph.Field, ...], ...], tuple[Any, ...]]:
    """Where the pixels of bands, SCL and mask are: groups of fields for `Gather`, and their Dask arrays."""
    names = (dims.time, dims.band, dims.y, dims.x)
    like = min(plan.block, 256)  # of what is not on Dask: small, for a halo touches its neighbours' chunks whole
    arrays: list[Any] = []

    def one(variable: xr.Variable, positions: Sequence[int] = (0,)) -> tuple[graph.Field, ...]:
        fields, array = graph.as_fields(variable, names, positions, like)
        arrays.append(array)
        return fields

    if isinstance(cube, xr.Dataset):
        bands = tuple(f for v in match.variables if v is not None for f in one(cube[v].variable))
    else:
        bands = one(cube.variable, [i for i in match.indices if i is not None])
    if not bands:
        raise TilePlanError("the cube has none of the model's bands")
    groups = [bands]
    if scl and match.scl is not None:
        groups.append(one(cube[match.scl].variable) if isinstance(cube, xr.Dataset) else _scl_band(cube, match, bands))
    if isinstance(mask, xr.DataArray) or (isinstance(mask, str) and mask != "scl"):
        groups.append(one(_aligned_mask(cube, mask, dims)))
    elif mask is not None and mask is not False and not isinstance(mask, str):
        hint = ": xr.DataArray(mask, dims=('y', 'x'))" if isinstance(mask, np.ndarray) else ""
        raise ValueError(
            "mask must be a boolean DataArray, the name of a variable, 'scl' or False, got "
            f"{type(mask).__name__ if callable(mask) or hint else repr(mask)}{hint}"
        )
    return tuple(groups), tuple(arrays)


def _scl_band(cube: xr.DataArray, match: BandMatch, bands: tuple[graph.Field, ...]) -> tuple[graph.Field, ...]:
    labels = [str(v) for v in cube[match.band_dim].values]
    first = bands[0]
    return (graph.Field(first.name, first.chunks, first.axes, labels.index(str(match.scl)), first.dtype),)


def _aligned_mask(cube: Cube, mask: xr.DataArray | str, dims: grid.Dims) -> xr.Variable:
    if isinstance(mask, str):
        if not isinstance(cube, xr.Dataset) or mask not in cube:
            raise ValueError(f"mask={mask!r} is no variable of the cube: pass a boolean DataArray, or 'scl'")
        mask = cube[mask]
    if isinstance(mask.variable._data, np.ndarray):  # in memory; of others, tasks look
        check_mask(mask.values)
    allowed = {d for d in (dims.time, dims.y, dims.x) if d}
    if not {dims.y, dims.x} <= set(mask.dims) <= allowed:
        raise ValueError(f"mask must have the dimensions {sorted(allowed)} or ({dims.y}, {dims.x}), got {mask.dims}")
    for d in mask.dims:
        same = mask.sizes[d] == cube.sizes[d] and (
            d not in mask.coords or d not in cube.coords or bool((mask[d].values == cube[d].values).all())
        )
        if not same:
            raise ValueError(
                f"mask and cube differ along {d!r}: align it first, for example mask.odc.reproject(cube.odc.geobox) "
                "or mask.reindex_like(cube, fill_value=True)"
            )
    return mask.variable


def _check_times(cube: Cube, time: str | None) -> None:
    if time is None:
        return
    if cube.sizes[time] == 0:
        raise ValueError(f"the cube has no dates: dimension {time!r} has length 0. Widen the search that made it")
    if time in cube.indexes and not cube.indexes[time].is_unique:
        twice = cube.indexes[time][cube.indexes[time].duplicated()].unique()
        raise ValueError(
            f"{len(twice)} of the cube's times occur more than once (first: {twice[0]}), as where stackstac stacks the "
            "tiles of one pass: the embeddings of one time would lie in several rows. Merge them, cube = "
            "deo_cube.composite(cube, 'first', freq='D', mask=False), or load with groupby='solar_day'; to keep them "
            f"apart give each a time of its own, cube.assign_coords({time}=...)"
        )


def dtype_name(dtype: Any) -> str:
    """`float32` for ``"float32"``, ``np.float32`` and ``"f4"`` alike; what is no dtype as it is."""
    try:
        return str(np.dtype(dtype).name)
    except TypeError:
        return str(dtype)


def check_dtype(ref: EncoderRef, dtype: str) -> None:
    """Refuse a dtype that embeddings do not have, or the model has no scale for."""
    if dtype not in ("float32", "float16", "int8"):
        raise ValueError(f"dtype must be 'float32', 'float16' or 'int8', got {dtype!r}")
    if dtype == "int8" and ref.layer.int8_scale is None:
        raise UnknownModelError(
            f"{ref.card.alias} has no int8 scale for layer {ref.layer.name!r} (none was measured): pass dtype='float16'"
        )


def check_device(device: str | None, precision: str) -> None:
    """Refuse a device or precision that cannot be: at once here, unless a cluster's workers may have it."""
    from deo_cube.engine import runtime

    transfer.check_precision(precision)
    if runtime.distributed_client() is None and (device is not None or precision != "float32"):
        transfer.check_precision(precision, runtime.choose_device(device))


def _warn_of_level(cube: Cube, card: ModelCard) -> None:
    other = sorted(product_levels(cube) - {card.product_level})
    if other and card.product_level in ("L1C", "L2A"):
        warnings.warn(
            f"the cube holds {' and '.join(other)} products, {card.alias} was trained on {card.product_level}: L1C is "
            "reflectance at the top of the atmosphere, L2A at the surface, and their embeddings are not to be compared",
            UserWarning,
            stacklevel=3,
        )


def _warn_of_chunks(p: Prepared) -> None:
    if p.plan.blocks[0] * p.plan.blocks[1] * p.times < 2:
        return
    largest = sum(f.dtype.itemsize * math.prod(max(c) for c in f.chunks) for f in p.gather.groups[0])
    if largest > 4 * CACHE_BYTES:
        good = max(256, p.plan.block // 2)
        warnings.warn(
            f"the cube's chunks are large: one of each band is {largest / 1e9:.1f} GB, and a block of "
            f"{p.plan.block} px must read them whole. "
            f"Load it with chunks={{'time': 1, {p.dims.y!r}: {good}, {p.dims.x!r}: {good}}}",
            stacklevel=4,
        )
