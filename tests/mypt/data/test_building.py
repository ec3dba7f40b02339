"""Folders appear whole, once, and to one builder at a time."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from mypt import files
from mypt.data.building import build
from mypt.data.manifest import METADATA, FileRecord, Manifest, record_file
from mypt.errors import ConfigError, DataError, ManifestError


def make(folder, text="state", recipe="r"):
    (folder / "tokenizer_state.json").write_text(text)
    return manifest(record_file(folder, "tokenizer_state.json"), recipe)


def manifest(tokenizer=None, recipe="r"):
    return Manifest(
        kind="chat",
        tokenizer=tokenizer or FileRecord(name="x", size=0, digest=""),
        tokenizer_name="byte",
        n_vocab=263,
        template="t",
        recipe=recipe,
        sources=(),
        shards=(),
    )


def fail(folder):
    (folder / "half").write_text("written")
    raise ValueError("in the middle")


def test_what_was_built_is_there_with_its_metadata_and_digest(tmp_path):
    made = build(tmp_path / "deep" / "d", make)
    assert made.path == str(tmp_path / "deep" / "d")
    assert made.digest in (tmp_path / "deep/d" / METADATA).read_text()


def test_a_builder_that_fails_leaves_nothing_under_the_name_nor_beside_it(tmp_path):
    with pytest.raises(ValueError, match="in the middle"):
        build(tmp_path / "d", fail)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


def test_an_existing_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("mine")
    for recipe in (None, "r"):
        with pytest.raises(ConfigError, match="exists and is never overwritten; name another"):
            build(tmp_path / "d", make, recipe)
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["mine.txt"]


def test_a_dataset_is_reused_only_for_the_recipe_that_made_it(tmp_path):
    made = build(tmp_path / "d", make)
    assert build(tmp_path / "d", fail, "r") == made
    with pytest.raises(ConfigError, match="other sources or settings"):
        build(tmp_path / "d", make, "another")
    with pytest.raises(ConfigError, match="exists"):
        build(tmp_path / "d", make)


def test_a_dataset_whose_files_changed_is_not_reused(tmp_path):
    build(tmp_path / "d", make)
    (tmp_path / "d" / "tokenizer_state.json").write_text("eta@s")
    with pytest.raises(ManifestError, match=r"tokenizer_state\.json: its bytes changed"):
        build(tmp_path / "d", make, "r")


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_folder_that_one_stands_in_is_refused_like_any_other(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="exists and is never overwritten"):
        build(Path(name), make)


def test_a_full_disk_is_one_clear_error(tmp_path):
    def full(folder):
        (folder / "part").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"d: cannot be written \(.*No space left.*\); make room"):
        build(tmp_path / "d", full)
    assert not (tmp_path / "d").exists()


def test_a_parent_that_is_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        build(tmp_path / "file" / "d", make)


def killed(folder):
    def die(inside):
        (inside / "half").write_text("written")
        os._exit(9)

    build(folder, die)


def test_what_a_killed_builder_left_is_cleared_and_its_lock_is_free(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path / "d",))
    child.start()
    child.join()
    assert child.exitcode == 9
    assert not (tmp_path / "d").exists()
    assert (tmp_path / f"{files.TEMPORARY_PREFIX}d" / "half").exists()
    build(tmp_path / "d", make)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".d.lock", "d"]
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == [METADATA, "tokenizer_state.json"]


def race(folder, recipe, start, results):
    def slowly(inside):
        time.sleep(0.05)
        return make(inside)

    start.wait()
    try:
        results.put(build(folder, slowly, recipe).digest)
    except ConfigError as error:
        results.put(str(error))


@pytest.mark.parametrize("recipe", [None, "r"])
def test_of_two_builders_one_builds_and_the_other_waits_and_is_refused_or_reuses(tmp_path, recipe):
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(2), context.Queue()
    arguments = (tmp_path / "d", recipe, start, results)
    children = [context.Process(target=race, args=arguments) for _ in range(2)]
    for child in children:
        child.start()
    found = sorted(results.get(timeout=30) for _ in children)
    for child in children:
        child.join()
    digest = manifest(record_file(tmp_path / "d", "tokenizer_state.json")).compute_digest()
    if recipe is None:
        assert digest in found
        assert any("exists and is never overwritten" in text for text in found)
    else:
        assert found == [digest, digest]
