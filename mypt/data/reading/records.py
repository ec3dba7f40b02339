"""A row between file and meaning: parsed, placed in its file, and perhaps left out."""

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from typing import Any, Final, Literal, NamedTuple

from mypt.config import Reading
from mypt.data.conversations import Origin
from mypt.errors import DataError
from mypt.text import one_line, shown

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
        *("cache_control", "thoughtsignature", "thought_signature", "prompt_id"),
    }
)
"""Names of fields that say nothing a model could learn or need: ids, dates, scores, licences."""
MOST_FIELDS: Final = 100
"""How many fields that are not read are named; the others are counted as one."""
_MOST_NOTES: Final = 1000
_MOST_SPEAKERS: Final = 100_000
_REST: Final = "'others' beyond the first names by the alphabet"
WEIGHTS: Final = ("train", "training", "weight", "loss_weight")
"""Names of fields that say whether something is learned: a row, a message or a part."""


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


class Within(NamedTuple):
    """A field or part of a row; what an error begins with is written out only for one."""

    place: Place
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


Where = Place | Within | str
"""What an error begins with."""


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


def first_of(fields: Mapping[str, Any], keys: Iterable[str]) -> Any:
    """Return the first of several fields that is there and not null, else None."""
    for key in keys:
        if (value := fields.get(key)) is not None:
            return value
    return None


def no_text(place: Where, name: str, value: Any) -> DataError:
    """Return the error of a field that must be a string and is something else."""
    cure = "put it into quotes" if isinstance(value, int | float) else "mend or remove the row"
    return DataError(f"{place}: {name} is no text; found {shown(value)}; expected a string; {cure}")


def verdict_of(value: Any) -> bool | None:
    """Return whether a value calls something good or true; None if it is neither true nor false."""
    if isinstance(value, str):
        return _VERDICTS.get(value.strip().lower()) if len(value) < _LONGEST_VERDICT else None
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


_VERDICTS: Final = {
    "true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False,
}  # fmt: skip
_LONGEST_VERDICT: Final = 20


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


class _Met:
    """A field that was not read, while rows are taken: its value is compared, not yet summed."""

    __slots__ = ("name", "rows", "value", "varies")

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.rows, self.value, self.varies = name, 1, value, False


class _Counts(Counter[str]):
    """Counts of so many names at most, those that come first by the alphabet; the rest as one.

    Which those are does not depend on the order in which names are met or counts are added.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, name: str, count: int) -> None:
        super().__setitem__(name, count)
        if len(self) > self._most + (_REST in self):
            last = max(self.keys() - {_REST})
            super().__setitem__(_REST, self[_REST] + self.pop(last))


class Tally:
    """Rows that were left out, changes that were made, and fields that were not read."""

    def __init__(self, strict: bool = False, unread: str = "") -> None:
        """Count.

        Args:
            strict: Refuse fields that are not read, instead of counting them.
            unread: Names of those that are counted all the same, joined by commas.
        """
        self.strict = strict
        self._allowed = frozenset(unread.split(",") if unread else ())
        self._refused: list[str] = []
        self._refused_at: Place | None = None
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = _Counts(_MOST_NOTES)
        self._met: dict[tuple[str, str], _Met] = {}
        self.meaningless: set[str] = set()
        """Fields that were met and known to say nothing."""
        self._added: dict[str, Unread] = {}
        self.speakers: Counter[str] = _Counts(_MOST_SPEAKERS)
        """How often each person spoke, where nobody is named the assistant in the file."""

    @classmethod
    def of(cls, how: Reading) -> "Tally":
        """Return an empty one that refuses what ``how`` says."""
        return cls(how.strict, how.unread)

    def check_fields(
        self,
        fields: Mapping[str, Any],
        read: Set[str],
        place: Place,
        of: str = "the row",
        beside: Set[str] = frozenset(),
    ) -> None:
        """Count the fields that hold something and are neither read nor without meaning.

        Args:
            fields: All of them.
            read: Names of those that were read.
            place: For errors.
            of: Whose they are, such as "a message".
            beside: Names of those that a format has and that have no meaning for a model.
        """
        if fields.keys() <= read:
            return
        for name in fields:
            if name in read:
                continue
            value = fields[name]
            if not value and value in _NOTHING:
                continue
            met = self._met.get((of, name))
            if met is not None:
                met.rows += 1
                if not met.varies and value != met.value:
                    met.varies = True
                continue
            if name in beside or name in MEANINGLESS or name.lower() in MEANINGLESS:
                self.meaningless.add(name)
                continue
            if self.strict and name not in self._allowed:
                self._refused.append(f"{name!r} of {of}")
                self._refused_at = self._refused_at or place
            self._met[of, name] = _Met(f"{name!r} of {of}", value)
            if len(self._met) > MOST_FIELDS:  # such as keys that are ids
                key, last = max(self._met.items(), key=lambda item: item[1].name)
                self.add_unread({_REST: Unread(last.rows, 0, False)})
                del self._met[key]

    def refuse_unread(self) -> None:
        """Refuse, where reading is strict, all fields of the rows so far that were not read.

        Raises:
            DataError: If there are any.
        """
        if self._refused:
            are, them = ("are", "them") if len(self._refused) > 1 else ("is", "it")
            raise DataError(
                f"{self._refused_at}: {', '.join(self._refused)} {are} not read; expected no such"
                f" field where reading is strict; remove {them}, name {them} after --unread, or"
                " leave strict out"
            )

    @property
    def unread(self) -> dict[str, Unread]:
        """The fields that were not read, as people call them."""
        found = dict(self._added)
        for met in self._met.values():
            first = zlib.crc32(repr(met.value).encode())
            _join(found, met.name, Unread(met.rows, first, met.varies))
        return found

    def unread_notes(self) -> Counter[str]:
        """Return the fields that were not read, each with how many held it."""
        return Counter(
            {
                f"{name} was not read{', and it varies' if found.varies else ''}": found.rows
                for name, found in self.unread.items()
            }
        )

    def add(self, other: "Tally") -> None:
        """Add what another one has counted."""
        self.dropped.update(other.dropped)
        self.notes.update(other.notes)
        self.speakers.update(other.speakers)
        self.add_unread(other.unread)

    def add_unread(self, unread: Mapping[str, Unread]) -> None:
        """Add fields that were not read elsewhere."""
        for name, found in unread.items():
            _join(self._added, name, found)


def _join(known: dict[str, Unread], name: str, found: Unread) -> None:
    before = known.get(name, Unread(0, found.first, False))
    varies = before.varies or found.varies or before.first != found.first
    known[name] = Unread(before.rows + found.rows, before.first, varies)
    if len(known) > MOST_FIELDS + (_REST in known):
        last = max(known.keys() - {_REST})
        _join(known, _REST, Unread(known.pop(last).rows, 0, False))
