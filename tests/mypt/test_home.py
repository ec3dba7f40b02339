"""Where a run leaves its files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mypt.errors import CheckpointError, ConfigError
from mypt.home import (
    checkpoint_to_use,
    find_checkpoint,
    home,
    lock,
    model_names,
    models_dir,
    moved_home,
    place_now,
)
from mypt.references import CheckpointRef


def test_a_block_may_leave_its_files_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "a"))
    with moved_home(tmp_path / "b"):
        assert models_dir() == tmp_path / "b" / "models"
        with moved_home(tmp_path / "c"):
            assert home() == tmp_path / "c"
        assert home() == tmp_path / "b"
    assert home() == tmp_path / "a"


def test_a_home_that_is_set_to_nothing_is_refused(monkeypatch):
    monkeypatch.setenv("MYPT_HOME", "")
    with pytest.raises(ConfigError, match=r"MYPT_HOME is empty; expected a folder; .*mypt_home"):
        home()


@pytest.mark.parametrize("name", ["../other/step_000001", "/tmp/step_000001", "step_" + "9" * 400])
def test_a_pointer_cannot_leave_its_model(tmp_path, name):
    for model in ("m", "other"):
        (tmp_path / model / "step_000001").mkdir(parents=True)
    (tmp_path / "m" / "latest").write_text(name)
    with pytest.raises(CheckpointError, match="no checkpoint of"):
        find_checkpoint(tmp_path / "m")


def make_models(*names):
    for age, name in enumerate(names):
        folder = models_dir() / name / "step_000001"
        folder.mkdir(parents=True)
        pointer = folder.parent / "latest"
        pointer.write_text("step_000001\n")
        os.utime(pointer, (1000 - age, 1000 - age))


def test_models_are_named_newest_first_and_only_with_a_checkpoint(tmp_path):
    with moved_home(tmp_path):
        make_models("b", "c", "a")
        (models_dir() / "begun").mkdir()
        assert model_names() == ("b", "c", "a")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ((), "there is no model under {} yet"),
        (
            ("demo-chat-0e43", "demo-base-12ab", "other"),
            "the nearest of 3: demo-chat-0e43, demo-base-12ab under {}",
        ),
        (("other", "two"), "none of 2 under {} is like it, see mypt list models"),
    ],
)
def test_a_model_that_is_not_there_is_told_from_those_that_are(tmp_path, names, says):
    with moved_home(tmp_path):
        make_models(*names)
        with pytest.raises(CheckpointError) as error:
            find_checkpoint("demo-chta")
        assert f"no model at {models_dir() / 'demo-chta'};" in str(error.value)
        assert str(error.value).endswith(says.format(models_dir()))


def test_a_best_that_names_another_step_than_the_training_does_is_refused(tmp_path):
    for step in (2, 6):
        (tmp_path / "m" / f"step_{step:06d}").mkdir(parents=True)
    (tmp_path / "m" / "latest").write_text("step_000006\n")
    (tmp_path / "m" / "step_000006" / "trainer_state.json").write_text('{"best_step": 2}')
    (tmp_path / "m" / "best").write_text("step_000002\n")
    assert checkpoint_to_use(tmp_path / "m").name == "step_000002"
    (tmp_path / "m" / "best").write_text("step_000006\n")  # one bit
    with pytest.raises(CheckpointError, match=r"best names step_000006, .* knows step_000002"):
        checkpoint_to_use(tmp_path / "m")


def test_what_a_record_names_is_found_where_its_home_was_moved_to(tmp_path, monkeypatch):
    old, new = tmp_path / "runs", tmp_path / "elsewhere"
    step = Path("models", "chat", "step_000001")
    monkeypatch.setenv("MYPT_HOME", str(old))
    (old / step).mkdir(parents=True)
    said = CheckpointRef(path=str(old / step), digest="d" * 64, step=1).model_dump_json()
    old.rename(new)
    assert CheckpointRef.model_validate_json(said).path == str(old / step)
    monkeypatch.setenv("MYPT_HOME", str(new))
    assert CheckpointRef.model_validate_json(said).path == str(new / step)
    (old / step).mkdir(parents=True)
    assert place_now(str(old / step)) == str(old / step)
    for text in ("models/chat", "/" + "x" * 5000, "/a\0b/c", ""):
        assert place_now(text) == text


def test_a_lock_leaves_no_file_and_holds_whoever_comes_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))
    counter, folder = tmp_path / "counter", tmp_path / "locks"
    counter.write_text("0")
    work = (
        "import sys; from pathlib import Path; from mypt.home import lock\n"
        "counter = Path(sys.argv[1])\n"
        "for _ in range(200):\n"
        "    with lock('a').acquire(poll_interval=0.0001):\n"
        "        found = int(counter.read_text()); counter.write_text(str(found + 1))\n"
    )
    several = [subprocess.Popen([sys.executable, "-c", work, counter]) for _ in range(4)]
    assert [one.wait(60) for one in several] == [0] * 4
    assert counter.read_text() == "800"
    with lock("a"), lock("b"):
        assert {path.name for path in folder.iterdir()} == {"a.lock", "b.lock"}
    assert list(folder.iterdir()) == []


def test_a_lock_in_a_home_that_was_moved_removes_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "runs"))
    with lock("a"):
        (tmp_path / "runs").rename(tmp_path / "elsewhere")
        with lock("b"):  # as a second process has it
            (tmp_path / "runs" / "locks" / "a.lock").touch()
    assert [path.name for path in (tmp_path / "runs" / "locks").iterdir()] == ["a.lock"]
