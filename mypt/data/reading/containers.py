"""What a raw file holds its rows in (lines, one JSON value, CSV, Parquet), and the rows' values."""

import csv
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from mypt.data.reading import strict_json
from mypt.data.reading.raw import RawFile, decode, lines
from mypt.data.reading.records import BLANK, WHOLE, Place, Record
from mypt.data.reading.strict_json import BLANKS
from mypt.errors import DataError
from mypt.text import names, shorten

_BATCH_ROWS = 64
_BUFFER = 1 << 20
# A CSV cell is text; these columns hold switches, see formats/message.py.
_SWITCHES = ("train", "weight", "loss_weight")
_SWITCH = {"": None, "0": 0, "0.0": 0, "1": 1, "1.0": 1, "false": False, "true": True}
Container = Literal["lines", "json", "csv", "parquet", "text"]
_CONTAINERS: dict[str, Container] = {
    ".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".txt": "text", ".text": "text", ".md": "text",
}  # fmt: skip
_MOST_FIELDS = 10_000
_PACKED = (".gz", ".xz", ".zst")
_ARCHIVES = (".tar", ".tgz", ".txz", ".zip", ".7z", ".rar", ".bz2")


def read_csv(raw: RawFile) -> Iterator[Record]:
    """Yield the rows of a CSV file by the names in its first line; ``.tsv`` parts at tabs.

    Quoted cells may hold line feeds; a row's place is the line on which it starts.

    Raises:
        DataError: If a row has more or fewer cells than the first line, or a quote is not
            closed.
    """
    csv.field_size_limit(raw.limits.row_bytes)
    tabs = ".tsv" in (suffix.lower() for suffix in raw.path.suffixes)
    text = (decode(line.data, line.offset, raw.place(line.number)) + "\n" for line in lines(raw))
    reader = csv.reader(text, strict=True, delimiter="\t" if tabs else ",")
    header: list[str] | None = None
    while True:
        place = raw.place(reader.line_num + 1)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{place}: no CSV ({error}); expected cells as in the header") from None
        if header is None:
            header = cells
            _check_names(header, raw)
        elif cells and len(cells) != len(header):
            raise DataError(
                f"{place}: {len(cells)} cells; expected {len(header)}, for {names(header)};"
                " quote cells that hold a comma or a line feed"
            )
        else:
            n_bytes = sum(map(len, cells))
            yield Record(_fields(header, cells) if cells else BLANK, place, n_bytes)


def _fields(header: list[str], cells: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(header, cells, strict=True))
    for name in _SWITCHES:
        if name in row:
            row[name] = _SWITCH.get(row[name].strip().lower(), row[name])
    return row


def _check_names(found: Sequence[str], raw: RawFile) -> None:
    if len(set(found)) < len(found) or not all(found):
        raise DataError(
            f"{raw.name}: the columns {names(found)} are not named once each; expected a first"
            " row of different names"
        )


def read_parquet(raw: RawFile) -> Iterator[Record]:
    """Yield the rows of a Parquet file, a few at a time; columns of times are left aside.

    Raises:
        DataError: If the file is damaged, or its pages unpack to more than the limits allow.
    """
    import pyarrow as pa
    from pyarrow import parquet

    number, n_bytes = 0, 0
    try:
        with parquet.ParquetFile(raw.path, buffer_size=_BUFFER, pre_buffer=False) as file:
            _check_names(file.schema_arrow.names, raw)
            claimed = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
            raw.check_expansion(sum(group.total_byte_size for group in claimed))
            # Times are no text, and pyarrow would load pandas to make them Python values.
            wanted = [f.name for f in file.schema_arrow if not pa.types.is_temporal(f.type)]
            n_rows = file.metadata.num_rows
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False):
                n_bytes += batch.nbytes
                raw.check_expansion(n_bytes, raw.limits.table_expansion)
                for row in batch.to_pylist():
                    number += 1
                    yield Record(row, raw.place(number, "row"), batch.nbytes // batch.num_rows)
                raw.bytes_done = raw.size * number // max(1, n_rows)
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        first_line = shorten(str(error), 200)
        raise DataError(f"{raw.name}: no Parquet ({first_line}); get an undamaged copy") from None
    raw.bytes_done = raw.size


def container_of(raw: RawFile, *, text: bool | None = None) -> Container:
    """Return how a file holds its rows, by its extension and, for ``.json``, its first line.

    Args:
        raw: The file.
        text: Whether plain text is wanted; None leaves it to the file.

    Raises:
        DataError: If it is an archive, or its extension is unknown and nothing is wanted.
    """
    suffixes = [suffix.lower() for suffix in raw.path.suffixes]
    packed = suffixes[-1:] != [] and suffixes[-1] in _PACKED
    suffix = "".join(suffixes[-2:-1] if packed else suffixes[-1:])
    container = _CONTAINERS.get(suffix)
    if suffix in _ARCHIVES:
        raise DataError(f"{raw.name}: an archive; unpack it and name its files or their folder")
    if container == "parquet" and packed:
        raise DataError(f"{raw.name}: a packed Parquet file; unpack it and name the file inside")
    if container is None and text is None:
        raise DataError(
            f"{raw.name}: its name does not tell its format; expected {' '.join(_CONTAINERS)}"
            f" (then {', '.join(_PACKED)} or nothing), or name the format"
        )
    if container in (None, "text"):
        return "text" if text or text is None else _lines_or_json(raw)
    return _lines_or_json(raw) if container == "json" else container


def is_packed(raw: RawFile) -> bool:
    """Return whether a file's bytes are not those of its rows."""
    return raw.path.suffix.lower() in _PACKED


def read_records(raw: RawFile, container: Container, *, one_row: bool = False) -> Iterator[Record]:
    """Yield the rows of a file in order.

    Args:
        raw: The file.
        container: What it holds them in.
        one_row: Whether an object that is the whole JSON file is a row, whatever its fields hold.

    Raises:
        DataError: For the first row that cannot be parsed, or if there is none.
    """
    if container == "lines":
        records = _lines(raw)
    elif container == "json":
        records = _json(raw, one_row)
    else:
        records = read_csv(raw) if container == "csv" else read_parquet(raw)
    empty = raw.stretch == WHOLE
    for record in records:
        empty = empty and record.value is BLANK
        yield record
    if empty:
        raise DataError(f"{raw.name}: no rows found; expected at least one; leave the file out")


def last_line(raw: RawFile, container: Container) -> int:
    """Return the number of a file's last line, item or table row; rows are found by them."""
    if container in ("json", "parquet"):
        return max(record.place.line for record in read_records(raw, container))
    return max((line.number for line in lines(raw)), default=0)


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
    head = next(raw.chunks(), b"").lstrip(BLANKS)
    line, _, rest = head.partition(b"\n")
    return line, bool(rest.strip(BLANKS))


def _parse_if_json(raw: RawFile, data: bytes) -> Any:
    try:
        return _parse(raw, data, 0, raw.place(1))
    except DataError:
        return None


def _lines(raw: RawFile) -> Iterator[Record]:
    was_blank = False
    for line in lines(raw):
        is_blank = not line.data.strip(BLANKS)
        if not is_blank:
            place = raw.place(line.number)
            value = _parse(raw, line.data, line.offset, place)
            yield Record(value, place, len(line.data))
        elif not was_blank:
            yield Record(BLANK, raw.place(line.number), 0)
        was_blank = is_blank


def _json(raw: RawFile, one_row: bool) -> Iterator[Record]:
    """Read ``[row, ...]``, ``{"id": row, ...}``, or one row alone."""
    alone: dict[str, Any] = {}
    n_bytes = 0
    for item in strict_json.items(raw):
        place = raw.place(item.number, "item")
        if not item.keyed:
            value = _parse(raw, item.data, item.offset, place)
            yield Record(value, place, len(item.data))
            continue
        member = _parse(raw, b"{%b}" % item.data, item.offset - 1, place)
        value = next(iter(member.values()), None)
        if isinstance(value, dict) and not alone and not one_row:
            yield Record(value, place, len(item.data))
            continue
        if not member or member.keys() & alone.keys():
            raise DataError(f"{place}: no JSON; an empty field, or one that stands twice")
        alone |= member
        n_bytes += len(item.data)
        if n_bytes > raw.limits.row_bytes or len(alone) > _MOST_FIELDS:
            raise DataError(
                f"{place}: one row of more than {_MOST_FIELDS:,} fields or"
                f" {raw.limits.row_bytes:,} bytes; expected an object of rows"
            )
    if alone:
        yield Record(alone, raw.place(1, "item"), n_bytes)


def _parse(raw: RawFile, data: bytes, offset: int, place: Place) -> Any:
    return strict_json.parse(data, offset, place, raw.limits)
