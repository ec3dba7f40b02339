"""What a block size keeps of a dataset and what it loses, to the token, by source and reason."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mypt.data.packing.pieces import (
    CUT,
    EARLIER,
    PIECE,
    TOO_LONG,
    Count,
    Ints,
    count_cut_stops,
    count_lone_answers,
    count_lost_systems,
)
from mypt.errors import DataError
from mypt.parsing import Frozen

LONGER = "longer than the block"
BEFORE = "before the last turns"
NOTHING = "nothing supervised"
FIRST = "first of its piece"
TAIL = "turn longer than the block"


class Lost(Frozen):
    """Tokens that no piece teaches, for one reason."""

    reason: str
    rows: int = 0
    """Rows of which nothing is left, for this reason."""
    stretches: int = 0
    """Stretches of tokens, of which a row may lose several."""
    tokens: int = 0
    supervised: int = 0
    """How many of ``tokens`` the mask supervises."""


class LengthAccount(Frozen):
    """The rows of one source of one split, at one block size under one policy.

    ``rows`` = ``rows_kept`` + the rows of ``dropped``; ``tokens`` = ``supervised`` +
    ``unsupervised`` + the tokens of ``dropped`` and of ``cut``, exactly.
    """

    source: str
    rows: int = 0
    rows_kept: int = 0
    """Rows of which at least one piece is learned."""
    tokens: int = 0
    supervised: int = 0
    """Tokens that are a target once an epoch."""
    unsupervised: int = 0
    """Tokens that are read and not learned."""
    dropped: tuple[Lost, ...] = ()
    cut: tuple[Lost, ...] = ()
    stops_cut: int = 0
    """Turns that lost their supervised stop token; none is invented for them."""
    lone_answers: int = 0
    """Answers that are learned without their question, which did not fit beside them."""
    lost_systems: int = 0
    """Pieces that are read without the system message of their conversation."""
    systems_repeated: int = 0
    """Pieces that begin with it again, unsupervised."""
    tokens_repeated: int = 0
    """Tokens of these, which are none of ``tokens``."""

    @property
    def supervised_in(self) -> int:
        """Supervised tokens of the source, learned or lost."""
        return self.supervised + sum(lost.supervised for lost in (*self.dropped, *self.cut))

    @property
    def lost_to_length(self) -> int:
        """Supervised tokens that would be learned if the block were long enough."""
        reasons = (LONGER, BEFORE, TAIL)
        found = (*self.dropped, *self.cut)
        return sum(lost.supervised for lost in found if lost.reason in reasons)


def account(
    source: str,
    n_rows: int,
    spans: NDArray[np.void],
    stretches: NDArray[np.void],
    targets: Ints,
    count: Count,
) -> LengthAccount:
    """Return the account of one shard.

    Args:
        source: Its source's name.
        n_rows: Its rows.
        spans: (S,) of SPAN_DTYPE.
        stretches: (N,) of STRETCH_DTYPE, tiling the rows.
        targets: (N,), what :func:`mypt.data.packing.pieces.learnable` says of them.
        count: Gives the number of supervised tokens between two arrays of places.
    """
    size = stretches["stop"] - stretches["start"]
    supervised = count(stretches["start"], stretches["stop"])
    fate = stretches["fate"]
    kept = (fate == PIECE) & (targets > 0)
    left = np.zeros(n_rows, dtype=bool)
    left[stretches["row"][kept]] = True

    def lost(reason: str, chosen: NDArray[np.bool_]) -> Lost:
        gone = np.unique(stretches["row"][chosen])
        return Lost(
            reason=reason,
            rows=int((~left[gone]).sum()) if reason in (LONGER, NOTHING) else 0,
            stretches=int(chosen.sum()),
            tokens=int(size[chosen].sum()),
            supervised=int(supervised[chosen].sum()),
        )

    first = int((supervised - targets)[kept].sum())
    dropped = (
        lost(LONGER, fate == TOO_LONG),
        lost(BEFORE, fate == EARLIER),
        lost(NOTHING, (fate == PIECE) & ~kept),
        Lost(reason=FIRST, stretches=first, tokens=first, supervised=first),
    )
    cut = (lost(TAIL, fate == CUT),)
    return LengthAccount(
        source=source,
        rows=n_rows,
        rows_kept=int(left.sum()),
        tokens=int(size.sum()),
        supervised=int(targets[kept].sum()),
        unsupervised=int((size - supervised)[kept].sum()),
        dropped=tuple(entry for entry in dropped if entry.tokens),
        cut=tuple(entry for entry in cut if entry.tokens),
        stops_cut=count_cut_stops(stretches, spans, count),
        lone_answers=count_lone_answers(stretches, spans),
        lost_systems=count_lost_systems(stretches, spans),
        systems_repeated=int((stretches["system"][kept] > 0).sum()),
        tokens_repeated=int(stretches["system"][kept].sum()),
    )


def merge(accounts: Iterable[LengthAccount], source: str) -> LengthAccount:
    """Return the sum of accounts under one name."""
    found = list(accounts)
    numbers = (
        "rows",
        "rows_kept",
        "tokens",
        "supervised",
        "unsupervised",
        "stops_cut",
        "lone_answers",
        "lost_systems",
        "systems_repeated",
        "tokens_repeated",
    )
    totals = {name: sum(getattr(entry, name) for entry in found) for name in numbers}
    dropped = _merge_lost(lost for entry in found for lost in entry.dropped)
    cut = _merge_lost(lost for entry in found for lost in entry.cut)
    return LengthAccount(source=source, dropped=dropped, cut=cut, **totals)


def check_budget(total: LengthAccount, max_lost: float, where: str) -> None:
    """Refuse a block size and policy that lose too much of what should be learned.

    Raises:
        DataError: If more than the share ``max_lost`` of the supervised tokens is lost.
    """
    lost, whole = total.lost_to_length, total.supervised_in
    if lost <= max_lost * whole:
        return
    reasons = ", ".join(
        f"{entry.reason}: {entry.supervised}"
        for entry in (*total.dropped, *total.cut)
        if entry.reason in (LONGER, BEFORE, TAIL)
    )
    raise DataError(
        f"{where} loses {lost} of {whole} supervised tokens ({lost / whole:.1%}; {reasons}),"
        f" max_lost allows {max_lost:.1%}; raise block_size, choose another length_policy, or"
        " raise max_lost"
    )


def _merge_lost(found: Iterable[Lost]) -> tuple[Lost, ...]:
    merged: dict[str, Lost] = {}
    for entry in found:
        before = merged.get(entry.reason, Lost(reason=entry.reason))
        merged[entry.reason] = Lost(
            reason=entry.reason,
            rows=before.rows + entry.rows,
            stretches=before.stretches + entry.stretches,
            tokens=before.tokens + entry.tokens,
            supervised=before.supervised + entry.supervised,
        )
    return tuple(merged.values())
