"""Masks from spans: by hand, against a naive reference, and against the printed rules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypt.config import MaskPolicy
from mypt.data.masking import explain, last_turns, mask_from_spans, rules, weight_table
from mypt.data.spans import KIND, KINDS, ROLE, ROLES, SPAN_DTYPE
from mypt.errors import MaskError


def spans_of(*turns, start=0):
    """Lay turns of (row, message, role, [(kind, length, train), ...]) end to end."""
    laid = []
    for row, message, role, parts in turns:
        for kind, length, train in parts:
            laid.append((start, start + length, row, message, ROLE[role], KIND[kind], train))
            start += length
    return np.array(laid, dtype=SPAN_DTYPE)


def turn(row, message, role, content=3, train=-1):
    parts = [("header", 1, train), ("content", content, train), ("end", 1, train)]
    return row, message, role, parts


def mask_of(spans, **policy):
    n_tokens = int(spans["stop"][-1])
    return mask_from_spans(spans, n_tokens, MaskPolicy(**policy)).tolist()


CHAT = spans_of(
    turn(0, 0, "system", 2), turn(0, 1, "user", 2), turn(0, 2, "assistant", 3),
    turn(0, 3, "user", 1), turn(0, 4, "assistant", 2),
)  # fmt: skip


def naive_mask(spans, policy):
    """Say law 2 and the policy's fields token by token, as a person would."""
    last, asked, begins = {}, {}, {}
    for span in spans:
        row = span["conversation"]
        if ROLES[span["role"]] in policy.roles:
            last[row] = span["message"]
        if ROLES[span["role"]] == "user":
            asked[row] = span["message"]
        if ROLES[span["role"]] == "assistant":
            begins[row] = asked.get(row, 0)
    return [
        int(naive_wish(span, policy, last, begins))
        for span in spans
        for _ in range(span["start"], span["stop"])
    ]


def naive_wish(span, policy, last, begins):
    role, kind = ROLES[span["role"]], KINDS[span["kind"]]
    if kind == "header" or role == "tool" or span["train"] == 0:
        return False
    if (kind == "reasoning" and not policy.reasoning) or (
        kind in ("tool_call", "failed_call") and not policy.tool_calls
    ):
        return False
    if kind == "failed_call" and policy.skip_failed_calls:
        return False
    if (kind == "context" and not policy.context) or (kind == "cite" and not policy.cite):
        return False
    if span["train"] == 1:
        return True
    if role == "text":
        return policy.text
    row = span["conversation"]
    if policy.last_turn_only and span["message"] != last.get(row):
        return False
    if policy.last_round_only and span["message"] < begins.get(row, 0):
        return False
    asked = role in policy.roles or kind == "context"
    return asked and (policy.end_of_turn or kind != "end")


@st.composite
def shards(draw):
    part = st.tuples(st.sampled_from(KINDS), st.integers(0, 4), st.sampled_from([-1, -1, 0, 1]))
    laid = []
    for row in range(draw(st.integers(0, 4))):
        for message in range(draw(st.integers(1, 5))):
            role = draw(st.sampled_from(ROLES))
            parts = draw(st.lists(part, max_size=4))
            if role == "tool":
                parts = [(kind, length, min(train, 0)) for kind, length, train in parts]
            laid.append((row, message, role, parts))
    return spans_of(*laid)


policies = st.builds(
    lambda which, **knobs: MaskPolicy(**knobs, **({which: True} if which else {})),
    which=st.sampled_from(["", "last_turn_only", "last_round_only"]),
    roles=st.lists(st.sampled_from(["system", "user", "assistant"]), unique=True).map(tuple),
    end_of_turn=st.booleans(),
    reasoning=st.booleans(),
    tool_calls=st.booleans(),
    skip_failed_calls=st.booleans(),
    context=st.booleans(),
    cite=st.booleans(),
    text=st.booleans(),
)


def test_the_mask_covers_the_answer_and_its_end_but_no_header():
    spans = spans_of(turn(0, 0, "user", 2), turn(0, 1, "assistant", 3))
    assert mask_of(spans) == [0, 0, 0, 0, 0, 1, 1, 1, 1]


def test_every_assistant_turn_is_supervised_unless_only_the_last_is_wanted():
    context, first, question, second = [0] * 8, [0, 1, 1, 1, 1], [0] * 3, [0, 1, 1, 1]
    assert mask_of(CHAT) == context + first + question + second
    assert mask_of(CHAT, last_turn_only=True) == context + [0] * 5 + question + second


def test_last_turn_only_supervises_the_last_answer_and_its_stop_and_nothing_of_the_history():
    two_rows = spans_of(
        turn(0, 0, "user"), turn(0, 1, "assistant"), turn(0, 2, "user"), turn(0, 3, "assistant"),
        turn(1, 0, "user"), turn(1, 1, "assistant"), turn(1, 2, "user"),
    )  # fmt: skip
    mask = mask_of(two_rows, last_turn_only=True)
    assert np.flatnonzero(mask).tolist() == [16, 17, 18, 19, 26, 27, 28, 29]


def test_last_round_only_supervises_the_calls_that_lead_to_the_last_answer_too():
    call = (0, 3, "assistant", [("header", 1, -1), ("tool_call", 2, -1), ("end", 1, -1)])
    spans = spans_of(
        turn(0, 0, "user", 1), turn(0, 1, "assistant", 1), turn(0, 2, "user", 1), call,
        turn(0, 4, "tool", 1), turn(0, 5, "assistant", 1), turn(0, 6, "user", 1),
        turn(1, 0, "assistant", 1), turn(1, 1, "assistant", 1),
    )  # fmt: skip
    alone = [0, 1, 1]
    context, calls = [0] * 9, [0, 1, 1, 1]
    tail = [0] * 3 + alone + [0] * 3 + alone * 2
    assert mask_of(spans, last_round_only=True) == context + calls + tail


def weights_of(spans, row_weights=(), source="", **policy):
    given, n_tokens = MaskPolicy(**policy), int(spans["stop"][-1])
    how = {"source": source, "row_weights": row_weights}
    table = weight_table(given, [source], row_weights)
    return [table[i] for i in mask_from_spans(spans, n_tokens, given, **how).tolist()]


def test_weights_by_role_kind_and_source_multiply_and_a_header_weighs_0():
    spans = spans_of(turn(0, 0, "user", 2), turn(0, 1, "assistant", 2))
    weights = {"stop": 2.0, "user": 0.5}
    both = {"roles": ("user", "assistant"), "weights": weights}
    assert weights_of(spans, **both) == [0, 0.5, 0.5, 1, 0, 1, 1, 2]
    assert weights_of(spans, weights={"stop": 2.0}) == [0, 0, 0, 0, 0, 1, 1, 2]
    poor = both | {"weights": weights | {"source:web": 0.25}}
    assert weights_of(spans, source="web", **poor) == [0, 0.125, 0.125, 0.25, 0, 0.25, 0.25, 0.5]
    assert weights_of(spans, source="other", **poor) == weights_of(spans, **both)


def test_a_rows_own_weight_multiplies_the_rules():
    spans = spans_of(turn(0, 0, "user", 1, train=3), turn(0, 1, "assistant", 1, train=2))
    assert weights_of(spans, (0.5, 3.0), weights={"stop": 2.0}) == [0, 3, 6, 0, 0.5, 1]


def test_a_mask_without_weights_has_the_bytes_0_and_1_and_more_than_255_weights_are_refused():
    assert weight_table(MaskPolicy()) == weight_table(MaskPolicy(roles=())) == (0, 1)
    many = tuple(2.0 + i for i in range(253))
    assert len(weight_table(MaskPolicy(), [""], many)) == 255
    with pytest.raises(MaskError, match="gives 501 distinct weights, expected at most 255"):
        weight_table(MaskPolicy(weights={"stop": 3.1}), [""], many)


def test_the_end_of_a_turn_is_supervised_by_default_and_left_out_on_request():
    spans = spans_of(turn(0, 0, "user", 1), turn(0, 1, "assistant", 1))
    assert mask_of(spans) == [0, 0, 0, 0, 1, 1]
    assert mask_of(spans, end_of_turn=False) == [0, 0, 0, 0, 1, 0]


def test_any_set_of_roles_can_be_supervised():
    assert mask_of(CHAT, roles=("system", "user"))[:8] == [0, 1, 1, 1, 0, 1, 1, 1]
    assert sum(mask_of(CHAT, roles=("system", "user"))[8:]) == 2


def test_a_tool_call_and_the_answer_are_supervised_and_the_result_between_them_never():
    spans = spans_of(
        turn(0, 0, "user", 1),
        (0, 1, "assistant", [("header", 1, -1), ("tool_call", 2, -1), ("end", 1, -1)]),
        turn(0, 2, "tool", 2),
        turn(0, 3, "assistant", 2),
    )
    assert mask_of(spans) == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1]
    assert mask_of(spans, tool_calls=False)[3:7] == [0, 0, 0, 1]


def test_reasoning_is_supervised_unless_the_policy_leaves_it_out():
    parts = [("header", 1, -1), ("reasoning", 2, -1), ("content", 1, -1), ("end", 1, -1)]
    spans = spans_of((0, 0, "assistant", parts))
    assert mask_of(spans) == [0, 1, 1, 1, 1]
    assert mask_of(spans, reasoning=False) == [0, 0, 0, 1, 1]


def test_plain_text_is_supervised_whole_in_a_mix_even_where_ends_of_turns_are_not():
    spans = spans_of((0, 0, "text", [("content", 3, -1), ("end", 1, -1)]), turn(1, 0, "user", 1))
    assert mask_of(spans) == [1, 1, 1, 1, 0, 0, 0]
    assert mask_of(spans, end_of_turn=False, last_turn_only=True) == [1, 1, 1, 1, 0, 0, 0]
    assert mask_of(spans, text=False) == [0] * 7


def test_a_message_of_weight_0_is_context_and_one_of_weight_1_is_supervised_whoever_speaks():
    spans = spans_of(
        turn(0, 0, "user", 2, train=1), turn(0, 1, "assistant", 2, train=0),
        turn(0, 2, "assistant", 2),
    )  # fmt: skip
    assert mask_of(spans) == [0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1]


def test_weight_0_on_all_equals_a_policy_that_takes_the_role_as_context():
    weighted = spans_of(turn(0, 0, "user"), turn(0, 1, "assistant", train=0))
    plain = spans_of(turn(0, 0, "user"), turn(0, 1, "assistant"))
    assert mask_of(weighted) == mask_of(plain, roles=())


def test_a_tools_result_marked_for_training_is_refused_with_its_place():
    spans = spans_of(turn(0, 0, "user"), turn(0, 1, "assistant"), turn(1, 2, "tool", train=1))
    with pytest.raises(MaskError, match=r"row 1, turn 2: train: true .* 'tool'"):
        mask_of(spans)


@pytest.mark.parametrize(
    ("change", "n_tokens"),
    [
        (lambda s: s, 24),
        (lambda s: s, 26),
        (lambda s: s[1:], 25),
        (lambda s: s[[0, 2, 1, *range(3, len(s))]], 25),
        (lambda s: np.delete(s, 4), 25),
        (lambda s: s[:0], 1),
    ],
    ids=["short", "long", "late start", "swapped", "gap", "none"],
)
def test_spans_that_do_not_tile_the_shard_are_refused(change, n_tokens):
    spans = spans_of(*(turn(0, i, "user") for i in range(5)))
    with pytest.raises(MaskError, match="do not tile"):
        mask_from_spans(change(spans), n_tokens, MaskPolicy())


def test_spans_that_run_backwards_are_refused():
    spans = spans_of(*(turn(0, i, "user") for i in range(2)))
    spans["stop"][1], spans["start"][2] = 0, 0
    with pytest.raises(MaskError, match="do not tile"):
        mask_from_spans(spans, 10, MaskPolicy())


def test_a_gap_that_an_overlap_makes_up_for_between_two_blocks_is_refused(monkeypatch):
    monkeypatch.setattr("mypt.data.masking._BLOCK", 2)
    edges = [(0, 1), (1, 2), (3, 4), (4, 5), (4, 5), (5, 6)]
    spans = np.array(
        [(*edge, row, 0, ROLE["user"], KIND["content"], -1) for row, edge in enumerate(edges)],
        dtype=SPAN_DTYPE,
    )
    with pytest.raises(MaskError, match="do not tile"):
        mask_from_spans(spans, 6, MaskPolicy())


@pytest.mark.parametrize(("field", "value"), [("role", 5), ("kind", len(KINDS)), ("train", 2)])
def test_an_unknown_role_or_kind_on_disk_is_refused_and_not_taken_for_another(field, value):
    spans = CHAT.copy()
    spans[field][3] = value
    with pytest.raises(MaskError, match=f"{field} number"):
        mask_of(spans)


def test_a_shard_without_rows_has_an_empty_mask():
    assert mask_from_spans(CHAT[:0], 0, MaskPolicy()).tolist() == []


@given(spans=shards(), policy=policies)
def test_the_mask_equals_the_naive_reference(spans, policy):
    n_tokens = int(spans["stop"][-1]) if len(spans) else 0
    assert mask_from_spans(spans, n_tokens, policy).tolist() == naive_mask(spans, policy)


@pytest.mark.parametrize("last", [False, True])
def test_long_shards_are_masked_in_blocks_without_a_seam(last, monkeypatch):
    monkeypatch.setattr("mypt.data.masking._BLOCK", 7)
    rng = np.random.default_rng(0)
    spans = spans_of(
        *(turn(row, message, ROLES[rng.integers(0, 4)], rng.integers(0, 5))
          for row in range(40) for message in range(rng.integers(1, 12)))
    )  # fmt: skip
    policy = MaskPolicy(last_turn_only=last)
    assert mask_of(spans, last_turn_only=last) == naive_mask(spans, policy)


def evaluate(line, values):
    """Evaluate a printed rule; None where it does not speak about ``values``."""
    when, _, then = line.partition(" -> ")
    if when != "otherwise":
        for condition in when.split(" & "):
            field, _, allowed = condition.partition("=")
            if values[field] not in allowed.split("|"):
                return None
    return float(then.partition(":")[0])


@given(spans=shards(), policy=policies)
def test_evaluating_the_printed_rule_again_reproduces_the_mask(spans, policy):
    mask = naive_mask(spans, policy)
    lines = [str(rule) for rule in rules(policy)]
    for span, last in zip(spans, last_turns(spans, policy), strict=True):
        values = {
            "role": ROLES[span["role"]],
            "kind": KINDS[span["kind"]],
            "train": {-1: "unset", 0: "0", 1: "1"}[int(span["train"])],
            "last_turn": "yes" if last else "no",
        }
        printed = str(explain(span, policy, last_turn=bool(last)))
        outcome = evaluate(printed, values)
        assert outcome is not None
        assert set(mask[span["start"] : span["stop"]]) <= {outcome}
        earlier = [line for line in lines[: lines.index(printed)] if "refused" not in line]
        assert all(evaluate(line, values) is None for line in earlier)
