"""Talks between people as Discord and Telegram export them."""

import json

import pytest

from mypt.data.reading.raw import Limits
from mypt.errors import ConfigError, DataError
from tests.mypt.data.rawfiles import dropped, jsonl, notes, read, turns, with_mask, write


def spoken(number, who, content, kind="Default", **more):
    author = {"id": {"ann": "9", "bob": "8"}.get(who, who), "name": who, "nickname": who.title()}
    return {"id": str(number), "type": kind, "content": content, "author": author} | more


def discord(path, *messages, **source):
    content = {"guild": {"id": "1"}, "channel": {"id": "2"}, "messages": list(messages)}
    return read(write(path / "help.json", json.dumps(content, indent=1)), **source)


def test_a_discord_channel_is_one_conversation_with_the_assistant_that_was_named(tmp_path):
    said = (
        spoken(1, "ann", "Hi"),
        spoken(2, "ann", "Help"),
        spoken(3, "cid", "joined", "GuildMemberJoin"),
        spoken(4, "bob", "Ok", "Reply", reference={"messageId": "2"}),
        spoken(5, "bob", "", attachments=[{"id": "1"}]),
    )
    reader, (row,) = discord(tmp_path, *said, assistant="bob")
    assert reader.format == "discord"
    assert with_mask(row) == ("Hi\nHelpOk|", "0000000111")
    assert notes(reader) == {
        "message joined to the one before": 1,
        "service message 'GuildMemberJoin' left out": 1,
        "message without text left out": 1,
        "'attachments' of a message was not read": 1,
    }
    for name in ("Bob", "8"):
        assert discord(tmp_path, *said, assistant=name)[1] == [row]
    assert discord(tmp_path, *reversed(said), assistant="bob")[1] == [row]


def test_without_an_assistant_the_speakers_are_listed_with_their_counts(tmp_path):
    said = [spoken(1, "ann", "a"), spoken(2, "bob", "b"), spoken(3, "ann", "c")]
    message = (
        r"help.json: nothing says who .* the speakers ann \(2\), bob \(1\); .*--assistant NAME"
    )
    with pytest.raises(DataError, match=message):
        discord(tmp_path, *said)
    message = r"1 of a conversation in which 'rob' says nothing\); .* the speakers ann \(2\), bob"
    with pytest.raises(DataError, match=message):
        discord(tmp_path, *said, assistant="rob")


def test_of_two_speakers_of_one_name_the_id_decides(tmp_path):
    twin = spoken(2, "bob", "b") | {"author": {"id": "7", "name": "bob"}}
    said = [spoken(1, "bob", "a"), twin]
    with pytest.raises(DataError, match=r"2 speakers are called 'bob'; .* as --assistant 8"):
        discord(tmp_path, *said, assistant="bob")
    _, (row,) = discord(tmp_path, *said, assistant="7")
    assert turns(row) == [("user", "a"), ("assistant", "b")]


def test_an_assistant_is_refused_where_rows_name_roles(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl({"prompt": "a", "completion": "b"}))
    with pytest.raises(ConfigError, match="assistant 'bob' with format 'prompt_completion'"):
        read(path, assistant="bob")


def letter(number, who, text, **more):
    return {"id": number, "type": "message", "from": who, "from_id": f"u{who}", "text": text} | more


def telegram(*messages, **more):
    return {"name": "x", "type": "personal_chat", "id": 1, "messages": list(messages)} | more


def test_a_telegram_text_may_be_a_list_of_stretches(tmp_path):
    row = telegram(
        {"id": 1, "type": "service", "actor": "Ann", "action": "phone_call", "text": ""},
        letter(2, "Ann", "Hi", edited="2024-01-01T00:00:00"),
        letter(3, "Cid", "Yo"),
        letter(4, "Bob", ["Hold ", {"type": "bold", "text": "it"}, "."], forwarded_from="Dan"),
        letter(5, "Bob", "", photo="p.jpg"),
    )
    reader, (found,) = read(write(tmp_path / "result.json", json.dumps(row)), assistant="Bob")
    assert reader.format == "telegram"
    assert turns(found) == [("user", "Hi"), ("user", "Yo"), ("assistant", "Hold it.")]
    assert with_mask(found) == ("HiYoHold it.|", "0000111111111")
    assert notes(reader) == {
        "service message 'phone_call' left out": 1,
        "message without text left out": 1,
        "'forwarded_from' of a message was not read": 1,
        "'photo' of a message was not read": 1,
    }


def test_all_chats_of_a_telegram_account_are_conversations_of_their_own(tmp_path):
    talk = telegram(letter(1, "Ann", "a"), letter(2, "Bob", "b"))
    other = telegram(letter(1, "Ann", "a"), letter(2, "Cid", "b"))
    alone = telegram(letter(1, "Bob", "a"))
    account = {
        "about": "x", "personal_information": {}, "chats": {"list": [talk, other, telegram()]},
        "left_chats": {"list": [alone]},
    }  # fmt: skip
    reader, (row,) = read(write(tmp_path / "result.json", json.dumps(account)), assistant="Bob")
    assert turns(row) == [("user", "a"), ("assistant", "b")]
    assert dropped(reader) == {
        "a conversation in which 'Bob' says nothing": 1,
        "a conversation without text": 1,
        "a conversation in which only 'Bob' speaks": 1,
    }


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([3], "found the number 3; expected an object"),
        ([letter(1, "Ann", 3)], "the text of a message is the number 3; expected a string"),
        ([letter(1, "Ann", [{"type": "bold"}])], "the text of a message is null; expected"),
        (
            [{"id": 1, "type": "message", "text": "x"}],
            "a message of nobody; found the fields id, t",
        ),
        ([letter("x", "Ann", "a")], "the time or id of a message is 'x'; expected a number"),
        ([], "every row was dropped .1 of a conversation without text"),
    ],
)
def test_a_message_of_an_unknown_form_is_refused(tmp_path, messages, message):
    path = write(tmp_path / "result.json", json.dumps(telegram(*messages)))
    with pytest.raises(DataError, match=message):
        read(path, format="telegram", assistant="Bob")


def test_a_talk_beyond_the_limits_is_refused_in_one_line(tmp_path):
    said = [letter(number, "Ann", "x" * 50) for number in range(40)]
    many = json.dumps({"guild": {}, "channel": {}, "messages": said})
    with pytest.raises(DataError, match="item 3: more than 2,500 bytes"):
        read(write(tmp_path / "a.json", many), limits=Limits(row_bytes=2500), assistant="Ann")


def test_what_an_account_holds_besides_its_chats_is_counted(tmp_path):
    chat = telegram(letter(1, "Ann", "Hi"), letter(2, "Bob", "Ho"))
    account = {"chats": {"list": [chat], "note": "x"}, "contacts": {"list": [{"name": "Cid"}]}}
    reader, (row,) = read(write(tmp_path / "result.json", json.dumps(account)), assistant="Bob")
    assert turns(row) == [("user", "Hi"), ("assistant", "Ho")]
    assert notes(reader) == {
        "'note' of an account was not read": 1,
        "'contacts' of an account was not read": 1,
    }


def test_where_a_link_leads_is_counted(tmp_path):
    text = ["See ", {"type": "text_link", "text": "this", "href": "https://a.example"}]
    said = telegram(letter(1, "Ann", text), letter(2, "Bob", "Ok"))
    reader, (row,) = read(write(tmp_path / "result.json", json.dumps(said)), assistant="Bob")
    assert turns(row) == [("user", "See this"), ("assistant", "Ok")]
    assert notes(reader) == {"'href' of a stretch of text was not read": 1}
