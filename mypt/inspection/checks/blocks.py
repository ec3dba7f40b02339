"""Rows as their tokens and spans tell of them, many at a time: what a call costs is paid once."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from mypt.config import Role
from mypt.data.conversations import (
    WRITTEN_AS,
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
    KIND["content" if kind == "text" else kind]: kind for kind in WRITTEN_AS
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
        first, last = self.shard.span_edges((self.start, self.stop))
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
    columns = [*(spans[name].tolist() for name in LAYOUT), said]
    bounds = np.searchsorted(spans["conversation"], np.arange(block.start, block.stop + 1))
    said_of = _words(block.row_weights)
    forms = part_forms(tokenizer.template)
    prefixed = bool(tokenizer.vocabulary.prefix)
    plain = {} if forms.get("text") else _plain_turns(spans, bounds, said, said_of)
    found = [
        Conversation(plain[number], Origin(0, 1))
        if number in plain
        else _row(
            list(zip(*(column[a:b] for column in columns), strict=True)),
            said_of,
            forms,
            prefixed=prefixed,
        )
        for number, (a, b) in enumerate(pairwise(bounds.tolist()))
    ]
    return with_sides(found) if block.paired else found


def _plain_turns(
    spans: NDArray[np.void], edges: NDArray[np.int64], said: list[str], said_of: dict[int, Train]
) -> dict[int, tuple[Message, ...]]:
    """Return the turns of each conversation of nothing but plain turns, by the row's number.

    A plain turn has one part, a text, and one word on whether it is learned: nearly all have, and
    are told apart from the others without a look at each.

    Args:
        spans: (S,) of ``SPAN_DTYPE``, of rows that follow each other.
        edges: (R + 1,) where each row's spans begin.
        said: (S,) texts of the spans.
        said_of: What ``train`` of a span stands for.
    """
    n_rows = len(edges) - 1
    row = np.repeat(np.arange(n_rows), np.diff(edges))
    if not len(row):
        return {}
    step = np.diff(spans["message"].astype(np.int64), prepend=0)
    step[edges[:-1][np.diff(edges) > 0]] = 1
    begin = np.flatnonzero(step)
    first, text = spans[begin], spans["kind"] == KIND["content"]
    parts = np.isin(spans["kind"], list(PARTS))
    odd = np.add.reduceat(parts, begin, dtype=np.int64) != 1
    odd |= (
        ~np.logical_or.reduceat(text, begin) | (step[begin] < 0) | (first["role"] == ROLE["text"])
    )
    train = spans["train"]
    odd |= np.maximum.reduceat(train, begin) != np.minimum.reduceat(train, begin)
    n_turns = np.bincount(row[begin], minlength=n_rows)
    plain = (np.bincount(row[begin], odd, minlength=n_rows) == 0) & (n_turns > 0)
    chosen = first[plain[row[begin]]]
    where = np.flatnonzero(text & plain[row]).tolist()
    turns = [
        Message(cast(Role, ROLES[role]), (Part("text", said[at]),), said_of[word])
        for role, word, at in zip(
            chosen["role"].tolist(), chosen["train"].tolist(), where, strict=True
        )
    ]
    stops = np.cumsum(n_turns * plain)
    each = (np.flatnonzero(plain), stops[plain] - n_turns[plain], stops[plain])
    return {
        number: tuple(turns[start:stop])
        for number, start, stop in zip(*(column.tolist() for column in each), strict=True)
    }


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
