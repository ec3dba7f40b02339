"""Folders of Hugging Face's datasets, written by it where it is installed, else by hand."""

import json

import numpy as np
import pyarrow as pa
import pytest

from mypt.data.dataset import open_dataset
from mypt.data.exchange.labels import adopt_labels, saved_files
from mypt.errors import DataError, MaskError

ROWS = {
    "train": [[72, 105, 33], [], [66, 121, 101, 46]],
    "test": [[79, 107, 46]],
}

IDS = pa.int64()


def labels(ids):
    """All but the first token of a row are supervised."""
    return [-100, *ids[1:]] if ids else []


def by_hand(folder, rows, kind=IDS, **state):
    """Write the folder of one Dataset as ``save_to_disk`` does, two rows a file."""
    folder.mkdir(parents=True)
    schema = pa.schema({"text": pa.string(), "labels": pa.list_(kind), "input_ids": pa.list_(kind)})
    names = []
    for start in range(0, len(rows), 2):
        some = rows[start : start + 2]
        columns = {"text": ["x"] * len(some), "labels": map(labels, some), "input_ids": some}
        table = pa.table({key: list(values) for key, values in columns.items()}, schema)
        names.append(f"data-{start // 2:05d}.arrow")
        with (
            pa.OSFile(str(folder / names[-1]), "wb") as file,
            pa.ipc.new_stream(file, schema) as to,
        ):
            to.write_table(table)
    listed = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(listed | state))


def dict_by_hand(folder):
    for split, rows in ROWS.items():
        by_hand(folder / split, rows)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(ROWS)}))


def dict_by_datasets(folder):
    datasets = pytest.importorskip("datasets", reason="pip install 'mypt[bench]'")
    splits = {
        split: datasets.Dataset.from_dict({"input_ids": rows, "labels": list(map(labels, rows))})
        for split, rows in ROWS.items()
    }
    datasets.DatasetDict(splits).save_to_disk(str(folder), num_shards={"train": 2, "test": 1})


@pytest.mark.parametrize("write", [dict_by_hand, dict_by_datasets])
def test_the_splits_of_a_saved_dict_become_a_dataset_with_its_masks(tmp_path, write):
    write(tmp_path / "saved")
    made = open_dataset(adopt_labels(tmp_path / "saved", tmp_path / "made", "byte").path)
    for split, name in (("train", "train"), ("val", "test")):
        shards = list(made.shards(split))
        ids = [i for row in ROWS[name] for i in row]
        mask = [i != -100 for row in ROWS[name] for i in labels(row)]
        assert np.concatenate([shard.tokens for shard in shards]).tolist() == ids
        assert np.concatenate([shard.mask for shard in shards]).tolist() == mask
    assert len(list(made.shards("train"))) == 2, "one a file, in the order that state.json says"


def test_a_lone_dataset_is_all_training(tmp_path):
    by_hand(tmp_path / "saved", ROWS["train"], pa.int32())
    made = open_dataset(adopt_labels(tmp_path / "saved", tmp_path / "made", "byte").path)
    assert made.manifest.tokens("train") == 7
    assert made.manifest.tokens("val") == 0


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"_data_files": [{"filename": "../data-00000.arrow"}]}, "names no file of this folder"),
        ({"_data_files": [{"filename": "/etc/hostname"}]}, "names no file of this folder"),
        ({"_data_files": [{"filename": ".."}]}, "names no file of this folder"),
        ({"_data_files": ["data-00000.arrow"]}, "names no file of this folder"),
        ({"_data_files": [{"filename": "data-00007.arrow"}]}, "no such file, though state.json"),
        ({"_data_files": [{"filename": "link.arrow"}]}, "no such file, though state.json"),
        ({"_data_files": 3}, "no list _data_files"),
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "flatten_indices"),
    ],
)
def test_what_a_state_may_not_say_is_refused(tmp_path, listed, message):
    by_hand(tmp_path / "saved", ROWS["train"], **listed)
    (tmp_path / "saved" / "link.arrow").symlink_to("data-00000.arrow")
    with pytest.raises(DataError, match=message):
        adopt_labels(tmp_path / "saved", tmp_path / "made", "byte")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "splits", [["train", "validation", "test"], ["train", "extra"], ["../train"], "train", [1]]
)
def test_a_split_is_ours_or_refused_so_that_none_is_left_out_unseen(tmp_path, splits):
    dict_by_hand(tmp_path / "saved")
    by_hand(tmp_path / "saved" / "validation", ROWS["test"])
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(DataError, match="splits"):
        saved_files(tmp_path / "saved")


def test_offsets_that_point_outside_their_values_are_refused_and_not_followed(tmp_path):
    by_hand(tmp_path / "saved", ROWS["test"])
    path = tmp_path / "saved" / "data-00000.arrow"
    good = np.array([0, 3], "<i4").tobytes()
    assert good in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(good, np.array([0, 1 << 20], "<i4").tobytes()))
    with pytest.raises(DataError, match=r"data-00000\.arrow"):
        adopt_labels(tmp_path / "saved", tmp_path / "made", "byte")


def test_shifted_labels_are_refused_here_too(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.labels", lambda ids: [*ids[1:], -100])
    by_hand(tmp_path / "saved", ROWS["test"])
    with pytest.raises(MaskError, match="its own token, not the next"):
        adopt_labels(tmp_path / "saved", tmp_path / "made", "byte")
