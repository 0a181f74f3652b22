"""Sentinel-2 data cubes in, foundation-model embeddings out: lazy, georeferenced, restartable.

Importing the package registers the accessor ``.deo`` on Datasets and DataArrays; it loads neither torch nor
distributed, and each verb only what it needs, when it is first used.

>>> import deo_cube
>>> ds = deo_cube.synthetic_cube(size=256, times=1)
>>> emb = ds.deo.embed()
>>> emb.deo.to_zarr("emb.zarr")  # doctest: +SKIP
"""

import ast
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from deo_cube import _moved
from deo_cube import accessor as accessor  # registers ds.deo
from deo_cube import errors as errors
from deo_cube import options as options


def _public_names() -> dict[str, str]:
    """Return the module of each public name, read from the imports of `__init__.pyi`."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = (node for node in stub.body if isinstance(node, ast.ImportFrom))
    return {alias.name: str(node.module) for node in imports for alias in node.names}


_MODULES = _public_names()

__all__ = sorted(_MODULES)

_moved.install()

# In Jupyter without ipywidgets tqdm warns before it draws its bar as text. The bar is all that this package needs.
warnings.filterwarnings("ignore", message="IProgress not found")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("deo_cube.embedding.metadata").package_version()
    if name not in _MODULES:
        raise AttributeError(f"module 'deo_cube' has no attribute {name!r}")
    # Kept as an attribute, so that the next access does not come here.
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
