"""Checks of arguments: one number, flag or choice, returned as the plain Python value or refused by name.

Every check takes the argument's name first, as its caller writes it, and raises `ArgumentError` or `ArgumentTypeError`.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from deo_cube.errors import ArgumentError, ArgumentTypeError, DeoCubeError
from deo_cube.paths import local_path

__all__ = ["boolean", "choice", "integer", "number", "number_or", "path", "sequence"]

#: A size or count above this is a slip: no array, cluster or model has so many, and arithmetic with it overflows.
LARGEST = 2**31 - 1


def integer(
    name: str,
    value: Any,
    *,
    minimum: int | None = 1,
    maximum: int = LARGEST,
    error: type[DeoCubeError] | None = None,
) -> int:
    """Return `value` as an int, if it is a whole number from `minimum` to `maximum`.

    NumPy integers are accepted; booleans, floats and text are not. `error` replaces the class of both errors.
    """
    try:
        if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
            raise TypeError
        whole = operator.index(value)
    except TypeError:
        raise (error or ArgumentTypeError)(f"{name} must be an integer, got {_short(value)}") from None
    if (minimum is not None and whole < minimum) or whole > maximum:
        raise (error or ArgumentError)(f"{name} must be {_range('an integer', minimum, maximum)}, got {_short(whole)}")
    return whole


def number(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    infinite: bool = False,
) -> float:
    """Return `value` as a float, if it is finite, from `minimum` to `maximum`, and greater than `above`.

    With `infinite` positive infinity is accepted, too: for ever, or no limit.

    Numbers of Python and NumPy are accepted; booleans and text are not.
    """
    scalar = value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
    if isinstance(scalar, bool) or not isinstance(scalar, Real):
        raise ArgumentTypeError(f"{name} must be a number, got {_short(value)}")
    try:
        real = float(scalar)
    except OverflowError:
        real = math.inf
    if infinite and real == math.inf:
        return real
    low, high = minimum is not None and real < minimum, maximum is not None and real > maximum
    if not math.isfinite(real) or low or high or (above is not None and real <= above):
        what = f"a finite number greater than {above:g}" if above is not None else "a finite number"
        raise ArgumentError(f"{name} must be {_range(what, minimum, maximum)}, got {_short(value)}")
    return real


def number_or(
    name: str, value: Any, words: Collection[str | None], *, finite: bool = True, several: bool = False
) -> None:
    """Check that `value` is one of `words` (texts or None) or a number; with `several`, or a sequence of numbers.

    ``finite=False`` accepts NaN and infinity.
    """
    listed = " or ".join(repr(w) for w in words)
    if value is None or isinstance(value, str):
        if value not in words:
            raise ArgumentError(f"{name} must be {listed} or a number, got {_short(value)}")
        return
    plain = getattr(value, "values", value) if several else value
    parts = list(plain) if several and isinstance(plain, Sequence | np.ndarray) and np.ndim(plain) == 1 else [value]
    for part in parts:
        if finite or not (isinstance(part, float) and not math.isfinite(part)):
            number(name, part)


def choice(name: str, value: Any, choices: Collection[str], *, error: type[DeoCubeError] = ArgumentError) -> str:
    """Return `value`, if it is one of the texts `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise error(f"{name} must be one of {', '.join(map(repr, choices))}, got {_short(value)}")
    return value


def boolean(name: str, value: Any) -> bool:
    """Return `value` as a bool, if it is True or False (of Python or NumPy), or 1 or 0."""
    if isinstance(value, bool | np.bool_ | int | np.integer) and value in (0, 1):
        return bool(value)
    raise ArgumentTypeError(f"{name} must be True or False, got {_short(value)}")


def path(name: str, value: Any) -> Path:
    """Return `value` as a Path, ``~`` and ``file://`` expanded, if it is the text of one or a path, and not empty."""
    if not isinstance(value, str | os.PathLike):
        raise ArgumentTypeError(f"{name} must be a path, got {_short(value)}")
    if not str(value):
        raise ArgumentError(f"{name} must be a path, got an empty text")
    return local_path(value)


def sequence(name: str, value: Any, what: str) -> tuple[Any, ...]:
    """Return `value` as a tuple, if it is a list of `what` or another sequence; texts are not."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ArgumentTypeError(f"{name} must be a list of {what}, got {_short(value)}")
    return tuple(value)


def _range(what: str, minimum: float | None, maximum: float | None) -> str:
    if minimum is None and maximum is None:
        return what
    if maximum is None or maximum == LARGEST:
        return f"{what}, at least {minimum}" if minimum is not None else f"{what}, at most {maximum}"
    return f"{what} from {minimum} to {maximum}" if minimum is not None else f"{what}, at most {maximum}"


def _short(value: Any) -> str:
    """Text of a value in a message: its repr where that is short, else its type."""
    shape = getattr(value, "shape", ())
    if isinstance(shape, tuple) and shape:
        return f"an array of {type(value).__name__} with shape {shape}"
    try:
        text = repr(value)
    except Exception:
        text = ""
    return text if 0 < len(text) <= 60 and "\n" not in text else f"an object of type {type(value).__name__}"
