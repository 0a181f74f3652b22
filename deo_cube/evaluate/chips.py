"""Labelled chips from wherever a user has them: EuroSAT as RGB or as GeoTIFFs, any folder of classes, or one .npz."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.cube.sentinel2 import band_of_name, counted
from deo_cube.errors import ArgumentError, InputNotFoundError, MissingBandsError
from deo_cube.evaluate.readers import ChipSet, read_eurosat
from deo_cube.paths import local_path

__all__ = ["read_chips"]

Array = NDArray[Any]


def read_chips(
    path: str | Path, *, bands: Sequence[str] | None = None, offset: float = 0.0, limit: int | None = None
) -> ChipSet:
    """Chips of one size with a label each.

    Parameters
    ----------
    path : path
        A zip or folder ``Class/Class_n.jpg`` (EuroSAT RGB); a folder ``Class/name.tif`` (EuroSAT MS, or any other); or
        an .npz with `images` (N, C, H, W), `labels` (N,), `bands` (C,) and optionally `groups` (N,).
    bands : sequence of str, optional
        Names of the channels of GeoTIFFs that carry none. EuroSAT MS is B01 ... B08, B09, B10, B11, B12, **then** B8A.
    offset : float
        DN to add to GeoTIFFs and arrays: -1000 for L1C or L2A of baseline 04.00 and later with the offset in it.
    limit : int, optional
        At most so many chips a class (GeoTIFFs and JPEGs: the lowest numbers).

    Returns
    -------
    ChipSet
        DN. Files whose names end in a number are grouped by runs of 50, as EuroSAT's; others stand alone.

    Raises
    ------
    FileNotFoundError
        If nothing of that kind is there.
    MissingBandsError
        If channels have no names, or their number is not that of `bands`.
    """
    path = local_path(path)
    if path.suffix == ".npz":
        return _arrays(path, offset, limit)
    files = sorted(path.glob("*/*.tif")) + sorted(path.glob("*/*.tiff")) if path.is_dir() else []
    return _tiffs(path, files, bands, offset, limit) if files else read_eurosat(path, limit=limit)


def _canonical(names: Sequence[str], where: object, *, given: bool = False) -> tuple[str, ...]:
    """Bands that names mean; names that only count positions mean none, unless the caller gave them."""
    positional = (False,) * len(names) if given else counted([str(n) for n in names])
    found = [None if p else band_of_name(str(n)) for n, p in zip(names, positional, strict=True)]
    if unknown := [n for n, f in zip(names, found, strict=True) if f is None]:
        raise MissingBandsError(
            f"{where}: {unknown} are no names of Sentinel-2 bands. Give --bands, one name a channel in their order; "
            "EuroSAT MS is B01,B02,B03,B04,B05,B06,B07,B08,B09,B10,B11,B12,B8A (B8A last)"
        )
    return tuple(f[0] for f in found if f is not None)


def _arrays(path: Path, offset: float, limit: int | None) -> ChipSet:
    if not path.is_file():
        raise InputNotFoundError(f"no file {path}")
    with np.load(path, allow_pickle=False) as held:
        if missing := {"images", "labels", "bands"} - set(held.files):
            raise InputNotFoundError(f"{path} holds {sorted(held.files)}; wanted also {sorted(missing)}")
        images, raw, names = held["images"].astype("float32") + np.float32(offset), held["labels"], held["bands"]
        groups = held["groups"] if "groups" in held.files else np.arange(len(raw))
    classes, labels = np.unique(raw, return_inverse=True)
    kept = _lowest(labels, limit)
    return ChipSet(
        path.stem, images[kept], labels[kept], tuple(map(str, classes)), groups[kept], _canonical(names, path)
    )


def _tiffs(path: Path, files: Sequence[Path], bands: Sequence[str] | None, offset: float, limit: int | None) -> ChipSet:
    import rasterio

    numbered = [(f, _number(f)) for f in files]
    classes = tuple(sorted({f.parent.name for f in files}))
    numbered.sort(key=lambda fn: (fn[0].parent.name, fn[1] if fn[1] is not None else 0, fn[0].name))
    labels = np.array([classes.index(f.parent.name) for f, _ in numbered])
    kept = _lowest(labels, limit)
    images, names = [], None
    for f, _ in (numbered[i] for i in kept):
        with rasterio.open(f) as r:
            if names is None:
                names = _canonical(bands or [d or "?" for d in r.descriptions], f, given=bool(bands))
            if r.count != len(names):
                raise MissingBandsError(f"{f} has {r.count} channels, named are {len(names)}: {list(names)}")
            images.append(r.read().astype("float32") + np.float32(offset))
    if len({i.shape for i in images}) > 1:
        raise ArgumentError(
            f"{path}: chips of several sizes, {sorted({i.shape[1:] for i in images})[:3]}: cut them alike"
        )
    groups = [labels[i] * 10_000 + n // 50 if (n := numbered[i][1]) is not None else -1 - j for j, i in enumerate(kept)]
    assert names is not None
    return ChipSet(path.name, np.stack(images), labels[kept], classes, np.array(groups), names)


def _number(file: Path) -> int | None:
    digits = file.stem.rsplit("_", 1)[-1]
    return int(digits) if digits.isdigit() else None


def _lowest(labels: Array, limit: int | None) -> Array:
    """Indices of the first `limit` cases of each class."""
    if limit is None:
        return np.arange(len(labels))
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:limit] for c in np.unique(labels)]))
