"""Sentinel-2 data cubes in, foundation-model embeddings out: lazy, georeferenced, restartable.

Importing the package registers the accessor ``.deo`` on Datasets and DataArrays; it loads neither torch nor
distributed, and each verb only what it needs, when it is first used.

>>> import deo_cube
>>> ds = deo_cube.synthetic_cube(size=256, times=1)
>>> emb = ds.deo.embed()
>>> emb.deo.to_zarr("emb.zarr")  # doctest: +SKIP
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from deo_cube import _moved, errors, options
from deo_cube.accessor import DeoDataArrayAccessor, DeoDatasetAccessor
from deo_cube.errors import DeoCubeError
from deo_cube.options import set_options

if TYPE_CHECKING:
    from deo_cube.cube.composite import composite
    from deo_cube.cube.open import open_cube
    from deo_cube.cube.stac_catalogs import search
    from deo_cube.cube.synthetic import synthetic_cube
    from deo_cube.embedding.embed import embed
    from deo_cube.embedding.load import load_cube
    from deo_cube.embedding.match import match
    from deo_cube.embedding.plan import plan
    from deo_cube.encoder.card import ModelCard
    from deo_cube.encoder.loading import verify
    from deo_cube.encoder.registry import card, describe, describe_timm, list_models, load_encoder, register_encoder
    from deo_cube.evaluate.seam import seam_report
    from deo_cube.heads.change import change
    from deo_cube.heads.cluster import cluster
    from deo_cube.heads.head import fit_head, load_head
    from deo_cube.heads.maps import classify, segment
    from deo_cube.heads.pca import pca_rgb
    from deo_cube.heads.similar import similar
    from deo_cube.store.export import to_cog, to_geoparquet
    from deo_cube.store.model_item import model_item
    from deo_cube.store.open import open_embeddings, verify_store
    from deo_cube.store.stac import collection_of, publish, stac_item
    from deo_cube.store.write import to_zarr
    from deo_cube.view.explore import explore

__all__ = [
    "DeoCubeError",
    "DeoDataArrayAccessor",
    "DeoDatasetAccessor",
    "ModelCard",
    "card",
    "change",
    "classify",
    "cluster",
    "collection_of",
    "composite",
    "describe",
    "describe_timm",
    "embed",
    "errors",
    "explore",
    "fit_head",
    "list_models",
    "load_cube",
    "load_encoder",
    "load_head",
    "match",
    "model_item",
    "open_cube",
    "open_embeddings",
    "options",
    "pca_rgb",
    "plan",
    "publish",
    "register_encoder",
    "seam_report",
    "search",
    "segment",
    "set_options",
    "similar",
    "stac_item",
    "synthetic_cube",
    "to_cog",
    "to_geoparquet",
    "to_zarr",
    "verify",
    "verify_store",
]

_moved.install()

# In Jupyter without ipywidgets tqdm warns before it draws its bar as text, which is all that is wanted of it there.
warnings.filterwarnings("ignore", message="IProgress not found")

_HOMES = {
    "deo_cube.cube.stac_catalogs": ("search",),
    "deo_cube.cube.composite": ("composite",),
    "deo_cube.cube.open": ("open_cube",),
    "deo_cube.cube.synthetic": ("synthetic_cube",),
    "deo_cube.encoder.card": ("ModelCard",),
    "deo_cube.encoder.registry": (
        "card",
        "describe",
        "describe_timm",
        "list_models",
        "load_encoder",
        "register_encoder",
    ),
    "deo_cube.encoder.loading": ("verify",),
    "deo_cube.embedding.embed": ("embed",),
    "deo_cube.store.export": ("to_cog", "to_geoparquet"),
    "deo_cube.embedding.load": ("load_cube",),
    "deo_cube.embedding.match": ("match",),
    "deo_cube.store.model_item": ("model_item",),
    "deo_cube.embedding.plan": ("plan",),
    "deo_cube.store.open": ("open_embeddings", "verify_store"),
    "deo_cube.store.stac": ("collection_of", "publish", "stac_item"),
    "deo_cube.store.write": ("to_zarr",),
    "deo_cube.evaluate.seam": ("seam_report",),
    "deo_cube.heads.change": ("change",),
    "deo_cube.heads.cluster": ("cluster",),
    "deo_cube.heads.head": ("fit_head", "load_head"),
    "deo_cube.heads.maps": ("classify", "segment"),
    "deo_cube.heads.pca": ("pca_rgb",),
    "deo_cube.heads.similar": ("similar",),
    "deo_cube.view.explore": ("explore",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("deo_cube.embedding.metadata").package_version()
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'deo_cube' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
