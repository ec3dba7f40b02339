"""What raw files would become, looked at before anything is written."""

import json

import pytest
from rich.console import Console

from mypt.config import MaskPolicy, Source
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import DataError
from mypt.inspection.look import look_at, render_look
from mypt.inspection.terminal import WAY_TO_READ
from tests.mypt.data.rawfiles import jsonl, write
from tests.pages import ROOT

TOKENIZER = load_tokenizer("byte", "plain")


def printed(source, policy):
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        for block in render_look(look_at(source, TOKENIZER, policy), TOKENIZER, policy):
            console.print(block)
    return [line.rstrip() for line in capture.get().splitlines() if line.strip()]


def test_a_look_names_the_format_its_reason_unread_fields_and_shows_two_rows(tmp_path):
    said = [{"uuid": "1", "sender": who, "text": text, "files": [n]} for n, (who, text) in
            enumerate([("human", "ab"), ("assistant", "cd")])]  # fmt: skip
    rows = [{"uuid": str(n), "chat_messages": said, "project": n % 2} for n in range(3)]
    source = Source(path=str(write(tmp_path / "talk.jsonl", jsonl(*rows))))
    assert printed(source, MaskPolicy()) == [
        "file      talk.jsonl: claude, by the fields uuid, chat_messages, project",
        "rows      3 read",
        "read      chat_messages",
        "aside     uuid: without meaning for a model",
        "not read  'files' of a message: held by 6, varies",
        "not read  'project' of a conversation: held by 3, varies",
        f"{'':10}{WAY_TO_READ}",
        "train row 0  talk.jsonl  talk.jsonl:1  5 tokens, 3 supervised (60%)",
        "ab",
        "\u27e6cd<|endoftext|>\u27e7",
        "train row 1  talk.jsonl  talk.jsonl:2  5 tokens, 3 supervised (60%)",
        "ab",
        "\u27e6cd<|endoftext|>\u27e7",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talk.jsonl"]


def test_a_look_reads_to_the_end_and_refuses_what_a_dataset_would(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl(*[{"text": "x"}] * 9, {"text": 3}))
    with pytest.raises(DataError, match=r"a.jsonl:10: text is no text"):
        look_at(Source(path=str(path)), TOKENIZER, None)


def said_of_fields(path, **how):
    lines = printed(Source(path=str(path), **how), MaskPolicy())
    return [line for line in lines if line.split()[0] in ("file", "read", "aside", "not")]


def test_a_look_tells_fields_that_are_read_from_those_that_say_nothing(tmp_path):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"id": 1, "messages": talk}, {"score": 2, "conversation_id": "x", "messages": talk},
            {"system": "s", "messages": talk}]  # fmt: skip
    assert said_of_fields(write(tmp_path / "a.jsonl", jsonl(*rows))) == [
        "file      a.jsonl: messages, by the fields id, messages",
        "read      messages, system",
        "aside     id, score, conversation_id: without meaning for a model",
    ]
    flat = [
        {"thread": 1, "created_at": n, "lang": "en", "likes": 3} | one for n, one in enumerate(talk)
    ]
    assert said_of_fields(write(tmp_path / "b.jsonl", jsonl(*flat))) == [
        "file      b.jsonl: chat, by the fields thread, created_at, lang, likes, role, content",
        "read      thread, created_at, role, content",
        "aside     lang: without meaning for a model",
        "not read  'likes' of a message: held by 2, is always the same",
    ]
    said = said_of_fields(tmp_path / "a.jsonl", turns="turns=messages")
    assert said[0] == "file      a.jsonl: columns, as --turns says"


def test_a_look_says_what_was_asked_for_and_what_has_no_fields(tmp_path):
    text = Source(path=str(write(tmp_path / "a.txt", "once")))
    assert printed(text, None)[0] == "file      a.txt: text, by how it begins"
    chat = json.dumps([{"text": "once"}])
    named = Source(path=str(write(tmp_path / "a.json", chat)), format="text")
    assert printed(named, None)[0] == "file      a.json: text, as --format says"


def test_a_long_text_is_cut_and_what_is_left_out_is_counted(tmp_path):
    row = {"prompt": "a" * 1700, "completion": "b" * 500}
    source = Source(path=str(write(tmp_path / "a.jsonl", jsonl(row))))
    said = " ".join(printed(source, MaskPolicy()))
    assert "a \u2026 1,200 characters more" in said
    assert said.count("a" * 120) == 4
    assert said.count("characters more") == 2  # the end of the turn is of the answer


def test_a_look_says_what_is_wanted_where_no_dataset_could_be_made(tmp_path):
    slack = Source(path=str(ROOT / "examples/exports/slack"))
    assert printed(slack, MaskPolicy()) == [
        "file      slack: slack, by how it begins",
        "rows      1 read",
        "dropped   1: a conversation of people, of whom none is said to be the assistant",
        "changed   1: file of a Slack export without messages left aside",
        "changed   1: service message 'channel_join' left out",
        "wanted    nothing says who is the assistant in format 'slack'; found the speakers bob (3),"
        " ann (2); choose one by",
        "--assistant NAME, or another --format",
    ]
    path = str(write(tmp_path / "a.jsonl", jsonl({"text": " "}, {"text": ""})))
    assert printed(Source(path=path), None)[-1].startswith("wanted    every row was dropped (")


def test_names_of_fields_with_quotation_marks_in_them_stay_whole(tmp_path):
    row = {"text": "x", "it's": 1, "a'b\"c": 2}
    said = printed(Source(path=str(write(tmp_path / "a.jsonl", jsonl(row)))), None)
    assert "read      text" in said
    assert """not read  "it's" of the row: held by 1, is always the same""" in said


def test_what_an_export_says_about_itself_is_not_called_read():
    said = printed(Source(path=str(ROOT / "examples/exports/claude.json")), MaskPolicy())
    assert said[2:4] == [
        "read      chat_messages",
        "aside     uuid, name, account, created_at: without meaning for a model",
    ]
