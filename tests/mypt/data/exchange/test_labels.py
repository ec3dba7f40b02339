"""Masks as labels in Parquet, row for row."""

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mypt.data.dataset import open_dataset
from mypt.data.exchange.labels import NAMES, adopt_labels, export_labels
from mypt.errors import DataError, MaskError
from tests.mypt.conftest import prepare_chat


@pytest.fixture
def dataset(tmp_path):
    return prepare_chat(tmp_path)


def rows_of(dataset, split):
    for shard in open_dataset(dataset).shards(split):
        for row in shard.rows:
            span = slice(int(row["start"]), int(row["stop"]))
            yield shard.tokens[span].tolist(), shard.mask[span].tolist()


def test_labels_are_the_ids_where_supervised_and_minus_100_elsewhere(tmp_path, dataset):
    export_labels(dataset, tmp_path / "out")
    for split, name in NAMES.items():
        found = parquet.read_table(tmp_path / "out" / f"{name}.parquet").to_pylist()
        wanted = list(rows_of(dataset, split))
        assert [row["input_ids"] for row in found] == [ids for ids, _ in wanted]
        assert [row["labels"] for row in found] == [
            [i if m else -100 for i, m in zip(ids, mask, strict=True)] for ids, mask in wanted
        ]


def test_datasets_and_trl_learn_from_our_masks(tmp_path, dataset):
    datasets = pytest.importorskip("datasets", reason="pip install 'mypt[bench]'")
    collators = pytest.importorskip("trl.trainer.sft_trainer", reason="pip install 'mypt[bench]'")
    export_labels(dataset, tmp_path / "out")
    loaded = datasets.load_dataset(
        "parquet",
        data_files={"train": str(tmp_path / "out" / "train.parquet")},
        cache_dir=str(tmp_path / "cache"),
    )["train"]
    wanted = list(rows_of(dataset, "train"))[:4]
    batch = collators.DataCollatorForLanguageModeling(pad_token_id=0)([loaded[i] for i in range(4)])
    for row, (ids, mask) in enumerate(wanted):
        labels = batch["labels"][row].numpy()
        assert labels[: len(ids)].tolist() == np.where(mask, ids, -100).tolist()
        assert (labels[len(ids) :] == -100).all()


def test_labels_of_others_become_a_dataset_with_the_same_mask(tmp_path, dataset):
    export_labels(dataset, tmp_path / "out")
    made = open_dataset(adopt_labels(tmp_path / "out", tmp_path / "made").path)
    for split in NAMES:
        (there,), (here,) = open_dataset(dataset).shards(split), made.shards(split)
        assert np.array_equal(there.tokens, here.tokens)
        assert np.array_equal(there.mask, here.mask)


def test_labels_that_are_shifted_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    table = pa.table({"input_ids": [[1, 2, 3]], "labels": [[2, 3, -100]]})
    parquet.write_table(table, tmp_path / "in" / "train.parquet")
    with pytest.raises(MaskError, match="its own token, not the next"):
        adopt_labels(tmp_path / "in", tmp_path / "made", "byte")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        ([[2**32 + 5]], pa.int64()), ([[-3]], pa.int64()), ([[1, None]], pa.int64()),
        ([[1], None], pa.int64()), ([[1.5]], pa.float64()), ([[2**64 - 95]], pa.uint64()),
    ],
)  # fmt: skip
def test_ids_that_are_none_are_refused_and_not_bent_into_some(tmp_path, ids, kind):
    (tmp_path / "in").mkdir()
    column = pa.array(ids, pa.list_(kind))
    parquet.write_table(
        pa.table({"input_ids": column, "labels": column}), tmp_path / "in" / "train.parquet"
    )
    with pytest.raises(DataError, match=r"train\.parquet"):
        adopt_labels(tmp_path / "in", tmp_path / "made", "byte")
    assert not (tmp_path / "made").exists()
