"""Where a batch comes from, and what its mask should be: derived anew, without the loader.

Tokens, spans and rows are read from their files here once more, what is to be supervised is
taken from the laws, and each piece of a batch is looked for in the tokens by its content. No
index, shift or mask of the loader is trusted.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mypt.config import MaskPolicy
from mypt.data.manifest import Shard
from mypt.data.spans import KIND, ROLE
from mypt.errors import MaskError
from mypt.inspection.checks.masks import wanted_weights
from mypt.training.loader import Batch

MOST_HITS = 1000
"""Places that are tried for one piece: the same tokens may stand in many rows."""
_TOKEN = np.dtype("<u4")


@dataclass(frozen=True)
class Truth:
    """One shard as its files and the policy have it; N tokens."""

    folder: Path
    shard: Shard
    policy: MaskPolicy | None
    """None where the masks were made by hand: then the mask file itself is the truth."""
    source: str = ""
    row_weights: tuple[float, ...] = ()

    @property
    def tokens(self) -> NDArray[np.uint32]:
        """(N,) ids."""
        return np.fromfile(self.folder / self.shard.tokens.name, _TOKEN)

    @cached_property
    def wanted(self) -> NDArray[np.float32]:
        """(N,) how much the token is to weigh; 0 where it is not to be supervised."""
        if self._spans is not None and self.policy is not None:
            weights = wanted_weights(self._spans, self.policy, self.source, self.row_weights)
            return self._by_span(self._spans, weights).astype(np.float32)
        if self.shard.mask is None:
            raise MaskError(f"{self.shard.tokens.name} has no mask; make one with 'mypt mask'")
        return np.fromfile(self.folder / self.shard.mask.name, np.uint8).astype(np.float32)

    @cached_property
    def kind(self) -> NDArray[np.uint8]:
        """(N,) index into KINDS; content where nobody recorded spans."""
        if self._spans is None:
            return np.full(self.shard.n_tokens, KIND["content"], np.uint8)
        return self._by_span(self._spans, self._spans["kind"]).astype(np.uint8)

    @cached_property
    def row_stops(self) -> NDArray[np.int64] | None:
        """(R,) where rows end; None where nobody recorded rows."""
        if self.shard.rows is None:
            return None
        rows: NDArray[np.void] = np.load(self.folder / self.shard.rows.name)
        return rows["stop"].astype(np.int64)

    @cached_property
    def systems(self) -> NDArray[np.int64]:
        """(R, 2) start and stop of the system message that each row begins with, if it does."""
        spans, stops = self._spans, self.row_stops
        if spans is None or stops is None:
            return np.empty((0, 2), np.int64)
        begins = np.append(0, stops[:-1])
        first = (spans["role"] == ROLE["system"]) & (spans["message"] == 0)
        ends = np.array(begins)
        owner = np.searchsorted(begins, spans["start"][first].astype(np.int64), side="right") - 1
        np.maximum.at(ends, owner, spans["stop"][first].astype(np.int64))
        return np.stack([begins, ends], axis=1)

    def find(self, tokens: NDArray[np.int64]) -> Iterator[int]:
        """Yield where ``tokens`` stand in the shard, at most MOST_HITS places."""
        wanted, at = tokens.astype(_TOKEN).tobytes(), -1
        with (
            (self.folder / self.shard.tokens.name).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as everything,
        ):
            for _ in range(MOST_HITS):
                at = everything.find(wanted, at + 1)
                if at < 0:
                    return
                if at % _TOKEN.itemsize == 0:
                    yield at // _TOKEN.itemsize

    def in_one_row(self, start: int, stop: int) -> bool:
        """Return whether the tokens [start, stop) belong to one row."""
        if self.row_stops is None:
            return True
        row = np.searchsorted(self.row_stops, [start, stop - 1], side="right")
        return bool(row[0] == row[1])

    @cached_property
    def _spans(self) -> NDArray[np.void] | None:
        if self.shard.spans is None:
            return None
        spans: NDArray[np.void] = np.load(self.folder / self.shard.spans.name)
        return spans

    @staticmethod
    def _by_span(spans: NDArray[np.void], values: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(values, (spans["stop"] - spans["start"]).astype(np.int64))


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of places of one batch row that belong together; n places."""

    row: int
    first: int
    """The run's first place in its row."""
    tokens: NDArray[np.int64]
    """(n + 1,) the inputs and, behind them, the last target."""
    targets: NDArray[np.int64]
    """(n,)."""
    loss_mask: NDArray[np.float32]
    """(n,)."""
    positions: NDArray[np.int64] | None
    """(n,) or None where they count along the row."""

    @property
    def chained(self) -> bool:
        """Whether each target is the next input: shifted by one, neither twice nor never."""
        return bool(np.array_equal(self.targets[:-1], self.tokens[1:-1]))

    def __str__(self) -> str:
        return f"row {self.row}, places {self.first} to {self.first + len(self.targets) - 1}"


def pieces_of(batch: Batch) -> Iterator[Piece]:
    """Yield the pieces of a batch; padding is none."""
    inputs, targets = batch.input_ids.numpy(), batch.targets.numpy()
    mask = np.ones_like(inputs) if batch.loss_mask is None else batch.loss_mask.numpy()
    segments = np.zeros_like(inputs) if batch.segments is None else batch.segments.numpy()
    positions = None if batch.positions is None else batch.positions.numpy()
    for row, numbers in enumerate(segments):
        edges = np.flatnonzero(np.diff(numbers)) + 1
        for places in np.split(np.arange(len(numbers)), edges):
            if numbers[places[0]] >= 0:
                yield Piece(
                    row=row,
                    first=int(places[0]),
                    tokens=np.append(inputs[row][places], targets[row][places[-1]]),
                    targets=targets[row][places],
                    loss_mask=mask[row][places].astype(np.float32),
                    positions=None if positions is None else positions[row][places],
                )


@dataclass(frozen=True, slots=True)
class Match:
    """What a piece is in the dataset, as far as it could be found."""

    found: bool
    """Whether its tokens stand in the dataset one after the other, in one row if packed."""
    wanted: NDArray[np.float32]
    """(n,) what its mask should be at the place that fits best; empty if it was not found."""
    kind: NDArray[np.uint8]
    """(n,) the kinds of its targets there."""


def match(piece: Piece, truths: list[Truth], one_row: bool) -> Match:
    """Look for a piece in the dataset; of several places one whose mask fits, if there is one."""
    best = Match(False, np.empty(0, np.float32), np.empty(0, np.uint8))
    for truth in truths:
        for start in truth.find(piece.tokens):
            stop = start + len(piece.tokens)
            if one_row and not truth.in_one_row(start, stop):
                continue
            best = Match(True, truth.wanted[start + 1 : stop], truth.kind[start + 1 : stop])
            if np.array_equal(best.wanted, piece.loss_mask):
                return best
    if one_row and not best.found:
        return next(filter(None, (_match_below_system(piece, truth) for truth in truths)), best)
    return best


def _match_below_system(piece: Piece, truth: Truth) -> Match | None:
    """Look for a piece that begins with its row's system message, and goes on later in the row."""
    for size in np.unique(truth.systems[:, 1] - truth.systems[:, 0]).tolist():
        if not 0 < size < len(piece.tokens):
            continue
        for start in truth.find(piece.tokens[size:]):
            stop = start + len(piece.tokens) - size
            row = np.searchsorted(truth.systems[:, 0], start, side="right") - 1
            first, last = truth.systems[row].tolist()
            if not truth.in_one_row(first, stop) or last - first != size or start < last:
                continue
            if np.array_equal(truth.tokens[first:last], piece.tokens[:size]):
                wanted = np.append(np.zeros(size - 1, np.float32), truth.wanted[start:stop])
                kinds = np.append(truth.kind[first + 1 : last], truth.kind[start:stop])
                return Match(True, wanted, kinds)
    return None
