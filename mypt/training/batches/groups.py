"""Of what a loss is made: which source, class and role each supervised token of a batch belongs to.

Spans say it, and only those that a batch reads are looked at. It is the host's work, done while a
device computes (DESIGN.md D96).
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mypt.data.shards import ShardView, TokenRange
from mypt.data.spans import KIND, KINDS, ROLE, ROLES

CLASSES: Final = (
    "answer content",
    "first token",
    "stop",
    "tool call",
    "reasoning",
    "text",
    "other",
)
"""``first token`` is what a turn begins with; ``text`` is plain text, ``other`` where nobody
recorded spans or a person's own words are supervised."""
CLASS: Final = {name: index for index, name in enumerate(CLASSES)}
_OF_KIND: Final = {
    "content": "answer content", "end": "stop", "reasoning": "reasoning",
    "tool_call": "tool call", "failed_call": "tool call", "cite": "answer content",
}  # fmt: skip


class GroupLoss(NamedTuple):
    """The supervised tokens of one group."""

    loss: float
    """Mean, as the loss that it is a part of."""
    weight: float
    """How many they are, or the sum of their weights: by it, groups add up to the whole."""


Groups = dict[str, dict[str, GroupLoss]]
"""By source, class and role; groups without a token are left out."""


def _table(default: int, assistants: dict[str, int]) -> NDArray[np.uint8]:
    found = np.full((len(ROLES), len(KINDS)), default, np.uint8)
    for kind, value in assistants.items():
        found[ROLE["assistant"], KIND[kind]] = value
    return found


_CLASS_OF: Final = _table(CLASS["other"], {kind: CLASS[name] for kind, name in _OF_KIND.items()})
_CLASS_OF[ROLE["text"]] = CLASS["text"]
_WRITTEN: Final = _table(0, dict.fromkeys(set(KINDS) - {"header", "end"}, 1)).astype(np.bool_)


def classes_of(spans: NDArray[np.void]) -> NDArray[np.uint8]:
    """Return (S,) the class of each span's tokens, but of a turn's first."""
    found: NDArray[np.uint8] = _CLASS_OF[spans["role"], spans["kind"]]
    return found


def begins_turn(spans: NDArray[np.void], kind_before: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return (S,) whether a span's first token is the first that the assistant writes in its turn.

    Args:
        spans: (S,) of ``SPAN_DTYPE``.
        kind_before: (S,) the kind of the span before each in its shard.
    """
    found: NDArray[np.bool_] = _WRITTEN[spans["role"], spans["kind"]]
    found &= kind_before == KIND["header"]
    return found


class LossGroups:
    """Sums losses and weights by source, class and role; G combinations of the three."""

    def __init__(self, sources: Sequence[str]) -> None:
        """Take the names of the dataset's sources, in its order."""
        self._names = {"source": sources, "class": CLASSES, "role": ROLES}
        self._shape = tuple(map(len, self._names.values()))

    def none(self) -> NDArray[np.float64]:
        """Return (2, G): sums of no token."""
        return np.zeros((2, int(np.prod(self._shape))))

    def of(
        self, rows: list[list[TokenRange]], length: int, where: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return (N,) which of the G combinations each supervised token is of.

        Args:
            rows: What each row of the batch is made of.
            length: Places a row.
            where: (N,) the tokens' places in the flattened batch, ascending.
        """
        if not len(where):
            return where
        by_shard: dict[int, tuple[ShardView, list[tuple[int, int, int]]]] = {}
        for row, pieces in enumerate(rows):
            at = row * length
            for piece in pieces:
                shard, first, end, (begin, stop) = piece
                _, read = by_shard.setdefault(id(shard), (shard, []))
                # A piece's first token, be it the system message's, is no target.
                if begin < stop:
                    read.append((at, begin + 1, stop))
                    at += stop - begin - 1
                else:
                    first += 1
                read.append((at, first, end))
                at += end - first
        found = [self._runs(view, np.array(read)) for view, read in by_shard.values()]
        begins, cells, first_cells = (np.concatenate(part) for part in zip(*found, strict=True))
        order = begins.argsort(kind="stable")
        run = order[begins[order].searchsorted(where, side="right") - 1]
        chosen: NDArray[np.int64] = np.where(where == begins[run], first_cells[run], cells[run])
        return chosen

    def sums(
        self,
        cells: NDArray[np.int64],
        terms: ArrayLike,
        weights: ArrayLike | None,
    ) -> NDArray[np.float64]:
        """Return (2, G): the summed losses of each combination, and its weight.

        Args:
            cells: (N,) what :meth:`of` gave.
            terms: (N,) what each token adds to the loss.
            weights: (N,); None where each is 1.
        """
        size = int(np.prod(self._shape))
        found = np.bincount(cells, terms, size), np.bincount(cells, weights, size)
        return np.stack(found).astype(np.float64)

    def means(self, sums: NDArray[np.float64]) -> Groups:
        """Return the loss and weight of each source, each class and each role."""
        cube = sums.reshape(2, *self._shape)
        found: Groups = {}
        for axis, (by, names) in enumerate(self._names.items(), start=1):
            totals, weights = cube.sum(axis=tuple({1, 2, 3} - {axis}))
            found[by] = {
                name: GroupLoss(total / weight, weight)
                for name, total, weight in zip(
                    names, totals.tolist(), weights.tolist(), strict=True
                )
                if weight
            }
        return found

    def _runs(
        self, view: ShardView, read: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return where the runs of one span begin in the batch, and their tokens' combination.

        Args:
            view: A shard.
            read: (P, 3): place in the batch, first token and end of each stretch of it.

        Returns:
            (K,) places; (K,) combinations; (K,) the same for the token at that place.
        """
        place, start, stop = read[read[:, 1] < read[:, 2]].T
        source, (_, n_classes, n_roles) = view.record.source, self._shape
        if view.spans is None:
            cell = (source * n_classes + CLASS["other"]) * n_roles + ROLE["text"]
            return place, *[np.full(len(place), cell)] * 2
        spans = np.asarray(view.spans)  # a memory map's own indexing takes several times as long
        first, last = _span_at(spans["start"], np.concatenate([start, stop - 1])).reshape(2, -1)
        counts = last - first + 1
        of = np.repeat(np.arange(len(place)), counts)
        number = np.arange(len(of)) - np.repeat(counts.cumsum() - counts - first, counts)
        here = spans[number]
        within = here["start"].astype(np.int64) - start[of]
        begins = begins_turn(here, spans["kind"][np.maximum(number - 1, 0)]) & (within >= 0)
        klass = classes_of(here).astype(np.int64)
        cells = (source * n_classes + klass) * n_roles + here["role"]
        firsts = cells + n_roles * np.where(begins, CLASS["first token"] - klass, 0)
        return place[of] + np.maximum(within, 0), cells, firsts


def _span_at(starts: NDArray[np.uint64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which span holds each token: a bisection that copies no column of a shard's spans."""
    found, step = np.zeros(len(tokens), np.int64), 1 << len(starts).bit_length()
    wanted = tokens.astype(np.uint64)
    while step := step >> 1:
        probe = np.minimum(found + step, len(starts) - 1)
        found = np.where(starts[probe] <= wanted, probe, found)
    return found
