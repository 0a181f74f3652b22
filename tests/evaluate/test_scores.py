import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from deo_cube.evaluate.scores import (
    accuracy_counts,
    average_precision,
    compare,
    confusion_counts,
    histogram_counts,
    macro_f1,
    make_score,
    mean_iou,
)

FACTS = {"tested": 1, "labels": 1, "seconds": 0.0, "protocol": "test"}


@given(seed=st.integers(0, 999), classes=st.integers(2, 6))
def test_metrics_equal_scikit_learn(seed, classes):
    rng = np.random.default_rng(seed)
    y, z, g = rng.integers(0, classes, 200), rng.integers(0, classes, 200), rng.integers(0, 7, 200)
    counts = confusion_counts(y, z, g, 7, classes).sum(axis=0)
    assert macro_f1(counts) == pytest.approx(f1_score(y, z, average="macro"))
    assert mean_iou(counts) == pytest.approx(jaccard_score(y, z, average="macro"))
    a = accuracy_counts(y, z, g, 7).sum(axis=0)
    assert a[0] / a[1] == pytest.approx((y == z).mean())


@given(seed=st.integers(0, 999), share=st.floats(0.02, 0.9), ties=st.booleans())
def test_average_precision_equals_scikit_learn(seed, share, ties):
    rng = np.random.default_rng(seed)
    y = rng.random(5000) < share
    s = rng.normal(size=5000) + y
    s = s.round(1) if ties else s
    g = rng.integers(0, 5, 5000)
    found = average_precision(histogram_counts(y, s, g, 5).sum(axis=0))
    assert found == pytest.approx(average_precision_score(y, s), abs=1e-2)


def test_the_interval_covers_the_truth_when_groups_are_what_varies():
    """Groups of 20 alike cases: an interval over cases would be far too narrow."""
    hit, width = 0, []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        right = np.repeat(rng.random(60) < 0.7, 20)
        g = np.repeat(np.arange(60), 20)
        s = make_score("m", "t", "accuracy", [accuracy_counts(np.ones(1200), right.astype(int), g, 60)], **FACTS)
        hit += s.low <= 0.7 <= s.high
        width.append(s.high - s.low)
    assert hit >= 52
    assert 0.15 < np.mean(width) < 0.3  # +-1.96 sqrt(.21/60); over cases it would be 0.05


def test_seeds_are_averaged_and_widen_the_interval():
    rng = np.random.default_rng(0)
    g = np.arange(400)
    even = [accuracy_counts(np.ones(400), (rng.random(400) < 0.7).astype(int), g, 400) for _ in range(4)]
    apart = [accuracy_counts(np.ones(400), (rng.random(400) < p).astype(int), g, 400) for p in (0.5, 0.6, 0.8, 0.9)]
    a, b = (make_score("m", "t", "accuracy", c, **FACTS) for c in (even, apart))
    assert a.value == pytest.approx(np.mean(a.seeds))
    assert b.high - b.low > 2 * (a.high - a.low)


def test_a_loss_is_before_minus_after():
    g = np.arange(100)
    good, bad = (accuracy_counts(np.ones(100), (g < n).astype(int), g, 100) for n in (90, 60))
    s = make_score("m", "t", "loss of accuracy", [np.stack([good, bad])], **FACTS)
    assert s.value == pytest.approx(0.3)
    assert s.low < 0.3 < s.high


def test_a_paired_difference_is_narrower_than_the_scores():
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(50), 10)
    hard = np.repeat(rng.random(50), 10)
    luck = rng.random(500)
    a = (luck < hard + 0.1).astype(int)
    b = (luck < hard).astype(int)
    one, two = (
        make_score(n, "t", "accuracy", [accuracy_counts(np.ones(500), v, g, 50)], **FACTS)
        for n, v in (("a", a), ("b", b))
    )
    d = compare(one, two)
    assert d.value == pytest.approx(one.value - two.value)
    assert d.low > 0
    assert d.high - d.low < one.high - one.low
    same = compare(one, one)
    assert (same.low, same.value, same.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="task"):
        compare(one, make_score("b", "u", "accuracy", [accuracy_counts(np.ones(500), b, g, 50)], **FACTS))


def test_groups_without_cases_are_left_out():
    g = np.array([0, 0, 4, 4])
    s = make_score("m", "t", "accuracy", [accuracy_counts(np.ones(4), np.array([1, 0, 1, 1]), g, 9)], **FACTS)
    assert s.groups == 2
    assert s.to_dict()["interval95"] == [0.5, 1.0]


def test_intervals_of_several_seeds_hold_the_truth_nearly_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held, equal = [], []
    for _ in range(120):
        share, n = rng.beta(4, 2, 60), rng.poisson(20, 60) + 1
        two = []
        for _ in range(2):
            moved = [np.clip(share + rng.normal(0, 0.05), 0, 1) for _ in range(5)]
            counts = [np.stack([rng.binomial(n, p), n], axis=1).astype(float) for p in moved]
            two.append(make_score("m", "t", "accuracy", counts, tested=1, labels=1, seconds=0.0, protocol="p"))
        held.append(two[0].low <= 4 / 6 <= two[0].high)
        d = compare(*two, draws=300)
        equal.append(d.low <= 0 <= d.high)
    assert 0.86 <= np.mean(held) <= 0.99
    assert 0.8 <= np.mean(equal) <= 0.99
