import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from deo_cube.errors import ArgumentError
from deo_cube.heads.splits import LeakWarning, blocks, halves, split_groups, warn_of_leak


@given(seed=st.integers(0, 999), share=st.floats(0.2, 0.8))
def test_groups_are_not_divided_and_every_class_is_on_both_sides(seed, share):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    labels = groups % 4
    train = split_groups(groups, labels, share, seed=seed)
    assert not set(groups[train]) & set(groups[~train])
    assert set(labels[train]) == set(labels[~train]) == {0, 1, 2, 3}


@given(direction=st.sampled_from(["left", "right", "top", "bottom"]), gap=st.integers(0, 30))
def test_halves_are_at_least_the_gap_apart(direction, gap):
    rows, cols = (a.ravel() for a in np.mgrid[:60, :80])
    shapes = np.tile([60, 80], (len(rows), 1))
    train, test = halves(rows, cols, shapes, direction, gap)
    assert not (train & test).any()
    along = cols if direction in ("left", "right") else rows
    first, second = (train, test) if direction in ("left", "top") else (test, train)
    assert along[second].min() - along[first].max() - 1 >= gap
    assert along[second].min() - along[first].max() - 1 <= gap + 1


@given(seed=st.integers(0, 99), buffer=st.floats(0, 15))
def test_blocks_cover_all_and_keep_the_buffer(seed, buffer):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 100, (2, 150))
    folds = blocks(x, y, 20, folds=4, buffer=buffer, seed=seed)
    assert np.sum([test for _, test in folds], axis=0).tolist() == [1] * 150
    for train, test in folds:
        assert not (train & test).any()
        if train.any() and buffer:
            assert cdist(np.stack([x, y], 1)[train], np.stack([x, y], 1)[test]).min() >= buffer * (1 - 1e-9)


def test_one_block_is_refused():
    with pytest.raises(ArgumentError, match="size"):
        blocks(np.arange(5.0), np.arange(5.0), 100)


def test_a_leaking_split_is_warned_of():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, (400, 2))
    with pytest.warns(LeakWarning, match=r"leaks: \d+% .* 50"):
        assert warn_of_leak(xy[::2], xy[1::2], 50) > 0.5
    left = xy[:, 0] < 450
    right = xy[:, 0] > 550
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_of_leak(xy[left], xy[right], 50) == 0
