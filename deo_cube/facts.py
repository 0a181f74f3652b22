"""Describe whatever is at a path (`info`): a store, a cube, a map, a head, a model or a table."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from deo_cube.constants import Attribute
from deo_cube.cube.categories import Categories, read_categories
from deo_cube.embedding.match import Summary, describe_facts, summarise_map
from deo_cube.errors import ArgumentError, ArgumentTypeError, DeoCubeError, naming
from deo_cube.extras import require
from deo_cube.heads.index import MANIFEST
from deo_cube.paths import is_url, local_path, not_found, reading

__all__ = ["class_map", "info"]


def info(x: Any, *, group: str | None = None, storage_options: Mapping[str, Any] | None = None) -> Summary:
    """Describe a store, cube, map, head, model, table or STAC file; reads metadata, no pixel.

    Parameters
    ----------
    x : path, URL, name of a model, or xarray object
        A store of embeddings, a cube (.zarr, .nc, .tif, .json of STAC items), a map of classes (.zarr, .tif), a saved
        head (.safetensors), a table of vectors (.parquet), a folder of a training run, or the name of a model.
    group : str, optional
        Group of a Zarr or netCDF cube.
    storage_options : mapping, optional
        Of the object store, where `x` is a URL.

    Returns
    -------
    Summary
        `facts`, names with values: shape, dates, model, progress, classes. It prints itself, also in notebooks.

    Raises
    ------
    InputNotFoundError
        If there is neither a file nor a model of that name.
    ArgumentTypeError
        For anything else.

    Examples
    --------
    >>> import deo_cube
    >>> dict(deo_cube.info("tiny").facts)["name"].startswith("deo")
    True
    """
    if isinstance(x, xr.Dataset | xr.DataArray | xr.DataTree):
        return describe_facts(x)
    if not isinstance(x, str | os.PathLike):
        raise ArgumentTypeError(f"x must be a path, the name of a model, or an xarray object; got {type(x).__name__}")
    text = str(x)
    if not text:
        raise ArgumentError("x must be a path, the name of a model, or an xarray object; got an empty text")
    if is_url(text):
        return _at(text, group, storage_options)
    path = local_path(text)
    if not path.exists() or (path / "card.json").is_file():
        return _model(text, path)
    return _at(str(path), group, storage_options)


def _at(path: str, group: str | None, storage_options: Mapping[str, Any] | None) -> Summary:
    from deo_cube.store.open import is_embeddings

    ending = path.rstrip("/").rpartition(".")[2].lower()
    if ending == "safetensors":
        return _head(path)
    if ending == "parquet":
        return _table(path)
    if ending in ("tif", "tiff"):
        return _tiff(path)
    if group is None and ending not in ("nc", "json") and is_embeddings(path, storage_options=storage_options):
        return _store(path, storage_options)
    if not is_url(path) and _is_index(local_path(path) / MANIFEST):
        return _index(path)
    if ending == "json" and (stac := _stac(path)) is not None:
        return stac
    if (classes := class_map(path)) is not None:
        return summarise_map(classes)
    from deo_cube.cube.open import open_cube

    with naming("x"):
        return describe_facts(open_cube(path, **({} if group is None else {"group": group})))


def _model(name: str, path: Path) -> Summary:
    from deo_cube.encoder.registry import card, list_models

    try:
        found = card(name)
    except DeoCubeError as error:
        if path.exists():
            raise
        known = ", ".join(list_models()["alias"])
        raise not_found("x", name, f"a file, or the name of a model: {known}") from error
    return Summary(tuple(found.facts()), title=f"deo_cube model {found.alias}")


def _store(path: str, storage_options: Mapping[str, Any] | None) -> Summary:
    from deo_cube.heads.overviews import overviews_of
    from deo_cube.store.open import open_embeddings, status

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is not complete")  # which the line on progress says
        emb = open_embeddings(path, storage_options=storage_options)
    now = status(path, storage_options=storage_options)
    own = describe_facts(emb)
    progress = "complete" if now.complete else "the call that began it resumes it"
    facts = [*own.facts, ("blocks", f"{now.done} of {now.blocks} done, {progress}")]
    if (views := overviews_of(path, storage_options=storage_options)) is not None:
        facts.append(("overviews", repr(views).strip("<>").removeprefix("Overviews at ")))
    if now.derived:
        facts.append(("derived", now.derived))
    written = emb.attrs.get(Attribute.VERSION)
    facts += [("version", f"deo_cube {written}")] if written else []
    return Summary(tuple(facts), title="deo_cube store of embeddings")


def _head(path: str) -> Summary:
    from deo_cube.heads.head import load_head

    with naming("x", "head"):
        head = load_head(path)
    classes = head.classes
    if not classes.codes:
        what = [(k, str(getattr(head, k))) for k in ("quantity", "units") if getattr(head, k, "")]
        facts = [("kind", head.kind), ("model", str(head.model)), *what]
        facts += [(k, str(v)) for k, v in head.report.items()]
        return Summary(tuple(facts), title=f"deo_cube {head.kind} head")
    cells = head.report.get("cells", {})
    named = (
        f"{c} {n}" + (f" ({cells[n]} cells)" if n in cells else "")
        for c, n in zip(classes.codes, classes.names, strict=True)
    )
    facts = [("kind", head.kind), ("model", str(head.model)), ("classes", "\n".join(named))]
    facts += [(k, str(v)) for k, v in head.report.items() if k != "cells"]
    colored = Categories(classes.codes, classes.names, classes.colors)
    return Summary(tuple(facts), title=f"deo_cube {head.kind} head", classes=colored)


def _is_index(manifest: Path) -> bool:
    """Return whether a file is the manifest of an index; other folders may hold a file of that name."""
    try:
        document = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and "sources" in document and "segments" in document


def _index(path: str) -> Summary:
    from deo_cube.heads.index import open_index

    index = open_index(path)
    facts = [("patches", f"{len(index):,}"), ("dates", ", ".join(map(str, index.times))[:200]), ("CRS", str(index.crs))]
    return Summary((*facts, ("index", repr(index).strip("<>"))), title="deo_cube index of patches")


def class_map(path: str) -> xr.DataArray | None:
    """Return the map in a store that `segment` wrote; None for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolidated metadata")
            ds = xr.open_zarr(path, decode_coords="all", mask_and_scale=False)
        array = ds["class"] if "class" in ds.data_vars else None
    except Exception:
        return None  # not Zarr, or not readable as a map: the reader of cubes says why
    return array if array is not None and read_categories(array) is not None else None


def _tiff(path: str) -> Summary:
    import rasterio

    from deo_cube.cube.open import open_cube

    with reading("x", path, "a raster"), rasterio.open(path) as file:
        tags, bands, dtype = file.tags(), file.count, file.dtypes[0]
        flags = {k: tags[k] for k in ("flag_meanings", "flag_colors") if k in tags}
        names = [d for d in file.descriptions if d]
        place = [("size", f"{bands} bands of {file.height} x {file.width}; {dtype}"), ("CRS", str(file.crs))]
        place += [("pixel", f"{file.res[0]:g} x {file.res[1]:g} in units of the CRS")]
        place += [("overviews", ", ".join(f"1:{n}" for n in file.overviews(1)))] if file.overviews(1) else []
    place += [("date", tags["time"])] if "time" in tags else []
    model = tags.get(Attribute.MODEL_ALIAS.replace(":", "_")) or tags.get(Attribute.MODEL.replace(":", "_"))
    if "flag_values" in tags:
        classes = read_categories({"flag_values": json.loads(tags["flag_values"])} | flags)
        if classes is not None:
            named = "\n".join(f"{c} {n}" for c, n in zip(classes.codes, classes.names, strict=True))
            return Summary((*place, ("classes", named)), title="GeoTIFF of classes", classes=classes)
    if model:
        shown = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
        return Summary((*place, ("model", model), ("bands", shown)), title="GeoTIFF of embeddings or of a map of them")
    return describe_facts(open_cube(path))


def _table(path: str) -> Summary:
    pq = require("pyarrow.parquet", extra="vector", purpose="Reading GeoParquet")
    with reading("x", path, "a Parquet table"):
        file = pq.ParquetFile(path)
    stored = file.schema_arrow.metadata or {}
    facts = [
        ("rows", f"{file.metadata.num_rows:,}"),
        ("columns", "\n".join(f"{f.name}: {f.type}" for f in file.schema_arrow)),
    ]
    ours = json.loads(stored.get(b"deo_cube", b"{}"))
    facts += [(k, str(ours[k])) for k in ("model", "derived") if k in ours]
    return Summary(tuple(facts), title="table of vectors" if ours else "table (Parquet)")


def _stac(path: str) -> Summary | None:
    """Return what a STAC Collection or an Item of a store says; None for items of scenes, which are a cube."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict) or document.get("type") not in ("Feature", "Collection"):
        return None
    properties = document.get("properties", {})
    ours = any(str(k).startswith(("deo_cube", "mlm:", "geoemb")) for k in properties)
    if document["type"] == "Feature" and not ours:
        return None
    facts = [("id", str(document.get("id"))), ("description", str(document.get("description", "")))]
    facts += [(str(k), str(v)[:200]) for k, v in properties.items()]
    return Summary(tuple(f for f in facts if f[1]), title=f"STAC {'Item' if properties else 'Collection'}")
