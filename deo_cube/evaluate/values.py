"""Tasks beyond classes of images: numbers per patch (regression), and pixels with a series of dates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.evaluate.dense import Tokens, encode_scenes, fitted_on, name_of
from deo_cube.evaluate.probes import linear_probe, ridge_probe
from deo_cube.evaluate.readers import Scene, Series
from deo_cube.evaluate.scores import Score, confusion_counts, make_score, stopwatch, value_counts
from deo_cube.heads.splits import blocks

__all__ = ["class_shares", "patch_means", "regression", "series"]

Array = NDArray[Any]


def patch_means(values: Array, valid: Array, size: int) -> tuple[Array, Array]:
    """Mean of the valid values of each whole patch of `size` pixels, and whether at least half of it is valid."""
    h, w = values.shape[0] // size, values.shape[1] // size
    weight, total = (
        a[: h * size, : w * size].reshape(h, size, w, size).sum(axis=(1, 3))
        for a in (valid.astype("float64"), np.where(valid, values, 0).astype("float64"))
    )
    return total / np.maximum(weight, 1), weight >= size**2 / 2


def class_shares(scenes: Sequence[Scene], code: int) -> list[Array]:
    """Maps (H, W) of 1 where a scene has the class `code`, else 0: their patch means are its share."""
    return [(s.label == code).astype("float32") for s in scenes]


def regression(
    encode: Any,
    scenes: Sequence[Scene],
    values: Sequence[Array],
    train: Array,
    *,
    task: str,
    unit: str,
    name: str | None = None,
    patch: int = 8,
    block: int = 32,
    most: int = 8000,
    tile: int = 64,
    halo: int = 16,
    encoded: Sequence[Tokens] | None = None,
) -> list[Score]:
    """Score numbers per patch: ridge regression on frozen features, scenes of `train` against the others.

    Parameters
    ----------
    scenes : sequence of Scene
        Their labels are not read.
    values : sequence of (H, W) arrays
        The number of each pixel; a patch has the mean of its valid pixels.
    train : (N,) or (S, N) bool
        Scenes that train, the others test; S such splits are reported as seeds, and each tests some scenes.
    task, unit : str
        Name of the task, unit of the values.
    patch : int
        Side of a patch, pixels.
    encoded : sequence of Tokens, optional
        Where the scenes are encoded already.

    Returns
    -------
    list of Score
        R2 of ``<task>/R2`` and the mean absolute error (in `unit`, less is better) of ``<task>/MAE``; intervals over
        blocks of `block` pixels of the test scenes.
    """
    start, who = stopwatch(), name_of(encode, name)
    splits: Array = np.atleast_2d(np.asarray(train, dtype=bool))
    if encoded is None:
        used = [s.image for s, trains in zip(scenes, np.any(splits, axis=0).tolist(), strict=True) if trains]
        encoded = encode_scenes(fitted_on(encode, used, scenes[0].bands), scenes, tile=tile, halo=halo)
    features, truth, group, scene = [], [], [], []
    for i, (s, v, t) in enumerate(zip(scenes, values, encoded, strict=True)):
        mean, ok = patch_means(v, s.valid, patch)
        r, c = np.nonzero(ok)
        features.append(t.patches(patch)[:, r, c].T)
        truth.append(mean[r, c])
        scene.append(np.full(len(r), i))
        group.append(np.stack([scene[-1], r * patch // block, c * patch // block], axis=1))
    x, y, where = np.concatenate(features), np.concatenate(truth), np.concatenate(scene)
    _, g = np.unique(np.concatenate(group), axis=0, return_inverse=True)
    g = g.ravel()
    counts, labels = [], 0
    for split in splits:
        fit = np.flatnonzero(split[where])
        fit = np.sort(np.random.default_rng(0).permutation(fit)[:most])
        test = np.flatnonzero(~split[where])
        probe = ridge_probe(x[fit], y[fit], groups=g[fit])
        # A share is never above one, a mass never below nothing: no prediction beyond what was seen.
        predicted = np.clip(probe.predict(x[test]), y[fit].min(), y[fit].max())
        counts.append(value_counts(y[test], predicted, g[test], int(g.max()) + 1))
        labels = max(labels, len(fit))
    total = np.sum(counts, axis=0)
    seconds = stopwatch() - start
    said = (
        f"ridge regression on standardised frozen features of patches of {patch} px, its strength by held-out blocks; "
        f"{len(splits)} split(s) of {len(scenes)} scenes, none trains and tests in one; intervals over blocks of "
        f"{block} px"
    )
    return [
        make_score(
            who, f"{task}/{short}", metric, [total], tested=int(total[:, 0].sum()), labels=labels, seconds=seconds,
            protocol=said if metric == "R2" else f"{said}; {unit}",
        )
        for short, metric in (("R2", "R2"), ("MAE", "mean absolute error"))
    ]  # fmt: skip


FLAT = 16
"""Side, pixels, of the uniform image that an encoder of images is shown for one pixel of one date."""


def series(
    encode: Any,
    data: Series,
    *,
    name: str | None = None,
    block: float = 0.25,
    buffer: float = 0.05,
    folds: int = 5,
) -> list[Score]:
    """Score pixels with a series of dates: a linear probe on one vector per pixel, folds of blocks in space.

    An encoder with ``series(values (N, T, C), valid (N, T), bands) -> (N, D)`` makes the vectors itself. Any other is
    shown each date as a uniform image, and mean and standard deviation of its vectors over the valid dates are taken.

    Parameters
    ----------
    block, buffer : float
        Side of a block, and distance within which no training pixel lies from a test pixel, degrees.

    Returns
    -------
    list of Score
        Macro F1 of ``<data>/series``; intervals over blocks.
    """
    start, who = stopwatch(), name_of(encode, name)
    x = series_vectors(encode, data)
    splits = blocks(data.place[:, 0], data.place[:, 1], block, folds=folds, buffer=buffer)
    _, group = np.unique(np.floor(data.place / block), axis=0, return_inverse=True)
    group = group.ravel()
    counts = np.zeros((int(group.max()) + 1, len(data.classes), len(data.classes)))
    for train, test in splits:
        probe = linear_probe(x[train], data.labels[train], groups=group[train], balanced=True)
        counts += confusion_counts(
            data.labels[test], probe.predict(x[test]), group[test], len(counts), len(data.classes)
        )
    return [
        make_score(
            who, f"{data.name}/series", "macro F1", [counts],
            tested=len(x), labels=int(np.mean([t.sum() for t, _ in splits])), seconds=stopwatch() - start, leak=0.0,
            protocol="balanced logistic regression on one standardised vector per pixel, C by held-out blocks; "
            f"{folds} folds of blocks of {block:g} degrees with {buffer:g} degrees between training and test; "
            "intervals over blocks",
        )
    ]  # fmt: skip


def series_vectors(encode: Any, data: Series) -> Array:
    """One vector per pixel (N, D): the encoder's own of a series, or mean and deviation of those of its dates."""
    if hasattr(encode, "series"):
        return np.asarray(encode.series(data.values, data.valid, data.bands))
    pixel, date = np.nonzero(data.valid)
    flat = np.broadcast_to(data.values[pixel, date][:, :, None, None], (len(pixel), len(data.bands), FLAT, FLAT))
    encode = fitted_on(encode, flat[::12], data.bands)
    pool = getattr(encode, "pool", None)
    each: list[Array] = []
    for i in range(0, len(flat), 256):
        images = np.ascontiguousarray(flat[i : i + 256], dtype="float32")
        each.append(np.asarray(pool(images, data.bands) if pool else encode(images, data.bands).mean(axis=(2, 3))))
    z = np.concatenate(each).astype("float64")
    n = np.maximum(np.bincount(pixel, minlength=len(data.values)), 1)[:, None]
    mean = np.zeros((len(data.values), z.shape[1]))
    np.add.at(mean, pixel, z)
    mean /= n
    spread = np.zeros_like(mean)
    np.add.at(spread, pixel, (z - mean[pixel]) ** 2)
    return np.concatenate([mean, np.sqrt(spread / n)], axis=1).astype("float32")
