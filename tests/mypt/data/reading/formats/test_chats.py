"""Lists of messages: chat, messages and sharegpt."""

import json

import pytest

from mypt.data.reading.raw import Limits
from mypt.errors import DataError
from tests.mypt.data.rawfiles import (
    ASK,
    TELL,
    chat,
    dropped,
    jsonl,
    memory_below,
    notes,
    read,
    turns,
    write,
)


def test_chat_has_a_message_a_line_and_a_blank_line_between_conversations(tmp_path):
    one, two = jsonl(*chat(ASK, TELL)), jsonl(*chat(ASK, TELL, ASK, TELL))
    reader, rows = read(write(tmp_path / "a.jsonl", f"\n{one}\n \r\n{two}\n"))
    assert reader.format == "chat"
    assert [turns(row) for row in rows] == [[ASK, TELL], [ASK, TELL, ASK, TELL]]
    assert [row.origin.line for row in rows] == [2, 6]


def test_a_chat_in_which_someone_says_nothing_is_dropped_whole(tmp_path):
    content = jsonl(*chat(ASK, ("assistant", ""), ASK)) + "\n" + jsonl(*chat(ASK, TELL))
    reader, rows = read(write(tmp_path / "a.jsonl", content))
    assert [turns(row) for row in rows] == [[ASK, TELL]]
    assert dropped(reader) == {"a message of the assistant without text": 1}
    assert reader.record().rows_read == 2


def test_a_chat_without_an_end_is_refused_before_memory_is_full(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl(*chat(ASK)) * 200_000)
    with memory_below(8 << 20), pytest.raises(DataError, match=r"began at .*a.jsonl:1 has more"):
        read(path, Limits(row_bytes=1 << 16))


def test_messages_are_read_from_rows_lists_and_strings(tmp_path):
    messages = chat(ASK, TELL)
    content = jsonl({"id": 1, "messages": messages}, messages, {"messages": json.dumps(messages)})
    reader, rows = read(write(tmp_path / "a.jsonl", content))
    assert reader.format == "messages"
    assert [turns(row) for row in rows] == [[ASK, TELL]] * 3


def test_sharegpt_names_map_to_roles_and_tools_join_the_system_text(tmp_path):
    row = {
        "conversations": [
            {"from": "human", "value": "hi"},
            {"from": "function_call", "value": "f()"},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "yo"},
        ],
        "system": "Be kind.",
        "tools": '[{"name": "f"}]',
    }
    reader, rows = read(write(tmp_path / "a.json", json.dumps([row, row | {"system": ""}])))
    assert reader.format == "sharegpt"
    assert turns(rows[0]) == [
        ("system", 'Be kind.\n\nTools:\n[{"name": "f"}]'),
        ASK, ("assistant", "f()"), ("tool", "3"), TELL,
    ]  # fmt: skip
    assert [part.kind for part in rows[0].messages[2].parts] == ["tool_call"]
    assert len(rows[0].messages[0].parts) == 1
    assert turns(rows[1])[0] == ("system", 'Tools:\n[{"name": "f"}]')


@pytest.mark.parametrize("tools", ["", "[]", [], None, "null"])
def test_no_tools_make_no_system_message(tmp_path, tools):
    row = {"messages": chat(ASK, TELL), "tools": tools}
    assert turns(read(write(tmp_path / "a.jsonl", jsonl(row)))[1][0]) == [ASK, TELL]


def test_a_blank_system_message_is_left_out_and_counted(tmp_path):
    rows = [{"messages": chat(("system", " "), ASK, TELL)}]
    reader, found = read(write(tmp_path / "a.jsonl", jsonl(*rows)))
    assert turns(found[0]) == [ASK, TELL]
    assert notes(reader) == {"empty system message left out": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "a.jsonl:1: an empty conversation"),
        ({"messages": chat(("system", ""))}, "an empty conversation"),
        ({"messages": "hello"}, "no JSON"),
        ({"messages": "{}"}, "found an empty object; expected a list"),
        ({"messages": chat(("system", "x"), ASK), "system": "y"}, "keep one of them"),
        ({"messages": chat(ASK), "system": 3}, "system is no text"),
        ({"messages": chat(ASK), "weight": 0.5}, "weight is the number 0.5"),
        ({"messages": [chat(ASK)]}, "found an array of 1; expected a message"),
        ({"text": "x"}, "found the fields text; expected a list 'messages'"),
        (3, "found the number 3; expected an object"),
    ],
)
def test_a_row_without_proper_messages_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "a.jsonl", jsonl(row)), format="messages")
