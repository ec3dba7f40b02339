import shutil
import sqlite3
import threading
import time
from contextlib import closing

import pytest

from mypt.errors import MyptError
from tasks.databases import make_whole
from tests.faults import children

REVISIONS = ("second", "first")


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path / "home"))


def ask(path, *queries):
    with closing(sqlite3.connect(path)) as opened:
        found = [opened.execute(query).fetchall() for query in queries][-1]
        opened.commit()
        return found


def build(path, pause=0.0):
    """Make or migrate as alembic does in SQLite: not in one transaction, and not twice."""
    tables = {name for (name,) in ask(path, "SELECT name FROM sqlite_master")}
    if "runs" not in tables:
        ask(path, "CREATE TABLE runs (id)", "CREATE TABLE alembic_version (version_num)")
        ask(path, "INSERT INTO alembic_version VALUES ('first')")
    ask(path, "CREATE TABLE _alembic_tmp_runs (id, name)")
    time.sleep(pause)
    ask(path, "INSERT INTO _alembic_tmp_runs SELECT id, 'unnamed' FROM runs", "DROP TABLE runs")
    ask(path, "ALTER TABLE _alembic_tmp_runs RENAME TO runs")
    ask(path, "UPDATE alembic_version SET version_num = 'second'")


def make(path, build=build, **choices):
    make_whole(path, REVISIONS, build, **choices)


def old(path, row="1"):
    ask(path, "CREATE TABLE runs (id)", "CREATE TABLE alembic_version (version_num)")
    ask(path, "INSERT INTO alembic_version VALUES ('first')")
    ask(path, f"INSERT INTO runs VALUES ({row})")


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_new_one_and_one_of_before_come_to_the_newest_tables(tmp_path):
    make(tmp_path / "new.db")
    assert ask(tmp_path / "new.db", "SELECT * FROM runs") == []
    old(tmp_path / "old.db")
    make(tmp_path / "old.db")
    assert ask(tmp_path / "old.db", "SELECT * FROM runs") == [(1, "unnamed")]
    before = (tmp_path / "old.db").read_bytes()
    make(tmp_path / "old.db", build=pytest.fail)
    assert (tmp_path / "old.db").read_bytes() == before
    assert names(tmp_path) == ["new.db", "old.db"]


@pytest.mark.parametrize("begin", [lambda _: None, old])
def test_a_kill_while_it_is_made_or_changed_leaves_the_one_of_before(tmp_path, begin):
    path = tmp_path / "x.db"
    begin(path)
    before = path.read_bytes() if path.exists() else None
    for seconds in (0.05, 0.2):
        children.killed_after(lambda: make(path, lambda at: build(at, 60.0)), seconds, 9)
        assert (path.read_bytes() if path.exists() else None) == before
    make(path)
    assert ask(path, "SELECT count(*) FROM runs") == [(int(before is not None),)]
    assert names(tmp_path) == ["x.db"]


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: path.write_bytes(b"no database" * 100), "not a database"),
        (lambda path: ask(path, "CREATE TABLE _alembic_tmp_runs (id)"), "left half made"),
        (lambda path: ask(path, "DROP TABLE runs"), "cannot be changed"),
    ],
)
def test_a_broken_one_is_named_kept_aside_and_made_again(tmp_path, capsys, harm, says):
    path, told = tmp_path / "x.db", []
    old(path)
    harm(path)
    broken = path.read_bytes()

    def change(at):
        held = {name for (name,) in ask(at, "SELECT name FROM sqlite_master")}
        if held == {"alembic_version"}:
            raise sqlite3.OperationalError("no such table: runs")
        build(at)

    make(path, change, before_new=lambda: told.append("new"))
    assert says in capsys.readouterr().err
    assert told == ["new"]
    assert (tmp_path / "damaged-x.db").read_bytes() == broken
    assert ask(path, "SELECT * FROM runs") == []


def test_one_that_a_newer_program_made_is_refused_and_kept(tmp_path):
    path = tmp_path / "x.db"
    old(path)
    ask(path, "UPDATE alembic_version SET version_num = 'third'")
    with pytest.raises(MyptError, match=r"x\.db: made by a newer program \(tables of third\)"):
        make(path)
    assert names(tmp_path) == ["x.db"]


def test_a_full_disk_leaves_nothing_half_made(tmp_path):
    def full(path):
        ask(path, "CREATE TABLE runs (id)")
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(sqlite3.OperationalError):
        make(tmp_path / "x.db", full)
    assert names(tmp_path) == []


def test_a_full_disk_is_not_the_files_fault(tmp_path):
    def full(_):
        raise sqlite3.OperationalError("database or disk is full")

    old(tmp_path / "x.db")
    with pytest.raises(sqlite3.OperationalError):
        make(tmp_path / "x.db", full)
    make(tmp_path / "x.db")
    assert ask(tmp_path / "x.db", "SELECT * FROM runs") == [(1, "unnamed")]
    assert names(tmp_path) == ["x.db"]


def test_two_that_begin_at_once_make_one(tmp_path):
    made = []

    def slow(path):
        made.append(path)
        build(path, 0.2)

    threads = [threading.Thread(target=make, args=(tmp_path / "x.db", slow)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_what_is_not_yet_in_the_one_file_is_kept(tmp_path):
    """A process that was killed leaves its last rows beside the file."""
    path = tmp_path / "x.db"
    old(path)
    opened = sqlite3.connect(path)
    opened.execute("PRAGMA journal_mode = WAL")
    opened.execute("INSERT INTO runs VALUES (2)")
    opened.commit()
    for end in ("", "-wal"):
        shutil.copy(tmp_path / f"x.db{end}", tmp_path / f"y.db{end}")
    opened.close()
    make(tmp_path / "y.db")
    assert len(ask(tmp_path / "y.db", "SELECT * FROM runs")) == 2
