import errno
import os
import shutil
from pathlib import Path

import pytest

from mypt import files


def test_sealed_values_come_back_with_their_digest(tmp_path):
    digest = files.write_sealed(tmp_path / "a.json", {"b": 1, "a": "é"})
    assert files.read_sealed(tmp_path / "a.json") == {"b": 1, "a": "é", "digest": digest}


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data.replace(b"3e-05", b"3E-05"),  # the same number
        lambda data: data.replace(b"\n", b"\n "),
        lambda data: data.replace(b'"a": 1', b'"a": 2'),
        lambda data: data + b"\n",
        lambda data: data[:-1],
        lambda data: data.replace(b'"a": 1', b'"a": 1,\n  "a": 1'),
        lambda _: b"[" * 100_000,
        lambda data: b"\xff" + data,
        lambda _: b"",
        lambda _: b"[]",
        lambda data: data.replace(b"3e-05", b"NaN"),
    ],
)
def test_any_change_of_a_sealed_file_is_refused(tmp_path, harm):
    path = tmp_path / "a.json"
    files.write_sealed(path, {"a": 1, "rate": 3e-5})
    changed = harm(path.read_bytes())
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r"changed|digest|nested|JSON|decode|Expecting|Extra"):
        files.read_sealed(path)


def test_a_folder_that_is_removed_is_never_seen_half_empty(tmp_path, monkeypatch):
    folder = tmp_path / "step_000001"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(name)
    seen = []
    true_unlink = os.unlink

    def watch(*arguments, **choices):
        seen.append(folder.exists())
        true_unlink(*arguments, **choices)

    monkeypatch.setattr(os, "unlink", watch)
    files.remove_folder(folder)
    assert seen == [False] * 3
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_removal_left_is_cleared(tmp_path, monkeypatch):
    folder = tmp_path / "step_000001"
    folder.mkdir()
    (folder / "a").write_text("a")
    monkeypatch.setattr(shutil, "rmtree", lambda *_arguments, **_choices: None)
    files.remove_folder(folder)
    monkeypatch.undo()
    assert files.remove_leftovers(tmp_path) == (".tmp-step_000001",)
    assert list(tmp_path.iterdir()) == []


def test_what_is_set_aside_replaces_what_was_set_aside_before(tmp_path):
    for text in ("old", "new"):
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "a").write_text(text)
        aside = files.set_aside(tmp_path / "x")
    assert aside == tmp_path / "damaged-x"
    assert (aside / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["damaged-x"]


def test_removing_a_file_that_is_not_there_is_nothing(tmp_path):
    files.remove_file(tmp_path / "x")
    (tmp_path / "x").write_text("")
    files.remove_file(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_renamed_is_removed_or_set_aside(tmp_path, monkeypatch):
    """A folder of a container's image, under overlayfs."""
    for name in ("old", "odd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)

    def rename(path, _):
        raise OSError(errno.EXDEV, "Invalid cross-device link", str(path))

    monkeypatch.setattr(Path, "rename", rename)
    files.remove_folder(tmp_path / "old")
    assert files.set_aside(tmp_path / "odd") == tmp_path / "damaged-odd"
    assert [path.name for path in tmp_path.iterdir()] == ["damaged-odd"]
    assert (tmp_path / "damaged-odd" / "file").read_text() == "odd"


@pytest.mark.timeout(20)
def test_a_file_system_without_locks_is_refused_and_not_waited_for(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    (tmp_path / "x.lock").touch()
    with (
        pytest.raises(OSError, match="Function not implemented"),
        files.new_lock(tmp_path / "x.lock"),
    ):
        pass


def test_who_may_read_a_folder_may_read_what_a_library_wrote_in_it(tmp_path):
    with files.new_folder(tmp_path / "step") as new:
        (new / "a").write_bytes(b"")
        (new / "a").chmod(0o600)
    assert (tmp_path / "step" / "a").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_what_is_no_ordinary_file_is_not_opened(tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").symlink_to(tmp_path / kind)
    for read in (files.read_bytes, files.digest_file, files.sha256_file, files.read_sealed):
        with pytest.raises(OSError, match="no ordinary file"):
            read(tmp_path / "a")


def test_more_than_any_such_file_holds_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    assert files.read_bytes(tmp_path / "a", 3) == b"123"
    with pytest.raises(OSError, match="more than"):
        files.read_bytes(tmp_path / "a", 2)


def test_a_signal_as_soon_as_a_folder_is_there_leaves_none(tmp_path, monkeypatch):
    made = Path.mkdir

    def interrupted(folder, *words, **choices):
        made(folder, *words, **choices)
        if folder.name.startswith(".tmp-"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), files.new_folder(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []
