"""Embed Sentinel-2 cubes, map classes and look at the result. Flags are the arguments of the Python functions.

Exit status: 0 success; 1 a problem was found (`verify`, `doctor`), or a bug in deo_cube; 2 an argument, input, disk or
network that cannot be used; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from deo_cube import cli_arguments, cli_errors
from deo_cube.constants import PRECISIONS, RUNTIMES
from deo_cube.embedding.options import (
    BBOX,
    INTEGER,
    NUMBER,
    OPTIONAL,
    PATH,
    TEXT,
    BandsOption,
    EmbedOptions,
    Model,
    Nodata,
    Offset,
    RunOptions,
    Units,
    Weights,
    changed_options,
    one_of,
)
from deo_cube.errors import ArgumentError, DeoCubeError, UnknownModelError, commands_as_remedies
from deo_cube.options import set_options
from deo_cube.paths import is_url, local_path, not_found

__all__ = ["COMMANDS", "main"]


_OF_HEAD = "(default: the head's)"


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise errors of options so that `main` prints them: tyro prints a ValueError itself, in Python's words."""
    try:
        yield
    except DeoCubeError as error:
        raise ExceptionGroup("options", [error]) from None


class _EmbedFlags(EmbedOptions):
    """Options that decide the embeddings, and with them what a store can be resumed with."""

    def __post_init__(self) -> None:
        with _refusals():
            super().__post_init__()


class _RunFlags(RunOptions):
    """Options that decide how embeddings are computed. None changes a number."""

    def __post_init__(self) -> None:
        with _refusals():
            super().__post_init__()


@dataclass(frozen=True, kw_only=True, eq=False)
class _SegmentFlags(_EmbedFlags):
    """Options of embedding a cube."""

    model: Annotated[
        Model | None,
        TEXT,
        arg(
            help="folder of the training run, if the head's model is not known",
            help_behavior_hint="(default: the head's)",
        ),
    ] = None
    layer: Annotated[str | None, TEXT, arg(help="layer of the model", help_behavior_hint="(default: the head's)")] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class _ReadFlags:
    """Options of opening the cube."""

    group: Annotated[
        str | None,
        TEXT,
        arg(help="group of a Zarr or netCDF store that holds the cube", help_behavior_hint="(default: the root)"),
    ] = None
    time: Annotated[
        tuple[str, ...],
        arg(
            help="dates of the files of a pattern, in the order of their names",
            metavar="[STR ...]",
            help_behavior_hint="(default: those of names and tags)",
        ),
    ] = ()
    allow: Annotated[
        tuple[str, ...],
        arg(
            help="hosts, folders or URL prefixes that STAC items may name",
            metavar="[STR ...]",
            help_behavior_hint="(default: those of the items)",
        ),
    ] = ()

    def given(self) -> dict[str, Any]:
        """Return the arguments of `open_cube` that were passed."""
        passed: dict[str, Any] = {"group": self.group, "time": list(self.time), "allow": self.allow}
        return {name: value for name, value in passed.items() if value}


@dataclass(frozen=True, kw_only=True)
class _StoreFlags:
    """Options of writing the store. None changes a number."""

    scheduler: Annotated[
        str | None,
        TEXT,
        arg(
            help="threads, processes, synchronous, or a Dask scheduler: tcp://... or its file, .json",
            help_behavior_hint="(default: threads)",
        ),
    ] = None
    workers: Annotated[
        int | None,
        INTEGER,
        arg(help="blocks in flight, for threads and processes", help_behavior_hint="(default: cores + 2)"),
    ] = None
    retries: Annotated[int, arg(help="further attempts to read a chunk")] = 3
    read_timeout: Annotated[float, arg(help="seconds after which reading a chunk counts as failed")] = 1800.0
    worker_timeout: Annotated[float, arg(help="seconds to wait while a cluster has no worker")] = 600.0
    resume: Annotated[
        Literal["check", "changed", "unchecked"],
        arg(help="finished blocks: compare their inputs; redo those whose inputs changed; or do not compare"),
    ] = "check"
    overwrite: Annotated[bool, arg(help="replace the store")] = False
    shards: Annotated[bool, arg(help="store blocks as shards; without, GDAL before 3.13 reads them")] = True
    progress: Annotated[bool, arg(help="show the progress bar")] = True


def _write(made: Callable[[], Any], out: str, store: _StoreFlags) -> None:
    """Write what `made` returns to a store, and print its sizes."""
    from deo_cube.store.write import to_zarr

    # The cluster first: a device that this machine lacks may be one of its workers'.
    with _log_lines(store.progress), _cluster(store.scheduler) as scheduler:
        stored = to_zarr(
            made(),
            out,
            resume=True if store.resume == "check" else store.resume,
            overwrite=store.overwrite,
            shards=store.shards,
            progress=store.progress,
            retries=store.retries,
            read_timeout=store.read_timeout,
            scheduler=scheduler,
            num_workers=store.workers,
            worker_timeout=store.worker_timeout,
        )
    print(f"{out}: {', '.join(f'{d} {n}' for d, n in stored.sizes.items())}, {stored.dtype}")


def demo(
    out: Annotated[Path, arg(help="folder for the Zarr store and the picture")] = Path("demo"),
    size: Annotated[int, arg(help="pixels on a side")] = 1024,
    model: Annotated[str, arg(help="model to embed with")] = "tiny",
    live: Annotated[bool, arg(help="real Sentinel-2, the clearest date of a catalogue; needs the network")] = False,
    catalogue: Annotated[str, arg(help="with --live: its name, or the URL of a STAC API")] = "earth-search",
    collection: Annotated[str | None, TEXT, arg(help="with --live: of that API", help_behavior_hint=OPTIONAL)] = None,
    bbox: Annotated[
        tuple[float, float, float, float] | None,
        BBOX,
        arg(help="with --live: west south east north, degrees", help_behavior_hint=OPTIONAL),
    ] = None,
    datetime: Annotated[
        str | None, TEXT, arg(help="with --live: dates to choose from, as 2024-06", help_behavior_hint=OPTIONAL)
    ] = None,
) -> None:
    """Embed a synthetic scene offline with the bundled model, and draw the result."""
    from deo_cube.demo import run

    given = {"catalogue": catalogue, "collection": collection, "bbox": bbox, "datetime": datetime}
    run(out, size=size, model=model, live={k: v for k, v in given.items() if v is not None} if live else None)


def embed(
    cube: Annotated[
        Positional[str],
        arg(help="cube: .zarr, .nc, .tif, .SAFE, .json of STAC items, or a pattern in quotes", metavar="CUBE"),
    ],
    out: Annotated[
        Positional[str], arg(help="Zarr store of embeddings; resumed if the same call began it", metavar="OUT")
    ],
    *,
    embedding: OmitArgPrefixes[_EmbedFlags],
    run: OmitArgPrefixes[_RunFlags],
    store: OmitArgPrefixes[_StoreFlags],
    read: OmitArgPrefixes[_ReadFlags],
) -> None:
    """Embed a cube into a Zarr store. The same command resumes an interrupted run."""
    from deo_cube.cube.open import open_cube
    from deo_cube.embedding.embed import embed as embed_cube

    _write(lambda: embed_cube(open_cube(cube, **read.given()), **changed_options(embedding, run)), out, store)


def embed_series(
    cube: Annotated[
        Positional[str],
        arg(help="cube of several months: .zarr, .nc, .json of STAC items, or a pattern in quotes", metavar="CUBE"),
    ],
    out: Annotated[
        Positional[str], arg(help="Zarr store of embeddings; resumed if the same call began it", metavar="OUT")
    ],
    model: Annotated[str, arg(help="name of a model that reads series")] = "presto",
    freq: Annotated[
        str | None, TEXT, arg(help="one vector per year, season, ...", help_behavior_hint="(default: of all months)")
    ] = None,
    how: Annotated[
        Literal["median", "least_cloudy", "first"], arg(help="how the dates of a month become one")
    ] = "median",
    weights: Weights = None,
    bands: BandsOption = None,
    missing: Annotated[Literal["raise", "nearest", "leave_out"], arg(help="for a band that the cube lacks")] = "raise",
    units: Units = "auto",
    offset: Offset = "auto",
    nodata: Nodata = "auto",
    dtype: Annotated[Literal["float16", "float32"], arg(help="of the embeddings")] = "float16",
    device: Annotated[
        str | None, TEXT, arg(help="cpu, cuda, cuda:1", help_behavior_hint="(default: automatic)")
    ] = None,
    *,
    store: OmitArgPrefixes[_StoreFlags],
    read: OmitArgPrefixes[_ReadFlags],
) -> None:
    """Embed the months of a cube into a Zarr store: one vector per pixel and series."""
    from deo_cube.cube.open import open_cube
    from deo_cube.embedding.series import embed_series as embed_months

    options: dict[str, Any] = {
        "how": how, "weights": weights, "bands": bands, "missing": missing, "units": units, "offset": offset,
        "nodata": nodata, "dtype": dtype, "device": device,
    }  # fmt: skip
    _write(lambda: embed_months(open_cube(cube, **read.given()), model, freq, **options), out, store)


def plan(
    cube: Annotated[
        Positional[str],
        arg(help="cube: .zarr, .nc, .tif, .SAFE, .json of STAC items, or a pattern in quotes", metavar="CUBE"),
    ],
    measure: Annotated[bool, arg(help="encode a few tiles to measure the rate")] = False,
    *,
    embedding: OmitArgPrefixes[_EmbedFlags],
    run: OmitArgPrefixes[_RunFlags],
    read: OmitArgPrefixes[_ReadFlags],
) -> None:
    """Count tiles, tokens, bytes and time before embedding."""
    from deo_cube.cube.open import open_cube
    from deo_cube.embedding.plan import plan as plan_cube

    counts = plan_cube(open_cube(cube, **read.given()), measure=measure, **changed_options(embedding, run))
    print(counts)


def models() -> None:
    """List the available models."""
    from deo_cube.encoder.registry import list_models

    print(list_models().to_string(index=False))


def verify(
    what: Annotated[
        Positional[str | None],
        arg(help="a model's name, or a store of embeddings", metavar="NAME|STORE", help_behavior_hint=OPTIONAL),
    ] = None,
    weights: Annotated[Path | None, PATH, arg(help="weights file of the model", help_behavior_hint=OPTIONAL)] = None,
    published: Annotated[
        Path | None, PATH, arg(help="file of published weights, with no model named", help_behavior_hint=OPTIONAL)
    ] = None,
    data: Annotated[
        Path | None,
        PATH,
        arg(help="--published: labelled chips that show how the weights want them", help_behavior_hint=OPTIONAL),
    ] = None,
    bands: Annotated[
        str | None,
        TEXT,
        arg(help="--published: channels of --data, as B01,B02,...,B12,B8A", help_behavior_hint=OPTIONAL),
    ] = None,
    offset: Annotated[float, arg(help="--published: DN to add to --data: 0 or -1000")] = 0.0,
    limit: Annotated[int, arg(help="--published: chips per class")] = 400,
    size: Annotated[int, arg(help="--published: side to enlarge chips to, beside their own")] = 224,
    model: Annotated[
        str | None,
        TEXT,
        arg(help="--published: swinb, vitb", help_behavior_hint="(default: what the file's tensors say)"),
    ] = None,
    device: Annotated[str, arg(help="--published: cpu, cuda")] = "cpu",
    json: Annotated[
        Path | None, PATH, arg(help="--published: write the findings there", help_behavior_hint=OPTIONAL)
    ] = None,
    repair: Annotated[
        bool, arg(help="of a store: mark damaged blocks, so that the call that made it redoes them")
    ] = False,
) -> int:
    """Check a model's weights, every block of a store, or --published weights and the input they need."""
    if published is not None:
        from deo_cube.evaluate.published import verify_published

        names = bands.split(",") if bands else None
        report = verify_published(
            published, data, model=model, bands=names, offset=offset, limit=limit, sizes=(size,), device=device
        )
        print(report)
        if json is not None:
            report.to_json(json)
        return 0
    if what is None:
        raise ArgumentError("verify needs the name of a model, a store of embeddings, or --published FILE")
    path = local_path(what)
    # A store's usual name is one, though nothing is there: no model is called so.
    if is_url(what) or path.suffix == ".zarr" or (path.exists() and not (path / "card.json").exists()):
        from deo_cube.store.open import verify_store

        state = verify_store(what, repair=repair, progress=True)
        print(state)
        return 0 if state.complete else 1
    from deo_cube.encoder.loading import verify as verify_model

    try:
        found = verify_model(what, weights=weights)
    except UnknownModelError as error:
        if path.suffix or path.parent.name:
            raise not_found("what", what, "a store of embeddings, or the name of a model") from None
        raise UnknownModelError(str(error).replace("model=", "what=", 1)) from None
    print(found)
    return 0 if found.ok else 1


def segment(
    cube: Annotated[
        Positional[str],
        arg(help="cube or store of embeddings: .zarr, .nc, .tif, or .json of STAC items", metavar="CUBE"),
    ],
    head: Annotated[
        Positional[Path], arg(help="file of a saved head (.safetensors), or tiny for its land cover", metavar="HEAD")
    ],
    out: Annotated[Positional[Path], arg(help="class map: .tif, or .zarr", metavar="OUT")],
    probabilities: Annotated[bool, arg(help="write the probability of each class, a band each")] = False,
    date: Annotated[
        str | None,
        TEXT,
        arg(help="date to map, of a cube or store with several, as 2024-06-05", help_behavior_hint="(default: all)"),
    ] = None,
    overwrite: Annotated[bool, arg(help="replace OUT, whatever it is")] = False,
    *,
    embedding: OmitArgPrefixes[_SegmentFlags],
    run: OmitArgPrefixes[_RunFlags],
    read: OmitArgPrefixes[_ReadFlags],
) -> None:
    """Map classes, or their probabilities, with a head that `fit_head(...).save(...)` wrote or that a model brings."""
    from deo_cube.cube.open import open_cube
    from deo_cube.heads.maps import segment as segment_cube
    from deo_cube.heads.vectors import matching_times
    from deo_cube.store.open import is_embeddings, open_embeddings
    from deo_cube.store.report import log_computation

    out = local_path(out)
    tif = out.suffix.lower() in (".tif", ".tiff")
    if not overwrite:
        _check_out(out, tif=tif, inputs=(cube, head))
    stored = is_embeddings(cube)
    if stored and (passed := read.given()):
        instead = ": date= chooses a date" if "time" in passed else ""
        raise ArgumentError(
            f"{', '.join(f'{k}=' for k in passed)} open a cube, and CUBE {cube} holds embeddings{instead}"
        )
    pixels = open_embeddings(cube) if stored else open_cube(cube, **read.given())
    classes = segment_cube(pixels, head, probabilities=probabilities, **changed_options(embedding, run))
    classes = classes if date is None else matching_times(classes, date, argument="date")
    if tif:
        from deo_cube.store.export import to_cog

        if classes.sizes.get("time", 1) > 1:
            dates = [str(label)[:10] for label in classes["time"].values]
            raise ArgumentError(
                f"a GeoTIFF holds one date, the cube has {len(dates)} ({', '.join(dates[:4])}"
                f"{', ...' if len(dates) > 4 else ''}): pass date={dates[0]}, or name OUT .zarr"
            )
        flat = classes.isel(time=0) if "time" in classes.dims else classes
        with _log_lines(True), log_computation(classes, out):
            to_cog(flat, out)
    else:
        with _log_lines(True), log_computation(classes, out):
            classes.to_dataset(name=str(classes.name or "class")).to_zarr(
                out, mode="w", zarr_format=3, consolidated=True
            )
    print(f"{out}: {', '.join(f'{d} {n}' for d, n in classes.sizes.items())}")


def sample(
    data: Annotated[
        Positional[str], arg(help="store of embeddings, cube or map: .zarr, .nc, .tif, or .json", metavar="STORE")
    ],
    places: Annotated[
        Positional[str], arg(help="points and polygons: .gpkg, .parquet, .geojson, .shp, .csv", metavar="PLACES")
    ],
    out: Annotated[Positional[Path], arg(help="table: .parquet (GeoParquet) or .csv", metavar="OUT")],
    how: Annotated[
        Literal["nearest", "linear", "mean", "median", "max", "share"],
        arg(help="patch of a point, or interpolation; mean, median or maximum within a polygon; share of each class"),
    ] = "nearest",
    weights: Annotated[Literal["valid", "none"], arg(help="weight of a patch beside the share covered")] = "valid",
    time: Annotated[
        str | None, TEXT, arg(help="date, month or year to sample", help_behavior_hint="(default: all)")
    ] = None,
    crs: Annotated[
        str | None, TEXT, arg(help="CRS of the places", help_behavior_hint="(default: what they state)")
    ] = None,
    layer: Annotated[
        str | None, TEXT, arg(help="layer of a file that has several", help_behavior_hint=OPTIONAL)
    ] = None,
    group: Annotated[
        str | None, TEXT, arg(help="group of a store that holds the cube", help_behavior_hint="(default: the root)")
    ] = None,
    overwrite: Annotated[bool, arg(help="replace OUT")] = False,
) -> None:
    """Write one vector per point or polygon as a table: the columns of PLACES, `time`, `valid`, `count`, `e0`, ..."""
    from deo_cube.cube.open import open_cube
    from deo_cube.heads.sample import write_table

    out = local_path(out)
    if out.exists() and not overwrite:
        raise ArgumentError(f"OUT {out} exists: name another path, or pass --overwrite")
    rows, columns = write_table(
        data if group is None else open_cube(data, group=group),
        places,
        out,
        how=how,
        weights="valid" if weights == "valid" else None,
        time=time,
        crs=crs,
        layer=layer,
    )
    print(f"{out}: {rows} rows, {columns} columns")


def change(
    first: Annotated[Positional[str], arg(help="store of embeddings, the earlier one", metavar="A")],
    second: Annotated[Positional[str], arg(help="the later store, on the same grid; or A again", metavar="B")],
    out: Annotated[Positional[Path], arg(help="map of change: .tif, or .zarr", metavar="OUT")],
    before: Annotated[
        str | None, TEXT, arg(help="time of A, or part of one: 2019, 2019-06", help_behavior_hint=OPTIONAL)
    ] = None,
    after: Annotated[str | None, TEXT, arg(help="time of B, or part of one", help_behavior_hint=OPTIONAL)] = None,
    method: Annotated[
        Literal["cosine", "calibrated", "euclidean"],
        arg(help="distance, or with calibrated the share of unchanged patches that look less changed"),
    ] = "cosine",
    overwrite: Annotated[bool, arg(help="replace OUT, whatever it is")] = False,
) -> None:
    """Map how much each patch changed between two stores, or between two times of one."""
    from deo_cube.heads.change import change as change_of
    from deo_cube.heads.vectors import select_time
    from deo_cube.store.open import opened

    stores = [opened(path, name) for path, name in ((first, "A"), (second, "B"))]
    times = [
        emb if time is None else select_time(emb, time, argument=name)
        for emb, time, name in zip(stores, (before, after), ("before", "after"), strict=True)
    ]
    changed = change_of(times[0], times[1], method=method)
    _write_maps(changed.to_dataset(name="change"), local_path(out), inputs=(first, second), overwrite=overwrite)


def change_series(
    store: Annotated[Positional[str], arg(help="store of embeddings of several dates", metavar="STORE")],
    out: Annotated[
        Positional[Path],
        arg(help="maps of date (YYYYMMDD in .tif), level, magnitude and more: .tif, or .zarr", metavar="OUT"),
    ],
    season: Annotated[
        Literal["auto", "scene", "harmonic", "none"],
        arg(help="what is not change: what places of a kind have in common, or a yearly wave of each place"),
    ] = "auto",
    false_alarms: Annotated[float, arg(help="share of stable places that may be marked, 0 to 1")] = 0.01,
    min_dates: Annotated[int, arg(help="fewest valid dates before and after a change")] = 2,
    overwrite: Annotated[bool, arg(help="replace OUT, whatever it is")] = False,
) -> None:
    """Map when each patch changed in a series, and how rarely a stable patch looks so changed."""
    from deo_cube.heads.change_series import change_series as change_series_of

    maps = change_series_of(store, season=season, false_alarms=false_alarms, min_dates=min_dates)
    _write_maps(maps, local_path(out), inputs=(store,), overwrite=overwrite)


def _write_maps(maps: Any, out: Path, *, inputs: tuple[str | Path, ...], overwrite: bool) -> None:
    """Write the variables of a Dataset as bands of a GeoTIFF, or as a Zarr store; dates as the number YYYYMMDD."""
    import numpy as np
    import rioxarray  # noqa: F401 - registers .rio
    import xarray as xr

    from deo_cube.store.report import log_computation

    tif = out.suffix.lower() in (".tif", ".tiff")
    if not overwrite:
        _check_out(out, tif=tif, inputs=inputs)
    layers = {str(n): v for n, v in maps.data_vars.items() if v.ndim == 2}
    with _log_lines(True), log_computation(next(iter(layers.values())), out):
        if tif:
            loaded = maps[list(layers)].load()
            numbers = {
                n: (v.dt.year * 10000 + v.dt.month * 100 + v.dt.day).where(v.notnull()) if v.dtype.kind == "M" else v
                for n, v in loaded.data_vars.items()
            }
            kind = "float32" if all(v.dtype.kind != "M" for v in loaded.data_vars.values()) else "float64"
            bands = xr.concat([v.astype(kind) for v in numbers.values()], "band", coords="minimal", compat="override")
            bands = bands.drop_attrs(deep=False).assign_attrs(long_name=tuple(numbers), _FillValue=np.nan)
            bands.rio.write_crs(maps.spatial_ref.attrs["crs_wkt"]).rio.to_raster(out, compress="deflate")
        else:
            maps.to_zarr(out, mode="w", zarr_format=3, consolidated=True)
    print(f"{out}: {', '.join(layers)}; {', '.join(f'{d} {n}' for d, n in maps.sizes.items())}")


def assess(
    map: Annotated[
        Positional[str], arg(help="map of classes or of a quantity: .tif, or .zarr of `segment`", metavar="MAP")
    ],
    reference: Annotated[
        Positional[str], arg(help="places with the truth: .gpkg, .geojson, .csv, .parquet, .tif", metavar="REFERENCE")
    ],
    time: Annotated[str | None, TEXT, arg(help="date of a map with several", help_behavior_hint=OPTIONAL)] = None,
    column: Annotated[
        str | None,
        TEXT,
        arg(help="column of the reference with the classes or numbers", help_behavior_hint=OPTIONAL),
    ] = None,
    layer: Annotated[str | None, TEXT, arg(help="layer of the reference", help_behavior_hint=OPTIONAL)] = None,
    crs: Annotated[
        str | None, TEXT, arg(help="CRS of the reference, as EPSG:32632", help_behavior_hint=OPTIONAL)
    ] = None,
    strata: Annotated[
        str | None,
        TEXT,
        arg(help="map of the strata of the sample", help_behavior_hint="(default: the classes of MAP)"),
    ] = None,
    training: Annotated[
        str | None,
        TEXT,
        arg(help="labels that the head was fitted on, to be warned of leaks", help_behavior_hint=OPTIONAL),
    ] = None,
    training_column: Annotated[
        str | None, TEXT, arg(help="column of the training labels", help_behavior_hint=OPTIONAL)
    ] = None,
    reach: Annotated[
        float | None,
        NUMBER,
        arg(
            help="distance to a training place that is too near, in units of the map's CRS",
            help_behavior_hint="(optional)",
        ),
    ] = None,
    head: Annotated[
        Path | None, PATH, arg(help="saved head that made the map; with --embeddings", help_behavior_hint=OPTIONAL)
    ] = None,
    embeddings: Annotated[
        str | None, TEXT, arg(help="store of embeddings, to find doubtful places", help_behavior_hint=OPTIONAL)
    ] = None,
    confidence: Annotated[float, arg(help="of the intervals, 0.5 to 0.9999")] = 0.95,
    json: Annotated[Path | None, PATH, arg(help="file for the numbers", help_behavior_hint=OPTIONAL)] = None,
    plot: Annotated[
        Path | None, PATH, arg(help="file for the figure: .png, .pdf, .svg", help_behavior_hint=OPTIONAL)
    ] = None,
) -> None:
    """Compare a map with reference places: accuracies and areas with intervals, and where to look first."""
    from deo_cube.heads.assess import assess as assess_map
    from deo_cube.heads.head import load_head

    result = assess_map(
        map,
        reference,
        time=time,
        column=column,
        layer=layer,
        crs=crs,
        strata=strata,
        training=training,
        training_column=training_column,
        reach=reach,
        head=None if head is None else load_head(head),
        embeddings=embeddings,
        confidence=confidence,
    )
    print(result)
    if len(result.look_first):
        print(f"look first:\n{result.look_first.to_string(index=False, float_format='{:.10g}'.format)}")
    if json is not None:
        result.to_json(json)
    if plot is not None:
        result.plot().savefig(plot, dpi=100)


def aggregate(
    data: Annotated[Positional[str], arg(help="store of embeddings of several dates", metavar="STORE")],
    out: Annotated[
        Positional[str],
        arg(help="Zarr store of one vector per period; resumed if the same call began it", metavar="OUT"),
    ],
    freq: Annotated[str, arg(help="year, season, quarter, month, or a frequency of pandas")] = "year",
    how: Annotated[
        Literal["mean", "median", "medoid", "trimmed"],
        arg(help="mean weighted by validity, or a statistic that leaves out what the cloud mask missed"),
    ] = "mean",
    *,
    store: OmitArgPrefixes[_StoreFlags],
) -> None:
    """Join the dates of each year, season or month of a store to one vector per patch, as a store of its own."""
    from deo_cube.heads.aggregate import aggregate as aggregate_store

    _write(lambda: aggregate_store(data, freq, how=how), out, store)


def similar(
    store: Annotated[Positional[str], arg(help="store of embeddings", metavar="STORE")],
    x: Annotated[Positional[float], arg(help="x of the example, in the CRS of STORE or --crs", metavar="X")],
    y: Annotated[Positional[float], arg(help="y of the example, likewise", metavar="Y")],
    out: Annotated[Positional[Path], arg(help="map of similarity: .tif, or .zarr", metavar="OUT")],
    negatives: Annotated[
        tuple[str, ...],
        arg(help="counter-examples: x,y, or a file", metavar="[X,Y|FILE ...]", help_behavior_hint=OPTIONAL),
    ] = (),
    metric: Annotated[Literal["cosine", "euclidean"], arg(help="similarity, or distance")] = "cosine",
    time: Annotated[
        str | None, TEXT, arg(help="date of the map and the examples", help_behavior_hint="(default: all)")
    ] = None,
    crs: Annotated[
        str | None, TEXT, arg(help="CRS of the examples, as EPSG:4326", help_behavior_hint="(default: the store's)")
    ] = None,
    overwrite: Annotated[bool, arg(help="replace OUT")] = False,
) -> None:
    """Map how similar every patch of a store is to an example."""
    from deo_cube.heads.similar import of_texts
    from deo_cube.heads.similar import similar as similar_map
    from deo_cube.heads.vectors import as_embeddings, select_time
    from deo_cube.store.export import to_cog
    from deo_cube.store.open import open_embeddings

    out = local_path(out)
    if out.suffix.lower() not in (".tif", ".tiff", ".zarr", ""):
        raise ArgumentError(f"OUT is a map, .tif or .zarr; got {out}")
    if out.exists() and not overwrite:
        raise ArgumentError(f"OUT {out} exists: name another path, or pass --overwrite")
    emb = as_embeddings(open_embeddings(store))
    emb = emb if time is None else select_time(emb, time)
    found = similar_map(emb, (x, y), negatives=of_texts(negatives, "negatives"), metric=metric, crs=crs)
    if out.suffix.lower() in (".tif", ".tiff"):
        to_cog(found, out)
    else:
        found.to_dataset(name=found.name).to_zarr(out, mode="w", zarr_format=3, consolidated=True)
    print(f"{out}: {', '.join(f'{d} {n}' for d, n in found.sizes.items())}")


def index(
    store: Annotated[Positional[str], arg(help="store of embeddings", metavar="STORE")],
    out: Annotated[Positional[str], arg(help="search index, a folder or URL; extended if it exists", metavar="INDEX")],
    min_valid: Annotated[float, arg(help="leave out patches with no more than this valid fraction, 0 to 1")] = 0.0,
    lists: Annotated[
        int | None, INTEGER, arg(help="inverted lists", help_behavior_hint="(default: by the number of patches)")
    ] = None,
    overwrite: Annotated[bool, arg(help="replace the index")] = False,
    progress: Annotated[bool, arg(help="show the progress bar")] = True,
) -> None:
    """Build an index of a store for `search`, or add what is new in the store, or another store."""
    from deo_cube.heads.index import build_index

    print(build_index(store, out, min_valid=min_valid, lists=lists, overwrite=overwrite, progress=progress))


def search(
    index: Annotated[Positional[str], arg(help="search index, which `index` wrote", metavar="INDEX")],
    positives: Annotated[
        Positional[tuple[str, ...]],
        arg(
            help="examples: x,y, or a file with points or polygons", metavar="X,Y|FILE", help_behavior_hint="(required)"
        ),
    ],
    negatives: Annotated[
        tuple[str, ...],
        arg(help="counter-examples, as the examples", metavar="[X,Y|FILE ...]", help_behavior_hint=OPTIONAL),
    ] = (),
    k: Annotated[int, arg(help="number of results")] = 10,
    bbox: Annotated[
        tuple[float, float, float, float] | None,
        BBOX,
        arg(
            help="only patches with centres in x0 y0 x1 y1, in the CRS of INDEX or --crs",
            help_behavior_hint="(optional)",
        ),
    ] = None,
    time: Annotated[
        str | None,
        TEXT,
        arg(help="only patches of this date, month or year, as 2024-06", help_behavior_hint="(default: all)"),
    ] = None,
    at: Annotated[
        str | None, TEXT, arg(help="date at which the examples are read", help_behavior_hint="(default: all)")
    ] = None,
    crs: Annotated[
        str | None,
        TEXT,
        arg(help="CRS of x,y and --bbox, as EPSG:4326", help_behavior_hint="(default: the index's)"),
    ] = None,
    probes: Annotated[
        int | None, INTEGER, arg(help="inverted lists to compare with", help_behavior_hint="(default: 24)")
    ] = None,
    store: Annotated[
        str | None,
        TEXT,
        arg(help="store of embeddings, if it has moved", help_behavior_hint="(default: where the index was built)"),
    ] = None,
    out: Annotated[
        Path | None,
        PATH,
        arg(help="write results there: .parquet, .geojson, .gpkg, ...", help_behavior_hint=OPTIONAL),
    ] = None,
) -> None:
    """Find the patches of an index that are similar to examples, and print or write them."""
    from deo_cube.heads.index import open_index
    from deo_cube.heads.similar import of_texts, write_results

    opened = open_index(index, store=store)
    if not positives:
        raise ArgumentError("positives must be points x,y, or a file with places, got none")
    found = opened.search(
        of_texts(positives, "positives"),
        of_texts(negatives, "negatives"),
        k=k,
        bbox=bbox,
        time=time,
        at=at,
        crs=crs,
        probes=probes,
    )
    if out is not None:
        write_results(found, local_path(out))
        print(f"{out}: {len(found)} patches")
        return
    if not len(found):
        print(f"{index}: no further patch" + (" within --bbox and --time" if bbox or time else ""))
        return
    edges = found.bounds  # not the centroid, which warns of degrees
    centres = {"x": (edges.minx + edges.maxx) / 2, "y": (edges.miny + edges.maxy) / 2}
    print(found.drop(columns="geometry").assign(**centres).to_string(index=False))


def mosaic(
    stores: Annotated[
        Positional[tuple[str, ...]],
        arg(
            help="stores of embeddings, and last the Zarr store of the whole",
            metavar="STORE STORE ... OUT",
            help_behavior_hint="(required)",
        ),
    ],
    overwrite: Annotated[bool, arg(help="replace OUT")] = False,
    progress: Annotated[bool, arg(help="show the progress bar")] = True,
) -> None:
    """Join stores of overlapping runs without the tiles along each one's own edges."""
    from deo_cube.store.mosaic import mosaic as join
    from deo_cube.store.write import to_zarr

    *parts, out = stores or ("",)
    if not parts:
        raise ArgumentError(f"mosaic needs stores and OUT, got {len(stores)} path(s): deo-cube mosaic A B OUT")
    with _log_lines(progress):
        stored = to_zarr(join(parts), out, overwrite=overwrite, progress=progress)
    print(f"{out}: {', '.join(f'{d} {n}' for d, n in stored.sizes.items())}, {stored.dtype}")


def evaluate(
    model: Annotated[Positional[str], arg(help="name of a model, or folder of a training run", metavar="MODEL")],
    data: Annotated[Positional[Path], arg(help="folder that holds the labelled data sets", metavar="DATA")],
    tasks: Annotated[
        tuple[str, ...],
        arg(help="tasks to run", metavar="[STR ...]", help_behavior_hint="(default: all with data in the folder)"),
    ] = (),
    out: Annotated[
        Path | None,
        PATH,
        arg(help="JSON file for the scores, written after each task", help_behavior_hint=OPTIONAL),
    ] = None,
    quick: Annotated[bool, arg(help="fewer chips and seeds, as a check that it runs")] = False,
) -> None:
    """Score a model and baselines on labelled data, and print the table."""
    from deo_cube.evaluate.report import evaluate as evaluate_model

    print(evaluate_model(model, data, tasks=tasks or None, quick=quick, progress=True, out=out))


def bench(
    model: Annotated[
        Positional[str], arg(help="name of a model, or folder of a training run", metavar="MODEL")
    ] = "tiny",
    size: Annotated[int, arg(help="side of the synthetic cube, pixels")] = 2048,
    rounds: Annotated[int, arg(help="measured rounds, after one to warm up")] = 3,
    device: Annotated[
        str | None, TEXT, arg(help="cpu, cuda, cuda:1, mps", help_behavior_hint="(default: the best available)")
    ] = None,
    precision: Annotated[str, one_of(PRECISIONS), arg(help="of the network's matrix products")] = "float32",
    runtime: Annotated[str, one_of(RUNTIMES), arg(help="library that runs the network")] = "torch",
    json: Annotated[bool, arg(help="print JSON instead of text")] = False,
) -> None:
    """Measure a model's speed on this machine: the encoder alone, and from Zarr to Zarr."""
    from deo_cube.bench import bench as run

    found = run(model, size=size, rounds=rounds, device=device, precision=precision, runtime=runtime, progress=True)
    print(found.to_json() if json else found)


def publish(
    store: Annotated[Positional[Path], arg(help="store of embeddings, a folder", metavar="STORE")],
    model: Annotated[
        str | None,
        TEXT,
        arg(help="folder of the training run, where its name is not known", help_behavior_hint=OPTIONAL),
    ] = None,
    license: Annotated[str, arg(help="of the embeddings: SPDX identifier, or other")] = "other",
) -> None:
    """Write a store's STAC Item and Collection, and its model's MLM Item, beside it."""
    from deo_cube.store.stac import publish as publish_store

    for path in publish_store(store, model=model, license=license):
        print(path)


def doctor(
    json: Annotated[bool, arg(help="print JSON instead of text")] = False,
) -> int:
    """Check versions, devices, caches and the hub, embed a small scene, and name the fix of each problem."""
    from deo_cube.doctor import examine

    found = examine()
    print(found.to_json() if json else found)
    return 0 if found.healthy else 1


def view(
    store: Annotated[Positional[str], arg(help="store of embeddings", metavar="STORE")],
    cube: Annotated[
        str | None,
        TEXT,
        arg(help="cube that was embedded, for true colour: .zarr, .nc, .tif, or .json", help_behavior_hint=OPTIONAL),
    ] = None,
    head: Annotated[tuple[Path, ...], arg(help="saved heads to show as layers", help_behavior_hint=OPTIONAL)] = (),
    host: Annotated[str, arg(help="address to listen on; 0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[int, arg(help="port; 0 takes a free one")] = 0,
    browser: Annotated[bool, arg(help="open the page in the browser")] = True,
    hostnames: Annotated[
        tuple[str, ...], arg(help="further names of this machine that browsers may use", help_behavior_hint=OPTIONAL)
    ] = (),
    index: Annotated[
        str | None,
        TEXT,
        arg(help="search index of the same model: results are found in it", help_behavior_hint=OPTIONAL),
    ] = None,
    reference: Annotated[
        str | None,
        TEXT,
        arg(help="reference places, for the assessment of a map of classes", help_behavior_hint=OPTIONAL),
    ] = None,
) -> None:
    """Show a store on a map in the browser: similar places, labels, classes. Serves this machine only."""
    from deo_cube.viewer.explore import serve

    serve(
        store,
        cube=cube,
        heads=head,
        host=host,
        port=port,
        browser=browser,
        hostnames=hostnames,
        index=index,
        reference=reference,
    )


def completion(
    shell: Annotated[Positional[Literal["bash", "zsh"]], arg(help="shell to write for", metavar="{bash,zsh}")],
) -> None:
    """Print the completion of this program for a shell: commands, flags, files and names of models."""
    from deo_cube.cli_arguments import completion_script

    print(completion_script(shell, COMMANDS))


Store = Annotated[Positional[str], arg(help="store of embeddings", metavar="STORE")]
Time = Annotated[
    str | None,
    TEXT,
    arg(
        help="date to write, as 2024-06-05; of several vectors in 2024-06 the mean",
        help_behavior_hint="(default: the only one)",
    ),
]
Overwrite = Annotated[bool, arg(help="replace OUT")]


def info(
    x: Annotated[
        Positional[str],
        arg(help="store, cube, map, head, table of vectors, STAC file, or the name of a model", metavar="X"),
    ],
    group: Annotated[str | None, TEXT, arg(help="group of a Zarr or netCDF cube", help_behavior_hint=OPTIONAL)] = None,
) -> None:
    """Describe what X is: shape, dates, model, progress, classes. Reads no pixel."""
    from deo_cube.facts import info as describe

    print(describe(x, group=group))


def pca(
    store: Store,
    out: Annotated[Positional[Path], arg(help="picture: a GeoTIFF of three bands", metavar="OUT.tif")],
    time: Time = None,
    basis: Annotated[
        str | None, TEXT, arg(help="file of a basis (.json)", help_behavior_hint="(default: the model's own)")
    ] = None,
    floats: Annotated[bool, arg(help="write floats from 0 to 1 instead of 8 bits")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write the colours of embeddings, their principal components, as a Cloud-Optimized GeoTIFF."""
    from deo_cube.heads.pca import pca_rgb
    from deo_cube.heads.vectors import select_time
    from deo_cube.store.export import to_cog
    from deo_cube.store.open import open_embeddings

    _check(out, store, overwrite, (".tif", ".tiff"))
    emb = open_embeddings(store)
    emb = _one_date(emb) if time is None else select_time(emb, time)
    _print_written(to_cog(pca_rgb(emb, basis=basis), out, dtype=None if floats else "uint8"))


def export(
    store: Annotated[Positional[str], arg(help="store of embeddings, or of a map (.zarr)", metavar="STORE")],
    out: Annotated[
        Positional[Path],
        arg(help="GeoTIFF of all vectors, or table with one row per patch", metavar="OUT.tif|.parquet"),
    ],
    time: Time = None,
    pool: Annotated[int, INTEGER, arg(help="of a table: patches along a side that are pooled to one vector")] = 1,
    geometry: Annotated[Literal["point", "polygon"], arg(help="of a table: centre or outline of each patch")] = "point",
    min_valid: Annotated[float, arg(help="of a table: leave out patches with at most this valid share, 0 to 1")] = 0.0,
    compress: Annotated[str, arg(help="of a GeoTIFF: deflate, zstd, lzw, ...")] = "deflate",
    overwrite: Overwrite = False,
) -> None:
    """Write a store as a Cloud-Optimized GeoTIFF or as GeoParquet, by the ending of OUT."""
    from deo_cube.heads.vectors import select_time
    from deo_cube.store.export import to_cog, to_geoparquet
    from deo_cube.store.open import is_embeddings, open_embeddings

    _check(out, store, overwrite, (".tif", ".tiff", ".parquet"))
    if not is_embeddings(store) and (classes := _class_map(store)) is not None:
        if local_path(out).suffix.lower() == ".parquet":
            raise ArgumentError(f"a table holds vectors, and {store} is a map of classes: name OUT .tif")
        chosen = _one_date(classes) if time is None else classes.sel(time=time)
        _print_written(to_cog(chosen, out, compress=compress))
        return
    emb = open_embeddings(store)
    emb = emb if time is None else select_time(emb, time)
    if local_path(out).suffix.lower() != ".parquet":
        emb = _one_date(emb)
    if local_path(out).suffix.lower() == ".parquet":
        _print_written(to_geoparquet(emb, out, pool=pool, geometry=geometry, min_valid=min_valid))
    else:
        _print_written(to_cog(emb, out, compress=compress))


def overviews(
    store: Annotated[Positional[str], arg(help="store of embeddings, complete", metavar="STORE")],
    levels: Annotated[
        int | None,
        INTEGER,
        arg(
            help="reduced resolutions, each half of the one before", help_behavior_hint="(default: down to 256 patches)"
        ),
    ] = None,
    vectors: Annotated[bool, arg(help="write mean vectors")] = True,
    colors: Annotated[bool, arg(help="write the colours of pca in 8 bits, at every resolution")] = True,
    basis: Annotated[
        str | None, TEXT, arg(help="file of a basis (.json)", help_behavior_hint="(default: the model's own)")
    ] = None,
    progress: Annotated[bool, arg(help="show the progress bar")] = True,
) -> None:
    """Write reduced resolutions into a store, so that GDAL, QGIS and titiler show it zoomed out."""
    from deo_cube.heads.overviews import add_overviews

    print(add_overviews(store, levels=levels, vectors=vectors, colors=colors, basis=basis, progress=progress))


def page(
    store: Store,
    out: Annotated[Positional[Path], arg(help="folder of the page", metavar="OUT")],
    time: Annotated[
        str | None, TEXT, arg(help="date to show, as 2024-06-05 or 2024-06", help_behavior_hint="(default: all)")
    ] = None,
    labels: Annotated[
        str | None,
        TEXT,
        arg(help="labelled places, or a map of classes, for the search by label", help_behavior_hint=OPTIONAL),
    ] = None,
    coarsen: Annotated[int, INTEGER, arg(help="patches along a side that are averaged to one")] = 1,
    dims: Annotated[int, INTEGER, arg(help="numbers per patch; fewer are smaller and less exact")] = 64,
    title: Annotated[str | None, TEXT, arg(help="heading", help_behavior_hint="(default: the model)")] = None,
    max_bytes: Annotated[int, INTEGER, arg(help="largest size of the vectors of all dates, bytes")] = 96 * 2**20,
    overwrite: Annotated[bool, arg(help="replace the page that is there")] = False,
    progress: Annotated[bool, arg(help="show the progress bar")] = True,
) -> None:
    """Write a static web page of a store: colours, similarity and search by label, without a server."""
    from deo_cube.viewer.page import page as write_page

    marked = None if labels is None else _class_map(labels)
    written = write_page(
        store,
        out,
        time=time,
        labels=labels if marked is None else marked,
        coarsen=coarsen,
        dims=dims,
        title=title,
        max_bytes=max_bytes,
        overwrite=overwrite,
        progress=progress,
    )
    print(written)


def _class_map(path: str) -> Any:
    from deo_cube.facts import class_map

    return class_map(path)


def _one_date(array: Any) -> Any:
    """Return an array of one date; a file of rows, columns and bands has no dates."""
    if array.sizes.get("time", 1) > 1:
        dates = [str(label)[:10] for label in array["time"].values]
        shown = ", ".join(dates[:4]) + (", ..." if len(dates) > 4 else "")
        raise ArgumentError(f"a GeoTIFF holds one date, the store has {len(dates)} ({shown}): pass time={dates[0]}")
    return array


def _check(out: Path, source: str, overwrite: bool, endings: tuple[str, ...]) -> None:
    """Refuse an ending that does not say the format, and to replace what is there without `overwrite`."""
    out = local_path(out)
    if out.suffix.lower() not in endings:
        raise ArgumentError(f"OUT must end with {' or '.join(endings)}, which decides the format; got {out}")
    if out.exists() and Path(source).exists() and out.samefile(source):
        raise ArgumentError(f"OUT {out} is the input of this command: name another path")
    if out.exists() and not overwrite:
        raise ArgumentError(f"OUT {out} exists: name another path, or pass --overwrite")


def _print_written(path: Path) -> None:
    size = path.stat().st_size
    print(f"{path}: {size / 2**20:.1f} MiB" if size >= 2**20 else f"{path}: {size / 2**10:.0f} KiB")


#: Commands of this module by name.


def _check_out(out: Path, *, tif: bool, inputs: tuple[str | Path, ...]) -> None:
    """Refuse to replace what is not a class map: writing deletes what was there."""
    if out.exists() and any(Path(i).exists() and out.samefile(i) for i in inputs):
        raise ArgumentError(f"OUT {out} is an input of this command, and would be deleted: name another path")
    if not tif and out.suffix.lower() != ".zarr":
        raise ArgumentError(f"OUT is a map, .tif or .zarr; got {out}")
    ours = any((out / name / "zarr.json").exists() for name in ("class", "probability", "value", "change", "magnitude"))
    if out.is_dir() and (tif or (any(out.iterdir()) and not ours)):
        raise ArgumentError(f"{out} is there and is not a map: name another path, or pass --overwrite")


class _Flags(logging.Formatter):
    """Log lines as messages of the command line, which name flags."""

    def format(self, record: logging.LogRecord) -> str:
        return f"deo-cube: {cli_errors.in_flags(record.getMessage(), _spelling('embed').flags)}"


@contextmanager
def _log_lines(progress: bool) -> Iterator[None]:
    """Print what the package logs to standard error: with `progress` the first and last line of a job, too."""
    log, handler = logging.getLogger("deo_cube"), logging.StreamHandler(sys.stderr)
    before = log.level, log.propagate
    handler.setFormatter(_Flags())
    log.addHandler(handler)
    log.setLevel(logging.INFO if progress else logging.WARNING)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


@contextmanager
def _cluster(scheduler: str | None) -> Iterator[str | None]:
    from deo_cube.store.scheduler import connect, is_address

    if scheduler is None or not is_address(scheduler):
        yield scheduler
        return
    with connect(scheduler) as client, client.as_current():
        yield "distributed"


def _spelling(command: str) -> cli_arguments.Spelling:
    """Return how the shell spells the arguments of a command; nothing for a word that is not one."""
    verb = COMMANDS.get(command)
    return cli_arguments.Spelling() if verb is None else cli_arguments.spelling_of(command, verb)


#: Every command by its name; logic lives in the modules that they call.
COMMANDS: dict[str, Any] = {
    verb.__name__.replace("_", "-"): verb
    for verb in (
        demo,
        embed,
        embed_series,
        plan,
        models,
        verify,
        segment,
        sample,
        aggregate,
        change,
        change_series,
        assess,
        similar,
        index,
        search,
        mosaic,
        evaluate,
        bench,
        publish,
        doctor,
        view,
        completion,
        info,
        pca,
        export,
        overviews,
        page,
    )
}


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    args = sys.argv[1:] if args is None else args
    if args == ["--version"]:
        from deo_cube import __version__

        print(f"deo-cube {__version__}")
        raise SystemExit(0)
    if not args or args in (["-h"], ["--help"], ["help"]):
        print(cli_arguments.overview(COMMANDS, __doc__ or ""), file=sys.stdout if args else sys.stderr)
        raise SystemExit(0 if args else 2)
    if args[0].startswith("--tyro-"):  # of the completion
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="deo-cube", description=__doc__, args=args)
    spelling = _spelling(args[0])
    if os.environ.get("NO_COLOR"):
        os.environ["TERM"] = "dumb"  # tyro asks only this variable
    try:
        # The process is the command's own.
        with (
            commands_as_remedies(),
            cli_errors.warnings_as_lines(spelling.flags, spelling.positions),
            set_options(cpu_tuning=True),
        ):
            cli_arguments.check_command(args, COMMANDS)
            verb = COMMANDS[args[0]]
            described = cli_arguments.description(args[0], verb)
            status = cli_arguments.parse(verb, args[1:], spelling, description=described)()
    except BrokenPipeError:
        # The reader of a pipe (head, less) has ended, and what Python flushes at its end cannot be written either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        resumed = "; blocks that are done are safe, the same call resumes" if args[:1] == ["embed"] else ""
        print(f"deo-cube: interrupted{resumed}", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        raise SystemExit(cli_errors.fail(error, spelling.flags, spelling.positions)) from error
    raise SystemExit(status or 0)
