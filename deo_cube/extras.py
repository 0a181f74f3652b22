"""Import optional dependencies, and name the command that installs a missing one.

The core opens stores and cubes in files, embeds them and writes stores. Everything else is an extra of the wheel, and
the verb that needs it calls `require` before it does anything.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from deo_cube.errors import MissingExtraError

__all__ = ["require"]


def require(*modules: str, extra: str, purpose: str) -> Any:
    """Import optional modules, and return the first.

    Parameters
    ----------
    *modules : str
        Dotted names, as ``"odc.stac"``.
    extra : str
        The extra of this package that brings them, as in `pyproject.toml`.
    purpose : str
        What needs them: the subject of the message.

    Raises
    ------
    MissingExtraError
        If one of them is not installed, or cannot be imported.

    Examples
    --------
    >>> require("json", extra="stac", purpose="Reading STAC items").loads("1")
    1
    """
    imported = []
    for module in modules:
        try:
            imported.append(import_module(module))
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name in _packages_of(module)
            reason = "is not installed" if missing else f"cannot be imported ({error})"
            raise MissingExtraError(
                f"{purpose} needs {module}, which {reason}: pip install 'deo-cube[{extra}]'"
            ) from error
    return imported[0]


def _packages_of(module: str) -> set[str]:
    """Return a module's own name and those of the packages that it is in."""
    parts = module.split(".")
    return {".".join(parts[: n + 1]) for n in range(len(parts))}
