"""Lists of messages: chat, messages and sharegpt."""

import json
import shlex

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
        ({"messages": chat(ASK), "weight": -0.5}, "weight is the number -0.5"),
        ({"messages": [chat(ASK)]}, "found an array of 1; expected a message"),
        ({"text": "x"}, "found the fields text; expected a list 'messages'"),
        (3, "found the number 3; expected an object"),
    ],
)
def test_a_row_without_proper_messages_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "a.jsonl", jsonl(row)), format="messages")


@pytest.mark.parametrize(
    ("row", "system"),
    [
        ({"system_prompt": "Be brief."}, "Be brief."),
        ({"system": "Be brief.", "system_prompt": "Be brief."}, "Be brief."),
        ({"functions": [{"name": "f"}]}, 'Tools:\n[{"name": "f"}]'),
        ({"tools": [{"name": "f"}], "functions": '[{"name": "f"}]'}, 'Tools:\n[{"name": "f"}]'),
    ],
)
def test_what_a_row_says_to_the_system_is_read_under_each_name(tmp_path, row, system):
    path = write(tmp_path / "a.jsonl", jsonl(row | {"messages": chat(ASK, TELL)}))
    assert turns(read(path, strict=True)[1][0]) == [("system", system), ASK, TELL]


def test_a_system_message_that_the_row_repeats_is_read_once(tmp_path):
    messages = chat(("system", 'Use [{"name": "f"}]'), ASK, TELL)
    row = {"messages": messages, "system": 'Use [{"name": "f"}]', "tools": [{"name": "f"}]}
    _, rows = read(write(tmp_path / "a.jsonl", jsonl(row)))
    assert turns(rows[0]) == [("system", 'Use [{"name": "f"}]'), ASK, TELL]


@pytest.mark.parametrize(
    "row",
    [
        {"system": "a", "system_prompt": "b"},
        {"tools": [{"name": "f"}], "functions": [{"name": "g"}]},
    ],
)
def test_a_row_that_contradicts_itself_is_refused(tmp_path, row):
    with pytest.raises(DataError, match="differ; keep one of them"):
        read(write(tmp_path / "a.jsonl", jsonl(row | {"messages": chat(ASK, TELL)})))


@pytest.mark.parametrize("key", ["messages", "conversations", "conversation", "contents"])
def test_a_list_of_messages_is_found_under_each_name(tmp_path, key):
    row = {"messages": [], "prompt": "hi", "conversation_id": 3, "model": "m"} | {
        key: chat(ASK, TELL)
    }
    _, rows = read(write(tmp_path / "a.jsonl", jsonl(row)), strict=True)
    assert turns(rows[0]) == [ASK, TELL]


def test_fields_of_a_row_that_are_not_read_are_counted_by_name_and_may_be_refused(tmp_path):
    more = {"context": "x", "options": ["a"], "images": [], "prompt": "other", "id": 1}
    rows = [more | {"messages": chat(ASK, TELL), "documents": [n]} for n in range(3)]
    path = write(tmp_path / "a.jsonl", jsonl(*rows))
    reader, _ = read(path)
    assert notes(reader) == {
        "'context' of the row was not read": 3,
        "'options' of the row was not read": 3,
        "'prompt' of the row was not read": 3,
        "'documents' of the row was not read, and it varies": 3,
    }
    with pytest.raises(DataError, match=r"a.jsonl:1: .*'context' of the row.* are not read"):
        read(path, strict=True)


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ([("Human", "hi"), ("bing it's", "yo")], [ASK, TELL]),
        ([("narrator", "hi"), ("gpt", "yo")], [ASK, TELL]),
    ],
)
def test_the_cure_for_a_role_that_nobody_knows_is_a_mapping_that_reads_the_row(
    tmp_path, said, heard
):
    turns_ = [{"from": who, "value": text} for who, text in said]
    path = write(tmp_path / "a.jsonl", jsonl({"conversations": turns_}))
    with pytest.raises(DataError, match=r"unknown role '(bing it's|narrator)'") as caught:
        read(path)
    flags = shlex.split(str(caught.value).partition("each means: ")[2])
    asked = dict(zip(flags[::2], flags[1::2], strict=True))
    mapping = {
        "turns": asked["--turns_field"],
        "role": asked["--role_field"],
        "text": asked["--text_field"],
        "roles": dict(pair.split("=") for pair in asked["--role_names"].split(",")),
    }
    assert turns(read(path, format=asked["--format"], mapping=mapping)[1][0]) == heard
