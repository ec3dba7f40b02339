"""Bulk best-fit decreasing against the algorithm item by item."""

import numpy as np
import pytest

from mypt.data.packing.layout import best_fit


def item_by_item(lengths, capacity):
    """Return the sorted rooms that are left."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


@pytest.mark.parametrize("seed", range(60))
def test_bins_are_as_full_as_item_by_item(seed):
    draw = np.random.default_rng(seed)
    capacity = int(draw.integers(1, 60))
    lengths = draw.integers(1, capacity + 1, size=int(draw.integers(1, 150)))
    bins, n_bins = best_fit(lengths, capacity)
    filled = np.bincount(bins, weights=lengths, minlength=n_bins).astype(int)
    assert sorted((capacity - filled).tolist()) == item_by_item(lengths.tolist(), capacity)


def test_a_whole_corpus_leaves_almost_no_room():
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 100_000).astype(np.int64).clip(1, 1024)
    bins, n_bins = best_fit(lengths, 1024)
    filled = np.bincount(bins, weights=lengths, minlength=n_bins)
    assert filled.max() <= 1024
    assert n_bins <= 1.0035 * np.ceil(lengths.sum() / 1024)


def test_nothing_needs_no_bin():
    assert best_fit(np.empty(0, np.int64), 8)[1] == 0


def test_large_bins_are_packed_too():
    assert sorted(best_fit(np.array([70_000, 30_000, 90_000]), 100_000)[0].tolist()) == [0, 1, 1]


@pytest.mark.parametrize("wrong", [0, 9])
def test_a_length_that_fits_no_bin_is_refused(wrong):
    with pytest.raises(ValueError, match="do not fit bins of 8"):
        best_fit(np.array([1, wrong]), 8)
