"""Commands that describe what is at a path, and that write stores to files that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from deo_cube.errors import ArgumentError
from deo_cube.flags import INTEGER, OPTIONAL, TEXT
from deo_cube.paths import local_path

__all__ = ["COMMANDS"]

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
COMMANDS = {verb.__name__: verb for verb in (info, pca, export, overviews, page)}
