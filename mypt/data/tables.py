"""Rows of CSV and Parquet files."""

import csv
from collections.abc import Iterator, Sequence
from typing import Any

from mypt.data.raw import RawFile, decode, lines
from mypt.data.records import BLANK, Record
from mypt.errors import DataError
from mypt.text import names

_BATCH_ROWS = 64
_BUFFER = 1 << 20
# A CSV cell is text; these columns hold switches, see formats/message.py.
_SWITCHES = ("train", "weight", "loss_weight")
_SWITCH = {"": None, "0": 0, "0.0": 0, "1": 1, "1.0": 1, "false": False, "true": True}


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
        first_line = " ".join(str(error).split())[:200]
        raise DataError(f"{raw.name}: no Parquet ({first_line}); get an undamaged copy") from None
    raw.bytes_done = raw.size
