"""Small raw files written by the tests, and what a source of them gives."""

import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mypt.config import MaskPolicy, Source
from mypt.data.conversations import Conversation, Row
from mypt.data.masking import mask_from_spans
from mypt.data.preparation.encoding import encode_rows
from mypt.data.reading.raw import Limits
from mypt.data.reading.sources import SourceReader, open_source
from mypt.data.tokenizer import load_tokenizer


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@contextmanager
def memory_below(most_bytes: int) -> Iterator[None]:
    """Fail if Python objects take more at any time."""
    with memory() as peak:
        yield
        assert peak() < most_bytes


@contextmanager
def memory() -> Iterator[Callable[[], int]]:
    """Give what tells how much Python objects have taken at most since this began."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def read(path: Path, limits: Limits | None = None, **source: Any) -> tuple[SourceReader, list[Row]]:
    reader = open_source(Source(path=str(path), **source), 0, limits=limits)
    return reader, list(reader)


def turns(row: Row) -> list[tuple[str, str]]:
    """Roles and texts of a conversation."""
    assert isinstance(row, Conversation)
    return [(message.role, message.text) for message in row.messages]


def trains(row: Row) -> list[bool | None]:
    """What the messages of a conversation say about their own mask."""
    assert isinstance(row, Conversation)
    return [message.train for message in row.messages]


def dropped(reader: SourceReader) -> dict[str, int]:
    """What the reader left out, by reason."""
    return {count.reason: count.rows for count in reader.record().dropped}


def notes(reader: SourceReader) -> dict[str, int]:
    """What the reader changed, by kind."""
    return {count.reason: count.rows for count in reader.record().notes}


ASK = ("user", "hi")
TELL = ("assistant", "yo")


def chat(*messages: tuple[str, str], **more: Any) -> list[dict[str, Any]]:
    """Messages as files write them."""
    return [{"role": role, "content": content} | more for role, content in messages]


def leaf(role: str, text: str, *replies: Any, **more: Any) -> dict[str, Any]:
    """A node of a tree of messages."""
    return {"role": role, "text": text, "replies": list(replies)} | more


def with_mask(row: Row) -> tuple[str, str]:
    """A row as template plain writes it, "|" for a turn's end, and a 0 or 1 a character."""
    encoded = encode_rows([row], load_tokenizer("byte", "plain"))
    ids = encoded.tokens.tolist()
    mask = mask_from_spans(encoded.spans, len(ids), MaskPolicy())
    return "".join(chr(i) if i < 256 else "|" for i in ids), "".join(map(str, mask))
