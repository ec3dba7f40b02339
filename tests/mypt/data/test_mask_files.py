"""What masks select is counted by split, role and source."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypt.data.mask_files import mask_stats, supervised_in
from mypt.data.spans import ROW_DTYPE
from mypt.errors import MaskError
from tests.mypt.data.handmade import dataset, make_view, shard


def test_the_counts_are_those_of_a_hand_written_corpus():
    hand = dataset(
        shard([[("user", 5), ("assistant", 4)], [("user", 3)]]),
        shard([[("text", 6)], [("system", 3), ("assistant", 3)]], split="val", source=1),
    )
    stats = mask_stats(hand.views, hand.manifest.sources)

    def counts(group):
        return {name: (d.tokens, d.supervised) for name, d in group.items()}

    assert (stats.total.tokens, stats.total.supervised) == (24, 11)
    assert counts(stats.by_split) == {"train": (12, 3), "val": (12, 8)}
    assert counts(stats.by_source) == {"source 0": (12, 3), "source 1": (12, 8)}
    assert counts(stats.by_role) == {
        "user": (8, 0), "assistant": (7, 5), "text": (6, 6), "system": (3, 0),
    }  # fmt: skip
    assert (stats.rows, stats.rows_unsupervised) == (4, 1)


def test_masks_made_by_hand_have_no_roles_and_no_rows():
    view = make_view([1, 2, 3], np.array([0, 1, 1], np.uint8), None, None)
    stats = mask_stats([view], dataset(view).manifest.sources)
    assert (stats.total.density, stats.by_role, stats.rows) == (pytest.approx(2 / 3), {}, 0)


def test_a_shard_without_a_mask_is_refused_and_not_counted_as_unsupervised():
    view = shard([[("user", 3)]], masked=False)
    with pytest.raises(MaskError, match=r"train/shard_000\.bin has no mask"):
        mask_stats([view], dataset(view).manifest.sources)


@given(st.lists(st.lists(st.integers(0, 1), max_size=4)))
def test_supervised_tokens_of_parts_equal_a_plain_sum_also_for_empty_parts(parts):
    rows = np.zeros(len(parts), ROW_DTYPE)
    stops = np.cumsum([len(part) for part in parts], dtype=np.int64)
    rows["stop"], rows["start"][1:] = stops, stops[:-1]
    mask = np.array([bit for part in parts for bit in part], dtype=np.uint8)
    assert supervised_in(mask, rows).tolist() == [sum(part) for part in parts]
