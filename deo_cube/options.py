"""Defaults of a session: `deo_cube.set_options(model="vitb")`.

Options are read at the call and stored in the tasks. A Dask worker's own settings cannot change a result.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict, Unpack

from deo_cube.constants import DTYPES, PRECISIONS, RUNTIMES
from deo_cube.errors import ArgumentError, remedy
from deo_cube.paths import local_path

__all__ = ["Default", "Options", "allow_network", "get_option", "option", "set_options"]


#: OMP_NUM_THREADS when the package was imported ("": not set). The environment is not read later, because starting a
#: `LocalCluster` sets the variable to 1 in this process as well (distributed/nanny.py, `WorkerProcess.start`).
OMP_NUM_THREADS = os.environ.get("OMP_NUM_THREADS", "")


class Default(str):
    """Default of a signature that `set_options` may override.

    It equals its text (``Default("tiny") == "tiny"``), so that signatures and help show it. Its class tells it from the
    same text passed by the caller.
    """

    __slots__ = ()


def _flag(text: str) -> bool:
    return text.strip().lower() in {"1", "true", "yes", "on"}


_OPTIONS: dict[str, Any] = {
    # Model of functions that are given none.
    "model": "tiny",
    # Dtype of embeddings, one of DTYPES.
    "dtype": "float16",
    # Number format of matrix products, one of PRECISIONS.
    "precision": "float32",
    # Library that runs networks, one of RUNTIMES.
    "runtime": "torch",
    # True: compile networks with torch.compile. A text: with this backend of it.
    "compile": False,
    # Whether the C library's allocator may be changed for the whole process, for speed on the CPU.
    "cpu_tuning": False,
    # Folder of downloaded weights and measured rates.
    "cache_dir": local_path(os.environ.get("DEO_CUBE_CACHE", Path.home() / ".cache" / "deo_cube")),
    # True: never use the network.
    "offline": _flag(os.environ.get("DEO_CUBE_OFFLINE", "") or os.environ.get("HF_HUB_OFFLINE", "")),
}


def allow_network() -> str:
    """Return what a message advises where the option `offline` is set."""
    return remedy("deo_cube.set_options(offline=False)", "DEO_CUBE_OFFLINE=0 in the environment")


def _validated(name: str, value: Any) -> Any:
    if name not in _OPTIONS:
        raise ArgumentError(f"unknown option {name!r}: the options are {', '.join(_OPTIONS)}")
    if name == "model" and not (isinstance(value, str) and value):
        raise ArgumentError(f"option model must be the name of a model, got {value!r}")
    if name == "dtype" and str(value) not in DTYPES:
        raise ArgumentError(f"option dtype must be one of {', '.join(DTYPES)}, got {value!r}")
    if name == "precision" and str(value) not in PRECISIONS:
        raise ArgumentError(f"option precision must be one of {', '.join(PRECISIONS)}, got {value!r}")
    if name == "runtime" and str(value) not in RUNTIMES:
        raise ArgumentError(f"option runtime must be one of {', '.join(RUNTIMES)}, got {value!r}")
    if name == "compile" and not isinstance(value, (bool, str)):
        raise ArgumentError(
            f"option compile must be True, False or the name of a backend of torch.compile, got {value!r}"
        )
    if name == "cache_dir":
        if not isinstance(value, str | os.PathLike):
            raise ArgumentError(f"option cache_dir must be a path, got {value!r}")
        return local_path(value)
    if name in ("offline", "cpu_tuning") and not isinstance(value, bool):
        raise ArgumentError(f"option {name} must be True or False, got {value!r}")
    return value


class Options(TypedDict, total=False):
    """Keyword arguments of `set_options`."""

    model: str
    dtype: str
    precision: str
    runtime: str
    compile: bool | str
    cpu_tuning: bool
    cache_dir: str | Path
    offline: bool


class set_options:  # lower case: a call and a context manager, like xarray.set_options
    """Change defaults for the session, or within a `with` block.

    Parameters
    ----------
    model : str
        Model of functions that are given none (default "tiny").
    dtype : {"float16", "float32", "int8"}
        Dtype of embeddings where none is passed (default "float16").
    precision : {"float32", "bfloat16"}
        Number format of matrix products where none is passed (default "float32").
    runtime : {"torch", "openvino", "auto"}
        Library that runs networks where none is passed (default "torch"). `deo_cube.embed` documents each.
    compile : bool or str
        Compile networks with ``torch.compile``; a text names its backend. Default False: on the CPU it gains nothing.
        Changes no number beyond rounding.
    cpu_tuning : bool
        Allow this process to be changed for speed on the CPU (default False): before its first batch, glibc is set to
        keep up to 256 MiB of freed memory and to take arrays of up to 64 MiB from there (``mallopt``), and stays so.
        Not needed on the command line, in processes that ``scheduler="processes"`` starts, and on Dask's workers with
        a nanny, which are changed anyway. Everywhere else no call changes the process: torch's precision of matrix
        products is set while an encoder runs and restored after it. Changes no number.
    cache_dir : path
        Folder of downloaded weights and measured rates (default ``~/.cache/deo_cube`` or ``DEO_CUBE_CACHE``).
    offline : bool
        Never use the network (default False, or ``DEO_CUBE_OFFLINE``).

    Raises
    ------
    ValueError
        For an unknown option, or a value that an option cannot have.

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
    """Return the present value of an option."""
    return _OPTIONS[name]


def option(name: str, value: Any) -> Any:
    """Return `value` if the caller passed it, or the option `name` for a `Default` and for None."""
    return _OPTIONS[name] if value is None or isinstance(value, Default) else value
