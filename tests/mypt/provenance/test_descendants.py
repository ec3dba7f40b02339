"""From a dataset or a raw file to the checkpoints that saw it."""

import shutil
from pathlib import Path

import pytest

from mypt import files
from mypt.config import MaskPolicy
from mypt.data.dataset import mask
from mypt.data.manifest import read_manifest
from mypt.errors import ConfigError
from mypt.home import datasets_dir, models_dir
from mypt.provenance.descendants import DATASET, GONE, OTHER_BYTES, SAME_BYTES, find_uses


@pytest.fixture
def world(tmp_path, plan, finish, make_chat, other_dataset):
    """A base on one dataset, a chat model on it masked again, and a stranger on another."""
    first = make_chat(tmp_path)
    second = mask(first, MaskPolicy(end_of_turn=False), datasets_dir() / "masked").path
    finish(plan("base", dataset=first, max_iters=1))
    finish(plan("chat", dataset=second, init_from="base", max_iters=1))
    finish(plan("stranger", dataset=other_dataset, max_iters=1, seed=1))
    finish(plan("child", dataset=other_dataset, init_from="base", max_iters=1))
    return first, Path(second)


def told(what):
    found = find_uses(str(what))
    assert found.searched == 4
    assert found.problems == ()
    return [(use.name, use.through, use.what) for use in found.uses]


def test_a_dataset_is_known_by_its_digest_in_all_that_was_made_from_it(world):
    first, second = world
    expected = [
        ("base step 1", (), DATASET),
        ("chat step 1", (), DATASET),
        ("chat step 1", ("base step 1",), DATASET),
        ("child step 1", ("base step 1",), DATASET),
    ]
    assert told(first) == expected
    assert told(second) == [("chat step 1", (), DATASET)]
    assert told(read_manifest(second).digest[:12]) == [("chat step 1", (), DATASET)]


def test_a_masking_of_a_masking_counts_too(world, plan, finish):
    first, second = world
    third = mask(second, MaskPolicy(roles=("user",)), datasets_dir() / "again").path
    finish(plan("third", dataset=third, max_iters=1))
    uses = find_uses(str(first)).uses
    assert ("third step 1", ()) in [(use.name, use.through) for use in uses]


@pytest.mark.usefixtures("world")
def test_a_raw_file_is_known_by_its_bytes_wherever_it_lies(tmp_path):
    raw = shutil.copy(tmp_path / "chat.jsonl", tmp_path / "copy.jsonl")
    expected = [
        ("base step 1", (), SAME_BYTES),
        ("chat step 1", (), SAME_BYTES),
        ("chat step 1", ("base step 1",), SAME_BYTES),
        ("child step 1", ("base step 1",), SAME_BYTES),
    ]
    assert told(raw) == expected
    assert told(files.sha256_file(raw)) == expected


@pytest.mark.usefixtures("world")
def test_a_file_that_changed_or_is_gone_is_known_by_its_path(tmp_path):
    raw = tmp_path / "chat.jsonl"
    mine = [("base step 1", ()), ("chat step 1", ()), ("chat step 1", ("base step 1",)),
            ("child step 1", ("base step 1",))]  # fmt: skip
    raw.write_text(raw.read_text() + "\n")
    assert told(raw) == [(*use, OTHER_BYTES) for use in mine]
    raw.unlink()
    assert told(raw) == [(*use, GONE) for use in mine]


@pytest.mark.usefixtures("world")
def test_what_nobody_saw_has_no_uses(tmp_path):
    (tmp_path / "new.jsonl").write_text("{}")
    assert told(tmp_path / "new.jsonl") == []


def test_a_parent_that_is_gone_is_known_from_its_child(world):
    shutil.rmtree(models_dir() / "base")
    names = [(use.name, use.through) for use in find_uses(str(world[0])).uses]
    assert names == [
        ("chat step 1", ()),
        ("chat step 1", ("base step 1",)),
        ("child step 1", ("base step 1",)),
    ]


def test_a_checkpoint_that_cannot_be_read_is_named(world):
    path = models_dir() / "stranger" / "step_000001" / "lineage.json"
    path.write_bytes(path.read_bytes()[:100])
    (problem,) = find_uses(str(world[0])).problems
    assert str(path) in problem


def test_an_ordinary_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"a folder without dataset_metadata\.json"):
        find_uses(str(tmp_path))
