"""The loss mask from spans and a policy: a list of rules, applied to whole shards at once.

The first rule that fits a span decides it, so that the rule which is printed for a token and
the mask on disk cannot disagree: both are read from :func:`rules`.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mypt.config import MaskPolicy
from mypt.data.spans import BY_POLICY, KINDS, ROLE, ROLES
from mypt.errors import MaskError

FIELDS: Final = {
    "role": ROLES,
    "kind": KINDS,
    "train": ("unset", "0", "1"),
    "last_turn": ("no", "yes"),
}
"""What a rule may look at, and the values each can have; ``train`` is the row's own wish,
``last_turn`` whether the span belongs to the last turn of the policy's roles."""

_BLOCK: Final = 1 << 15  # spans at a time: their columns stay in the processor's cache
_OUTCOME: Final = {"0": 0, "1": 1, "refused": 2}


class Rule(NamedTuple):
    """One line of the decision: if ``when`` holds, ``outcome`` is the mask."""

    when: tuple[tuple[str, tuple[str, ...]], ...]
    """Fields of :data:`FIELDS` and the values that fit; all must fit, none fits everything."""
    outcome: Literal["0", "1", "refused"]
    why: str

    def fits(self, values: dict[str, str]) -> bool:
        """Return whether the rule speaks about a span with these ``values``."""
        return all(values[field] in allowed for field, allowed in self.when)

    def __str__(self) -> str:
        """Return e.g. ``role=assistant & kind=end -> 0: the policy leaves ends out``."""
        conditions = [f"{field}={'|'.join(allowed)}" for field, allowed in self.when]
        return f"{' & '.join(conditions) or 'otherwise'} -> {self.outcome}: {self.why}"


def rules(policy: MaskPolicy) -> tuple[Rule, ...]:
    """Return the rules of ``policy`` in the order in which they are tried.

    A row's own ``train`` stands in for the choice of role, turn and end; which kinds of parts
    are learned stays the policy's. Source: laws 1 and 2; DESIGN.md D4.
    """
    return tuple(_rules(policy))


def _rules(policy: MaskPolicy) -> Iterator[Rule]:
    yield Rule((("kind", ("header",)),), "0", "the program writes headers, not the model")
    asked = (("role", ("tool",)), ("train", ("1",)))
    yield Rule(asked, "refused", "a tool's result is given to the model, never written by it")
    yield Rule((("role", ("tool",)),), "0", "a tool's result is context")
    yield Rule((("train", ("0",)),), "0", "the row says train: false")
    if not policy.reasoning:
        yield Rule((("kind", ("reasoning",)),), "0", "the policy leaves reasoning out")
    if not policy.tool_calls:
        yield Rule((("kind", ("tool_call",)),), "0", "the policy leaves tool calls out")
    yield Rule((("train", ("1",)),), "1", "the row says train: true")
    text = "supervises" if policy.text else "leaves out"
    yield Rule((("role", ("text",)),), "1" if policy.text else "0", f"the policy {text} plain text")
    context = tuple(role for role in ROLES if role not in (*policy.roles, "text", "tool"))
    if context:
        yield Rule((("role", context),), "0", "the policy takes the role as context")
    if policy.last_turn_only:
        yield Rule((("last_turn", ("no",)),), "0", "the policy supervises the last turn only")
    if not policy.end_of_turn:
        yield Rule((("kind", ("end",)),), "0", "the policy leaves out the token that ends a turn")
    yield Rule((), "1", "the policy supervises the role")


def mask_from_spans(
    spans: NDArray[np.void],
    n_tokens: int,
    policy: MaskPolicy,
    *,
    row_name: Callable[[int], str] = "row {}".format,
) -> NDArray[np.uint8]:
    """Return one byte a token: 1 where the model learns to write the token, else 0.

    A mask of zeros only is not refused here: a shard may hold nothing but context. Whoever
    sees the whole dataset refuses one that supervises nothing.

    Args:
        spans: (S,) of ``SPAN_DTYPE``, in the order of the tokens.
        n_tokens: Length of the shard, in tokens.
        policy: Whose tokens are supervised.
        row_name: What errors call a row, given its index in the shard.

    Raises:
        MaskError: If the spans do not tile the shard, name an unknown role or kind, or a row
            wants a tool's result supervised.
    """
    mask = np.empty(n_tokens, dtype=np.uint8)
    done = 0
    for block in _blocks(spans["conversation"]):
        lengths = _lengths(spans[block], done, n_tokens)
        stop = done + int(lengths.sum())
        mask[done:stop] = np.repeat(_decide(spans[block], policy, row_name), lengths)
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
    spans: NDArray[np.void], policy: MaskPolicy, row_name: Callable[[int], str]
) -> NDArray[np.uint8]:
    last = last_turns(spans, policy) if policy.last_turn_only else np.ones(len(spans), np.bool_)
    found = (spans["role"], spans["kind"], (spans["train"] - BY_POLICY).view(np.uint8), last)
    code = np.zeros(len(spans), dtype=np.uint8)
    for (field, values), strided in zip(FIELDS.items(), found, strict=True):
        column = np.ascontiguousarray(strided)
        if column.max(initial=0) >= len(values):
            raise MaskError(
                f"spans: {field} number {column.max()}, expected 0 to {len(values) - 1}; the spans"
                " are damaged, prepare the dataset again"
            )
        code *= np.uint8(len(values))
        code += column
    outcome = _table(policy).take(code)
    if outcome.max(initial=0) == _OUTCOME["refused"]:
        span = spans[int(outcome.argmax())]
        raise MaskError(
            f"{row_name(int(span['conversation']))}, turn {span['message']}: train: true on a"
            " message of role 'tool'; a tool's result is never supervised, remove the mark"
        )
    return outcome


@functools.cache
def _table(policy: MaskPolicy) -> NDArray[np.uint8]:
    cases = (dict(zip(FIELDS, case, strict=True)) for case in itertools.product(*FIELDS.values()))
    table = np.array([_OUTCOME[_first(policy, case).outcome] for case in cases], dtype=np.uint8)
    table.flags.writeable = False  # it is shared by all calls
    return table


def _first(policy: MaskPolicy, values: dict[str, str]) -> Rule:
    return next(rule for rule in rules(policy) if rule.fits(values))


def explain(span: np.void, policy: MaskPolicy, *, last_turn: bool = True) -> Rule:
    """Return the rule that decides the tokens of one span.

    Args:
        span: One item of ``SPAN_DTYPE``.
        policy: Whose tokens are supervised.
        last_turn: What :func:`last_turns` says about the span.
    """
    row = (int(span["role"]), int(span["kind"]), int(span["train"]) - BY_POLICY, int(last_turn))
    named = zip(FIELDS.items(), row, strict=True)
    return _first(policy, {field: values[index] for (field, values), index in named})


def last_turns(spans: NDArray[np.void], policy: MaskPolicy) -> NDArray[np.bool_]:
    """Return which spans belong to the last turn of the policy's roles in their row, (S,).

    A turn is what shares ``message``; a turn of another role, though it comes later, is none.
    """
    wanted = np.zeros(256, dtype=np.bool_)
    wanted[[ROLE[role] for role in policy.roles]] = True
    found = wanted.take(spans["role"])
    chosen = np.flatnonzero(found)
    row = np.ascontiguousarray(spans["conversation"]).take(chosen)
    turn = np.ascontiguousarray(spans["message"]).take(chosen)
    ends = np.flatnonzero(np.append(row[1:] != row[:-1], chosen.size > 0))
    found[chosen] = turn == np.repeat(turn.take(ends), np.diff(ends, prepend=-1))
    return found
