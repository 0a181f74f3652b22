"""Two dates of one place: what of a score is seeing change, and what is recognising damage in the second date."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.errors import ArgumentError
from deo_cube.evaluate.dense import Tokens, encode_scene, fitted_on, name_of, places
from deo_cube.evaluate.probes import linear_probe
from deo_cube.evaluate.readers import Scene
from deo_cube.evaluate.scores import Score, histogram_counts, make_score, stopwatch
from deo_cube.heads.splits import neighbourhoods, warn_of_leak

__all__ = ["change"]

Array = NDArray[Any]

DAMAGED = 0.25
"""A patch counts as damaged from this share of its pixels."""


def _share(label: Array, valid: Array, size: int) -> tuple[Array, Array]:
    """Whether at least `DAMAGED` of each whole patch is 1, and whether at least half of its pixels are valid."""
    h, w = label.shape[0] // size, label.shape[1] // size
    lab, ok = (
        a[: h * size, : w * size].reshape(h, size, w, size).mean(axis=(1, 3)) for a in ((label == 1) & valid, valid)
    )
    return (lab >= DAMAGED).astype(int), ok >= 0.5


APART = 100
"""Plots nearer to each other than this, in pixels, train and test together."""
NARROW = 300
"""Vectors up to this length may take any strength of regularisation: bands want next to none."""


def change(
    encode: Any,
    scenes: Sequence[Scene],
    *,
    name: str | None = None,
    task: str = "beetle",
    patch: int = 8,
    seeds: int = 3,
    most: int = 12000,
    tile: int = 64,
    halo: int = 16,
    pixels: bool = True,
) -> list[Score]:
    """Plots with two dates and a mask: what probes on both dates, on the second alone, and no labels at all make of it.

    Two folds of plots, `seeds` times: each plot is scored by a probe that never saw it nor its neighbours. A probe that
    sees the features of both dates side by side may recognise damage as well as see change; one that sees the second
    date alone can only recognise; the cosine distance sees change alone. An encoder with `distance(before, after)` (an
    index, say) gives its own in place of the cosine distance. All valid pixels are scored. Intervals are drawn over
    neighbourhoods of plots. Without `pixels` the probes on pixels, which take most of the time, are left out.

    Returns
    -------
    list of Score
        Average precision of ``<task>/patch`` and ``<task>/pixel`` (both dates), ``<task>/second`` (pixels, the second
        date alone) and ``<task>/cosine`` (pixels, no label used).
    """
    start, who = stopwatch(), name_of(encode, name)
    if any(s.before is None for s in scenes):
        raise ArgumentError(
            f"{next(s.name for s in scenes if s.before is None)} has one date only: change wants `before`"
        )
    encode = fitted_on(encode, [im for s in scenes for im in (s.before, s.image) if im is not None], scenes[0].bands)
    distance = getattr(encode, "distance", _cosine_distance)
    cases: dict[str, list[Any]] = {"patch": [], "pixel": [], "second": []}
    labels: dict[str, list[Array]] = {"patch": [], "pixel": []}
    at: list[Array] = []
    unlabelled = []
    for s in scenes:
        two = [encode_scene(encode, im, s.bands, valid=s.valid, tile=tile, halo=halo) for im in (s.before, s.image)]  # type: ignore[arg-type]
        r, c = np.nonzero(s.valid)
        apart = np.asarray(distance(two[0].values, two[1].values))
        unlabelled.append(Tokens(apart[None], two[0].stride, two[0].shape).at(r, c)[:, 0])
        both = Tokens(np.concatenate([t.values for t in two]), two[0].stride, two[0].shape)
        labels["pixel"].append(s.label[r, c])
        cases["pixel"].append((both, r, c))
        cases["second"].append((two[1], r, c))
        label, ok = _share(s.label, s.valid, patch)
        pr, pc = np.nonzero(ok)
        cases["patch"].append(both.patches(patch)[:, pr, pc].T)
        labels["patch"].append(label[pr, pc])
        at.append(np.stack([pr, pc], axis=1) * patch + patch // 2)
    encoded = stopwatch() - start
    near = _neighbours(scenes)
    where = places(scenes, np.repeat(np.arange(len(at)), [len(a) for a in at]), *np.concatenate(at).T)
    dim = int(both.values.shape[0])
    scores: list[Score] = []
    for what in ("patch", "pixel", "second")[: 3 if pixels else 1]:
        start, kind = stopwatch(), "patch" if what == "patch" else "pixel"
        y = np.concatenate(labels[kind])
        plot = np.repeat(np.arange(len(scenes)), [len(v) for v in labels[kind]])
        counts, leak = [], 0.0
        for seed in range(seeds):
            fold = np.random.default_rng(seed).permutation(int(near.max()) + 1)[near] % 2
            if what == "patch":
                leak = max(leak, warn_of_leak(where[fold[plot] == 0], where[fold[plot] == 1], patch + halo, what=task))
            score = np.empty(len(y), "float32")
            rng = np.random.default_rng(seed)
            for side in (0, 1):
                train, test = np.flatnonzero(fold[plot] != side), np.flatnonzero(fold[plot] == side)
                some = np.sort(rng.choice(train, min(most, len(train)), replace=False))
                probe = linear_probe(
                    _take(cases[what], plot, some), y[some], groups=near[plot[some]],
                    strengths=(0.001, 0.01, 0.1, *((1.0, 10.0, 100.0) if dim <= NARROW else ())),
                )  # fmt: skip
                for i in np.unique(plot[test]):
                    score[plot == i] = probe.decision_function(_take(cases[what], plot, np.flatnonzero(plot == i)))
            counts.append(histogram_counts(y, score, near[plot], int(near.max()) + 1))
        scores.append(
            make_score(
                who, f"{task}/{what}", "average precision", counts,
                tested=len(y), labels=min(most, len(y) // 2), seconds=encoded + stopwatch() - start,
                leak=leak if what == "patch" else scores[0].leak,
                protocol="logistic regression on standardised frozen features of "
                + ("the second date alone" if what == "second" else "both dates")
                + (f", patches of {patch} px, damaged from {DAMAGED:.0%} of them" if kind == "patch" else ", pixels")
                + f", C by held-out plots; two folds of {len(scenes)} plots, those within {APART} px together, {seeds} "
                "times; all valid pixels",
            )
        )  # fmt: skip
    y, plot = np.concatenate(labels["pixel"]), np.repeat(np.arange(len(scenes)), [len(v) for v in labels["pixel"]])
    index = hasattr(encode, "distance")
    scores.append(
        make_score(
            who, f"{task}/cosine", "average precision",
            [histogram_counts(y, np.concatenate(unlabelled), near[plot], int(near.max()) + 1)],
            tested=len(y), labels=0, seconds=encoded,
            protocol=("difference of the index" if index else "1 - cosine similarity of the two dates' features")
            + f", bilinear to pixels, no label used; {len(scenes)} plots; all valid pixels",
        )
    )  # fmt: skip
    return scores


def _neighbours(scenes: Sequence[Scene]) -> Array:
    """Neighbourhood of each scene; each its own where places are unknown."""
    if any(s.corner is None for s in scenes):
        return np.arange(len(scenes))
    boxes = [(*s.corner, s.corner[0] + s.label.shape[0], s.corner[1] + s.label.shape[1]) for s in scenes if s.corner]
    return neighbourhoods(np.array(boxes), APART)


def _cosine_distance(a: Array, b: Array) -> Array:
    dot = (a * b).sum(axis=0)
    return np.asarray(1 - dot / np.maximum(np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0), 1e-12))


def _take(features: list[Any], plots: Array, where: Array) -> Array:
    """Features of cases `where` (sorted), whether they lie ready or are read off the tokens of each plot."""
    out = []
    for i in np.unique(plots[where]):
        local = where[plots[where] == i] - np.searchsorted(plots, i)
        held = features[i]
        out.append(held[local] if isinstance(held, np.ndarray) else held[0].at(held[1][local], held[2][local]))
    return np.concatenate(out)
