"""Rows out of JSON, JSONL, CSV and Parquet files."""

import csv
import gzip
import json
import shutil
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather, parquet

from mypt.config import Reading
from mypt.data.reading.containers import container_of, read_records
from mypt.data.reading.raw import Limits, RawFile
from mypt.data.reading.records import BLANK, Tally
from mypt.errors import DataError
from tests.mypt.data.rawfiles import ASK, TELL, chat, memory_below, notes, read, turns, write


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
        {"x": "1", "train": None, "weight": 0.5},
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


@pytest.mark.skipif(sys.platform != "linux", reason="the bound is Linux's")
def test_the_bound_of_a_table_is_not_used_up_by_what_holds_its_memory(tmp_path):
    parquet.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    code = (
        "import sys; from mypt.config import Source; from mypt.data.reading import sources, tables;"
        " tables._MOST_MEMORY += int(sys.argv[2]);"
        " print(len(list(sources.open_source(Source(path=sys.argv[1])))))"
    )
    for more in (0, 1 << 20, 2 << 20):  # a process of its own: an allocator reserves only once
        words = [sys.executable, "-c", code, str(tmp_path / "a.parquet"), str(more)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.stdout == "2\n", done.stderr


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


KINDS = pa.large_list(pa.string())
ROWS = [{"messages": [{"role": "user", "content": text}]} for text in "ab"]
MESSAGES = [row["messages"] for row in ROWS]


@pytest.mark.parametrize(
    ("whole", "rows"),
    [
        ({"data": ROWS}, ROWS),
        ({"version": "1", "info": {"a": [1]}, "tags": ["x"], "rows": ROWS}, ROWS),
        ({"messages": MESSAGES}, MESSAGES),
        ({"meta": {"source": "x"}, "messages": MESSAGES[0]}, None),
        ({"messages": MESSAGES[0], "parts": ROWS}, None),
        ({"messages": {"0": MESSAGES[0], "1": MESSAGES[1]}}, ROWS),
        ({"messages": {"0": MESSAGES[0]}, "n": {"0": 3}}, [ROWS[0] | {"n": 3}]),
        ({"prompt": ["a", "b"], "n": [1, 2]}, [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}]),
        ({"id": [1, 2], "messages": MESSAGES}, [{"id": i + 1} | ROWS[i] for i in (0, 1)]),
        ({"said": ["a", "b"], "n": [1]}, None),
        ({"said": ["a", "b"], "from": "x"}, None),
        ({"x": ROWS[0], "y": ROWS[1]}, ROWS),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_rows_of_one_json_value_are_found_by_what_it_holds(tmp_path, whole, rows, indent, name):
    if name == "a.jsonl" and indent is None:
        rows = None  # a line is a row
    path = write(tmp_path / name, json.dumps(whole, indent=indent))
    assert values(path) == ([whole] if rows is None else rows)


def test_rows_under_a_key_are_found_in_files_longer_than_what_is_held(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "word " * 200}]} for _ in range(3000)]
    path = write(tmp_path / "a.json", json.dumps({"rows": rows, "meta": {"x": ["word"] * 400_000}}))
    tally = Tally()
    with memory_below(4 << 20):
        opened = RawFile(path)
        found = read_records(opened, "json", Reading(), has_messages, tally)
        assert sum(1 for record in found if record.value == rows[0]) == 3000
    assert tally.unread_notes() == {"'meta' of the file was not read": 1}
    ids = write(tmp_path / "ids.json", json.dumps({str(n): row for n, row in enumerate(rows, 1)}))
    with memory_below(4 << 20):
        found = read_records(RawFile(ids), "json", Reading(), has_messages)
        assert sum(1 for _ in found) == 3000


def test_what_stands_beside_the_rows_is_counted_or_refused(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"system": "Be kind.", "id": 1, "data": ROWS}))
    tally = Tally()
    assert len(records(path, tally=tally)) == 2
    assert tally.unread_notes() == {"'system' of the file was not read": 1}
    records(path, tally=(strict := Tally(strict=True)))
    with pytest.raises(DataError, match="'system' of the file is not read"):
        strict.refuse_unread()


@pytest.mark.parametrize(
    ("whole", "rows_at", "message"),
    [
        ({"train": ROWS, "test": ROWS}, "train", "may lie under 'train' or 'test'"),
        ({"data": {"items": ROWS}}, "data.items", "lists inside; .* --rows_at data.items"),
        ({"a": {"n": 1}, "b": {"rows": ROWS}}, "b.rows", "--rows_at b.rows"),
    ],
)
def test_rows_that_may_lie_elsewhere_are_found_where_the_error_says(
    tmp_path, whole, rows_at, message
):
    path = write(tmp_path / "a.json", json.dumps(whole))
    with pytest.raises(DataError, match=message) as caught:
        records(path)
    assert f"--rows_at {rows_at}" in str(caught.value)
    assert values(path, rows_at=rows_at) == ROWS


def test_rows_at_leads_to_rows_by_id_too_and_nowhere_else(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"n": 1, "all": {"x": ROWS[0], "y": ROWS[1]}}))
    assert values(path, rows_at="all") == ROWS
    for wrong, found in (("al", "n, all"), ("all.z", "x, y"), ("n", "no list or object")):
        with pytest.raises(DataError, match=f"no rows at '{wrong}': found {found} .* --rows_at"):
            values(path, rows_at=wrong)
    with pytest.raises(DataError, match=r"rows_at 'a' is for a .json file .* leave --rows_at out"):
        values(write(tmp_path / "a.jsonl", json.dumps(ROWS[0])), rows_at="a")


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("a;b\n1,0;x\n", [{"a": "1,0", "b": "x"}]),
        ("a\tb\n1;0\tx\n", [{"a": "1;0", "b": "x"}]),
        ("a|b\n1|x\n", [{"a": "1", "b": "x"}]),
        ('"a;b",c\n1;0,x\n', [{"a;b": "1;0", "c": "x"}]),
        ('"a,b";c\n1;x\n', [{"a,b": "1", "c": "x"}]),
        ("a, b\n1, x\n", [{"a": "1", "b": "x"}]),
        ('a, b\n1, "x, y"\n', [{"a": "1", "b": "x, y"}]),
        ("a,b \n1, x\n", [{"a": "1", "b": " x"}]),
        (",a,b\n0,1,x\n", [{"index": "0", "a": "1", "b": "x"}]),
        ("\na\n1\n", [BLANK, {"a": "1"}]),
    ],
)
def test_the_first_line_of_a_csv_file_says_what_parts_cells(tmp_path, content, rows):
    assert values(write(tmp_path / "a.csv", content)) == rows


def test_a_csv_cell_of_messages_is_read_as_messages_and_other_json_as_text(tmp_path):
    cells = [json.dumps(MESSAGES[0]), json.dumps([{"name": "f"}]), '{"role": 1}', "[1]"]
    file = tmp_path / "a.csv"
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([list("abcd"), cells])
    assert values(file) == [{"a": MESSAGES[0], "b": cells[1], "c": cells[2], "d": cells[3]}]


def tables(folder, table):
    """Yield files of a table, as libraries write them."""
    parquet.write_table(table, folder / "a.parquet")
    feather.write_feather(table, folder / "a.feather")
    feather.write_feather(table, folder / "plain.arrow", compression="uncompressed")
    with pa.ipc.new_stream(folder / "stream.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=100)
    shutil.copy(folder / "a.feather", folder / "feather.jsonl")
    shutil.copy(folder / "a.parquet", folder / "parquet.json")
    yield from sorted(folder.iterdir())


def test_nulls_that_a_table_forces_into_structs_are_left_out_and_others_stay(tmp_path):
    rows = [
        {"c": [{"x": 1, "y": {"z": "a"}}], "d": None, "e": [None, "t"]},
        {"c": [{"w": [{"q": 1}]}, {"w": [{"r": None}]}], "d": {"v": 0}, "e": None},
        {"c": None, "d": {}, "e": []},
    ]
    expected = [
        {"c": [{"x": 1, "y": {"z": "a"}}], "d": None, "e": [None, "t"]},
        {"c": [{"w": [{"q": 1}]}, {"w": [{}]}], "d": {"v": 0}, "e": None},
        {"c": None, "d": {}, "e": []},
    ]
    table = pa.Table.from_pylist(rows)
    for path in tables(tmp_path, table):
        assert values(path) == expected, path.name


def test_values_that_json_has_not_become_those_that_it_has(tmp_path):
    at = datetime(2024, 1, 2, 3, 4, 5)
    columns = {
        "t": pa.array([at], pa.timestamp("ms")),
        "u": pa.array([at], pa.timestamp("us", "UTC")),
        "n": pa.array([Decimal("1.50")]),
        "m": pa.array([[("k", None), ("l", 1)]], pa.map_(pa.string(), pa.int64())),
        "s": pa.array(
            [{"t": at, "k": ["x"]}], pa.struct([("t", pa.timestamp("ns")), ("k", KINDS)])
        ),
        "k": pa.array(["x"]).dictionary_encode(),
    }
    row = {
        "t": "2024-01-02 03:04:05.000",
        "u": "2024-01-02 03:04:05.000000Z",
        "n": 1.5,
        "m": {"k": None, "l": 1},
        "s": {"t": "2024-01-02 03:04:05.000000000", "k": ["x"]},
        "k": "x",
    }
    for path in tables(tmp_path, pa.table(columns)):
        assert values(path) == [row], path.name


def test_an_arrow_file_is_read_in_the_memory_of_a_few_rows(tmp_path):
    table = pa.table({"text": [f"{n} " * 2000 for n in range(4000)]})
    feather.write_feather(table, tmp_path / "a.arrow", compression="uncompressed")
    pool = pa.default_memory_pool()
    raw = RawFile(tmp_path / "a.arrow")
    before, most = pool.bytes_allocated(), 0
    del table
    with memory_below(8 << 20):
        for record in read_records(raw, "arrow", Reading(), has_messages):
            most = max(most, pool.bytes_allocated() - before)
            assert record.value["text"]
    assert most < 8 << 20
    assert raw.bytes_done == raw.size


@pytest.mark.parametrize("name", ["plain.arrow", "stream.arrow", "a.feather"])
def test_damaged_arrow_is_refused(tmp_path, name):
    list(tables(tmp_path, pa.table({"text": ["some text"] * 1000, "n": range(1000)})))
    whole = (tmp_path / name).read_bytes()
    random = Random(name)
    for cut in (9, 100, len(whole) // 2):
        with pytest.raises(DataError, match=r"b.arrow: no Arrow"):
            records(write(tmp_path / "b.arrow", whole[:cut]))
    for _ in range(200):
        broken = bytearray(whole)
        broken[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        with suppress(DataError):
            records(write(tmp_path / "b.arrow", bytes(broken)))
    with pytest.raises(DataError, match=r"Feather of version 1; write it anew"):
        records(write(tmp_path / "b.feather", b"FEA1" + whole))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"PK\3\4....", "an archive; unpack it"),
        ("a.csv", b"PK\3\4....", "an archive; unpack it"),
        ("a.xlsx", b"x", "a spreadsheet; save it as CSV"),
    ],
)
def test_what_holds_no_rows_is_named_whatever_it_is_called(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        records(write(tmp_path / name, content))


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": ["a", "b"], "completion": ["c", "d", "e"]},
        {"messages": [chat(ASK, TELL), chat(ASK, TELL)], "id": [1]},
        {"text": ["a", "b"], "source": ["x"]},
    ],
)
def test_columns_of_unequal_length_are_refused_and_an_array_of_rows_is_read(tmp_path, columns):
    path = write(tmp_path / "a.json", json.dumps(columns))
    with pytest.raises(DataError, match=r"a.json: columns of . to . rows; .* an array of rows"):
        read(path)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=False)]
    assert len(read(write(path, json.dumps(rows)))[1]) == len(rows)


def test_an_object_of_lists_that_are_one_row_stays_one(tmp_path):
    answers = {"chosen": chat(TELL), "rejected": chat(TELL)}
    for row in (
        {"messages": chat(ASK, TELL), "tools": [{"name": "f"}]},
        {"prompt": chat(ASK)} | answers,
        {"prompt": chat(ASK, TELL, ASK)} | answers,
    ):
        assert len(read(write(tmp_path / "a.json", json.dumps(row)))[1]) == 1


@pytest.mark.parametrize(
    "about", [{"text": "About"}, {"prompt": "About", "completion": "these"}, {"instruction": "?"}]
)
def test_rows_beside_what_could_be_a_row_are_found_and_it_is_named(tmp_path, about):
    rows = [{"messages": chat(ASK, TELL)}, {"messages": chat(ASK, TELL)}]
    path = write(tmp_path / "a.json", json.dumps(about | {"data": rows}))
    reader, found = read(path)
    assert [turns(row) for row in found] == [[ASK, TELL]] * 2
    assert notes(reader) == {f"{key!r} of the file was not read": 1 for key in about}


def test_what_stands_beside_the_rows_that_rows_at_leads_to_is_named_at_every_level(tmp_path):
    rows = [{"messages": chat(ASK, TELL)}] * 3
    data = {"items": rows, "note": "x", "long": [{"a": "b" * 100}] * 2000, "none": None}
    path = write(tmp_path / "a.json", json.dumps({"about": {"by": "me"}, "data": data, "n": ""}))
    reader, found = read(path, rows_at="data.items")
    assert len(found) == 3
    assert notes(reader) == {
        "'about' of the file was not read": 1,
        "'note' of data was not read": 1,
        "'long' of data was not read": 1,
    }
    with pytest.raises(DataError, match=r"'about' of the file, 'note' of data, .* are not"):
        read(path, rows_at="data.items", strict=True)
