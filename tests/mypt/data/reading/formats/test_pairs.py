"""Rows of one question and one answer."""

import json

import pytest

from mypt.data.reading.formats.columns import alpaca_prompt
from tests.mypt.data.rawfiles import ASK, TELL, chat, dropped, jsonl, read, trains, turns, write


def test_alpaca_is_the_prompt_of_the_guide_and_its_answer(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hi"},
        {"instruction": "Greet.", "output": "Hi", "system": "Be kind."},
    ]
    reader, found = read(write(tmp_path / "a.json", json.dumps(rows)))
    assert reader.format == "alpaca"
    with_input, without, under_system = (turns(row) for row in found)
    asked, answer = with_input
    assert answer == ("assistant", "3")
    assert asked[0] == "user"
    assert asked[1].startswith("Below is an instruction")
    assert asked[1].endswith("\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")
    assert without == [("user", alpaca_prompt("Greet.")), ("assistant", "Hi")]
    assert "### Input" not in without[0][1]
    assert under_system == [("system", "Be kind."), *without]


def test_alpaca_rows_without_an_answer_or_a_question_are_dropped_and_counted(tmp_path):
    rows = [
        {"instruction": "Add.", "output": ""},
        {"instruction": " ", "input": "x", "output": "3"},
        {"instruction": "Add.", "output": "3"},
    ]
    reader, found = read(write(tmp_path / "a.jsonl", jsonl(*rows)))
    assert len(found) == 1
    assert dropped(reader) == {
        "a message of the assistant without text": 1,
        "a message of the user without text": 1,
    }


@pytest.mark.parametrize("pair", [("prompt", "completion"), ("question", "answer")])
def test_pairs_are_one_question_and_one_answer(tmp_path, pair):
    path = write(tmp_path / "a.jsonl", jsonl(dict(zip(pair, ("hi", " yo"), strict=True))))
    reader, rows = read(path)
    assert reader.format == "prompt_completion"
    assert turns(rows[0]) == [("user", "hi"), ("assistant", " yo")]


def test_answers_in_a_prompt_of_messages_are_context_and_the_completion_is_not(tmp_path):
    row = {"prompt": chat(ASK, TELL, ASK), "completion": chat(TELL)}
    reader, rows = read(write(tmp_path / "a.jsonl", jsonl(row)))
    assert reader.format == "prompt_completion"
    assert turns(rows[0]) == [ASK, TELL, ASK, TELL]
    assert trains(rows[0]) == [None, False, None, None]
