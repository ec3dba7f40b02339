"""Whether masks keep the laws, each rule said once more and otherwise than in ``masking``.

The mask is compared with what :func:`mypt.data.masking.mask_from_spans` gives, and beside it
with the laws themselves, span by span: a fault in the masking code would be in both masks.
"""

import numpy as np
from numpy.typing import NDArray

from mypt.config import MaskPolicy
from mypt.data.conversations import WRITTEN_AS
from mypt.data.dataset import Dataset
from mypt.data.masking import mask_from_spans
from mypt.data.rendering.base_template import BaseTemplate
from mypt.data.spans import BY_POLICY, KIND, KINDS, ROLE, ROLES
from mypt.errors import MaskError
from mypt.inspection.checks.contents import ShardCheck
from mypt.inspection.checks.findings import EXAMPLES, Where

Booleans = NDArray[np.bool_]


def check_mask(check: ShardCheck) -> None:
    """Check one shard's mask, where it has one; its rows and spans must tile it."""
    record, spans, mask = check.dataset.manifest.mask, check.shard.spans, check.shard.mask
    if record is None or mask is None or not _check_values(check, mask, record.weights):
        return
    if spans is None or record.policy is None:
        _check_by_hand(check, mask)
        return
    manifest = check.dataset.manifest
    source = manifest.sources[check.shard.record.source].name
    wanted = wanted_weights(spans, record.policy, source, manifest.row_weights)
    _check_laws(check, spans, supervised_in(spans, mask), record.policy, wanted)
    _check_weights(check, mask, spans, wanted, record.weights)
    try:
        expected = mask_from_spans(
            spans,
            len(mask),
            record.policy,
            source=source,
            row_weights=manifest.row_weights,
            table=record.weights,
        )
    except MaskError as error:
        place = Where(split=check.split, where=check.shard.record.tokens.name, detail=str(error))
        check.findings.add("span_astray", place)
        return
    differs = np.flatnonzero(mask != expected)
    if len(differs):
        first = int(differs[0])
        detail = f"{mask[first]} found, {expected[first]} expected"
        check.findings.add("mask_differs", check.place_token(first, detail), len(differs))


def _check_values(check: ShardCheck, mask: NDArray[np.uint8], table: tuple[float, ...]) -> bool:
    most = len(table) - 1
    if mask.max(initial=0) <= most:
        return True
    wrong = np.flatnonzero(mask > most)
    place = check.place_token(int(wrong[0]), f"{mask[wrong[0]]} found, 0 to {most} expected")
    check.findings.add("mask_value", place, len(wrong))
    return False


def supervised_in(parts: NDArray[np.void], mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how many tokens of each part (spans or rows) are supervised."""
    before = np.zeros(len(mask) + 1, dtype=np.int64)
    np.cumsum(mask > 0, out=before[1:])
    counts: NDArray[np.int64] = before[parts["stop"]] - before[parts["start"]]
    return counts


def _check_by_hand(check: ShardCheck, mask: NDArray[np.uint8]) -> None:
    """Check in shards without spans what tokens alone can tell: headers are not learned."""
    headers = np.array(sorted(_header_ids(check.dataset)), dtype=np.uint32)
    wrong = np.flatnonzero(np.isin(check.shard.tokens, headers) & (mask > 0))
    if len(wrong):
        first = int(wrong[0])
        text = check.dataset.tokenizer.decode_part(check.shard.tokens[first : first + 1])
        check.findings.add("header_supervised", check.place_token(first, repr(text)), len(wrong))


def _header_ids(dataset: Dataset) -> set[int]:
    """Return the special tokens that open turns, as the template writes them."""
    template = dataset.tokenizer.template
    if isinstance(template, BaseTemplate):
        return set()  # they are the base's, and only a rendered row tells which are headers
    return {
        dataset.tokenizer.special_id(slot.special)
        for role in template.turns
        for opens in (True, False)
        for slot in template.form((role, opens, ()))
        if slot.special is not None and slot.kind == KIND["header"]
    }


def wanted_weights(
    spans: NDArray[np.void],
    policy: MaskPolicy,
    source: str = "",
    row_weights: tuple[float, ...] = (),
) -> NDArray[np.float64]:
    """Return how much the tokens of each span are to weigh, from the laws and not ``masking``."""
    role, kind, train = spans["role"], spans["kind"], spans["train"].astype(np.uint8)
    found = np.where(_wanted(spans, policy), policy.weights.get(f"source:{source}", 1.0), 0.0)
    for number, name in enumerate(ROLES):
        found[role == number] *= policy.weights.get(name, 1.0)
    for name, word in {"content": "content", "end": "stop", "reasoning": "reasoning",
                       "tool_call": "tool_calls", "failed_call": "tool_calls",
                       "context": "context", "cite": "cite"}.items():  # fmt: skip
        found[kind == KIND[name]] *= policy.weights.get(word, 1.0)
    for number, weight in enumerate(row_weights):
        found[train == 2 + number] *= weight
    return found


def _wanted(spans: NDArray[np.void], policy: MaskPolicy) -> Booleans:
    """Return which spans are to be supervised."""
    role, kind, train = spans["role"], spans["kind"], spans["train"]
    speaks = np.isin(role, [ROLE[name] for name in policy.roles])
    by_role = speaks | (policy.context & (kind == KIND["context"]))
    if policy.last_turn_only:
        last: dict[int, int] = {}
        for span in spans[speaks]:
            row, message = int(span["conversation"]), int(span["message"])
            last[row] = max(message, last.get(row, 0))
        latest = [last.get(int(row), -1) for row in spans["conversation"]]
        by_role &= spans["message"] == np.array(latest)
    if policy.last_round_only:
        asked = _last_questions(spans)
        by_role &= [span["message"] >= asked[int(span["conversation"])] for span in spans]
    if not policy.end_of_turn:
        by_role &= kind != KIND["end"]
    if policy.text:
        by_role |= role == ROLE["text"]
    wanted = (by_role | ((train != BY_POLICY) & (train != 0))) & (train != 0)
    wanted &= (kind != KIND["header"]) & (role != ROLE["tool"])
    if not policy.reasoning:
        wanted &= kind != KIND["reasoning"]
    short = (spans["stop"] - spans["start"]).astype(np.int64) <= policy.reasoning_above
    wanted &= ~(short & (kind == KIND["reasoning"]))
    if not policy.tool_calls:
        wanted &= kind != KIND["tool_call"]
    if not policy.context:
        wanted &= kind != KIND["context"]
    if not policy.cite:
        wanted &= kind != KIND["cite"]
    if policy.skip_failed_calls or not policy.tool_calls:
        wanted &= kind != KIND["failed_call"]
    return np.asarray(wanted, dtype=bool)


def _last_questions(spans: NDArray[np.void]) -> dict[int, int]:
    """Return the message in which the last round of each row begins."""
    found: dict[int, int] = {}
    asked: dict[int, int] = {}
    for span in spans:
        row, message = int(span["conversation"]), int(span["message"])
        found.setdefault(row, 0)
        if span["role"] == ROLE["user"]:
            asked[row] = message
        elif span["role"] == ROLE["assistant"]:
            found[row] = asked.get(row, 0)
    return found


def _check_weights(
    check: ShardCheck,
    mask: NDArray[np.uint8],
    spans: NDArray[np.void],
    wanted: NDArray[np.float64],
    table: tuple[float, ...],
) -> None:
    """Compare what learned tokens weigh; whether they are learned at all, the laws say."""
    expected = np.repeat(wanted, (spans["stop"] - spans["start"]).astype(np.int64))
    found = np.array(table).take(mask)
    differs = np.flatnonzero((found > 0) & (expected > 0) & ~np.isclose(found, expected, 1e-12, 0))
    if len(differs):
        first = int(differs[0])
        detail = f"{found[first]:g} found, {expected[first]:g} expected"
        check.findings.add("weight_differs", check.place_token(first, detail), len(differs))


def _check_laws(
    check: ShardCheck,
    spans: NDArray[np.void],
    supervised: NDArray[np.int64],
    policy: MaskPolicy,
    weights: NDArray[np.float64],
) -> None:
    wanted = weights > 0
    length = (spans["stop"] - spans["start"]).astype(np.int64)
    role, kind = spans["role"], spans["kind"]
    too_much = ~wanted & (supervised > 0)
    too_little = wanted & (supervised == 0) & (length > 0)
    named = np.isin(role, [ROLE[name] for name in policy.roles])
    part = np.isin(kind, [KIND[name] for name in WRITTEN_AS if name != "text"])
    laws: tuple[tuple[str, Booleans], ...] = (
        ("header_supervised", too_much & (kind == KIND["header"])),
        ("tool_supervised", too_much & (kind != KIND["header"]) & (role == ROLE["tool"])),
        ("reasoning_supervised", too_much & part & named),
        ("stop_supervised", too_much & named & (kind == KIND["end"]) & (not policy.end_of_turn)),
        ("role_supervised", too_much & (kind != KIND["header"]) & ~named & (role != ROLE["tool"])),
        ("stop_unsupervised", too_little & (kind == KIND["end"])),
        ("answer_unsupervised", too_little & (kind != KIND["end"])),
        ("span_split", wanted & (supervised > 0) & (supervised < length)),
    )
    named_already = np.zeros(len(spans), dtype=bool)
    for code, wrong in laws:
        named_already |= wrong
        _add_spans(check, spans, code, wrong)
    _add_spans(check, spans, "turn_supervised", too_much & ~named_already)


def _add_spans(check: ShardCheck, spans: NDArray[np.void], code: str, wrong: Booleans) -> None:
    for index in np.flatnonzero(wrong)[:EXAMPLES]:
        span = spans[index]
        tokens = check.shard.tokens[span["start"] : span["stop"]][:12]
        text = check.dataset.tokenizer.decode_part(tokens)
        detail = f"turn {span['message']}, {ROLES[span['role']]} {KINDS[span['kind']]} {text!r}"
        check.findings.add(code, check.place(int(span["conversation"]), detail), 0)
    if wrong.any():
        check.findings.add(code, count=int(wrong.sum()))
