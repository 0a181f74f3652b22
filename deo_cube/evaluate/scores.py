"""A measured number with its interval and its protocol, and the interval of the difference of two.

Every metric here is a function of counts summed over groups (chips of a run, plots, blocks of a scene): correct and
all, a confusion matrix, or histograms of scores. So a bootstrap draws groups, which are what is independent, and costs
a matrix product; and two models scored on the same groups are compared on the same draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deo_cube.errors import ArgumentError

__all__ = [
    "Difference",
    "Score",
    "accuracy_counts",
    "average_precision",
    "compare",
    "confusion_counts",
    "histogram_counts",
    "value_counts",
    "macro_f1",
    "make_score",
    "mean_iou",
    "stopwatch",
    "resample",
]

Array = NDArray[Any]
Value = Callable[[Array], Array]

BINS = 2048


def accuracy_counts(truth: Array, found: Array, groups: Array, n: int) -> Array:
    """Return (n, 2): correct and all, for each of the groups 0..n-1."""
    right = np.bincount(groups, weights=np.asarray(truth == found, dtype="float64"), minlength=n)
    return np.stack([right, np.bincount(groups, minlength=n)], axis=1)


def accuracy(counts: Array) -> Array:
    """Return the share of correct, from (..., 2) counts."""
    return cast(Array, counts[..., 0] / np.maximum(counts[..., 1], 1))


def confusion_counts(truth: Array, found: Array, groups: Array, n: int, classes: int) -> Array:
    """Return (n, K, K): truth by prediction, for each of the groups 0..n-1. Values are indices 0..K-1."""
    flat = (np.asarray(groups, dtype="int64") * classes + truth) * classes + found
    return np.bincount(flat, minlength=n * classes * classes).reshape(n, classes, classes).astype("float64")


def macro_f1(counts: Array) -> Array:
    """Mean F1 over the classes that occur in truth or in what was found, from (..., K, K) counts."""
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    both = counts.sum(axis=-1) + counts.sum(axis=-2)
    f1 = np.where(both > 0, 2 * hit / np.maximum(both, 1e-9), np.nan)
    return cast(Array, np.nanmean(f1, axis=-1))


def mean_iou(counts: Array) -> Array:
    """Mean intersection over union over the classes that occur, from (..., K, K) counts."""
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(axis=-1) + counts.sum(axis=-2) - hit
    return cast(Array, np.nanmean(np.where(union > 0, hit / np.maximum(union, 1e-9), np.nan), axis=-1))


def histogram_counts(truth: Array, score: Array, groups: Array, n: int) -> Array:
    """Return (n, 2, BINS): negatives and positives per bin of `score`, for the groups 0..n-1; highest bin first.

    Bins are quantiles of all scores: the average precision from them is exact to 0.01, with many positives to 0.002.
    """
    edges = np.unique(np.quantile(score, np.linspace(0, 1, BINS + 1)[1:-1]))
    b = BINS - 1 - np.searchsorted(edges, score, side="right")
    flat = (np.asarray(groups, dtype="int64") * 2 + np.asarray(truth).astype(bool)) * BINS + b
    return np.bincount(flat, minlength=n * 2 * BINS).reshape(n, 2, BINS).astype("float64")


def average_precision(counts: Array) -> Array:
    """Return the average precision, the area under precision over recall in steps, from (..., 2, bins) counts."""
    hits = np.cumsum(counts[..., 1, :], axis=-1)
    every = np.cumsum(counts.sum(axis=-2), axis=-1)
    precision = hits / np.maximum(every, 1)
    total = np.maximum(hits[..., -1], 1)
    return cast(Array, (precision * counts[..., 1, :]).sum(axis=-1) / total)


def value_counts(truth: Array, predicted: Array, groups: Array, n: int) -> Array:
    """Return (n, 5): cases, sums of truth, of its square, of squared and of absolute errors, of the groups 0..n-1."""
    truth, error = np.asarray(truth, "float64"), np.asarray(predicted, "float64") - truth
    columns = (np.ones_like(truth), truth, truth**2, error**2, np.abs(error))
    return np.stack([np.bincount(groups, weights=c, minlength=n) for c in columns], axis=1)


def explained(counts: Array) -> Array:
    """Return R2, the share of the variance of the truth that is explained, from (..., 5) counts."""
    n, total, square, error, _ = np.moveaxis(counts, -1, 0)
    variance = square - total**2 / np.maximum(n, 1)
    return cast(Array, 1 - error / np.maximum(variance, 1e-9))


def absolute_error(counts: Array) -> Array:
    """Mean absolute error, from (..., 5) counts."""
    return cast(Array, counts[..., 4] / np.maximum(counts[..., 0], 1))


METRICS: dict[str, Value] = {
    "R2": explained,
    "mean absolute error": absolute_error,
    "accuracy": accuracy,
    "macro F1": macro_f1,
    "mean IoU": mean_iou,
    "average precision": average_precision,
}


@dataclass(frozen=True)
class Score:
    """One number of one model, with its interval and protocol.

    Parameters
    ----------
    model, task, metric : str
        Model, task and measure. `metric` is a key of `METRICS`; with ``difference`` set, the metric's loss.
    value, low, high : float
        The mean over seeds, and the bounds of its 95 % bootstrap interval over groups and seeds.
    seeds : tuple of float
        The value of each seed.
    tested, groups, labels : int
        Cases tested, groups they fall into, and labels used for training in each seed.
    seconds, cpu_seconds : float
        Wall and processor time of encoding and probing.
    protocol : str
        How it was measured, in a sentence that suffices to repeat it.
    """

    model: str
    task: str
    metric: str
    value: float
    low: float
    high: float
    seeds: tuple[float, ...]
    tested: int
    groups: int
    labels: int
    seconds: float
    protocol: str
    cpu_seconds: float = 0.0
    leak: float | None = None
    """Share of test cases within reach of a training case, the largest over splits; None where no places are known."""
    by_group: float | None = None
    """The metric of each group by itself, averaged over those in which it is defined."""
    counts: Array = field(repr=False, compare=False, default_factory=lambda: np.empty(0))
    """(seeds, G, ...) counts of the metric; (seeds, 2, G, ...) for a loss, before and after."""

    def to_dict(self) -> dict[str, Any]:
        """Return the score as a card cites it: plain numbers and text, without the counts."""
        return {
            "model": self.model,
            "task": self.task,
            "metric": self.metric,
            "value": round(self.value, 4),
            "interval95": [round(self.low, 4), round(self.high, 4)],
            "seeds": [round(v, 4) for v in self.seeds],
            "tested": self.tested,
            "groups": self.groups,
            "labels": self.labels,
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "by_group": None if self.by_group is None else round(self.by_group, 4),
            "leak": None if self.leak is None else round(self.leak, 4),
            "protocol": self.protocol,
        }


@dataclass(frozen=True)
class Difference:
    """`a` minus `b` with the 95 % interval of a paired bootstrap: a claim of "better" needs `low` above zero."""

    task: str
    a: str
    b: str
    value: float
    low: float
    high: float


def _draws(groups: int, seeds: int, n: int, seed: int) -> tuple[Array, Array]:
    """Draw how often each group counts (n, G), and which seeds are averaged (n, S), in each of n draws."""
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=n).astype("float64")
    return weights, rng.integers(0, seeds, size=(n, seeds))


def _values(metric: str, counts: Array, weights: Array) -> Array:
    """Return the metric (n,) of counts (G, ...) summed with weights (n, G)."""
    value = METRICS[metric]
    flat = counts.reshape(len(counts), -1)
    out = [
        value((w @ flat).reshape(-1, *counts.shape[1:])) for w in np.array_split(weights, max(1, len(weights) // 50))
    ]
    return np.concatenate(out)


def _resampled(score: Score, weights: Array, picks: Array) -> Array:
    loss = score.metric.startswith("loss of ")
    metric = score.metric.removeprefix("loss of ")
    if loss:
        per = np.stack([_values(metric, c[0], weights) - _values(metric, c[1], weights) for c in score.counts], axis=1)
    else:
        per = np.stack([_values(metric, c, weights) for c in score.counts], axis=1)
    return cast(Array, np.take_along_axis(per, picks, axis=1).mean(axis=1))


def resample(score: Score, *, draws: int = 500, seed: int = 0) -> Array:
    """Return the score (draws,) with its groups drawn anew, all its seeds averaged.

    Scores of the same groups and `seed` are drawn alike, so that differences of the results are paired.
    """
    weights, _ = _draws(score.groups, 1, draws, seed)
    every = np.tile(np.arange(len(score.seeds)), (draws, 1))
    return _resampled(score, weights, every)


def make_score(
    model: str,
    task: str,
    metric: str,
    counts: Sequence[Array],
    *,
    tested: int,
    labels: int,
    seconds: float | Array,
    protocol: str,
    leak: float | None = None,
    draws: int = 500,
) -> Score:
    """Return a score from the counts of each seed, with its bootstrap interval.

    `metric` may be ``"loss of <metric>"``; counts are then (2, G, ...): before and after. `seconds` are wall time, or
    wall and processor time as a difference of two `stopwatch` readings.
    """
    loss, name = metric.startswith("loss of "), metric.removeprefix("loss of ")
    stacked = np.stack(counts)
    axes = tuple(i for i in range(stacked.ndim) if i != (2 if loss else 1))
    # A group in which no seed tested anything is not a group of this test.
    stacked = np.compress(stacked.sum(axis=axes) > 0, stacked, axis=2 if loss else 1)
    each = stacked.sum(axis=2 if loss else 1)
    seeds = METRICS[name](each)
    if loss:
        seeds = seeds[:, 0] - seeds[:, 1]
    groups = stacked.shape[2 if loss else 1]
    wall, cpu = np.broadcast_to(np.asarray(seconds, "float64"), 2) if np.ndim(seconds) else (float(seconds), 0.0)
    plain = Score(
        model, task, metric, float(seeds.mean()), 0.0, 0.0, tuple(float(v) for v in seeds), tested, groups, labels,
        float(wall), protocol, float(cpu), leak, None if loss else _by_group(name, stacked), stacked,
    )  # fmt: skip
    drawn = _resampled(plain, *_draws(groups, len(counts), draws, 0))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Score(**{**plain.__dict__, "low": float(low), "high": float(high)})


def _by_group(metric: str, counts: Array) -> float | None:
    """Mean of the average precision of each group with positives; other metrics are not defined group by group."""
    if metric != "average precision":
        return None
    defined = counts[..., 1, :].sum(axis=-1) > 0
    each = METRICS[metric](counts)
    return float(each[defined].mean()) if defined.any() else None


def stopwatch() -> Array:
    """Return wall and processor seconds so far; the difference of two readings is the time between them."""
    return np.array([time.perf_counter(), time.process_time()])


def compare(a: Score, b: Score, *, draws: int = 2000) -> Difference:
    """Return `a` minus `b` on the same draws of groups and seeds.

    Raises
    ------
    ValueError
        If the two were not measured on the same cases.
    """
    if (a.task, a.metric, a.counts.shape[:2], a.groups) != (b.task, b.metric, b.counts.shape[:2], b.groups):
        raise ArgumentError(
            f"only scores of the same task, metric, seeds and groups can be compared: {a.model} on {a.task} "
            f"({a.metric}, {a.groups} groups) and {b.model} on {b.task} ({b.metric}, {b.groups} groups)"
        )
    weights, picks = _draws(a.groups, len(a.seeds), draws, 1)
    d = _resampled(a, weights, picks) - _resampled(b, weights, picks)
    low, high = np.nanpercentile(d, [2.5, 97.5])
    return Difference(a.task, a.model, b.model, a.value - b.value, float(low), float(high))
