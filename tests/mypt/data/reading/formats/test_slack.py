"""Folders that Slack exports: a channel a folder, a day a file."""

import json

import pytest

from mypt.config import Source
from mypt.data.reading.portions import read_portion
from mypt.data.reading.raw import Limits
from mypt.data.reading.records import Tally
from mypt.data.reading.sources import open_source
from mypt.errors import DataError
from tests.mypt.data.rawfiles import dropped, notes, read, trains, turns, with_mask, write


def said(ts, user, text, **more):
    return {"type": "message", "user": user, "text": text, "ts": ts} | more


USERS = [{"id": "U1", "name": "ann"}, {"id": "U2", "name": "bob", "profile": {"display_name": "B"}}]


def export(path, users=USERS, **channels):
    """Write an export; of each channel the messages by day."""
    path.mkdir()
    write(path / "channels.json", json.dumps([{"id": "C1", "name": "general"}]))
    if users is not None:
        write(path / "users.json", json.dumps(users))
    for channel, days in channels.items():
        (path / channel).mkdir()
        for day, messages in days.items():
            write(path / channel / f"2024-01-{day}.json", json.dumps(messages))
    return path


def test_a_slack_channel_is_one_conversation_over_its_days(tmp_path):
    path = export(
        tmp_path / "slack",
        general={
            "02": [said("12.5", "U2", "Ok &lt;b&gt;"), said("10.5", "U1", "Hi <@U2>")],
            "03": [
                said("20.0", "U1", "joined", subtype="channel_join"),
                said("21.0", "U1", "Is <https://a.b|this> a &amp; b?", edited={"ts": "22.0"}),
                said("22.0", "U1", "", files=[{"id": "F1"}]),
                said("23.0", "U2", "Yes"),
            ],
        },
        random={"02": [said("1.0", "U1", "x"), said("2.0", "U3", "y")], "03": []},
    )
    reader, (row,) = read(path, assistant="bob")
    assert reader.format == "slack"
    assert turns(row) == [
        ("user", "Hi @bob"),
        ("assistant", "Ok <b>"),
        ("user", "Is this (https://a.b) a & b?"),
        ("assistant", "Yes"),
    ]
    assert dropped(reader) == {"a conversation in which 'bob' says nothing": 1}
    assert notes(reader) == {
        "service message 'channel_join' left out": 1,
        "message without text left out": 1,
        "'files' of a message was not read": 1,
        "file of a Slack export without messages left aside": 1,
    }
    for name in ("B", "U2"):
        assert read(path, assistant=name)[1] == [row]
    with pytest.raises(DataError, match=r"speakers ann \(3\), bob \(2\), U3 \(1\); .*--assistant"):
        read(path)


def test_a_slack_mask_is_that_of_the_assistant_alone(tmp_path):
    days = {"02": [said("1.0", "U1", "ab")], "03": [said("2.0", "U2", "c"), said("3.0", "U2", "d")]}
    _, (row,) = read(export(tmp_path / "slack", general=days), assistant="bob")
    assert with_mask(row) == ("abc\nd|", "001111")


def test_a_channel_alone_finds_the_names_beside_it_and_records_them(tmp_path):
    days = {"02": [said("1.0", "U1", "a")], "03": [said("2.0", "U2", "b")]}
    path = export(tmp_path / "slack", general=days)
    reader, (row,) = read(path / "general", assistant="bob")
    assert turns(row) == [("user", "a"), ("assistant", "b")]
    assert [file.path.rpartition("/")[2] for file in reader.files] == [
        "2024-01-02.json", "2024-01-03.json", "users.json",
    ]  # fmt: skip
    nameless = export(tmp_path / "nameless", users=None, general=days)
    assert turns(read(nameless, assistant="U2")[1][0]) == turns(row)


def test_a_thread_stands_apart_under_the_message_that_it_answers(tmp_path):
    days = {
        "02": [
            said("1.0", "U1", "q", thread_ts="1.0"),
            said("2.0", "U2", "chan"),
            said("3.0", "U2", "reply", thread_ts="1.0"),
            said("4.0", "U1", "lost", thread_ts="0.5"),
            said("5.0", "U2", "found", thread_ts="0.5"),
            said("6.0", "U1", "why", thread_ts="2.0"),
            said("7.0", "U2", "so", thread_ts="2.0"),
        ]
    }
    _, rows = read(export(tmp_path / "slack", general=days), assistant="bob")
    assert [turns(row) for row in rows] == [
        [("user", "q"), ("assistant", "chan")],
        [("user", "q"), ("assistant", "reply")],
        [("user", "lost"), ("assistant", "found")],
        [("assistant", "chan"), ("user", "why"), ("assistant", "so")],
    ]
    assert trains(rows[3]) == [False, None, None]


def test_bots_speak_and_deleted_messages_do_not(tmp_path):
    days = {
        "02": [
            said("1.0", "U1", "q"),
            said("1.5", "U1", "This message was deleted.", subtype="tombstone"),
            {"type": "message", "subtype": "bot_message", "bot_id": "B1", "username": "helper",
             "text": "a", "ts": "2.0"},
        ]
    }  # fmt: skip
    reader, (row,) = read(export(tmp_path / "slack", general=days), assistant="helper")
    assert turns(row) == [("user", "q"), ("assistant", "a")]
    assert notes(reader)["service message 'tombstone' left out"] == 1


def test_an_empty_channel_and_an_unknown_author_are_refused(tmp_path):
    path = export(tmp_path / "slack", general={"02": []})
    with pytest.raises(DataError, match=r"every row was dropped .1 of a conversation without text"):
        read(path, format="slack", assistant="bob")
    nobody = {"type": "message", "text": "x", "ts": "1.0"}
    path = export(tmp_path / "other", general={"02": [nobody]})
    with pytest.raises(DataError, match=r"02.json: item 1: a message of nobody; .* expected user"):
        read(path, assistant="bob")


def test_a_channel_is_never_parted_between_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("mypt.data.reading.portions.PORTION_BYTES", 100)
    days = {f"{day:02}": [said(f"{day}.0", f"U{1 + day % 2}", f"m{day}")] for day in range(1, 9)}
    path = export(tmp_path / "slack", general=days, other=days)
    source = Source(path=str(path), assistant="bob")
    _, rows = read(path, assistant="bob")
    tally, reader = Tally(), open_source(source)
    portions = list(reader.portions(0))
    assert [row for portion in portions for row in read_portion(portion, tally)] == rows
    assert len(portions) > 2
    alone = [part.pieces for portion in portions for part in portion.alone()]
    assert [len(pieces) for pieces in alone] == [1, 8, 8, 1]
    assert tally.speakers == {"ann": 8, "bob": 8}


def test_a_channel_beyond_the_limits_is_refused(tmp_path):
    days = {f"{day:02}": [said(f"{day}.0", "U1", "x" * 90)] for day in range(1, 9)}
    path = export(tmp_path / "slack", general=days)
    with pytest.raises(DataError, match=r"03.json: item 1: a conversation of more than 256 char"):
        read(path, limits=Limits(row_bytes=256), assistant="bob")


def test_days_that_are_no_slack_messages_are_read_as_what_they_are(tmp_path):
    (tmp_path / "talks").mkdir()
    write(tmp_path / "users.json", "[]")
    write(tmp_path / "talks" / "2024-01-02.json", json.dumps([{"prompt": "a", "completion": "b"}]))
    reader, (row,) = read(tmp_path / "talks")
    assert reader.format == "prompt_completion"
    assert turns(row) == [("user", "a"), ("assistant", "b")]
