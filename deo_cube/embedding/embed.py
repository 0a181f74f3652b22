"""`ds.deo.embed()`: lazy, georeferenced embeddings of a cube; and `load_cube()`, which loads the bands of a model.

Bands, units, grid, model and tiles are decided at the call, from names and metadata, so that errors are raised there.
Pixels are read and encoded when the result is computed, written or drawn.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from deo_cube.constants import INT8_INVALID, MODEL_BANDS
from deo_cube.cube import coordinates, georeference, stac
from deo_cube.cube.esa import opened_cube
from deo_cube.cube.units import product_levels
from deo_cube.embedding import graph, metadata, process, transfer
from deo_cube.embedding.block import EmbedBlock
from deo_cube.embedding.chunks import CACHE_BYTES
from deo_cube.embedding.options import EmbedOptions, Mask, RunOptions
from deo_cube.embedding.prepare import Cube, Prepared, prepare
from deo_cube.embedding.tiles import Edge
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import card
from deo_cube.options import Default, get_option, option

__all__ = ["block_of", "check_device", "embed", "load_cube", "warn_of_level", "with_runtime"]


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
    mask: Mask | None = None,
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
    runtime: str = Default("torch"),
) -> xr.DataArray:
    """Embed a Sentinel-2 cube: one vector per patch of pixels, lazy and georeferenced.

    Parameters
    ----------
    cube : Dataset, DataArray or DataTree
        One variable per band (`B02`, `B8A`, `blue`, ... and optionally `SCL`), or a `band` dimension; with or without
        time; on Dask, in memory, or lazily opened. It needs a CRS and a regular grid. A DataTree is an EOPF product, or
        holds one cube.
    model : str, path or ModelCard
        A model's name (`deo_cube.list_models()`), the folder of a training run, or a card.
    weights : path, optional
        Weights file. Default: from the folder `DEO_CUBE_WEIGHTS`, the package, or the hub.
    bands : list or mapping, optional
        A list chooses the model's stem by its bands (``["B04", "B03", "B02"]`` for the RGB stem). A mapping names the
        cube's variable for a model's band (``{"B08": "nir_10m"}``).
    missing : {"raise", "nearest", "mean"}
        For a band that the cube lacks: raise, use the spectrally nearest band (B8A for B08), or use the training
        mean.
    units : {"auto", "dn", "reflectance", "percent", "uint8_rgb"}
        Units of the stored values. "auto" decides from metadata, and raises where metadata do not decide.
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
        Keep or drop patches that are partly outside the cube.
    dtype : {"float16", "float32", "int8"}
        Dtype of the result. int8 uses the card's global scale, written as CF ``scale_factor``. netCDF, GeoTIFF and
        resampling need float32: ``emb.astype("float32")``.
    batch_size : int, optional
        Tiles per forward pass, halved automatically where memory is insufficient. Changes no number.
    device : str, optional
        "cpu", "cuda", "cuda:1". Default: the best of the process that runs the task.
    precision : {"float32", "bfloat16"}
        Number format of the network's matrix products. bfloat16 gives other numbers (expect a cosine distance below
        0.01), which a float32 store is not resumed with. It is refused on devices that are slow at it, as most CPUs
        are: they need instructions for it (``avx512_bf16``, ``amx_bf16``, Arm's ``bf16``).
    runtime : {"torch", "openvino", "auto"}
        Library that runs the network. "openvino" is faster on the CPU (``pip install 'deo-cube[cpu]'``); its vectors
        differ from PyTorch's by rounding, so its version is part of a store, which another one does not resume. A
        network is compiled once per machine and compared with PyTorch's vectors before its first use in a process.
        "auto" takes OpenVINO where it is installed, the device is the CPU, no cluster is connected and that comparison
        succeeds, which is tried at the call.

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
        At the call. Each names the argument that fixes it.

    Examples
    --------
    >>> import deo_cube
    >>> ds = deo_cube.synthetic_cube(size=256, times=1)
    >>> emb = ds.deo.embed()
    >>> emb.dims
    ('time', 'embedding', 'y', 'x')
    """
    options = EmbedOptions(
        model=model,
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
        dtype=dtype,
        precision=precision,
        runtime=runtime,
    )
    run = RunOptions(batch_size=batch_size, device=device)
    cube = opened_cube(cube)
    p = with_runtime(prepare(cube, options), run.device)
    check_device(run.device, p.precision, p.runtime)
    cube = graph.with_loaded_coordinates(cube)
    warn_of_level(cube, p.ref.card)
    _warn_of_precision(p)
    _warn_of_resolution(p)
    _warn_of_chunks(p)
    embed_block = block_of(p, run)
    outputs = (
        graph.Output("embed", (p.ref.layer.dim,), np.dtype(p.dtype)),
        graph.Output("valid", (), np.dtype("float32"), alone=embed_block.alone),
    )
    values, valid = graph.map_blocks_with_halo(embed_block, p.window_reader, p.sources, outputs, times=p.times)
    return _wrap(cube, p, values, valid)


def block_of(p: Prepared, run: RunOptions) -> EmbedBlock:
    """Return the function of a cube's blocks."""
    return EmbedBlock(
        p.ref,
        p.plan,
        p.radiometry,
        p.channels,
        p.scl,
        p.hide_scl,
        p.dtype,
        batch=run.batch_size,
        device=run.device if p.runtime == "torch" else "cpu",
        precision=p.precision,
        compiled=get_option("compile"),
        runtime=p.runtime,
    )


def _wrap(cube: Cube, p: Prepared, values: Any, valid: Any) -> xr.DataArray:
    y, x = p.dims.y, p.dims.x
    time = ("time",) if p.dims.time else ()
    if not time:
        values, valid = values[0], valid[0]
    # Without units: rasterio expects one per band, and odc-geo passes the attribute as it is.
    attrs = {"long_name": f"{p.ref.card.alias} embeddings"} | metadata.provenance(p, cube)
    out = xr.DataArray(values, dims=(*time, "embedding", y, x), name="embeddings", attrs=attrs)
    if p.dtype == "int8":
        out.attrs["scale_factor"] = p.ref.layer.int8_scale
        out.attrs["_FillValue"] = np.int8(INT8_INVALID)
    valid_attrs = {"long_name": "valid fraction of the patch's pixels", "units": "1"}
    out = out.assign_coords(valid=xr.Variable((*time, y, x), valid, valid_attrs))
    out = out.assign_coords(coordinates.along_time(cube, p.dims.time, (y, x, "embedding", "valid", "spatial_ref")))
    placed: xr.DataArray = georeference.assign_grid(out, p.out_geobox, dims=(y, x))
    return placed


def with_runtime(p: Prepared, device: str | None, *, prove: bool = True) -> Prepared:
    """Return decisions with the runtime chosen, see `process.choose_runtime`."""
    chosen = process.choose_runtime(
        p.runtime, p.ref, device=device, precision=p.precision, tile=p.plan.tile, prove=prove
    )
    return dataclasses.replace(p, runtime=chosen)


def check_device(device: str | None, precision: str, runtime: str = "torch") -> None:
    """Refuse a device that this machine does not have, or a precision that it is slow at.

    Nothing is refused where a cluster is connected: its workers may have the device.
    """
    if process.distributed_client() is None and (device is not None or precision != "float32"):
        transfer.check_precision(precision, process.choose_device(device if runtime == "torch" else "cpu"))


def warn_of_level(cube: Cube, card: ModelCard) -> None:
    """Warn of products of another level than the model's."""
    other = sorted(product_levels(cube) - {card.product_level})
    if other and card.product_level in ("L1C", "L2A"):
        warnings.warn(
            f"the cube holds {' and '.join(other)} products, {card.alias} was trained on {card.product_level}: L1C is "
            "reflectance at the top of the atmosphere, L2A at the surface, and their embeddings are not to be compared",
            UserWarning,
            stacklevel=3,
        )


def _warn_of_precision(p: Prepared) -> None:
    distance = transfer.tolerance(p.precision, p.ref.card, p.ref.stem.name)
    if distance > transfer.TOLERANCE[p.precision]:
        warnings.warn(
            f"in {p.precision} vectors of stem {p.ref.stem.name!r} of {p.ref.card.alias} differ from float32 by a "
            f"cosine distance of up to {distance:.2g} (measured, in its card): pass precision='float32'",
            UserWarning,
            stacklevel=3,
        )


def _warn_of_resolution(p: Prepared) -> None:
    """Warn of pixels that are finer than those of the training, which only 8-bit RGB may have."""
    dx, dy = georeference.ground_resolution(p.geobox)
    gsd, size = p.ref.card.gsd, math.sqrt(dx * dy)
    if size < gsd / 2:
        warnings.warn(
            f"{p.ref.card.alias} was trained on pixels of {gsd:g} m, and the cube's are of {size:.3g} m: a vector "
            f"describes {p.plan.patch * dx:.3g} m x {p.plan.patch * dy:.3g} m, and is not to be compared with vectors "
            f"of {gsd:g} m pixels",
            UserWarning,
            stacklevel=3,
        )


def _warn_of_chunks(p: Prepared) -> None:
    if p.plan.blocks[0] * p.plan.blocks[1] * p.times < 2:
        return
    largest = sum(f.dtype.itemsize * math.prod(max(c) for c in f.chunks) for f in p.window_reader.groups[0])
    if largest > 4 * CACHE_BYTES:
        good = max(256, p.plan.block // 2)
        warnings.warn(
            f"the cube's chunks are large: one of each band is {largest / 1e9:.1f} GB, and a block of "
            f"{p.plan.block} px must read them whole. "
            f"Load it with chunks={{'time': 1, {p.dims.y!r}: {good}, {p.dims.x!r}: {good}}}",
            stacklevel=4,
        )


# --- `deo_cube.load_cube()`: load STAC items as a cube with the bands of a model ---


@functools.wraps(stac.load_cube)  # its signature and help
def load_cube(
    items: Any,
    *,
    model: str = Default("tiny"),
    bands: Sequence[str] | Mapping[str, str] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Load STAC items as `deo_cube.cube.stac.load_cube` does, with the bands of `model`."""
    if bands is None and set(expected := card(option("model", model)).bands) != set(MODEL_BANDS):
        bands = expected
    return stac.load_cube(items, bands=bands, **options)
