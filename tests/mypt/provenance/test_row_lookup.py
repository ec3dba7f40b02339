"""Deletion requests and leakage questions: one row of a raw file, by its line."""

import json
import shutil
from pathlib import Path

import pytest

from mypt import files
from mypt.config import MaskPolicy, PrepareConfig, Reading, Source
from mypt.data.dataset import prepare
from mypt.data.reading.raw import RawFile
from mypt.data.reading.readers import last_line
from mypt.errors import ConfigError, DataError
from mypt.provenance.exposure import exposure
from mypt.provenance.row_lookup import find_row, parse_place
from tests.mypt.conftest import write_chat


def twice(folder):
    """Prepare two files of chats; line 3 of each says the same, line 5 of a is dropped."""
    folder.mkdir()
    a, b = write_chat(folder / "a.jsonl", 12), write_chat(folder / "b.jsonl", 12, "no {i}")
    lines = a.read_text().splitlines()
    lines[4] = json.dumps({"messages": [{"role": "user", "content": ""}]})
    a.write_text("\n".join(lines) + "\n")
    others = b.read_text().splitlines()
    others[2] = lines[2]
    b.write_text("\n".join(others) + "\n")
    sources = (Source(path=str(a), name="first"), Source(path=str(b), name="second"))
    config = PrepareConfig(sources=sources, tokenization="byte", val_fraction=0.3)
    return Path(prepare(config, MaskPolicy(), folder / "data").path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return twice(tmp_path_factory.mktemp("raw") / "x")


@pytest.fixture
def seen(plan, finish, data, chat_dataset):
    """The exposure of a model whose base was trained on other chats."""
    finish(plan("base", dataset=chat_dataset, max_iters=2))
    end = finish(plan("chat", dataset=data, init_from="base", max_iters=4))
    return exposure(Path(end["end"].checkpoint.path))


def test_a_row_is_found_in_every_training_that_read_its_file(seen, data):
    by_line = {(row.source, row.line): row for row in seen.rows() if row.training == "chat step 4"}
    in_train = next(line for source, line in by_line if source == "first")
    found = find_row(seen, str(data.parent / "a.jsonl"), in_train)
    assert found.rows == (by_line["first", in_train],)
    assert found.line == in_train
    assert found.changed == ()


def test_a_row_of_the_validation_split_was_never_learned(seen):
    learned = {row.line for row in seen.rows() if row.source == "first"}
    line = min(set(range(1, 13)) - learned - {5})
    (row,) = find_row(seen, "a.jsonl", line).rows
    assert (row.split, row.times, row.learned, row.read) == ("val", 0, 0, 0)


def test_rows_elsewhere_that_say_the_same_are_named(seen):
    found = find_row(seen, "a.jsonl", 3)
    assert [(Path(row.file).name, row.line) for row in found.rows] == [("a.jsonl", 3)]
    assert [(Path(row.file).name, row.line) for row in found.twins if "chat s" in row.training] == [
        ("b.jsonl", 3)
    ]
    # The base model's chats hold the same conversation, word for word.
    assert [row.source for row in found.twins if row.training == "base step 2"] == ["chat.jsonl"]


def test_a_line_on_which_no_row_begins_leads_to_the_row_before(seen):
    found = find_row(seen, "a.jsonl", 5)
    assert (found.line, [row.line for row in found.rows]) == (4, [4])


def test_a_line_behind_the_files_end_is_refused(seen):
    with pytest.raises(DataError, match=r"a\.jsonl:13: the file ends at 12; expected a line from"):
        find_row(seen, "a.jsonl", 13)


def test_a_line_behind_the_last_row_needs_the_file(plan, finish, tmp_path):
    twice(tmp_path / "x")
    path = tmp_path / "x" / "a.jsonl"
    dropped = json.dumps({"messages": [{"role": "user", "content": ""}]})
    path.write_text(path.read_text() + dropped + "\n")
    sources = (Source(path=str(path), name="first"),)
    config = PrepareConfig(sources=sources, tokenization="byte", val_fraction=0.3)
    data = Path(prepare(config, MaskPolicy(), tmp_path / "data").path)
    seen = exposure(Path(finish(plan("m", dataset=data, max_iters=1))["end"].checkpoint.path))
    assert find_row(seen, "a.jsonl", 13).line == 12
    path.unlink()
    with pytest.raises(DataError, match=r"begins at 12, and the file as it was read is not there"):
        find_row(seen, "a.jsonl", 13)


def test_items_and_table_rows_are_counted_as_rows_are(tmp_path):
    items = tmp_path / "items.json"
    items.write_text('[{"text": "a\\nb"},\n\n {"text": "c"}]')
    table = tmp_path / "rows.csv"
    table.write_text('text\n"a\nb"\nc\n')
    for path, last in ((items, 2), (table, 4)):
        raw = RawFile(path)
        assert last_line(raw, Reading()) == last


@pytest.mark.parametrize("name", ["path", "end of the path", "sha256", "moved"])
def test_a_file_is_known_by_path_or_bytes(seen, data, tmp_path, name):
    path = data.parent / "a.jsonl"
    names = {
        "path": path,
        "end of the path": Path(path.parent.name, path.name),
        "sha256": files.sha256_file(path)[:16],
        "moved": shutil.copy(path, tmp_path / "elsewhere.jsonl"),
    }
    assert [row.line for row in find_row(seen, str(names[name]), 7).rows] == [7]


def test_a_file_that_changed_since_is_said(plan, finish, tmp_path):
    data = twice(tmp_path / "x")
    end = finish(plan("m", dataset=data, max_iters=1))
    path = tmp_path / "x" / "a.jsonl"
    path.write_text("{}\n" + path.read_text())
    found = find_row(exposure(Path(end["end"].checkpoint.path)), str(path), 2)
    assert found.changed == (str(path),)


def test_an_unknown_file_is_refused_with_the_names_of_the_known(seen):
    with pytest.raises(DataError, match=r"read such a file; it read a\.jsonl, b\.jsonl, chat\.jso"):
        find_row(seen, "c.jsonl", 1)
    with pytest.raises(DataError, match=r"read such a file"):
        find_row(seen, "l", 1)


def test_a_place_is_a_file_and_a_line():
    assert parse_place("a:b.jsonl:12") == ("a:b.jsonl", 12)
    for text in ("a.jsonl", "a.jsonl:", "a.jsonl:0", ":3", "a.jsonl:x", "a.jsonl:-1"):
        with pytest.raises(ConfigError, match="FILE:LINE"):
            parse_place(text)
