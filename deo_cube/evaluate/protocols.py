"""Protocols that score any encoder on real labelled data: how each published number is measured.

An encoder is any ``encode(array (B, C, H, W) float32 DN, names of the bands) -> (B, D, h, w)``; it takes of the bands
what it knows. One with `fitted(images, bands)` is first shown the training images, without labels; one with
`pool(array, bands) -> (B, D)` makes its own chip vectors. Features are frozen: only probes are trained. Every split
keeps groups (runs, halves with a gap, plots) apart, and every interval is drawn over groups and seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.errors import ArgumentError
from deo_cube.evaluate.features import Tokens, encode_scene, encode_scenes, fitted_on, name_of, places, pool_chips
from deo_cube.evaluate.readers import ChipSet, Scene, Series
from deo_cube.evaluate.scores import (
    METRICS,
    Score,
    accuracy_counts,
    confusion_counts,
    histogram_counts,
    make_score,
    stopwatch,
    value_counts,
)
from deo_cube.heads.conv import upernet_logits, upernet_tensors
from deo_cube.heads.probes import choose_cases, knn, linear_probe, ridge_probe
from deo_cube.heads.splits import blocks, halves, neighbourhoods, split_groups, warn_of_leak

__all__ = [
    "change",
    "chips_of",
    "class_shares",
    "classification",
    "land_cover",
    "level_shift",
    "patch_means",
    "plots_apart",
    "regression",
    "segmentation",
    "series",
    "transfer",
    "upernet",
    "upernet_halves",
]


Array = NDArray[Any]


def classification(
    encode: Any,
    data: ChipSet,
    *,
    name: str | None = None,
    few: Sequence[int] = (10, 100),
    gains: Sequence[float] = (0.8, 1.2),
    seeds: int = 5,
    k: int = 5,
) -> list[Score]:
    """Score chips by nearest neighbours, by linear probes on few labels, and by what a change of light costs.

    Half of the groups of each class train, the other half test. Neighbours see all training chips; a linear probe
    sees `few` per class, drawn `seeds` times. For the light, test images only are multiplied by each of `gains`.

    Parameters
    ----------
    encode : encoder
        See the module.
    data : ChipSet
        Chips with one label each, for example of `read_eurosat`.
    name : str, optional
        What the encoder is called in the scores.
    few : sequence of int
        Labels per class of the linear probes.
    gains : sequence of float
        Factors of the light; none skips the test.
    seeds : int
        Draws of the few labels.

    Returns
    -------
    list of Score
        Tasks ``<data>/knn5``, ``<data>/linear10`` ..., ``<data>/light`` (the loss of accuracy, less is better).
    """
    start, model = stopwatch(), name_of(encode, name)
    _, groups = np.unique(data.groups, return_inverse=True)
    n = int(groups.max()) + 1
    train = split_groups(groups, data.labels, 0.5, seed=0) if data.train is None else data.train
    test = ~train
    y, g = data.labels, groups[test]
    encode = fitted_on(encode, data.images[train], data.bands)
    z = pool_chips(encode, data.images, data.bands)
    encoded = stopwatch() - start
    runs = f"{int(train.sum())} chips of {len(np.unique(groups[train]))} groups train, the others test"
    runs += "" if data.train is None else " (the split of the data set)"

    start = stopwatch()
    counts = accuracy_counts(y[test], knn(z[train], y[train], z[test], k=k), g, n)
    scores = [
        make_score(
            model, f"{data.name}/knn{k}", "accuracy", [counts],
            tested=int(test.sum()), labels=int(train.sum()), seconds=encoded + stopwatch() - start,
            protocol=f"{k} nearest neighbours, cosine on standardised frozen features; {runs}",
        )
    ]  # fmt: skip
    for per_class in few:
        start, each = stopwatch(), []
        for seed in range(seeds):
            some = np.flatnonzero(train)[choose_cases(y[train], per_class, seed)]
            probe = linear_probe(z[some], y[some])
            each.append(accuracy_counts(y[test], probe.predict(z[test]), g, n))
        scores.append(
            make_score(
                model, f"{data.name}/linear{per_class}", "accuracy", each,
                tested=int(test.sum()), labels=per_class * len(data.classes),
                seconds=encoded + stopwatch() - start,
                protocol=f"logistic regression on standardised frozen features, C by a held-out third, {per_class} "
                f"labels per class drawn {seeds} times; {runs}",
            )
        )  # fmt: skip
    if gains:
        start, after = stopwatch(), np.zeros_like(counts)
        for gain in gains:
            lit = pool_chips(encode, data.images[test] * np.float32(gain), data.bands)
            after += accuracy_counts(y[test], knn(z[train], y[train], lit, k=k), g, n) / len(gains)
        scores.append(
            make_score(
                model, f"{data.name}/light", "loss of accuracy", [np.stack([counts, after])],
                tested=int(test.sum()), labels=int(train.sum()), seconds=stopwatch() - start,
                protocol=f"{k} nearest neighbours as above; test images multiplied by {', '.join(map(str, gains))}, "
                "mean loss over these",
            )
        )  # fmt: skip
    return scores


def _majority(label: Array, valid: Array, size: int) -> tuple[Array, Array]:
    """Return the most frequent label of each whole patch, and whether at least half of its pixels have a label."""
    h, w = label.shape[0] // size, label.shape[1] // size
    lab = np.where(valid, label, -1)[: h * size, : w * size]
    cells = lab.reshape(h, size, w, size).swapaxes(1, 2).reshape(h, w, -1)
    codes = np.unique(cells)
    codes = codes[codes >= 0]
    if not len(codes):
        return np.full((h, w), -1), np.zeros((h, w), bool)
    share = np.stack([(cells == c).mean(axis=-1) for c in codes])
    return codes[share.argmax(axis=0)], share.sum(axis=0) >= 0.5


def _cases(scenes: Sequence[Scene], tokens: Sequence[Tokens], size: int, block: int, step: int = 2) -> dict[str, Array]:
    """Return cases with features, label and place: all patches (`size` > 1) or pixels in steps (`size` 1)."""
    x, y, scene, rows, cols = [], [], [], [], []
    for i, (s, t) in enumerate(zip(scenes, tokens, strict=True)):
        if size > 1:
            label, ok = _majority(s.label, s.valid, size)
            r, c = np.nonzero(ok)
            x.append(t.patches(size)[:, r, c].T)
            at = r * size + size // 2, c * size + size // 2
        else:
            label, ok = s.label, s.valid & (s.label >= 0)
            r, c = np.nonzero(ok[::step, ::step])
            r, c = step * r, step * c
            x.append(t.at(r, c))
            at = r, c
        y.append(label[r, c])
        scene.append(np.full(len(r), i))
        rows.append(at[0])
        cols.append(at[1])
    out = {"x": np.concatenate(x), "y": np.concatenate(y), "scene": np.concatenate(scene)}
    out |= {"row": np.concatenate(rows), "col": np.concatenate(cols)}
    out["block"] = np.unique(
        np.stack([out["scene"], out["row"] // block, out["col"] // block]), axis=1, return_inverse=True
    )[1].ravel()
    return out


def _land_cover_counts(
    train_cases: dict[str, Array], test_cases: dict[str, Array], shapes: Array, gap: int, most: int, reach: float
) -> tuple[list[Array], float]:
    """Return confusion counts of the four splits into halves, each of which tests once, and the share that leaks."""
    # Halves are of one scene: another cannot leak into it, whatever its place.
    at = [np.stack([c["row"] + c["scene"] * 1e7, c["col"]], axis=1) for c in (train_cases, test_cases)]
    leak = 0.0
    codes = np.unique(np.concatenate([train_cases["y"], test_cases["y"]]))
    n = int(test_cases["block"].max()) + 1
    counts = []
    for direction in ("left", "right", "top", "bottom"):
        train, _ = halves(train_cases["row"], train_cases["col"], shapes[train_cases["scene"]], direction, gap)
        _, test = halves(test_cases["row"], test_cases["col"], shapes[test_cases["scene"]], direction, gap)
        leak = max(leak, warn_of_leak(at[0][train], at[1][test], reach, what=f"the split into halves ({direction})"))
        where = np.flatnonzero(train)
        if len(where) > most:
            where = np.random.default_rng(0).choice(where, most, replace=False)
        probe = linear_probe(train_cases["x"][where], train_cases["y"][where], groups=train_cases["block"][where])
        found = probe.predict(test_cases["x"][test])
        truth = test_cases["y"][test]
        counts.append(
            confusion_counts(
                np.searchsorted(codes, truth), np.searchsorted(codes, found), test_cases["block"][test], n, len(codes)
            )
        )
    return counts, leak


def land_cover(
    encode: Any,
    scenes: Sequence[Scene],
    *,
    test_scenes: Sequence[Scene] | None = None,
    name: str | None = None,
    task: str = "land cover",
    patch: int = 8,
    gap: int = 32,
    block: int = 32,
    most: int = 8000,
    tile: int = 64,
    halo: int = 16,
    pixels: bool = True,
    metric: str = "macro F1",
) -> list[Score]:
    """Score scenes with a class per pixel by linear probes on patches and on pixels, halves of each scene apart.

    Each scene is cut in halves with `gap` pixels between; one half of every scene trains and the other tests, for left,
    right, top and bottom: four splits, reported as seeds. Intervals are drawn over blocks of `block` pixels.

    Parameters
    ----------
    scenes : sequence of Scene
        For example of `read_terramesh`.
    test_scenes : sequence of Scene, optional
        The same places in another product (L1C): trained on `scenes`, tested on these.
    patch : int
        Side of a patch in pixels; its label is the most frequent class.
    gap, block : int
        Pixels.
    most : int
        Largest number of cases that train.
    tile, halo : int
        How scenes are cut for the encoder, pixels.
    pixels : bool
        Score pixels too (features bilinear between tokens; every second row and column).
    metric : {"macro F1", "mean IoU"}
        Over the classes.

    Returns
    -------
    list of Score
        `metric` of ``<task>/patch`` and ``<task>/pixel``.
    """
    start, model = stopwatch(), name_of(encode, name)
    shapes = np.array([s.image.shape[1:] for s in scenes])
    encode = fitted_on(encode, [s.image for s in scenes], scenes[0].bands)
    tokens = [encode_scene(encode, s.image, s.bands, valid=s.valid, tile=tile, halo=halo) for s in scenes]
    others = (
        tokens
        if test_scenes is None
        else [encode_scene(encode, s.image, s.bands, valid=s.valid, tile=tile, halo=halo) for s in test_scenes]
    )
    encoded = stopwatch() - start
    scores = []
    for what, size in (("patch", patch), ("pixel", 1))[: 2 if pixels else 1]:
        start = stopwatch()
        train_cases = _cases(scenes, tokens, size, block)
        test_cases = train_cases if test_scenes is None else _cases(test_scenes, others, size, block)
        # A case depends on pixels within its own side and the context that its features are sure to have.
        counts, leak = _land_cover_counts(train_cases, test_cases, shapes, gap, most, size + halo)
        scores.append(
            make_score(
                model, f"{task}/{what}", metric, counts,
                tested=int(np.mean([c.sum() for c in counts])), labels=min(most, len(train_cases["y"]) // 2),
                seconds=encoded + stopwatch() - start, leak=leak,
                protocol=f"logistic regression on standardised frozen features of {what}s"
                + (f" of {patch} px" if size > 1 else " (every second row and column)")
                + f", C by held-out blocks; halves of {len(scenes)} scenes with a gap of {gap} px, four splits; "
                f"intervals over blocks of {block} px",
            )
        )  # fmt: skip
    return scores


def level_shift(encode: Any, l2a: Sequence[Scene], l1c: Sequence[Scene], **options: Any) -> list[Score]:
    """Train on L2A and test on L1C of the other half: task ``L2A to L1C/patch``. Options as of `land_cover`."""
    return land_cover(encode, l2a, test_scenes=l1c, task="L2A to L1C", **{"pixels": False, **options})


def transfer(
    encode: Any,
    train: Sequence[Scene],
    test: Sequence[Scene],
    *,
    task: str,
    name: str | None = None,
    patch: int = 8,
    block: int = 32,
    most: int = 8000,
    step: int = 2,
    tile: int = 64,
    halo: int = 16,
    metric: str = "macro F1",
    encoded: tuple[Sequence[Tokens], Sequence[Tokens]] | None = None,
) -> list[Score]:
    """Score other places than those of training: linear probes on the scenes `train`, tested on all of `test`.

    Classes that no training scene shows are left out of the test: nothing could have been learnt of them.

    Parameters
    ----------
    train, test : sequence of Scene
        Labels of one legend.
    task : str
        Name of the task in the scores.
    patch, block, most, tile, halo, metric
        As of `land_cover`.
    step : int
        Pixels in steps of this many rows and columns are cases.
    encoded : (tokens of train, tokens of test), optional
        Where the scenes are encoded already.

    Returns
    -------
    list of Score
        `metric` of ``<task>/patch`` and ``<task>/pixel``; intervals over blocks of `block` pixels of the test scenes.
    """
    start, model = stopwatch(), name_of(encode, name)
    if encoded is None:
        encode = fitted_on(encode, [s.image for s in train], train[0].bands)
        encoded = (
            encode_scenes(encode, train, tile=tile, halo=halo),
            encode_scenes(encode, test, tile=tile, halo=halo),
        )
    train_tokens, test_tokens = encoded
    encoding, scores = stopwatch() - start, []
    leak = leak_between(train, test, halo)
    for what, size in (("patch", patch), ("pixel", 1)):
        start = stopwatch()
        a = _cases(train, train_tokens, size, block, step)
        b = _cases(test, test_tokens, size, block, step)
        some = np.random.default_rng(0).permutation(len(a["y"]))[:most]
        probe = linear_probe(a["x"][some], a["y"][some], groups=a["block"][some])
        known = np.isin(b["y"], np.unique(a["y"][some]))
        codes = np.unique(np.concatenate([a["y"], b["y"]]))
        truth, predicted = (np.searchsorted(codes, v) for v in (b["y"][known], probe.predict(b["x"][known])))
        counts = confusion_counts(truth, predicted, b["block"][known], int(b["block"].max()) + 1, len(codes))
        scores.append(
            make_score(
                model, f"{task}/{what}", metric, [counts],
                tested=len(truth), labels=len(some), seconds=encoding + stopwatch() - start, leak=leak,
                protocol=f"logistic regression on standardised frozen features of {what}s"
                + (f" of {patch} px" if size > 1 else f" (every {step}. row and column)")
                + f", C by held-out blocks; {len(train)} scenes train, {len(test)} others test; intervals over blocks "
                f"of {block} px",
            )
        )  # fmt: skip
    return scores


def leak_between(train: Sequence[Scene], test: Sequence[Scene], halo: int) -> float | None:
    """Return, and warn of, the share of test pixels within `halo` of a training scene; None without places."""
    if any(s.corner is None for s in (*train, *test)):
        return None

    def grid(scenes: Sequence[Scene]) -> Array:
        each = [np.indices(s.label.shape)[:, ::4, ::4].reshape(2, -1) for s in scenes]
        index = np.repeat(np.arange(len(scenes)), [e.shape[1] for e in each])
        return places(scenes, index, *np.concatenate(each, axis=1))

    return warn_of_leak(grid(train), grid(test), 4 + halo, what="the split into scenes")


def segmentation(
    encode: Any,
    train: Sequence[Scene],
    test: Sequence[Scene],
    *,
    name: str | None = None,
    task: str = "segmentation",
    most: int = 20000,
    tile: int = 64,
    halo: int = 16,
) -> list[Score]:
    """Score scenes of two given parts: a linear probe on pixels of `train`, mean IoU on pixels of `test`.

    Every second row and column is looked at, features bilinear between tokens. Intervals are drawn over test scenes.

    Returns
    -------
    list of Score
        Mean IoU of ``<task>/pixel``.
    """
    start, model = stopwatch(), name_of(encode, name)
    encode = fitted_on(encode, [s.image for s in train], train[0].bands)

    def seen(scenes: Sequence[Scene]) -> dict[str, Array]:
        tokens = [encode_scene(encode, s.image, s.bands, valid=s.valid, tile=tile, halo=halo) for s in scenes]
        return _cases(scenes, tokens, 1, 1 << 20)

    a, b = seen(train), seen(test)
    leak = leak_between(train, test, halo)
    some = np.random.default_rng(0).permutation(len(a["y"]))[:most]
    probe = linear_probe(a["x"][some], a["y"][some], groups=a["scene"][some])
    codes = np.unique(np.concatenate([a["y"], b["y"]]))
    truth, found = (np.searchsorted(codes, v) for v in (b["y"], probe.predict(b["x"])))
    counts = confusion_counts(truth, found, b["scene"], len(test), len(codes))
    return [
        make_score(
            model, f"{task}/pixel", "mean IoU", [counts],
            tested=len(truth), labels=len(some), seconds=stopwatch() - start, leak=leak,
            protocol="logistic regression on standardised frozen features of pixels (every second row and column), C "
            f"by held-out scenes; {len(train)} scenes train, {len(test)} test",
        )
    ]  # fmt: skip


DAMAGED = 0.25
"""A patch counts as damaged from this share of its pixels."""


def _share(label: Array, valid: Array, size: int) -> tuple[Array, Array]:
    """Return which whole patches are 1 in at least `DAMAGED` of their area, and which are valid in at least half."""
    h, w = label.shape[0] // size, label.shape[1] // size
    lab, ok = (
        a[: h * size, : w * size].reshape(h, size, w, size).mean(axis=(1, 3)) for a in ((label == 1) & valid, valid)
    )
    return (lab >= DAMAGED).astype(int), ok >= 0.5


APART = 100
"""Plots nearer to each other than this, in pixels, train and test together."""
NARROW = 300
"""Vectors up to this length may take any strength of regularisation: bands need next to none."""


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
    """Score plots with two dates and a mask: probes on both dates, on the second alone, and without any label.

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
    start, model = stopwatch(), name_of(encode, name)
    if any(s.before is None for s in scenes):
        raise ArgumentError(
            f"{next(s.name for s in scenes if s.before is None)} has one date only: change needs `before`"
        )
    encode = fitted_on(encode, [im for s in scenes for im in (s.before, s.image) if im is not None], scenes[0].bands)
    distance = getattr(encode, "distance", _cosine_distance)
    plots = [_dated(encode, s, distance, patch, tile, halo) for s in scenes]
    encoded = stopwatch() - start
    labels = {"patch": [p.patch_labels for p in plots], "pixel": [p.labels for p in plots]}
    cases = {kind: [p.features[kind] for p in plots] for kind in ("patch", "pixel", "second")}
    near, at = _neighbours(scenes), [p.places for p in plots]
    where = places(scenes, np.repeat(np.arange(len(at)), [len(a) for a in at]), *np.concatenate(at).T)
    strengths = (0.001, 0.01, 0.1, *((1.0, 10.0, 100.0) if cases["patch"][0].shape[1] <= NARROW else ()))
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
            score = _held_out(cases[what], y, plot, near, fold, strengths, most=most, seed=seed)
            counts.append(histogram_counts(y, score, near[plot], int(near.max()) + 1))
        scores.append(
            make_score(
                model, f"{task}/{what}", "average precision", counts,
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
            model, f"{task}/cosine", "average precision",
            [histogram_counts(y, np.concatenate([p.apart for p in plots]), near[plot], int(near.max()) + 1)],
            tested=len(y), labels=0, seconds=encoded,
            protocol=("difference of the index" if index else "1 - cosine similarity of the two dates' features")
            + f", bilinear to pixels, no label used; {len(scenes)} plots; all valid pixels",
        )
    )  # fmt: skip
    return scores


@dataclass(frozen=True)
class _Plot:
    """Features and labels of a plot with two dates.

    `apart` is the distance of the dates per valid pixel, `places` are rows and columns of the centres of patches.
    """

    features: dict[str, Any]
    labels: Array
    patch_labels: Array
    places: Array
    apart: Array


def _dated(encode: Any, scene: Scene, distance: Any, patch: int, tile: int, halo: int) -> _Plot:
    two = [
        encode_scene(encode, image, scene.bands, valid=scene.valid, tile=tile, halo=halo)  # type: ignore[arg-type]
        for image in (scene.before, scene.image)
    ]
    rows, cols = np.nonzero(scene.valid)
    apart = np.asarray(distance(two[0].values, two[1].values))
    both = Tokens(np.concatenate([t.values for t in two]), two[0].stride, two[0].shape)
    shares, complete = _share(scene.label, scene.valid, patch)
    r, c = np.nonzero(complete)
    return _Plot(
        {"patch": both.patches(patch)[:, r, c].T, "pixel": (both, rows, cols), "second": (two[1], rows, cols)},
        scene.label[rows, cols],
        shares[r, c],
        np.stack([r, c], axis=1) * patch + patch // 2,
        Tokens(apart[None], two[0].stride, two[0].shape).at(rows, cols)[:, 0],
    )


def _held_out(
    features: list[Any], y: Array, plot: Array, near: Array, fold: Array, strengths: Any, *, most: int, seed: int
) -> Array:
    """Return the score of each case by a probe that was fitted on the plots of the other fold."""
    score = np.empty(len(y), "float32")
    rng = np.random.default_rng(seed)
    for side in (0, 1):
        train, test = np.flatnonzero(fold[plot] != side), np.flatnonzero(fold[plot] == side)
        some = np.sort(rng.choice(train, min(most, len(train)), replace=False))
        probe = linear_probe(_take(features, plot, some), y[some], groups=near[plot[some]], strengths=strengths)
        for i in np.unique(plot[test]):
            score[plot == i] = probe.decision_function(_take(features, plot, np.flatnonzero(plot == i)))
    return score


def plots_apart(scenes: Sequence[Scene]) -> list[Scene]:
    """Return every second plot, from the second, without those near one of the others, which serve to train `tiny`."""
    near = _neighbours(scenes)
    served = set(near[::2])
    return [s for s, own in zip(scenes[1::2], near[1::2], strict=True) if own not in served]


def _neighbours(scenes: Sequence[Scene]) -> Array:
    """Return the neighbourhood of each scene; each has its own where places are unknown."""
    if any(s.corner is None for s in scenes):
        return np.arange(len(scenes))
    boxes = [(*s.corner, s.corner[0] + s.label.shape[0], s.corner[1] + s.label.shape[1]) for s in scenes if s.corner]
    return neighbourhoods(np.array(boxes), APART)


def _cosine_distance(a: Array, b: Array) -> Array:
    dot = (a * b).sum(axis=0)
    return np.asarray(1 - dot / np.maximum(np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0), 1e-12))


def _take(features: list[Any], plots: Array, where: Array) -> Array:
    """Return the features of cases `where` (sorted), from arrays or from the tokens of each plot."""
    out = []
    for i in np.unique(plots[where]):
        local = where[plots[where] == i] - np.searchsorted(plots, i)
        held = features[i]
        out.append(held[local] if isinstance(held, np.ndarray) else held[0].at(held[1][local], held[2][local]))
    return np.concatenate(out)


def patch_means(values: Array, valid: Array, size: int) -> tuple[Array, Array]:
    """Return the mean of the valid values of each patch of `size` pixels, and whether at least half of it is valid."""
    h, w = values.shape[0] // size, values.shape[1] // size
    weight, total = (
        a[: h * size, : w * size].reshape(h, size, w, size).sum(axis=(1, 3))
        for a in (valid.astype("float64"), np.where(valid, values, 0).astype("float64"))
    )
    return total / np.maximum(weight, 1), weight >= size**2 / 2


def class_shares(scenes: Sequence[Scene], code: int) -> list[Array]:
    """Return maps (H, W) of 1 where a scene has the class `code`, else 0: their patch means are its share."""
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
    start, model = stopwatch(), name_of(encode, name)
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
    protocol = (
        f"ridge regression on standardised frozen features of patches of {patch} px, its strength by held-out blocks; "
        f"{len(splits)} split(s) of {len(scenes)} scenes, none trains and tests in one; intervals over blocks of "
        f"{block} px"
    )
    return [
        make_score(
            model, f"{task}/{short}", metric, [total], tested=int(total[:, 0].sum()), labels=labels, seconds=seconds,
            protocol=protocol if metric == "R2" else f"{protocol}; {unit}",
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

    An encoder with ``series(data) -> (N, D)`` makes the vectors itself. Any other is
    shown each date as a uniform image, and mean and standard deviation of its vectors over the valid dates are taken.

    Parameters
    ----------
    block, buffer : float
        Side of a block, and distance within which no training pixel is from a test pixel, degrees.

    Returns
    -------
    list of Score
        Macro F1 of ``<data>/series``; intervals over blocks.
    """
    start, model = stopwatch(), name_of(encode, name)
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
            model, f"{data.name}/series", "macro F1", [counts],
            tested=len(x), labels=int(np.mean([t.sum() for t, _ in splits])), seconds=stopwatch() - start, leak=0.0,
            protocol="balanced logistic regression on one standardised vector per pixel, C by held-out blocks; "
            f"{folds} folds of blocks of {block:g} degrees with {buffer:g} degrees between training and test; "
            "intervals over blocks",
        )
    ]  # fmt: skip


def series_vectors(encode: Any, data: Series) -> Array:
    """Return a vector per pixel (N, D): the encoder's own of a series, or mean and deviation of those of its dates."""
    if hasattr(encode, "series"):
        return np.asarray(encode.series(data))
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


# --- UPerNet on a frozen encoder: the segmentation protocol of the paper (section 5.10), sized by option ---
#
# As published: encoder frozen, UPerNet on several of its layers, AdamW with weight decay 0.01, 5 epochs of warm-up and
# half a cosine to 1e-6, mirrored images, the epoch that is best on validation chips is tested. Other than published:
# chips are not cropped at random (features of each are computed once, for its four mirror images), cross-entropy is
# used for all data sets, the decoder is 64 wide (published: 512), and features finer than 4 pixels are averaged to 4.

FINEST = 4
"""Pixels: maps finer than this are averaged."""
MIRRORS = ((), (-1,), (-2,), (-2, -1))


def chips_of(scenes: Sequence[Scene], size: int) -> tuple[list[Scene], Array]:
    """Return whole chips of `size` pixels side by side, and (n, 3): scene, row and column of the middle of each."""
    chips, at = [], []
    for i, s in enumerate(scenes):
        rows, cols = s.label.shape
        for r in range(0, rows - size + 1, size):
            for c in range(0, cols - size + 1, size):
                cut = (slice(r, r + size), slice(c, c + size))
                chip = Scene(f"{s.name}/{r},{c}", s.image[:, *cut], s.label[cut], s.valid[cut], s.bands)
                if (chip.valid & (chip.label >= 0)).any():
                    chips.append(chip)
                    at.append((i, r + size // 2, c + size // 2))
    return chips, np.array(at, int).reshape(-1, 3)


def upernet_halves(
    encode: Any, scenes: Sequence[Scene], *, task: str, name: str | None = None, chip: int = 64, gap: int = 32,
    seeds: int = 1, mirrored: bool = True, **options: Any,
) -> list[Score]:  # fmt: skip
    """Train UPerNet on one half of each scene and test it on the other, `gap` pixels between: four splits.

    The chips of every fifth place of the training half choose the epoch. Options of `upernet`.

    Returns
    -------
    list of Score
        Mean IoU of ``<task>/upernet``; the splits (times `seeds`) are its seeds.
    """
    start, model = stopwatch(), name_of(encode, name)
    chips, at = chips_of(scenes, chip)
    shapes = np.array([s.label.shape for s in scenes])[at[:, 0]]
    where = places(scenes, *at.T)
    encode = fitted_on(encode, [s.image for s in scenes], scenes[0].bands)
    maps, scales, stride = _maps(encode, chips, MIRRORS if mirrored else MIRRORS[:1])
    codes = _codes(chips)
    counts, leak, trained = [], 0.0, []
    for direction in ("left", "right", "top", "bottom"):
        # Whole chips: their middles keep the gap and half a chip on either side.
        train, test = halves(at[:, 1], at[:, 2], shapes, direction, gap + chip)  # type: ignore[arg-type]
        # Edges of chips, not middles, are what may touch.
        reach = chip + int(getattr(encode, "halo", 0)) + 1
        leak = max(leak, warn_of_leak(where[train], where[test], reach, what=f"{task}, {direction}"))
        fit = np.flatnonzero(train)
        held = fit[::5]
        fit = np.setdiff1d(fit, held)
        trained.append(len(fit))
        for seed in range(seeds):
            decoder = _train(maps, chips, fit, held, codes, scales, stride, seed=seed, **options)
            found, _ = _confusions(decoder, maps, chips, np.flatnonzero(test), codes, scales, stride)
            full = np.zeros((len(chips), *found.shape[1:]))
            full[np.flatnonzero(test)] = found
            counts.append(full)
    return [
        _score(
            model, task, counts, int(np.mean(trained)) * chip**2, stopwatch() - start, leak,
            f"halves of {len(scenes)} scenes with a gap of {gap} px, four splits, chips of {chip} px; every fifth "
            "training chip chooses the epoch; intervals over chips", mirrored, options,
        )
    ]  # fmt: skip


def upernet(
    encode: Any, train: Sequence[Scene], validation: Sequence[Scene], test: Sequence[Scene], *, task: str,
    name: str | None = None, chip: int | None = None, seeds: int = 2, mirrored: bool = True, **options: Any,
) -> list[Score]:  # fmt: skip
    """Train UPerNet on the scenes of `train`, choose its epoch on `validation`, and score it on `test`.

    Parameters
    ----------
    chip : int, optional
        Cut the scenes into chips of this many pixels. Default: scenes are chips of one size already.
    seeds : int
        Initialisations and orders of the training chips.
    mirrored : bool
        Train on the mirror images of chips too; each is encoded.
    **options
        width (64), epochs (50), batch (64), rate (1e-4: highest rate; the paper's configurations take 1e-4 or 1e-2).

    Returns
    -------
    list of Score
        Mean IoU of ``<task>/upernet``; intervals over test scenes.
    """
    start, model = stopwatch(), name_of(encode, name)
    parts = [list(p) if chip is None else chips_of(p, chip)[0] for p in (train, validation, test)]
    scene_of = np.arange(len(test)) if chip is None else chips_of(test, chip)[1][:, 0]
    chips = [c for p in parts for c in p]
    ends = np.cumsum([len(p) for p in parts])
    encode = fitted_on(encode, [s.image for s in parts[0]], chips[0].bands)
    maps, scales, stride = _maps(encode, chips, MIRRORS if mirrored else MIRRORS[:1])
    codes = _codes(chips)
    counts = []
    for seed in range(seeds):
        decoder = _train(
            maps, chips, np.arange(ends[0]), np.arange(ends[0], ends[1]), codes, scales, stride, seed=seed, **options
        )
        found, _ = _confusions(decoder, maps, chips, np.arange(ends[1], ends[2]), codes, scales, stride)
        each = np.zeros((len(test), *found.shape[1:]))
        np.add.at(each, scene_of, found)
        counts.append(each)
    pixels = int(sum(((c.label >= 0) & c.valid).sum() for c in parts[0]))
    split = f"{len(train)} scenes train, {len(validation)} choose the epoch, {len(test)} test; intervals over scenes"
    return [_score(model, task, counts, pixels, stopwatch() - start, None, split, mirrored, options)]


def _score(
    model: str, task: str, counts: list[Array], labels: int, seconds: Array, leak: float | None, split: str,
    mirrored: bool, options: dict[str, Any],
) -> Score:  # fmt: skip
    epochs, width = options.get("epochs", 50), options.get("width", 64)
    seen = "chips and their mirror images" if mirrored else "chips as they are"
    return make_score(
        model, f"{task}/upernet", "mean IoU", counts, tested=int(np.mean([c.sum() for c in counts])), labels=labels,
        seconds=seconds, leak=leak,
        protocol=f"UPerNet ({width} wide, windows of 3, 7, 15 tokens) on frozen features, {epochs} epochs of AdamW, "
        f"{seen}, the best epoch on validation chips; {split}",
    )  # fmt: skip


def _codes(chips: Sequence[Scene]) -> Array:
    seen = np.unique(np.concatenate([np.unique(c.label[c.valid]) for c in chips]))
    return seen[seen >= 0]


def _maps(encode: Any, chips: Sequence[Scene], mirrors: Sequence[Any]) -> tuple[Array, tuple[int, ...], int]:
    """Return features (N, mirrors, D, h, w) float16 of chips and mirror images, dims of the scales, and the stride.

    Float16 of features standardised over all chips. Mirrored back to the orientation of the chip.
    """
    several = getattr(encode, "pyramid", None)
    out: list[Array] = []
    scales: tuple[int, ...] = ()
    stride = 0
    size = chips[0].label.shape[0]
    for s in chips:
        image = s.image
        if not s.valid.all():
            middle = np.median(image[:, s.valid], axis=1) if s.valid.any() else np.zeros(len(image))
            image = np.where(s.valid, image, middle[:, None, None]).astype("float32")
        mirrored = np.stack([np.flip(image, m) if m else image for m in mirrors])
        maps = several(mirrored, s.bands) if several else [np.asarray(encode(mirrored, s.bands))]
        maps = sorted((_pooled(np.asarray(m, "float32"), size) for m in maps), key=lambda m: -m.shape[2])
        stride, scales = size // maps[0].shape[2], tuple(m.shape[1] for m in maps)
        fine = maps[0].shape[2]
        joined = np.concatenate([m.repeat(fine // m.shape[2], 2).repeat(fine // m.shape[2], 3) for m in maps], axis=1)
        out.append(np.stack([np.flip(z, m) if m else z for z, m in zip(joined, mirrors, strict=True)]))
    mean = np.mean([o.mean(axis=(0, 2, 3)) for o in out], axis=0)[:, None, None]
    std = np.sqrt(np.mean([((o - mean) ** 2).mean(axis=(0, 2, 3)) for o in out], axis=0))[:, None, None] + 1e-6
    return np.stack([((o - mean) / std).clip(-1e4, 1e4).astype("float16") for o in out]), scales, stride


def _pooled(m: Array, size: int) -> Array:
    k = max(FINEST * m.shape[2] // size, 1)
    return m.reshape(*m.shape[:2], m.shape[2] // k, k, m.shape[3] // k, k).mean(axis=(3, 5)) if k > 1 else m


def _target(chip: Scene, codes: Array) -> Array:
    known = chip.valid & (chip.label >= 0)
    return np.where(known, np.searchsorted(codes, np.where(known, chip.label, codes[0])), -1)


def _logits(tensors: Any, x: Any, scales: tuple[int, ...], stride: int) -> Any:
    from torch.nn import functional as F

    out = upernet_logits(tensors, x, 1, scales)
    return F.interpolate(out, scale_factor=stride, mode="bilinear", align_corners=False) if stride > 1 else out


def _train(
    maps: Array, chips: Sequence[Scene], fit: Array, held: Array, codes: Array, scales: tuple[int, ...], stride: int, *,
    seed: int, width: int = 64, epochs: int = 50, batch: int = 64, rate: float = 1e-4,
) -> dict[str, Any]:  # fmt: skip
    """Return the tensors of the epoch with the best mean IoU on the chips `held`."""
    import torch
    from torch.nn import functional as F

    blank = upernet_tensors(maps.shape[2], width, len(codes), scales, seed)
    tensors = {k: torch.from_numpy(v) for k, v in blank.items()}
    learnt = [t.requires_grad_() for k, t in tensors.items() if k not in ("mean", "std") and not k.startswith("fine")]
    adam = torch.optim.AdamW(learnt, lr=rate, weight_decay=0.01)
    batch = min(batch, max(len(fit) // 3, 1))
    steps, warm = -(-len(fit) // batch), min(5, epochs // 4)

    def share(epoch: float) -> float:
        if epoch < warm:
            return (epoch + 1) / (warm + 1)
        return max(0.5 * (1 + math.cos(math.pi * (epoch - warm) / max(epochs - warm, 1))), 1e-6 / rate)

    plan = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: share(i / steps))
    rng = np.random.default_rng(seed)
    best, chosen = -1.0, {k: v.detach().clone() for k, v in tensors.items()}
    for _ in range(epochs):
        order = rng.permutation(fit)
        for k in range(0, len(order), batch):
            pick = order[k : k + batch]
            which = rng.integers(maps.shape[1], size=len(pick))
            # The features of a mirrored chip, lying as the chip does, with the chip's own labels.
            x = torch.from_numpy(maps[pick, which].astype("float32"))
            truth = torch.from_numpy(np.stack([_target(chips[i], codes) for i in pick]))
            loss = F.cross_entropy(_logits(tensors, x, scales, stride), truth, ignore_index=-1)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            plan.step()
        value = _confusions(tensors, maps, chips, held, codes, scales, stride)[1]
        if value > best:
            best, chosen = value, {k: v.detach().clone() for k, v in tensors.items()}
    return chosen


def _confusions(
    tensors: dict[str, Any], maps: Array, chips: Sequence[Scene], which: Array, codes: Array, scales: tuple[int, ...],
    stride: int,
) -> tuple[Array, float]:  # fmt: skip
    """Return counts (n, K, K) of the chips `which`, and their mean IoU together."""
    import torch

    counts = []
    with torch.inference_mode():
        for i in which:
            x = torch.from_numpy(maps[i, :1].astype("float32"))
            found = _logits(tensors, x, scales, stride)[0].argmax(0).numpy()
            truth = _target(chips[i], codes)
            known = truth >= 0
            zeros = np.zeros(int(known.sum()), int)
            counts.append(confusion_counts(truth[known], found[known], zeros, 1, len(codes))[0])
    stacked = np.stack(counts) if counts else np.zeros((0, len(codes), len(codes)))
    return stacked, float(METRICS["mean IoU"](stacked.sum(axis=0))) if counts else 0.0
