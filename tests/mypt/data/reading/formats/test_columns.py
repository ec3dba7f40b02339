"""Rows of columns: choices, judgements, shapes of one's own, and what is said of the rest."""

import json
import random
import re

import pyarrow as pa
import pytest
from pyarrow import parquet

from mypt.config import Reading, Source
from mypt.data.reading.formats.shapes import SHAPES
from mypt.data.reading.raw import RawFile
from mypt.data.reading.readers import read_rows
from mypt.data.reading.records import Tally
from mypt.data.reading.sources import open_source
from mypt.errors import ConfigError, DataError
from tests.mypt.data.marks import asked, marked
from tests.mypt.data.rawfiles import (
    ASK,
    TELL,
    chat,
    dropped,
    jsonl,
    leaf,
    notes,
    read,
    trains,
    turns,
    write,
)

MESSAGES, WRONG = chat(("user", "a"), ("assistant", "b")), chat(("assistant", "no"))
CHOICE = {"chosen": "b", "rejected": "no"}


def test_the_data_sets_that_hold_messages_are_read_as_messages(tmp_path):
    """UltraChat 200k and No Robots repeat the prompt; OpenHermes and Magpie name the system."""
    talk = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    rows = [
        {"prompt": "a", "prompt_id": "1", "messages": MESSAGES, "category": None},
        {"conversations": talk, "system": "s", "source": "x"},
        {"conversations": talk, "system_prompt": "s", "id": 1},
    ]
    told = [asked("a", "b"), asked("a", "b", "s"), asked("a", "b", "s")]
    for row, learned, format in zip(rows, told, ("messages", "sharegpt", "sharegpt"), strict=True):
        reader, found = read(write(tmp_path / "a.jsonl", jsonl(row, row, row)))
        assert [marked(one) for one in found] == [learned] * 3
        assert (reader.format, notes(reader)) == (format, {})


def test_trees_and_their_flat_export_are_learned_alike(tmp_path):
    root = leaf("prompter", "q", leaf("assistant", "a"), leaf("assistant", "b"))
    learned = [asked("q", "a"), "<User>q</User><Assistant>⟦b</Assistant>⟧"]
    flat = [
        {"message_id": "1", "parent_id": None, "message_tree_id": "1", "role": "prompter",
         "text": "q"},
        {"message_id": "2", "parent_id": "1", "message_tree_id": "1", "role": "assistant",
         "text": "a"},
        {"message_id": "3", "parent_id": "1", "message_tree_id": "1", "role": "assistant",
         "text": "b"},
    ]  # fmt: skip
    for name, rows in (("tree", [{"prompt": root}]), ("flat", flat)):
        _, found = read(write(tmp_path / f"{name}.jsonl", jsonl(*rows)))
        assert [marked(row) for row in found] == learned
        assert trains(found[1]) == [False, None]


def test_a_rejected_answer_is_never_learned_wherever_it_stands(tmp_path):
    good, bad = {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "no"}
    for first, second in (
        (good, bad | {"label": False}),
        (good, bad | {"label": 0}),
        (good, bad | {"label": "False"}),
        ({"messages": MESSAGES}, {"messages": chat(ASK) + WRONG, "label": False}),
        ({"instruction": "a", "output": "b"},
         {"instruction": "a", "output": "no", "kto_tag": False}),
        (good, {"prompt": "a", "chosen": "b", "rejected": "no"}),
        (good | {"label": "1"}, bad | {"label": "0"}),
        (good | {"desirable": True}, bad | {"desirable": False}),
        ({"prompt": "a", "response": "b"}, {"prompt": "a", "response": "no", "label": False}),
        ({"question": "a", "answer": "b"}, {"question": "a", "answer": "no", "label": False}),
        ({"conversations": MESSAGES}, {"conversations": chat(ASK) + WRONG, "kto_tag": False}),
    ):  # fmt: skip
        _, found = read(write(tmp_path / "a.jsonl", jsonl(first, second)))
        assert "no" not in "".join(map(marked, found))
        assert marked(found[0]).endswith("⟦b</Assistant>⟧")


def test_a_good_answer_of_any_columns_is_learned_and_its_label_counts_as_read(tmp_path):
    rows = [
        {"prompt": "a", "response": "b", "label": True},
        {"prompt": "a", "response": "no", "label": False},
    ]
    reader, found = read(write(tmp_path / "a.jsonl", jsonl(*rows)), strict=True)
    assert [marked(row) for row in found] == [asked("a", "b")]
    assert dropped(reader) == {"a rejected answer (label is false)": 1}


@pytest.mark.parametrize("column", ["label", "train", "training", "weight"])
def test_switches_in_cells_say_what_they_say_in_lines(tmp_path, column):
    rows = [
        {"prompt": "a", "completion": "b", column: 1},
        {"prompt": "c", "completion": "d", column: 0},
    ]
    cells = f"prompt,completion,{column}\na,b,1\nc,d,0\n"
    _, lines = read(write(tmp_path / "a.jsonl", jsonl(*rows)))
    _, table = read(write(tmp_path / "a.csv", cells))
    assert list(map(marked, table)) == list(map(marked, lines))


def test_a_class_is_no_judgement(tmp_path):
    row = {"prompt": "a", "completion": "b", "label": 3}
    reader, found = read(write(tmp_path / "a.jsonl", jsonl(row)))
    assert marked(found[0]) == asked("a", "b")
    assert notes(reader) == {"'label' of the row was not read": 1}


def test_the_side_of_a_choice_is_named_and_the_other_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl({"prompt": "a"} | CHOICE))
    for side, learned, left in (("chosen", "b", "rejected"), ("rejected", "no", "chosen")):
        reader, found = read(path, side=side)
        assert marked(found[0]) == asked("a", learned)
        assert notes(reader)[f"{left} answer left out (--side {side})"] == 1


def test_a_question_that_the_chosen_messages_do_not_hold_is_counted(tmp_path):
    row = {"prompt": "another", "chosen": MESSAGES, "rejected": WRONG}
    reader, found = read(write(tmp_path / "a.jsonl", jsonl(row)))
    assert marked(found[0]) == asked("a", "b")
    assert notes(reader)["question beside the chosen messages left out"] == 1


def test_a_shape_of_ones_own_follows_dots_and_orders_turns(tmp_path):
    rows = [
        {"about": "s", "ask": {"it": "a"}, "more": ["x", "y"], "say": "b", "train": False},
        {"ask": {"it": "c", "id": 1}, "say": "d"},
    ]
    path = write(tmp_path / "a.jsonl", jsonl(*rows))
    reader, found = read(path, turns="system=about?,user=ask.it,user=more?,assistant=say")
    assert reader.format == "columns"
    assert marked(found[0]) == ("<System>s</System><User>a\n\nx\ny</User><Assistant>b</Assistant>")
    assert marked(found[1]) == asked("c", "d")
    assert notes(reader) == {}


def test_rows_of_no_shape_are_refused_with_words_that_read_them(tmp_path):
    for row, learned in (
        ({"frage": "a", "antwort": "b"}, asked("a", "b")),
        ({"data": {"messages": MESSAGES}}, asked("a", "b")),
        ({"id": 1, "turns": ["a", "b"]}, asked("a", "b")),
    ):
        path = write(tmp_path / "a.jsonl", jsonl(row))
        with pytest.raises(DataError, match="fits no known format") as error:
            read(path)
        words = re.search(r"--turns (\S+);", str(error.value))[1]
        assert marked(read(path, turns=words)[1][0]) == learned


@pytest.mark.parametrize(
    ("row", "turns_", "message"),
    [
        ({"a": "x"}, "user=a,assistant=b", "no field 'b'; found a; name the fields"),
        ({"a": "x", "b": None}, "user=a,assistant=b", "b is no text; found null"),
        ({"a": 3, "b": "y"}, "user=a,assistant=b", "a is no text; found the number 3"),
        ({"a": "x", "b": 3}, "turns=b", "found the number 3; expected a list of turns"),
        ({"a": [{"x": 1}]}, "turns=a", "a turn is an object with the fields x; expected a text"),
        ({"a": "hello"}, "turns=a", "found 'hello', without tags of chatml.*name its --markup"),
        ({"a": [{"label": 1, "text": "x"}]}, "segments=a", 'expected a list of {"label"'),
        ({"a": "x", "b": "y", "c": "z"}, "user=a,assistant=b,label=c", "c is 'z'; expected true"),
    ],
)
def test_what_a_shape_of_ones_own_does_not_find_is_named(tmp_path, row, turns_, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "a.jsonl", jsonl(row)), turns=turns_)


@pytest.mark.parametrize(
    "knobs",
    [
        {"turns": "user=a,assistant=b", "format": "messages"},
        {"markup": "chatml", "format": "text"},
        {"group_by": "a", "format": "messages"},
        {"side": "rejected", "format": "messages"},
        {"turns": "user=a,assistant=b", "mapping": {}},
    ],
)
def test_a_knob_that_the_format_would_ignore_is_refused(tmp_path, knobs):
    write(tmp_path / "a.jsonl", jsonl({"a": "x", "b": "y"}))
    with pytest.raises(ConfigError, match="with format"):
        open_source(Source(path=str(tmp_path / "a.jsonl"), **knobs))


@pytest.mark.parametrize("turns_", ["user", "usr=a", "user=", "user=a,,assistant=b", "user=a=b"])
def test_words_that_are_no_turns_are_refused(turns_):
    with pytest.raises(ValueError, match="does not say what a field is"):
        Source(path="a", turns=turns_)


def test_fields_that_no_shape_reads_are_counted_or_refused(tmp_path):
    rows = [{"query": "a", "response": "b", "tone": tone} for tone in ("x", "y", "")]
    path = write(tmp_path / "a.jsonl", jsonl(*rows))
    assert notes(read(path)[0])["'tone' of the row was not read, and it varies"] == 2
    with pytest.raises(DataError, match=r"a.jsonl:1: 'tone' of the row is not read"):
        read(path, strict=True)


def test_nulls_of_a_table_of_two_shapes_hide_neither(tmp_path):
    rows = [{"query": "a", "response": "b"}, {"problem": "c", "solution": "d"}]
    blank = dict.fromkeys(("problem", "solution", "query", "response"))
    parquet.write_table(pa.Table.from_pylist([blank | r for r in rows]), tmp_path / "a.parquet")
    assert [turns(row) for row in read(tmp_path / "a.parquet")[1]] == [
        [("user", "a"), ("assistant", "b")], [("user", "c"), ("assistant", "d")],
    ]  # fmt: skip


VALUES = (
    None, True, 0, 1, 2.5, "", " ", "a", "[]", "{}", '["a"]', '[{"role": "user", "content": "a"}]',
    '{"text": ["a"]}', "[INST] a [/INST] b", "Human: a\n\nAssistant: b", "<|im_start|>x\n",
    "USER: a ASSISTANT: <functioncall> {", "### Input:### Response:", [], {}, ["a", "b"], ["a", 1],
    [["a", "b"]], [["a", None]], [[]], MESSAGES, MESSAGES[1:], [{"role": "user"}], [{"role": 1}],
    [{"input": "a", "output": "b"}], [{"input": 1}], [{"label": True, "text": "a"}],
    [{"label": 1}], {"role": "assistant", "content": "b"}, {"messages": MESSAGES}, {"text": ["a"]},
    {"text": [{"x": 1}]}, [{"conversation": ["a"]}], [{"name": "f", "arguments": {}}],
)  # fmt: skip
FIELDS = sorted({one.path.partition(".")[0] for shape in SHAPES for one in shape.speakers})
LINKS = ("conversation_id", "thread", "message_id", "parent_id", "turn", "date", "role", "content")


def rows_of_any_columns(seed, n):
    """Rows of fields that shapes name, or that link messages, with what may stand in them."""
    chance = random.Random(seed)
    for _ in range(n):
        names = chance.choice([FIELDS, LINKS, [*LINKS, "text", "system", "tools"]])
        if chance.random() < 0.7:
            names = [one.path.partition(".")[0] for one in chance.choice(SHAPES).speakers]
        yield {name: chance.choice(VALUES) for name in names if chance.random() < 0.8}


def consume(path, format):
    tally = Tally()
    try:
        rows = list(read_rows(RawFile(path), Reading(format=format), tally))
    except DataError as error:
        if "\n" in str(error) or not str(error).startswith(str(path)):
            raise AssertionError(f"not one line that names the file: {error}") from None
        return
    assert rows or tally.dropped


@pytest.mark.parametrize("format", ["columns", "rendered", "chat", "messages", "alpaca"])
def test_any_columns_give_rows_or_a_data_error(tmp_path, format):
    for seed, row in enumerate(rows_of_any_columns(format, 300)):
        more = list(rows_of_any_columns(seed, 1)) if format == "chat" else []
        consume(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, [row, *more]))), format)


def test_a_question_that_no_call_answers_is_left_out(tmp_path):
    calls = [json.dumps([{"name": "f", "arguments": {}}]), "[]"]
    rows = [{"query": "a", "tools": "[]", "answers": answers} for answers in calls]
    reader, found = read(write(tmp_path / "a.jsonl", jsonl(*rows)))
    assert len(found) == 1
    assert dropped(reader) == {"a row without calls": 1}


def test_what_stands_beside_messages_or_in_a_segment_is_counted(tmp_path):
    rows = [
        {"instruction": chat(("user", "a")), "input": "x", "output": "b"},
        {"segments": [{"label": False, "text": "a"}, {"label": True, "text": "b", "why": "x"}]},
    ]
    for row, note in zip(
        rows, ("'input' of the row was not read", "'why' of a segment was not read"), strict=True
    ):
        reader, found = read(write(tmp_path / "a.jsonl", jsonl(row)))
        assert [marked(one) for one in found] == [asked("a", "b")]
        assert note in notes(reader)


def test_an_item_that_says_nothing_does_not_take_the_next_ones_with_it(tmp_path):
    items = [{"input": "", "output": text} for text in ("b", " ", "d")]
    reader, found = read(
        write(tmp_path / "a.jsonl", jsonl({"instruction": "a", "instances": items}))
    )
    assert [marked(one) for one in found] == [asked("a", "b"), asked("a", "d")]
    assert dropped(reader) == {"a message of the assistant without text": 1}


@pytest.mark.parametrize("field", ["conversations", "dialog"])
def test_several_conversations_in_one_row_are_not_run_together(tmp_path, field):
    talks = [chat(ASK, TELL), chat(("user", "c"), ("assistant", "d"))]
    path = write(tmp_path / "a.jsonl", jsonl({field: talks}))
    with pytest.raises(DataError, match=r"a.jsonl:1: a turn is an array of 2; .* row of their own"):
        read(path)
    rows = read(write(path, jsonl(*({"messages": talk} for talk in talks))))[1]
    assert [turns(row) for row in rows] == [[ASK, TELL], [("user", "c"), ("assistant", "d")]]


DOCUMENTS = ["one", {"text": "two", "id": 7}]


def parts_of(row):
    return [[(part.kind, part.text) for part in message.parts] for message in row.messages]


def test_columns_quote_documents_before_the_question_and_cite_behind_the_answer(tmp_path):
    row = {"question": "Who?", "passages": DOCUMENTS, "answer": "Ann", "source": "one", "more": ""}
    told = [[("context", "one"), ("context", "two"), ("text", "Who?")],
            [("text", "Ann"), ("cite", "one")]]  # fmt: skip
    turns_ = "context=passages,user=question,assistant=answer,cite=source?"
    _, (found,) = read(write(tmp_path / "a.jsonl", jsonl(row)), turns=turns_)
    assert parts_of(found) == told
    row = {"docs": "one", "messages": chat(("system", "s"), ("user", "q"), ("assistant", "a"))}
    _, (found,) = read(write(tmp_path / "b.jsonl", jsonl(row)), turns="context=docs,turns=messages")
    assert parts_of(found)[1] == [("context", "one"), ("text", "q")]


def test_both_sides_of_a_pair_quote_the_same_documents(tmp_path):
    row = {"docs": "one", "prompt": "q", "chosen": "a", "rejected": "b"}
    turns_ = "context=docs,user=prompt,chosen=chosen,rejected=rejected"
    _, found = read(write(tmp_path / "a.jsonl", jsonl(row)), turns=turns_, pairs=True)
    assert [parts_of(side)[0] for side in found] == [[("context", "one"), ("text", "q")]] * 2


@pytest.mark.parametrize(
    ("turns_", "message"),
    [
        ("user=q,context=d,assistant=a", "no question stands behind d; name it before"),
        ("cite=d,user=q,assistant=a", "no answer stands before d; name it behind one"),
    ],
)
def test_documents_and_citations_that_stand_in_no_turn_are_refused(tmp_path, turns_, message):
    path = write(tmp_path / "a.jsonl", jsonl({"q": "q", "d": "d", "a": "a"}))
    with pytest.raises(DataError, match=message):
        read(path, turns=turns_)
