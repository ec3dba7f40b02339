"""What a raw file holds its rows in (lines, one JSON value, CSV, a table), and the rows' values."""

import csv
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal

from mypt.config import Reading
from mypt.data.reading import strict_json
from mypt.data.reading.json_files import IsRow, read_json
from mypt.data.reading.raw import BOM, PACKED, RawFile, decode, lines
from mypt.data.reading.records import BLANK, WEIGHTS, WHOLE, Place, Record, Tally
from mypt.data.reading.strict_json import BLANKS
from mypt.data.reading.tables import check_names, read_table
from mypt.errors import DataError
from mypt.text import names

# A CSV cell is text; columns of WEIGHTS hold switches.
_SWITCH = {"": None, "0": 0, "0.0": 0, "1": 1, "1.0": 1, "false": False, "true": True}
_MESSAGES = re.compile(r"\s*\[\s*\{\s*[\"'](?:role|from|content|value)[\"']\s*:")
"""How a cell begins that holds messages, as JSON or as Python prints them."""
_QUOTED = re.compile(r'"[^"]*"')
_CSV_CURES = {
    "'": 'write a quote inside quotes twice (""), not behind a backslash',
    "unexpected end": "the quote that opens here is never closed; close it, or write it twice",
    "field larger": "the quote that opens here is never closed; close it, or write it twice",
    "new-line": "quote cells that hold a carriage return, and end rows with a line feed",
}
Container = Literal["lines", "json", "csv", "parquet", "arrow", "text"]
_CONTAINERS: dict[str, Container] = {
    ".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow",
    ".txt": "text", ".text": "text", ".md": "text",
}  # fmt: skip
_MAGIC: dict[bytes, Container] = {b"PAR1": "parquet", b"ARROW1\0\0": "arrow"}
_TABLES = frozenset({"parquet", "arrow"})
_ARCHIVE = "an archive; unpack it and name its files or their folder"
_SHEET = "a spreadsheet; save it as CSV and name that"
_REFUSED = dict.fromkeys((".tar", ".tgz", ".txz", ".zip", ".7z", ".rar", ".bz2"), _ARCHIVE)
_REFUSED |= dict.fromkeys((".xlsx", ".xls", ".ods"), _SHEET)


def read_csv(raw: RawFile) -> Iterator[Record]:
    """Yield the rows of a CSV file by the names in its first line.

    Cells are parted by commas, in ``.tsv`` by tabs, or by what the first line has in their
    place: ``;``, tab or ``|``. Blanks behind all its separators are no part of cells. A first
    column without a name numbers the rows. Quoted cells may hold line feeds; a row's place is
    the line on which it starts. A cell that holds a list of messages is read as that.

    Raises:
        DataError: If a row has more or fewer cells than the first line, or a quote is not
            closed.
    """
    csv.field_size_limit(raw.limits.row_bytes)
    text = (decode(line.data, line.offset, raw.place(line.number)) + "\n" for line in lines(raw))
    first = next(text, "")
    if "\0" in first:
        raise DataError(
            f"{raw.place(1)}: a first line with zero bytes, as UTF-16 has; expected the names of"
            f" columns; say --encoding utf-16-{'be' if first.startswith(chr(0)) else 'le'}"
        )
    separator, blanks = _separator(first, raw)
    reader = csv.reader(
        chain((first,), text), strict=True, delimiter=separator, skipinitialspace=blanks
    )
    header: list[str] = []
    while True:
        place = raw.place(reader.line_num + 1)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cure = next(
                (c for begins, c in _CSV_CURES.items() if str(error).startswith(begins)), ""
            )
            raise DataError(
                f"{place}: no CSV ({error}); expected cells as in the header; {cure or 'mend it'}"
            ) from None
        if not header and cells:
            header = _header(cells, raw)
        elif cells and len(cells) != len(header):
            raise DataError(
                f"{place}: {len(cells)} cells; expected {len(header)}, for {names(header)};"
                f" quote cells that hold {_called(separator)} or a line feed"
            )
        else:
            n_bytes = sum(map(len, cells))
            yield Record(_fields(header, cells, place) if cells else BLANK, place, n_bytes)


def _separator(first: str, raw: RawFile) -> tuple[str, bool]:
    """Return what parts the cells of a file, and whether blanks follow it."""
    bare = _QUOTED.sub('""', first.rstrip())
    usual = "\t" if ".tsv" in (suffix.lower() for suffix in raw.path.suffixes) else ","
    separator = next((mark for mark in (usual, *",;\t|") if mark in bare), usual)
    behind = bare.split(separator)[1:]
    return separator, bool(behind) and all(cell.startswith(" ") for cell in behind)


def _called(separator: str) -> str:
    return {",": "a comma", "\t": "a tab"}.get(separator, repr(separator))


def _header(cells: list[str], raw: RawFile) -> list[str]:
    header = [cell.strip() for cell in cells]
    if not header[0] and "index" not in header:
        header[0] = "index"
    check_names(header, raw)
    return header


def _fields(header: list[str], cells: list[str], place: Place) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(header, cells, strict=True))
    for name in WEIGHTS:
        if name in row:
            row[name] = _SWITCH.get(row[name].strip().lower(), _number(row[name]))
    for name, cell in zip(header, cells, strict=True):
        if _MESSAGES.match(cell):
            row[name] = strict_json.parse_text(cell, f"{place}: column {name}")
    return row


def _number(cell: str) -> str | float:
    try:
        return float(cell)
    except ValueError:
        return cell


def container_of(raw: RawFile, *, text: bool | None = None) -> Container:
    """Return how a file holds its rows, by its extension, its first bytes and its first line.

    Args:
        raw: The file.
        text: Whether plain text is wanted; None leaves it to the file.

    Raises:
        DataError: If it is an archive, or its extension is unknown and nothing is wanted.
    """
    suffixes = [suffix.lower() for suffix in raw.path.suffixes]
    suffix = "".join(suffixes[-2:-1] if suffixes[-1:] and suffixes[-1] in PACKED else suffixes[-1:])
    found = next((kind for magic, kind in _MAGIC.items() if raw.head.startswith(magic)), None)
    container = found if found and not text else _CONTAINERS.get(suffix)
    refused = _REFUSED.get(suffix) or (_ARCHIVE if raw.head.startswith(b"PK\3\4") else None)
    if refused:
        raise DataError(f"{raw.name}: {refused}")
    if container in _TABLES and not raw.is_plain:
        raise DataError(
            f"{raw.name}: a packed table; unpack it and name the file inside"
            if raw.packing
            else f"{raw.name}: a table says itself what its bytes mean; leave --encoding out"
        )
    if container is None and text is None:
        raise DataError(
            f"{raw.name}: its name does not tell its format; expected {' '.join(_CONTAINERS)}"
            f" (then {', '.join(PACKED)} or nothing); rename it, leave it out, or say --format"
        )
    if container in (None, "text"):
        return "text" if text or text is None else _lines_or_json(raw)
    if container == "lines":
        return "json" if _first_line(raw)[0].strip(BLANKS) in (b"[", b"{") else "lines"
    return _lines_or_json(raw) if container == "json" else container


def read_records(
    raw: RawFile, container: Container, how: Reading, is_row: IsRow, tally: Tally | None = None
) -> Iterator[Record]:
    """Yield the rows of a file in order.

    Args:
        raw: The file.
        container: How it holds them.
        how: Where the rows of a JSON file lie.
        is_row: Tells a row alone in a JSON file from an object that holds rows.
        tally: Counts what stands beside the rows of a JSON file.

    Raises:
        DataError: For the first row that cannot be parsed, or if there is none.
    """
    if how.rows_at and container != "json":
        raise DataError(
            f"{raw.name}: rows_at {how.rows_at!r} is for a .json file that is one value; its rows"
            " stand by themselves; leave --rows_at out"
        )
    if container == "json":
        records = read_json(raw, how.rows_at, is_row, tally)
    elif container in ("parquet", "arrow"):
        records = read_table(raw, container)
    else:
        records = read_csv(raw) if container == "csv" else _lines(raw)
    empty = raw.stretch == WHOLE
    for record in records:
        empty = empty and record.value is BLANK
        yield record
    if empty:
        raise DataError(f"{raw.name}: no rows found; expected at least one; leave the file out")


def first_row(raw: RawFile) -> Any:
    """Return the JSON value of the first line of a text file; None if it is none."""
    line, _ = _first_line(raw)
    return _parse_if_json(raw, line)


def _lines_or_json(raw: RawFile) -> Container:
    line, more_follows = _first_line(raw)
    if line[:1] not in (b"[", b"{"):
        return "lines"
    return "lines" if more_follows and _parse_if_json(raw, line) is not None else "json"


def _first_line(raw: RawFile) -> tuple[bytes, bool]:
    """Return the first line that is not blank, and whether more follows it."""
    line, _, rest = raw.beginning().lstrip(BLANKS).partition(b"\n")
    return line, bool(rest.strip(BLANKS))


def _parse_if_json(raw: RawFile, data: bytes) -> Any:
    try:
        return strict_json.parse(data, 0, raw.place(1), raw.limits)
    except DataError:
        return None


def _lines(raw: RawFile) -> Iterator[Record]:
    was_blank = False
    for line in lines(raw):
        is_blank = not line.data.strip(BLANKS)
        if not is_blank:
            place = raw.place(line.number)
            # Files that were joined keep the byte order mark of each.
            data = line.data.removeprefix(BOM)
            yield Record(strict_json.parse(data, line.offset, place, raw.limits), place, len(data))
        elif not was_blank:
            yield Record(BLANK, raw.place(line.number), 0)
        was_blank = is_blank
