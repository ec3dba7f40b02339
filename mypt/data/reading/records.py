"""A row between file and meaning: parsed, placed in its file, and perhaps left out."""

import zlib
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any, Final, Literal, NamedTuple

from mypt.data.conversations import Origin
from mypt.errors import DataError
from mypt.text import one_line

Unit = Literal["line", "item", "row"]
BLANK: Final = object()
"""The value of an empty line, which ends a conversation of the chat format."""

_NOTHING: Final[tuple[object, ...]] = (None, "", [], {})
MEANINGLESS: Final = frozenset(
    {
        *("id", "ids", "_id", "uuid", "index", "idx", "row_id", "hash", "key", "signature"),
        *(
            "date",
            "time",
            "timestamp",
            "ts",
            "created",
            "created_at",
            "create_time",
            "created_date",
        ),
        *("updated", "updated_at", "update_time", "modified"),
        *("score", "scores", "rating", "quality", "rank", "upvotes", "votes"),
        *("licence", "license", "copyright", "source", "dataset", "split", "subset", "origin"),
        *("url", "link", "author", "annotator", "model", "language", "lang"),
    }
)
"""Names of fields that say nothing a model could learn or need: ids, dates, scores, licences."""


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


class Unread(NamedTuple):
    """A field that holds something and was not read."""

    rows: int
    """How many held it."""
    first: int
    """Checksum of the value that was met first."""
    varies: bool
    """Whether another value was met."""


class Tally:
    """Rows that were left out, changes that were made, and fields that were not read."""

    def __init__(self, strict: bool = False) -> None:
        """Count; ``strict`` refuses a field that is not read, instead of counting it."""
        self.strict = strict
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.unread: dict[str, Unread] = {}
        self.speakers: Counter[str] = Counter()
        """How often each person spoke, where nobody is named the assistant in the file."""

    def check_fields(
        self, fields: Mapping[str, Any], read: Set[str], place: Place, of: str = "the row"
    ) -> None:
        """Count the fields that hold something and are neither read nor without meaning.

        Args:
            fields: All of them.
            read: Names of those that were read.
            place: For errors.
            of: Whose they are, such as "a message".

        Raises:
            DataError: If there is one and the reading is strict.
        """
        if fields.keys() <= read:
            return
        for name in fields.keys() - read:
            if name.lower() in MEANINGLESS or fields[name] in _NOTHING:
                continue
            if self.strict:
                raise DataError(
                    f"{place}: {name!r} of {of} is not read; expected no such field where reading"
                    " is strict; say what it means, remove it, or leave strict out"
                )
            self._add_unread(f"{name!r} of {of}", 1, zlib.crc32(repr(fields[name]).encode()))

    def unread_notes(self) -> Counter[str]:
        """Return the fields that were not read, each with how many held it."""
        return Counter(
            {
                f"{name} was not read{', and it varies' if found.varies else ''}": found.rows
                for name, found in self.unread.items()
            }
        )

    def _add_unread(self, name: str, rows: int, first: int, varies: bool = False) -> None:
        known = self.unread.get(name, Unread(0, first, False))
        differs = known.varies or varies or known.first != first
        self.unread[name] = Unread(known.rows + rows, known.first, differs)

    def add(self, other: "Tally") -> None:
        """Add what another one has counted."""
        self.dropped.update(other.dropped)
        self.notes.update(other.notes)
        self.speakers.update(other.speakers)
        for name, found in other.unread.items():
            self._add_unread(name, *found)
