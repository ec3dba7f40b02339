"""Where in a raw file something stands, and how an error shows what was found there."""

from typing import Any, Literal, NamedTuple

from mypt.data.conversations import Origin

Unit = Literal["line", "item", "row"]
_SHOWN = 60


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


def printable(name: str) -> str:
    """Return a file's name so that no control character in it reaches the terminal."""
    return name if name.isprintable() else repr(name)


def shown(value: Any) -> str:
    """Return a short, one-line picture of a value that should not have been there."""
    if isinstance(value, str):
        return repr(value[:_SHOWN]) + (" ..." if len(value) > _SHOWN else "")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return "a huge number" if abs(value) > 1e18 else f"the number {value}"
    if isinstance(value, list):
        return f"an array of {len(value)}"
    if isinstance(value, dict):
        return f"an object with the fields {names(value)}" if value else "an empty object"
    return "null" if value is None else f"a value of type {type(value).__name__}"


def names(fields: Any) -> str:
    """Return the first few field names of a row, for an error."""
    listed = [name if name.isprintable() else repr(name) for name in map(str, fields)]
    short = ", ".join(name[:_SHOWN] for name in listed[:8])
    return short + (" ..." if len(listed) > 8 else "")
