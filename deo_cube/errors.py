"""Errors of the package, by name.

Every error that a user's mistake causes is a `DeoCubeError` and also the builtin that a Python user would catch. A
message states what was expected, what was found, and the argument or command that fixes it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = [
    "AmbiguousUnitsError",
    "ArgumentError",
    "ArgumentTypeError",
    "CatalogueError",
    "CubeProblemsError",
    "DeoCubeError",
    "DeviceError",
    "HrefRefusedError",
    "InputNotFoundError",
    "LabelsError",
    "EncoderOutputError",
    "MissingBandsError",
    "MissingCRSError",
    "MissingExtraError",
    "ModelCardError",
    "ResolutionMismatchError",
    "SchedulerError",
    "SelectionError",
    "StorageError",
    "StorageRefusedError",
    "StorageUnreachableError",
    "StoreMismatchError",
    "StoreNotFoundError",
    "TilePlanError",
    "UnknownModelError",
    "WeightsMismatchError",
    "WeightsNotFoundError",
]


class DeoCubeError(Exception):
    """Base of every error raised on purpose by deo_cube."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, which turns the line breaks of a message into "\n".
        return str(self.args[0]) if self.args else ""


class ArgumentError(DeoCubeError, ValueError):
    """An argument's value is not acceptable. The message names the argument."""


class ArgumentTypeError(DeoCubeError, TypeError):
    """An argument is of the wrong type. The message names the argument and how to make one of the right type."""


class SelectionError(DeoCubeError, KeyError):
    """A name, date or column that an argument selects does not exist."""


class InputNotFoundError(DeoCubeError, FileNotFoundError):
    """A file or folder that an argument names does not exist."""


class LabelsError(DeoCubeError, ValueError):
    """Labels cannot be read, or do not assign places to classes."""


class HrefRefusedError(DeoCubeError, PermissionError):
    """An item or reference names a file that it may not: on this machine, or inside its network."""


class StorageError(DeoCubeError, OSError):
    """A file, chunk or object could not be read or written."""


class StorageRefusedError(StorageError, PermissionError):
    """An object store refuses access: keys are missing or wrong."""


class StorageUnreachableError(StorageError, ConnectionError):
    """An object store does not answer, or the bucket does not exist."""


class MissingBandsError(DeoCubeError, KeyError):
    """The cube lacks bands that the model expects, or names one of them twice."""


class AmbiguousUnitsError(DeoCubeError, ValueError):
    """The metadata do not decide units, offset or nodata, or contradict themselves."""


class MissingCRSError(DeoCubeError, ValueError):
    """The cube has no CRS, or no regular unrotated grid of x and y coordinates."""


class ResolutionMismatchError(DeoCubeError, ValueError):
    """The cube's pixels are much larger or smaller than those the model was trained on."""


class TilePlanError(DeoCubeError, ValueError):
    """Sizes of tile, halo, block and patch that do not fit each other, or the cube."""


class EncoderOutputError(DeoCubeError, ArithmeticError):
    """An encoder gives NaN or infinity where pixels are valid, or values that the output's dtype does not hold."""


class ModelCardError(DeoCubeError, ValueError):
    """A model card is damaged, contradicts itself, or asks for what a card may not."""


class UnknownModelError(DeoCubeError, KeyError):
    """No model, layer or normalization has this name."""


class WeightsNotFoundError(DeoCubeError, FileNotFoundError):
    """The weights are in none of the places that were searched."""


class WeightsMismatchError(DeoCubeError, ValueError):
    """The weights file is damaged, foreign, or does not fill the network exactly."""


class StoreMismatchError(DeoCubeError, ValueError):
    """The store on disk was made by another model, cube or plan, or is not one of ours."""


class StoreNotFoundError(InputNotFoundError, StoreMismatchError):
    """No store is at a path."""


class DeviceError(DeoCubeError, RuntimeError):
    """The device is missing or too small, or no worker has it."""


class SchedulerError(DeoCubeError, ConnectionError):
    """A Dask scheduler is missing, does not answer, or was lost during a run."""


class CatalogueError(DeoCubeError, ConnectionError):
    """A catalogue is unknown or does not answer, or the option offline is set."""


class MissingExtraError(DeoCubeError, ImportError):
    """An optional dependency is not installed. `deo_cube.extras.require` raises it."""


class CubeProblemsError(DeoCubeError):
    """Several things are wrong with a cube at once.

    The error is of the class of each of them as well (``except MissingBandsError`` catches it if a band is missing),
    its message lists all, and `problems` holds the single errors.
    """

    problems: tuple[DeoCubeError, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return joined, (self.problems,)


_in_shell = False


def remedy(python: str, shell: str) -> str:
    """Return the part of a message that says how to fix a mistake: a call, or on the command line what does the same.

    Arguments need no such pair: `deo_cube.cli_errors.in_flags` writes ``offset=0`` as ``--offset 0``.

    Examples
    --------
    >>> remedy("deo_cube.open_cube('a.zarr')", "deo-cube embed a.zarr OUT")
    "deo_cube.open_cube('a.zarr')"
    >>> with commands_as_remedies():
    ...     remedy("deo_cube.open_cube('a.zarr')", "deo-cube embed a.zarr OUT")
    'deo-cube embed a.zarr OUT'
    """
    return shell if _in_shell else python


@contextlib.contextmanager
def commands_as_remedies() -> Iterator[None]:
    """Let messages name commands, in a process that is the command line's: all of its threads have the same user."""
    global _in_shell
    before, _in_shell = _in_shell, True
    try:
        yield
    finally:
        _in_shell = before


@contextlib.contextmanager
def naming(argument: str, instead_of: str = "path") -> Iterator[None]:
    """Let errors name the argument of the caller, `argument`, instead of that of a function which it calls."""
    try:
        yield
    except DeoCubeError as error:
        text = str(error)
        if text.startswith((f"{instead_of}: ", f"{instead_of} must ")):
            error.args = (argument + text.removeprefix(instead_of), *error.args[1:])
        raise


def joined(problems: Sequence[DeoCubeError]) -> DeoCubeError:
    """Join errors: a single one is returned unchanged, several become a `CubeProblemsError` of all their classes."""
    if len(problems) == 1:
        return problems[0]
    texts = [str(p).replace("\n", "\n   ") for p in problems]
    listed = "\n".join(f"{i}. {text}" for i, text in enumerate(texts, 1))
    error = _class_of(tuple(dict.fromkeys(type(p) for p in problems)))(f"{len(problems)} problems:\n{listed}")
    error.problems = tuple(problems)
    return error


@functools.cache
def _class_of(kinds: tuple[type[DeoCubeError], ...]) -> type[CubeProblemsError]:
    # A class and one derived from it cannot both be bases in this order, and need not be.
    bases = tuple(k for k in kinds if not any(k is not other and issubclass(other, k) for other in kinds))
    return type("CubeProblemsError", (CubeProblemsError, *bases), {"__module__": __name__})
