"""One message: roles, parts, tool calls, weights."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypt.data.conversations import Message, Part
from mypt.data.reading.formats.message import ROLE_NAMES, read_message
from mypt.data.reading.records import Dropped, Place, Tally
from mypt.errors import DataError

PLACE = Place("a.jsonl", 0, 7)


def parts(message: Message) -> list[tuple[str, str]]:
    return [(part.kind, part.text) for part in message.parts]


def read(**fields):
    return read_message({"role": "assistant"} | fields, PLACE, Tally())


@pytest.mark.parametrize(("name", "role"), ROLE_NAMES.items())
def test_every_known_role_is_read_under_either_key(name, role):
    for fields in ({"role": name, "content": "x"}, {"from": name, "value": "x"}):
        message = read_message(fields, PLACE, Tally())
        kind = "tool_call" if name in ("function_call", "tool_call") else "text"
        assert message == Message(role, (Part(kind, "x"),))


@pytest.mark.parametrize(
    ("role", "hint"),
    [
        ("asistant", "did you mean 'assistant'?"),
        ("Users", "did you mean 'user'?"),
        ("zebra", "known: system, developer, user"),
        (3, "unknown role the number 3"),
        (["user"], "unknown role an array of 1"),
        ("a\nb" * 100, "unknown role 'a"),
    ],
)
def test_an_unknown_role_is_named_with_the_nearest_known(role, hint):
    with pytest.raises(DataError) as caught:
        read(role=role, content="x")
    assert str(caught.value).startswith("a.jsonl:7: unknown role ")
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_content_is_kept_byte_for_byte():
    text = " \n<Assistant>\u2028\0 e\u0301 \n"
    assert parts(read(content=text)) == [("text", text)]


def test_parts_are_read_in_order_and_texts_in_a_row_are_one():
    content = [
        {"type": "reasoning", "value": "think"},
        {"type": "text", "value": "a"},
        {"type": "text", "text": "b"},
        {"type": "tool_call", "value": '{"name": "f"}'},
        {"type": "tool_call", "value": {"name": "g", "arguments": {"x": "é"}}},
        {"type": "text", "value": ""},
        {"type": "thinking", "thinking": "more"},
    ]
    assert parts(read(content=content)) == [
        ("reasoning", "think"),
        ("text", "ab"),
        ("tool_call", '{"name": "f", "arguments": {}}'),
        ("tool_call", '{"name": "g", "arguments": {"x": "é"}}'),
        ("reasoning", "more"),
    ]


def test_tool_calls_and_reasoning_beside_the_content_are_parts():
    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x":  1.0}'}},
        {"name": "g", "arguments": {}},
        {"function": {"name": "h", "arguments": ""}},
    ]
    message = read(content=None, reasoning_content="why", tool_calls=calls)
    assert parts(message) == [
        ("reasoning", "why"),
        ("tool_call", '{"name": "f", "arguments": {"x": 1.0}}'),
        ("tool_call", '{"name": "g", "arguments": {}}'),
        ("tool_call", '{"name": "h", "arguments": {}}'),
    ]
    assert parts(read(content="hm", function_call={"name": "f"})) == [
        ("text", "hm"),
        ("tool_call", '{"name": "f", "arguments": {}}'),
    ]


def called(arguments):
    (part,) = read(tool_calls=[{"function": {"name": "f", "arguments": arguments}}]).parts
    return part.text


ARGUMENTS = st.dictionaries(
    st.text(max_size=3),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    ),
    max_size=3,
)


@given(ARGUMENTS, st.sampled_from([None, 0, 3]), st.booleans())
def test_arguments_are_equal_as_text_and_as_object(arguments, indent, ascii_only):
    text = json.dumps(arguments, indent=indent, ensure_ascii=ascii_only)
    assert called(text) == called(arguments)
    assert json.loads(called(text)) == {"name": "f", "arguments": arguments}


@pytest.mark.parametrize("nothing", ["", " \n", "null", "{}", None, {}])
def test_a_call_without_arguments_has_an_empty_object(nothing):
    assert called(nothing) == '{"name": "f", "arguments": {}}'


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ('{"id": 12345678901234567890123}', '{"id": 12345678901234567890123}'),
        ('{"x": 1E3}', '{"x": 1000.0}'),
        ('{"x": 0.1000}', '{"x": 0.1}'),
        ('{"x":\n\tnull}', '{"x": null}'),
        ('{"x": "\\u00e9"}', '{"x": "é"}'),
    ],
)
def test_arguments_that_are_text_keep_their_values(text, spelled):
    assert called(text) == f'{{"name": "f", "arguments": {spelled}}}'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ('{"city": "Os', "no JSON .* close the string"),
        ('{"x": NaN}', "a number that is no JSON or beyond float64"),
        ({"x": float("-inf")}, "a number that is no JSON or beyond float64"),
        ('{"x": 1e999}', "a number that is no JSON or beyond float64"),
        ({"x": 10**400}, "a number that is no JSON or beyond float64"),
        ("{'x': 1}", "write it with json.dumps"),
        ('{"x": 1, "x": 2}', "the key 'x' stands twice"),
        ('{"x": "\\ud800"}', "half of a surrogate pair"),
        ("f(x=1)", "no JSON"),
        ("[1]", "found an array of 1; expected an object"),
        (3, "found the number 3; expected an object"),
    ],
)
def test_arguments_that_are_no_json_are_refused(arguments, message):
    with pytest.raises(DataError, match=rf"^a.jsonl:7: arguments of 'f': .*{message}"):
        called(arguments)


@pytest.mark.parametrize("key", ["train", "weight", "loss_weight"])
@pytest.mark.parametrize(
    ("value", "train"),
    [(True, True), (False, False), (0, False), (1, True), (0.0, False), (1.0, True), (None, None)],
)
def test_a_weight_of_0_or_1_decides_the_mask(key, value, train):
    assert read(content="x", **{key: value}).train is train


@pytest.mark.parametrize("key", ["train", "weight", "loss_weight"])
@pytest.mark.parametrize("value", [-1, 1001, float("nan"), "1", [], {"a": 1}, float("inf")])
def test_any_other_weight_is_refused_with_the_reason(key, value):
    with pytest.raises(DataError, match=rf"{key} is .* expected 0 to 1000, true or false"):
        read(content="x", **{key: value})


def test_a_weight_is_a_number_and_a_switch_beside_it_says_no_more_than_on_or_off():
    assert read(content="x", weight=0.5).train == 0.5
    assert read(content="x", weight=1000).train == 1000
    assert read(content="x", train=True, weight=0.5).train == 0.5
    for other in ({"train": False}, {"loss_weight": 0.25}):
        with pytest.raises(DataError, match="disagree"):
            read(content="x", weight=0.5, **other)


def test_ms_swift_says_it_of_a_message_by_loss_and_loss_scale():
    assert read(content="x", loss=False).train is False
    assert read(content="x", loss=True, loss_scale=0.3).train == 0.3
    with pytest.raises(DataError, match=r"loss is the number 0\.5; expected true or false"):
        read(content="x", loss=0.5)


def test_weights_that_disagree_are_refused():
    assert read(content="x", train=True, weight=1, loss_weight=1.0).train is True
    with pytest.raises(DataError, match="disagree"):
        read(content="x", train=True, weight=0)


@pytest.mark.parametrize("content", ["", " \n\t", [], [{"type": "text", "text": ""}]])
def test_a_message_that_says_nothing_drops_its_conversation(content):
    with pytest.raises(Dropped, match="a message of the assistant without text"):
        read(content=content)
    assert read(content=content, tool_calls=[{"name": "f"}]).parts
    assert read_message({"role": "tool", "content": content}, PLACE, Tally()).text.strip() == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("hello", "found 'hello'; expected a message with role and content"),
        ([], "found an array of 0; expected a message"),
        ({"content": "x"}, "without a role; found the fields content"),
        ({"role": "user"}, "without content; found the fields role"),
        ({"role": "user", "content": None}, "whose content is null; .* or remove the row"),
        ({"role": "user", "content": 3}, "content is the number 3"),
        ({"role": "user", "content": {"text": "x"}}, "content is an object with the fields text"),
        ({"role": "user", "content": ["x"]}, "a part of the content is 'x'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "only text can be learned"),
        ({"role": "user", "content": [{"type": ["text"]}]}, "a part of the content is type an arr"),
        ({"role": "user", "content": [{"type": "text"}]}, "content is null"),
        ({"role": "assistant", "tool_calls": "f()"}, "tool_calls is 'f.*expected a list"),
        ({"role": "assistant", "tool_calls": [{"id": 1}]}, "a tool call is an object with"),
        ({"role": "assistant", "tool_calls": [3]}, "a tool call is the number 3"),
        ({"role": "assistant", "reasoning_content": 1, "content": "x"}, "content is the number 1"),
    ],
)
def test_what_is_no_message_is_named(fields, message):
    with pytest.raises(DataError, match=rf"^a.jsonl:7: .*{message}"):
        read_message(fields, PLACE, Tally())


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning": "why"},
        {"reasoning_text": "why"},
        {"thought": "why"},
        {"thinking": "why", "reasoning_content": " why\n"},
        {"reasoning": "why", "reasoning_details": [{"type": "reasoning.text", "text": "why"}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "why", "format": "x"}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "why", "signature": "x"}]},
        {"content": [{"type": "thinking", "thinking": "why"}, {"text": "x"}], "reasoning": "why"},
    ],
)
def test_reasoning_is_read_once_under_any_of_its_names(fields):
    kinds = [(kind, text.strip()) for kind, text in parts(read(**{"content": "x"} | fields))]
    assert kinds == [("reasoning", "why"), ("text", "x")]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reasoning": "a", "thought": "b"}, "the reasoning in reasoning and thought differs"),
        (
            {"reasoning": "a", "content": [{"type": "thinking", "thinking": "b"}]},
            "reasoning stands both beside the content and in its parts",
        ),
        ({"thought": True}, "thought is true; expected a string"),
        ({"reasoning_details": [{"type": "text", "text": "a"}]}, "a part of the content is type"),
    ],
)
def test_reasoning_that_contradicts_itself_is_refused(fields, said):
    with pytest.raises(DataError, match=said):
        read(**{"content": "x"} | fields)


def test_encrypted_reasoning_is_left_out_and_counted():
    tally = Tally()
    content = [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "a"}]
    fields = {
        "role": "assistant",
        "content": content,
        "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}],
    }
    assert parts(read_message(fields, PLACE, tally)) == [("text", "a")]
    assert tally.notes == {"reasoning that is encrypted left out": 2}


def told(message: Message) -> tuple[bool | None, list[tuple[str, bool | None]]]:
    return message.train, [(part.text, part.train) for part in message.parts]


@pytest.mark.parametrize(
    ("fields", "train", "said"),
    [
        (
            {"content": [{"text": "W", "train": False}, {"text": "R"}]},
            None,
            [("W", 0), ("R", None)],
        ),
        (
            {"content": [{"text": "W", "weight": 0}, {"text": "", "train": True}]},
            False,
            [("W", None)],
        ),
        (
            {"content": [{"text": "W", "training": False}, {"text": "R"}], "train": False},
            False,
            [("WR", None)],
        ),
        (
            {"content": [{"text": "W"}, {"text": "R", "loss_weight": 1.0}], "weight": 0},
            False,
            [("W", None), ("R", True)],
        ),
        (
            {"content": [{"text": "a"}, {"text": "b", "train": None}, {"text": "c", "train": 1}]},
            None,
            [("ab", None), ("c", True)],
        ),
        ({"content": "x", "training": False}, False, [("x", None)]),
        (
            {
                "content": "Right. Wrong. End",
                "train_detail": [
                    {"begin_offset": 0, "end_offset": 6, "train": True},
                    {"begin_offset": 7, "end_offset": 13, "train": False},
                ],
            },
            None,
            [("Right. ", True), ("Wrong. End", False)],
        ),
    ],
)
def test_a_part_decides_its_own_mask(fields, train, said):
    assert told(read(**fields)) == (
        train,
        [(text, t if t is None else bool(t)) for text, t in said],
    )


@pytest.mark.parametrize(
    "details",
    [
        [{"begin_offset": 0, "end_offset": 3, "train": True}],
        [{"begin_offset": 2, "end_offset": 1, "train": True}],
        [{"begin_offset": 0, "end_offset": 0, "train": 1}],
        [{"begin_offset": 0, "end_offset": 1, "train": True}] * 2,
        [{"begin_offset": True, "end_offset": 1, "train": True}],
        ["x"], "x", {"begin_offset": 0},
    ],
)  # fmt: skip
def test_stretches_that_do_not_fit_the_content_are_refused(details):
    with pytest.raises(DataError, match="expected begin_offset, end_offset and train, in order"):
        read(content="abc", train_detail=details)


def test_a_refusal_is_what_the_assistant_says():
    assert parts(read(content=None, refusal="No.")) == [("text", "No.")]
    assert parts(read(content=[{"type": "refusal", "refusal": "No."}])) == [("text", "No.")]


UNREAD = [
    ({"content": "x", "name": "Ann"}, "'name' of a message"),
    ({"content": "x", "text": "y"}, "'text' of a message"),
    ({"content": "x", "from": "user"}, "'from' of a message"),
    ({"content": [{"text": "x", "citations": [1]}]}, "'citations' of a part of the content"),
    ({"content": [{"type": "text", "value": "x", "text": "y"}]}, "'text' of a part of the content"),
    ({"content": [{"text": "x", "thought": "y"}]}, "'thought' of a part of the content"),
    (
        {"content": [{"type": "thinking", "thinking": "y", "value": "x"}]},
        "'thinking' of a part of the content",
    ),
    ({"tool_calls": [{"name": "f", "arguments": {}, "input": {"x": 1}}]}, "'input' of a tool call"),
    ({"tool_calls": [{"name": "g", "function": {"name": "f"}}]}, "'name' of a tool call"),
    ({"tool_calls": [{"name": "f", "why": "x"}]}, "'why' of a tool call"),
    ({"tool_calls": [{"function": {"name": "f", "why": "x"}}]}, "'why' of a tool call"),
]


@pytest.mark.parametrize(("fields", "name"), UNREAD)
def test_a_field_that_is_not_read_is_counted_and_refused_where_reading_is_strict(fields, name):
    tally = Tally()
    read_message({"role": "assistant"} | fields, PLACE, tally)
    assert tally.unread_notes() == {f"{name} was not read": 1}
    strict = Tally(strict=True)
    read_message({"role": "assistant"} | fields, PLACE, strict)
    with pytest.raises(DataError, match=rf"^a.jsonl:7: {name} is not read"):
        strict.refuse_unread()


@pytest.mark.parametrize(
    "fields",
    [
        {"content": "x", "id": 3, "Timestamp": 5, "audio": None, "annotations": []},
        {"content": "x", "text": "x", "refusal": None},
        {"content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
    ],
)
def test_what_says_nothing_or_the_same_needs_no_reading(fields):
    strict = Tally(strict=True)
    assert parts(read_message({"role": "user"} | fields, PLACE, strict))
    strict.refuse_unread()


@pytest.mark.parametrize(("name", "role"), [("Human", "user"), ("GPT", "assistant")])
def test_the_name_of_a_role_is_read_in_any_case(name, role):
    assert read(role=name, content="x").role == role
