"""Text with role tags."""

import pytest

from mypt.data.reading.raw import Limits
from mypt.errors import DataError
from tests.mypt.data.rawfiles import ASK, TELL, memory_below, read, turns, write


def test_tagged_text_has_conversations_parted_by_blank_lines(tmp_path):
    content = (
        "\ufeff\n<System>Be kind.</System>\n<User>hi</User><Assistant>two\n\n"
        "lines </b> </Assistant>"
        "\n<User>1 < 2</User>\r\n<Assistant> ok\n</Assistant>\n \n\n<User>hi</User>"
        "\n<Assistant>yo</Assistant>"
    )
    reader, rows = read(write(tmp_path / "a.txt", content))
    assert reader.format == "tagged"
    assert [turns(row) for row in rows] == [
        [
            ("system", "Be kind."), ASK, ("assistant", "two\n\nlines </b> "),
            ("user", "1 < 2"), ("assistant", " ok\n"),
        ],
        [ASK, TELL],
    ]  # fmt: skip
    assert [row.origin.line for row in rows] == [2, 11]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<User>a</User>\nhello\n", "a.txt:2: found 'hello' between turns; expected one of <User>"),
        ("<User>a</User> b <Assistant>c</Assistant>", "a.txt:1: found 'b' between turns"),
        ("<User>a\n<Assistant>b</Assistant>", "a.txt:2: <Assistant> inside <User> of .*a.txt:1"),
        ("<User>a</Assistant>", "a.txt:1: </Assistant> found, but <User> of .*a.txt:1 is open"),
        ("</User>", "a.txt:1: </User> found, but no turn is open"),
        ("\n<User>a\n\n", "a.txt:2: <User> is never closed; expected </User>"),
        ("<user>a</user>", "a.txt:1: found '<user>a</user>' between turns"),
        ("\n \n", "a.txt: no turns found"),
    ],
)
def test_tags_out_of_turn_are_named(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "a.txt", content), format="tagged")


def test_a_tag_that_is_never_closed_takes_no_more_than_a_row(tmp_path):
    path = write(tmp_path / "a.txt", "<User>" + "some text\n" * 500_000)
    with memory_below(8 << 20), pytest.raises(DataError, match=r"a.txt:1: a turn of more than"):
        read(path, Limits(row_bytes=1 << 16))
