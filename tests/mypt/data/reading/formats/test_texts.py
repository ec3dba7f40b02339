"""Documents of plain text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypt.config import Source
from mypt.data.conversations import Document
from mypt.data.reading.formats import texts as plain
from mypt.data.reading.sources import open_source
from mypt.errors import DataError
from tests.mypt.data.rawfiles import dropped, jsonl, memory_below, notes, read, write


@given(st.text(alphabet="ab \n\r\u2028é\U0001f600\0", min_size=1, max_size=300), st.integers(4, 40))
def test_text_files_are_cut_into_documents_that_are_the_file_byte_for_byte(
    tmp_path_factory, content, most
):
    path = write(tmp_path_factory.getbasetemp() / "text.txt", "x" + content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "DOCUMENT_BYTES", most)
        reader, rows = read(path)
    assert reader.format == "text"
    texts = [row.text for row in rows]
    assert "".join(texts).encode() == path.read_bytes()
    assert all(len(text.encode()) <= most for text in texts)
    starts = ["".join(texts[:n]).count("\n") + 1 for n in range(len(texts))]
    assert [row.origin.line for row in rows] == starts
    cut = len(texts) - 1
    assert notes(reader) == ({"text cut into one more document": cut} if cut else {})


def test_text_is_cut_at_the_last_empty_line_or_else_the_last_line(tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "DOCUMENT_BYTES", 20)
    content = "paragraph\n\nb\r\n\r\nnext line\nthen none\nabcdefghijklmnopqrstuvwxyz"
    _, rows = read(write(tmp_path / "a.txt", content))
    assert [row.text for row in rows] == [
        "paragraph\n\nb\r\n\r\n", "next line\nthen none\n", "abcdefghijklmnopqrst", "uvwxyz",
    ]  # fmt: skip


def test_a_long_text_is_read_in_the_memory_of_a_few_documents(tmp_path):
    path = write(tmp_path / "a.txt", "word " * (2 << 20))
    with memory_below(4 << 20):
        assert sum(len(row.text) for row in open_source(Source(path=str(path)))) == 10 << 20


def test_rows_of_text_are_documents_of_any_length(tmp_path):
    rows = [{"text": "long " * 10_000}, {"text": " "}, {"text": "b", "weight": 0}, {"text": "a\n"}]
    reader, found = read(write(tmp_path / "a.jsonl", jsonl(*rows)))
    assert reader.format == "text"
    assert found == [Document(rows[0]["text"], (0, 1)), Document("a\n", (0, 4))]
    assert dropped(reader) == {"a document without text": 1, "a document of weight 0": 1}


def test_a_text_file_of_white_space_is_refused(tmp_path):
    with pytest.raises(DataError, match="only white space"):
        read(write(tmp_path / "a.txt", " \n\r\n"))
