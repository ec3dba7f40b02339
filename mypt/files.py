"""Durable writes and content digests: the only file that renames anything.

The protocol (DESIGN.md D7): write under a temporary name, sync, rename to a name that was
never used, sync the folder; whatever commits a group of files is written last.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, BinaryIO

from blake3 import blake3
from filelock import FileLock

TEMPORARY_PREFIX = ".tmp-"
_CHUNK = 1 << 20
_LARGEST = 64 << 20
_DEEPEST = 200
DAMAGED = "damaged-"
"""How the name of a folder begins that was set aside."""


def digest_bytes(data: bytes) -> str:
    """Return the blake3 digest of ``data`` as 64 hexadecimal digits."""
    return blake3(data).hexdigest()


def digest_file(path: Path) -> str:
    """Return the blake3 digest of a file's bytes as 64 hexadecimal digits."""
    hasher = blake3()
    with open_ordinary(path) as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def sha256_file(path: Path) -> str:
    """Return a file's sha256: the digest of raw sources, so that ``sha256sum`` can check it."""
    with open_ordinary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_ordinary(path: Path) -> BufferedReader:
    """Open a file for reading; a pipe or a device, which may have no end, is not opened.

    Raises:
        OSError: If it is one, is missing or cannot be read.
    """
    mode = path.stat().st_mode
    if not S_ISREG(mode) and not S_ISDIR(mode):
        raise OSError(errno.EINVAL, "no ordinary file", str(path))
    return path.open("rb")


def read_bytes(path: Path, most: int = _LARGEST) -> bytes:
    """Return what an ordinary file holds, unless it is larger than any of its kind would be.

    Raises:
        OSError: As :func:`open_ordinary`, or if it holds more than ``most`` bytes.
    """
    with open_ordinary(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"more than {most >> 20} MiB", str(path))
    return data


def canonical_json(value: Any) -> bytes:
    """Return the one JSON spelling of ``value`` that digests are taken over.

    Keys sorted, no spaces, UTF-8, no NaN.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def digest_json(value: Any) -> str:
    """Return the blake3 digest of the canonical JSON of ``value``."""
    return digest_bytes(canonical_json(value))


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` with ``data`` so that a reader sees the old or the new bytes whole.

    Raises:
        OSError: If the folder cannot be written; nothing is left under ``path`` then.
    """
    write_chunks(path, (data,))


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """Replace ``path`` with all ``chunks`` in order, as :func:`write_bytes` does, one at a time.

    Raises:
        OSError: If the folder cannot be written; nothing is left under ``path`` then.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    try:
        with _naming(path), temporary.open("wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def create(path: Path) -> BinaryIO:
    """Open a file that is not there yet and grows, in a folder of :func:`new_folder`.

    The folder's caller makes it durable; the file must be closed by then.

    Raises:
        FileExistsError: If it is there.
    """
    return path.open("xb")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON through :func:`write_bytes`."""
    write_bytes(path, indented_json(value))


def write_sealed(path: Path, values: dict[str, Any]) -> str:
    """Write ``values`` as JSON with their own digest as the last key; return the digest."""
    digest = digest_json(values)
    write_json(path, values | {"digest": digest})
    return digest


def read_sealed(path: Path) -> dict[str, Any]:
    """Return what :func:`write_sealed` wrote, digest included.

    Not one byte may differ from what was written, not even one that leaves the values as
    they are: a file that can change unseen proves nothing.

    Raises:
        ValueError: If the file is no JSON object or was changed.
        OSError: If it cannot be read.
    """
    data = read_bytes(path)
    try:
        values = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    check_depth(values)
    if not isinstance(values, dict) or indented_json(values) != data:
        raise ValueError("its bytes changed since it was written")
    if values.get("digest") != digest_json({k: v for k, v in values.items() if k != "digest"}):
        raise ValueError("its digest does not match its content")
    return values


def check_depth(value: Any) -> None:
    """Refuse JSON that is nested so deeply that walking it down ends a program.

    Raises:
        ValueError: If arrays and objects stand in each other more than 200 deep.
    """
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(f"nested too deeply, more than {_DEEPEST} levels")


def indented_json(value: Any) -> bytes:
    """Return ``value`` as people read JSON; the same value gives the same bytes."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode()


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, as fsync makes a file's bytes durable."""
    _sync(path)


def sync_tree(path: Path) -> None:
    """Make every file and folder below ``path`` durable."""
    for folder, _, names in os.walk(path):
        for name in names:
            _sync(Path(folder) / name)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        with _naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in an error that the operating system gives without a name."""
    try:
        yield
    except OSError as error:
        if error.strerror and not error.filename:
            error.filename = str(path)
        raise


def make_folder(path: Path) -> None:
    """Make a folder durably, with its parents, where it is not there yet."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Give ``source`` a second name, or a copy where the file system knows no hard links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def new_lock(path: Path) -> FileLock:
    """Return the lock that a file is, not taken yet; any thread may let go of it.

    The operating system frees it when its holder dies. Where the file system knows no such locks,
    taking it fails: a mere file as a lock would outlive a kill and be waited for without end.
    """
    return FileLock(path, thread_local=False, fallback_to_soft=False)


class PassingLock(FileLock):
    """A lock as :func:`new_lock` returns it, whose file goes with its holder.

    Whoever opened the file before that sees that it has no name any more, and opens another.
    """

    def __init__(self, path: Path) -> None:
        """Take nothing yet.

        Args:
            path: Where the file is while anybody holds the lock.
        """
        super().__init__(path, thread_local=False, fallback_to_soft=False)

    def release(self, force: bool = False) -> None:
        """Remove the file, if it still has that name, and let go."""
        held = self._context.lock_file_fd
        if held is not None and (force or self.lock_counter == 1):
            with suppress(OSError):
                if os.path.samestat(os.fstat(held), Path(self.lock_file).stat()):
                    Path(self.lock_file).unlink()
        super().release(force)


@contextmanager
def new_folder(final: Path, token: str = "") -> Iterator[Path]:
    """Yield an empty folder beside ``final`` that takes its name when the block ends well.

    Nothing appears under the final name before every file is durable; if the block raises,
    the temporary folder is removed. What a killed process left behind is removed by the
    next call for the same name.

    Args:
        final: The folder's name to be.
        token: Part of the temporary name (:func:`temporary_folder`), where several processes
            write into the folder and a process of an earlier start may not be gone yet.

    Raises:
        FileExistsError: If ``final`` exists; what was written once is never overwritten.
    """
    if final.exists():
        raise FileExistsError(f"{final} exists and is never overwritten")
    make_folder(final.parent)
    temporary = temporary_folder(final, token)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()  # inside: a signal may come as soon as it is there
        yield temporary
        _share(temporary)
        sync_tree(temporary)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(final.parent)


def _share(folder: Path) -> None:
    """Let who may read the folder read its files; some libraries write for their user alone."""
    mode = folder.stat().st_mode & 0o444
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1:
            path.chmod(path.stat().st_mode | mode)


def temporary_folder(final: Path, token: str = "") -> Path:
    """Return the name that a folder has while it is written."""
    return final.with_name(f"{TEMPORARY_PREFIX}{final.name}{token}")


def remove_file(path: Path) -> None:
    """Remove a file durably, if it is there."""
    if path.exists():
        path.unlink()
        sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder so that whoever looks sees it whole or not at all.

    It loses its name first; a process killed while it deletes leaves a temporary folder,
    which :func:`remove_leftovers` finds.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        path.rename(temporary)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        temporary = path  # a folder of a container's image cannot be renamed there
    else:
        sync_folder(path.parent)
    shutil.rmtree(temporary)


def replace(temporary: Path, path: Path) -> None:
    """Give a file that is whole its name, durably; whoever looks sees the old one or the new."""
    _sync(temporary)
    temporary.rename(path)
    sync_folder(path.parent)


def set_aside(path: Path) -> Path:
    """Rename a damaged folder or file, which may be looked at but not used; return its new path.

    An older one of that name is removed.
    """
    aside = path.with_name(f"{DAMAGED}{path.name}")
    if aside.is_dir():
        remove_folder(aside)
    try:
        path.rename(aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(path, aside)
        shutil.rmtree(path)
    sync_folder(path.parent)
    return aside


def remove_leftovers(folder: Path) -> tuple[str, ...]:
    """Remove what killed processes left in ``folder`` under temporary names; return the names.

    Only for a folder that nobody else is writing to.
    """
    names = tuple(sorted(path.name for path in folder.glob(f"{TEMPORARY_PREFIX}*")))
    for name in names:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return names
