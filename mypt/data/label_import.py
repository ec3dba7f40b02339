"""Masks of other trainers: tables of ``input_ids`` and ``labels`` become a dataset."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mypt import files
from mypt.data.adoption import adopt
from mypt.data.label_tables import NAMES, UNSUPERVISED
from mypt.data.manifest import TOKENIZER_STATE, Split
from mypt.data.saved_tables import is_saved, saved_files
from mypt.data.shards import MASK, TOKENS, shard_name
from mypt.errors import DataError, MaskError
from mypt.references import DatasetRef

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMNS = ["input_ids", "labels"]


def adopt_labels(folder: Path, out: Path, tokenization: str | None = None) -> DatasetRef:
    """Make shards of the tables of a folder, one a file, then adopt them.

    The folder is what ``save_to_disk`` of ``datasets`` wrote, or holds ``train*.parquet`` and
    ``validation*.parquet``. Rows follow each other as in a shard made by hand; where one ends
    is not kept.

    Args:
        folder: Where the tables lie.
        out: A new folder.
        tokenization: What the ids mean; None takes a ``tokenizer_state.json`` beside the tables.

    Raises:
        DataError: If there is no table, or one without the two columns of lists of ids.
        MaskError: If a label is neither -100 nor the token at its place.
    """
    tables = saved_files(folder) if is_saved(folder) else _parquets(folder)
    with files.new_folder(out) as new:
        for split in NAMES:
            (new / split).mkdir()
            for index, path in enumerate(tables.get(split, ())):
                _write(new, split, index, path)
        if tokenization is None and (folder / TOKENIZER_STATE).is_file():
            data = (folder / TOKENIZER_STATE).read_bytes()
            files.write_bytes(new / TOKENIZER_STATE, data)
    return adopt(out, tokenization)


def _parquets(folder: Path) -> dict[Split, list[Path]]:
    return {split: sorted(folder.glob(f"{name}*.parquet")) for split, name in NAMES.items()}


def _write(new: Path, split: Split, index: int, path: Path) -> None:
    import pyarrow as pa

    try:
        table = _read(path)
        ids, labels = (_flat(table.column(name)) for name in _COLUMNS)
    except (pa.ArrowException, OSError, KeyError, AttributeError) as error:
        first = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: {first}; expected lists input_ids and labels") from None
    if len(ids) and not 0 <= ids.min() <= ids.max() < 1 << 32:
        raise DataError(f"{path}: ids {ids.min()} to {ids.max()}; expected them in 32 bits")
    mask = labels != UNSUPERVISED
    if len(ids) != len(labels) or (ids[mask] != labels[mask]).any():
        raise MaskError(
            f"{path}: labels are not the tokens at their places; expected each to be -100 or its"
            " own token, not the next"
        )
    files.write_bytes(new / shard_name(split, index, TOKENS), ids.astype("<u4").tobytes())
    files.write_bytes(new / shard_name(split, index, MASK), mask.astype(np.uint8).tobytes())


def _read(path: Path) -> "pa.Table":
    """Return the two columns of a Parquet file or of a file that holds one Arrow stream."""
    import pyarrow as pa
    from pyarrow import parquet

    if path.suffix == ".parquet":
        return parquet.read_table(path, columns=_COLUMNS)
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
        table = stream.read_all().select(_COLUMNS)
    table.validate(full=True)  # offsets are taken as they are, and may point outside
    return table


def _flat(column: object) -> NDArray[np.int64]:
    import pyarrow as pa

    flat = column.combine_chunks().flatten()  # type: ignore[attr-defined]
    nulls = column.null_count + flat.null_count  # type: ignore[attr-defined]
    if nulls or not (pa.types.is_integer(flat.type) or pa.types.is_null(flat.type)):
        raise pa.ArrowInvalid(f"{nulls} nulls among {flat.type}")
    found: NDArray[np.int64] = flat.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return found
