"""Locks between processes; the operating system frees those of a process that dies."""

from filelock import FileLock

from mypt.home import home


def lock(name: str) -> FileLock:
    """Return the lock of that name, not taken yet; any thread may let go of it."""
    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock", thread_local=False)
