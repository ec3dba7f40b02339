"""Calls and results: blocks of other APIs, and which result answers which call."""

import json

import pytest

from mypt.errors import DataError
from tests.mypt.data.rawfiles import jsonl, notes, read, turns, write

MOVED = "results of parallel calls put into the order of the calls"
MISNAMED = "a result whose name is not that of the call with its id"
FAILED = "a call whose result is marked as an error"
LOST = "a result marked as an error whose call cannot be told"
MISSING = "a call without a result beside calls that have one"


def call(name, **more):
    return {"type": "function", "function": {"name": name, "arguments": {}}} | more


def calling(*calls):
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def result(text, **link):
    return {"role": "tool", "content": text} | link


def talk(tmp_path, *messages, **row):
    asked = {"role": "user", "content": "q"}
    path = write(tmp_path / "a.jsonl", jsonl({"messages": [asked, *messages]} | row))
    reader, (found,) = read(path)
    return [text for role, text in turns(found) if role == "tool"], notes(reader), found


AB = calling(call("f", id="a"), call("g", id="b"))
NAMELESS = calling(call("f"), call("g"))


@pytest.mark.parametrize(
    ("messages", "said", "counted"),
    [
        ([AB, result("1", tool_call_id="a"), result("2", tool_call_id="b")], ["1", "2"], {}),
        (
            [AB, result("2", tool_call_id="b"), result("1", tool_call_id="a")],
            ["1", "2"],
            {MOVED: 1},
        ),
        ([NAMELESS, result("2", name="g"), result("1", name="f")], ["1", "2"], {MOVED: 1}),
        ([NAMELESS, result("2"), result("1")], ["2", "1"], {}),
        ([AB, result("2", tool_call_id="b")], ["2"], {MISSING: 1}),
        ([NAMELESS, result("1")], ["1"], {MISSING: 1}),
        ([AB], [], {}),
        ([AB, {"role": "user", "content": "stop"}, AB, result("2", name="g")], ["2"], {MISSING: 3}),
        (
            [
                *(calling(call("f", id=1), call("g", id=2)), result("2", tool_call_id=2)),
                *(result("1", tool_call_id=1), calling(call("h", id=3))),
            ],
            ["1", "2"],
            {MOVED: 1},
        ),
        (
            [
                *(calling(call("f", id="a")), calling(call("g", id="b"))),
                *(result("2", tool_call_id="b"), result("1", tool_call_id="a")),
            ],
            ["1", "2"],
            {MOVED: 1},
        ),
        (  # the older name of a call is the same call
            [
                AB | {"function_call": {"name": "g", "arguments": "{}"}},
                *(result("2", tool_call_id="b"), result("1", tool_call_id="a")),
            ],
            ["1", "2"],
            {MOVED: 1},
        ),
        (
            [
                NAMELESS | {"function_call": {"name": "h", "arguments": "{}"}},
                result("1"),
                result("2"),
                result("3", name="h"),
            ],
            ["1", "2", "3"],
            {},
        ),
        (
            [NAMELESS, result("1", name="h"), result("2", name="g")],
            ["1", "2"],
            {"a result with a name that no waiting call has": 1, MISSING: 1},
        ),
        (
            [calling(call("f")), result("1", tool_call_id="z")],
            ["1"],
            {"a result with the id of a call, where no call has an id": 1},
        ),
        (
            [AB, result("1", tool_call_id="a"), result("3", tool_call_id="a")],
            ["1", "3"],
            {"a call with several results": 1, MISSING: 1},
        ),
        (
            [AB, result("1", tool_call_id="a", name="f"), result("2", tool_call_id="b", name="f")],
            ["1", "2"],
            {MISNAMED: 1},
        ),
        (
            [AB, result("2", tool_call_id="b", name="h"), result("1", tool_call_id="a", name="g")],
            ["1", "2"],
            {MOVED: 1, MISNAMED: 2},
        ),
    ],
)
def test_results_stand_in_the_order_of_their_calls(tmp_path, messages, said, counted):
    found, counts, _ = talk(tmp_path, *messages)
    assert (found, counts) == (said, counted)


def test_a_result_of_a_call_that_nobody_made_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r":1: a result of the call 'c', .* expected one of a, b;"):
        talk(tmp_path, AB, result("1", tool_call_id="c"))
    with pytest.raises(DataError, match="a result of the call 'a'"):  # it is made only later
        talk(tmp_path, calling(call("f", id="b")), result("1", tool_call_id="a"), AB)


def test_blocks_of_anthropic_are_calls_and_messages_of_tools(tmp_path):
    use = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "b", "name": "g", "input": {}},
    ]
    given = [
        {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "2"}]},
        {"type": "tool_result", "tool_use_id": "a", "content": "1", "is_error": True},
        {"type": "text", "text": "go on", "cache_control": {"type": "ephemeral"}},
    ]
    said, counts, row = talk(
        tmp_path,
        {"role": "assistant", "content": use},
        {"role": "user", "content": given},
        system=[{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}],
    )
    assert said == ["1", "2"]
    assert counts == {MOVED: 1, FAILED: 1}
    assert turns(row)[0] == ("system", "Be brief.")
    assert turns(row)[-1] == ("user", "go on")
    assert [(part.kind, part.text) for part in row.messages[2].parts] == [
        ("reasoning", "hm"),
        ("failed_call", '{"name": "f", "arguments": {"x": 1}}'),
        ("tool_call", '{"name": "g", "arguments": {}}'),
    ]


def test_contents_of_gemini_are_messages(tmp_path):
    row = {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "q"}]},
            {
                "role": "model",
                "parts": [
                    {"text": "hm", "thought": True, "thoughtSignature": "x"},
                    {"functionCall": {"name": "f", "args": {"x": 1}}},
                ],
            },
            {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"y": 2}}}]},
            {"role": "model", "parts": [{"text": "a"}, {"text": "b"}]},
        ],
    }
    reader, (found,) = read(write(tmp_path / "a.jsonl", jsonl(row)))
    assert turns(found) == [
        ("system", "Be brief."), ("user", "q"),
        ("assistant", 'hm{"name": "f", "arguments": {"x": 1}}'),
        ("tool", '{"y": 2}'), ("assistant", "ab"),
    ]  # fmt: skip
    assert [part.kind for part in found.messages[2].parts] == ["reasoning", "tool_call"]
    assert notes(reader) == {}


def test_what_a_message_with_results_says_of_itself_is_not_lost(tmp_path):
    given = [{"type": "tool_result", "tool_use_id": "a", "content": "1"}]
    _, counts, _ = talk(
        tmp_path, calling(call("f", id="a")), {"role": "user", "content": given, "mood": "x"}
    )
    assert counts == {"'mood' of a message was not read": 1}


@pytest.mark.parametrize(
    ("content", "text"), [({"temp": 4}, '{"temp": 4}'), (4, "4"), (False, "false"), ("x", "x")]
)
def test_what_a_tool_gives_back_may_be_no_text(tmp_path, content, text):
    assert talk(tmp_path, calling(call("f")), result(content))[0] == [text]


def texts(fields, tmp_path):
    row = {"conversations": [{"from": "human", "value": "q"}, fields]}
    return read(write(tmp_path / "a.jsonl", jsonl(row)))[1][0].messages[1].parts


@pytest.mark.parametrize("role", ["function_call", "tool_call"])
def test_a_call_that_stands_as_text_is_spelled_as_the_object_is(tmp_path, role):
    for value in (
        '{"name":"f","arguments":{"x":1}}',
        '{"name": "f", "arguments": "{\\"x\\": 1}"}',
        '[{"function": {"name": "f", "arguments": {"x": 1}}}]',
    ):
        (part,) = texts({"from": role, "value": value}, tmp_path)
        assert (part.kind, part.text) == ("tool_call", '{"name": "f", "arguments": {"x": 1}}')
    assert texts({"from": role, "value": "f()"}, tmp_path)[0].text == "f()"


@pytest.mark.parametrize(
    "value", ['{"name": "f", "arguments": {"x": NaN}}', '{"name": "f", "arg', "{'name': 'f'}"]
)
def test_a_call_of_broken_text_is_refused(tmp_path, value):
    parts = [{"type": "tool_call", "value": value}]
    for fields in (
        {"from": "function_call", "value": value},
        {"from": "gpt", "value": parts},
    ):
        with pytest.raises(DataError, match=r"a.jsonl:1: (arguments of 'f'|the text of a call): "):
            texts(fields, tmp_path)


def test_tools_that_the_system_names_already_are_not_named_twice(tmp_path):
    system = {"role": "system", "content": 'Tools: [{"name":"f"}]'}
    row = {"messages": [system, {"role": "assistant", "content": "a"}], "tools": [{"name": "f"}]}
    _, (found,) = read(write(tmp_path / "a.jsonl", jsonl(row)))
    assert turns(found) == [("system", system["content"]), ("assistant", "a")]


def test_a_call_of_null_is_none_and_a_call_may_say_that_it_is_not_learned(tmp_path):
    call = {"name": "f", "arguments": {}, "train": False}
    said = [
        {"role": "assistant", "content": "a", "tool_calls": [None]},
        {"role": "tool", "content": "b"},
        {"role": "assistant", "content": "c", "tool_calls": [call]},
    ]
    _, (row,) = read(write(tmp_path / "a.jsonl", jsonl({"messages": said})))
    assert [[(part.kind, part.train) for part in message.parts] for message in row.messages] == [
        [("text", None)], [("text", None)], [("text", None), ("tool_call", False)],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "part",
    [
        {"type": "tool_result", "content": "a", "value": "x"},
        {"functionResponse": {"name": "f", "response": "a"}, "value": "x"},
        {"type": "tool_result", "content": "a", "value": "x", "role": "assistant"},
    ],
)
def test_what_stands_beside_what_a_tool_gave_is_counted_and_never_learned(tmp_path, part):
    row = {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "b"}]}
    reader, (found,) = read(write(tmp_path / "a.jsonl", jsonl(row)))
    assert turns(found) == [("tool", "a"), ("assistant", "b")]
    assert "'value' of a message was not read" in notes(reader)


def test_a_call_under_its_older_name_too_is_read_once(tmp_path):
    same, other = ({"name": name, "arguments": "{}"} for name in "fg")
    for old, names in ((same, ["f"]), (other, ["f", "g"])):
        _, _, found = talk(tmp_path, calling(call("f")) | {"function_call": old})
        calls = [json.loads(part.text)["name"] for part in found.messages[1].parts]
        assert calls == names


def kinds(row):
    return [part.kind for message in row.messages for part in message.parts]


@pytest.mark.parametrize(
    "mark",
    [
        {"is_error": True}, {"isError": 1}, {"status": "error"}, {"status": "Failed"},
        {"error": True}, {"error": "no such file"}, {"error": {"code": 3}},
        {"outcome": "OUTCOME_FAILED"}, {"is_error": False, "error": "no such file"},
        {"content": {"error": "no such file"}},
    ],
)  # fmt: skip
def test_a_call_whose_result_is_marked_as_an_error_is_told_apart(tmp_path, mark):
    _, counts, row = talk(
        tmp_path, AB, result("1", tool_call_id="a"), result("2", tool_call_id="b") | mark
    )
    assert kinds(row) == ["text", "tool_call", "failed_call", "text", "text"]
    assert counts.pop(FAILED) == 1
    # A mark is read; what an error says beside a result is not, and that is counted.
    says = "content" not in mark and isinstance(mark.get("error"), str | dict)
    assert counts == ({"'error' of a message was not read": 1} if says else {})


@pytest.mark.parametrize(
    ("mark", "counted"),
    [
        ({"is_error": False}, {}), ({"status": "success"}, {}), ({"error": None}, {}),
        ({"error": ""}, {}), ({"error": {}}, {}), ({"error": False}, {}), ({"error": "false"}, 1),
        ({"content": {"error": 0.02}}, {}), ({"content": '{"error": "e"}'}, {}),
        ({"status": "odd"}, 1), ({"is_error": "perhaps"}, 1), ({"error": 0.02}, 1),
    ],
)  # fmt: skip
def test_what_is_no_mark_of_an_error_leaves_the_call_as_it_is(tmp_path, mark, counted):
    _, counts, row = talk(tmp_path, NAMELESS, result("1") | mark, result("2"))
    assert "failed_call" not in kinds(row)
    assert counts == ({f"'{next(iter(mark))}' of a message was not read": 1} if counted else {})


def test_the_call_that_failed_is_found_by_id_by_name_or_by_order(tmp_path):
    bad = {"is_error": True}
    for first, second in (
        (result("2", tool_call_id="b") | bad, result("1", tool_call_id="a")),
        (result("2", name="g") | bad, result("1", name="f")),
        (result("1"), result("2") | bad),
    ):
        calls = AB if "tool_call_id" in first else NAMELESS
        row = talk(tmp_path, calls, first, second)[2]
        assert kinds(row)[1:3] == ["tool_call", "failed_call"]
    row = talk(tmp_path, AB, {"role": "user", "content": "x"}, result("1", tool_call_id="a") | bad)
    assert kinds(row[2])[1:3] == ["failed_call", "tool_call"]


def test_an_error_whose_call_cannot_be_told_is_counted(tmp_path):
    bad = {"is_error": True}
    assert talk(tmp_path, result("1") | bad, {"role": "assistant", "content": "a"})[1] == {LOST: 1}
    two = json.dumps([{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}])
    said = {"role": "assistant", "content": [{"type": "tool_call", "value": two}]}
    _, counts, row = talk(tmp_path, said, result("1") | bad)
    assert (counts[LOST], kinds(row)[1:3]) == (1, ["tool_call", "tool_call"])
