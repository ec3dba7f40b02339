"""Where the rows of a batch come from: tokens of a shard, and the raw line behind them."""

from pathlib import Path
from typing import NamedTuple

from mypt.data.dataset import Dataset
from mypt.data.shards import ShardView


class Place(NamedTuple):
    """A stretch of one shard."""

    shard: ShardView
    start: int
    """First token."""
    stop: int
    """One past the last token."""


def name_row(dataset: Dataset, places: list[Place]) -> str:
    """Return one batch row as people look it up: shard, tokens, and the raw file's lines.

    Args:
        dataset: The dataset that the places lie in.
        places: The stretches that the row is made of; none gives "", a row of padding.
    """
    return " + ".join(
        f"{place.shard.record.tokens.name} tokens {place.start}..{place.stop}"
        f"{_raw_lines(dataset, place)}"
        for place in places
    )


def _raw_lines(dataset: Dataset, place: Place) -> str:
    rows = place.shard.rows
    if rows is None:  # made by hand: nobody recorded where the tokens came from
        return ""
    edges = rows["start"].searchsorted([place.start, place.stop - 1], side="right") - 1
    files = dataset.manifest.sources[place.shard.record.source].files
    (first, start), (last, stop) = (
        (Path(files[int(row["file"])].path).name, int(row["line"])) for row in rows[edges]
    )
    if first != last:
        return f" ({first} line {start} to {last} line {stop})"
    return f" ({first} line {start})" if start == stop else f" ({first} lines {start} to {stop})"
