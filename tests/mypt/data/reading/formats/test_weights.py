"""The weight of a message, in every format."""

import json

import pytest

from mypt.data.conversations import Conversation
from mypt.errors import DataError
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
    write,
)

WEIGHED = {
    "messages": {"messages": [chat(ASK)[0], chat(TELL, weight=0)[0]]},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo", "train": False},
        ]
    },
    "alpaca": {"instruction": "hi", "output": "yo", "loss_weight": 0.0},
    "prompt_completion": {"prompt": "hi", "completion": "yo", "train": False},
    "tree": leaf("prompter", "hi", leaf("assistant", "yo", train=False)),
}  # fmt: skip


@pytest.mark.parametrize("format", WEIGHED)
def test_every_format_of_rows_hears_the_weight_of_a_message(tmp_path, format):
    reader, rows = read(write(tmp_path / "a.jsonl", jsonl(WEIGHED[format])))
    assert reader.format == format
    assert trains(rows[0]) == [None, False]
    half = json.dumps(WEIGHED[format]).replace(": false", ": 0.5").replace("0.0", "0.5")
    half = half.replace('"weight": 0}', '"weight": 0.5}')
    assert trains(read(write(tmp_path / "b.jsonl", half))[1][0]) == [None, 0.5]
    with pytest.raises(DataError, match="expected 0 to 1000"):
        read(write(tmp_path / "c.jsonl", half.replace("0.5", "1000.5")))


def test_chat_hears_the_weight_of_a_message(tmp_path):
    content = jsonl(chat(ASK, weight=1)[0], chat(TELL, weight=0)[0], chat(TELL)[0])
    assert trains(read(write(tmp_path / "a.jsonl", content))[1][0]) == [True, False, None]


def test_a_weight_of_the_row_holds_for_turns_of_the_assistant_that_have_none(tmp_path):
    row = {"messages": chat(ASK, TELL) + chat(TELL, train=True), "weight": 0}
    assert trains(read(write(tmp_path / "a.jsonl", jsonl(row)))[1][0]) == [None, False, True]


def test_the_weight_of_a_csv_row_is_heard(tmp_path):
    content = "question,answer,train\nhi,yo,false\nhi,yo,\nhi,yo,0.25\n"
    _, rows = read(write(tmp_path / "a.csv", content))
    assert [trains(row) for row in rows] == [[None, False], [None, None], [None, 0.25]]
    assert isinstance(rows[0], Conversation)


@pytest.mark.parametrize(
    "answer",
    [
        {"prompt": "hi", "completion": "yo"},
        {"question": "hi", "response": "yo"},
        {"messages": chat(ASK, TELL)},
        {"instruction": "hi", "output": "yo"},
    ],
)
def test_a_row_that_says_it_was_not_chosen_is_left_out(tmp_path, answer):
    said = [{"chosen": False}, {"chosen": True}, {"rejected": True}, {"rejected": 0}]
    said += [{"chosen": True, "rejected": False}, {"chosen": "no label"}]
    content = jsonl(*(answer | one for one in said))
    reader, rows = read(write(tmp_path / "a.jsonl", content))
    assert [row.origin.line for row in rows] == [2, 4, 5, 6]
    assert dropped(reader) == {
        "a rejected answer (chosen is false)": 1,
        "a rejected answer (rejected is true)": 1,
    }
    assert notes(reader).get("'chosen' of the row was not read") == 1
