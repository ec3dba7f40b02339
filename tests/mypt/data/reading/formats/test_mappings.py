"""Files of any layout, read by a mapping."""

import json

import pytest

from mypt.config import FieldMapping
from mypt.errors import DataError
from tests.mypt.data.rawfiles import ASK, TELL, dropped, jsonl, notes, read, trains, turns, write


def said(*utterances):
    return [{"sender": sender, "text": text} for sender, text in utterances]


PEOPLE = FieldMapping(role="sender", text="text", by_order=True)


def test_speakers_by_order_are_joined_into_turns_and_lone_ones_dropped(tmp_path):
    content = {
        "x": {"messages": [said(("B", "1")), said(("A", "2"), ("A", "3")), said(("B", "4"))]},
        "alone": {"messages": [said(("A", "1"), ("A", "2"))]},
        "nobody": {"messages": []},
        "crowd": {"messages": [said(("A", "1"), ("B", "2"), ("C", "3"))]},
        "silent": {"messages": [said(("A", "1"), ("B", " "))]},
        "gap": {"messages": [said(("A", "1")), said(("B", "")), said(("A", "2"), ("B", "3"))]},
    }
    reader, rows = read(write(tmp_path / "a.json", json.dumps(content)), mapping=PEOPLE)
    assert reader.format == "mapping"
    assert [turns(row) for row in rows] == [
        [("user", "1"), ("assistant", "2\n3"), ("user", "4")],
        [("user", "1\n2"), ("assistant", "3")],
    ]
    assert dropped(reader) == {
        "a conversation with fewer than two speakers": 2,
        "a conversation with more than two speakers": 1,
        "a conversation in which a speaker says nothing": 1,
    }
    assert notes(reader) == {
        "utterance joined to the one before": 2, "empty utterance left out": 1,
    }  # fmt: skip
    assert reader.record().rows_read == 6


def test_a_mapping_follows_dots_names_roles_and_hears_weights(tmp_path):
    row = {
        "talk": {"turns": [
            {"who": {"is": 1}, "what": "hi"}, {"who": {"is": 2}, "what": "yo", "weight": 0},
        ]}
    }  # fmt: skip
    mapping = FieldMapping(
        turns="talk.turns", role="who.is", text="what", roles={"1": "user", "2": "assistant"}
    )
    _, rows = read(write(tmp_path / "a.jsonl", jsonl(row)), mapping=mapping, format="mapping")
    assert turns(rows[0]) == [ASK, TELL]
    assert trains(rows[0]) == [None, False]


@pytest.mark.parametrize(
    ("turns_", "changes", "message"),
    [
        (said(("A", "1")), {"turns": "talks"}, "a.jsonl:1: no field 'talks'; found messages"),
        (said(("A", "1")), {"role": "who"}, "no field 'who'; found sender, text"),
        ([], {"by_order": False}, "an empty conversation"),
        ([3], {}, "found the number 3; expected an object"),
        ("x", {}, "messages is 'x'; expected a list of turns"),
        (said(("A", 3)), {}, "text is no text; found the number 3; expected a string; put it"),
        (said((None, "1")), {}, "sender is null; expected a name"),
        (said(("A", "1")), {"by_order": False}, "unknown role 'A'"),
        (said(("A", "1")), {"by_order": False, "roles": {"B": "user"}}, "not in the mapping; kn"),
        (said(("A", "1"), ("A", "2"), ("B", "3")), {"join": None}, "follow each other"),
    ],
)
def test_what_a_mapping_does_not_find_is_named(tmp_path, turns_, changes, message):
    mapping = PEOPLE.model_copy(update=changes)
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "a.jsonl", jsonl({"messages": turns_})), mapping=mapping)


def test_joined_turns_must_agree_on_their_weight(tmp_path):
    messages = [{"sender": s, "text": "x", "weight": w} for s, w in (("A", 1), ("A", 0), ("B", 1))]
    with pytest.raises(DataError, match="joined differ in their weight"):
        read(write(tmp_path / "a.jsonl", jsonl({"messages": messages})), mapping=PEOPLE)
