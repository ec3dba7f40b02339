"""One row of a dataset as people look at it: its tokens, who wrote them, where it came from."""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mypt.config import MaskPolicy
from mypt.data.conversations import Side
from mypt.data.dataset import Dataset, ShardView
from mypt.data.manifest import Split
from mypt.data.masking import Rule, explain, last_turns
from mypt.data.pairs import ID_BYTES, SIDES
from mypt.data.shards import origin
from mypt.data.spans import KIND
from mypt.data.tokenizer import Tokenizer
from mypt.errors import DataError
from mypt.text import visible

HAND_ROW = 256
"""Tokens shown as one row where shards were made by hand and nobody recorded rows."""


@dataclass(frozen=True, slots=True)
class RowView:
    """A row; N tokens, S spans."""

    split: Split
    index: int
    """The row's number in its split, counted from 0 over all shards."""
    source: str
    where: str
    """File and line it was read from, or the shard where nobody recorded that."""
    tokens: NDArray[np.uint32]
    """(N,) token ids."""
    weights: NDArray[np.float64] | None
    """(N,) how much each token weighs, 0 where it is unsupervised; None before masking."""
    spans: NDArray[np.void] | None
    """(S,) of SPAN_DTYPE, start and stop counted from the row's first token; None by hand."""
    row_weights: tuple[float, ...]
    """What ``train`` of the spans counts from 2 on."""
    digest: bytes | None
    """The recorded digest of what was read; None by hand."""
    side: Side = ""
    """Which side of its preference pair it is."""

    @property
    def pair(self) -> str:
        """Which side of which pair it is, in words; empty where there is none."""
        of = f" of pair {self.digest[:ID_BYTES].hex()}" if self.digest else " side"
        return f"{self.side}{of}" if self.side else ""

    def said(self, tokenizer: Tokenizer) -> list[str]:
        """Return what was said, a text a span, without headers and ends."""
        if self.spans is None:
            return [tokenizer.decode_part(self.tokens)]
        said = self.spans[~np.isin(self.spans["kind"], (KIND["header"], KIND["end"]))]
        return [tokenizer.decode_part(self.tokens[span["start"] : span["stop"]]) for span in said]


def reasons(view: RowView, policy: MaskPolicy | None) -> list[Rule | None]:
    """Return for each span the rule that decided its mask; None where nobody recorded one."""
    if view.spans is None:
        return []
    if policy is None:
        return [None] * len(view.spans)
    last = last_turns(view.spans, policy)
    return [
        explain(span, policy, source=view.source, last_turn=bool(is_last))
        for span, is_last in zip(view.spans, last, strict=True)
    ]


def with_other_sides(dataset: Dataset, views: Iterable[RowView]) -> Iterator[RowView]:
    """Yield rows, of a preference pair both sides, the chosen one first and each once."""
    shown: set[int] = set()
    for view in views:
        if not view.side:
            yield view
        elif view.index not in shown:
            first = view.index - view.index % 2
            for index in (first, first + 1):
                shown.add(index)
                yield view if index == view.index else read_row(dataset, view.split, index)


def count_rows(dataset: Dataset, split: Split) -> int:
    """Return how many rows :func:`iter_rows` gives."""
    return sum(_rows_of(shard) for shard in dataset.shards(split))


def iter_rows(dataset: Dataset, split: Split) -> Iterator[RowView]:
    """Yield the rows of a split in order, one at a time."""
    first = 0
    for mapped in dataset.shards(split):
        shard, n_rows = _plain(mapped), _rows_of(mapped)
        edges: list[int] = []
        if shard.spans is not None:
            edges = np.searchsorted(shard.spans["conversation"], np.arange(n_rows + 1)).tolist()
        for local in range(n_rows):
            yield _view(dataset, split, shard, first, local, edges[local : local + 2])
        first += _rows_of(shard)


def read_row(dataset: Dataset, split: Split, index: int) -> RowView:
    """Return one row.

    Raises:
        DataError: If the split has fewer rows.
    """
    first = 0
    for shard in dataset.shards(split):
        n_rows = _rows_of(shard)
        if 0 <= index - first < n_rows:
            local = index - first
            edges = [] if shard.spans is None else shard.span_edges((local, local + 1))
            return _view(dataset, split, shard, first, local, edges)
        first += n_rows
    raise DataError(
        f"{dataset.path}: {split} has no row {index}; it has {first} rows, counted from 0"
    )


def _plain(shard: ShardView) -> ShardView:
    """Return the same arrays as plain ones: a memory map's own indexing costs several times."""
    return shard._replace(
        tokens=np.asarray(shard.tokens),
        mask=None if shard.mask is None else np.asarray(shard.mask),
        spans=None if shard.spans is None else np.asarray(shard.spans),
        rows=None if shard.rows is None else np.asarray(shard.rows),
    )


def _rows_of(shard: ShardView) -> int:
    if shard.rows is not None:
        return len(shard.rows)
    return -(-len(shard.tokens) // HAND_ROW)


def _view(
    dataset: Dataset,
    split: Split,
    shard: ShardView,
    first: int,
    local: int,
    edges: list[int],
) -> RowView:
    start, stop = local * HAND_ROW, min((local + 1) * HAND_ROW, len(shard.tokens))
    digest = None
    if shard.rows is not None:
        row = shard.rows[local]
        start, stop, digest = int(row["start"]), int(row["stop"]), row["digest"].tobytes()
    spans = None
    if shard.spans is not None:
        spans = np.array(shard.spans[edges[0] : edges[1]])
        spans["start"] -= np.uint64(start)
        spans["stop"] -= np.uint64(start)
    source = dataset.manifest.sources[shard.record.source]
    record, mask = dataset.manifest.mask, shard.mask
    table = np.full(256, np.nan)  # of a byte that stands for no weight, nobody knows
    table[: len(record.weights) if record else 0] = record.weights if record else ()
    return RowView(
        split=split,
        index=first + local,
        source=source.name,
        where=origin(shard, source, local),
        tokens=shard.tokens[start:stop],
        weights=None if mask is None else table.take(mask[start:stop]),
        spans=spans,
        row_weights=dataset.manifest.row_weights,
        digest=digest,
        side=SIDES[local % 2] if dataset.paired else "",
    )


def token_texts(tokenizer: Tokenizer, ids: NDArray[np.uint32]) -> list[str]:
    r"""Return the visible text of each token, one item an id.

    A character whose bytes lie in several tokens stands at the last of them, the others are
    empty; bytes that are no UTF-8 are shown as ``\xff``.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
    pieces = [decoder.decode(tokenizer.decode_bytes(ids[n : n + 1])) for n in range(len(ids))]
    if pieces:
        pieces[-1] += decoder.decode(b"", final=True)
    return [visible(piece) for piece in pieces]
