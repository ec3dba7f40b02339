"""SQLite files of MLflow and Prefect: made aside, and named when they are whole (D121)."""

import shutil
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from mypt import files
from mypt.errors import MyptError
from mypt.home import lock

_BESIDE = ("-journal", "-wal", "-shm")
"""What SQLite keeps beside a file while it is written; belongs to that file and to no other."""
_DISK = ("disk", "readonly", "unable to open", "locked", "No space")
"""Words of errors for which the file is not to blame."""
_TORN = "_alembic_tmp_"
"""How a table is called while it is being migrated."""


class _Broken(Exception):  # noqa: N818 - no error: the file is made again
    """No program can go on with this file."""


def make_whole(
    path: Path,
    revisions: Sequence[str],
    build: Callable[[Path], object],
    before_new: Callable[[], object] = lambda: None,
) -> None:
    """Make a database that is missing, behind or broken; one that is up to date is left alone.

    A process that dies while tables are made or changed leaves what no later one can repair, so
    that happens to another file, which takes the name at the end. A broken one is named on the
    terminal and kept under another name.

    Args:
        path: The database.
        revisions: Of its tables, as alembic calls them, the newest first.
        build: Makes or migrates the file that it is given to the newest.
        before_new: Called before a new, empty database takes the name.

    Raises:
        MyptError: If a newer program made it, or another one is using it just now.
        OSError: If the disk refuses.
    """
    with lock(f"{path.name}.making"):
        try:
            found = _revision(path)
            if found == revisions[0]:
                return
            if found is not None and found not in revisions:
                raise MyptError(
                    f"{path}: made by a newer program (tables of {found}); expected one up to"
                    f" {revisions[0]}; install that program again, or name another MYPT_HOME"
                )
            _build(path, build, before_new)
        except _Broken as error:
            aside = _set_aside(path)
            sys.stderr.write(f"mypt: {path} is broken ({error}); it is {aside.name} now\n")
            _build(path, build, before_new)


def replace_text(path: Path, old: str, new: str) -> None:
    """Replace a text wherever it stands in a database, everywhere or, if that fails, nowhere."""
    with closing(sqlite3.connect(path)) as opened, opened:
        tables = opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (table,) in tables:
            for _, column, kind, *_ in opened.execute(f'PRAGMA table_info("{table}")').fetchall():
                if "CHAR" in kind or "TEXT" in kind:
                    where = f'"{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)'
                    opened.execute(f'UPDATE "{table}" SET {where}', (old, new, old))


def revisions_in(folder: Path, versions: Path | None = None) -> tuple[str, ...]:
    """Return the revisions that a program knows, as alembic calls them, the newest first.

    Args:
        folder: Where its migrations lie.
        versions: Where those of its kind of database lie, if not in ``versions`` of the folder.
    """
    from alembic.script import ScriptDirectory

    places = None if versions is None else [str(versions)]
    found = ScriptDirectory(str(folder), version_locations=places)
    return tuple(step.revision for step in found.walk_revisions())


def _revision(path: Path) -> str | None:
    """Return the revision of a database's tables, None if it has none."""
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(path)) as opened:
            (sound,) = opened.execute("PRAGMA quick_check(1)").fetchone()
            found = opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in found}
            torn = [name for name in sorted(tables) if name.startswith(_TORN)]
            if sound != "ok" or torn:
                raise _Broken(f"{torn[0]} was left half made" if torn else sound.splitlines()[0])
            if "alembic_version" not in tables:
                return None
            row = opened.execute("SELECT version_num FROM alembic_version").fetchone()
            return None if row is None else str(row[0])
    except sqlite3.OperationalError as error:  # locked, or the disk refuses
        raise MyptError(f"{path}: cannot be read ({error}); see to it and run the same") from error
    except sqlite3.DatabaseError as error:
        raise _Broken(str(error)) from error


def _build(path: Path, build: Callable[[Path], object], before_new: Callable[[], object]) -> None:
    temporary = path.with_name(f"{files.TEMPORARY_PREFIX}{path.name}")
    _remove(temporary)
    files.make_folder(path.parent)
    is_new = not path.exists() or not path.stat().st_size
    try:
        if not is_new:
            _close(path)
            shutil.copyfile(path, temporary)
        try:
            build(temporary)
        except Exception as error:
            if is_new or any(word in str(error) for word in _DISK):
                raise
            raise _Broken(f"its tables cannot be changed: {error}".splitlines()[0]) from error
        _close(temporary)
        if is_new:
            before_new()
        files.replace(temporary, path)
    finally:
        _remove(temporary)


def _close(path: Path) -> None:
    """Put everything into the one file, with nothing beside it."""
    with closing(sqlite3.connect(path)) as opened:
        (mode,) = opened.execute("PRAGMA journal_mode = DELETE").fetchone()
    if mode != "delete":
        raise MyptError(f"{path}: another program is using it; expected nobody; stop that one")


def _remove(path: Path) -> None:
    for end in ("", *_BESIDE):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _set_aside(path: Path) -> Path:
    for end in _BESIDE:
        beside = path.with_name(path.name + end)
        if beside.exists():
            files.set_aside(beside)
    return files.set_aside(path)
