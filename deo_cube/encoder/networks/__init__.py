"""The networks that cards describe, and adapters that give other models the same interface."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from deo_cube.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_input"]


def check_input(
    x: Tensor,
    layers: Collection[str] | None,
    known: Collection[str],
    *,
    channels: int,
    multiple: int = 1,
    smallest: int = 1,
) -> set[str]:
    """Return the names of the layers to compute, by default all `known` ones.

    Raises
    ------
    ArgumentError
        For an unknown layer, another number of channels, or sides that `multiple` does not divide or that are smaller
        than `smallest`.
    """
    names = set(known if layers is None else layers)
    if unknown := names - set(known):
        raise ArgumentError(f"layer: expected one of {[*known]}, got {sorted(unknown)}")
    if x.ndim != 4 or x.shape[1] != channels or any(n % multiple or n < smallest for n in x.shape[2:]):
        raise ArgumentError(
            f"batch: expected [B, {channels}, H, W] with sides of at least {smallest} px that {multiple} divides, got "
            f"{tuple(x.shape)}"
        )
    return names
