"""What commands print, and what to do about an error of the system: a full disk, a taken port."""

import errno
import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich import console as rich_console

from mypt.errors import ConfigError
from mypt.text import visible

__all__ = ["Console", "check_new", "print_json", "print_json_rows", "print_lines"]


_FILE_COLUMNS = 160
"""Where lines end that go to a file or a pipe; 80 would break what somebody wants to copy."""
_ADVICE = {
    errno.ENOSPC: "make room and run the same again",
    errno.EDQUOT: "make room and run the same again",
    errno.EACCES: "change its permissions or name another place",
    errno.EPERM: "change its permissions or name another place",
    errno.EROFS: "name a place that can be written",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "one of its parts is a file; expected a folder",
    errno.EISDIR: "a folder; expected a file",
    errno.EEXIST: "a file of that name is in the way; name another",
    errno.ENAMETOOLONG: "name a shorter one",
    errno.EMFILE: "raise 'ulimit -n', or prepare again with a larger --shard_tokens",
    errno.ENOSYS: "its file system knows no locks; name a place on another",
    errno.EADDRINUSE: "another program listens there; name another port",
}


class Console(rich_console.Console):
    """Standard output, as wide as the terminal; wider where there is none."""

    def __init__(self) -> None:
        """Look at what standard output is now."""
        to_file = not sys.stdout.isatty() and "COLUMNS" not in os.environ
        super().__init__(width=_FILE_COLUMNS if to_file else None, highlight=False)

    def on_broken_pipe(self) -> None:
        """Leave it to the program to end, which need not fail for it."""
        raise BrokenPipeError


def print_json(value: Any) -> None:
    """Print ``value`` as JSON on standard output and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_json_rows(values: dict[str, Any], rows: Iterable[dict[str, Any]]) -> None:
    """Print ``values`` with a last key "rows", of which only one is in memory at a time."""
    head = json.dumps(values, indent=2, ensure_ascii=False).removesuffix("\n}")
    sys.stdout.write(f'{head},\n  "rows": [')
    separator = "\n    "
    for row in rows:
        sys.stdout.write(separator + json.dumps(row, ensure_ascii=False))
        separator = ",\n    "
    sys.stdout.write("\n  ]\n}\n")


def print_lines(lines: Iterable[str]) -> None:
    """Print lines one at a time, made fit to be looked at."""
    for line in lines:
        sys.stdout.write(f"{visible(line)}\n")


def check_new(page: Path) -> None:
    """Refuse a file name that is taken.

    Raises:
        ConfigError: If ``page`` exists; what is there may be somebody's data.
    """
    if page.exists():
        raise ConfigError(f"{page} exists and is never overwritten; name another --html file")


def describe(error: OSError) -> str:
    """Return one line: which file or address, what the system says, and what to do."""
    path = Path(str(error.filename or ""))
    name = re.sub(r"^\.tmp-(\d+-)?", "", path.name)  # what people asked for, not what it is made as
    where = f"{path.with_name(name)}: " if name else ""
    advice = _ADVICE.get(error.errno or 0, "see to it and run the same again")
    return f"{where}{error.strerror or error}; {advice}"
