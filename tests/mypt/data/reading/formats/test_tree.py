"""Trees of messages: every path, each message supervised once."""

import re

from hypothesis import given
from hypothesis import strategies as st

from tests.mypt.data.rawfiles import dropped, jsonl, leaf, notes, read, trains, turns, write


def test_a_tree_gives_every_path_and_supervises_each_message_once(tmp_path):
    root = leaf(
        "prompter", "q",
        leaf("assistant", "a", leaf("prompter", "aq", leaf("assistant", "aqa"))),
        leaf("assistant", "b", leaf("prompter", "bq"), leaf("prompter", "br")),
    )  # fmt: skip
    reader, rows = read(write(tmp_path / "a.jsonl", jsonl({"prompt": root}, root)))
    assert reader.format == "tree"
    paths = [
        ["q", "a", "aq", "aqa"], ["q", "b", "bq"], ["q", "b", "br"],
    ]  # fmt: skip
    assert [[text for _, text in turns(row)] for row in rows] == paths * 2
    assert [trains(row) for row in rows[:3]] == [
        [None, None, None, None], [False, None, None], [False, False, None],
    ]  # fmt: skip


@given(
    st.recursive(st.builds(list), lambda inner: st.lists(inner, max_size=3), max_leaves=12),
)
def test_the_paths_of_any_tree_are_its_leaves_and_supervise_every_message_once(
    tmp_path_factory, shape
):
    names = iter(range(10_000))

    def grow(children, role):
        other = "assistant" if role == "prompter" else "prompter"
        return leaf(role, f"m{next(names)}", *(grow(child, other) for child in children))

    def leaves(children):
        return sum(map(leaves, children)) or 1

    row = {"prompt": grow(shape, "prompter")}
    path = write(tmp_path_factory.getbasetemp() / "tree.jsonl", jsonl(row))
    _, rows = read(path)
    assert len(rows) == leaves(shape)
    own = [m.text for row in rows for m in row.messages if m.train is None]
    assert sorted(own) == sorted(re.findall(r"m\d+", path.read_text()))


def test_deleted_and_empty_replies_are_left_out_with_what_follows_them(tmp_path):
    root = leaf(
        "prompter", "q",
        leaf("assistant", "gone", leaf("prompter", "x"), deleted=True),
        leaf("assistant", " ", leaf("prompter", "x")),
        leaf("assistant", "a"),
    )  # fmt: skip
    lost = leaf("prompter", "", leaf("assistant", "a"))
    reader, rows = read(write(tmp_path / "a.jsonl", jsonl({"prompt": root}, {"prompt": lost})))
    assert [turns(row) for row in rows] == [[("user", "q"), ("assistant", "a")]]
    assert notes(reader) == {
        "reply left out: deleted": 1,
        "reply left out: a message of the assistant without text": 1,
        "reply left out: a message of the user without text": 1,
    }
    assert dropped(reader) == {"a tree whose root was deleted or has no text": 1}


def test_a_row_around_a_tree_is_heard_and_its_other_fields_are_counted(tmp_path):
    root = leaf(
        "prompter", "q", leaf("assistant", "a"), leaf("assistant", "b", train=True), labels={"x": 1}
    )
    row = {"prompt": root, "system": "s", "train": False, "mood": "m", "message_tree_id": "1"}
    reader, rows = read(write(tmp_path / "a.jsonl", jsonl(row)))
    assert [turns(row) for row in rows] == [
        [("system", "s"), ("user", "q"), ("assistant", text)] for text in "ab"
    ]
    assert [trains(row) for row in rows] == [[None, None, False], [False, False, True]]
    assert notes(reader) == {
        "'mood' of the row was not read": 1,
        "'labels' of a message was not read": 1,
    }


def test_a_reply_is_deleted_however_a_table_spells_it_and_other_words_are_counted(tmp_path):
    replies = [
        leaf("assistant", n, deleted=v) for n, v in zip("abc", ["True", 0, "x"], strict=True)
    ]
    reader, rows = read(write(tmp_path / "a.jsonl", jsonl(leaf("prompter", "q", *replies))))
    assert [turns(row)[1] for row in rows] == [("assistant", "b"), ("assistant", "c")]
    assert notes(reader) == {
        "reply left out: deleted": 1,
        "'deleted' of a message was not read": 1,
    }


def test_an_error_of_a_tool_in_a_tree_whose_calls_are_not_linked_is_counted(tmp_path):
    given = leaf("tool", "no", leaf("assistant", "a"), is_error=True)
    reader, (row,) = read(write(tmp_path / "a.jsonl", jsonl(leaf("prompter", "q", given))))
    assert turns(row) == [("user", "q"), ("tool", "no"), ("assistant", "a")]
    assert notes(reader) == {"a result marked as an error whose call cannot be told": 1}
