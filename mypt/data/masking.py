"""The loss mask from spans and a policy: a list of rules, applied to whole shards at once.

The first rule that fits a span decides it, so that the rule which is printed for a token and
the mask on disk cannot disagree: both are read from :func:`rules`. A rule gives a weight; a byte
of the mask is its index in the dataset's table of weights, which is (0, 1) where nothing is
weighed.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mypt.config import MaskPolicy
from mypt.data.spans import BY_POLICY, KIND, KINDS, ROLE, ROLES
from mypt.errors import MaskError

FIELDS: Final = {
    "role": ROLES,
    "kind": (*KINDS, "empty_reasoning"),
    "train": ("unset", "0", "1", "weight"),
    "last_turn": ("no", "yes"),
}
"""What a rule may look at, and the values each can have; ``train`` is the row's own wish,
``last_turn`` whether the span belongs to the last turn of the policy's roles, or last round."""
MOST_WEIGHTS: Final = 255
"""Distinct weights of a dataset, 0 among them."""

_BLOCK: Final = 1 << 15  # spans at a time: their columns stay in the processor's cache
_REFUSED: Final = 255  # no index of a weight
_CALLS: Final = ("tool_call", "failed_call")
_KIND_OF: Final = {"content": ("content",), "stop": ("end",), "reasoning": ("reasoning",),
                   "tool_calls": _CALLS, "context": ("context",), "cite": ("cite",)}  # fmt: skip
"""Which kinds of parts each word of a policy's weights means."""
_LEFT_OUT: Final = {"reasoning": "reasoning", "tool_calls": "tool calls",
                    "context": "quoted documents", "cite": "citations"}  # fmt: skip


class Rule(NamedTuple):
    """One line of the decision: if ``when`` holds, ``outcome`` is the token's weight."""

    when: tuple[tuple[str, tuple[str, ...]], ...]
    """Fields of :data:`FIELDS` and the values that fit; all must fit, none fits everything."""
    outcome: float | None
    """None refuses the row. A row's own weight multiplies it."""
    why: str

    def fits(self, values: dict[str, str]) -> bool:
        """Return whether the rule speaks about a span with these ``values``."""
        return all(values[field] in allowed for field, allowed in self.when)

    def __str__(self) -> str:
        """Return e.g. ``role=assistant & kind=end -> 0: the policy leaves ends out``."""
        conditions = [f"{field}={'|'.join(allowed)}" for field, allowed in self.when]
        outcome = "refused" if self.outcome is None else f"{self.outcome:g}"
        return f"{' & '.join(conditions) or 'otherwise'} -> {outcome}: {self.why}"


def rules(policy: MaskPolicy, source: str = "") -> tuple[Rule, ...]:
    """Return the rules of ``policy`` in the order in which they are tried.

    A row's own ``train`` stands in for the choice of role, turn and end; which kinds of parts
    are learned, and how much they weigh, stays the policy's. Source: laws 1 and 2; DESIGN.md D4.

    Args:
        policy: Whose tokens are supervised.
        source: Name of the source whose rows are masked, which the policy may weigh.
    """
    return tuple(_rules(policy, source))


def _rules(policy: MaskPolicy, source: str) -> Iterator[Rule]:
    yield Rule((("kind", ("header",)),), 0, "the program writes headers, not the model")
    asked = (("role", ("tool",)), ("train", ("1", "weight")))
    yield Rule(asked, None, "a tool's result is given to the model, never written by it")
    yield Rule((("role", ("tool",)),), 0, "a tool's result is context")
    yield Rule((("train", ("0",)),), 0, "the row says train: false")
    if policy.reasoning_above:
        yield Rule((("kind", ("empty_reasoning",)),), 0, "reasoning that says nothing is left out")
    for word, what in _LEFT_OUT.items():
        if not getattr(policy, word):
            yield Rule((("kind", _KIND_OF[word]),), 0, f"the policy leaves {what} out")
    if policy.skip_failed_calls:
        yield Rule((("kind", ("failed_call",)),), 0, "the policy leaves out a call that failed")
    for value, said in (("1", "train: true"), ("weight", "its own weight, which multiplies this")):
        yield from _weighed(policy, source, {"train": (value,)}, f"the row says {said}")
    if policy.text:
        yield from _weighed(policy, source, {"role": ("text",)}, "the policy supervises plain text")
    else:
        yield Rule((("role", ("text",)),), 0, "the policy leaves out plain text")
    context = tuple(role for role in ROLES if role not in (*policy.roles, "text", "tool"))
    if context:
        others = tuple(kind for kind in FIELDS["kind"] if kind != "context")
        named = (("kind", others),) if policy.context else ()
        yield Rule((("role", context), *named), 0, "the policy takes the role as context")
    if policy.last_turn_only or policy.last_round_only:
        what = "turn" if policy.last_turn_only else "round"
        yield Rule((("last_turn", ("no",)),), 0, f"the policy supervises the last {what} only")
    if not policy.end_of_turn:
        yield Rule((("kind", ("end",)),), 0, "the policy leaves out the token that ends a turn")
    if policy.context:
        quoted: dict[str, tuple[str, ...]] = {"kind": ("context",)}
        yield from _weighed(policy, source, quoted, "the policy supervises quoted documents")
    yield from _weighed(policy, source, {}, "the policy supervises the role")


def _weighed(
    policy: MaskPolicy, source: str, when: dict[str, tuple[str, ...]], why: str
) -> Iterator[Rule]:
    """Yield the rules of what is supervised: all weights that fit are multiplied."""
    weights = policy.weights
    always = [word for word in (f"source:{source}",) if word in weights]
    roles: list[str | None] = [r for r in when.get("role", ROLES) if r in weights]
    kinds = [
        word for word, own in _KIND_OF.items() if word in weights and own == when.get("kind", own)
    ]
    if not (roles and "role" in when):
        roles.append(None)
    for role, kind in itertools.product(roles, (*kinds, None)):
        words = [*always, *(word for word in (role, kind) if word)]
        found = when | ({"role": (role,)} if role else {})
        found |= {"kind": _KIND_OF[kind]} if kind else {}
        named = " times ".join(f"{word} {weights[word]:g}" for word in words)
        said = f"{why}, weighed {named}" if named else why
        yield Rule(tuple(found.items()), math.prod(weights[word] for word in words), said)


def weight_table(
    policy: MaskPolicy, sources: Iterable[str] = ("",), row_weights: Sequence[float] = ()
) -> tuple[float, ...]:
    """Return the weights that masks by a policy may hold, ascending; 0 is the first.

    Args:
        policy: Whose tokens are supervised.
        sources: Names of the dataset's sources.
        row_weights: What its rows say themselves, beside 0 and 1.

    Raises:
        MaskError: If there are more than :data:`MOST_WEIGHTS`.
    """
    found = {0.0}
    for source in sources:
        outcomes = _outcomes(policy, source, tuple(row_weights))
        found |= set(outcomes[~np.isnan(outcomes)].tolist())
    if len(found) > MOST_WEIGHTS:
        raise MaskError(
            f"the policy gives {len(found)} distinct weights, expected at most"
            f" {MOST_WEIGHTS}; round the weights of the rows, or weigh fewer parts"
        )
    return tuple(sorted(found))


def mask_from_spans(
    spans: NDArray[np.void],
    n_tokens: int,
    policy: MaskPolicy,
    *,
    source: str = "",
    row_weights: Sequence[float] = (),
    table: Sequence[float] | None = None,
    row_name: Callable[[int], str] = "row {}".format,
) -> NDArray[np.uint8]:
    """Return one byte a token: the index of its weight; 0 where the model does not learn it.

    A mask of zeros only is not refused here: a shard may hold nothing but context. Whoever
    sees the whole dataset refuses one that supervises nothing.

    Args:
        spans: (S,) of ``SPAN_DTYPE``, in the order of the tokens.
        n_tokens: Length of the shard, in tokens.
        policy: Whose tokens are supervised.
        source: Name of the shard's source.
        row_weights: The weights that ``train`` counts from 2 on.
        table: The dataset's weights; None takes :func:`weight_table` of this source alone.
        row_name: What errors call a row, given its index in the shard.

    Raises:
        MaskError: If the spans do not tile the shard, name an unknown role or kind, or a row
            wants a tool's result supervised.
    """
    if table is None:
        table = weight_table(policy, (source,), row_weights)
    outcomes = _outcomes(policy, source, tuple(row_weights))
    index = np.searchsorted(table, outcomes).astype(np.uint8)
    index[np.isnan(outcomes)] = _REFUSED
    mask = np.empty(n_tokens, dtype=np.uint8)
    done = 0
    for block in _blocks(spans["conversation"]):
        lengths = _lengths(spans[block], done, n_tokens)
        stop = done + int(lengths.sum())
        decided = _decide(spans[block], policy, index, row_name)
        mask[done:stop] = np.repeat(decided, lengths)
        done = stop
    if done != n_tokens:
        raise _not_tiled(done, n_tokens)
    return mask


def _blocks(rows: NDArray[np.uint32]) -> Iterator[slice]:
    """Cut spans, given their ``rows``, into blocks that hold whole rows."""
    first, size = 0, _BLOCK
    while first < len(rows):
        stop = first + size
        if stop < len(rows):
            stop = first + int(np.searchsorted(rows[first:stop], rows[stop]))
        if stop > first:
            yield slice(first, stop)
            first, size = stop, _BLOCK
        else:
            size *= 2  # one row is longer than the block


def _lengths(spans: NDArray[np.void], done: int, n_tokens: int) -> NDArray[np.int64]:
    start, stop = spans["start"].astype(np.int64), spans["stop"].astype(np.int64)
    lengths: NDArray[np.int64] = stop - start
    if start[0] != done or (start[1:] != stop[:-1]).any() or lengths.min() < 0:
        raise _not_tiled(done, n_tokens)
    if stop[-1] > n_tokens:
        raise _not_tiled(int(stop[-1]), n_tokens)
    return lengths


def _not_tiled(at: int, n_tokens: int) -> MaskError:
    return MaskError(
        f"spans do not tile the shard of {n_tokens} tokens: a gap, an overlap or a wrong end at or"
        f" after token {at}; they belong to other tokens, prepare the dataset again"
    )


def _decide(
    spans: NDArray[np.void],
    policy: MaskPolicy,
    index: NDArray[np.uint8],
    row_name: Callable[[int], str],
) -> NDArray[np.uint8]:
    every = not (policy.last_turn_only or policy.last_round_only)
    last = np.ones(len(spans), np.bool_) if every else last_turns(spans, policy)
    found = (spans["role"], spans["kind"], (spans["train"] - BY_POLICY).view(np.uint8), last)
    code = np.zeros(len(spans), dtype=np.uint16)
    n_kinds = len(FIELDS["kind"])
    sizes = [len(ROLES), len(KINDS), len(index) // (2 * len(ROLES) * n_kinds), 2]
    for field, size, strided in zip(FIELDS, sizes, found, strict=True):
        column = np.ascontiguousarray(strided)
        if column.max(initial=0) >= size:
            raise MaskError(
                f"spans: {field} number {column.max()}, expected 0 to {size - 1}; the spans"
                " are damaged, prepare the dataset again"
            )
        if field == "kind":
            size = n_kinds
            if policy.reasoning_above:
                column = np.where(is_empty(spans, policy), np.uint8(n_kinds - 1), column)
        code *= np.uint16(size)
        code += column
    outcome = index.take(code)
    if outcome.max(initial=0) == _REFUSED:
        span = spans[int(outcome.argmax())]
        raise MaskError(
            f"{row_name(int(span['conversation']))}, turn {span['message']}: train: true on a"
            " message of role 'tool'; a tool's result is never supervised, remove the mark"
        )
    return outcome


@functools.cache
def _outcomes(
    policy: MaskPolicy, source: str, row_weights: tuple[float, ...]
) -> NDArray[np.float64]:
    """Return the weight of each case of :data:`FIELDS`, nan where it is refused.

    What a row says of itself has a case for "unset", "0", "1" and each of ``row_weights``.
    """
    cases = (dict(zip(FIELDS, case, strict=True)) for case in itertools.product(*FIELDS.values()))
    firsts = [_first(policy, source, case).outcome for case in cases]
    given = [math.nan if outcome is None else outcome for outcome in firsts]
    by_field = np.array(given).reshape([len(values) for values in FIELDS.values()])
    plain, weighed = np.split(by_field, [3], axis=2)
    table = np.concatenate([plain, weighed * np.array(row_weights)[:, None]], axis=2).flatten()
    table.flags.writeable = False  # it is shared by all calls
    return table


def _first(policy: MaskPolicy, source: str, values: dict[str, str]) -> Rule:
    return next(rule for rule in rules(policy, source) if rule.fits(values))


def explain(span: np.void, policy: MaskPolicy, *, source: str = "", last_turn: bool = True) -> Rule:
    """Return the rule that decides the tokens of one span.

    Args:
        span: One item of ``SPAN_DTYPE``.
        policy: Whose tokens are supervised.
        source: Name of the shard's source.
        last_turn: What :func:`last_turns` says about the span.
    """
    train = min((int(span["train"]) - BY_POLICY) % 256, FIELDS["train"].index("weight"))
    kind = len(KINDS) if is_empty(span, policy) else int(span["kind"])
    row = (int(span["role"]), kind, train, int(last_turn))
    named = zip(FIELDS.items(), row, strict=True)
    return _first(policy, source, {field: values[index] for (field, values), index in named})


def is_empty(spans: NDArray[np.void] | np.void, policy: MaskPolicy) -> NDArray[np.bool_]:
    """Return which spans are reasoning that says nothing, by their length; (S,) or of one span."""
    short = spans["stop"] - spans["start"] <= np.uint64(policy.reasoning_above)
    found: NDArray[np.bool_] = (spans["kind"] == KIND["reasoning"]) & short
    found &= policy.reasoning_above > 0
    return found


def last_turns(spans: NDArray[np.void], policy: MaskPolicy) -> NDArray[np.bool_]:
    """Return which spans belong to the last turn of the policy's roles in their row, (S,).

    A turn is what shares ``message``; a turn of another role, though it comes later, is none.
    Of a policy of last rounds, return which belong to the question before the row's last answer or
    come after it; a row without a question is one round.
    """
    if policy.last_round_only:
        return _last_rounds(spans)
    wanted = np.zeros(256, dtype=np.bool_)
    wanted[[ROLE[role] for role in policy.roles]] = True
    found = wanted.take(spans["role"])
    chosen = np.flatnonzero(found)
    row = np.ascontiguousarray(spans["conversation"]).take(chosen)
    turn = np.ascontiguousarray(spans["message"]).take(chosen)
    ends = np.flatnonzero(np.append(row[1:] != row[:-1], chosen.size > 0))
    found[chosen] = turn == np.repeat(turn.take(ends), np.diff(ends, prepend=-1))
    return found


def _last_rounds(spans: NDArray[np.void]) -> NDArray[np.bool_]:
    row, turn, role = (
        np.ascontiguousarray(spans[name]) for name in ("conversation", "message", "role")
    )
    if not len(row):
        return role > 0
    first = np.flatnonzero(np.append(True, row[1:] != row[:-1]))
    stop = np.append(first[1:], len(row))
    answer = _last_up_to(stop - 1, role == ROLE["assistant"], first)
    asked = _last_up_to(answer, role == ROLE["user"], first)
    begin = np.where((answer < 0) | (asked < 0), 0, turn[asked])
    found: NDArray[np.bool_] = turn >= np.repeat(begin, stop - first)
    return found


def _last_up_to(
    place: NDArray[np.int64], wanted: NDArray[np.bool_], first: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return for each row its last wanted span up to ``place``; -1 where there is none."""
    places = np.append(-1, np.flatnonzero(wanted))
    found = places[np.cumsum(wanted, dtype=np.int32)[place]]  # quicker than a search for each row
    return np.where(found >= first, found, -1)
