"""What an error of the readers says to do, done on the command line, and the mask that it gives."""

import csv
import io
import json
import re
import shlex
from itertools import groupby
from operator import itemgetter

import pytest

from flows.cli import main
from mypt.data.dataset import open_dataset
from tests.mypt.data.marks import BYTES, asked
from tests.mypt.data.rawfiles import ASK, TELL, chat, jsonl, write

FLAGS = re.compile(
    r"--\w+(?: (?:'[^']*'|(?!--)[\w.=,?-]+))?(?: --\w+(?: (?:'[^']*'|[\w.=,?-]+))?)*"
)
"""Flags in a row, as a person copies them out of an error."""
ONE, TWO = {"messages": chat(ASK, TELL)}, {"messages": chat(("user", "é"), ("assistant", "b"))}
TALK = asked("hi", "yo")
OTHER = asked("é", "b")
END = "<|endoftext|>⟧"
CHATML = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"


def learned(folder):
    """The rows of a dataset as they are written, what is learned of them between brackets."""
    found = []
    for shard in open_dataset(folder).shards("train"):
        for start, stop in zip(shard.rows["start"], shard.rows["stop"], strict=True):
            bits = zip(shard.mask[start:stop], shard.tokens[start:stop], strict=True)
            runs = ((bit, [token for _, token in run]) for bit, run in groupby(bits, itemgetter(0)))
            found.append(
                "".join(f"⟦{BYTES.decode(ids)}⟧" if b else BYTES.decode(ids) for b, ids in runs)
            )
    return found


@pytest.fixture
def prepare(tmp_path, capsys):
    """Run ``mypt prepare`` and return what is learned, or the one line of its error."""
    made = []

    def run(*paths, flags=(), config=None):
        made.append(tmp_path / f"made{len(made)}")
        given = ["--tokenization", "byte", "--val_fraction", "0"]
        files = ["--input_files", *map(str, paths)] if config is None else ["--config", str(config)]
        out = ["--out_dir", str(made[-1])]
        code = main(["prepare", *files, *(given if config is None else ()), *out, *flags])
        said = capsys.readouterr().err
        if code:
            assert said.count("\n") == 1
            return said
        return learned(made[-1])

    return run


PAIR = jsonl({"ask": "hi", "say": "yo"})
SPOKEN = [{"speaker": who, "text": said} for who, said in (("user", "hi"), ("assistant", "yo"))]
TALKS = [message | {"talk": n} for n in "ab" for message in chat(ASK, TELL)]
LINES = "".join(
    f"31/12/23, 23:59 - {who}: {said}\n" for who, said in (("Ann", "hi"), ("Bob", "yo"))
)
TELEGRAM = {"name": "x", "type": "personal_chat", "id": 1, "messages": [
    {"id": n, "type": "message", "date": "2024-01-02T00:00:00", "from": who, "from_id": who,
     "text": said} for n, (who, said) in enumerate([("Ann", "hi"), ("Bob", "yo")])]}  # fmt: skip
BYTES_OF = json.dumps(TWO, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    ("name", "content", "meant"),
    [
        ("a.jsonl", PAIR, [[TALK]]),
        ("a.csv", "ask me,say\nhi,yo\n", [[TALK]]),
        ("a.jsonl", jsonl({"data": ONE}), [[TALK]]),
        ("a.json", json.dumps({"data": {"n": 2, "items": [ONE, ONE]}}), [[TALK] * 2]),
        ("a.json", json.dumps({"my rows": [ONE], "b": [ONE]}), [[TALK]]),
        ("a.jsonl", jsonl({"id": "x", "utterances": SPOKEN}), [[TALK]]),
        ("a.jsonl", BYTES_OF.encode("latin-1"), [[OTHER]]),
        ("a.jsonl", BYTES_OF.encode("utf-16"), [[OTHER]]),
        ("a.jsonl", jsonl(*TALKS), [[TALK] * 2]),
        ("a.json", json.dumps(TALKS), [[TALK] * 2]),
        ("a.jsonl", jsonl({"messages": chat(("user", "hi"), ("helper", "yo"))}), [[TALK]]),
        ("a.txt", CHATML, [[TALK], [f"⟦{CHATML}{END}"]]),
        ("a.jsonl", jsonl({"text": "Q: hi\nA: yo"}), [[TALK], [f"⟦Q: hi\nA: yo{END}"]]),
        ("a.jsonl", jsonl({"turns": ["hi", "yo"]}), [[TALK]]),
        ("a.jsonl", jsonl({"text": "hi", "author": "user"}), [[f"⟦hi{END}"]]),
    ],
)  # fmt: skip
def test_flags_that_an_error_names_give_the_mask_that_was_meant(
    tmp_path, prepare, name, content, meant
):
    path = write(tmp_path / name, content)
    ways = [shlex.split(found[0]) for found in FLAGS.finditer(prepare(path))]
    assert len(ways) == len(meant)
    for flags, rows in zip(ways, meant, strict=True):
        found = prepare(path, flags=flags)
        assert found == rows


@pytest.mark.parametrize(("name", "content"), [("a.txt", LINES), ("a.json", json.dumps(TELEGRAM))])
def test_the_assistant_that_an_error_lists_may_be_named(tmp_path, prepare, name, content):
    path = write(tmp_path / name, content)
    said = prepare(path)
    assert "found the speakers Ann (1), Bob (1); choose one by --assistant NAME" in said
    assert prepare(path, flags=["--assistant", "Bob"]) == [TALK]
    assert prepare(path, flags=["--assistant", "Ann"]) == [
        "<Assistant>⟦hi</Assistant>⟧<User>yo</User>"
    ]


def test_files_of_two_formats_are_named_each(tmp_path, prepare):
    (tmp_path / "in").mkdir()
    one = write(tmp_path / "in" / "a.jsonl", jsonl(ONE))
    two = write(tmp_path / "in" / "b.jsonl", jsonl({"prompt": "é", "completion": "b"}))
    assert "name each by itself" in prepare(one.parent)
    assert prepare(one, two) == [TALK, OTHER]


def test_a_table_of_single_messages_is_read_by_the_column_that_is_named(tmp_path, prepare):
    content = io.StringIO()
    writer = csv.DictWriter(content, ["role", "content", "nr"])
    writer.writeheader()
    writer.writerows(m | {"nr": n} for n in "12" for m in chat(ASK, TELL))
    path = write(tmp_path / "a.csv", content.getvalue())
    assert "say which one does by --group_by COLUMN" in prepare(path)
    assert prepare(path, flags=["--group_by", "nr"]) == [TALK, TALK]


def test_rows_are_weighed_by_their_own_word_or_by_their_sources(tmp_path, prepare):
    half = write(tmp_path / "a.jsonl", jsonl(ONE | {"weight": 0.5}))
    assert prepare(half) == [TALK]
    sources = [
        {"path": str(write(tmp_path / "b.jsonl", jsonl(ONE))), "weight": 0.5},
        {"path": str(write(tmp_path / "c.jsonl", jsonl(TWO)))},
    ]
    knobs = {"sources": sources, "tokenization": "byte", "val_fraction": 0.0}
    config = write(tmp_path / "data.json", json.dumps(knobs))
    assert prepare(config=config) == [TALK, OTHER]


def calling(arguments):
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "HERE"}}]}
    return jsonl({"messages": [*chat(ASK), call]}).replace('"HERE"', arguments)


def called(arguments):
    call = f'{{"name": "f", "arguments": {arguments}}}'
    return f"<User>hi</User><Assistant>⟦<ToolCall>{call}</ToolCall></Assistant>⟧"


LINE = json.dumps(ONE)
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    ("name", "content", "says", "old", "new", "meant"),
    [
        ("a.jsonl", calling('"{\\"x\\": 1"'), "get the whole", '1"}', '1}"}', [called('{"x": 1}')]),
        ("a.jsonl", calling('{"x": NaN}'), "write null", "NaN", "null", [called('{"x": null}')]),
        ("a.jsonl", calling('{"x": 1e999}'), "number as text", "1e999", '"1e999"',
         [called('{"x": "1e999"}')]),
        ("a.jsonl", LINE.replace('"yo"', "4"), "put it into quotes", " 4", ' "yo"', [TALK]),
        ("a.jsonl", LINE.replace("yo", "yo\\ud83d"), "repair", "\\ud83d", "", [TALK]),
        ("a.jsonl", f"{LINE} {LINE}", "each row on a line", "} {", "}\n{", [TALK] * 2),
        ("a.jsonl", LINE.replace("}]", "},]"), "remove the comma", ",]", "]", [TALK]),
        ("a.json", f"[{LINE},\n]", "remove the comma", ",\n", "", [TALK]),
        ("a.jsonl", f"{LINE}\n{LINE[:40]}", "remove the row", f"\n{LINE[:40]}", "", [TALK]),
        ("a.jsonl", LINE[:-1] + ', "messages": []}', "remove one", ', "messages": []', "", [TALK]),
        ("a.csv", 'prompt,completion\n"hi","yo\n', "close it", '"yo', '"yo"', [TALK]),
        ("a.csv", 'prompt,completion\n"\\"hi",yo\n', "inside quotes twice", '\\"', '""',
         [asked('"hi', "yo")]),
        ("a.csv", "prompt,completion\nhi,yo,no\n", "quote cells", "yo,no", '"yo,no"',
         [asked("hi", "yo,no")]),
        ("a.jsonl", jsonl({"messages": [{"role": "user", "content": [
            {"type": "text", "text": "hi"}, IMAGE]}, chat(TELL)[0]]}),
         "write what it shows as a text", json.dumps(IMAGE), '{"type": "text", "text": "!"}',
         [asked("hi!", "yo")]),
        ("a.json", json.dumps({"prompt": ["hi"], "completion": ["yo", "no"]}), "array of rows",
         None, json.dumps([{"prompt": "hi", "completion": "yo"}]), [TALK]),
        ("a.jsonl", jsonl(*TALKS), "write those of one conversation as a row", None,
         jsonl(ONE, ONE), [TALK] * 2),
        ("a.jsonl", jsonl({"messages": [*chat(ASK), {"role": "assistant", "tool_calls": [
            {"id": "1", "function": {"name": "f"}}]}, {"role": "tool", "tool_call_id": "2",
             "content": "x"}, *chat(TELL)]}), "mend the id", '"2"', '"1"',
         [called("{}") + "<Tool>x</Tool><Assistant>⟦yo</Assistant>⟧"]),
    ],
)  # fmt: skip
def test_an_edit_that_an_error_names_gives_the_mask_that_was_meant(
    tmp_path, prepare, name, content, says, old, new, meant
):
    path = write(tmp_path / name, content)
    assert says in prepare(path)
    if old is not None:
        assert content.count(old) == 1
        new = content.replace(old, new)
    assert prepare(write(path, new)) == meant


def test_a_field_that_was_not_read_is_read_or_refused_as_the_account_says(
    tmp_path, prepare, capsys
):
    path = write(tmp_path / "a.jsonl", jsonl(ONE | {"scene": "night"}))
    assert main(["prepare", "--look", str(path), "--tokenization", "byte"]) == 0
    assert "--turns says which fields of a row are read, --strict" in capsys.readouterr().out
    assert prepare(path) == [TALK]
    told = ["--turns", "system=scene,turns=messages"]
    assert prepare(path, flags=told) == [asked("hi", "yo", "night")]
    assert "'scene' of the row is not read" in prepare(path, flags=["--strict"])
    assert prepare(path, flags=["--strict", "--unread", "scene"]) == [TALK]
