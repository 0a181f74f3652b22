"""`ds.deo` and `da.deo`: the package's verbs on xarray objects. One line a verb; each is also a plain function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import xarray as xr

from deo_cube.engine.embed import embed
from deo_cube.engine.match import match
from deo_cube.engine.plan import plan
from deo_cube.engine.summary import summarise
from deo_cube.engine.write import to_zarr

__all__ = ["DeoDataArrayAccessor", "DeoDatasetAccessor"]

P = ParamSpec("P")
R = TypeVar("R")


def _verb(function: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A method that calls `function` with the accessor's object first; signature and docstring are the function's."""

    @functools.wraps(function)
    def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return function(self._obj, *args, **kwargs)

    return method


class _Cube:
    """Verbs on a cube of Sentinel-2 bands."""

    def __init__(self, obj: Any) -> None:
        # Nothing is computed or checked here: xarray turns an AttributeError in an accessor's __init__ into another.
        self._obj = obj

    embed = _verb(embed)
    plan = _verb(plan)
    match = _verb(match)

    def __repr__(self) -> str:
        return repr(summarise(self._obj))

    def _repr_html_(self) -> str:
        return summarise(self._obj)._repr_html_()


@xr.register_dataset_accessor("deo")
class DeoDatasetAccessor(_Cube):
    """`ds.deo`: verbs on a Dataset with a variable a band."""


@xr.register_dataarray_accessor("deo")
class DeoDataArrayAccessor(_Cube):
    """`da.deo`: verbs on a DataArray with a band dimension, and on embeddings."""

    to_zarr = _verb(to_zarr)

    def __repr__(self) -> str:
        if "embedding" in self._obj.dims:
            sizes = " x ".join(f"{d} {n}" for d, n in self._obj.sizes.items())
            model = self._obj.attrs.get("deo_cube:model", "an unknown model")
            return f"<deo_cube view of embeddings by {model}: {sizes}>"
        return super().__repr__()

    def _repr_html_(self) -> str:
        return f"<pre>{self!r}</pre>" if "embedding" in self._obj.dims else super()._repr_html_()
