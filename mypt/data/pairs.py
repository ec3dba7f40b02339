"""Preference pairs: a prompt with a better and a worse answer, as two conversations.

They stand side by side wherever they are, the chosen one first: in a list of rows, in a shard and
in a packed row, so that no table says who belongs to whom. What they share is the first half of
their digests, the pair's id.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, pairwise
from typing import Final, Literal

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from mypt.data.conversations import Conversation, Message, Row, Side

SIDES: Final[tuple[Literal["chosen"], Literal["rejected"]]] = ("chosen", "rejected")
"""The rows of a pair, in order."""
ID_BYTES: Final = 8
"""Of a row's digest, at its beginning."""
ORPHANED = "the other side of a pair of which one side was left out"


def n_shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """Return how many messages both sides begin with: their prompt."""
    both = zip(chosen, rejected, strict=False)
    return next((n for n, (a, b) in enumerate(both) if a != b), min(len(chosen), len(rejected)))


def with_pair_ids(rows: Sequence[Row], digests: Sequence[bytes]) -> list[bytes]:
    """Return the digests of rows, those of both sides of a pair beginning with its id.

    Its first half is the prompt's, so that pairs of one prompt never cross from train to val; the
    other half tells them apart.

    Args:
        rows: Sides of pairs stand side by side; one that stands alone keeps its own digest.
        digests: 16 bytes each, of what the row says.
    """
    found = list(digests)
    for i, (row, other) in enumerate(pairwise(rows)):
        if not isinstance(row, Conversation) or not isinstance(other, Conversation):
            continue
        if (row.side, other.side) == SIDES:
            prompt = row.messages[: n_shared(row.messages, other.messages)]
            half = ID_BYTES // 2
            id = blake3(repr(prompt).encode()).digest(half)
            id += blake3(digests[i] + digests[i + 1]).digest(half)
            found[i : i + 2] = [id + digest[ID_BYTES:] for digest in digests[i : i + 2]]
    return found


def with_sides(rows: Sequence[Row]) -> list[Row]:
    """Return rows that stand in twos as the sides of pairs, the first as the chosen one."""
    sides: cycle[Side] = cycle(SIDES)
    both = zip(rows, sides, strict=False)
    return [replace(row, side=s) if isinstance(row, Conversation) else row for row, s in both]


def is_chosen(row: Row) -> bool:
    """Whether the row behind this one is its other side."""
    return isinstance(row, Conversation) and row.side == "chosen"


def in_pairs(rows: Sequence[Row], kept: Sequence[Row], dropped: Counter[str]) -> list[Row]:
    """Return those of ``kept`` whose other side was kept too, and all that are no pair.

    Args:
        rows: All of them, sides of pairs side by side.
        kept: Some of the same objects; all of them where none is left out of a pair.
        dropped: Counts those that are left alone.
    """
    if len(kept) == len(rows) or not any(map(is_chosen, rows)):
        return list(kept)
    there = set(map(id, kept))
    whole = [row for i, row in enumerate(rows) if {id(row), id(rows[i ^ 1])} <= there]
    dropped[ORPHANED] += len(kept) - len(whole)
    return whole


def prompt_sizes(spans: NDArray[np.void], n_rows: int) -> NDArray[np.int64]:
    """Return (R,) how many tokens each row of a shard of pairs has before its answer.

    Args:
        spans: (S,) of ``SPAN_DTYPE``, each row's beginning with context.
        n_rows: R.
    """
    answer = spans["train"] != 0
    row = spans["conversation"].astype(np.int64)
    sizes = np.where(answer, 0, spans["stop"] - spans["start"]).astype(np.int64)
    behind = np.cumsum(answer)
    before_row = np.concatenate([[0], behind])[np.searchsorted(row, row)]
    sizes[behind > before_row] = 0  # context of an answer of several turns, such as a tool's result
    return np.bincount(row, sizes, minlength=n_rows).astype(np.int64)


def unpaired(rows: NDArray[np.void]) -> NDArray[np.int64]:
    """Return which rows of a shard of pairs do not share a pair id with their other side.

    Args:
        rows: (R,) of ``ROW_DTYPE``.
    """
    ids = np.ascontiguousarray(rows["digest"]).view("<u8")[::2]
    other = np.arange(len(rows)) ^ 1
    there = other < len(rows)
    return np.flatnonzero(~there | (ids != ids[np.where(there, other, 0)]))
