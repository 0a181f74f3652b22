"""Check the values of a configuration against the annotations of its fields."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from deo_cube import arguments
from deo_cube.errors import ArgumentError, ArgumentTypeError

__all__ = ["check_fields"]

#: Integers that count from the end where they are negative.
_FROM_THE_END = ("mid", "late")
#: Integers that must be positive, wherever they are.
_POSITIVE = ("dim", "window", "patch", "global_size", "local_size", "depths", "heads")


def check_fields(config: Any, prefix: str = "--") -> None:
    """Raise for the first field of a dataclass, or of one within it, whose value is not what its annotation says.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        With the flag of the field, as ``--optimizer.batch``.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        flag, value, hint = f"{prefix}{field.name.replace('_', '-')}", getattr(config, field.name), hints[field.name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, hint):  # type: ignore[arg-type]
                raise ArgumentTypeError(f"{flag} must be a {hint.__name__}, got {value!r}")  # type: ignore[union-attr]
            check_fields(value, f"{flag}.")
        else:
            _check(flag, value, hint, field.name)


def _check(flag: str, value: Any, hint: Any, name: str) -> None:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value not in parts:
            raise ArgumentError(f"{flag} must be one of {', '.join(map(repr, parts))}, got {value!r}")
    elif origin is tuple:
        values = arguments.sequence(flag, value, "values")
        kinds = [parts[0]] * len(values) if parts[-1] is Ellipsis else parts
        if len(kinds) != len(values):
            raise ArgumentError(f"{flag} must be {len(kinds)} values, got {value!r}")
        for part, kind in zip(values, kinds, strict=True):
            _check(flag, part, kind, name)
    elif hint is bool:
        arguments.boolean(flag, value)
    elif hint is int:
        arguments.integer(flag, value, minimum=None if name in _FROM_THE_END else int(name in _POSITIVE))
    elif hint is float:
        arguments.number(flag, value, infinite=True)
    elif hint is str and not isinstance(value, str):
        raise ArgumentTypeError(f"{flag} must be a text, got {value!r}")
