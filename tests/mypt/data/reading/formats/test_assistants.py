"""Talks with an assistant as ChatGPT, Claude and Gemini export them."""

import json

import pytest

from mypt.errors import DataError
from tests.mypt.data.rawfiles import dropped, jsonl, notes, read, trains, turns, with_mask, write


def node(name, parent, role="", text="", **more):
    """A node of ChatGPT's tree; without a role one that holds no message."""
    content = {"content_type": "text", "parts": [text]}
    message = {
        "id": name, "author": {"role": role, "name": None}, "content": content, "weight": 1.0,
        "status": "finished_successfully", "recipient": "all", "metadata": {},
    } | more  # fmt: skip
    return {name: {"id": name, "parent": parent, "message": message if role else None}}


def tree(*nodes, current="last", **more):
    mapping = {name: value for one in nodes for name, value in one.items()}
    return {"title": "t", "mapping": mapping, "current_node": current} | more


MOVED = "results of parallel calls put into the order of the calls"
HIDDEN = {"metadata": {"is_visually_hidden_from_conversation": True}}
TRIP = [
    node("root", None),
    node("hidden", "root", "system", "Obey", **HIDDEN),
    node("empty", "hidden", "system", ""),
    node("ask", "empty", "user", "Go?"),
    node("old", "ask", "assistant", "No."),
    node("last", "ask", "assistant", "Yes."),
]


def chatgpt(path, *rows):
    return read(write(path / "conversations.json", json.dumps(rows)))


def test_of_a_chatgpt_tree_the_branch_is_learned_that_ends_in_the_current_node(tmp_path):
    reader, (row, other) = chatgpt(tmp_path, tree(*TRIP), tree(*TRIP, current="old"))
    assert reader.format == "chatgpt"
    assert with_mask(row) == ("Go?Yes.|", "00011111")
    assert with_mask(other) == ("Go?No.|", "0001111")
    assert notes(reader) == {
        "hidden message left out": 2,
        "empty message left out": 2,
        "message of another branch left out": 2,
    }
    assert other.origin.line == 2


def test_a_tree_without_a_current_node_is_read_where_it_has_one_end(tmp_path):
    _, (row,) = chatgpt(tmp_path, tree(*TRIP[:4], TRIP[5], current=None))
    assert turns(row) == [("user", "Go?"), ("assistant", "Yes.")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (tree(*TRIP, current=None), "current_node is null in a tree with 2 ends; expected"),
        (tree(*TRIP, current="gone"), "current_node is 'gone' in a tree with 2 ends"),
        (tree(node("a", "b", "user", "x"), node("b", "a", "user", "y"), current="a"),
         "node 'a' is its own ancestor; expected a tree"),
        (tree(node("a", "gone", "user", "x"), current="a"), "node 'gone' is not in the tree"),
        (tree(node("last", None, "narrator", "x")), "unknown role 'narrator'"),
    ],
)  # fmt: skip
def test_a_broken_tree_is_refused_with_its_place(tmp_path, row, message):
    with pytest.raises(DataError, match=f"json: item 2: {message}"):
        chatgpt(tmp_path, tree(*TRIP), row)


def test_tools_thoughts_and_parts_that_are_no_text_keep_their_kind(tmp_path):
    image = {"content_type": "image_asset_pointer", "asset_pointer": "x"}
    spoken = {"content_type": "audio_transcription", "text": "aloud"}
    row = tree(
        node("q", None, "user", content={
            "content_type": "multimodal_text", "parts": [image, "See"]}),
        node("t", "q", "assistant", content={
            "content_type": "thoughts", "thoughts": [{"summary": "s", "content": "hm"}]}),
        node("r", "t", "assistant", content={"content_type": "reasoning_recap", "content": "1s"}),
        node("c", "r", "assistant", recipient="python",
             content={"content_type": "code", "language": "python", "text": "1+1"}),
        node("o", "c", "tool", content={"content_type": "execution_output", "text": "2"}),
        node("a", "o", "assistant", "It is", weight=0.0),
        node("b", "a", "assistant", "two."),
        node("v", "b", "user", content={"content_type": "multimodal_text", "parts": [spoken]}),
        node("last", "v", "assistant", "Cut", status="in_progress"),
    )  # fmt: skip
    reader, (row,) = chatgpt(tmp_path, row)
    assert turns(row) == [
        ("user", "See"),
        ("assistant", 'hm{"name": "python", "arguments": "1+1"}'),
        ("tool", "2"),
        ("assistant", "It is"),
        ("assistant", "two."),
        ("user", "aloud"),
        ("assistant", "Cut"),
    ]
    assert [part.kind for part in row.messages[1].parts] == ["reasoning", "tool_call"]
    assert trains(row) == [None, None, None, False, None, None, None]
    assert notes(reader) == {
        "part 'image_asset_pointer', which is no text, left out": 1,
        "part 'reasoning_recap', which is no text, left out": 1,
        "'summary' of a thought was not read": 1,
        "empty message left out": 1,
        "message joined to the one before": 1,
        "answer with status 'in_progress'": 1,
    }
    with pytest.raises(DataError, match="'image_asset_pointer' and no text; expected text where"):
        read(tmp_path / "conversations.json", strict=True)


def test_a_tree_in_which_nothing_is_said_is_dropped(tmp_path):
    reader, (_,) = chatgpt(tmp_path, tree(node("last", None)), tree(*TRIP))
    assert dropped(reader) == {"a conversation without text": 1}


def block(sender, *content, text_is=None, **more):
    said = "".join(one.get("text", "") for one in content) if text_is is None else text_is
    return {"uuid": "u", "sender": sender, "text": said, "content": list(content)} | more


def claude(path, *messages, **more):
    row = {"uuid": "c", "name": "n", "account": {"uuid": "a"}, "chat_messages": messages} | more
    return read(write(path / "conversations.json", json.dumps([row])))


def text(said):
    return {"type": "text", "text": said}


def test_of_a_claude_export_blocks_are_learned_as_what_they_are(tmp_path):
    reader, (row,) = claude(
        tmp_path,
        block("human", text("Sum?"), attachments=[{"extracted_content": "1 2"}], files=[]),
        block(
            "assistant",
            {"type": "thinking", "thinking": "hm"},
            {"type": "tool_use", "name": "add", "input": {"a": 1}},
            {"type": "tool_result", "content": [text("3")]},
            text("It is "),
            text("3."),
        ),
        block("human", text(" ")),
        block("human", text_is="flat"),
        block("assistant", {"type": "token_budget"}, text("Ok.")),
    )
    assert reader.format == "claude"
    assert turns(row) == [
        ("user", "Sum?"),
        ("assistant", 'hm{"name": "add", "arguments": {"a": 1}}'),
        ("tool", "3"),
        ("assistant", "It is 3."),
        ("user", "flat"),
        ("assistant", "Ok."),
    ]
    assert notes(reader) == {
        "'attachments' of a message was not read": 1,
        "empty message left out": 1,
        "part 'token_budget', which is no text, left out": 1,
    }


def test_consecutive_messages_of_a_claude_export_are_one_turn(tmp_path):
    said = [block("human", text("a")), block("human", text("b")), block("assistant", text("c"))]
    reader, (row,) = claude(tmp_path, *said)
    assert with_mask(row) == ("a\nbc|", "00011")
    assert notes(reader) == {"message joined to the one before": 1}


def test_of_claude_messages_that_name_their_parents_the_last_branch_is_read(tmp_path):
    said = [
        block(sender, text(name), uuid=name, parent_message_uuid=parent)
        for name, parent, sender in (
            ("q", "0000", "human"), ("old", "q", "assistant"), ("new", "q", "assistant"),
        )
    ]  # fmt: skip
    reader, (row,) = claude(tmp_path, *said)
    assert turns(row) == [("user", "q"), ("assistant", "new")]
    assert notes(reader) == {"message of another branch left out": 1}


def test_gemini_contents_keep_thoughts_calls_and_answers_apart(tmp_path):
    row = {
        "systemInstruction": {"parts": [{"text": "Be "}, {"text": "brief."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Sum"}, {"text": "?"}, {"inlineData": {}}]},
            {"role": "model", "parts": [
                {"text": "hm", "thought": True},
                {"functionCall": {"name": "add", "args": {"a": 1}}}]},
            {"role": "user", "parts": [
                {"functionResponse": {"name": "add", "response": {"r": 3}}}]},
            {"role": "model", "parts": [{"text": "3"}]},
            {"role": "model", "parts": [{"text": "ok"}]},
        ],
    }  # fmt: skip
    reader, (found,) = read(write(tmp_path / "a.jsonl", jsonl(row)))
    assert reader.format == "gemini"
    assert turns(found) == [
        ("system", "Be brief."),
        ("user", "Sum?"),
        ("assistant", 'hm{"name": "add", "arguments": {"a": 1}}'),
        ("tool", '{"r": 3}'),
        ("assistant", "3\nok"),
    ]
    assert notes(reader) == {
        "part 'inlineData', which is no text, left out": 1,
        "message joined to the one before": 1,
    }


def test_gemini_rows_are_masked_by_role(tmp_path):
    row = {
        "system_instruction": {"parts": [{"text": "s"}]},
        "contents": [{"parts": [{"text": "ab"}]}, {"role": "model", "parts": [{"text": "cd"}]}],
    }
    _, (found,) = read(write(tmp_path / "a.jsonl", jsonl(row)))
    assert with_mask(found) == ("sabcd|", "000111")
    assert read(write(tmp_path / "one.json", json.dumps(row)))[1] == [found]
    _, (tuned,) = read(write(tmp_path / "b.jsonl", jsonl({"text_input": "ab", "output": "cd"})))
    assert with_mask(tuned) == ("abcd|", "00111")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"contents": [{"parts": "x"}]}, "parts is 'x'; expected a list"),
        ({"contents": [{"parts": [{"text": "a"}], "role": "x"}]}, "unknown role 'x'"),
        ({"chat_messages": [{"sender": "human", "content": [3]}]}, "found the number 3; expected"),
        (
            {"chat_messages": [{"sender": "human", "content": [{"type": "text"}]}]},
            "text is no text",
        ),
    ],
)
def test_what_an_export_does_not_hold_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=f"a.jsonl:1: {message}"):
        read(write(tmp_path / "a.jsonl", jsonl(row)))


def called(*calls):
    return [{"functionCall": {"name": name, "args": {}} | more} for name, more in calls]


def answered(*answers):
    given = ({"name": name, "response": {"r": name}} | more for name, more in answers)
    return [{"functionResponse": one} for one in given]


def gemini(path, calls, answers, **more):
    contents = [
        {"role": "user", "parts": [{"text": "q"}]},
        {"role": "model", "parts": calls},
        {"role": "user", "parts": answers},
    ]
    return read(write(path / "a.jsonl", jsonl({"contents": contents} | more)))


@pytest.mark.parametrize(
    ("calls", "answers", "counted"),
    [
        ([("f", {}), ("g", {})], [("g", {}), ("f", {})], {MOVED: 1}),
        ([("f", {"id": "1"}), ("g", {"id": "2"})], [("g", {"id": "2"}), ("f", {"id": "1"})],
         {MOVED: 1}),
        ([("f", {}), ("g", {})], [("f", {}), ("g", {})], {}),
        ([("f", {}), ("g", {}), ("h", {})], [("f", {}), ("g", {})],
         {"a call without a result beside calls that have one": 1}),
    ],
)  # fmt: skip
def test_gemini_answers_stand_in_the_order_of_their_calls(tmp_path, calls, answers, counted):
    reader, (row,) = gemini(tmp_path, called(*calls), answered(*answers))
    assert turns(row)[2:] == [("tool", '{"r": "f"}'), ("tool", '{"r": "g"}')]
    assert notes(reader) == counted


def test_a_gemini_answer_of_a_call_that_nobody_made_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"a result of the call '9', .* expected one of 1;"):
        gemini(tmp_path, called(("f", {"id": "1"})), answered(("f", {"id": "9"})))


def test_results_in_a_claude_export_stand_in_the_order_of_their_calls(tmp_path):
    def use(name):
        return {"type": "tool_use", "id": name, "name": name, "input": {}}

    def result(name):
        return {"type": "tool_result", "tool_use_id": name, "content": [text(name)]}

    said = (use("a"), use("b"), result("b"), result("a"), text("done"))
    reader, (row,) = claude(tmp_path, block("human", text("q"), text_is="q"), block(
        "assistant", *said, text_is="done"))  # fmt: skip
    assert turns(row)[2:] == [("tool", "a"), ("tool", "b"), ("assistant", "done")]
    assert notes(reader) == {MOVED: 1}


def kinds(row):
    return [part.kind for message in row.messages for part in message.parts]


def test_a_call_that_failed_is_told_apart_in_exports_of_claude_and_talks_of_gemini(tmp_path):
    bad = {"type": "tool_result", "tool_use_id": "a", "content": [text("no")], "is_error": True}
    use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    _, (row,) = claude(tmp_path, block("human", text("q")), block("assistant", use, bad))
    assert kinds(row) == ["text", "failed_call", "text"]
    calls = called(("f", {}), ("g", {}))
    for answer in ({"response": {"error": "no"}}, {"response": {"output": "yes"}}):
        _, (row,) = gemini(tmp_path, calls, answered(("f", {}), ("g", answer)))
        failed = "failed_call" if "error" in answer["response"] else "tool_call"
        assert kinds(row)[:3] == ["text", "tool_call", failed]
    ran = [{"executableCode": {"code": "1/0"}}]
    for outcome, kind in (("OUTCOME_FAILED", "failed_call"), ("OUTCOME_OK", "tool_call")):
        answer = [{"codeExecutionResult": {"outcome": outcome, "output": "x"}}]
        assert kinds(gemini(tmp_path, ran, answer)[1][0])[:2] == ["text", kind]


def test_text_of_a_claude_message_that_is_not_that_of_its_blocks_is_counted(tmp_path):
    said = [block("human", text("q"), text_is="q"), block("assistant", text("a"), text_is="other")]
    reader, (row,) = claude(tmp_path, *said)
    assert turns(row) == [("user", "q"), ("assistant", "a")]
    assert notes(reader) == {"'text' of a message differs from its blocks, which are read": 1}
    said[1] = block("assistant", text("a\n"), text(" b"), text_is="a b")
    assert notes(claude(tmp_path, *said)[0]) == {}


def test_what_stands_beside_the_text_of_a_part_is_counted(tmp_path):
    parts = {
        "user": {"text": "q", "inlineData": {"data": "x"}},
        "model": {"text": "a", "thoughtSignature": "s"},
    }
    row = {"contents": [{"role": role, "parts": [part]} for role, part in parts.items()]}
    reader, (found,) = read(write(tmp_path / "a.jsonl", jsonl(row)))
    assert turns(found) == [("user", "q"), ("assistant", "a")]
    assert notes(reader) == {"'inlineData' of a part of the content was not read": 1}


def test_what_the_parts_of_an_export_hold_besides_is_counted(tmp_path):
    content = {"content_type": "text", "parts": ["a"], "more": "x"}
    nodes = node("last", None, "user", content=content)
    nodes["last"]["about"] = "x"
    reader, _ = chatgpt(tmp_path, tree(nodes | {"odd": {"said": "x"}}))
    assert notes(reader) == {
        "'more' of a content was not read": 1,
        "'about' of a node was not read": 1,
        "message of another branch left out": 1,
    }
    answer = {"functionResponse": {"name": "f", "why": "x"}}
    call = {"functionCall": {"name": "f", "why": "x"}, "thought": "x"}
    row = {"systemInstruction": {"parts": [{"text": "s", "why": "x"}]}, "contents": [
        {"role": "user", "parts": [{"text": "a"}]}, {"role": "model", "parts": [call]},
        {"role": "user", "parts": [answer]}]}  # fmt: skip
    reader, (row,) = read(write(tmp_path / "a.jsonl", jsonl(row)))
    assert turns(row)[-1] == ("tool", "")
    assert notes(reader) == {
        "'why' of the system instruction was not read": 1,
        "'why' of a functionCall was not read": 1,
        "'why' of a functionResponse was not read": 1,
        "'thought' of a part of the content was not read": 1,
    }


def test_a_text_of_a_tool_needs_no_call(tmp_path):
    row = {"contents": [
        {"role": "user", "parts": [{"text": "a"}]},
        {"role": "model", "parts": [{"functionCall": {"name": "f"}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": "b"}}]},
        {"role": "tool", "parts": [{"text": "c"}]},
        {"role": "model", "parts": [{"text": "d"}]}]}  # fmt: skip
    _, (found,) = read(write(tmp_path / "a.jsonl", jsonl(row)))
    assert turns(found)[2:] == [("tool", "b"), ("tool", "c"), ("assistant", "d")]


def test_fields_of_a_block_are_read_by_its_type(tmp_path):
    blocks = [
        {"type": "thinking", "thinking": "a", "input": "x", "cut_off": False, "message": "m"},
        {"type": "text", "text": "b", "thinking": "x"},
    ]
    row = {"chat_messages": [{"sender": "assistant", "content": blocks}]}
    reader, (found,) = read(write(tmp_path / "a.jsonl", jsonl(row)))
    assert turns(found) == [("assistant", "ab")]
    assert notes(reader) == {
        "'input' of a block was not read": 1,
        "'thinking' of a block was not read": 1,
    }
