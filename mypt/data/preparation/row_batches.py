"""Rows in lists of a bounded size, as encoding is quickest, and how far the reading is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from mypt.data.conversations import Document, Row
from mypt.data.pairs import is_chosen
from mypt.data.reading.sources import SourceReader

_ROWS: Final = 1 << 14
_CHARACTERS: Final = 1 << 21
"""What a batch may hold; tokens, spans and Python's own objects stay below 100 MB."""
Progress = Callable[[int, int, int, int], None]
"""Called with bytes read, bytes to read, rows and tokens written so far."""


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield rows in lists; both sides of a pair are in the same."""
    batch: list[Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(text) for text in texts_of((row,)))
        if (len(batch) >= _ROWS or characters >= _CHARACTERS) and not is_chosen(row):
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def texts_of(rows: Iterable[Row]) -> Iterator[str]:
    """Yield what the rows say, part by part."""
    for row in rows:
        if isinstance(row, Document):
            yield row.text
        else:
            yield from (part.text for message in row.messages for part in message.parts)


class Meter:
    """Tells how far it is; ``rows`` and ``tokens`` are set by who writes them."""

    def __init__(
        self, readers: Sequence[SourceReader], progress: Progress | None, passes: int
    ) -> None:
        """Expect ``passes`` passes over all of ``readers``."""
        self.rows = self.tokens = 0
        self._progress = progress
        self._total = passes * sum(reader.bytes_total for reader in readers)
        self._done = 0

    def batches(self, reader: SourceReader) -> Iterator[list[Row]]:
        """Yield a source's rows, in lists of a bounded size; report when one is used up."""
        for batch in batches(reader):
            yield batch
            self._report(reader.bytes_done)
        self._done += reader.bytes_total

    def advance(self, n_bytes: int) -> None:
        """Count what was read elsewhere, and report."""
        self._done += n_bytes
        self._report(0)

    def _report(self, more: int) -> None:
        if self._progress is not None:
            done = self._done + more
            self._progress(done, max(done, self._total), self.rows, self.tokens)
