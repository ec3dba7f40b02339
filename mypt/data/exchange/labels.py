"""Masks as other trainers keep them: tables of ``input_ids`` and ``labels``.

Tables are Parquet files, or what ``save_to_disk`` of ``datasets`` writes: a ``Dataset`` is Arrow
streams that ``state.json`` lists; a ``DatasetDict`` is one such folder a split, listed in
``dataset_dict.json``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from mypt import files
from mypt.data.dataset import open_dataset
from mypt.data.exchange.adoption import adopt
from mypt.data.manifest import TOKENIZER_STATE, Split
from mypt.data.reading.tables import bounded
from mypt.data.shards import MASK, TOKENS, ShardView, shard_name
from mypt.errors import ConfigError, DataError, MaskError, MissingFileError
from mypt.parsing import read_json
from mypt.references import DatasetRef
from mypt.text import shorten

if TYPE_CHECKING:
    import pyarrow as pa


UNSUPERVISED: Final = -100
"""The label that torch, transformers and TRL leave out of a loss."""
NAMES: Final[dict[Split, str]] = {"train": "train", "val": "validation"}
"""What ``datasets`` calls the splits."""
_ROWS: Final = 1000
STATE: Final = "state.json"
DICT: Final = "dataset_dict.json"
_SPLITS: Final[dict[str, Split]] = {"train": "train", "validation": "val", "test": "val"}
_EXPECTED: Final = "expected a folder that save_to_disk of datasets wrote"
_COLUMNS = ["input_ids", "labels"]
_EXPANSION: Final = 1_000
"""How many times a Parquet file's size its rows may need; labels that are all -100 pack well."""
_FREE: Final = 256 << 20
"""Bytes that the rows of any file may need."""


def export_labels(dataset: Path, out: Path) -> None:
    """Write a folder that ``datasets.load_dataset`` reads, with the tokenizer beside it.

    ``labels[i]`` is ``input_ids[i]`` where token i is supervised, else -100; the model that
    learns from them shifts, as those of transformers do. Shards made by hand have no rows and
    become one each.

    Args:
        dataset: The folder of a dataset; without masks every token is supervised.
        out: A new folder.

    Raises:
        DataError: If the dataset has weights.
        ManifestError: If the dataset is damaged.
        FileExistsError: If ``out`` exists.
    """
    import pyarrow as pa
    from pyarrow import parquet

    opened = open_dataset(dataset)
    if opened.weights is not None:
        raise DataError(
            f"{dataset}: tokens weigh other than 0 and 1, which labels cannot say; mask it without"
            " weights ('mypt mask') and export that"
        )
    schema = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})
    with files.new_folder(out) as new:
        for split, name in NAMES.items():
            if not opened.manifest.tokens(split):
                continue
            with parquet.ParquetWriter(new / f"{name}.parquet", schema) as writer:
                for shard in opened.shards(split):
                    for columns in _columns(shard):
                        writer.write_table(pa.table(columns, schema))
        files.write_bytes(new / TOKENIZER_STATE, (dataset / TOKENIZER_STATE).read_bytes())


def _columns(shard: ShardView) -> Iterator[dict[str, Any]]:
    """Yield the columns of some rows at a time."""
    import pyarrow as pa

    tokens = np.asarray(shard.tokens).astype(np.int32)
    labels = tokens if shard.mask is None else np.where(shard.mask, tokens, UNSUPERVISED)
    stops = np.array([len(tokens)]) if shard.rows is None else shard.rows["stop"].astype(np.int64)
    edges: NDArray[np.int64] = np.concatenate([[0], stops])
    for first in range(0, len(stops), _ROWS):
        some = edges[first : first + _ROWS + 1]
        offsets = pa.array((some - some[0]).astype(np.int32))
        yield {
            name: pa.ListArray.from_arrays(offsets, pa.array(values[some[0] : some[-1]]))
            for name, values in (("input_ids", tokens), ("labels", labels.astype(np.int32)))
        }


def is_saved(folder: Path) -> bool:
    """Return whether ``datasets`` wrote the folder."""
    return (folder / DICT).is_file() or (folder / STATE).is_file()


def saved_files(folder: Path) -> dict[Split, list[Path]]:
    """Return the Arrow files of each split, in their order; a lone ``Dataset`` is all training.

    Raises:
        DataError: If a file that tells them is damaged or names one elsewhere, if the rows are
            in an order that another file holds, or if a split is none of ours.
    """
    if not (folder / DICT).is_file():
        return {"train": _files(folder)}
    named = _read_state(folder / DICT).get("splits")
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise DataError(f"{folder / DICT}: no list of splits; {_EXPECTED}")
    found: dict[Split, list[Path]] = {}
    for name in named:
        split = _SPLITS.get(name)
        if split is None or split in found:
            raise DataError(
                f"{folder / DICT}: splits {', '.join(named)[:200]} found, expected train, and"
                " validation or test; save it without the others, so that none is left out unseen"
            )
        found[split] = _files(folder / name)
    return found


def _files(folder: Path) -> list[Path]:
    state = _read_state(folder / STATE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"{folder / STATE}: the rows are chosen or ordered by another file; save"
            " dataset.flatten_indices() instead"
        )
    listed = state.get("_data_files")
    if not isinstance(listed, list):
        raise DataError(f"{folder / STATE}: no list _data_files; {_EXPECTED}")
    return [_inside(folder, found) for found in listed]


def _inside(folder: Path, found: object) -> Path:
    name = found.get("filename") if isinstance(found, dict) else None
    # A plain name: neither a way out of the folder nor, as a link, into another one.
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise DataError(
            f"{folder / STATE}: {str(found)[:80]!r} names no file of this folder; {_EXPECTED}"
        )
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise DataError(f"{path}: no such file, though {STATE} lists it; copy the whole folder")
    return path


def _read_state(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ConfigError as error:
        raise DataError(str(error)) from None


def adopt_labels(
    folder: Path, out: Path, tokenization: str | None = None, template: str | None = None
) -> DatasetRef:
    """Make shards of the tables of a folder, one a file, then adopt them.

    The folder is what ``save_to_disk`` of ``datasets`` wrote, or holds ``train*.parquet`` and
    ``validation*.parquet``. Rows follow each other as in a shard made by hand; where one ends
    is not kept.

    Args:
        folder: Where the tables lie.
        out: A new folder.
        tokenization: What the ids mean; None takes a ``tokenizer_state.json`` beside the tables.
        template: What wrote the turns, as :func:`mypt.data.exchange.adoption.adopt` has it.

    Raises:
        DataError: If there is no table, or one without the two columns of lists of ids.
        MaskError: If a label is neither -100 nor the token at its place.
    """
    tables = saved_files(folder) if is_saved(folder) else _parquets(folder)
    if not any(tables.values()):
        raise MissingFileError(f"{folder}: no table; expected train*.parquet, or {_EXPECTED}")
    with files.new_folder(out) as new:
        for split in NAMES:
            (new / split).mkdir()
            for index, path in enumerate(tables.get(split, ())):
                _write(new, split, index, path)
        if tokenization is None and (folder / TOKENIZER_STATE).is_file():
            data = (folder / TOKENIZER_STATE).read_bytes()
            files.write_bytes(new / TOKENIZER_STATE, data)
    return adopt(out, tokenization, template)


def _parquets(folder: Path) -> dict[Split, list[Path]]:
    return {split: sorted(folder.glob(f"{name}*.parquet")) for split, name in NAMES.items()}


def _write(new: Path, split: Split, index: int, path: Path) -> None:
    import pyarrow as pa

    try:
        table = _read(path)
        ids, labels = (_flat(table.column(name)) for name in _COLUMNS)
    except MemoryError:
        raise DataError(
            f"{path}: {_ROWS} rows unpack to more than a gibibyte; expected lists of ids as long as"
            " a conversation; leave it out"
        ) from None
    except (pa.ArrowException, OSError, KeyError, AttributeError) as error:
        first = shorten(str(error), 200)
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
        with parquet.ParquetFile(path, pre_buffer=False) as table:
            batches, n_bytes, allowed = [], 0, max(_FREE, _EXPANSION * path.stat().st_size)
            for batch in bounded(table.iter_batches(_ROWS, columns=_COLUMNS, use_threads=False)):
                n_bytes += batch.nbytes
                if n_bytes > allowed:
                    raise pa.ArrowInvalid(f"its pages unpack to more than {allowed:,} bytes")
                batches.append(batch)
            return pa.Table.from_batches(batches, table.schema_arrow).select(_COLUMNS)
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
