"""What an error says to do, done: each remedy is followed and gives the rows that were meant."""

import ast
import csv
import gzip
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest
from pyarrow import parquet

from mypt.errors import DataError
from tests.mypt.data.rawfiles import chat, jsonl, read, turns, write

ONE, TWO = ({"messages": chat(("user", said), ("assistant", f"{said}!"))} for said in ("é", "b"))
LINE, NEXT = (json.dumps(row, ensure_ascii=False) for row in (ONE, TWO))
BOTH = f"{LINE}\n{NEXT}\n"


def meant(n=2):
    return [[("user", said), ("assistant", f"{said}!")] for said in ("é", "b")[:n]]


def replaced(old, new):
    return lambda path: write(path, path.read_text().replace(old, new))


def repaired_python(path):
    rows = map(ast.literal_eval, path.read_text().splitlines())
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def repaired_cells(path):
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    with path.open("w", newline="") as file:
        cells = ([json.dumps(ast.literal_eval(cell)) for cell in row] for row in rows)
        csv.writer(file).writerows([header, *cells])
    return path


def as_array(path):
    rows = path.read_text().replace("}\n{", "},{")
    return write(path, f"[{rows}]")


def renamed(name):
    return lambda path: path.rename(path.with_name(name))


def without_line(number):
    def remove(path):
        lines = path.read_text().splitlines(keepends=True)
        return write(path, "".join(lines[: number - 1] + lines[number:]))

    return remove


NULL = json.dumps({"messages": [{"role": "user", "content": None}]})


class Case(NamedTuple):
    name: str
    content: str | bytes
    says: str
    """A pattern of the one line, with the remedy."""
    follow: Callable[[Path], Path]
    """Does what it says and returns the file to read then."""
    n_rows: int = 2


CASES = [
    Case("a.jsonl", jsonl({"prompt": "é", "completion": 4}), "quotes", replaced("4", '"é!"'), 1),
    Case("a.jsonl", f"{NULL}\n{LINE}\n", "null; .* or remove the row", without_line(1), 1),
    Case("a.jsonl", f"{LINE} {NEXT}", "each row on a line", replaced("} {", "}\n{")),
    Case("a.jsonl", LINE[:-1] + ",}", "remove the comma before", replaced(",}", "}"), 1),
    Case("a.jsonl", LINE.replace("}]", "},]"), "remove the comma before", replaced(",]", "]"), 1),
    Case("a.jsonl", f"{LINE},\n{NEXT}\n", "remove the comma after", replaced("},\n", "}\n")),
    Case("a.json", f"[{LINE},{NEXT},\n]", "remove the comma", replaced("},\n]", "}]")),
    Case("a.json", LINE[:-1] + ",}", "remove it", replaced(",}", "}"), 1),
    Case("a.jsonl", f"{ONE}\n{TWO}", "write it with json.dumps", repaired_python),
    Case(
        "a.jsonl", LINE.replace('"assistant"', "None"), "json.dumps", replaced("None", '"bot"'), 1
    ),
    Case("a.jsonl", f"# rows\n{BOTH}", "no comments; remove", without_line(1)),
    Case("a.jsonl", f"{BOTH}{LINE[:30]}", "remove the row", without_line(3)),
    Case("a.jsonl", f"{BOTH}{LINE[:51]}", "close the string, or", without_line(3)),
    Case("a.jsonl", LINE.replace("!", "\t!"), r"as \\n and \\t", replaced("\t", ""), 1),
    Case("a.jsonl", LINE.replace("!", "\\d!"), "a backslash .* twice", replaced("\\d", ""), 1),
    Case("a.jsonl", LINE[:-1] + ', "id": 1, "id": 2}', "remove one", replaced(', "id": 1', ""), 1),
    Case("a.json", LINE[:-1] + ', "id": 1, "id": 2}', "remove one", replaced(', "id": 1', ""), 1),
    Case("a.jsonl", LINE.replace("!", "\\ud83d!"), "repair or", replaced("\\ud83d", ""), 1),
    Case(
        "a.json",
        json.dumps(ONE, indent=1) + "\n" + json.dumps(TWO, indent=1),
        "one array",
        as_array,
    ),
    Case("a.jsonl", f"{BOTH[:-1]}]", "on a line of its own", replaced("]}]", "]}")),
    Case("a.csv", 'prompt,completion\n"é \\"","é!"\n', "twice", replaced('é \\"', "é"), 1),
    Case("a.csv", 'prompt,completion\n"é,é!\n', "never closed; close it", replaced('"é', '"é"'), 1),
    Case("a.csv", "prompt,completion\né,é!,x\n", "quote cells", replaced("é!,x", '"é!"'), 1),
    Case("a.csv", "prompt;completion\né;é!;x\n", "quote cells .*';'", replaced(";x", ""), 1),
    Case(
        "a.csv",
        "prompt,completion,\né,é!,\n",
        "rename the",
        replaced("completion,", "completion,id"),
        1,
    ),
    Case("a.csv", "prompt,completion\ré,é!\r", "line feed", replaced("\r", "\n"), 1),
    Case("a.jsonl.gz", BOTH, "without .gz", renamed("a.jsonl")),
    Case("a.rows", BOTH, "rename it", renamed("a.jsonl")),
    Case(
        "a.jsonl", "\n", "leave the file out", lambda path: write(path.with_name("b.jsonl"), BOTH)
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.says}-{case.name}" for case in CASES])
def test_what_an_error_says_to_do_makes_the_file_readable(tmp_path, case):
    path = write(tmp_path / case.name, case.content)
    with pytest.raises(DataError, match=case.says) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    _, rows = read(case.follow(path))
    assert [turns(row) for row in rows] == meant(case.n_rows)


def test_messages_that_python_printed_into_a_csv_are_to_be_written_with_json(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [ONE["messages"]], [TWO["messages"]]])
    with pytest.raises(DataError, match=r"a.csv:2: column messages: .* write it with json.dumps"):
        read(path)
    assert [turns(row) for row in read(repaired_cells(path))[1]] == meant()


def flags(error, *names):
    """The flags that an error names, as the knobs of a source."""
    found = dict(re.findall(r"--(\w+) ([\w.-]+)", str(error)))
    assert found.keys() & set(names), error
    return {name: value for name, value in found.items() if name in names}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", BOTH.encode("latin-1")),
        ("a.jsonl", BOTH.encode("utf-16")),
        ("a.json", f"[{LINE},{NEXT}]".encode("latin-1")),
        ("a.csv", "prompt,completion\né,é!\nb,b!\n".encode("latin-1")),
        ("a.csv", "prompt,completion\né,é!\nb,b!\n".encode("utf-16")),
        ("a.jsonl.gz", gzip.compress(BOTH.encode("latin-1"), mtime=0)),
        ("a.csv", "prompt,completion\né,é!\nb,b!\n".encode("utf-16-le")),
        ("a.csv", "prompt,completion\né,é!\nb,b!\n".encode("utf-16-be")),
        ("a.jsonl", BOTH.encode("utf-16-le")),
        ("a.jsonl", BOTH.encode("utf-16-be")),
        ("a.jsonl", jsonl(ONE, TWO).encode("utf-16-le")),
        ("a.json", json.dumps({"train": [ONE, TWO], "test": [TWO]})),
        ("a.json", json.dumps({"data": {"n": 2, "items": [ONE, TWO]}})),
    ],
)
def test_a_flag_that_an_error_names_makes_the_file_readable(tmp_path, name, content):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        read(path)
    _, rows = read(path, **flags(caught.value, "encoding", "rows_at"))
    assert [turns(row) for row in rows] == meant()


def test_the_encoding_that_an_error_names_gives_back_quotes_of_windows_too(tmp_path):
    row = json.dumps({"prompt": "\xe9", "completion": "\u2019"}, ensure_ascii=False)
    path = write(tmp_path / "a.jsonl", row.encode("cp1252"))
    with pytest.raises(DataError) as caught:
        read(path)
    _, (row,) = read(path, **flags(caught.value, "encoding"))
    assert turns(row) == [("user", "\xe9"), ("assistant", "\u2019")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.json"])
def test_a_flag_that_does_not_belong_to_a_file_is_to_be_left_out(tmp_path, name):
    path = tmp_path / name
    if name == "a.parquet":
        parquet.write_table(pa.Table.from_pylist([ONE, TWO]), path)
        wrong = {"encoding": "latin-1"}
    else:
        write(path, BOTH if name == "a.jsonl" else f"[{LINE},{NEXT}]")
        wrong = {"rows_at": "data"}
    with pytest.raises(DataError, match=r"leave --(encoding|rows_at) out|mend --rows_at"):
        read(path, **wrong)
    assert [turns(row) for row in read(path)[1]] == meant()


def test_a_folder_of_two_formats_is_read_file_by_file(tmp_path):
    write(tmp_path / "a.jsonl", BOTH)
    write(tmp_path / "b.jsonl", jsonl({"prompt": "é", "completion": "é!"}))
    with pytest.raises(DataError, match="name each by itself"):
        read(tmp_path)
    assert [turns(row) for row in read(tmp_path / "a.jsonl")[1]] == meant()
    assert [turns(row) for row in read(tmp_path / "b.jsonl")[1]] == meant(1)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ('"{\\"x\\": 1"', '"{\\"x\\": 1}"'),
        ('{"x": NaN}', '{"x": null}'),
        ('"{\\"x\\": 1e999}"', '"{\\"x\\": \\"1e999\\"}"'),
        ("[1]", '{"x": 1}'),
    ],
)
def test_arguments_that_are_mended_as_the_error_says_are_read(tmp_path, wrong, right):
    call = (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": %s}]}'
    )
    path = write(tmp_path / "a.jsonl", call % f'[{{"name": "f", "arguments": {wrong}}}]')
    with pytest.raises(DataError, match=r"a.jsonl:1: arguments of 'f': "):
        read(path)
    write(path, call % f'[{{"name": "f", "arguments": {right}}}]')
    (row,) = read(path)[1]
    assert json.loads(row.messages[1].parts[0].text)["arguments"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
def test_a_number_that_is_no_json_outside_of_what_is_read_is_taken(tmp_path, value):
    path = write(tmp_path / "a.jsonl", f'{LINE[:-1]}, "score": {value}}}\n')
    assert [turns(row) for row in read(path)[1]] == meant(1)


TALK = [{"speaker": "user", "text": "a"}, {"speaker": "assistant", "text": "b"}]
NAMED = [[{"sender": "Ann", "text": "a"}], [{"sender": "Bob", "text": "b"}]]
ROW = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("name", "content", "flags"),
    [
        (
            "a.csv",
            "What is it?,My answer\na,b\n",
            "--turns 'user=What is it",
        ),
        (
            "a.jsonl",
            jsonl({"row_id": "x", "url": "y", "ask": "a", "say": "b"}),
            "--turns user=ask,",
        ),
        ("a.json", json.dumps({"version": 1, "data": {"my rows": [ROW]}}), "--rows_at 'data.my r"),
        ("a.json", json.dumps({"a b": [ROW], "c": [ROW]}), "--rows_at 'a b'"),
        ("a.jsonl", jsonl({"id": "x", "utterances": TALK}), "--format mapping --turns_field utt"),
        (
            "a.json",
            json.dumps({key: {"said": NAMED} for key in "xy"}),
            "--format mapping .* --by_o",
        ),
    ],
)
def test_the_flags_that_an_error_names_read_the_file_as_they_stand(tmp_path, name, content, flags):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=flags) as refused:
        read(path)
    words = shlex.split(re.search(r"--.*?(?=; or|$)", str(refused.value))[0])
    given = {}
    for word in words:
        if word.startswith("--"):
            key = word.removeprefix("--")
            given[key] = True
        else:
            given[key] = word
    fields = {
        "turns_field": "turns",
        "role_field": "role",
        "text_field": "text",
        "by_order": "by_order",
    }
    mapping = {ours: given.pop(flag) for flag, ours in fields.items() if flag in given}
    _, rows = read(path, **given, **({"mapping": mapping} if mapping else {}))
    assert turns(rows[0]) == [("user", "a"), ("assistant", "b")]


def test_of_a_list_of_texts_both_that_it_may_be_are_said(tmp_path):
    row = {"question_id": 81, "category": "writing", "turns": ["Write", "Rewrite"]}
    path = write(tmp_path / "a.jsonl", jsonl(row))
    with pytest.raises(
        DataError, match=r"questions alone, .* leave the file out; where .* in turn"
    ):
        read(path)
    assert turns(read(path, turns="turns=turns")[1][0]) == [
        ("user", "Write"),
        ("assistant", "Rewrite"),
    ]
