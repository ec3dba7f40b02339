"""From a raw file to conversations and documents: which format it has, and its rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from mypt.config import FieldMapping, Format, Reading
from mypt.data.conversations import Row
from mypt.data.reading import strict_json
from mypt.data.reading.containers import container_of, first_row, read_records
from mypt.data.reading.formats import assistants, chats, columns, people, slack, texts, whatsapp
from mypt.data.reading.formats.message import first_of
from mypt.data.reading.raw import RawFile
from mypt.data.reading.records import BLANK, Dropped, Place, Record, Tally
from mypt.errors import DataError
from mypt.text import shown

ReadRow = Callable[[Any, Place, Tally], Iterator[Row]]

_BY_ROW: dict[Format, ReadRow] = {
    "messages": chats.read_messages,
    "sharegpt": chats.read_messages,
    "alpaca": columns.read_alpaca,
    "prompt_completion": columns.read_prompt_completion,
    "tree": chats.read_tree,
    "text": texts.read_text_rows,
    "chatgpt": assistants.read_chatgpt,
    "claude": assistants.read_claude,
    "gemini": assistants.read_gemini,
}
_ONE_ROW: dict[bytes, Format] = {
    b'"guild"': "discord", b'"systemInstruction"': "gemini", b'"system_instruction"': "gemini",
}  # fmt: skip
"""First fields of a JSON object that is one row, although they hold an object themselves."""
_KNOWN = (
    "messages, conversations, instruction and output, prompt and completion, question and answer,"
    " role and content, a tree of replies, or text"
)
_TAGGED = tuple(f"<{tag}>".encode() for tag in texts.TAGS)


def detect_format(raw: RawFile) -> Format:
    """Return the format of a file, by its extension, its first bytes and its first row.

    Raises:
        DataError: If it cannot be told, or the first row cannot be parsed.
    """
    container = container_of(raw)
    if container == "text":
        return _identify_text(raw)
    if container == "json" and (whole := _identify_object(raw)) is not None:
        return whole
    record = next(record for record in read_records(raw, container) if record.value is not BLANK)
    format = identify(record.value)
    if format is None:
        raise DataError(
            f"{record.place}: found {shown(record.value)}, which fits no known format; expected"
            f" {_KNOWN}; or name the fields with format 'mapping'"
        )
    return format


def identify(row: Any) -> Format | None:
    """Return the format whose fields a row has; None if it has those of none."""
    fields = {"messages": row} if isinstance(row, list) else row
    if not isinstance(fields, dict):
        return None
    if (export := assistants.identify(fields) or people.identify(fields)) is not None:
        return export
    keys = fields.keys()
    turns = first_of(fields, ("messages", "conversations"))
    if isinstance(turns, list | str):
        first = turns[0] if isinstance(turns, list) and turns else {"role": ""}
        has_role = isinstance(first, dict) and first.keys() & {"role", "from"}
        return ("messages" if "messages" in keys else "sharegpt") if has_role else None
    if "replies" in keys or isinstance(fields.get("prompt"), dict):
        return "tree"
    if {"instruction", "output"} <= keys:
        return "alpaca"
    if any(set(pair) <= keys for pair in columns.PAIRS):
        return "prompt_completion"
    if keys & {"role", "from"} and keys & {"content", "value", "tool_calls"}:
        return "chat"
    return "text" if "text" in keys else None


def _identify_object(raw: RawFile) -> Format | None:
    """Return the format of a JSON object that is one row although an object stands first in it."""
    first = next(strict_json.items(raw), None)
    key = first.data.lstrip().partition(b":")[0].rstrip() if first and first.keyed else b""
    return _ONE_ROW.get(key)


def _identify_text(raw: RawFile) -> Format:
    row = first_row(raw)
    format = identify(row) if isinstance(row, dict) else None
    if format:
        raise DataError(
            f"{raw.name}: a text file with rows of format {format!r}; name that format, or format"
            " 'text' to read it as it stands"
        )
    head = next(raw.chunks(), b"").lstrip()
    if whatsapp.is_whatsapp(head):
        return "whatsapp"
    return "tagged" if head.startswith(_TAGGED) else "text"


def read_rows(
    raw: RawFile, how: Reading, tally: Tally, more: Sequence[RawFile] = ()
) -> Iterator[Row]:
    """Yield the rows of a file; what is left out or changed is counted in ``tally``.

    Args:
        raw: The file.
        how: How they are understood; of any format but "auto", see :func:`detect_format`.
        tally: Counts by reason; it grows while rows are taken.
        more: Files that are read together with this one, see :func:`together`.

    Raises:
        DataError: For the first row that is wrong; the rows before it were given.
    """
    format = how.format
    if format == "slack":
        yield from slack.read_slack([raw, *more], how, tally)
        return
    if format == "whatsapp":
        yield from whatsapp.read_whatsapp(raw, how, tally)
        return
    container = container_of(raw, text=format in ("text", "tagged"))
    if format == "tagged":
        yield from chats.read_chat(texts.read_turns(raw), tally, raw.limits)
        return
    if container == "text":
        yield from texts.read_text_file(raw, tally)
        return
    records = records_of(raw, format)
    if format in people.FORMATS:
        read_talk = partial(people.read_talk, how=how, limits=raw.limits)
        yield from _read_each(records, read_talk, tally)
        return
    if format == "chat":
        yield from chats.read_chat(records, tally, raw.limits)
        return
    read_row = (
        partial(columns.read_mapped, mapping=how.mapping or FieldMapping())
        if format == "mapping"
        else _BY_ROW[format]
    )
    yield from _read_each(records, read_row, tally)


def records_of(raw: RawFile, format: Format) -> Iterator[Record]:
    """Yield what a file of any format but text holds, parsed and not yet understood.

    Raises:
        DataError: For the first row that cannot be parsed, or if there is none.
    """
    one_row = format in (*_ONE_ROW.values(), "telegram")
    return read_records(raw, container_of(raw, text=False), one_row=one_row)


def together(raws: Iterable[RawFile], format: Format) -> Iterator[list[RawFile]]:
    """Yield the files that are read at a time: one, or of Slack all days of a channel."""
    if format == "slack":
        yield from (list(days) for _, days in groupby(raws, lambda raw: raw.path.parent))
    else:
        yield from ([raw] for raw in raws)


def _read_each(records: Iterable[Record], read_row: ReadRow, tally: Tally) -> Iterator[Row]:
    for value, place, _ in records:
        if value is BLANK:
            continue
        try:
            yield from read_row(value, place, tally)
        except Dropped as dropped:
            tally.dropped[str(dropped)] += 1
