"""A JSON file as rows: an array of them, rows by id, one row alone, under a key, or by columns."""

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any, Literal

from mypt.data.reading import strict_json
from mypt.data.reading.json_items import Member, items, members
from mypt.data.reading.raw import RawFile
from mypt.data.reading.records import Record, Tally
from mypt.errors import DataError
from mypt.text import shown

IsRow = Callable[[Any], bool]
"""Whether a value has the fields of a row."""
_Layout = Literal["items", "alone", "columns"]
_MOST_FIELDS = 10_000
_ENOUGH_IDS = 100
_ROW_ZERO = re.compile(rb'\{\s*"0"\s*:')


def read_json(
    raw: RawFile, rows_at: str, is_row: IsRow, tally: Tally | None = None
) -> Iterator[Record]:
    """Yield the rows of a JSON file.

    They are the items of its array, the values of its object of objects, the object itself
    where that is a row, what the lists of its columns hold at one place, or the items of its
    one list of objects or of lists of messages.

    Args:
        raw: The file.
        rows_at: The keys that lead to the rows, joined by dots; empty: found by content.
        is_row: Tells a row alone from an object that holds rows.
        tally: Counts what stands beside the rows.

    Raises:
        DataError: If it is no JSON, or several lists may hold the rows.
    """
    layout: _Layout = "items"
    path = tuple(rows_at.split(".")) if rows_at else ()
    if not rows_at:
        layout, path = _layout(raw, _outline(raw), is_row)
    if tally:
        for depth, key in enumerate(path):
            outline, of = _outline(raw, path[:depth]), ".".join(path[:depth]) or "the file"
            tally.check_fields(outline, {key}, raw.place(1, "item"), of)
    if layout == "items":
        yield from _items(raw, path)
    elif layout == "columns":
        for number, row in enumerate(_rows_of_columns(raw, _whole(raw)), 1):
            yield Record(row, raw.place(number, "item"), raw.size // number)
    else:
        yield Record(_whole(raw), raw.place(1, "item"), raw.size)


def _outline(raw: RawFile, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what the object at ``path`` holds, of long lists the first item; of an array nothing.

    Raises:
        DataError: If a field stands twice, or the path leads nowhere.
    """
    outline: dict[str, Any] = {}
    n_bytes = 0
    for number, member in enumerate(members(raw, path), 1):
        if member.key in outline:
            raise DataError(
                f"{raw.place(number, 'item')}: no JSON; the field {shown(member.key)} stands twice;"
                " remove one"
            )
        outline[member.key] = _sketch(raw, member, path)
        n_bytes += len(member.data or b"")
        by_id = number == _ENOUGH_IDS and all(isinstance(v, dict) for v in outline.values())
        if by_id or number > _MOST_FIELDS or n_bytes > raw.limits.row_bytes:
            break
    return outline


def _sketch(raw: RawFile, member: Member, path: tuple[str, ...]) -> Any:
    place = raw.place(1, "item")
    if member.data is not None:
        return strict_json.parse(member.data, 0, place, raw.limits)
    if member.head[:1] == b"[":
        first = next(items(raw, (*path, member.key)))
        return _Cut([strict_json.parse(first.data, first.offset, place, raw.limits)])
    if member.head[:1] == b"{":
        return {"0" if _ROW_ZERO.match(member.head) else "": None}
    return member.head.decode("utf-8", "replace")


class _Cut(list[Any]):
    """The first item of a list that has more."""


def _layout(
    raw: RawFile, outline: dict[str, Any], is_row: IsRow
) -> tuple[_Layout, tuple[str, ...]]:
    values = list(outline.values())
    if _are_columns(values) or _are_columns_of_rows(outline, is_row):
        return "columns", ()
    if outline and is_row(outline):
        return "alone", ()
    if all(isinstance(value, dict) for value in values):
        _check_depth(raw, outline, is_row)
        return "items", ()
    found = [key for key, value in outline.items() if _holds_rows(value)]
    if len(found) > 1:
        raise DataError(
            f"{raw.name}: rows may lie under {' or '.join(map(shown, found))}; expected one list"
            f" of them; say which, such as --rows_at {shlex.quote(found[0])}"
        )
    return ("items", (found[0],)) if found else ("alone", ())


def _check_depth(raw: RawFile, outline: dict[str, Any], is_row: IsRow) -> None:
    """Refuse rows that lie deeper than rows by id do."""
    for key, value in outline.items():
        if len(outline) > 1 and len({frozenset(held) for held in outline.values()}) == 1:
            return  # rows by id, of fields of their own
        deeper = [inner for inner, held in value.items() if _holds_rows(held)]
        if deeper and not is_row(value):
            raise DataError(
                f"{raw.name}: found no row but an object under {shown(key)}, with lists inside;"
                f" expected rows; say where they lie, such as --rows_at"
                f" {shlex.quote(f'{key}.{deeper[0]}')}"
            )


def _holds_rows(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) or (
        isinstance(first, list) and bool(first) and isinstance(first[0], dict)
    )


def _are_columns(values: list[Any]) -> bool:
    """Whether each value is a whole column: lists of one length, or objects by row number."""
    if values and all(isinstance(value, dict) and next(iter(value), "") == "0" for value in values):
        return True
    if len(values) < 2 or not all(isinstance(value, list) and value for value in values):
        return False
    lengths = {len(value) for value in values if not isinstance(value, _Cut)}
    return len(lengths) < 2 and not any(isinstance(value[0], dict) for value in values)


def _are_columns_of_rows(outline: dict[str, Any], is_row: IsRow) -> bool:
    """Whether the first items of all lists are a row: then all lists must have one length."""
    first = {key: value[0] for key, value in outline.items() if isinstance(value, list) and value}
    alone = any(isinstance(value, dict) for value in first.values())
    return 1 < len(first) == len(outline) and not alone and is_row(first)


def _rows_of_columns(raw: RawFile, columns: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cells = {
        name: column if isinstance(column, dict) else dict(enumerate(column))
        for name, column in columns.items()
    }
    lengths = {len(column) for column in cells.values()}
    if len(lengths) > 1:
        raise DataError(
            f"{raw.name}: columns of {min(lengths):,} to {max(lengths):,} rows; expected one length"
            " for all; write it as an array of rows"
        )
    for number in next(iter(cells.values())):
        if any(number not in column for column in cells.values()):
            raise DataError(
                f"{raw.name}: a column has no row {shown(number)}; expected the same rows in all;"
                " write it as an array of rows"
            )
        yield {name: column[number] for name, column in cells.items()}


def _items(raw: RawFile, path: tuple[str, ...]) -> Iterator[Record]:
    for item in items(raw, path):
        place = raw.place(item.number, "item")
        if not item.data.strip(strict_json.BLANKS):
            raise DataError(f"{place}: no JSON; found nothing beside a comma; remove the comma")
        if item.keyed:
            member = strict_json.parse(b"{%b}" % item.data, item.offset - 1, place, raw.limits)
            value = next(iter(member.values()))
        else:
            value = strict_json.parse(item.data, item.offset, place, raw.limits)
        yield Record(value, place, len(item.data))


def _whole(raw: RawFile) -> dict[str, Any]:
    """Return the object that a file is.

    Raises:
        DataError: If it is larger than a row may be.
    """
    fields: dict[str, Any] = {}
    n_bytes = 0
    for item in items(raw):
        place = raw.place(item.number, "item")
        member = strict_json.parse(b"{%b}" % item.data, item.offset - 1, place, raw.limits)
        if not member or member.keys() & fields.keys():
            raise DataError(
                f"{place}: no JSON; an empty field, or one that stands twice; remove it"
            )
        fields |= member
        n_bytes += len(item.data)
        if n_bytes > raw.limits.row_bytes or len(fields) > _MOST_FIELDS:
            raise DataError(
                f"{place}: one row of more than {_MOST_FIELDS:,} fields or"
                f" {raw.limits.row_bytes:,} bytes; expected rows; write them as an array, or as"
                " lines of a .jsonl file"
            )
    return fields
