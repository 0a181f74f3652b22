"""Sentinel-2 data cubes in, foundation-model embeddings out: lazy, georeferenced, restartable.

Importing the package registers the accessor ``.deo`` on Datasets and DataArrays; it loads neither torch nor
distributed, and each verb only what it needs, when it is first used.

>>> import deo_cube
>>> ds = deo_cube.synthetic_cube(size=256, times=1)
>>> emb = ds.deo.embed()
>>> emb.deo.to_zarr("emb.zarr")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deo_cube import errors, options
from deo_cube.accessor import DeoDataArrayAccessor, DeoDatasetAccessor
from deo_cube.errors import DeoCubeError
from deo_cube.options import set_options

if TYPE_CHECKING:
    from deo_cube.cube.files import open_cube
    from deo_cube.cube.synthetic import synthetic_cube
    from deo_cube.encoder.card import ModelCard
    from deo_cube.encoder.registry import card, list_models, load_encoder, register_encoder
    from deo_cube.encoder.verify import verify
    from deo_cube.engine.embed import embed
    from deo_cube.engine.load import load_cube
    from deo_cube.engine.match import match
    from deo_cube.engine.plan import plan
    from deo_cube.engine.reopen import open_embeddings, verify_store
    from deo_cube.engine.write import to_zarr

__all__ = [
    "DeoCubeError",
    "DeoDataArrayAccessor",
    "DeoDatasetAccessor",
    "ModelCard",
    "card",
    "embed",
    "errors",
    "list_models",
    "load_cube",
    "load_encoder",
    "match",
    "open_cube",
    "open_embeddings",
    "options",
    "plan",
    "register_encoder",
    "set_options",
    "synthetic_cube",
    "to_zarr",
    "verify",
    "verify_store",
]

_HOMES = {
    "deo_cube.cube.files": ("open_cube",),
    "deo_cube.cube.synthetic": ("synthetic_cube",),
    "deo_cube.encoder.card": ("ModelCard",),
    "deo_cube.encoder.registry": ("card", "list_models", "load_encoder", "register_encoder"),
    "deo_cube.encoder.verify": ("verify",),
    "deo_cube.engine.embed": ("embed",),
    "deo_cube.engine.load": ("load_cube",),
    "deo_cube.engine.match": ("match",),
    "deo_cube.engine.plan": ("plan",),
    "deo_cube.engine.reopen": ("open_embeddings", "verify_store"),
    "deo_cube.engine.write": ("to_zarr",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("deo_cube.engine.metadata").package_version()
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'deo_cube' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
