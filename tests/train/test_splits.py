"""Seeded splits: stratified, nested, with groups kept together, and the same for ever."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchdfa.errors import UsageError
from torchdfa.train import splits

CLASSES = ("cat", "dog", "fish")


def labels(*counts: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


def test_a_fixed_seed_gives_the_same_choice_for_ever() -> None:
    assert splits.permutation(10, 0).tolist() == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
    assert splits.permutation(5, 2**32 + 1).tolist() == splits.permutation(5, 1).tolist()
    held_out = splits.stratified(np.repeat([0, 1, 2], 5), 0.2, 0, CLASSES)
    assert np.flatnonzero(held_out).tolist() == [1, 6, 14]


def test_the_held_out_part_is_stratified() -> None:
    y = labels(100, 40, 3)
    held_out = splits.stratified(y, 0.2, 3, CLASSES)
    assert np.bincount(y[held_out]).tolist() == [20, 8, 1]
    assert not np.array_equal(held_out, splits.stratified(y, 0.2, 4, CLASSES))


def test_each_class_keeps_an_image_on_both_sides_or_is_named() -> None:
    y = labels(2, 2, 2)
    assert np.bincount(y[splits.stratified(y, 0.01, 0, CLASSES)]).tolist() == [1, 1, 1]
    assert np.bincount(y[splits.stratified(y, 0.74, 0, CLASSES)]).tolist() == [1, 1, 1]
    with pytest.raises(UsageError, match=r"Class dog has 1 image\(s\) and cannot be divided"):
        splits.stratified(labels(5, 1, 5), 0.2, 0, CLASSES)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=60), st.integers(0, 5))
def test_groups_are_never_torn(images: list[tuple[int, int]], seed: int) -> None:
    y, groups = np.array(images).T
    try:
        held_out = splits.stratified(y, 0.2, seed, CLASSES, groups=groups)
    except UsageError:
        return
    for group in np.unique(groups):
        assert len(set(held_out[groups == group].tolist())) == 1
        if len(set(y[groups == group].tolist())) > 1:
            assert not held_out[groups == group].any()
    for label in np.unique(y):
        assert 0 < held_out[y == label].sum() < (y == label).sum()


def test_large_groups_do_not_inflate_the_held_out_part() -> None:
    y = np.zeros(50, np.int64)
    groups = np.array([0] * 25 + list(range(1, 26)))
    held_out = splits.stratified(y, 0.2, 0, CLASSES, groups=groups)
    assert held_out.sum() == 10
    assert not held_out[:25].any()


def test_a_class_of_one_group_cannot_be_divided() -> None:
    with pytest.raises(UsageError, match="Class cat has 4"):
        splits.stratified(np.zeros(4, np.int64), 0.2, 0, CLASSES, groups=np.zeros(4, np.int64))
    # Two groups of two: one of them is held out although a fifth of four is less.
    held_out = splits.stratified(np.zeros(4, np.int64), 0.2, 0, CLASSES, groups=np.array([7, 7, 9, 9]))
    assert held_out.sum() == 2


def test_subsets_are_balanced_and_nested() -> None:
    y = labels(50, 30, 20)
    chosen = {size: splits.subset(y, size, 1, CLASSES) for size in (3, 30, 31, 60, 90, 100)}
    assert np.bincount(y[chosen[3]]).tolist() == [1, 1, 1]
    assert np.bincount(y[chosen[30]]).tolist() == [10, 10, 10]
    assert np.bincount(y[chosen[31]]).tolist() == [11, 10, 10]
    assert np.bincount(y[chosen[90]]).tolist() == [40, 30, 20]  # what the small classes lack, the large one fills
    sizes = sorted(chosen)
    for small, large in itertools.pairwise(sizes):
        assert set(chosen[small]) < set(chosen[large])
    assert chosen[100].tolist() == list(range(100))
    assert np.array_equal(chosen[30], splits.subset(y, 30, 1, CLASSES))
    assert not np.array_equal(chosen[30], splits.subset(y, 30, 2, CLASSES))


@pytest.mark.parametrize("size", [2, 101, 0, -1])
def test_a_subset_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=rf"number of classes \(3\) and at most .* \(100\), but is {size}\."):
        splits.subset(labels(50, 30, 20), size, 0, CLASSES)
