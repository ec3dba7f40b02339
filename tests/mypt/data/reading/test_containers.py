"""Rows out of JSON, JSONL, CSV and Parquet files."""

import csv
import gzip
import json
from datetime import datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mypt.config import Reading
from mypt.data.reading.containers import container_of, read_records
from mypt.data.reading.raw import Limits, RawFile
from mypt.data.reading.records import BLANK
from mypt.errors import DataError
from tests.mypt.data.rawfiles import memory_below, write


def has_messages(value):
    return isinstance(value.get("messages"), list) and isinstance(value["messages"][0], dict)


def records(path, limits=None, tally=None, **how):
    raw = RawFile(path, limits=limits)
    return list(read_records(raw, container_of(raw), Reading(**how), has_messages, tally))


def values(path, limits=None, **how):
    return [record.value for record in records(path, limits, **how)]


@pytest.mark.parametrize(
    ("name", "content", "container"),
    [
        ("a.jsonl", "{}", "lines"),
        ("a.NDJSON", "[1]", "lines"),
        ("a.json", '[{"a": 1}]', "json"),
        ("a.json", '{"a": 1}', "json"),
        ("a.json", '{"a": 1}\n', "json"),
        ("a.json", '\n{"a": 1}\n{"a": 2}\n', "lines"),
        ("a.json", '{\n"a": 1}', "json"),
        ("a.json", '[{"a": 1},\n{"a": 2}]', "json"),
        ("a.csv", "a,b", "csv"),
        ("a.tsv", "a\tb", "csv"),
        ("a.v2.md", "# a", "text"),
        ("a.txt", '{"a": 1}', "text"),
    ],
)
def test_the_name_and_the_first_line_tell_how_rows_are_held(tmp_path, name, content, container):
    assert container_of(RawFile(write(tmp_path / name, content))) == container
    packed = write(tmp_path / f"{name}.gz", gzip.compress(content.encode()))
    assert container_of(RawFile(packed)) == container


def test_a_name_that_tells_nothing_needs_a_format(tmp_path):
    opened = RawFile(write(tmp_path / "data.bin", '{"a": 1}'))
    with pytest.raises(DataError, match=r"name does not tell its format; expected .jsonl"):
        container_of(opened)
    assert container_of(opened, text=True) == "text"
    assert container_of(opened, text=False) == "json"


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip", "a.tgz", "a.tar", "a.jsonl.bz2"])
def test_archives_are_refused_whatever_the_format(tmp_path, name):
    for text in (None, True, False):
        with pytest.raises(DataError, match="an archive; unpack it"):
            container_of(RawFile(write(tmp_path / name, "x")), text=text)


def test_lines_give_rows_and_blanks_with_their_numbers(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": 1}\r\n\n \t\r\n"\u2028"\n[2]')
    assert values(path) == [{"a": 1}, BLANK, "\u2028", [2]]
    assert [record.place.line for record in records(path)] == [1, 2, 4, 5]


def test_an_array_gives_its_items(tmp_path):
    path = write(tmp_path / "a.json", '[{"a": 1},\n 2, "x, y"]')
    assert values(path) == [{"a": 1}, 2, "x, y"]
    assert str(records(path)[2].place) == f"{path}: item 3"


def test_an_object_of_objects_gives_a_row_for_each_id(tmp_path):
    path = write(tmp_path / "a.json", '{"x": {"a": 1}, "y": {"a": {"b": []}}}')
    assert values(path) == [{"a": 1}, {"a": {"b": []}}]


def test_an_object_of_other_values_is_one_row(tmp_path):
    row = {"id": "x", "messages": [{"role": "user"}], "extra": {"a": 1}}
    assert values(write(tmp_path / "a.json", json.dumps(row, indent=2))) == [row]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": 1, "x": 2, "id": 3}', "item 3: no JSON; the field 'id' stands twice"),
        ('{"id": 1,}', "item 2: no JSON; an empty field"),
        ("[1,]", "item 2: no JSON"),
        ("[1 2]", "item 1: no JSON"),
        ("[]", "no rows found"),
        ("{}", "no rows found"),
        ("[[1}]", "closes what|no JSON"),
    ],
)
def test_what_is_wrong_in_a_json_file_is_named(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        records(write(tmp_path / "a.json", content))


def test_one_row_over_the_limit_is_refused(tmp_path):
    row = json.dumps({str(n): "x" * 50 for n in range(50)})
    with pytest.raises(DataError, match=r"one row of more than .* or 1,000 bytes"):
        records(write(tmp_path / "a.json", row), Limits(row_bytes=1000))


@pytest.mark.parametrize("content", ["\n", " \n\n\t\n"])
def test_a_file_of_blank_lines_has_no_rows(tmp_path, content):
    with pytest.raises(DataError, match="no rows found"):
        records(write(tmp_path / "a.jsonl", content))


CELLS = st.text(alphabet='ab",\n\r;\t é', max_size=6)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_csv_gives_back_what_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([("question", "answer"), *rows])
    assert values(path) == [{"question": q, "answer": a} for q, a in rows]


def test_csv_rows_are_placed_on_the_line_where_they_start(tmp_path):
    path = write(tmp_path / "a.csv", 'a,b\r\n"one\r\ntwo",2\r\n\r\n3,4')
    assert values(path) == [{"a": "one\r\ntwo", "b": "2"}, BLANK, {"a": "3", "b": "4"}]
    assert [record.place.line for record in records(path)] == [2, 4, 5]


def test_csv_switches_are_switches(tmp_path):
    path = write(tmp_path / "a.csv", "x,train,weight\n1,FALSE,1.0\n1,,0.5\n")
    assert values(path) == [
        {"x": "1", "train": False, "weight": 1},
        {"x": "1", "train": None, "weight": "0.5"},
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1\n", "a.csv:2: 1 cells; expected 2, for a, b"),
        ('a,b\n"1,2\n', "a.csv:2: no CSV"),
        ('a,b\n"1"x,2\n', "a.csv:2: no CSV"),
        ("a,a\n1,2\n", "columns a, a are not named once each"),
        ("a,\n1,2\n", "not named once each"),
        ("a,b\n", "no rows found"),
        (b"a,b\n1,\xff\n", "a.csv:2: byte 0xff at offset 6 is no UTF-8"),
    ],
)
def test_what_is_wrong_in_a_csv_file_is_named(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        records(write(tmp_path / "a.csv", content))


def test_a_quote_that_never_closes_takes_no_more_than_a_row(tmp_path):
    path = write(tmp_path / "a.csv", 'a,b\n"1,2\n' + "some text\n" * 500_000)
    with memory_below(16 << 20), pytest.raises(DataError, match=r"a.csv:2: no CSV"):
        records(path, Limits(row_bytes=1 << 20))


def test_parquet_gives_nested_rows_and_times_as_text(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"hi {n}"}], "n": n, "none": None}
        for n in range(150)
    ]
    table = pa.Table.from_pylist(rows).append_column("at", [[datetime(2024, 1, 1)] * 150])
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=40)
    at = "2024-01-01 00:00:00.000000"
    assert values(tmp_path / "a.parquet") == [row | {"at": at} for row in rows]
    assert str(records(tmp_path / "a.parquet")[149].place).endswith("a.parquet: row 150")


def test_parquet_is_read_in_the_memory_of_a_few_rows(tmp_path):
    table = pa.table({"text": [f"{n} " * 2000 for n in range(4000)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=500)
    pool = pa.default_memory_pool()
    raw = RawFile(tmp_path / "a.parquet")
    before = pool.bytes_allocated()
    most = 0
    with memory_below(8 << 20):
        for record in read_records(raw, "parquet", Reading(), has_messages):
            most = max(most, pool.bytes_allocated() - before)
            assert record.value["text"]
    assert most < table.nbytes // 3
    assert raw.bytes_done == raw.size


def test_parquet_that_expands_without_bound_is_refused(tmp_path):
    table = pa.table({"text": ["x" * 1000] * 20_000})
    parquet.write_table(table, tmp_path / "a.parquet")
    limits = Limits(free_expansion=1000, expansion=10_000, table_expansion=10)
    with pytest.raises(DataError, match=r"unpack to more than .* expected at most 10 times"):
        records(tmp_path / "a.parquet", limits)
    parquet.write_table(table, tmp_path / "b.parquet", use_dictionary=False, compression="zstd")
    with pytest.raises(DataError, match=r"unpack to more than .* expected at most 3 times"):
        records(tmp_path / "b.parquet", Limits(free_expansion=1000, expansion=3))


def test_damaged_parquet_is_refused(tmp_path):
    parquet.write_table(pa.table({"text": ["some text"] * 100}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for data in (whole[:-20], whole[20:], b"PAR1" + whole[-8:], b"text"):
        with pytest.raises(DataError, match=r"b.parquet: no Parquet"):
            records(write(tmp_path / "b.parquet", data))
    with pytest.raises(DataError, match="a packed table; unpack it"):
        records(write(tmp_path / "b.parquet.gz", gzip.compress(whole)))
