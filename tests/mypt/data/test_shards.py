"""Shards are mapped with the dtype and length that they were written with, or refused."""

import subprocess
import sys

import numpy as np
import pytest

from mypt.data.manifest import Shard, record_file
from mypt.data.shards import check_ids, view_shard
from mypt.data.spans import ROW_DTYPE, SPAN_DTYPE
from mypt.errors import DataError, ManifestError

MASK = bytes([0, 1, 0, 0, 1, 1, 1])  # seven: no multiple of four


@pytest.fixture
def shard(tmp_path):
    (tmp_path / "train").mkdir()
    np.arange(7, dtype="<u4").tofile(tmp_path / "train/shard_000.bin")
    (tmp_path / "train/shard_000_mask.bin").write_bytes(MASK)
    np.save(tmp_path / "train/shard_000_spans.npy", np.zeros(2, SPAN_DTYPE))
    np.save(tmp_path / "train/shard_000_rows.npy", np.zeros(1, ROW_DTYPE))
    return record(tmp_path)


def record(folder, **values):
    names = {
        "tokens": "train/shard_000.bin",
        "spans": "train/shard_000_spans.npy",
        "rows": "train/shard_000_rows.npy",
        "mask": "train/shard_000_mask.bin",
    }
    files = {part: record_file(folder, name) for part, name in names.items()}
    known = {"split": "train", "index": 0, "source": 0, "n_tokens": 7, "n_rows": 1}
    return Shard(**(known | files | values))


def test_a_mask_is_read_as_bytes_and_tokens_as_four(tmp_path, shard):
    view = view_shard(tmp_path, shard)
    assert (view.mask.dtype, view.mask.tobytes()) == (np.uint8, MASK)
    assert (view.tokens.dtype, view.tokens.tolist()) == (np.uint32, list(range(7)))
    assert (view.spans.dtype, view.rows.dtype) == (SPAN_DTYPE, ROW_DTYPE)


def test_what_is_mapped_cannot_be_written_to(tmp_path, shard):
    view = view_shard(tmp_path, shard)
    for array in (view.tokens, view.mask, view.spans, view.rows):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[0]


def test_a_shard_without_tokens_is_read_although_an_empty_file_cannot_be_mapped(tmp_path, shard):
    (tmp_path / "train/shard_000.bin").write_bytes(b"")
    (tmp_path / "train/shard_000_mask.bin").write_bytes(b"")
    np.save(tmp_path / "train/shard_000_spans.npy", np.zeros(0, SPAN_DTYPE))
    view = view_shard(tmp_path, shard.model_copy(update={"n_tokens": 0}))
    assert (len(view.tokens), len(view.mask), len(view.spans)) == (0, 0, 0)


@pytest.mark.parametrize("name", ["shard_000.bin", "shard_000_mask.bin"])
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda _: b""])
def test_a_file_of_another_length_is_refused_by_name(tmp_path, shard, name, change):
    path = tmp_path / "train" / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ManifestError, match=rf"{name}: \d+ bytes found, \d+ expected"):
        view_shard(tmp_path, shard)


@pytest.mark.parametrize("part", [".bin", "_mask.bin", "_spans.npy", "_rows.npy"])
def test_a_missing_file_is_named(tmp_path, shard, part):
    (tmp_path / f"train/shard_000{part}").unlink()
    with pytest.raises(ManifestError, match=rf"shard_000{part}: missing"):
        view_shard(tmp_path, shard)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 an archive", b"\x93NUMPY\x01\x00\xff\xff", b"no table"],
    ids=["empty", "archive", "torn", "text"],
)
def test_a_table_that_is_none_is_refused(tmp_path, shard, content):
    (tmp_path / "train/shard_000_spans.npy").write_bytes(content)
    with pytest.raises(ManifestError, match=r"shard_000_spans\.npy"):
        view_shard(tmp_path, shard)


@pytest.mark.parametrize(
    "table", [np.zeros(1, SPAN_DTYPE), np.zeros(2, ROW_DTYPE), np.zeros((1, 1), ROW_DTYPE)]
)
def test_rows_of_another_layout_or_number_are_refused(tmp_path, shard, table):
    np.save(tmp_path / "train/shard_000_rows.npy", table)
    with pytest.raises(ManifestError, match=r"shard_000_rows\.npy: .* found, .* expected"):
        view_shard(tmp_path, shard)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "train/shard_001.bin"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, shard, name):
    tokens = shard.tokens.model_copy(update={"name": name})
    with pytest.raises(ManifestError, match=r"file '.*', expected 'train/shard_000\.bin'"):
        view_shard(tmp_path, shard.model_copy(update={"tokens": tokens}))


def test_an_id_outside_the_vocabulary_is_refused_with_its_place(tmp_path, shard):
    view = view_shard(tmp_path, shard)
    check_ids(tmp_path, view, n_vocab=7)
    with pytest.raises(DataError, match=r"shard_000\.bin: id 6 found at token 6, .* has 6"):
        check_ids(tmp_path, view, n_vocab=6)


SHRINKS = """
import os, sys
from pathlib import Path
import numpy as np
from mypt.data.shards import map_flat
path = Path(sys.argv[1])
found = map_flat(path, np.dtype(np.uint32), path.stat().st_size // 4)
os.truncate(path, 10)
print(int(found.sum()) if sys.argv[2] == "sum" else found[np.arange(len(found))])
"""


@pytest.mark.parametrize("how", ["sum", "take"])
def test_a_file_that_shrinks_while_it_is_mapped_ends_the_process_by_one_line(tmp_path, how):
    path = tmp_path / "shard_000.bin"
    np.zeros(1 << 20, np.uint32).tofile(path)
    done = subprocess.run(
        [sys.executable, "-c", SHRINKS, path, how],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"mypt: {path}: shrank while it was read; put a copy back\n"
