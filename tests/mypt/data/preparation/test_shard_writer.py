"""Rows become shards: whole, in order, of one source each."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypt.data.preparation.encoding import Encoded
from mypt.data.preparation.shard_writer import ShardWriter
from mypt.data.shards import view_shard
from mypt.data.spans import ROW_DTYPE, SPAN_DTYPE
from mypt.errors import DataError


def encoded_of(lengths, first_line=0, first_id=0):
    """Return rows of ``n`` tokens, each cut into two spans if it has two tokens."""
    rows, spans, at = [], [], 0
    for number, n in enumerate(lengths):
        rows.append((at, at + n, 0, first_line + number, b"x" * 16))
        for message, (start, stop) in enumerate([(0, n // 2), (n // 2, n)]):
            if stop > start:
                spans.append((at + start, at + stop, number, message, 3, 1, -1))
        at += n
    ids = np.arange(first_id, first_id + at, dtype=np.uint32)
    return Encoded(ids, np.array(spans, SPAN_DTYPE), np.array(rows, ROW_DTYPE), np.empty(0))


def write(folder, *batches, shard_tokens=10, n_vocab=1 << 20):
    """Write (split, source, encoded) batches and return the shards as views."""
    folder.mkdir()
    with ShardWriter(folder, shard_tokens, n_vocab) as writer:
        for split, source, encoded in batches:
            writer.append(split, source, encoded)
        shards = writer.close()
    return [view_shard(folder, shard) for shard in shards]


def test_a_shard_ends_with_the_row_that_fills_it_and_no_row_is_cut(tmp_path):
    views = write(tmp_path / "d", ("train", 0, encoded_of([4, 5, 6, 1, 30, 2])))
    assert [view.tokens.tolist() for view in views] == [
        list(range(15)), list(range(15, 46)), [46, 47],
    ]  # fmt: skip
    assert [view.rows["line"].tolist() for view in views] == [[0, 1, 2], [3, 4], [5]]
    assert [view.record.tokens.name for view in views] == [
        f"train/shard_00{i}.bin" for i in range(3)
    ]


def test_rows_and_spans_of_every_shard_count_from_its_own_first_token(tmp_path):
    views = write(
        tmp_path / "d",
        ("train", 0, encoded_of([4, 2])),
        ("train", 0, encoded_of([3, 5, 8], first_line=2, first_id=6)),
    )
    for view in views:
        for table in (view.rows, view.spans):
            assert table["start"][0] == 0
            assert (table["start"][1:] == table["stop"][:-1]).all()
            assert table["stop"][-1] == len(view.tokens)
        assert np.unique(view.spans["conversation"]).tolist() == list(range(len(view.rows)))
        inside = view.rows[view.spans["conversation"]]
        assert (view.spans["start"] >= inside["start"]).all()
        assert (view.spans["stop"] <= inside["stop"]).all()
    assert np.concatenate([view.tokens for view in views]).tolist() == list(range(22))


def test_a_shard_holds_one_source_however_short_it_stays(tmp_path):
    views = write(
        tmp_path / "d",
        ("train", 0, encoded_of([1])),
        ("val", 0, encoded_of([2])),
        ("train", 1, encoded_of([3])),
        ("train", 1, encoded_of([4])),
    )
    found = [(v.record.split, v.record.index, v.record.source, len(v.tokens)) for v in views]
    assert found == [("train", 0, 0, 1), ("train", 1, 1, 7), ("val", 0, 0, 2)]


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=3),
    shard_tokens=st.integers(1, 12),
)
def test_the_bytes_do_not_depend_on_how_rows_come_in_batches(
    lengths, cuts, shard_tokens, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("batches")
    edges = sorted({0, len(lengths), *(cut for cut in cuts if cut < len(lengths))})
    batches = [
        ("train", 0, encoded_of(lengths[a:b], first_line=a, first_id=sum(lengths[:a])))
        for a, b in pairwise(edges)
    ]
    whole = write(folder / "a", ("train", 0, encoded_of(lengths)), shard_tokens=shard_tokens)
    parts = write(folder / "b", *batches, shard_tokens=shard_tokens)
    assert [view.record for view in whole] == [view.record for view in parts]


def test_an_id_above_sixteen_bits_survives_the_disk(tmp_path):
    (view,) = write(tmp_path / "d", ("train", 0, encoded_of([3], first_id=70_000)))
    assert view.tokens.tolist() == [70_000, 70_001, 70_002]
    assert (tmp_path / "d/train/shard_000.bin").stat().st_size == 12


def test_an_id_outside_the_vocabulary_is_refused_at_writing(tmp_path):
    with pytest.raises(DataError, match="id 102 found, the vocabulary has 102"):
        write(tmp_path / "d", ("train", 0, encoded_of([3], first_id=100)), n_vocab=102)


def test_tables_that_grew_batch_by_batch_are_ordinary_npy_files(tmp_path):
    batches = [("train", 0, encoded_of([1], first_line=i)) for i in range(200)]
    (view,) = write(tmp_path / "d", *batches, shard_tokens=10_000)
    rows = np.load(tmp_path / "d/train/shard_000_rows.npy")
    assert rows.dtype == ROW_DTYPE
    assert rows["line"].tolist() == list(range(200))
    assert (np.asarray(view.rows) == rows).all()


def test_the_files_are_let_go_of_when_writing_fails(tmp_path):
    (tmp_path / "d").mkdir()
    with ShardWriter(tmp_path / "d", 10, 100) as writer:
        writer.append("train", 0, encoded_of([3]))
        open_files = list(writer._open["train"]._files)
    assert all(file.closed for file in open_files)
