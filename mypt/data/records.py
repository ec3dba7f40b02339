"""A row between file and meaning: parsed, placed, and perhaps left out."""

from collections import Counter
from typing import Any, Final, NamedTuple

from mypt.data.places import Place

BLANK: Final = object()
"""The value of an empty line, which ends a conversation of the chat format."""


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
