"""Every write, sync, rename and removal seen as it happens, and made to go wrong."""

import itertools
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import safetensors.numpy
import safetensors.torch

_CALLS = ("fsync", "rename", "replace", "link", "symlink", "mkdir", "rmdir", "unlink", "truncate")
_DATA = ("write", "tensors")


class Operation(NamedTuple):
    """One thing that is about to happen to the disk."""

    number: int
    """Counted from 1."""
    kind: str
    paths: tuple[str, ...]
    """What it is done to; a sync knows inodes and no names."""


Act = Callable[[Operation, Callable[[], Any], Callable[[], None]], Any]
"""Takes the operation, what does it, and what does half of it; returns what the first does."""


_inside = threading.local()


def is_intercepted() -> bool:
    """Return whether this thread is in the middle of an operation that is seen."""
    return getattr(_inside, "busy", False)


def intercept(act: Act) -> None:
    """Let ``act`` stand between this process and its disk, for the rest of its life.

    Locks are left alone: they hold no data.
    """
    count, guard = 0, threading.Lock()

    def pass_on(kind: str, paths: tuple[str, ...], do: Callable[[], Any], tear: Any) -> Any:
        nonlocal count
        if is_intercepted():
            return do()
        with guard:
            count += 1
            operation = Operation(count, kind, paths)
        _inside.busy = True
        try:
            return act(operation, do, tear)
        finally:
            _inside.busy = False

    for name in _CALLS:
        _wrap_call(name, pass_on)
    for place in (safetensors.numpy, safetensors.torch):
        _wrap_tensors(place, pass_on)
    _wrap_open(pass_on)


def crash_at(number: int) -> Act:
    """End the process in the middle of a write, or right after any other operation."""

    def act(operation: Operation, do: Callable[[], Any], tear: Callable[[], None]) -> Any:
        if operation.number != number:
            return do()
        try:
            tear()
        finally:
            os._exit(137)

    return act


def fail_at(number: int, code: int, kinds: Collection[str]) -> Act:
    """Let an operation fail as the operating system would, a write in its middle.

    Args:
        number: Which one, counted from 1 among those of ``kinds``: threads take turns as they
            like, so that the same number among all may be of another kind each time.
        code: What the operating system says.
        kinds: What may fail so.
    """
    count = itertools.count(1)

    def act(operation: Operation, do: Callable[[], Any], tear: Callable[[], None]) -> Any:
        if operation.kind not in kinds or next(count) != number:
            return do()
        if operation.kind in _DATA:
            tear()
        named = operation.paths if operation.kind in ("rename", "create") else ()
        raise OSError(code, os.strerror(code), *named[:1])

    return act


def record(found: list[Operation]) -> Act:
    """Let everything happen and write it down."""

    def act(operation: Operation, do: Callable[[], Any], _: Callable[[], None]) -> Any:
        found.append(operation)
        return do()

    return act


def _wrap_call(name: str, pass_on: Callable[..., Any]) -> None:
    true_call = getattr(os, name)

    def call(*arguments: Any, **choices: Any) -> Any:
        def do() -> Any:
            return true_call(*arguments, **choices)

        if name == "fsync":
            paths: tuple[str, ...] = (inode_of(arguments[0]),)
        else:
            paths = tuple(os.fspath(v) for v in arguments if isinstance(v, str | os.PathLike))
        if paths[:1] and paths[0].endswith(".lock"):
            return do()
        return pass_on(name, paths, do, do)

    setattr(os, name, call)


def inode_of(file: int | str) -> str:
    """Return what a file is called by whatever names it has or had."""
    found = os.fstat(file) if isinstance(file, int) else Path(file).stat()
    return f"inode {found.st_dev}:{found.st_ino}"


def _wrap_tensors(place: ModuleType, pass_on: Callable[..., Any]) -> None:
    true_call = place.serialize_file

    def call(tensors: Any, path: Any, *arguments: Any, **choices: Any) -> None:
        def do() -> None:
            true_call(tensors, path, *arguments, **choices)

        def tear() -> None:
            do()
            os.truncate(path, Path(path).stat().st_size // 2)

        pass_on("tensors", (os.fspath(path),), do, tear)

    place.serialize_file = call  # type: ignore[attr-defined]


def _wrap_open(pass_on: Callable[..., Any]) -> None:
    true_open = Path.open

    def call(path: Path, mode: str = "r", *arguments: Any, **choices: Any) -> Any:
        def do() -> Any:
            return true_open(path, mode, *arguments, **choices)

        if not set(mode) & set("wxa+"):
            return do()
        return _File(pass_on("create", (str(path),), do, do), str(path), pass_on)

    Path.open = call  # type: ignore[method-assign, assignment]


class _File:
    """A file open for writing whose writes are seen."""

    def __init__(self, file: Any, path: str, pass_on: Callable[..., Any]) -> None:
        self._file, self._path, self._pass_on = file, path, pass_on

    def write(self, data: Any) -> int:
        def tear() -> None:
            half = memoryview(data).cast("B")
            self._file.write(half[: len(half) // 2])
            self._file.flush()

        written = self._pass_on("write", (self._path,), lambda: self._file.write(data), tear)
        return int(written)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
