"""`ds.deo` and `da.deo`: the package's verbs on xarray objects. One line per verb; each is also a plain function.

`ds.rio` (rioxarray) and `ds.odc` (odc-geo) are there as well, for messages and pages name them.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import xarray as xr

__all__ = ["DeoDataArrayAccessor", "DeoDatasetAccessor"]


class _Verb:
    """A function of the package as a method: the accessor's object goes first; signature and help are the function's.

    The function is imported when the method is first looked at, so that `import deo_cube` stays light.
    """

    def __init__(self, module: str) -> None:
        self.module = module

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, accessor: Any, owner: type) -> Any:
        function = getattr(import_module(self.module), self.name)
        if accessor is None:
            return function
        bound = functools.partial(function, accessor._obj)
        functools.update_wrapper(bound, function)
        del bound.__wrapped__  # type: ignore[attr-defined]  # else the signature would show the first argument
        return bound


class _Cube:
    """Verbs on a cube of Sentinel-2 bands."""

    embed = _Verb("deo_cube.embedding.embed")
    plan = _Verb("deo_cube.embedding.plan")
    match = _Verb("deo_cube.embedding.match")
    composite = _Verb("deo_cube.cube.composite")
    classify = _Verb("deo_cube.heads.maps")
    segment = _Verb("deo_cube.heads.maps")

    def __init__(self, obj: Any) -> None:
        # Nothing is computed or checked here: xarray turns an AttributeError in an accessor's __init__ into another.
        self._obj = obj

    def __repr__(self) -> str:
        return repr(self._summary())

    def _repr_html_(self) -> str:
        return str(self._summary()._repr_html_())

    def _summary(self) -> Any:
        from deo_cube.embedding.summary import describe

        return describe(self._obj)


@xr.register_dataset_accessor("deo")
class DeoDatasetAccessor(_Cube):
    """`ds.deo`: verbs on a Dataset with a variable a band."""


@xr.register_dataarray_accessor("deo")
class DeoDataArrayAccessor(_Cube):
    """`da.deo`: verbs on a DataArray with a band dimension, and on embeddings."""

    to_zarr = _Verb("deo_cube.store.write")
    to_cog = _Verb("deo_cube.store.export")
    to_geoparquet = _Verb("deo_cube.store.export")
    similar = _Verb("deo_cube.heads.similar")
    change = _Verb("deo_cube.heads.change")
    pca_rgb = _Verb("deo_cube.heads.pca")
    cluster = _Verb("deo_cube.heads.cluster")
    explore = _Verb("deo_cube.view.explore")


@xr.register_datatree_accessor("deo")
class DeoDataTreeAccessor(_Cube):
    """`tree.deo`: every verb names the call that takes a Dataset out of the tree."""


class _Elsewhere:
    """An accessor of another package, which is imported when the accessor is first used (it takes 0.3 s).

    Seen from the class it is not there, so that the package's own registration finds the name free.
    """

    def __init__(self, name: str, module: str) -> None:
        self.name, self.module = name, module

    def __get__(self, obj: Any, owner: type) -> Any:
        if obj is None:
            raise AttributeError(self.name)
        import_module(self.module)  # puts the real one in this one's place
        return getattr(obj, self.name)


for _name, _module in (("rio", "rioxarray"), ("odc", "odc.geo.xr")):
    for _class in (xr.Dataset, xr.DataArray):
        if not hasattr(_class, _name):
            setattr(_class, _name, _Elsewhere(_name, _module))
