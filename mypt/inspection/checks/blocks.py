"""Rows as their tokens and spans tell of them, many at a time: what a call costs is paid once."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from mypt.config import Role
from mypt.data.conversations import (
    Conversation,
    Document,
    Message,
    Origin,
    Part,
    PartKind,
    Row,
    Train,
)
from mypt.data.dataset import Dataset, ShardView
from mypt.data.manifest import Split
from mypt.data.pairs import with_sides
from mypt.data.spans import KIND, ROLE, ROLES, SPAN_DTYPE
from mypt.data.template import PartForm
from mypt.data.tokenizer import Tokenizer
from mypt.inspection.checks.contents import part_forms

PARTS: Final[dict[int, PartKind]] = {
    KIND["content"]: "text",
    KIND["reasoning"]: "reasoning",
    KIND["tool_call"]: "tool_call",
}
"""Which part of a message a span of each kind holds; headers and ends hold none."""

LAYOUT: Final = ["role", "kind", "message", "train"]
"""Fields of a span that say whose it is, and not where it lies."""
_EDGES: Final = ("start", "stop")
BLOCK = 512
"""Rows that are read together."""


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Rows of one shard that follow each other: what a call costs is paid once for all of them."""

    shard: ShardView
    start: int
    """The first of them, counted in the shard."""
    stop: int
    first: int
    """The number of the first in the split."""
    tokenizer: Tokenizer
    row_weights: tuple[float, ...]
    paired: bool
    """Whether they are sides of preference pairs, two and two."""

    @property
    def table(self) -> NDArray[np.void]:
        """(R,) of ``ROW_DTYPE``."""
        assert self.shard.rows is not None, "the caller has looked"
        return np.asarray(self.shard.rows[self.start : self.stop])

    @property
    def spans(self) -> NDArray[np.void]:
        """(S,) of ``SPAN_DTYPE``; none where nobody recorded them."""
        if self.shard.spans is None:
            return np.empty(0, SPAN_DTYPE)
        first, last = np.searchsorted(self.shard.spans["conversation"], (self.start, self.stop))
        return np.asarray(self.shard.spans[first:last])


def blocks(dataset: Dataset, split: Split) -> Iterator[RowBlock]:
    """Yield all rows of a split in order; its shards must record where rows end."""
    first, manifest = 0, dataset.manifest
    for shard in dataset.shards(split):
        n_rows = shard.record.n_rows
        for start in range(0, n_rows, BLOCK):
            stop = min(start + BLOCK, n_rows)
            yield RowBlock(
                shard, start, stop, first + start, dataset.tokenizer, manifest.row_weights,
                dataset.paired,
            )  # fmt: skip
        first += n_rows


def read_back(block: RowBlock) -> list[Row]:
    """Return the rows that spans and tokens tell of.

    Neighbouring parts of one kind come back as one; bytes that are no UTF-8 as U+FFFD.
    """
    table, spans, tokenizer = block.table, block.spans, block.tokenizer
    begin = int(table["start"][0])
    tokens = np.asarray(block.shard.tokens[begin : int(table["stop"][-1])])
    data = tokenizer.decode_bytes(tokens)
    offsets = np.append(0, np.cumsum(tokenizer.byte_sizes[tokens], dtype=np.int64))
    parts = table if block.shard.spans is None else spans
    edges = (offsets[(parts[name] - np.uint64(begin)).astype(np.int64)].tolist() for name in _EDGES)
    said = [data[a:b].decode(errors="replace") for a, b in zip(*edges, strict=True)]
    if block.shard.spans is None:
        return [Document(text, Origin(0, 1)) for text in said]
    # Plain lists: reading the fields of numpy's records one by one takes most of the time.
    turned = list(zip(*(spans[name].tolist() for name in LAYOUT), said, strict=True))
    rows = np.searchsorted(spans["conversation"], np.arange(block.start, block.stop + 1))
    said_of = _words(block.row_weights)
    forms = part_forms(tokenizer.template)
    prefixed = bool(tokenizer.vocabulary.prefix)
    found = [
        _row(turned[a:b], said_of, forms, prefixed=prefixed) for a, b in pairwise(rows.tolist())
    ]
    return with_sides(found) if block.paired else found


def _words(row_weights: tuple[float, ...]) -> dict[int, Train]:
    """Return what ``train`` of a span stands for."""
    numbered = {int(np.uint8(n).view(np.int8)): weight for n, weight in enumerate(row_weights, 2)}
    return {-1: None, 0: False, 1: True} | numbered


def _row(
    spans: list[tuple[int, int, int, int, str]],
    said_of: dict[int, Train],
    forms: dict[PartKind, PartForm | None],
    *,
    prefixed: bool,
) -> Row:
    """Return a row from role, kind, turn, train and text of its spans."""
    origin = Origin(0, 1)
    if not spans or spans[0][0] == ROLE["text"]:
        texts = [text for _, kind, _, _, text in spans if kind in PARTS]
        said = "".join(text.removeprefix(" ") if prefixed else text for text in texts)
        return Document(said, origin, said_of[spans[0][3]] if spans else None)
    turns: dict[int, tuple[int, list[Train], list[Part]]] = {}
    for role, kind, turn, train, said in spans:
        _, whole, parts = turns.setdefault(turn, (role, [], []))
        if kind not in PARTS:
            whole.append(said_of[train])
            continue
        form = forms.get(PARTS[kind]) if forms else None
        if form is not None:
            said = said.removeprefix(form.open).removesuffix(form.close)
        parts.append(Part(PARTS[kind], said, said_of[train]))
    messages = (
        _message(cast(Role, ROLES[role]), whole, parts) for role, whole, parts in turns.values()
    )
    return Conversation(tuple(messages), origin)


def _message(role: Role, whole: list[Train], parts: list[Part]) -> Message:
    """Return a turn; what its header and end say, or all its parts, is the turn's own word."""
    said = set(whole) or {part.train for part in parts}
    train = said.pop() if len(said) == 1 else None
    same = train is not None
    kept = (replace(p, train=None) if same and p.train == train else p for p in parts)
    return Message(role, tuple(kept) or (Part("text", ""),), train)
