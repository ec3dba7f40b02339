"""Chats that WhatsApp writes as text, in the dates of several languages."""

import pytest

from mypt.data.reading.raw import Limits
from mypt.errors import DataError
from tests.mypt.data.rawfiles import notes, read, turns, with_mask, write

DATES = [
    "31/12/2023, 23:59 - ", "12/31/23, 11:59 PM - ", "12/31/23, 11:59\u202fPM - ",
    "31.12.23, 23:59 - ", "2023-12-31 23:59 - ", "31/12/23 23:59 - ", "31/12/23, 11:59 p. m. - ",
    "[31/12/2023, 23:59:59] ", "\u200e[31.12.23, 23:59:59] ", "[2023/12/31 11:59:59 PM] ",
    "[12/31/23, 11:59:59\u202fPM] ",
]  # fmt: skip


@pytest.mark.parametrize("date", DATES)
def test_whatever_the_spelling_of_the_date_a_line_begins_a_message(tmp_path, date):
    content = f"{date}Ann: Hi\n{date}Bob: Yo\nmore\n\nend\n"
    reader, (row,) = read(write(tmp_path / "chat.txt", content), assistant="Bob")
    assert reader.format == "whatsapp"
    assert with_mask(row) == ("HiYo\nmore\n\nend|", "001111111111111")
    assert row.origin.line == 1


def test_what_nobody_typed_is_left_out_and_counted(tmp_path):
    at = "31/12/23, 23:59 - "
    path = write(
        tmp_path / "WhatsApp Chat with Bob.txt",
        f"{at}Messages and calls are end-to-end encrypted.\r\n"
        f"{at}Ann added Cid\r\n"
        f'{at}Ann changed the subject to "Trip: Rome"\r\n'
        f"{at}Ann: Where: Rome?\r\n"
        f"{at}Ann: <Media omitted>\r\n"
        f"{at}Bob: <Medien ausgeschlossen>\r\n"
        f"{at}Bob: \u200eIMG-1.jpg (file attached)\r\nThe fountain\r\n"
        f"{at}Bob: Yes. <This message was edited>\r\n"
        f"{at}Ann: This message was deleted\r\n"
        f"{at}Ann: \r\n"
        f"{at}Ann: use <br>\r\n",
    )
    reader, (row,) = read(path, assistant="Bob")
    assert turns(row) == [
        ("user", "Where: Rome?"),
        ("assistant", "The fountain\nYes."),
        ("user", "use <br>"),
    ]
    assert row.origin.line == 4
    assert notes(reader) == {
        "service message left out": 3,
        "media or notice in the place of a text left out": 3,
        "mark of an edited message left out": 1,
        "deleted message left out": 1,
        "message without text left out": 1,
        "message joined to the one before": 1,
    }


def test_the_speakers_of_a_chat_are_listed_where_none_is_the_assistant(tmp_path):
    path = write(tmp_path / "a.txt", "[31.12.23, 23:59:59] Ann: a\n[31.12.23, 23:59:59] +49 1: b\n")
    with pytest.raises(DataError, match=r"speakers Ann \(1\), \+49 1 \(1\); .*--assistant NAME"):
        read(path)


def test_text_with_dates_that_is_no_chat_stays_text(tmp_path):
    for content in ("31/12/23, 23:59 - the end\nBob: x\n", "Ann: a\n31/12/23, 23:59 - Bob: b\n"):
        assert read(write(tmp_path / "a.txt", content))[0].format == "text"


def test_a_chat_that_begins_otherwise_or_is_too_long_is_refused(tmp_path):
    path = write(tmp_path / "a.txt", "\nhello\n31/12/23, 23:59 - Bob: b\n")
    with pytest.raises(DataError, match=r"a.txt:2: found 'hello'; expected a date and a time"):
        read(path, format="whatsapp", assistant="Bob")
    path = write(tmp_path / "b.txt", "31/12/23, 23:59 - Bob: b\n" + "more of it\n" * 20)
    with pytest.raises(DataError, match=r"b.txt:1: a message of more than 99 characters"):
        read(path, limits=Limits(row_bytes=99), assistant="Bob")
    path = write(tmp_path / "c.txt", "31/12/23, 23:59 - Bob: bye\n" * 20)
    with pytest.raises(DataError, match=r"c.txt:11: a conversation of more than 30 characters"):
        read(path, limits=Limits(row_bytes=30), assistant="Bob")
