"""Report why a command failed: one message in terms of flags and status 2, or a traceback for a fault of the package.

`fail` decides between the two. A problem of the input, a file, the disk or the network gives a message, whichever
library raised the error. Any other error is a fault of this package.
"""

from __future__ import annotations

import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from deo_cube.errors import DeoCubeError

__all__ = ["cause", "fail", "in_flags", "warnings_as_lines"]

#: Libraries that read and write the files of users, by their top package: their errors are about these files.
_LIBRARIES = {
    "aiohttp": "aiohttp",
    "botocore": "botocore",
    "distributed": "Dask",
    "fsspec": "fsspec",
    "geopandas": "geopandas",
    "h5netcdf": "netCDF",
    "h5py": "HDF5",
    "httpx": "httpx",
    "huggingface_hub": "Hugging Face",
    "icechunk": "icechunk",
    "netCDF4": "netCDF",
    "numcodecs": "zarr",
    "obstore": "obstore",
    "odc": "odc-geo",
    "planetary_computer": "Planetary Computer",
    "pyogrio": "GDAL",
    "pyproj": "PROJ",
    "pystac": "pystac",
    "pystac_client": "pystac-client",
    "rasterio": "GDAL",
    "requests": "requests",
    "rioxarray": "rioxarray",
    "safetensors": "safetensors",
    "shapely": "shapely",
    "stackstac": "stackstac",
    "urllib3": "urllib3",
    "zarr": "zarr",
}
#: Errors that a library raises where it was called wrongly, which is a fault of this package.
_FAULTS = (AssertionError, AttributeError, NameError, NotImplementedError, RecursionError, TypeError, UnboundLocalError)


def fail(
    error: Exception,
    parameters: Collection[str] = (),
    positions: Mapping[str, str] | None = None,
    *,
    program: str = "deo-cube",
) -> int:
    """Print why a command failed, and return its exit status: 2 with a message, 1 with a traceback for a fault.

    Parameters
    ----------
    error : Exception
        The error that ended the command.
    parameters, positions
        Of the command, as for `in_flags`.
    program : str
        Name at the start of each line.
    """
    text = cause(error)
    if text is None:
        traceback.print_exception(error)
        print(
            f"{program}: this is a fault of deo_cube, not of your input. Report it with the lines above and what "
            "`deo-cube doctor` prints",
            file=sys.stderr,
        )
        return 1
    print(f"{program}: {in_flags(text, parameters, positions)}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"{program}: {in_flags(str(note), parameters, positions)}", file=sys.stderr)
    return 2


def cause(error: BaseException) -> str | None:
    """Return the text of an error of the input, disk, network or call; None for a fault of this package."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, DeoCubeError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory{f': {error}' if str(error) else ''}. A smaller block=, or fewer workers, needs less"
    own = next((lib for c in type(error).__mro__ if (lib := _LIBRARIES.get(c.__module__.partition(".")[0]))), None)
    raised_in = _library_of_frames(error)
    if own is None and isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("deo_cube"):
        return f"a package is not installed: {error}"
    if own is None and not isinstance(error, OSError) and (raised_in is None or isinstance(error, _FAULTS)):
        return None
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"{text} is missing"
    library = own or raised_in
    return f"{library}: {text}" if library else text


def _library_of_frames(error: BaseException) -> str | None:
    """Return the library of the innermost frame outside the standard library, where the error was raised in effect."""
    standard = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
    library = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module, file = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
        if file.startswith(standard) and "-packages" not in file:
            continue
        reads = module.startswith(("xarray.backends", "xarray.coding", "xarray.conventions"))
        library = "xarray" if reads else _LIBRARIES.get(module.partition(".")[0])
    return library


def in_flags(message: str, parameters: Collection[str], positions: Mapping[str, str] | None = None) -> str:
    """Return `message` with the arguments of a command as the shell spells them.

    ``offset=-1000`` is ``--offset -1000``, ``overwrite=True`` is ``--overwrite``, ``bands={"B04": "red"}`` is
    ``--bands B04=red``, ``bands=["B04", "B03"]`` is ``--bands B04 B03``. Calls of Python are commands already:
    messages are composed with `deo_cube.errors.remedy`.

    Parameters
    ----------
    message : str
    parameters : collection of str, or mapping
        Python names of the arguments that are flags of the command; with their flags where these have other names.
    positions : mapping of str to str, optional
        Word of each argument that is given by position, by its Python name. A message begins with the name.
    """
    for name, word in (positions or {}).items():
        message = re.sub(rf"(?m)^((?:\d+\. )?){name}(?=: | must )", rf"\g<1>{word}", message)
        message = re.sub(rf"(?m)^((?:\d+\. )?){name}=(?=\S)", rf"\g<1>{word} ", message)
    flags = parameters if isinstance(parameters, Mapping) else {n: f"--{n.replace('_', '-')}" for n in parameters}
    for name, flag in flags.items():
        start = rf"(?<![\w.\-]){name}"

        def pairs(found: re.Match[str], flag: str = flag) -> str:
            items = re.findall(r"""["']?([^"',:]+)["']?\s*:\s*["']?([^"',]+)["']?""", found[1])
            return " ".join([flag, *(f"{k.strip()}={v.strip()}" for k, v in items)]) if items else f"{flag} ..."

        def listed(found: re.Match[str], flag: str = flag) -> str:
            return " ".join([flag, *re.findall(r"""[^"',\s]+""", found[1])])

        message = re.sub(start + r"=True\b", flag, message)
        message = re.sub(start + r"=False\b", flag.replace("--", "--no-", 1), message)
        message = re.sub(start + r"=None\b", f"{flag} none", message)
        message = re.sub(start + r"=\{([^}]*)\}", pairs, message)
        message = re.sub(start + r"=[\[(]([^\])]*)[\])]", listed, message)
        message = re.sub(start + r"""="([^"]*)"|""" + start + r"""='([^']*)'""", rf"{flag} \1\2", message)
        message = re.sub(start + r"=(-?[\w/~][\w./:~-]*\w|-?\w|\.\.\.)", rf"{flag} \1", message)
        message = re.sub(start + r"=(?=[\s,;.)]|$)", flag, message)
        message = re.sub(start + r"(?= must )", flag, message)
        message = re.sub(rf"(?m)^((?:\d+\. )?){name}(?=: )", rf"\g<1>{flag}", message)
    return message


@contextmanager
def warnings_as_lines(
    parameters: Collection[str] = (), positions: Mapping[str, str] | None = None, *, program: str = "deo-cube"
) -> Iterator[None]:
    """Print warnings to users as one line each, without the source line that Python adds; leave out FutureWarning."""
    python = warnings.showwarning

    def show(
        message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        if category is UserWarning:
            text = " ".join(str(message).split())
            print(f"{program}: warning: {in_flags(text, parameters, positions)}", file=file or sys.stderr)
        elif not issubclass(category, FutureWarning):  # to programmers, of what a library will change
            python(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = python
