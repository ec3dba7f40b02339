"""Rows of single messages: brought together by a column, put in order, or refused."""

import json
import random

import pyarrow as pa
import pytest
from pyarrow import parquet

from mypt.data.reading import portions
from mypt.data.reading.formats import threads
from mypt.errors import DataError
from tests.mypt.data.marks import asked, marked
from tests.mypt.data.rawfiles import (
    ASK,
    TELL,
    chat,
    jsonl,
    leaf,
    memory_below,
    notes,
    read,
    trains,
    turns,
    write,
)

TALKS = ["ab", "cd", "efgh"]


def messages(talk):
    return chat(*zip(("user", "assistant") * 4, talk, strict=False))


def flat(column="conversation_id", **more):
    """The talks as rows of one message, each with the name of its talk."""
    return [
        {column: f"t{n}"} | message | {key: value(i) for key, value in more.items()}
        for n, talk in enumerate(TALKS)
        for i, message in enumerate(messages(talk))
    ]


LEARNED = [asked("a", "b"), asked("c", "d"), asked("e", "f") + asked("g", "h")]


@pytest.mark.parametrize("column", threads.GROUPS)
def test_messages_are_brought_together_by_the_column_that_names_their_conversation(
    tmp_path, column
):
    reader, rows = read(write(tmp_path / "a.jsonl", jsonl(*flat(column))))
    assert [marked(row) for row in rows] == LEARNED
    assert notes(reader) == {f"conversation brought together by {column!r}": 3}
    parquet.write_table(pa.Table.from_pylist(flat(column)), tmp_path / "a.parquet")
    assert [marked(row) for row in read(tmp_path / "a.parquet")[1]] == LEARNED


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("turn", lambda i: i),
        ("turn_index", str),
        ("timestamp", lambda i: 1.5 * i),
        ("created_at", lambda i: f"2024-01-0{i + 1}T00:00:00"),
    ],
)
def test_messages_in_any_order_are_put_in_order(tmp_path, key, value):
    rows = flat(**{key: value})
    random.Random(1).shuffle(rows)
    reader, found = read(write(tmp_path / "a.jsonl", jsonl(*rows)))
    assert sorted(marked(row) for row in found) == sorted(LEARNED)
    assert notes(reader)[f"conversation put in order by {key!r}"] >= 1


def test_a_conversation_may_lie_apart_within_the_window_and_is_refused_beyond(
    tmp_path, monkeypatch
):
    rows = flat()
    mixed = [rows[0], rows[2], rows[1], rows[3]]
    path = write(tmp_path / "a.jsonl", jsonl(*mixed))
    assert [marked(row) for row in read(path)[1]] == LEARNED[:2]
    monkeypatch.setattr(threads, "WINDOW_BYTES", 100)
    with pytest.raises(DataError, match=r"a.jsonl:3: the conversation 't0' comes back .*; sort"):
        read(path)
    ordered = sorted(mixed, key=lambda row: row["conversation_id"])
    assert [marked(row) for row in read(write(path, jsonl(*ordered)))[1]] == LEARNED[:2]


def test_a_portion_cuts_no_conversation_that_a_column_brings_together(tmp_path, monkeypatch):
    monkeypatch.setattr(portions, "PORTION_BYTES", 50)
    content = jsonl(*flat()).replace("\n", "\n\n")
    reader, _ = read(write(tmp_path / "a.jsonl", content))
    (portion,) = reader.portions(0)
    assert len(portion.pieces) == 1


def test_a_table_of_messages_that_nothing_parts_is_refused_and_the_way_out_works(tmp_path):
    path = write(tmp_path / "a.csv", "talk,role,content\n1,user,a\n1,assistant,b\n2,user,c\n")
    with pytest.raises(DataError, match=r"a table of single messages.*--group_by COLUMN"):
        read(path)
    found = [turns(row) for row in read(path, group_by="talk")[1]]
    assert found == [[("user", "a"), ("assistant", "b")], [("user", "c")]]
    named = write(tmp_path / "b.csv", path.read_text().replace("talk", "conversation_id"))
    assert [turns(row) for row in read(named)[1]] == found
    parquet.write_table(pa.Table.from_pylist(messages("abcd")), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="a table of single messages"):
        read(tmp_path / "a.parquet")


def test_empty_lines_of_a_table_part_its_messages(tmp_path):
    path = write(tmp_path / "a.csv", "role,content\nuser,a\nassistant,b\n\nuser,c\nassistant,d\n")
    assert [marked(row) for row in read(path)[1]] == LEARNED[:2]


def nodes(*links):
    return [
        {"message_id": own, "parent_id": parent} | chat((role, own))[0]
        for own, parent, role in links
    ]


def test_messages_that_name_the_one_they_answer_are_a_tree(tmp_path):
    rows = nodes(("q", None, "user"), ("x", "q", "assistant"), ("y", "q", "assistant"))
    _, found = read(write(tmp_path / "a.jsonl", jsonl(*rows)))
    root = leaf("user", "q", leaf("assistant", "x"), leaf("assistant", "y"))
    _, nested = read(write(tmp_path / "b.jsonl", jsonl({"prompt": root})))
    assert [row.messages for row in found] == [row.messages for row in nested]
    assert [trains(row) for row in found] == [[None, None], [False, None]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (nodes(("q", None, "user"), ("x", "z", "assistant")), "'z' is no message_id of a row bef"),
        (nodes(("q", None, "user"), ("q", "q", "assistant")), "message_id 'q' stands twice"),
        (nodes(("q", None, "user"), (None, "q", "assistant")), "a message without message_id"),
        ([{"thread": "t"} | row for row in nodes(("q", None, "user"), ("x", "z", "assistant"))],
         "'z' is no message_id of its conversation"),
        ([{"thread": "t"} | row for row in nodes(("q", "x", "user"), ("x", "q", "assistant"))],
         "leads in a circle"),
        ([{"thread": "t"} | row for row in nodes(
            ("0", None, "user"), *((str(n), str(n - 1), "user") for n in range(1, 300)))],
         "more than 200 answers deep"),
        ([*flat()[:1], {"role": "user", "content": "x"}], "conversation_id is null; expected"),
    ],
)  # fmt: skip
def test_links_that_lead_nowhere_are_named(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "a.jsonl", jsonl(*rows)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2024-01-01T10:00:00Z", "2024-01-01T10:00:00.5Z"),
        ("2024-01-01T11:00:00+02:00", "2024-01-01T10:00:00+00:00"),
        ("2024-01-01T10:00", "2024-01-01 10:01"),
    ],
)
def test_times_are_compared_as_times_however_they_are_written(tmp_path, first, second):
    rows = [
        {"conversation_id": "t", "created_at": time} | message
        for time, message in zip((second, first), reversed(messages("ab")), strict=True)
    ]
    reader, found = read(write(tmp_path / "a.jsonl", jsonl(*rows)))
    assert [marked(row) for row in found] == [asked("a", "b")]
    assert notes(reader)["conversation put in order by 'created_at'"] == 1


def test_times_that_tell_no_order_are_counted(tmp_path):
    rows = flat(created_at=lambda i: f"0{i + 1}.02.2024")
    reader, found = read(write(tmp_path / "a.jsonl", jsonl(*rows)))
    assert [marked(row) for row in found] == LEARNED
    assert notes(reader)["conversation left as it stands: 'created_at' tells no order"] == 3


@pytest.mark.parametrize("column", ["conversationId", "Session ID", "thread-id", "ChatID"])
def test_a_column_is_known_however_its_words_are_joined(tmp_path, column):
    _, found = read(write(tmp_path / "a.jsonl", jsonl(*flat(column))))
    assert [marked(row) for row in found] == LEARNED


@pytest.mark.parametrize("unnamed", [{}, {"conversation_id": None}, {"conversation_id": ""}])
@pytest.mark.parametrize("first", [True, False])
def test_a_row_without_the_conversation_that_others_name_is_refused(tmp_path, unnamed, first):
    rows = [unnamed | message for message in messages("xy")]
    rows = [*rows, *flat()] if first else [*flat(), *rows]
    with pytest.raises(DataError, match=r"expected (its conversation in every|the name of its)"):
        read(write(tmp_path / "a.jsonl", jsonl(*rows)))


NAMELESS = [message | {"talk": name} for name in "ab" for message in chat(ASK, TELL)]


@pytest.mark.parametrize("column", ["talk", "id", "Nr", "uuid"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_lines_that_an_unknown_column_seems_to_part_are_refused_and_both_ways_out_work(
    tmp_path, column, name
):
    rows = [chat(turn)[0] | {column: n} for n in (1, 2) for turn in (ASK, TELL)]
    content = jsonl(*rows) if name == "a.jsonl" else json.dumps(rows)
    path = write(tmp_path / name, content)
    ways = f"{column!r} is the number 1, then the number 2, .* --group_by {column} if it names it"
    with pytest.raises(DataError, match=ways):
        read(path)
    _, found = read(path, group_by=column)
    assert [turns(row) for row in found] == [[ASK, TELL]] * 2
    whole = write(tmp_path / "b.jsonl", jsonl({"messages": rows}))
    assert [turns(row) for row in read(whole)[1]] == [[ASK, TELL] * 2]


@pytest.mark.parametrize(
    "beside",
    [
        [{"talk": "a"}] * 4,
        [{"id": n} for n in range(4)],
        [{"name": name} for name in ("Ann", "Bob", "Ann", "Bob")],
        [{"date": f"2024-01-0{day}"} for day in (1, 1, 2, 2)],
        [{"tokens": n} for n in (3, 5, 9, 3)],
        [{"talk": "a"}, {"talk": "a"}, {}, {"talk": "b"}],
    ],
)
def test_lines_that_no_column_parts_are_one_conversation(tmp_path, beside):
    rows = [message | more for message, more in zip(chat(ASK, TELL) * 2, beside, strict=True)]
    (found,) = read(write(tmp_path / "a.jsonl", jsonl(*rows)))[1]
    assert turns(found) == [ASK, TELL] * 2


def test_an_empty_line_says_that_no_column_parts_the_messages(tmp_path):
    (found,) = read(write(tmp_path / "a.jsonl", jsonl(*NAMELESS) + "\n"))[1]
    assert turns(found) == [ASK, TELL] * 2


def test_what_is_kept_of_conversations_that_ended_is_small(monkeypatch):
    monkeypatch.setattr(threads, "_FEW", 100)
    names = [f"0123456789abcdef-{n}" for n in range(20_000)]
    with memory_below(2 << 20):
        ended = threads._Ended()
        for name in names:
            assert name not in ended
            ended.add(name)
        assert all(name in ended for name in names)


def test_an_answer_to_what_was_given_away_long_ago_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "WINDOW_BYTES", 200)
    rows = [
        chat(turn)[0] | {"message_id": f"{n}{turn[0]}", "parent_id": parent}
        for n in range(9)
        for turn, parent in ((ASK, None), (TELL, f"{n}user"))
    ]
    late = chat(ASK)[0] | {"message_id": "x", "parent_id": "0assistant"}
    assert len(read(write(tmp_path / "a.jsonl", jsonl(*rows)))[1]) == 9
    with pytest.raises(DataError, match=r"a.jsonl:19: parent_id '0assistant' is no message_id of"):
        read(write(tmp_path / "a.jsonl", jsonl(*rows, late)))


@pytest.mark.parametrize(
    ("more", "message"),
    [({"id": None}, "a.jsonl:2: a message without id"),
     ({"replies": [1]}, "a.jsonl:2: a message with replies in it and 'parent_id' beside")],
)  # fmt: skip
def test_a_flat_tree_whose_rows_lack_a_name_or_hold_answers_is_refused(tmp_path, more, message):
    rows = [
        {"thread": "t", "id": "1", "parent_id": None, "role": "user", "content": "a"},
        {"thread": "t", "id": "2", "parent_id": "1", "role": "assistant", "content": "b"} | more,
    ]
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "a.jsonl", jsonl(*rows)))
