"""From a raw file to conversations and documents: which format it has, and its rows."""

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from mypt.config import FieldMapping, Format, Reading
from mypt.data.conversations import Row
from mypt.data.reading.containers import container_of, first_row, read_records
from mypt.data.reading.formats import (
    assistants,
    chatgpt,
    chats,
    columns,
    people,
    slack,
    texts,
    whatsapp,
)
from mypt.data.reading.formats.mappings import read_mapped
from mypt.data.reading.formats.markups import (
    head_of,
    read_rendered,
    read_rendered_file,
    refuse_rendered,
)
from mypt.data.reading.formats.shapes import JUDGED, find_guarded, find_shape, judge, parse_turns
from mypt.data.reading.formats.tags import mark_fields, mark_parts
from mypt.data.reading.formats.threads import read_flat
from mypt.data.reading.preferences import read_pairs
from mypt.data.reading.raw import Limits, RawFile, lines
from mypt.data.reading.records import BLANK, WHOLE, Dropped, Place, Record, Tally
from mypt.errors import DataError
from mypt.text import shown

ReadRow = Callable[[Any, Place, Tally], Iterator[Row]]

_KNOWN = (
    "messages, conversations, a shape of docs/data.md such as prompt and completion, role and"
    " content, a tree of replies, or text"
)
_UNTOLD = Reading()
FROM_TEXT = ("text", "tagged", "rendered", "whatsapp")
"""Formats that text files have, whatever their names."""
_ROLES = {"role", "from"}
_LISTS = ("messages", "conversations")
_PLAIN = ("text", "columns", "alpaca", "prompt_completion")
"""Formats whose rows need no list of objects but those that their shape names."""
_TAGGED = tuple(f"<{tag}>" for tag in texts.TAGS)


def decide_format(raws: Sequence[RawFile], how: Reading) -> Format:
    """Return the format that a reading leaves to be found, by what else it says and by its files.

    Raises:
        DataError: If it cannot be told or is not one, or a first row cannot be parsed.
    """
    said: tuple[tuple[object, Format], ...] = (
        (how.mapping, "mapping"), (how.turns, "columns"), (how.group_by, "chat"),
        (how.markup == "none", "text"), (how.markup, "rendered"),
    )  # fmt: skip
    format = next((format for given, format in said if given), None)
    format = format or _common_format(raws, how)
    if how.side == "rejected" and format != "columns":
        raise DataError(
            f"{raws[0].name}: side rejected, of rows of format {format!r}; expected rows with a"
            " chosen and a rejected answer; leave side out"
        )
    return format


def _common_format(raws: Sequence[RawFile], how: Reading) -> Format:
    first = detect_format(raws[0], how)
    for raw in raws[1:]:
        other = detect_format(raw, how)
        if other != first and {first, other} != {"messages", "sharegpt"}:
            raise DataError(
                f"{raw.name}: format {other!r}, but {raws[0].name} has {first!r}; expected one for"
                " all files of a source; name each by itself, so that each is a source"
            )
    return first


def detect_format(raw: RawFile, how: Reading = _UNTOLD) -> Format:
    """Return the format of a file, by its extension, its first bytes and its first row.

    Raises:
        DataError: If it cannot be told, or the first row cannot be parsed.
    """
    container = container_of(raw)
    if container == "text":
        return _identify_text(raw)
    records = read_records(raw, container, how, partial(_is_row, how=how))
    record = next(record for record in records if record.value is not BLANK)
    format = identify(record.value)
    if format is None:
        raise DataError(
            f"{record.place}: found {shown(record.value)}, which fits no known format; expected"
            f" {_KNOWN}; or {_way_out(record)}"
        )
    return format


def _way_out(record: Record) -> str:
    row = record.value
    lists = columns.rows_inside(row) if record.place.unit == "item" else ()
    if lists:
        return f"say where its rows lie, as in --rows_at {shlex.quote(lists[0])}"
    mapping = "name the fields with format 'mapping'"
    return f"{columns.advise(row)}; or {mapping}" if isinstance(row, dict) else mapping


def identify(row: Any) -> Format | None:
    """Return the format whose fields a row has; None if it has those of none."""
    fields = {"messages": row} if isinstance(row, list) else row
    if not isinstance(fields, dict):
        return None
    if (export := assistants.identify(fields) or people.identify(fields)) is not None:
        return export
    keys = fields.keys()
    if find_guarded(fields):
        return "columns"
    key = chats.list_of(fields)
    if _has_roles(fields.get(key)) and (key in _LISTS or isinstance(fields[key], list)):
        return "sharegpt" if key == "conversations" else "messages"
    if "replies" in keys or isinstance(fields.get("prompt"), dict):
        return "tree"
    if keys & _ROLES and keys & {"content", "value", "text", "tool_calls"}:
        return "chat"
    shape = find_shape(fields, null_counts=False)
    if shape is None and fields.get("text") is None:
        shape = find_shape(fields)
    return shape.format if shape else "text" if "text" in keys else None


def _has_roles(turns: Any) -> bool:
    if isinstance(turns, str):  # JSON in a cell of a table
        return turns.lstrip("[ \t\r\n")[:1] != '"'
    first = turns[0] if isinstance(turns, list) and turns else {"role": ""}
    return isinstance(turns, list) and isinstance(first, dict) and bool(first.keys() & _ROLES)


def _is_row(value: Any, how: Reading) -> bool:
    """Whether an object that is a whole file is a row, and not what holds the rows."""
    if how.mapping:
        turns = how.mapping.turns
        return turns in value or turns.partition(".")[0] in value
    format = identify(value)
    return format is not None and not (format in _PLAIN and _holds_rows(value))


def _holds_rows(fields: dict[str, Any]) -> bool:
    """Whether a field that no shape reads is a list of rows."""
    shape = find_shape(fields)
    read = parse_turns(shape.turns).fields if shape else frozenset[str]()
    lists = (value for key, value in fields.items() if key not in read | chats.ROW)
    return any(
        isinstance(value, list) and value and isinstance(value[0], dict) and identify(value[0])
        for value in lists
    )


def values_of(raw: RawFile, how: Reading) -> Iterator[Record]:
    """Yield what a file of any format but text holds, parsed and not yet understood.

    Raises:
        DataError: For the first row that cannot be parsed, or if there is none.
    """
    return read_records(raw, container_of(raw, text=False), how, partial(_is_row, how=how))


def last_line(raw: RawFile, how: Reading) -> int:
    """Return the number of a file's last line, item or table row; rows are found by them.

    Raises:
        DataError: If the file cannot be read.
    """
    container = container_of(raw, text=how.format in FROM_TEXT)
    if container in ("json", "parquet", "arrow"):
        records = read_records(raw, container, how, partial(_is_row, how=how))
        return max(record.place.line for record in records)
    return max((line.number for line in lines(raw)), default=0)


def _identify_text(raw: RawFile) -> Format:
    row = first_row(raw)
    format = identify(row) if isinstance(row, dict) else None
    if format:
        raise DataError(
            f"{raw.name}: a text file with rows of format {format!r}; name that format, or format"
            " 'text' to read it as it stands"
        )
    head = head_of(raw)
    if whatsapp.is_whatsapp(raw.beginning()):
        return "whatsapp"
    if head.lstrip().startswith(_TAGGED):
        return "tagged"
    refuse_rendered(head, raw.place(1))
    return "text"


def read_rows(
    raw: RawFile, how: Reading, tally: Tally, more: Sequence[RawFile] = ()
) -> Iterator[Row]:
    """Yield the rows of a file; what is left out or changed is counted in ``tally``.

    What stands between tags in an assistant's text is read as :func:`tags.mark_parts` does.

    Args:
        raw: The file.
        how: How they are understood; of any format but "auto", see :func:`detect_format`.
        tally: Counts by reason; it grows while rows are taken.
        more: Files that are read together with this one, see :func:`together`.

    Raises:
        DataError: For the first row that is wrong; the rows before it were given.
    """
    for row in _read_rows([raw, *more], how, tally):
        tally.refuse_unread()  # all that the row has at once, whatever holds them
        yield mark_parts(row, how.reasoning_tags, tally, how.parts)
    tally.refuse_unread()


def together(raws: Iterable[RawFile], format: Format) -> Iterator[list[RawFile]]:
    """Yield the files that are read at a time: one, or of Slack all days of a channel."""
    if format == "slack":
        yield from (list(days) for _, days in groupby(raws, lambda raw: raw.path.parent))
    else:
        yield from ([raw] for raw in raws)


def _read_rows(raws: Sequence[RawFile], how: Reading, tally: Tally) -> Iterator[Row]:
    format, raw = how.format, raws[0]
    if format == "slack":
        yield from slack.read_slack(list(raws), how, tally)
        return
    if format == "whatsapp":
        yield from whatsapp.read_whatsapp(raw, how, tally)
        return
    container = container_of(raw, text=format in FROM_TEXT)
    if format == "tagged":
        yield from chats.read_chat(texts.read_turns(raw), tally, raw.limits)
    elif container == "text" and format == "rendered":
        yield from read_rendered_file(raw, tally, how.markup)
    elif container == "text":
        yield from texts.read_text_file(raw, tally, how.markup)
    else:
        records = read_records(raw, container, how, partial(_is_row, how=how), tally)
        if how.parts:
            records = (one._replace(value=mark_fields(one.value, how.parts)) for one in records)
        if format == "chat":
            table = container in ("csv", "parquet", "arrow")
            part = raw.stretch != WHOLE
            yield from read_flat(records, tally, raw.limits, how.group_by, table, part)
        else:
            yield from _read_each(records, _row_reader(how, raw.limits), how, tally)


def _row_reader(how: Reading, limits: Limits) -> ReadRow:
    if how.pairs:
        return partial(read_pairs, how=how)
    mapping = how.mapping or FieldMapping()
    readers: dict[Format, ReadRow] = {
        "messages": chats.read_messages,
        "sharegpt": chats.read_messages,
        "tree": chats.read_tree,
        "mapping": partial(read_mapped, mapping=mapping),
        "text": partial(texts.read_text_rows, markup=how.markup),
        "rendered": partial(read_rendered, markup=how.markup),
        "chatgpt": chatgpt.read_chatgpt,
        "claude": assistants.read_claude,
        "gemini": assistants.read_gemini,
        **dict.fromkeys(people.FORMATS, partial(people.read_talk, how=how, limits=limits)),
    }
    return readers.get(how.format) or partial(columns.read_columns, how=how)


def _read_each(
    records: Iterable[Record], read_row: ReadRow, how: Reading, tally: Tally
) -> Iterator[Row]:
    # What a row says of its answer holds in every format that has answers.
    answers = ("messages", "sharegpt", "alpaca", "prompt_completion")
    judged = how.format in answers and not how.pairs
    by_shape = how.format == "columns" and not how.turns
    for value, place, _ in records:
        if value is BLANK:
            continue
        try:
            row, shape = value, None
            if (judged or by_shape) and isinstance(value, dict) and not JUDGED.isdisjoint(value):
                row = judge(value)
                shape = find_guarded(row) if judged else None
            if shape:
                yield from columns.read_columns(row, place, tally, how, shape)
            else:
                yield from read_row(row, place, tally)
        except Dropped as dropped:
            tally.dropped[str(dropped)] += 1
