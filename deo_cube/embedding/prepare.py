"""Decide everything that `embed` needs from names and metadata: bands, units, grid, model and tiles. Read no pixel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox

from deo_cube.arguments import refuse_foreign
from deo_cube.cube import georeference
from deo_cube.cube.bands import FILL_WITH_MEAN, LEAVE_OUT, BandMatch, match_bands
from deo_cube.cube.esa import opened_cube
from deo_cube.cube.masks import align_mask, check_classes, check_mask
from deo_cube.cube.times import check_times
from deo_cube.cube.units import Radiometry, decide_radiometry
from deo_cube.embedding import graph
from deo_cube.embedding.options import EmbedOptions, Mask, dtype_name
from deo_cube.embedding.tiles import TilePlan, plan_tiles
from deo_cube.embedding.windows import BandSource, WindowReader, band_sources
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import EncoderRef, resolve
from deo_cube.encoder.registry import card as card_of
from deo_cube.errors import (
    ArgumentError,
    DeoCubeError,
    MissingBandsError,
    TilePlanError,
    UnknownModelError,
    joined,
    remedy,
)
from deo_cube.options import option

__all__ = ["Cube", "Prepared", "prepare"]

Cube = xr.Dataset | xr.DataArray
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """Every decision that is made at the call: `embed` wraps them in a graph, `plan` counts them."""

    ref: EncoderRef
    match: BandMatch
    radiometry: Radiometry
    geobox: GeoBox
    dims: georeference.Dims
    plan: TilePlan
    window_reader: WindowReader
    sources: tuple[Any, ...]
    times: int
    scl: bool
    hide_scl: bool
    channels: tuple[int, ...]
    dtype: str
    precision: str
    runtime: str
    """Library that runs the network: "torch", or "openvino" with its version. "auto" until it has been chosen."""

    @property
    def out_geobox(self) -> GeoBox:
        """Grid of the embeddings."""
        p = self.plan
        return georeference.embedding_geobox(
            self.geobox, patch=p.patch, top=-p.rows.out_offset, left=-p.columns.out_offset, shape=p.out_shape
        )


def prepare(cube: Cube, options: EmbedOptions, *, locate: bool = True, series: bool = False) -> Prepared:
    """Decide everything that `embed` needs, or raise. Reads no pixel of a cube on Dask.

    With ``locate=False`` the weights are not searched for, which is enough to count and to describe. `series` says
    that the call is one of `embed_series`.

    Raises
    ------
    DeoCubeError
        As `embed`. Of a cube with several problems one error lists them all.
    """
    cube = opened_cube(cube)
    variables = dict(options.bands) if isinstance(options.bands, Mapping) else None
    ref = _encoder_ref(options, locate=locate, series=series)
    card = ref.card
    cube = graph.with_loaded_coordinates(cube)
    dims = georeference.dims(cube)
    if dims.time is not None and cube.sizes[dims.time] == 0:
        raise ArgumentError(
            f"the cube has no dates: dimension {dims.time!r} has length 0. Widen the search that made it"
        )
    problems: list[DeoCubeError] = []
    _decided(problems, check_times, cube, dims.time)
    match = _decided(
        problems,
        match_bands,
        cube,
        ref.stem.bands,
        model=card.alias,
        given=variables,
        missing=options.missing,
        alternatives=[stem.bands for stem in card.stems],
        filling=LEAVE_OUT if series else FILL_WITH_MEAN,
    )
    # The bands that an incomplete cube has are checked too, so that one error lists all its problems.
    seen = match or _part_of_match(cube, ref.stem.bands, dims, variables)
    radiometry = _decided(problems, _radiometry, cube, seen, options)
    geobox = _decided(problems, georeference.geobox, cube)
    if geobox is not None:
        _decided(problems, _check_resolution, geobox, ref, radiometry)
    plan = _decided(problems, _tile_plan, cube, dims, geobox, ref, options)
    hidden = _decided(problems, _mask_variable, cube, options.mask, dims, seen)
    if seen is not None and options.mask is not False:
        _decided(problems, _check_scl, cube, seen, radiometry)
    if problems:
        raise joined(problems)
    assert match is not None
    assert radiometry is not None
    assert geobox is not None
    assert plan is not None
    scl = match.scl is not None and options.mask is not False
    groups, sources = _fields(cube, dims, match, plan, scl, hidden)
    return Prepared(
        ref=ref,
        match=match,
        radiometry=radiometry,
        geobox=geobox,
        dims=dims,
        plan=plan,
        window_reader=WindowReader(plan, groups, south_up=georeference.anchor(geobox).south_up),
        sources=sources,
        times=cube.sizes[dims.time] if dims.time else 1,
        scl=scl,
        hide_scl=scl and isinstance(options.mask, str) and options.mask in ("scl", "SCL", match.scl),
        channels=tuple(i for i, v in enumerate(match.variables) if v is not None),
        dtype=_dtype(options, ref),
        precision=str(option("precision", options.precision)),
        runtime=str(option("runtime", options.runtime)),
    )


def _encoder_ref(options: EmbedOptions, *, locate: bool, series: bool) -> EncoderRef:
    model = option("model", options.model)
    _check_reads(card_of(model), series=series)
    return resolve(
        model,
        weights=options.weights,
        # A mapping names variables of the cube, a list chooses the stem.
        bands=None if options.bands is None or isinstance(options.bands, Mapping) else list(options.bands),
        layer=options.layer,
        normalize=options.normalize,
        locate=locate,
    )


def _dtype(options: EmbedOptions, ref: EncoderRef) -> str:
    dtype = dtype_name(option("dtype", options.dtype))
    if dtype == "int8" and ref.layer.int8_scale is None:
        raise UnknownModelError(
            f"{ref.card.alias} has no int8 scale for layer {ref.layer.name!r} (none was measured): pass dtype='float16'"
        )
    return dtype


def _check_reads(card: ModelCard, *, series: bool) -> None:
    """Refuse a model that reads series where one of single dates is needed, and the other way round.

    Raises
    ------
    ArgumentError
        The message names the verb that takes the model.
    """
    if card.series and not series:
        raise ArgumentError(
            f"model={card.alias!r} reads the months of a pixel, and not single dates: "
            + remedy(f"deo_cube.embed_series(cube, {card.alias!r})", f"deo-cube embed-series --model {card.alias}")
            + ", or another model"
        )
    if series and not card.series:
        raise ArgumentError(
            f"model={card.alias!r} reads single dates, and not series: model='presto', or one vector per period from "
            "those of its dates: "
            + remedy(
                f"deo_cube.aggregate(deo_cube.embed(cube, {card.alias!r}), 'year')",
                f"deo-cube embed CUBE DATES --model {card.alias}, then deo-cube aggregate DATES OUT --freq year",
            )
        )


def _decided(problems: list[DeoCubeError], decide: Callable[P, T], *args: P.args, **options: P.kwargs) -> T | None:
    """Return a decision; or None, and add its error to `problems`, so that one call reports all of them."""
    try:
        return decide(*args, **options)
    except DeoCubeError as error:
        problems.append(error)
        return None


def _radiometry(cube: Cube, match: BandMatch | None, options: EmbedOptions) -> Radiometry | None:
    for name in _variables_read(cube, match):
        refuse_foreign(cube[name].variable if name else cube.variable, name)
    if match is None:
        return None
    return decide_radiometry(cube, match, units=options.units, offset=options.offset, nodata=options.nodata)


def _check_resolution(geobox: GeoBox, ref: EncoderRef, radiometry: Radiometry | None) -> None:
    # Aerial images are 8-bit RGB: the stem for RGB takes them at their own resolution, of which `embed` warns.
    rgb = set(ref.stem.bands) <= {"B02", "B03", "B04"}
    georeference.check_resolution(
        geobox,
        ref.card.gsd,
        model=ref.card.alias,
        nodata=radiometry.nodata if radiometry is not None else None,
        finer=rgb and radiometry is not None and radiometry.units == "uint8_rgb",
        hint='; or embed 8-bit RGB at its own resolution: units="uint8_rgb"' if rgb else "",
    )


def _tile_plan(
    cube: Cube, dims: georeference.Dims, geobox: GeoBox | None, ref: EncoderRef, options: EmbedOptions
) -> TilePlan | None:
    """Return the plan. Sizes that do not fit each other are reported for a cube without a grid, too."""
    shape, card, stride = (cube.sizes[dims.y], cube.sizes[dims.x]), ref.card, ref.layer.stride
    if geobox is None and min(shape) == 0:
        return None
    world = georeference.anchor(geobox) if geobox is not None and options.anchor == "grid" else None
    return plan_tiles(
        shape,
        origin=(world.row, world.col) if world is not None else (0, 0),
        tile=card.tile if options.tile is None else options.tile,
        halo=-(-card.halo // stride) * stride if options.halo is None else options.halo,
        patch=stride,
        block=options.block,
        edge=options.edge,
    )


def _part_of_match(
    cube: Cube, bands: Sequence[str], dims: georeference.Dims, given: Mapping[str, str] | None
) -> BandMatch | None:
    """Return a match of the bands that an incomplete cube has, or else of its first layer, for the other checks."""
    with contextlib.suppress(DeoCubeError):
        return match_bands(cube, bands, given=given, missing="mean")
    if isinstance(cube, xr.DataArray):
        if dims.band is None or not cube.sizes[dims.band]:
            return None
        return BandMatch("", (bands[0],), (str(cube[dims.band].values[0]),), ("given",), dims.band, (0,))
    numbers = {n: v for n, v in cube.data_vars.items() if isinstance(n, str) and v.dtype.kind in "fiu"}
    layers = [n for n, v in numbers.items() if {dims.y, dims.x} <= set(v.dims)]
    return BandMatch("", (bands[0],), (layers[0],), ("given",)) if layers and dims.band is None else None


def _variables_read(cube: Cube, match: BandMatch | None) -> list[str]:
    """Return the names of the variables that are read; "" for a DataArray itself."""
    if isinstance(cube, xr.DataArray):
        return [""]
    names = (*match.variables, match.scl) if match is not None else cube.data_vars
    return [n for n in names if isinstance(n, str)]


def _fields(
    cube: Cube, dims: georeference.Dims, match: BandMatch, plan: TilePlan, scl: bool, hidden: xr.Variable | None
) -> tuple[tuple[tuple[BandSource, ...], ...], tuple[Any, ...]]:
    """Return the sources of bands, SCL and mask: groups of fields for `WindowReader`, and their Dask arrays."""
    names = (dims.time, dims.band, dims.y, dims.x)
    like = min(plan.block, 256)  # of what is not on Dask: small, for a halo touches its neighbours' chunks whole
    arrays: list[Any] = []

    def one(variable: xr.Variable, positions: Sequence[int] = (0,)) -> tuple[BandSource, ...]:
        fields, array = band_sources(variable, names, positions, like)
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


def _scl_band(cube: xr.DataArray, match: BandMatch, bands: tuple[BandSource, ...]) -> tuple[BandSource, ...]:
    labels = [str(v) for v in cube[match.band_dim].values]
    first = bands[0]
    return (BandSource(first.name, first.chunks, first.axes, labels.index(str(match.scl)), first.dtype),)


def _mask_variable(
    cube: xr.Dataset | xr.DataArray, mask: Mask | None, dims: georeference.Dims, match: BandMatch | None
) -> xr.Variable | None:
    """Return the mask that `mask` names or is; None where SCL alone decides, or nothing."""
    scl = match.scl if match is not None else None
    if mask is None or mask is False:
        return None
    if isinstance(mask, str) and mask in ("scl", "SCL", scl):
        # The variable itself is not a mask: its classes are numbers, of which all but one would count as True.
        if scl is None and match is not None:
            raise MissingBandsError(
                "mask='scl' hides clouds by the scene classification, and the cube has none: name it, "
                "bands={'SCL': ...}, or leave mask out"
            )
        return None
    if isinstance(mask, xr.DataArray) and mask.dtype != bool and scl is not None and mask.name == scl:
        raise ArgumentError(
            f"mask is the scene classification itself, whose classes are not truth values: pass mask='scl', or compare "
            f"it, mask=cube.{mask.name}.isin([8, 9])"
        )
    if isinstance(mask, xr.DataArray | str):
        return _aligned_mask(cube, mask, dims)
    hint = ": xr.DataArray(mask, dims=('y', 'x'))" if isinstance(mask, np.ndarray) else ""
    raise ArgumentError(
        "mask must be a boolean DataArray, the name of a variable, 'scl' or False, got "
        f"{type(mask).__name__ if callable(mask) or hint else repr(mask)}{hint}"
    )


def _aligned_mask(cube: xr.Dataset | xr.DataArray, mask: xr.DataArray | str, dims: georeference.Dims) -> xr.Variable:
    if isinstance(mask, str):
        if not isinstance(cube, xr.Dataset) or mask not in cube:
            fix = remedy("pass a boolean DataArray, or 'scl'", "name a variable, or scl")
            raise ArgumentError(f"mask={mask!r} is not a variable of the cube: {fix}")
        mask = cube[mask]
    refuse_foreign(mask.variable, "mask", argument="mask")
    if isinstance(mask.variable._data, np.ndarray):  # in memory; of others, tasks look
        check_mask(mask.values)
    return align_mask(mask, cube, dims).variable


def _check_scl(cube: xr.Dataset | xr.DataArray, match: BandMatch, radiometry: Radiometry | None) -> None:
    """Refuse a scene classification that does not hold its classes: by its type, and by its values where in memory."""
    if match.scl is None:
        return
    layer = cube[match.scl] if match.band_dim is None else cube.isel({match.band_dim: match.scl_index})
    in_memory = isinstance(layer.variable._data, np.ndarray)
    values = np.asarray(layer.variable._data if in_memory else np.empty(0, layer.dtype))
    marks = radiometry.scl_invalid if radiometry is not None else ()
    check_classes(values, marks, name=match.scl, along=match.band_dim)
