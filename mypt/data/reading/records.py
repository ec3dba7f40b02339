"""A row between file and meaning: parsed, placed in its file, and perhaps left out."""

from collections import Counter
from typing import Any, Final, Literal, NamedTuple

from mypt.data.conversations import Origin
from mypt.text import one_line

Unit = Literal["line", "item", "row"]
BLANK: Final = object()
"""The value of an empty line, which ends a conversation of the chat format."""


class Place(NamedTuple):
    """One row of one raw file; as text it is what an error begins with."""

    path: str
    """The file, as it was named."""
    file: int
    """Its index within its source."""
    line: int
    """Counted from 1."""
    unit: Unit = "line"
    """Lines of a text file, items of a JSON file, rows of a Parquet file."""

    @property
    def origin(self) -> Origin:
        """The same for lineage, without the name."""
        return Origin(self.file, self.line)

    def __str__(self) -> str:
        name = one_line(self.path)
        return f"{name}:{self.line}" if self.unit == "line" else f"{name}: {self.unit} {self.line}"


class ByteRange(NamedTuple):
    """The bytes of a raw file that are read at a time; by default all of them."""

    start: int = 0
    """First byte as stored."""
    stop: int | None = None
    """The one past the last; None is the end of the file."""
    line: int = 1
    """The line that begins at ``start``."""


WHOLE = ByteRange()


class Record(NamedTuple):
    """One row, parsed and not yet understood."""

    value: Any
    place: Place
    n_bytes: int
    """About what it takes in the file."""


class Dropped(Exception):  # noqa: N818 - no error: the row is left out and counted
    """A whole row of no use for training; its text is the reason."""


class Tally:
    """Rows that were left out and changes that were made, by reason."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()

    def add(self, other: "Tally") -> None:
        """Add what another one has counted."""
        self.dropped.update(other.dropped)
        self.notes.update(other.notes)
