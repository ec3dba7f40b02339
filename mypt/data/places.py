"""Where in a raw file something stands, and how an error shows what was found there."""

from typing import Literal, NamedTuple

from mypt.data.conversations import Origin
from mypt.text import printable

Unit = Literal["line", "item", "row"]


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
        name = printable(self.path)
        return f"{name}:{self.line}" if self.unit == "line" else f"{name}: {self.unit} {self.line}"


class Stretch(NamedTuple):
    """The part of a raw file that is read at a time; by default all of it."""

    start: int = 0
    """First byte as stored."""
    stop: int | None = None
    """The one past the last; None is the end of the file."""
    line: int = 1
    """The line that begins at ``start``."""


WHOLE = Stretch()
