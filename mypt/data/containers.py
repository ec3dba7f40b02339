"""What a raw file holds its rows in, and the rows' values."""

from collections.abc import Iterator
from typing import Any, Literal

from mypt.data import strict_json, tables
from mypt.data.places import WHOLE, Place
from mypt.data.raw import RawFile, lines
from mypt.data.records import BLANK, Record
from mypt.data.strict_json import BLANKS
from mypt.errors import DataError

Container = Literal["lines", "json", "csv", "parquet", "text"]

_CONTAINERS: dict[str, Container] = {
    ".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".txt": "text", ".text": "text", ".md": "text",
}  # fmt: skip
_MOST_FIELDS = 10_000
_PACKED = (".gz", ".xz", ".zst")
_ARCHIVES = (".tar", ".tgz", ".txz", ".zip", ".7z", ".rar", ".bz2")


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


def read_records(raw: RawFile, container: Container) -> Iterator[Record]:
    """Yield the rows of a file in order.

    Raises:
        DataError: For the first row that cannot be parsed, or if there is none.
    """
    if container == "lines":
        records = _lines(raw)
    elif container == "json":
        records = _json(raw)
    else:
        records = tables.read_csv(raw) if container == "csv" else tables.read_parquet(raw)
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


def _json(raw: RawFile) -> Iterator[Record]:
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
        if isinstance(value, dict) and not alone:
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
