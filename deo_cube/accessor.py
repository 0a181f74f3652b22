"""`ds.deo` and `da.deo`: the functions of the package as methods of xarray objects.

A method is the function with the object as its first argument; its signature and help are the function's. Type checkers
see `ds.deo` as `Any`, because xarray attaches accessors when the program runs: annotate it, as in
``deo: deo_cube.DeoDatasetAccessor = ds.deo``, or call the functions, and arguments and results are checked.

The module also registers `ds.rio` (rioxarray) and `ds.odc` (odc-geo), which messages and pages name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

import xarray as xr

import deo_cube

if TYPE_CHECKING:
    from deo_cube.embedding.match import Summary
    from deo_cube.heads.head import Head

__all__ = ["DeoDataArrayAccessor", "DeoDatasetAccessor"]

P = ParamSpec("P")
R = TypeVar("R")


class _Verb(Generic[P, R]):
    """A function of the package as a method. `function` returns it, and imports it on first use."""

    def __init__(self, function: Callable[[], Callable[Concatenate[Any, P], R]]) -> None:
        self._function = function

    @overload
    def __get__(self, accessor: None, owner: type) -> Callable[Concatenate[Any, P], R]: ...
    @overload
    def __get__(self, accessor: _Accessor, owner: type) -> Callable[P, R]: ...
    def __get__(self, accessor: _Accessor | None, owner: type) -> Callable[..., R]:
        function = self._function()
        if accessor is None:
            return function
        method = functools.partial(function, accessor._obj)
        functools.update_wrapper(method, function)
        del method.__wrapped__  # type: ignore[attr-defined]  # inspect would show the first argument as well
        return method


class _Accessor:
    """Methods of cubes of Sentinel-2 bands."""

    embed = _Verb(lambda: deo_cube.embed)
    # mypy: the **options of a function might hold the name of its first argument.
    plan = _Verb(lambda: deo_cube.plan)  # type: ignore[arg-type, return-value]
    embed_series = _Verb(lambda: deo_cube.embed_series)
    match = _Verb(lambda: deo_cube.match)
    composite = _Verb(lambda: deo_cube.composite)
    classify = _Verb(lambda: deo_cube.classify)  # type: ignore[arg-type, return-value]  # as above
    segment = _Verb(lambda: deo_cube.segment)  # type: ignore[arg-type, return-value]  # as above
    sample = _Verb(lambda: deo_cube.sample)
    seam_report = _Verb(lambda: deo_cube.seam_report)  # type: ignore[arg-type, return-value]  # as above
    plot = _Verb(lambda: deo_cube.plot)

    def __init__(self, obj: Any) -> None:
        # Nothing is computed or checked here: xarray turns an AttributeError in an accessor's __init__ into another.
        self._obj = obj

    def fit_head(
        self,
        kind: Literal["knn", "linear", "conv", "upernet", "ridge", "forest"] | Any,
        labels: Any,
        *,
        time: Any = None,
        finetune: int = 0,
        **options: Any,
    ) -> Head:
        """Fit a head on labelled places of these embeddings, or of this cube with `finetune`.

        Parameters, result and errors are those of `deo_cube.fit_head`.
        """
        head: Head = deo_cube.fit_head(kind, self._obj, labels, time=time, finetune=finetune, **options)
        return head

    def __repr__(self) -> str:
        return repr(self._summary())

    def _repr_html_(self) -> str:
        return self._summary()._repr_html_()

    def _summary(self) -> Summary:
        from deo_cube.embedding.match import describe_facts

        return describe_facts(self._obj)


@xr.register_dataset_accessor("deo")
class DeoDatasetAccessor(_Accessor):
    """`ds.deo`: methods of a Dataset with one variable per band; those of embeddings too, where it holds them."""

    if not TYPE_CHECKING:  # a type checker knows no Dataset of embeddings

        def __getattr__(self, name: str) -> Any:
            # A store that `xarray.open_zarr` opened is a Dataset with one array of embeddings. Of a cube the function
            # says that it is to be embedded first, which an AttributeError does not.
            if isinstance(verb := vars(DeoDataArrayAccessor).get(name), _Verb):
                return verb.__get__(self, type(self))
            return self.__getattribute__(name)  # raises

        def __dir__(self) -> list[str]:
            more = (
                vars(DeoDataArrayAccessor) if any("embedding" in v.dims for v in self._obj.data_vars.values()) else ()
            )
            return sorted({*super().__dir__(), *(n for n in more if not n.startswith("_"))})


@xr.register_dataarray_accessor("deo")
class DeoDataArrayAccessor(_Accessor):
    """`da.deo`: methods of a DataArray with a band dimension, and of embeddings."""

    to_zarr = _Verb(lambda: deo_cube.to_zarr)
    to_cog = _Verb(lambda: deo_cube.to_cog)
    to_geoparquet = _Verb(lambda: deo_cube.to_geoparquet)
    aggregate = _Verb(lambda: deo_cube.aggregate)
    similar = _Verb(lambda: deo_cube.similar)
    build_index = _Verb(lambda: deo_cube.build_index)
    change = _Verb(lambda: deo_cube.change)
    change_series = _Verb(lambda: deo_cube.change_series)
    pca_rgb = _Verb(lambda: deo_cube.pca_rgb)
    cluster = _Verb(lambda: deo_cube.cluster)
    explore = _Verb(lambda: deo_cube.explore)
    applicability = _Verb(lambda: deo_cube.applicability)
    assess = _Verb(lambda: deo_cube.assess)
    page = _Verb(lambda: deo_cube.page)


@xr.register_datatree_accessor("deo")
class DeoDataTreeAccessor(_Accessor):
    """`tree.deo`: methods of an EOPF product, or of a tree that holds one cube."""


class _LazyAccessor:
    """An accessor of another package, which is imported when the accessor is first used: that takes 0.3 s.

    The class does not show it, so that the package's own registration finds the name free.
    """

    def __init__(self, name: str, module: str) -> None:
        self.name, self.module = name, module

    def __get__(self, obj: Any, owner: type) -> Any:
        if obj is None:
            raise AttributeError(self.name)
        import_module(self.module)  # replaces this accessor with the package's own
        return getattr(obj, self.name)


for _name, _module in (("rio", "rioxarray"), ("odc", "odc.geo.xr")):
    for _class in (xr.Dataset, xr.DataArray):
        if not hasattr(_class, _name):
            setattr(_class, _name, _LazyAccessor(_name, _module))
