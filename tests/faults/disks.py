"""Disks that fill up or become read-only, on a file system of its own where one may mount one."""

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

_SIZE = "8m"


@contextmanager
def own_disk(home: Path) -> Iterator[Path]:
    """Put ``home`` on a small disk of its own while the block lasts, if that is allowed."""
    home.mkdir(parents=True, exist_ok=True)
    if may_mount():
        options = ["-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs"]
        subprocess.run(["mount", *options, str(home)], check=True)
    try:
        yield home
    finally:
        if may_mount():
            subprocess.run(["umount", "--lazy", str(home)], check=True)


@cache
def may_mount() -> bool:
    """Return whether this process may mount a file system."""
    if os.geteuid() != 0:
        return False
    try:  # in a name space of its own, where nobody sees it
        command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def may_forbid() -> bool:
    """Return whether :func:`forbid_writing` can keep this process from writing."""
    return may_mount() or os.geteuid() != 0


def fill(home: Path, left: int) -> None:
    """Leave next to no room, for this process at least.

    Args:
        home: On a disk of its own, if that is allowed; else no file may be written any more.
        left: About how many bytes still find room; none without such a disk.
    """
    if not may_mount():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        return
    with suppress(OSError), _ballast(home).open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)) == 1 << 16:
            pass
    with _ballast(home).open("rb+") as file:
        file.truncate(max(0, _ballast(home).stat().st_size - left))


def make_room(home: Path) -> None:
    """Undo :func:`fill`."""
    _ballast(home).unlink(missing_ok=True)


def forbid_writing(home: Path) -> None:
    """Let nothing be written below ``home``."""
    if may_mount():
        subprocess.run(["mount", "-o", "remount,ro", str(home)], check=True)
    else:
        _each_folder(home, lambda folder: folder.chmod(0o555))


def allow_writing(home: Path) -> None:
    """Undo :func:`forbid_writing`."""
    if may_mount():
        subprocess.run(["mount", "-o", "remount,rw", str(home)], check=True)
    else:
        _each_folder(home, lambda folder: folder.chmod(0o755))


def _ballast(home: Path) -> Path:
    return home / ".ballast"


def _each_folder(home: Path, change: Callable[[Path], object]) -> None:
    for folder, _, _ in os.walk(home):
        change(Path(folder))
