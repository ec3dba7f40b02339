"""Rows go to train or val by what they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypt.data.preparation.encoding import Encoded
from mypt.data.preparation.shard_writer import RowSplit, select_rows
from mypt.data.spans import ROW_DTYPE, SPAN_DTYPE
from mypt.errors import DataError


def rows_of(*keys):
    rows = np.zeros(len(keys), ROW_DTYPE)
    rows["digest"] = np.array([key.to_bytes(8, "big") + b"tail...." for key in keys], "V16")
    return rows


def test_a_row_goes_to_val_if_its_key_lies_in_the_lowest_share():
    edge = 2**64 // 4
    rows = rows_of(0, edge - 1, edge, 2**64 - 1)
    assert RowSplit(0.25).in_val(rows).tolist() == [True, True, False, False]


def test_no_row_goes_to_val_if_no_share_is_asked_for():
    split = RowSplit(0.0)
    assert not split.in_val(rows_of(0, 1)).any()
    assert split.empty is None


def test_about_the_asked_share_of_many_digests_goes_to_val():
    keys = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    share = RowSplit(0.1).in_val(rows_of(*keys.tolist())).mean()
    assert share == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("fraction", "keys", "empty", "expected"),
    [
        (0.1, (2**63, 2**62, 2**62), "val", [False, True, True]),
        (0.9, (5, 7, 7), "train", [True, False, False]),
    ],
)
def test_a_split_that_leaves_one_side_empty_is_repaired_by_one_row_and_its_twins(
    fraction, keys, empty, expected
):
    split = RowSplit(fraction)
    split.in_val(rows_of(*keys[:2]))
    split.in_val(rows_of(*keys[2:]))
    assert split.empty == empty
    repaired = split.repaired("here")
    assert repaired.in_val(rows_of(*keys)).tolist() == expected
    assert repaired.empty is None


def test_rows_that_all_say_the_same_cannot_be_parted():
    split = RowSplit(0.5)
    split.in_val(rows_of(9, 9, 9))
    with pytest.raises(
        DataError,
        match=r"^chat\.jsonl: all rows say the same.* val_fraction to 0, which a pipeline refuses",
    ):
        split.repaired("chat.jsonl")


def laid_out(lengths):
    """Return rows of one span of ``n`` tokens each; the tokens count on from 0."""
    stops = np.cumsum([0, *lengths])
    spans = np.zeros(len(lengths), SPAN_DTYPE)
    rows = np.zeros(len(lengths), ROW_DTYPE)
    for table in (spans, rows):
        table["start"], table["stop"] = stops[:-1], stops[1:]
    spans["conversation"] = rows["line"] = np.arange(len(lengths))
    return Encoded(np.arange(stops[-1], dtype=np.uint32), spans, rows, np.empty(0))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans())))
def test_selecting_rows_keeps_their_tokens_and_counts_offsets_anew(rows):
    lengths, chosen = [n for n, _ in rows], np.array([c for _, c in rows], dtype=bool)
    encoded = laid_out(lengths)
    selected = select_rows(encoded, chosen)
    expected = [encoded.tokens[row["start"] : row["stop"]].tolist() for row in encoded.rows[chosen]]
    for table in (selected.rows, selected.spans):
        pieces = [selected.tokens[part["start"] : part["stop"]].tolist() for part in table]
        assert pieces == expected
    assert selected.spans["conversation"].tolist() == list(range(int(chosen.sum())))
    assert selected.rows["line"].tolist() == np.flatnonzero(chosen).tolist()
    assert sum(map(len, expected)) == len(selected.tokens)
