"""Recognise a store that another program wrote anew or cut, though its attributes still say that it is one of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
import zarr
from affine import Affine

from deo_cube.embedding import metadata
from deo_cube.errors import StoreMismatchError
from deo_cube.store import objects
from deo_cube.store.record import GROUP, PATH

__all__ = ["check_record", "check_window", "instead"]

WINDOW = metadata.PREFIX + "window"


def check_window(store: Any, attrs: Mapping[str, Any], ds: xr.Dataset, dims: tuple[str, str]) -> None:
    """Refuse a store whose coordinates are not where its attributes place it.

    xarray copies the attributes of a group when it writes a part of it elsewhere, so that they describe the whole.

    Parameters
    ----------
    store : path, URL or zarr store
        For the message.
    attrs : mapping
        Of the store's group.
    ds : Dataset
        The store as xarray opens it.
    dims : (str, str)
        Names of the dimensions along y and x.

    Raises
    ------
    StoreMismatchError
        If size or coordinates differ from the attributes.
    """
    length = attrs.get("geoemb:dimensions", ds.sizes["embedding"])
    if ds.sizes["embedding"] != length:
        _refuse(store, f"vectors of length {ds.sizes['embedding']} where its attributes say {length}")
    top, left, height, width = (int(v) for v in attrs[WINDOW])
    a = Affine(*attrs[WINDOW + "_transform"])
    for dim, lead, size, start, step in ((dims[0], top, height, a.f, a.e), (dims[1], left, width, a.c, a.a)):
        expected = lead + size
        if ds.sizes[dim] != expected:
            _refuse(store, f"{ds.sizes[dim]} along {dim!r} where its attributes say {expected}")
        if dim not in ds.coords:
            _refuse(store, f"no coordinate {dim!r}")
        centres = start + (np.arange(-lead, size) + 0.5) * step
        values = np.asarray(ds[dim].values, dtype="float64")
        if not np.allclose(values, centres, rtol=0, atol=1e-3 * abs(step)):
            _refuse(
                store,
                f"{dim} from {values[0]:.10g} to {values[-1]:.10g} where its attributes say "
                f"{centres[0]:.10g} to {centres[-1]:.10g}",
            )


def check_record(store: Any, root: zarr.Group, *, needed: bool) -> None:
    """Refuse a store whose progress record is not that of its array, or, where `needed`, one without a record.

    Raises
    ------
    StoreMismatchError
        If dates were appended by another program, or a copy has no record to check blocks by.
    """
    blocks = root.attrs.get(metadata.PREFIX + "blocks")
    found = objects.has_any(objects.store_at(store), GROUP)
    if not found:
        if needed:
            raise StoreMismatchError(
                f"{store} has no progress record, as where another program wrote it anew: its blocks cannot be "
                f"counted or checked. Read it, {instead(store)}; or write it by emb.deo.to_zarr(path)"
            )
        return
    if blocks is None:  # of an earlier version, whose record is a Zarr array
        if PATH not in root:
            return
        blocks = root[PATH].shape
    times = root["embeddings"].shape[0] if root["embeddings"].ndim == 4 else 1
    if int(blocks[0]) != times:
        _refuse(store, f"{times} dates where its progress record counts {blocks[0]}")


def instead(store: Any) -> str:
    """The call that reads any store as it is."""
    shown = repr(store) if isinstance(store, str) else "the store"
    return f"open it as it is, xr.open_zarr({shown}, decode_coords='all')"


def _refuse(store: Any, found: str) -> None:
    raise StoreMismatchError(
        f"{store} was cut or changed after deo_cube wrote it ({found}), so its attributes are not certain to "
        f"describe its vectors: {instead(store)}; or write parts by emb.deo.to_zarr(path), which open_embeddings reads"
    )
