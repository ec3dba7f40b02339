"""Parquet and Arrow files as rows of plain values, a few rows at a time."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from mypt.data.reading.raw import RawFile
from mypt.data.reading.records import Record
from mypt.errors import DataError
from mypt.text import names, shorten

if TYPE_CHECKING:
    import pyarrow as pa

Table = Literal["parquet", "arrow"]
_BATCH_ROWS: Final = 64
_BUFFER: Final = 1 << 20
_CALLED: Final = {"parquet": "Parquet", "arrow": "Arrow"}
_MOST_MEMORY: Final = 1 << 30
"""Bytes that a few rows of a table may take while they are unpacked."""
_Unpad = Callable[[Any], Any]


def check_names(found: Sequence[str], raw: RawFile) -> None:
    """Refuse columns that cannot be told apart.

    Raises:
        DataError: If two have one name, or one has none.
    """
    if len(set(found)) < len(found) or not all(found):
        raise DataError(
            f"{raw.name}: the columns {names(found)} are not named once each; expected different"
            " names; rename the columns"
        )


@contextmanager
def little_memory() -> Iterator[None]:
    """Let this process grow by no more than a gibibyte inside the block, where Linux can.

    A value of a table's dictionary may be repeated without end in a few bytes, and no library
    says beforehand what it unpacks to. Within the block allocations beyond that, and beyond what
    Arrow's allocator has in reserve, fail.
    """
    import pyarrow as pa

    pa.allocate_buffer(1)  # it reserves a gibibyte at its first call, which would be all of ours
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    most = min(n for n in (*before, held + _MOST_MEMORY) if n != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def bounded(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield what ``batches`` yields, each unpacked in :func:`little_memory`.

    Raises:
        MemoryError: If that is too little; pyarrow's own is one, too.
    """
    while True:
        with little_memory():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def read_table(raw: RawFile, kind: Table) -> Iterator[Record]:
    """Yield the rows of a table; times become text, decimals become numbers.

    All rows of a column share their keys, so a null of a struct says that the row has no such
    key, and is left out; columns that are null, and nulls in lists and maps, stay.

    Raises:
        DataError: If the file is damaged, or unpacks to more than the limits allow.
    """
    import pyarrow as pa

    number, n_bytes = 0, 0
    plain = None
    try:
        for batch in bounded(_parquet(raw) if kind == "parquet" else _arrow(raw)):
            n_bytes += batch.nbytes
            raw.check_expansion(n_bytes, raw.limits.table_expansion)
            if plain is None:
                plain = pa.schema([field.with_type(_plain(field.type)) for field in batch.schema])
                unpad = {f.name: made for f in plain if (made := _unpadder(f.type))}
                # Where there are none, to ask for maps takes eight times as long.
                maps = "strict" if any(_holds_map(field.type) for field in plain) else None
                differs = not plain.equals(batch.schema)
            with little_memory():
                rows = batch.cast(plain) if differs else batch
            padded = {name: made for name, made in unpad.items() if _is_padded(rows[name])}
            for row in rows.to_pylist(maps_as_pydicts=maps):
                number += 1
                for name, made in padded.items():
                    row[name] = made(row[name])
                yield Record(row, raw.place(number, "row"), batch.nbytes // batch.num_rows)
    except MemoryError:
        raise DataError(
            f"{raw.name}: {_BATCH_ROWS} rows unpack to more than {_MOST_MEMORY:,} bytes; expected"
            " rows of messages or text; leave it out"
        ) from None
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, KeyError) as error:
        first_line = shorten(str(error), 200)
        raise DataError(
            f"{raw.name}: no {_CALLED[kind]} ({first_line}); get an undamaged copy"
        ) from None
    raw.bytes_done = raw.size


def _parquet(raw: RawFile) -> Iterator[pa.RecordBatch]:
    from pyarrow import parquet

    n_read = 0
    with parquet.ParquetFile(raw.path, buffer_size=_BUFFER, pre_buffer=False) as file:
        check_names(file.schema_arrow.names, raw)
        claimed = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
        raw.check_expansion(sum(group.total_byte_size for group in claimed))
        for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
            n_read += batch.num_rows
            yield batch
            raw.bytes_done = raw.size * n_read // max(1, file.metadata.num_rows)


def _arrow(raw: RawFile) -> Iterator[pa.RecordBatch]:
    """Yield slices of a mapped file, of which only what they touch is read."""
    import pyarrow as pa

    if raw.head.startswith(b"FEA1"):
        raise DataError(
            f"{raw.name}: Feather of version 1; write it anew with"
            " pyarrow.feather.write_feather(pyarrow.feather.read_table(FILE), FILE)"
        )
    with pa.memory_map(str(raw.path)) as file:
        batches: Iterator[pa.RecordBatch]
        if raw.head.startswith(b"ARROW1"):
            reader = pa.ipc.open_file(file)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:
            reader = pa.ipc.open_stream(file)
            batches = iter(reader)
        check_names(reader.schema.names, raw)
        for batch in batches:
            # Offsets that lie outside the file would otherwise be followed.
            batch.validate(full=True)
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.slice(start, _BATCH_ROWS)
            raw.bytes_done = min(raw.size, raw.bytes_done + batch.nbytes)


def _plain(found: pa.DataType) -> pa.DataType:
    """Return the type of which JSON has the values; times as Python values would need pandas."""
    import pyarrow as pa

    kind = pa.types
    if isinstance(found, pa.BaseExtensionType):
        return _plain(found.storage_type)
    if kind.is_dictionary(found):
        return _plain(found.value_type)
    if kind.is_temporal(found) and not kind.is_interval(found):
        return pa.string()
    if kind.is_decimal(found):
        return pa.float64()
    if kind.is_struct(found):
        return pa.struct([field.with_type(_plain(field.type)) for field in found])
    if kind.is_map(found):
        return pa.map_(found.key_type, _plain(found.item_type))
    if kind.is_list(found) or kind.is_fixed_size_list(found):
        return pa.list_(_plain(found.value_type))
    return pa.large_list(_plain(found.value_type)) if kind.is_large_list(found) else found


def _is_padded(column: pa.Array) -> bool:
    """Whether a struct inside has a null, which most columns of messages have not."""
    import pyarrow as pa

    kind = pa.types
    if kind.is_struct(column.type):
        return any(child.null_count or _is_padded(child) for child in column.flatten())
    if kind.is_map(column.type):
        return _is_padded(column.items)
    is_list = kind.is_list(column.type) or kind.is_large_list(column.type)
    return is_list and _is_padded(column.flatten())


def _holds_map(found: pa.DataType) -> bool:
    import pyarrow as pa

    inside = (found.field(i).type for i in range(found.num_fields))
    return bool(pa.types.is_map(found)) or any(map(_holds_map, inside))


def _unpadder(found: pa.DataType) -> _Unpad | None:
    """Return what leaves the nulls of structs out of a value; None: it can have none."""
    import pyarrow as pa

    kind = pa.types
    if kind.is_struct(found):
        inside = {f.name: _unpadder(f.type) for f in found}
        return lambda value: (
            value
            and {
                key: made(held) if (made := inside[key]) else held
                for key, held in value.items()
                if held is not None
            }
        )
    if kind.is_map(found):
        held = _unpadder(found.item_type)
        return held and (lambda value: value and {key: held(v) for key, v in value.items()})
    if kind.is_list(found) or kind.is_large_list(found):
        item = _unpadder(found.value_type)
        return item and (lambda value: value and [item(one) for one in value])
    return None
