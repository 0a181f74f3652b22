"""`ds.deo.embed()`: a cube in, lazy georeferenced embeddings out.

Bands, units, grid, model and plan are decided at the call, from names and metadata, so that mistakes are raised there;
pixels are read and encoded when the result is computed, written or drawn.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from deo_cube import arguments
from deo_cube.cube import coordinates, georeference
from deo_cube.cube.bands import BandMatch, match_bands
from deo_cube.cube.times import check_times
from deo_cube.cube.units import Radiometry, decide_radiometry, product_levels
from deo_cube.embedding import graph, metadata, transfer
from deo_cube.embedding.block import EmbedBlock, ValidBlock
from deo_cube.embedding.chunks import CACHE_BYTES
from deo_cube.embedding.masks import Mask, check_scl, mask_variable
from deo_cube.embedding.tiles import Edge, TilePlan, plan_tiles
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.limits import MAX_TILE
from deo_cube.encoder.registry import EncoderRef, resolve
from deo_cube.errors import (
    ArgumentError,
    DeoCubeError,
    MissingBandsError,
    TilePlanError,
    UnknownModelError,
    joined,
)
from deo_cube.inputs import cube_of, refuse_foreign
from deo_cube.options import Default, get_option
from deo_cube.options import resolve as option

__all__ = ["Prepared", "check_device", "check_dtype", "dtype_name", "embed", "prepare"]

#: Pixels of a side of a block: a terabyte of ten bands.
MAX_BLOCK = 2**18

Cube = xr.Dataset | xr.DataArray


@dataclass(frozen=True)
class Prepared:
    """All that was decided at the call: what `embed` wraps and `plan` counts."""

    ref: EncoderRef
    match: BandMatch
    radiometry: Radiometry
    geobox: GeoBox
    dims: georeference.Dims
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
        return georeference.embedding_geobox(
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
    cube = cube_of(cube)
    if isinstance(bands, str) or not isinstance(bands, Sequence | Mapping | None):
        raise MissingBandsError(f"bands must be a list of bands, or a mapping of bands to variables; got {bands!r}")
    sizes = {
        name: None if size is None else arguments.integer(name, size, minimum=least, maximum=most, error=TilePlanError)
        for name, size, least, most in (
            *(("tile", tile, 1, MAX_TILE), ("halo", halo, 0, MAX_TILE // 2)),
            ("block", block, 1, MAX_BLOCK),
        )
    }
    arguments.number_or("offset", offset, ("auto",), several=True)
    arguments.number_or("nodata", nodata, ("auto", None), finite=False)
    given = dict(bands) if isinstance(bands, Mapping) else None
    wanted = None if bands is None or given is not None else list(bands)
    named = option("model", model)
    ref = resolve(named, weights=weights, bands=wanted, layer=layer, normalize=normalize, locate=locate)
    card, stride = ref.card, ref.layer.stride
    cube = graph.with_loaded_coordinates(cube)
    dims = georeference.dims(cube)
    if dims.time is not None and cube.sizes[dims.time] == 0:
        raise ArgumentError(
            f"the cube has no dates: dimension {dims.time!r} has length 0. Widen the search that made it"
        )
    problems: list[DeoCubeError] = []
    with _collected(problems):
        check_times(cube, dims.time)
    match = None
    with _collected(problems):
        stems = [stem.bands for stem in card.stems]
        match = match_bands(cube, ref.stem.bands, model=card.alias, given=given, missing=missing, alternatives=stems)
    # Of a cube that lacks bands the others are looked at too, so that one error lists all that is wrong with it.
    seen = match or _part_of_match(cube, ref.stem.bands, dims, given)
    radiometry = geobox = plan = None
    with _collected(problems):
        for name in _used(cube, seen):
            refuse_foreign(cube[name].variable if name else cube.variable, name)
        if seen is not None:
            radiometry = decide_radiometry(cube, seen, units=units, offset=offset, nodata=nodata)
    with _collected(problems):
        geobox = georeference.geobox(cube)
        void = radiometry.nodata if radiometry is not None else None
        georeference.check_resolution(geobox, card.gsd, model=card.alias, nodata=void)
    with _collected(problems):
        arguments.choice("anchor", anchor, ("grid", "array"), error=TilePlanError)
        # Without a grid, sizes that do not fit each other are found all the same.
        world = georeference.anchor(geobox) if geobox is not None and anchor == "grid" else None
        if geobox is not None or min(cube.sizes[dims.y], cube.sizes[dims.x]) > 0:
            plan = plan_tiles(
                (cube.sizes[dims.y], cube.sizes[dims.x]),
                origin=(world.row, world.col) if world is not None else (0, 0),
                tile=card.tile if sizes["tile"] is None else sizes["tile"],
                halo=-(-card.halo // stride) * stride if sizes["halo"] is None else sizes["halo"],
                patch=stride,
                block=sizes["block"],
                edge=edge,
            )
    with _collected(problems):
        hidden = mask_variable(cube, mask, dims, seen)
    with _collected(problems):
        if seen is not None and mask is not False:
            check_scl(cube, seen, radiometry)
    if problems:
        raise joined(problems)
    assert match is not None
    assert radiometry is not None
    assert geobox is not None
    assert plan is not None
    scl = match.scl is not None and mask is not False
    groups, sources = _fields(cube, dims, match, plan, scl, hidden)
    return Prepared(
        ref=ref,
        match=match,
        radiometry=radiometry,
        geobox=geobox,
        dims=dims,
        plan=plan,
        gather=graph.Gather(plan, groups, south_up=georeference.anchor(geobox).south_up),
        sources=sources,
        times=cube.sizes[dims.time] if dims.time else 1,
        scl=scl,
        hide_scl=scl and isinstance(mask, str) and mask in ("scl", "SCL", match.scl),
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
    units : {"auto", "dn", "reflectance", "percent", "uint8_rgb"}
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
        Of the result. int8 uses the card's global scale, written as CF ``scale_factor``. netCDF, GeoTIFF and
        resampling need float32: ``emb.astype("float32")``.
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
    batch_size = None if batch_size is None else arguments.integer("batch_size", batch_size, error=ArgumentError)
    cube = cube_of(cube)
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
    # Without units: rasterio expects one per band, and odc-geo passes the attribute as it is.
    attrs = {"long_name": f"{p.ref.card.alias} embeddings"} | metadata.provenance(p, dtype, cube)
    out = xr.DataArray(values, dims=(*time, "embedding", y, x), name="embeddings", attrs=attrs)
    if dtype == "int8":
        out.attrs["scale_factor"] = p.ref.layer.int8_scale
        out.attrs["_FillValue"] = np.int8(-128)
    valid_attrs = {"long_name": "valid fraction of the patch's pixels", "units": "1"}
    out = out.assign_coords(valid=xr.Variable((*time, y, x), valid, valid_attrs))
    out = out.assign_coords(coordinates.along_time(cube, p.dims.time, (y, x, "embedding", "valid", "spatial_ref")))
    placed: xr.DataArray = georeference.assign_grid(out, p.out_geobox, dims=(y, x))
    return placed


@contextlib.contextmanager
def _collected(problems: list[DeoCubeError]) -> Iterator[None]:
    """Add an error that the block raises to `problems`; what is wrong besides is then found as well."""
    try:
        yield
    except DeoCubeError as error:
        problems.append(error)


def _part_of_match(
    cube: Cube, bands: Sequence[str], dims: georeference.Dims, given: Mapping[str, str] | None
) -> BandMatch | None:
    """The bands that a cube has, where it lacks some; where none can be told, its first layer in the place of one."""
    with contextlib.suppress(DeoCubeError):
        return match_bands(cube, bands, given=given, missing="mean")
    if isinstance(cube, xr.DataArray):
        if dims.band is None or not cube.sizes[dims.band]:
            return None
        return BandMatch("", (bands[0],), (str(cube[dims.band].values[0]),), ("given",), dims.band, (0,))
    numbers = {n: v for n, v in cube.data_vars.items() if isinstance(n, str) and v.dtype.kind in "fiu"}
    layers = [n for n, v in numbers.items() if {dims.y, dims.x} <= set(v.dims)]
    return BandMatch("", (bands[0],), (layers[0],), ("given",)) if layers and dims.band is None else None


def _used(cube: Cube, match: BandMatch | None) -> list[str]:
    """Names of the variables that are read; "" for a DataArray itself."""
    if isinstance(cube, xr.DataArray):
        return [""]
    names = (*match.variables, match.scl) if match is not None else cube.data_vars
    return [n for n in names if isinstance(n, str)]


def _fields(
    cube: Cube, dims: georeference.Dims, match: BandMatch, plan: TilePlan, scl: bool, hidden: xr.Variable | None
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
    if hidden is not None:
        groups.append(one(hidden))
    return tuple(groups), tuple(arrays)


def _scl_band(cube: xr.DataArray, match: BandMatch, bands: tuple[graph.Field, ...]) -> tuple[graph.Field, ...]:
    labels = [str(v) for v in cube[match.band_dim].values]
    first = bands[0]
    return (graph.Field(first.name, first.chunks, first.axes, labels.index(str(match.scl)), first.dtype),)


def dtype_name(dtype: Any) -> str:
    """`float32` for ``"float32"``, ``np.float32`` and ``"f4"`` alike; what is no dtype as it is."""
    try:
        return str(np.dtype(dtype).name)
    except TypeError:
        return str(dtype)


def check_dtype(ref: EncoderRef, dtype: str) -> None:
    """Refuse a dtype that embeddings do not have, or the model has no scale for."""
    if dtype not in ("float32", "float16", "int8"):
        raise ArgumentError(f"dtype must be 'float32', 'float16' or 'int8', got {dtype!r}")
    if dtype == "int8" and ref.layer.int8_scale is None:
        raise UnknownModelError(
            f"{ref.card.alias} has no int8 scale for layer {ref.layer.name!r} (none was measured): pass dtype='float16'"
        )


def check_device(device: str | None, precision: str) -> None:
    """Refuse a device or precision that cannot be: at once here, unless a cluster's workers may have it."""
    from deo_cube.embedding import runtime

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
