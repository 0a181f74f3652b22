"""Split labelled places into training and test places that are apart in space, and warn where they are not."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deo_cube.errors import ArgumentError
from deo_cube.extras import require

__all__ = ["LeakWarning", "blocks", "halves", "neighbourhoods", "split_groups", "warn_of_leak"]

Array = NDArray[Any]


class LeakWarning(UserWarning):
    """Training and test cases are so near each other that a score says little about new places."""


def split_groups(groups: Array, labels: Array, share: float, *, seed: int = 0) -> Array:
    """Return a mask of the cases of about `share` of the groups: whole groups, drawn class by class.

    A group with several classes is drawn with the class that occurs first in it.
    """
    rng = np.random.default_rng(seed)
    ids, first = np.unique(groups, return_index=True)
    chosen: list[Array] = []
    for c in np.unique(labels[first]):
        own = rng.permutation(ids[labels[first] == c])
        sizes = np.cumsum([np.count_nonzero(groups == i) for i in own])
        k = int(np.searchsorted(sizes, share * sizes[-1])) + 1
        chosen.append(own[: min(k, max(len(own) - 1, 1))])
    return np.isin(groups, np.concatenate(chosen))


def halves(
    rows: Array, cols: Array, shapes: Array, train: Literal["left", "right", "top", "bottom"], gap: int
) -> tuple[Array, Array]:
    """Return masks of training and test cases: the two halves of each scene, without `gap` pixels in the middle.

    Parameters
    ----------
    rows, cols : (n,) int
        Place of each case in its scene, pixels.
    shapes : (n, 2) int
        Rows and columns of each case's scene.
    train : str
        The half for training.
    gap : int
        Width of the strip between the halves, pixels.
    """
    along, size = (cols, shapes[:, 1]) if train in ("left", "right") else (rows, shapes[:, 0])
    low, high = along < (size - gap) / 2, along >= (size + gap) / 2
    return (low, high) if train in ("left", "top") else (high, low)


def blocks(
    x: Array, y: Array, size: float, *, folds: int = 5, buffer: float = 0.0, seed: int = 0
) -> list[tuple[Array, Array]]:
    """Return folds of square blocks for cross-validation in space: pairs of boolean arrays (train, test).

    Blocks of `size` (units of x and y) are assigned to `folds` at random; training cases nearer than `buffer` to a test
    case are left out.

    Raises
    ------
    ArgumentError
        If the cases are in fewer than two blocks.
    """
    x, y = np.asarray(x, dtype="float64"), np.asarray(y, dtype="float64")
    cell = np.stack([np.floor(x / size), np.floor(y / size)])
    _, block = np.unique(cell, axis=1, return_inverse=True)
    block = block.ravel()
    n = int(block.max()) + 1
    if n < 2:
        raise ArgumentError(f"size must divide the cases into blocks, but all {len(x)} are in one block of {size:g}")
    fold_of_block = np.random.default_rng(seed).permutation(n) % min(folds, n)
    points = np.stack([x, y], axis=1)
    pairs = []
    for f in range(min(folds, n)):
        test = fold_of_block[block] == f
        train = ~test
        if buffer > 0 and train.any():
            cKDTree = require("scipy.spatial", extra="heads", purpose="a split with a buffer").cKDTree
            near, _ = cKDTree(points[test]).query(points[train], distance_upper_bound=buffer)
            train[np.flatnonzero(train)[np.isfinite(near)]] = False
        pairs.append((train, test))
    return pairs


def neighbourhoods(boxes: Array, reach: float) -> Array:
    """Return the neighbourhood of each box (n, 4: top, left, bottom, right); boxes within `reach` share one."""
    graphs = require("scipy.sparse.csgraph", extra="heads", purpose="grouping neighbours")

    top, left, low, right = np.asarray(boxes, "float64").T
    apart_y = np.maximum(top[:, None] - low[None], top[None] - low[:, None])
    apart_x = np.maximum(left[:, None] - right[None], left[None] - right[:, None])
    near = np.hypot(np.maximum(apart_y, 0), np.maximum(apart_x, 0)) <= reach
    return np.asarray(graphs.connected_components(near, directed=False)[1])


def warn_of_leak(train_xy: Array, test_xy: Array, reach: float, *, what: str = "the split") -> float:
    """Return the share of test cases with a training case within `reach`; warn with `LeakWarning` above 1 %.

    Parameters
    ----------
    train_xy, test_xy : (n, 2), (m, 2) float
        Places.
    reach : float
        Distance within which cases are not independent, in the same units: at least a patch plus the halo.
    what : str
        Name of the split in the warning.
    """
    cKDTree = require("scipy.spatial", extra="heads", purpose="the check of a split").cKDTree
    if not len(train_xy) or not len(test_xy):
        return 0.0
    near, _ = cKDTree(train_xy).query(test_xy, distance_upper_bound=reach)
    share = float(np.isfinite(near).mean())
    if share > 0.01:
        warnings.warn(
            f"{what} leaks: {share:.0%} of the test cases are within {reach:g} of a training case. Split by blocks "
            f"with a buffer (deo_cube.heads.splits.blocks(x, y, size, buffer={reach:g})), or read the score as "
            "recall of places already seen.",
            LeakWarning,
            stacklevel=3,
        )
    return share
