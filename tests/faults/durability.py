"""What would survive a power cut: only what was synced, file by file and folder by folder."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.operations import Operation, inode_of


class Ledger:
    """Follows all operations and notes what takes a final name before it is durable."""

    def __init__(self, home: Path) -> None:
        self.broken: list[str] = []
        """A line for each name that promised too much."""
        self._home = home
        self._unsynced: dict[str, str] = {}

    def act(self, operation: Operation, do: Callable[[], Any], _: Callable[[], None]) -> Any:
        """Let an operation happen and follow what it leaves unsynced."""
        kind, paths = operation.kind, operation.paths
        if kind in ("rename", "replace") and not Path(paths[1]).name.startswith("."):
            self._check(Path(paths[0]), f"{paths[1]} takes its name")
        result = do()
        if kind == "fsync":
            self._unsynced.pop(paths[0], None)
        elif kind in ("create", "write", "tensors"):
            self._note(paths[0])
        if kind in ("create", "tensors", "mkdir", "link", "rename", "replace"):
            self._note(str(Path(paths[-1]).parent))
        return result

    def check_end(self) -> None:
        """Note what is still not durable when all is done."""
        self._check(self._home, "the end")

    def _note(self, path: str) -> None:
        self._unsynced[inode_of(path)] = path

    def _check(self, path: Path, when: str) -> None:
        for found in _below(path):
            if inode_of(str(found)) in self._unsynced:
                self.broken.append(f"{found} is not durable when {when}")


def _below(path: Path) -> Iterator[Path]:
    yield path
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            yield Path(folder) / name
