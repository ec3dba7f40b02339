"""The same conversations in every container: equal tokens, masks and digests of rows."""

import csv
import gzip
import io
import json
import lzma
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather, parquet

from mypt.config import MaskPolicy, Source
from mypt.data.masking import mask_from_spans
from mypt.data.preparation.encoding import encode_rows
from mypt.data.reading.sources import open_source
from tests.mypt.data.rows import tokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
# A column has one type and at least one key.
ARGUMENTS = st.fixed_dictionaries(
    {"a": st.text(max_size=4)},
    optional={
        "b": st.integers(-(2**63), 2**63 - 1),
        "c": st.floats(allow_nan=False, allow_infinity=False),
        "d": st.lists(st.integers(0, 9), min_size=1, max_size=2),
        "e": st.fixed_dictionaries({"f": st.booleans()}, optional={"g": st.text(max_size=3)}),
    },
)
TOOLS = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from(["f", "g"]), "parameters": ARGUMENTS}),
    min_size=1,
    max_size=2,
)


def in_order(value):
    """A table has the keys of a struct in one order for all rows: here that of the letters."""
    if isinstance(value, dict):
        return {key: in_order(value[key]) for key in sorted(value)}
    return [in_order(one) for one in value] if isinstance(value, list) else value


ALL = {"a": "", "b": 0, "c": 0.5, "d": [0], "e": {"f": True, "g": ""}}
CALL = {"function": {"name": "f", "arguments": ALL}}
EVERY_KEY = {
    "messages": [{"role": "user", "content": "", "tool_calls": [CALL], "train": True}],
    "tools": [{"name": "f", "parameters": ALL}],
}


@st.composite
def calls(draw):
    arguments = draw(ARGUMENTS)
    return [{"function": {"name": draw(st.sampled_from(["f", "g"])), "arguments": arguments}}]


@st.composite
def rows(draw):
    messages = [{"role": "user", "content": draw(TEXTS)}]
    if draw(st.booleans()):
        messages += [
            {"role": "assistant", "tool_calls": draw(calls())},
            {"role": "tool", "content": draw(TEXTS)},
        ]
    answer = {"role": "assistant", "content": draw(TEXTS)}
    messages.append(answer | draw(st.sampled_from([{}, {"train": False}])))
    tools = {"tools": draw(TOOLS)} if draw(st.booleans()) else {}
    return in_order({"messages": messages} | tools)


def as_text(found):
    """The arguments of every call as people write them in a field of text."""
    copy = json.loads(json.dumps(found))
    for row in copy:
        for message in row["messages"]:
            for call in message.get("tool_calls", []):
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], indent=2)
    return copy


def as_csv(found, separator):
    file = io.StringIO()
    columns = ["messages", "tools"]
    writer = csv.writer(file, delimiter=separator)
    writer.writerow(["", *columns])
    for number, row in enumerate(found):
        cells = (json.dumps(row[name]) if name in row else "" for name in columns)
        writer.writerow([number, *cells])
    return file.getvalue().encode()


def as_table(found):
    return pa.Table.from_pylist([in_order(EVERY_KEY), *found]).slice(1)


def containers(folder, found):
    """Yield files and folders that hold the rows, each in its own way."""
    lines = "".join(json.dumps(row) + "\n" for row in found).encode()
    array = json.dumps(found).encode()
    files = {
        "a.jsonl": lines,
        "windows.jsonl": b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n"),
        "escaped.jsonl": "\n\n".join(json.dumps(r, ensure_ascii=False) for r in found).encode(),
        "text.jsonl": "".join(json.dumps(row) + "\n" for row in as_text(found)).encode(),
        "a.json": array,
        "pretty.json": json.dumps(found, indent=2).encode(),
        "pretty.jsonl": json.dumps(found, indent=2).encode(),
        "key.json": json.dumps({"version": "1", "data": found}).encode(),
        "ids.json": json.dumps({f"id {n}": row for n, row in enumerate(found)}).encode(),
        "a.jsonl.gz": gzip.compress(lines),
        "a.jsonl.xz": lzma.compress(lines),
        "a.json.zst": zstandard.ZstdCompressor().compress(array),
        "named_wrongly.jsonl": gzip.compress(lines),
        "a.csv": as_csv(found, ","),
        "semicolon.csv": as_csv(found, ";"),
        "a.tsv": as_csv(found, "\t"),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
        yield folder / name, {}
    (folder / "utf16.jsonl").write_bytes(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in found).encode("utf-16")
    )
    yield folder / "utf16.jsonl", {"encoding": "utf-16"}
    (folder / "deep.json").write_text(json.dumps({"a": [{"b": 1}], "data": {"items": found}}))
    yield folder / "deep.json", {"rows_at": "data.items"}
    table = as_table(found)
    parquet.write_table(table, folder / "a.parquet")
    feather.write_feather(table, folder / "a.feather")
    with pa.ipc.new_stream(folder / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    yield from ((folder / f"a.{suffix}", {}) for suffix in ("parquet", "feather", "arrow"))
    parts = folder / "parts"
    parts.mkdir()
    (parts / "README.md").write_text("# About\n")
    half = len(found) // 2
    (parts / "0.json").write_text(json.dumps(found[:half] or found))
    parquet.write_table(as_table(found[half:]), parts / "1.parquet")
    (parts / "2.jsonl").symlink_to(parts / "0.json")
    if half:
        yield parts, {}


def prepared(path, how):
    read = list(open_source(Source(path=str(path), **how)))
    encoded = encode_rows(read, tokenizer("byte"))
    mask = mask_from_spans(encoded.spans, len(encoded.tokens), MaskPolicy())
    return encoded.tokens, mask, encoded.rows["digest"]


@settings(max_examples=10)
@given(st.lists(rows(), min_size=1, max_size=4))
def test_the_same_conversations_are_the_same_in_every_container(found):
    with tempfile.TemporaryDirectory() as name:
        files = list(containers(Path(name), found))
        expected = prepared(*files[0])
        for path, how in files[1:]:
            for wanted, given_ in zip(expected, prepared(path, how), strict=True):
                np.testing.assert_array_equal(wanted, given_, err_msg=path.name)
