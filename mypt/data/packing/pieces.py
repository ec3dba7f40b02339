"""What of each row is read when a block holds only so many tokens, and what is lost by that.

A piece of n tokens fills n - 1 places of a packed row: its last token is a target and never an
input, so a block of T places holds a piece of T + 1 tokens.

The five tokens of :mod:`mypt.data.preparation.encoding` are one piece of a block of 4 places.
One of 3 parts question and answer (``split``) or leaves both out (``drop``): the last number
is 0 for a piece, 1 for tokens that are too many.

>>> (shard,) = dataset.shards("train")
>>> cut_rows(shard.rows, shard.spans, 4, "split")[["start", "stop", "fate"]].tolist()
[(0, 5, 0)]
>>> cut_rows(shard.rows, shard.spans, 3, "split")[["start", "stop", "fate"]].tolist()
[(0, 3, 0), (3, 5, 0)]
>>> cut_rows(shard.rows, shard.spans, 3, "drop")[["start", "stop", "fate"]].tolist()
[(0, 5, 1)]
"""

from collections.abc import Callable
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mypt.data.spans import KIND, ROLE

LengthPolicy = Literal["split", "keep_system", "drop", "keep_last_turns", "error"]
Ints = NDArray[np.int64]
Count = Callable[[Ints, Ints], Ints]

PIECE: Final = 0
TOO_LONG: Final = 1
EARLIER: Final = 2
CUT: Final = 3

STRETCH_DTYPE: Final = np.dtype(
    [("row", "<i8"), ("start", "<i8"), ("stop", "<i8"), ("context", "<i8"), ("fate", "u1"),
     ("system", "<i8")]
)  # fmt: skip
"""A stretch of one row and its fate. Stretches tile the rows. ``context`` is 1 where the piece
also reads the token before its start, which is then an input but not counted here; ``system`` is
how many tokens of the row's beginning the piece reads again before its own."""


def cut_rows(
    rows: NDArray[np.void],
    spans: NDArray[np.void],
    block_size: int,
    policy: LengthPolicy,
    *,
    pairs: bool = False,
) -> NDArray[np.void]:
    """Say what becomes of every token of a shard: rows that fit stay whole.

    Of a longer row, ``drop`` keeps nothing; ``keep_last_turns`` keeps as many whole turns at
    its end as fit; ``split`` makes several pieces, each beginning with a turn, if possible one
    that begins an exchange, so that an answer keeps its question; ``keep_system`` does the same
    and lets each piece begin with the row's system message, where that leaves it half of the
    block. A turn that is longer than its room loses its tail. Plain text has no turns and is
    divided without loss.

    Args:
        rows: (R,) of ROW_DTYPE.
        spans: (S,) of SPAN_DTYPE, tiling the same tokens.
        block_size: Places of a packed row.
        policy: One of the above; ``error`` is for the caller to refuse, and drops here.
        pairs: Rows stand in twos, which must fit together, for ``drop`` and ``error``.

    Returns:
        (N,) of STRETCH_DTYPE in reading order.
    """
    start, stop = rows["start"].astype(np.int64), rows["stop"].astype(np.int64)
    places = stop - start - 1
    long = (in_twos(places, np.add) if pairs else places) > block_size
    first_span = np.searchsorted(spans["start"], rows["start"])
    text = spans["role"][np.minimum(first_span, max(len(spans) - 1, 0))] == ROLE["text"]
    number = np.arange(len(rows))
    parts = [_stretches(number[~long], start[~long], stop[~long])]
    if policy in ("drop", "error"):
        parts.append(_stretches(number[long], start[long], stop[long], fate=TOO_LONG))
    elif policy in ("split", "keep_system"):
        texts, talks = long & text, long & ~text
        parts.append(_split_text(number[texts], start[texts], stop[texts], block_size))
        if talks.any():
            at = (number[talks], start[talks], stop[talks])
            parts += _split_turns(*at, spans, block_size, keep_system=policy == "keep_system")
    elif long.any():
        parts += _last_turns(number[long], start[long], stop[long], spans, block_size)
    whole = np.concatenate(parts)
    return whole[np.argsort(whole["start"], kind="stable")]


def in_twos(values: Ints, combine: np.ufunc) -> Ints:
    """Return (R,): of each row of a shard of pairs, what both of its pair have together."""
    return np.repeat(combine(values[::2], values[1::2]), 2)


def learnable(stretches: NDArray[np.void], count: Count) -> Ints:
    """Return how many supervised tokens of each stretch would be targets: all but a first one.

    Where the system message is read before it, the first one is a target too.

    Args:
        stretches: (N,) of STRETCH_DTYPE.
        count: Gives the number of supervised tokens between two arrays of places.
    """
    follows = np.maximum(stretches["context"], stretches["system"] > 0)
    return count(stretches["start"] + 1 - follows, stretches["stop"])


def count_cut_stops(stretches: NDArray[np.void], spans: NDArray[np.void], count: Count) -> int:
    """Return how many turns lost their supervised stop token; none is invented for them."""
    cut = stretches[stretches["fate"] == CUT]
    stops = spans["stop"][spans["kind"] == KIND["end"]].astype(np.int64) - 1
    stops = stops[count(stops, stops + 1) > 0]
    inside = np.searchsorted(stops, cut["stop"]) - np.searchsorted(stops, cut["start"])
    return int(inside.sum())


def count_lone_answers(stretches: NDArray[np.void], spans: NDArray[np.void]) -> int:
    """Return how many pieces begin with an answer, because its question did not fit beside it.

    Args:
        stretches: (N,) of STRETCH_DTYPE, tiling their rows.
        spans: (S,) of SPAN_DTYPE.
    """
    inner = np.zeros(len(stretches), dtype=bool)
    inner[1:] = stretches["row"][1:] == stretches["row"][:-1]
    inner &= (stretches["fate"] == PIECE) & (stretches["context"] == 0)
    first = np.searchsorted(spans["start"], stretches["start"][inner].astype(np.uint64))
    return int((spans["role"][first] == ROLE["assistant"]).sum())


def count_lost_systems(stretches: NDArray[np.void], spans: NDArray[np.void]) -> int:
    """Return how many pieces are read without the system message of their row.

    Args:
        stretches: (N,) of STRETCH_DTYPE, tiling their rows.
        spans: (S,) of SPAN_DTYPE.
    """
    first = np.ones(len(stretches), dtype=bool)
    first[1:] = stretches["row"][1:] != stretches["row"][:-1]
    begins = stretches["start"][first].astype(np.uint64)
    under = spans["role"][np.searchsorted(spans["start"], begins)] == ROLE["system"]
    later = (stretches["fate"] == PIECE) & ~first & (stretches["system"] == 0)
    return int((later & under[np.cumsum(first) - 1]).sum())


def _stretches(
    row: Ints,
    start: Ints,
    stop: Ints,
    context: Ints | int = 0,
    fate: int = PIECE,
    system: Ints | int = 0,
) -> NDArray[np.void]:
    made = np.empty(len(row), STRETCH_DTYPE)
    made["row"], made["start"], made["stop"] = row, start, stop
    made["context"], made["fate"], made["system"] = context, fate, system
    return made


def _cut_tails(
    row: Ints, start: Ints, stop: Ints, block_size: int, system: Ints | int = 0
) -> list[NDArray[np.void]]:
    kept = np.minimum(stop, start + block_size + 1 - system)
    cut = kept < stop
    return [
        _stretches(row, start, kept, system=system),
        _stretches(row[cut], kept[cut], stop[cut], fate=CUT),
    ]


def _split_text(row: Ints, start: Ints, stop: Ints, block_size: int) -> NDArray[np.void]:
    n = -(-(stop - start - 1) // block_size)
    index = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    # Each piece but the first begins on the last target of the one before it, so that every
    # token but the row's first is a target once.
    context = (index > 0).astype(np.int64)
    begin = np.repeat(start, n) + index * block_size + context
    end = np.minimum(np.repeat(stop, n), begin - context + block_size + 1)
    return _stretches(np.repeat(row, n), begin, end, context)


def _split_turns(
    row: Ints,
    start: Ints,
    stop: Ints,
    spans: NDArray[np.void],
    block_size: int,
    *,
    keep_system: bool,
) -> list[NDArray[np.void]]:
    turns, opens_exchange = _turns(start, stop, spans)
    first, end = np.searchsorted(turns, start), np.searchsorted(turns, stop)
    turn_stop = np.append(turns[1:], 0)
    turn_stop[end - 1] = stop
    owner_end = np.repeat(end, end - first)
    here = np.arange(len(turns))
    systems = np.zeros_like(row)
    if keep_system:
        systems = _systems(start, turns, turn_stop, spans, block_size)
    again = np.where(here == np.repeat(first, end - first), 0, np.repeat(systems, end - first))
    # The first turn that does not fit behind a piece that begins here, or rather the last
    # exchange that opens before it.
    following = np.searchsorted(turn_stop, turns + block_size + 1 - again, side="right")
    following = np.clip(following, here + 1, owner_end)
    opened = np.maximum.accumulate(np.append(np.where(opens_exchange, here, 0), 0))[following]
    following = np.where((opened > here) & (following < owner_end), opened, following)
    begins = np.zeros(len(turns), dtype=bool)
    place, limit = first, end
    while len(place):
        begins[place] = True
        place = following[place]
        place, limit = place[place < limit], limit[place < limit]
    begin = turns[begins]
    owner = np.searchsorted(start, begin, side="right") - 1
    until = np.minimum(np.append(begin[1:], stop[-1:]), stop[owner])
    return _cut_tails(row[owner], begin, until, block_size, again[begins])


def _systems(
    start: Ints, turns: Ints, turn_stop: Ints, spans: NDArray[np.void], block_size: int
) -> Ints:
    """Return how many tokens of each row's system message its later pieces begin with."""
    role = spans["role"][np.searchsorted(spans["start"], start.astype(np.uint64))]
    size = turn_stop[np.searchsorted(turns, start)] - start
    return np.where((role == ROLE["system"]) & (2 * size <= block_size), size, 0)


def _last_turns(
    row: Ints, start: Ints, stop: Ints, spans: NDArray[np.void], block_size: int
) -> list[NDArray[np.void]]:
    turns, _ = _turns(start, stop, spans)
    last = np.searchsorted(turns, stop) - 1
    chosen = np.searchsorted(turns, stop - block_size - 1)
    begin = turns[np.minimum(chosen, last)]
    later = begin > start
    earlier = _stretches(row[later], start[later], begin[later], fate=EARLIER)
    return [earlier, *_cut_tails(row, begin, stop, block_size)]


def _turns(start: Ints, stop: Ints, spans: NDArray[np.void]) -> tuple[Ints, NDArray[np.bool_]]:
    """Return where the turns of the given rows begin, and which of them open an exchange."""
    place = spans["start"].astype(np.int64)
    owner = np.searchsorted(start, place, side="right") - 1
    inside = (owner >= 0) & (place < stop[np.maximum(owner, 0)])
    place, chosen = place[inside], spans[inside]
    new = np.ones(len(chosen), dtype=bool)
    new[1:] = (chosen["conversation"][1:] != chosen["conversation"][:-1]) | (
        chosen["message"][1:] != chosen["message"][:-1]
    )
    answers = chosen["role"][new] == ROLE["assistant"]
    opens = np.ones(len(answers), dtype=bool)
    opens[1:] = ~answers[1:] & answers[:-1]
    opens |= np.isin(place[new], start)
    return place[new], opens
