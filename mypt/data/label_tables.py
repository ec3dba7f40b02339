"""Masks as other trainers read them: Parquet of ``input_ids`` and ``labels``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mypt import files
from mypt.data.dataset import open_dataset
from mypt.data.manifest import TOKENIZER_STATE, Split
from mypt.data.shards import ShardView

UNSUPERVISED: Final = -100
"""The label that torch, transformers and TRL leave out of a loss."""
NAMES: Final[dict[Split, str]] = {"train": "train", "val": "validation"}
"""What ``datasets`` calls the splits."""
_ROWS: Final = 1000


def export_labels(dataset: Path, out: Path) -> None:
    """Write a folder that ``datasets.load_dataset`` reads, with the tokenizer beside it.

    ``labels[i]`` is ``input_ids[i]`` where token i is supervised, else -100; the model that
    learns from them shifts, as those of transformers do. Shards made by hand have no rows and
    become one each.

    Args:
        dataset: The folder of a dataset; without masks every token is supervised.
        out: A new folder.

    Raises:
        ManifestError: If the dataset is damaged.
        FileExistsError: If ``out`` exists.
    """
    import pyarrow as pa
    from pyarrow import parquet

    opened = open_dataset(dataset)
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
