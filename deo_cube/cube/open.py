"""Open a cube from a path, a URL or a store: Zarr, netCDF and HDF5, rasters of GDAL, SAFE products, STAC items."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.storage import ZipStore

from deo_cube import arguments
from deo_cube.cube import esa, files
from deo_cube.cube.esa import is_safe, items_of_safe
from deo_cube.cube.files import RASTERS
from deo_cube.cube.georeference import is_cube
from deo_cube.cube.hrefs import Origin, check_href, read_allow
from deo_cube.cube.sentinel2 import other_sensor
from deo_cube.cube.stac import load_cube
from deo_cube.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeoCubeError,
    InputNotFoundError,
    MissingExtraError,
    StorageError,
    remedy,
)
from deo_cube.paths import answering, expand, is_url, not_found, unreadable

__all__ = [
    "OBJECT_CODECS",
    "check_codecs",
    "check_store",
    "is_parquet",
    "is_references",
    "open_references",
    "open_cube",
]

# --- codecs ---
#
# A store names the codecs that decode it. One of them unpickles, which runs code from the store, and does so when a
# coordinate is opened; others build arbitrary objects. They are refused from the metadata, before a chunk is decoded.

#: Errors that zarr raises for an unknown codec or data type.
UNREADABLE = (ValueError, KeyError, TypeError, RuntimeError)
#: Codecs that decode to Python objects.
OBJECT_CODECS = frozenset({"json", "json2", "msgpack", "msgpack2", "pickle"})


def check_store(
    store: Any, *, path: str = "", storage_options: Mapping[str, Any] | None = None, zarr_format: Any = None
) -> None:
    """Refuse a Zarr store whose arrays are decoded to Python objects, or by codecs that are not installed.

    Parameters
    ----------
    store : path, URL or zarr store
        Only its group `path` is checked. A path without a group is left to the reader.
    path : str
        Group in the store.
    storage_options, zarr_format
        As of `zarr.open_group`.

    Raises
    ------
    StorageError
        See `check_codecs`.
    """
    options = None if storage_options is None else dict(storage_options)
    try:
        group = zarr.open_group(store, mode="r", path=path, storage_options=options, zarr_format=zarr_format)
    except FileNotFoundError:  # reported by the reader
        return
    except UNREADABLE as error:  # consolidated metadata are decoded immediately
        raise _unreadable(store, error) from error
    check_codecs(group)


def check_codecs(group: zarr.Group) -> None:
    """Refuse a group with an array that is decoded to Python objects, or by a codec that is not installed.

    Raises
    ------
    StorageError
        With the array and the codec.
    """
    try:
        arrays = list(group.arrays())
    except UNREADABLE as error:
        raise _unreadable(group.store_path, error) from error
    for name, array in arrays:
        names = {n.removeprefix("numcodecs.") for n in _codec_names(array.metadata)}
        if bad := sorted(names & OBJECT_CODECS):
            raise StorageError(
                f"array {name!r} of {group.store_path} is decoded by {bad}, which makes Python objects of its bytes "
                "and may run code from the store; expected numbers or text. If you trust its writer, open it with "
                "xarray.open_zarr and pass the dataset (the errors of zarr and numcodecs name the settings that allow "
                "unpickling)"
            )


def _unreadable(store: Any, error: Exception) -> StorageError:
    return StorageError(
        f"{store} holds an array that cannot be decoded here: {type(error).__name__}: {error}. Install the package "
        "that has its codec, or write the store with the codecs of Zarr (blosc, zstd, gzip)"
    )


def _codec_names(metadata: Any) -> Iterator[str]:
    if metadata.zarr_format == 2:
        for codec in (*(metadata.filters or ()), metadata.compressor):
            if codec is not None:
                yield str(codec.codec_id)
    else:
        for codec in metadata.codecs:
            yield from _names_of_codec(codec.to_dict())


def _names_of_codec(codec: Any) -> Iterator[str]:
    """Yield the name of a Zarr 3 codec, and of the codecs inside it (shards have their own for chunks and index)."""
    if isinstance(codec, str):
        yield codec
    elif isinstance(codec, Mapping):
        yield str(codec.get("name", ""))
        configuration = codec.get("configuration") or {}
        for inner in (*configuration.get("codecs", ()), *configuration.get("index_codecs", ())):
            yield from _names_of_codec(inner)


# --- references of kerchunk and VirtualiZarr ---
#
# A reference names files for this machine to read, as an item's href does, and follows the same rules. Templates that
# are programs are refused.


_ZARR_KEYS = (".zgroup", ".zmetadata", "zarr.json", ".zattrs")


def is_parquet(text: str) -> bool:
    """Return whether a folder holds references as Parquet."""
    folder = Path(text)
    return folder.is_dir() and (folder / ".zmetadata").exists() and not (folder / ".zgroup").exists()


def is_references(text: str, largest: int) -> bool:
    """Return whether a JSON file of at most `largest` bytes holds references."""
    path = Path(text)
    if path.stat().st_size > largest:
        return False
    written = path.read_text(encoding="utf-8", errors="replace")
    if '"refs"' not in written and not any(f'"{key}"' in written for key in _ZARR_KEYS):
        return False
    try:
        document = json.loads(written)
    except ValueError:
        return False
    return isinstance(document, Mapping) and ("refs" in document or bool(set(_ZARR_KEYS) & document.keys()))


def open_references(text: str, allow: Sequence[str] = ()) -> Any:
    """Open references as a read-only Zarr store.

    Raises
    ------
    ArgumentError
        For references that a program generates (`gen`), and for empty ones.
    HrefRefusedError
        For files inside this network that `allow` does not name.
    MissingExtraError
        For Parquet, if its reader is not installed.
    """
    import fsspec

    path = Path(text)
    source: Any = str(path)
    options: dict[str, Any] = {}
    if path.is_file():
        document = json.loads(path.read_text(encoding="utf-8"))
        source = {"version": 1, "refs": _plain_refs(document, path, allow)}
    else:
        options = {"lazy": True, "remote_protocol": "file"}
    try:
        fs = fsspec.filesystem("reference", fo=source, asynchronous=True, skip_instance_cache=True, **options)
        return zarr.storage.FsspecStore(fs, read_only=True, path="")
    except ImportError as error:
        raise MissingExtraError(
            f"{text} holds references as Parquet, which need a reader: pip install fastparquet ({error})"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise StorageError(f"fsspec cannot read the references {text}: {str(error)[:200]}") from error


def _plain_refs(document: Mapping[str, Any], path: Path, allow: Sequence[str]) -> dict[str, Any]:
    """Return references without templates; each target is checked once."""
    templates = document.get("templates") or {}
    if document.get("gen") or any("{{" in str(t) for t in templates.values()):
        raise ArgumentError(
            f"{path} generates its references by a program (gen, templates of templates), which is not run: write them "
            "out with kerchunk.utils.consolidate"
        )
    refs = document.get("refs", document)
    if not refs:
        raise ArgumentError(f"{path} holds no references: expected keys of a Zarr store, as kerchunk writes them")
    origin, checked, plain = Origin("file", text=str(path)), dict[str, str](), {}
    for key, value in refs.items():
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            plain[key] = value
            continue
        if value[0] not in checked:
            target = value[0]
            for name, text in templates.items():
                target = target.replace("{{" + name + "}}", text)
            if "{{" in target:
                raise ArgumentError(f"{path}: the template of {value[0]!r} is not stated")
            if "://" not in target and not os.path.isabs(target) and (path.parent / target).exists():
                target = str((path.parent / target).resolve())
            check_href(target, origin, allow, f"chunk {key} of {path.name}")
            checked[value[0]] = target
        plain[key] = [checked[value[0]], *value[1:]]
    return plain


# --- opening ---


NETCDF = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".he5")
_EXPECTED = "a cube: .zarr, .nc, .tif, .jp2, .vrt, .SAFE, .zip, or .json of STAC items"
#: Largest size in bytes of a JSON file that is searched for references.
_LARGEST_JSON = 500_000_000


def open_cube(path: Any, *, group: str | None = None, time: Any = None, **options: Any) -> xr.Dataset | xr.DataArray:
    """Open a cube lazily, by the ending of its name and its content.

    Parameters
    ----------
    path : str, path, Zarr store, or a sequence of paths
        ``*.zarr`` (a folder, a URL, ``*.zip``), ``*.nc`` and ``*.h5``, ``*.tif``, ``*.jp2`` and ``*.vrt`` (also GDAL's
        ``/vsi...``), a ``*.SAFE`` folder or its zip, an icechunk repository or session, references of kerchunk
        (``*.json``, ``*.parq``), or STAC: ``*.json`` with an item or a collection of items. Several paths, or a pattern
        (``"scenes/*.tif"``), are one cube: a date per file or product, or a file per band (HLS, sits, sen2r), which is
        loaded with `load_cube`.
    group : str, optional
        Group of a Zarr or netCDF store that holds the cube, as ``measurements/reflectance/r10m``. By default the root,
        or else the only group with arrays along y and x. Of an EOPF product, by default, the bands of all resolutions
        and SCL on the 10 m grid.
    time : date or sequence of dates, optional
        Dates of the files in the order of their paths, UTC; one where a path is one file. By default those that the
        files, their tags, names or folders state.
    **options
        For the reader: `xarray.open_zarr`, `xarray.open_dataset`, `rioxarray.open_rasterio`, `load_cube`.

    Returns
    -------
    Dataset or DataArray
        On Dask, in the chunks of the file. Values are as stored, neither scaled nor masked.

    Raises
    ------
    InputNotFoundError
        If the path does not exist.
    ArgumentError
        For other paths, for a store with cubes in several groups, and for files that are not of one grid, scale and
        mark of no data, or whose dates are unknown or equal; the message names them.
    MissingBandsError
        For files of HLS L30, Landsat and other sensors that are named as such.
    ArgumentTypeError
        For options that the reader does not take.
    StorageError
        For an unreadable file, and for a Zarr store that is decoded to Python objects or by a codec that is not
        installed.
    MissingExtraError
        If the package that reads it is not installed.
    """
    if isinstance(path, list | tuple) or (isinstance(path, str | os.PathLike) and files.is_pattern(expand(path))):
        return _open_files(files.expand_files(path), group, time, options)
    cube = _open_one(path, group, options)
    return cube if time is None else files.with_date(cube, str(path), files.dates_of(time, 1)[0])


#: Arguments of `load_cube` that choose a grid.
_PLACES = frozenset({"bbox", "intersects", "geobox", "crs", "like", "geopolygon", "lon", "lat", "x", "y"})


def _open_files(
    paths: Sequence[str], group: str | None, time: Any, options: dict[str, Any]
) -> xr.Dataset | xr.DataArray:
    items = files.items_of_band_files(paths, time)
    if items is not None:
        _no_group(group, paths[0])
        if isinstance(options.get("resolution"), int | float) and not options.keys() & _PLACES:
            # The grid of the files, exactly: bounds in degrees would add a row or column without data.
            box = files.common_geobox(paths, options["resolution"])
            options = (
                options if box is None else {"geobox": box, **{k: v for k, v in options.items() if k != "resolution"}}
            )
        return load_cube(items, **options)
    cubes = [_open_one(p, group, dict(options)) for p in paths]
    dates = files.dates_of(time, len(paths)) if time is not None else [None] * len(paths)
    return files.join_dates([files.with_date(c, p, d) for c, p, d in zip(cubes, paths, dates, strict=True)], paths)


def _open_one(path: Any, group: str | None, options: dict[str, Any]) -> xr.Dataset | xr.DataArray:
    if not isinstance(path, str | os.PathLike):
        return _open_zarr(_store_of(path), type(path).__name__, group, options)
    arguments.path("path", path)
    text = expand(path)
    local = not is_url(text)
    gdal = text.startswith("/vsi")
    if local and not gdal and not Path(text).exists():
        raise not_found("path", path, _EXPECTED)
    ending = Path(text).suffix.lower()
    if gdal or ending in RASTERS:
        _no_group(group, text)
        return _open_raster(text, options)
    if local and (ending == ".safe" or is_safe(text)):
        _no_group(group, text)
        return load_cube(items_of_safe(text), **options)
    if ending == ".zip" and local:
        return _open_zip(text, group, options)
    if ending in (".parq", ".parquet") and is_parquet(text):
        return _open_zarr(open_references(text, read_allow(options.pop("allow", ()))), text, group, options)
    if local and Path(text).is_dir():
        if _is_icechunk(Path(text)):
            return _open_zarr(_icechunk(text), text, group, options)
        return _open_zarr(text, text, group, options)
    if ending == ".zarr":
        return _open_zarr(text, text, group, options)
    if ending in NETCDF:
        return _open_netcdf(text, group, options)
    if ending in (".json", ".geojson"):
        if local and is_references(text, _LARGEST_JSON):
            return _open_zarr(open_references(text, read_allow(options.pop("allow", ()))), text, group, options)
        _no_group(group, text)
        return load_cube(text, **options)
    inside = _zarr_above(text) if local else None
    raise ArgumentError(
        f"path: {text} is of an unknown kind. Expected {_EXPECTED}"
        + (f". It is a part of the Zarr store {inside}: open the store" if inside else "")
    )


def _no_group(group: str | None, text: str) -> None:
    if group is not None:
        raise ArgumentError(f"group= is for Zarr and netCDF stores, which {text} is not: omit it")


def _zarr_above(text: str) -> Path | None:
    return next((p for p in Path(text).parents if p.suffix == ".zarr"), None)


@contextlib.contextmanager
def _plain_errors(text: str, reader: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Raise the errors of readers as errors of this package, in one line."""
    try:
        with answering(text):
            yield
    except DeoCubeError:
        raise
    except FileNotFoundError as error:
        raise InputNotFoundError(
            f"path: {text} does not exist ({reader}: {_line(error)}). Expected {_EXPECTED}"
        ) from error
    except ImportError as error:
        raise MissingExtraError(f"{text} needs a package that is not installed: {_line(error)}") from error
    except TypeError as error:
        if not options:
            raise
        raise ArgumentTypeError(
            f"{reader} does not take these options ({', '.join(f'{k}=' for k in options)}): {_line(error)}"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = f"{reader}: {type(error).__name__}: {_line(error)}"
        raise unreadable("path", text, "a cube", reason) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _store_of(source: Any) -> Any:
    """Return the Zarr store of a store object, or of an icechunk session."""
    store = source if isinstance(source, Store) else getattr(source, "store", None)
    if isinstance(source, Mapping | xr.Dataset | xr.DataArray) or not isinstance(store, Store):
        raise ArgumentTypeError(
            f"path must be a path, a URL or a Zarr store, got {type(source).__name__}; a Dataset or DataArray is a "
            "cube already: ds.deo.embed()"
        )
    return store


# --- Zarr -----------------------------------------------------------------------------------------


def _open_zarr(store: Any, text: str, group: str | None, options: dict[str, Any]) -> xr.Dataset:
    reader_options: dict[str, Any] = {"decode_coords": "all", "mask_and_scale": False, **options}

    def read(name: str | None) -> xr.Dataset:
        with warnings.catch_warnings():
            # xarray warns of each Zarr 3 store that is not consolidated, as most are.
            warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolidated metadata")
            check_store(
                store,
                path=name or "",
                storage_options=options.get("storage_options"),
                zarr_format=options.get("zarr_format"),
            )
            stored: xr.Dataset = xr.open_zarr(
                store, **(reader_options if name is None else {**reader_options, "group": name})
            )
            return stored

    if isinstance(store, str) and not is_url(store) and not _has_zarr_metadata(Path(store)):
        raise ArgumentError(_no_zarr(Path(store)))
    names = _zarr_groups(store)
    if group is not None and names is not None and group.strip("/") not in {"", *names}:
        raise ArgumentError(f"{text} has no group {group!r}: its groups are {_listed(names)}")
    with _plain_errors(text, "xarray.open_zarr", options):
        if group is not None:
            cube = read(group)
            return cube.assign_attrs({**_attrs_of_all(store), **cube.attrs})
        root = read(None)
        if is_cube(root) or not names:
            return root
        if esa.is_product(names, root.attrs):
            return esa.cube_of_product({n: read(n) for n in esa.groups_read(names)}, root.attrs, name=Path(text).name)
        return _only(text, {n: read(n) for n in names}, root)


def _has_zarr_metadata(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata", ".zarray"))


def _no_zarr(folder: Path) -> str:
    """Return the message for a folder that is not a Zarr store: its content, and the call that opens it."""
    content = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    below = [p for p in content if p.is_dir() and (_has_zarr_metadata(p) or is_safe(str(p)))]
    files = [p for p in content if p.suffix.lower() in (*RASTERS, *NETCDF, ".json", ".zip")]
    candidates = below or files
    if not candidates:
        names = ", ".join(p.name for p in content[:5]) or "nothing"
        return f"path: {folder} is a folder without a cube. Expected a Zarr store or a SAFE product, found {names}"
    call = remedy(f"open_cube({str(candidates[0])!r})", str(candidates[0]))
    several = (
        "; several bands in files of their own: STAC items"
        + remedy(
            ", or xr.merge([open_cube(f).squeeze('band', drop=True).rename(name) for name, f in files.items()])", ""
        )
        if candidates is files and len(files) > 1
        else ""
    )
    names = _listed([p.name for p in candidates])
    return f"path: {folder} is a folder and not a Zarr store; it holds {names}. Open one: {call}{several}"


def _zarr_groups(store: Any) -> list[str] | None:
    """Return the names of all groups below the root; None where they cannot be listed, as over HTTP."""
    try:
        root = zarr.open_group(store, mode="r")
        return sorted(name for name, member in root.members(max_depth=8) if isinstance(member, zarr.Group))
    except Exception:
        # Whatever the store raises, the reader reports it.
        return None


def _attrs_of_all(store: Any) -> dict[str, Any]:
    """Return the attributes of the root that state the CRS of all groups, as in an EOPF product."""
    try:
        attrs = dict(zarr.open_group(store, mode="r").attrs)
    except Exception:
        return {}  # the root cannot be read, as in a zip that holds its store in a folder
    return {k: v for k, v in attrs.items() if k in ("stac_discovery", "other_metadata", "proj:code", "proj:epsg")}


def _is_group(store: Any, name: str) -> bool:
    try:
        return isinstance(zarr.open(store, path=name, mode="r"), zarr.Group)
    except (OSError, ValueError, KeyError):
        return False


def _only(text: str, groups: Mapping[str, xr.Dataset], root: xr.Dataset) -> xr.Dataset:
    """Return the only group that is a cube, with the attributes of the root; `root` if none is."""
    cubes = {n: ds for n, ds in groups.items() if is_cube(ds)}
    if not cubes:
        return root
    if len(cubes) > 1:
        first = next(iter(cubes))
        best = next((n for n in cubes if n.endswith("reflectance/r10m")), first)
        held = "; ".join(f"{n} ({', '.join(list(map(str, ds.data_vars))[:4])})" for n, ds in list(cubes.items())[:12])
        call = remedy(f"open_cube(path, group={best!r})", f"--group {best}")
        raise ArgumentError(f"{text} has cubes in {len(cubes)} groups: {held}. Choose one: {call}")
    ((_, only),) = cubes.items()
    return only.assign_attrs({**root.attrs, **only.attrs})


def _listed(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "none"


# --- containers -----------------------------------------------------------------------------------


def _open_zip(text: str, group: str | None, options: dict[str, Any]) -> xr.Dataset | xr.DataArray:
    """Open a zip of a Zarr store, or of one raster."""
    with _plain_errors(text, "zipfile", {}):
        try:
            with zipfile.ZipFile(text) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            raise StorageError(f"{text} is damaged or not a zip file: {error}") from error
    roots = sorted({n.rpartition("/")[0] for n in names if n.rpartition("/")[2] in ("zarr.json", ".zgroup")}, key=len)
    if roots:
        inside = "/".join(filter(None, (roots[0], (group or "").strip("/"))))
        store = ZipStore(text, mode="r")
        # xarray reads consolidated metadata only at the root of a zip.
        options = {"consolidated": False, **options}
        if group is not None:
            return _open_zarr(store, text, inside, options)
        if roots[0] == "":
            return _open_zarr(store, text, None, options)
        first = _open_zarr(store, text, roots[0], options)
        if is_cube(first):
            return first
        groups = {
            n.removeprefix(f"{roots[0]}/"): _open_zarr(store, text, n, options)
            for n in roots[1:]
            if _is_group(store, n)
        }
        if esa.is_product(groups, first.attrs):
            read = {n: groups[n] for n in esa.groups_read(groups)}
            return esa.cube_of_product(read, first.attrs, name=Path(roots[0] or text).name)
        return _only(text, groups, first)
    _no_group(group, text)
    rasters = [n for n in names if n.lower().endswith(RASTERS)]
    if len(rasters) == 1:
        return _open_raster(f"/vsizip/{text}/{rasters[0]}", options)
    if rasters:
        href = f"/vsizip/{text}/{rasters[0]}"
        raise ArgumentError(
            f"{text} holds {len(rasters)} rasters: {_listed(rasters)}. Open one: "
            + remedy(f"open_cube({href!r})", href)
        )
    raise ArgumentError(
        f"{text} holds neither a Zarr store, a SAFE product nor a raster, but {_listed(names)}. Unpack it, and open "
        "its content"
    )


def _is_icechunk(folder: Path) -> bool:
    return (folder / "snapshots").is_dir() and ((folder / "refs").is_dir() or (folder / "repo").exists())


def _icechunk(text: str) -> Any:
    """Return the read-only store of the newest snapshot of a repository's main branch."""
    try:
        import icechunk
    except ImportError as error:
        raise MissingExtraError(
            f"{text} is an icechunk repository, and icechunk is not installed: pip install icechunk"
        ) from error
    try:
        repository = icechunk.Repository.open(icechunk.local_filesystem_storage(text))
        return repository.readonly_session("main").store
    except Exception as error:
        raise StorageError(
            f"icechunk cannot read the branch main of {text} ({_line(error)}). Open another "
            + remedy("and pass its store: open_cube(repository.readonly_session(branch).store)", "in Python")
        ) from error


# --- files ----------------------------------------------------------------------------------------


def _open_netcdf(text: str, group: str | None, options: dict[str, Any]) -> xr.Dataset:
    reader_options = {"chunks": {}, "decode_coords": "all", "mask_and_scale": False, **options}
    try:
        if group is not None:
            cube = xr.open_dataset(text, group=group, **reader_options)
        else:
            cube = xr.open_dataset(text, **reader_options)
            if not is_cube(cube) and (groups := _netcdf_groups(text, reader_options)):
                cube = _only(text, groups, cube)
    except (ValueError, ImportError) as error:
        if find_spec("netCDF4") is None:
            raise MissingExtraError(f"{text} needs a reader of netCDF: pip install netCDF4") from error
        if isinstance(error, DeoCubeError):
            raise
        raise unreadable("path", text, "a cube", f"xarray.open_dataset: {_line(error)}") from error
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        names: list[str] = []
        with contextlib.suppress(OSError, ValueError, TypeError):
            names = sorted(_netcdf_groups(text, reader_options)) if group is not None else []
        if names and str(group).strip("/") not in names:
            raise ArgumentError(f"{text} has no group {group!r}: its groups are {_listed(names)}") from error
        with _plain_errors(text, "xarray.open_dataset", options):
            raise
    return cube.assign({name: _unsigned(v) for name, v in cube.data_vars.items()})


def _netcdf_groups(text: str, reader_options: Mapping[str, Any]) -> dict[str, xr.Dataset]:
    return {n.strip("/"): ds for n, ds in xr.open_groups(text, **reader_options).items() if n.strip("/")}


def _open_raster(text: str, options: dict[str, Any]) -> xr.DataArray:
    import rioxarray

    with _plain_errors(text, "rioxarray.open_rasterio", options):
        raster = rioxarray.open_rasterio(text, **{"chunks": {"x": 1024, "y": 1024}, **options})
    if not isinstance(raster, xr.DataArray):
        raise ArgumentError(
            f"{text} holds several rasters, not one. List them, rasterio.open(path).subdatasets, and open one with "
            "rioxarray.open_rasterio"
        )
    if raster.sizes.get("band", 1) > 1 and not options.keys() & {"masked", "mask_and_scale"}:
        _check_nodata(text)
    raster = _with_colours(raster, text)
    # The name of the product is evidence of its sensor, whose band numbers may mean other bands than Sentinel-2's.
    return raster if other_sensor(Path(text).name) is None else raster.assign_attrs(id=Path(text).stem)


def _check_nodata(text: str) -> None:
    """Refuse a raster whose bands have different marks of no data, of which rioxarray keeps the first."""
    import rasterio

    with _plain_errors(text, "rasterio.open", {}), rasterio.open(text) as file:
        marks = sorted({v for v in file.nodatavals if v is not None and np.isfinite(v)})
    if len(marks) > 1:
        raise ArgumentError(
            f"the bands of {text} have different marks of no data ({', '.join(f'{v:g}' for v in marks)}), and a cube "
            "has one: "
            + remedy(
                "open_cube(path, masked=True) replaces each band's own by NaN. The result is floats, for which embed "
                "asks units=",
                "write it anew with one, gdalwarp -dstnodata 0 CUBE ONE.tif",
            )
        )


def _with_colours(raster: xr.DataArray, text: str) -> xr.DataArray:
    """Name the bands of an 8-bit image without descriptions by the colours that its file states (photometric RGB)."""
    import rasterio

    if raster.dtype != np.uint8 or raster.ndim != 3 or raster.shape[0] not in (3, 4) or "long_name" in raster.attrs:
        return raster
    with _plain_errors(text, "rasterio.open", {}), rasterio.open(text) as file:
        colours = tuple(c.name for c in file.colorinterp)
    return raster.assign_attrs(long_name=colours) if colours[:3] == ("red", "green", "blue") else raster


def _unsigned(variable: xr.DataArray) -> xr.DataArray:
    """Convert unsigned numbers that netCDF 3 stores in signed types, which undecoded variables still have."""
    if str(variable.attrs.get("_Unsigned", "")).lower() != "true" or variable.dtype.kind != "i":
        return variable
    kind = f"u{variable.dtype.itemsize}"
    out = variable.astype(kind)
    out.attrs = {k: v for k, v in variable.attrs.items() if k != "_Unsigned"}
    if "_FillValue" in out.attrs:
        out.attrs["_FillValue"] = np.asarray(out.attrs["_FillValue"]).astype(kind).item()
    return out
