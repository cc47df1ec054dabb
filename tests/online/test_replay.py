"""Kept samples: a fixed memory, every row with the same chance, choices that the seed decides."""

from __future__ import annotations

import numpy as np

from torchdfa.online.replay import Replay


def test_each_row_is_kept_with_the_same_chance():
    """5 of 20 rows over 400 seeds: each is kept 100 times on average, with a standard deviation of 8.7."""
    kept = np.zeros(20)
    for seed in range(400):
        replay = Replay(2, 5, 1, "float64", seed)
        for i in range(20):
            replay.keep(np.array([[float(i)]]), [1])
        kept[replay.rows[1, :, 0].astype(int)] += 1
    assert kept.sum() == 2000
    assert np.abs(kept - 100).max() < 5 * 8.7


def test_draws_are_of_what_is_kept_even_over_the_classes():
    replay = Replay(4, 3, 2, "float32", 0)
    for label, count in ((0, 50), (2, 1), (3, 2)):
        for i in range(count):
            replay.keep(np.array([[label, i]], np.float32), [label])
    rows, labels = replay.draw(600)
    assert (rows[:, 0] == labels).all()
    counts = np.bincount(labels, minlength=4)
    assert counts[1] == 0
    assert np.abs(counts[[0, 2, 3]] - 200).max() < 60
    assert set(rows[np.array(labels) == 3, 1]) == {0.0, 1.0}
    again, _ = replay.draw(600)
    assert np.array_equal(rows, again)
    replay.advance(600)
    assert not np.array_equal(rows, replay.draw(600)[0])


def test_nothing_is_drawn_from_nothing():
    rows, labels = Replay(3, 2, 4, "float32", 0).draw(8)
    assert rows.shape == (0, 4)
    assert labels == []
