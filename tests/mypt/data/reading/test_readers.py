"""Which format a file has, and that no input gives anything but rows or a DataError."""

import gzip
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from mypt.config import FieldMapping, Reading
from mypt.data.conversations import Conversation, Document
from mypt.data.reading.formats.message import ROLE_NAMES
from mypt.data.reading.raw import Limits, RawFile
from mypt.data.reading.readers import detect_format, read_rows
from mypt.data.reading.records import Tally
from mypt.errors import DataError
from tests.mypt.data.rawfiles import ASK, TELL, chat, jsonl, leaf, read, turns, write

FORMATS = [
    "chat", "messages", "alpaca", "tagged", "text",
    "prompt_completion", "sharegpt", "tree", "mapping", "columns", "rendered",
    "chatgpt", "claude", "gemini", "discord", "telegram", "whatsapp",
]  # fmt: skip
SAY = {"from": "human", "value": "hi"}
TREE = leaf("prompter", "q")


@pytest.mark.parametrize(
    ("name", "row", "format"),
    [
        ("a.jsonl", chat(ASK)[0], "chat"),
        ("a.jsonl", SAY, "chat"),
        ("a.jsonl", {"role": "assistant", "tool_calls": [{"name": "f"}]}, "chat"),
        ("a.jsonl", {"messages": chat(ASK), "prompt": "x", "text": "y"}, "messages"),
        ("a.jsonl", {"messages": [SAY]}, "messages"),
        ("a.jsonl", chat(ASK), "messages"),
        ("a.jsonl", {"id": 1, "conversations": [SAY]}, "sharegpt"),
        ("a.jsonl", {"instruction": "a", "output": "b", "text": "ab"}, "alpaca"),
        ("a.jsonl", {"prompt": "a", "completion": "b"}, "prompt_completion"),
        ("a.jsonl", {"question": "a", "answer": "b", "text": "ab"}, "prompt_completion"),
        ("a.jsonl", {"prompt": TREE}, "tree"),
        ("a.jsonl", TREE, "tree"),
        ("a.jsonl", {"id": 1, "text": "a"}, "text"),
        ("a.jsonl", {"role": "user", "text": "a"}, "chat"),
        ("a.jsonl", {"query": "a", "response": "b", "text": "ab"}, "columns"),
        ("a.jsonl", {"text": "a", "input": None, "output": None}, "text"),
    ],
)
def test_the_fields_of_the_first_row_tell_the_format(tmp_path, name, row, format):
    assert detect_format(RawFile(write(tmp_path / name, "\n" + jsonl(row)))) == format
    if isinstance(row, dict):
        array = write(tmp_path / "a.json", json.dumps([row, row]))
        assert detect_format(RawFile(array)) == format
        packed = write(tmp_path / "a.json.gz", gzip.compress(json.dumps({"id": row}).encode()))
        assert detect_format(RawFile(packed)) == format
        parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
        assert detect_format(RawFile(tmp_path / "a.parquet")) == format
        assert detect_format(RawFile(write(tmp_path / "a.txt", "Once\n" + jsonl(row)))) == "text"


@pytest.mark.parametrize(
    ("content", "format"),
    [
        ("Once upon a time", "text"),
        ("\ufeff\n <User>hi</User>", "tagged"),
        ("<System>x</System>", "tagged"),
        ("<user>hi</user>", "text"),
        ('{"a": 1}\nis an object', "text"),
    ],
)
def test_the_first_bytes_of_a_text_tell_whether_it_is_tagged(tmp_path, content, format):
    assert detect_format(RawFile(write(tmp_path / "a.txt", content))) == format


def test_a_text_file_of_rows_is_not_taken_for_prose(tmp_path):
    path = write(tmp_path / "a.txt", jsonl({"messages": chat(ASK, TELL)}))
    with pytest.raises(DataError, match="a text file with rows of format 'messages'; name that"):
        read(path)
    assert turns(read(path, format="messages")[1][0]) == [ASK, TELL]
    assert isinstance(read(path, format="text")[1][0], Document)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"id": 1, "turns": ["a"]}, "an object with the fields id, turns"),
        ({"messages": [[{"text": "a", "sender": "b"}]]}, "an object with the fields messages"),
        ("text", "'text'"),
        ([1, 2], "an array of 2"),
        (None, "null"),
    ],
)
def test_rows_of_no_known_format_ask_for_a_mapping(tmp_path, row, found):
    with pytest.raises(DataError, match=f"a.jsonl:1: found {found}, which fits no known .*mapping"):
        read(write(tmp_path / "a.jsonl", jsonl(row)))


def test_parquet_rows_are_read_as_their_json_would_be(tmp_path):
    rows = [
        {"messages": chat(("system", "s"), ASK, TELL), "tools": None},
        {"messages": [chat(ASK)[0], chat(TELL, weight=0)[0]], "tools": "[1]"},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    in_parquet = read(tmp_path / "a.parquet")[1]
    in_json = read(write(tmp_path / "a.jsonl", jsonl(*rows)))[1]
    assert [row.messages for row in in_parquet] == [row.messages for row in in_json]


def consume(path, format):
    """Read a file to its end; only a DataError of one line may come of it."""
    tally = Tally()
    raw = RawFile(path, limits=Limits(row_bytes=10_000, nesting=30, free_expansion=100_000))
    mapping = FieldMapping(by_order=True, role="from", text="value")
    try:
        known = detect_format(raw) if format == "auto" else format
        rows = list(read_rows(raw, Reading(format=known, mapping=mapping), tally))
    except DataError as error:
        if "\n" in str(error) or not str(error).startswith(str(path)):
            raise AssertionError(f"not one line that names the file: {error}") from None
        return
    for row in rows:
        if isinstance(row, Conversation):
            assert row.messages
            texts = [part.text for message in row.messages for part in message.parts]
            assert all(message.parts for message in row.messages)
        else:
            texts = [row.text]
        "".join(texts).encode()
    assert rows or tally.dropped


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
TEXTS = st.sampled_from(["", " ", "hi", "\ud800", "[]", "{}", '[{"role": "user"}]', "<User>"])
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from([*ROLE_NAMES, "usr"]) | ANYTHING,
        "from": st.sampled_from([*ROLE_NAMES, "A", "B"]) | ANYTHING,
        "content": TEXTS | ANYTHING | st.lists(st.fixed_dictionaries(
            {"type": st.sampled_from(["text", "reasoning", "tool_call", "image"])},
            optional={"value": TEXTS | ANYTHING, "text": TEXTS | ANYTHING},
        ), max_size=2),
        "value": TEXTS | ANYTHING,
        "text": TEXTS | ANYTHING,
        "weight": st.sampled_from([0, 1, 0.5, None]),
        "train": ANYTHING,
        "tool_calls": ANYTHING | st.lists(st.fixed_dictionaries({"function": ANYTHING})),
        "function_call": ANYTHING,
        "reasoning_content": TEXTS | ANYTHING,
        "deleted": st.booleans(),
    },
)  # fmt: skip
NODE = st.recursive(
    MESSAGE,
    lambda inner: st.builds(
        lambda message, replies: message | {"replies": replies},
        MESSAGE,
        st.lists(inner, max_size=2) | ANYTHING,
    ),
    max_leaves=4,
)
ROW = MESSAGE | NODE | ANYTHING | st.fixed_dictionaries(
    {},
    optional={
        "messages": TEXTS | ANYTHING | st.lists(MESSAGE, max_size=3),
        "conversations": TEXTS | ANYTHING | st.lists(MESSAGE, max_size=3),
        "prompt": TEXTS | ANYTHING | NODE | st.lists(MESSAGE, max_size=2),
        "completion": TEXTS | ANYTHING | st.lists(MESSAGE, max_size=2),
        "question": TEXTS | ANYTHING,
        "answer": TEXTS | ANYTHING,
        "instruction": TEXTS | ANYTHING,
        "input": TEXTS | ANYTHING,
        "output": TEXTS | ANYTHING,
        "history": ANYTHING,
        "text": TEXTS | ANYTHING,
        "system": TEXTS | ANYTHING,
        "tools": TEXTS | ANYTHING,
        "weight": ANYTHING,
    },
)  # fmt: skip
SHAPED = st.text(alphabet='[]{}",:\\u1d8e \n<>/UserAssistant', max_size=120).map(str.encode)


@pytest.mark.parametrize("format", ["auto", *FORMATS])
@settings(max_examples=40)
@given(rows=st.lists(ROW, max_size=3), as_array=st.booleans(), ascii_only=st.booleans())
def test_any_json_gives_rows_or_a_data_error(tmp_path_factory, format, rows, as_array, ascii_only):
    def spell(value):
        text = json.dumps(value, ensure_ascii=ascii_only)
        return text.encode("utf-8", "surrogatepass")

    path = tmp_path_factory.getbasetemp() / f"any.{'json' if as_array else 'jsonl'}"
    consume(write(path, spell(rows) if as_array else b"\n".join(map(spell, rows)) or b"\n"), format)


@settings(max_examples=400)
@given(
    format=st.sampled_from(["auto", *FORMATS]),
    suffix=st.sampled_from(
        ["jsonl", "json", "csv", "tsv", "txt", "parquet", "jsonl.gz", "txt.zst"]
    ),
    data=st.binary(min_size=1, max_size=120) | SHAPED.filter(len),
)
def test_any_bytes_give_rows_or_a_data_error(tmp_path_factory, format, suffix, data):
    consume(write(tmp_path_factory.getbasetemp() / f"any.{suffix}", data), format)
