"""Defaults that a user may change for a session: `deo_cube.set_options(model="vitb")`.

An option is read where the call is made, never inside a task, so that a Dask worker's own settings cannot change a
result (the options travel inside the task instead).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict, Unpack

from deo_cube.constants import DTYPES, PRECISIONS
from deo_cube.errors import ArgumentError
from deo_cube.paths import local_path

__all__ = ["Default", "Options", "get_option", "resolve", "set_options"]


#: Cores that OpenMP was given when the process began ("": all). Not what the environment says now: a `LocalCluster`
#: sets it to 1 in the process that starts it, too, and leaves it so (distributed/nanny.py, `WorkerProcess.start`).
OMP_NUM_THREADS = os.environ.get("OMP_NUM_THREADS", "")


class Default(str):
    """A text default of a signature which `set_options` may override.

    It equals its text (`Default("tiny") == "tiny"`), so that signatures and help read naturally; being of this class
    says that the caller did not choose it.
    """

    __slots__ = ()


def _flag(text: str) -> bool:
    return text.strip().lower() in {"1", "true", "yes", "on"}


_OPTIONS: dict[str, Any] = {
    # Model that verbs use when none is named.
    "model": "tiny",
    # Dtype of embeddings: float32, float16 or int8.
    "dtype": "float16",
    # What the network's matrix products are computed in: float32 or bfloat16.
    "precision": "float32",
    # Whether networks go through torch.compile: True, or the name of one of its backends.
    "compile": False,
    # Where weights from the hub and measured rates are kept.
    "cache_dir": local_path(os.environ.get("DEO_CUBE_CACHE", Path.home() / ".cache" / "deo_cube")),
    # True: never reach for the network.
    "offline": _flag(os.environ.get("DEO_CUBE_OFFLINE", "") or os.environ.get("HF_HUB_OFFLINE", "")),
}


def _validated(name: str, value: Any) -> Any:
    if name not in _OPTIONS:
        raise ArgumentError(f"unknown option {name!r}: the options are {', '.join(_OPTIONS)}")
    if name == "model" and not (isinstance(value, str) and value):
        raise ArgumentError(f"option model must be the name of a model, got {value!r}")
    if name == "dtype" and str(value) not in DTYPES:
        raise ArgumentError(f"option dtype must be one of {', '.join(DTYPES)}, got {value!r}")
    if name == "precision" and str(value) not in PRECISIONS:
        raise ArgumentError(f"option precision must be one of {', '.join(PRECISIONS)}, got {value!r}")
    if name == "compile" and not isinstance(value, (bool, str)):
        raise ArgumentError(
            f"option compile must be True, False or the name of a backend of torch.compile, got {value!r}"
        )
    if name == "cache_dir":
        if not isinstance(value, str | os.PathLike):
            raise ArgumentError(f"option cache_dir must be a path, got {value!r}")
        return local_path(value)
    if name == "offline" and not isinstance(value, bool):
        raise ArgumentError(f"option offline must be True or False, got {value!r}")
    return value


class Options(TypedDict, total=False):
    """What `set_options` takes."""

    model: str
    dtype: str
    precision: str
    compile: bool | str
    cache_dir: str | Path
    offline: bool


class set_options:  # lower case: a call and a context manager, like xarray.set_options
    """Change defaults for the session, or within a `with` block.

    Parameters
    ----------
    model : str
        Model used when a verb is given none (default "tiny").
    dtype : {"float16", "float32", "int8"}
        Dtype of embeddings when a verb is given none (default "float16").
    precision : {"float32", "bfloat16"}
        What networks compute their matrix products in when a verb is given none (default "float32").
    compile : bool or str
        Send networks through ``torch.compile``, with a backend of that name (default False: on the CPU it gains
        nothing). Changes no number beyond rounding.
    cache_dir : path
        Where downloaded weights and measured rates are kept (default ``~/.cache/deo_cube`` or ``DEO_CUBE_CACHE``).
    offline : bool
        Never reach for the network (default False, or ``DEO_CUBE_OFFLINE``).

    Raises
    ------
    ValueError
        For an unknown option or a value that it cannot take.

    Examples
    --------
    >>> import deo_cube
    >>> with deo_cube.set_options(dtype="float32"):
    ...     deo_cube.options.get_option("dtype")
    'float32'
    """

    def __init__(self, **options: Unpack[Options]) -> None:
        validated = {name: _validated(name, value) for name, value in options.items()}
        self._before: Mapping[str, Any] = {name: _OPTIONS[name] for name in validated}
        _OPTIONS.update(validated)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _OPTIONS.update(self._before)


def get_option(name: str) -> Any:
    """Value of an option now."""
    return _OPTIONS[name]


def resolve(name: str, value: Any) -> Any:
    """`value` where the caller chose it, the option `name` where a signature's `Default` or None stands in."""
    return _OPTIONS[name] if value is None or isinstance(value, Default) else value
