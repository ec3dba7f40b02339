"""Who wrote each token and why it stands there: the layout of spans and rows on disk.

Spans tile a shard: the first starts at 0, each starts where the one before it stops, the last
stops at the shard's length. Rows do too; a row is one conversation or document.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mypt.errors import DataError

ROLES: Final = ("text", "system", "user", "assistant", "tool")
KINDS: Final = (
    "header", "content", "end", "reasoning", "tool_call", "failed_call", "context", "cite",
)  # fmt: skip
"""header: what the program writes around a turn (tags, separators, the start token);
content, reasoning, tool_call: what its author writes; failed_call: a call whose result is marked
as an error; context: a document that is quoted; cite: what an answer rests on; end: the token that
closes the turn."""

ROLE: Final = {name: index for index, name in enumerate(ROLES)}
KIND: Final = {name: index for index, name in enumerate(KINDS)}

BY_POLICY: Final = -1
"""``train`` of a span whose row leaves the mask to the policy; else 0 or 1, or from 2 on, its bits
read as unsigned, another weight by its place in a table."""
MOST_ROW_WEIGHTS: Final = 253
"""Distinct weights that rows may say beside 0 and 1."""


class RowWeights:
    """The weights that rows say of themselves beside 0 and 1, in the order they are met."""

    def __init__(self) -> None:
        self._places: dict[float, int] = {}

    @property
    def table(self) -> tuple[float, ...]:
        """The weights, by place."""
        return tuple(self._places)

    def number(self, train: float | None) -> int:
        """Return what stands for ``train`` in a span, 0 to 255.

        Raises:
            DataError: If it is one weight too many.
        """
        if train is None or train in (0, 1):
            return 255 if train is None else int(train)
        place = self._places.setdefault(float(train), len(self._places))
        if place >= MOST_ROW_WEIGHTS:
            raise DataError(
                f"weight {train:g} is the {place + 3}th distinct one that rows say, expected at"
                f" most {MOST_ROW_WEIGHTS + 2} with 0 and 1; round them"
            )
        return place + 2

    def numbered(self, trains: Iterable[float | None]) -> NDArray[np.int8]:
        """Return :meth:`number` of each, as spans have it."""
        return np.array([self.number(train) for train in trains], np.uint8).view(np.int8)

    def add(self, spans: NDArray[np.void], table: Sequence[float]) -> None:
        """Let ``spans``, which count places of another ``table``, count those of this one."""
        if len(table):
            here = np.arange(256, dtype=np.uint8)
            here[2 : 2 + len(table)] = [self.number(weight) for weight in table]
            spans["train"] = here[spans["train"].view(np.uint8)].view(np.int8)


SPAN_DTYPE: Final = np.dtype(
    [
        ("start", "<u8"),
        ("stop", "<u8"),
        ("conversation", "<u4"),
        ("message", "<u4"),
        ("role", "u1"),
        ("kind", "u1"),
        ("train", "i1"),
    ]
)
"""Half-open [start, stop) in tokens of one shard; ``conversation`` is the row's index in the
shard, ``message`` the turn's index in the conversation."""

ROW_DTYPE: Final = np.dtype(
    [
        ("start", "<u8"),
        ("stop", "<u8"),
        ("file", "<u4"),
        ("line", "<u8"),
        ("digest", "V16"),
    ]
)
"""One conversation or document: its tokens, where it came from, and 16 bytes of a blake3 digest
of what it says (:func:`mypt.data.preparation.encoding.row_digests`), by which train and val are
parted."""


def spans_of(lengths: NDArray[np.int64], part: ArrayLike, **columns: ArrayLike) -> NDArray[np.void]:
    """Return the spans that tile the tokens of S segments.

    Neighbours that agree in everything, such as the pieces of one header, share a span; two
    parts never do, so that what was encoded apart can be told apart. Segments without tokens
    have no span.

    Args:
        lengths: (S,) tokens of each segment.
        part: (S,) the part of its turn to which each segment belongs.
        columns: (S,) or () each: ``conversation``, ``message``, ``role``, ``kind`` and
            ``train`` as ``SPAN_DTYPE`` has them.
    """
    spans = np.empty(len(lengths), SPAN_DTYPE)
    spans["stop"] = np.cumsum(lengths)
    spans["start"] = spans["stop"] - lengths.astype(np.uint64)
    for name, column in columns.items():
        spans[name] = column
    kept = lengths > 0
    spans, part = spans[kept], np.asarray(part)[kept]
    first = np.zeros(len(spans), bool)
    first[:1] = True
    for column in (part, *(spans[name] for name in columns)):
        first[1:] |= column[1:] != column[:-1]
    merged = spans[first]
    merged["stop"] = np.append(merged["start"], spans["stop"][-1:])[1:]
    return merged
