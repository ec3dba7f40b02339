"""Rows in lists of a bounded size, as encoding is quickest and memory stays flat."""

from collections.abc import Iterable, Iterator
from typing import Final

from mypt.data.conversations import Document, Row

_ROWS: Final = 1 << 14
_CHARACTERS: Final = 1 << 21
"""What a batch may hold; tokens, spans and Python's own objects stay below 100 MB."""


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield rows in lists."""
    batch: list[Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(text) for text in texts_of((row,)))
        if len(batch) >= _ROWS or characters >= _CHARACTERS:
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
