"""Preference rows of every layout are two conversations that differ in the answer alone."""

import json

import pytest
from pydantic import ValidationError

from mypt.config import PrepareConfig, Source
from mypt.data.reading.sources import open_source
from mypt.errors import ConfigError, DataError


def said(role, text):
    return {"role": role, "content": text}


HUMAN = {"from": "human", "value": "say 7"}
LAYOUTS = {
    "preference": {"prompt": "say 7", "chosen": "seven", "rejected": "eight"},
    "messages": {
        "prompt": [said("user", "say 7")],
        "chosen": [said("assistant", "seven")],
        "rejected": [said("assistant", "eight")],
    },
    "messages_dpo": {
        "messages": [said("user", "say 7")],
        "chosen": said("assistant", "seven"),
        "rejected": said("assistant", "eight"),
    },
    "sharegpt_dpo": {
        "conversations": [HUMAN],
        "chosen": {"from": "gpt", "value": "seven"},
        "rejected": {"from": "gpt", "value": "eight"},
    },
    "openai_dpo": {
        "input": {"messages": [said("user", "say 7")]},
        "preferred_output": [said("assistant", "seven")],
        "non_preferred_output": [said("assistant", "eight")],
    },
    "whole conversations": {
        "chosen": [said("user", "say 7"), said("assistant", "seven")],
        "rejected": [said("user", "say 7"), said("assistant", "eight")],
    },
    "whole conversations beside their prompt": {
        "prompt": "say 7",
        "chosen": [said("user", "say 7"), said("assistant", "seven")],
        "rejected": [said("user", "say 7"), said("assistant", "eight")],
    },
    "orca_dpo": {"question": "say 7", "chosen": "seven", "rejected": "eight"},
    "alpaca_dpo": {"instruction": "say 7", "input": "", "chosen": "seven", "rejected": "eight"},
    "anthropic_hh": {
        "chosen": "\n\nHuman: say 7\n\nAssistant: seven",
        "rejected": "\n\nHuman: say 7\n\nAssistant: eight",
    },
}


@pytest.fixture
def read(tmp_path):
    def rows_of(*rows, **how):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = open_source(Source(path=str(path), pairs=True, **how))
        return list(source), source.record()

    return rows_of


def dropped(record):
    return {count.reason: count.rows for count in record.dropped}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_both_sides_after_one_prompt(read, layout):
    (chosen, rejected), record = read(LAYOUTS[layout])
    assert [(m.role, m.text, m.train) for m in chosen.messages] == [
        ("user", "say 7", False),
        ("assistant", "seven", None),
    ]
    assert rejected.messages[0] == chosen.messages[0]
    assert rejected.messages[1].text == "eight"
    assert (chosen.side, rejected.side) == ("chosen", "rejected")
    assert chosen.origin == rejected.origin
    assert not any("left out" in note.reason for note in record.notes)


def test_a_system_message_and_earlier_answers_are_prompt(read):
    asked = [
        said("system", "be kind"),
        said("user", "hi"),
        said("assistant", "hello"),
        said("user", "say 7"),
    ]
    (chosen, rejected), _ = read({"prompt": asked, "chosen": "seven", "rejected": "eight"})
    assert [m.train for m in chosen.messages] == [False] * 4 + [None]
    assert chosen.messages[:4] == rejected.messages[:4]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rejected": "seven"}, "a pair whose sides say the same"),
        ({"chosen": ""}, "a pair without a chosen answer"),
        ({"rejected": " \n"}, "a pair without a rejected answer"),
        ({"rejected": None}, "a pair without a rejected answer"),
        ({"chosen": [], "rejected": [said("assistant", "7")]}, "a pair without a chosen answer"),
        (
            {"prompt": "b", "chosen": [said("user", "a"), said("assistant", "7")],
             "rejected": [said("user", "b"), said("assistant", "8")]},
            "a pair whose sides differ in more than the answer",
        ),
        (
            {"chosen": [said("assistant", "7")],
             "rejected": [said("assistant", "7"), said("assistant", "8")]},
            "a pair of which one side is the beginning of the other",
        ),
        ({"prompt": ""}, "a pair whose chosen side is a message of the user without text"),
    ],
)  # fmt: skip
def test_a_pair_that_teaches_nothing_is_left_out_and_counted(read, changes, reason):
    rows, record = read(LAYOUTS["preference"], LAYOUTS["preference"] | changes)
    assert len(rows) == 2
    assert dropped(record) == {reason: 1}
    assert record.rows_read == 3


def test_fields_named_by_the_user_are_heard(read):
    row = {"q": "say 7", "good": "seven", "bad": "eight", "score": 3}
    (chosen, rejected), _ = read(row, turns="user=q,chosen=good,rejected=bad")
    assert (chosen.messages[-1].text, rejected.messages[-1].text) == ("seven", "eight")


def test_an_unread_field_is_counted_once_for_both_sides(read):
    _, record = read(LAYOUTS["preference"] | {"mood": "good"})
    assert [(n.reason, n.rows) for n in record.notes if "mood" in n.reason] == [
        ("'mood' of the row was not read", 1)
    ]


def test_rows_without_two_answers_are_refused(read):
    with pytest.raises(DataError, match="no preference row; expected a prompt with chosen"):
        read({"prompt": "say 7", "completion": "seven"}, format="columns")


@pytest.mark.parametrize("how", [{"format": "messages"}, {"format": "text"}])
def test_other_formats_are_refused(read, how):
    with pytest.raises(ConfigError, match="pairs with format"):
        read(LAYOUTS["preference"], **how)


def test_pairs_stand_in_a_dataset_of_their_own():
    alone, pairs = Source(path="a"), Source(path="b", pairs=True)
    with pytest.raises(ValidationError, match="some sources have them and some not"):
        PrepareConfig(sources=(alone, pairs))
    with pytest.raises(ValidationError, match="pairs with side rejected"):
        Source(path="b", pairs=True, side="rejected")


def test_without_the_word_the_chosen_side_is_read_alone(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(LAYOUTS["preference"]) + "\n")
    (row,) = open_source(Source(path=str(path)))
    assert (row.messages[-1].text, row.side) == ("seven", "")
