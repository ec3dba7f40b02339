"""The same conversations in every shape and container that can hold them: equal in every way."""

import csv
import gzip
import io
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather, parquet

from mypt.data.reading.formats.shapes import SHAPES
from tests.mypt.data.rawfiles import chat, jsonl, leaf, read, turns
from tests.mypt.data.reading.formats.test_assistants import node, tree
from tests.mypt.data.reading.formats.test_markups import RENDERED
from tests.mypt.data.reading.formats.test_people import letter, spoken, telegram
from tests.mypt.data.reading.test_same_rows import prepared

LETTER = re.compile(r"(?<![\w<|/])[a-z](?![\w>|])")
WORDS = st.text("abcdefgxyz\u00e9\u4e16", min_size=2, max_size=6)
TEXTS = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)
TALKS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4)
"""A question and an answer each."""


def said(q, a):
    return chat(("user", q), ("assistant", a))


def from_to(q, a):
    return [{"from": "human", "value": q}, {"from": "gpt", "value": a}]


def parts(q, a):
    return [{"role": "user", "parts": [{"text": q}]}, {"role": "model", "parts": [{"text": a}]}]


def two(question, answer, **more):
    return lambda q, a: {question: q, answer: a} | more


OTHER = chat(("assistant", "no"))
BY_SHAPE = {
    "messages_kto": lambda q, a: {"messages": said(q, a), "label": True},
    "messages_kto_tag": lambda q, a: {"messages": said(q, a), "kto_tag": True},
    "kto": two("prompt", "completion", label=True),
    "messages_dpo": lambda q, a: {
        "messages": chat(("user", q)), "chosen": chat(("assistant", a)), "rejected": OTHER},
    "sharegpt_dpo": lambda q, a: {
        "conversations": from_to(q, a)[:1], "chosen": from_to(q, a)[1],
        "rejected": from_to("", "no")[1]},
    "openai_dpo": lambda q, a: {
        "input": {"messages": chat(("user", q))}, "preferred_output": chat(("assistant", a)),
        "non_preferred_output": OTHER},
    "preference": two("prompt", "chosen", rejected="no"),
    "orca_dpo": two("question", "chosen", rejected="no"),
    "alpaca_dpo": two("instruction", "chosen", rejected="no"),
    "anthropic_hh": lambda q, a: {
        "chosen": f"\n\nHuman: {q}\n\nAssistant: {a}", "rejected": "\n\nHuman: x\n\nAssistant: y"},
    "segments": lambda q, a: {
        "segments": [{"label": False, "text": q}, {"label": True, "text": a}]},
    "glaive": lambda q, a: {"system": "", "chat": f"USER: {q}\n\n\nASSISTANT: {a} <|endoftext|>"},
    "lima": lambda q, a: {"conversations": [q, a]},
    "capybara": lambda q, a: {"conversation": [{"input": q, "output": a}]},
    "dialog": lambda q, a: {"dialog": [q, a]},
    "ultrachat": lambda q, a: {"data": [q, a]},
    "self_instruct": lambda q, a: {"instruction": q, "instances": [{"input": "", "output": a}]},
    "dolly": two("instruction", "response"),
    "openorca": two("question", "response", system_prompt=""),
    "metamath": two("query", "response"),
    "numina": two("problem", "solution"),
    "p3": two("inputs_pretokenized", "targets_pretokenized"),
    "flan": two("inputs", "targets"),
    "prompt_completion": two("prompt", "completion"),
    "question_answer": two("question", "answer"),
    "squad": lambda q, a: {"question": q, "answers": {"text": [a]}},
    "prompt_response": two("prompt", "response"),
    "input_output": two("input", "output"),
    "text_input": two("text_input", "output"),
    "human_assistant": two("human", "assistant"),
    "user_assistant": two("user", "assistant"),
}  # fmt: skip
MESSAGES = {
    "messages": lambda q, a: {"messages": said(q, a)},
    "parts": lambda q, a: {
        "messages": [
            one | {"content": [{"type": "text", "text": one["content"]}]} for one in said(q, a)
        ]
    },
    "sharegpt": lambda q, a: {"conversations": from_to(q, a)},
    "singular": lambda q, a: {"conversation": said(q, a)},
    "gemini": lambda q, a: {"contents": parts(q, a)},
}
EXPORTS = {
    "claude": lambda q, a: {"chat_messages": [
        {"sender": "human", "text": q}, {"sender": "assistant", "text": a}]},
    "chatgpt": lambda q, a: tree(
        node("ask", None, "user", q), node("last", "ask", "assistant", a)),
    "tree": lambda q, a: {"prompt": leaf("prompter", q, leaf("assistant", a))},
}  # fmt: skip
NO_SAME_TURN = {"alpaca", "alpaca_kto", "xlam"}
"""Shapes that ask with a prompt of their own, in parts, or for calls."""


def containers(folder, rows, exported=False):
    """Yield files that hold the rows, each in its own way; no table holds an export."""
    lines = jsonl(*rows).encode()
    files = {
        "a.jsonl": lines, "a.jsonl.gz": gzip.compress(lines), "a.json": json.dumps(rows).encode(),
        "a.csv": as_csv(rows, ","), "a.tsv": as_csv(rows, "\t"),
    }  # fmt: skip
    for name, data in list(files.items())[: 3 if exported else None]:
        (folder / name).write_bytes(data)
        yield folder / name
    if exported:
        return
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, folder / "a.parquet")
    feather.write_feather(table, folder / "a.arrow")
    yield folder / "a.parquet"
    yield folder / "a.arrow"


def as_csv(rows, separator):
    file = io.StringIO()
    table = csv.DictWriter(file, list(rows[0]), delimiter=separator)
    table.writeheader()
    for row in rows:
        cells = ((k, v if isinstance(v, str) else json.dumps(v)) for k, v in row.items())
        table.writerow(dict(cells))
    return file.getvalue().encode()


def is_same(expected, path, **how):
    for wanted, found in zip(expected, prepared(path, how), strict=True):
        np.testing.assert_array_equal(wanted, found, err_msg=f"{path.name} {how}")


def test_every_shape_is_tried_here():
    assert BY_SHAPE.keys() | NO_SAME_TURN == {shape.name for shape in SHAPES}


@pytest.mark.parametrize("name", [*BY_SHAPE, *MESSAGES, *EXPORTS])
def test_the_same_talks_are_the_same_in_every_shape_and_container(name):
    as_row = (BY_SHAPE | MESSAGES | EXPORTS)[name]

    @settings(max_examples=4)
    @given(TALKS)
    def same(talks):
        with tempfile.TemporaryDirectory() as there:
            expected = plain(Path(there), talks)
            rows = [as_row(*talk) for talk in talks]
            for path in containers(Path(there), rows, name in EXPORTS):
                is_same(expected, path)

    same()


def plain(folder, talks):
    """What lines of messages give."""
    path = folder / "plain.jsonl"
    path.write_text(jsonl(*({"messages": said(*talk)} for talk in talks)))
    return prepared(path, {})


def as_flat(talks):
    return [
        {"conversation_id": f"t{n}", "turn": i} | message
        for n, talk in enumerate(talks)
        for i, message in enumerate(said(*talk))
    ]


def as_days(folder, talk):
    """A channel of Slack's of one day."""
    day = folder / "slack" / "garden" / "2024-03-01.json"
    day.parent.mkdir(parents=True)
    turns = [
        {"type": "message", "user": who, "text": text, "ts": f"{n}.0"}
        for n, (who, text) in enumerate(zip(("ann", "bob"), talk, strict=True), 1)
    ]
    day.write_text(json.dumps(turns))
    return day.parents[1]


@settings(max_examples=4)
@given(TALKS)
def test_the_same_talks_are_the_same_as_single_messages(talks):
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        expected = plain(folder, talks)
        for path in containers(folder, as_flat(talks)):
            is_same(expected, path)
        lines = "\n".join(jsonl(*said(*talk)) for talk in talks)
        (folder / "chat.jsonl").write_text(lines)
        is_same(expected, folder / "chat.jsonl")
        tagged = (f"<User>{q}</User>\n<Assistant>{a}</Assistant>\n\n" for q, a in talks)
        (folder / "tagged.txt").write_text("".join(tagged))
        is_same(expected, folder / "tagged.txt")


@settings(max_examples=4)
@given(TEXTS, TEXTS)
def test_the_same_talk_is_the_same_in_every_export_of_people(question, answer):
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        expected = plain(folder, [(question, answer)])
        said_by = ((1, "Ann", question), (2, "Bob", answer))
        files = {
            "telegram.json": json.dumps(telegram(*(letter(*one) for one in said_by))),
            "discord.json": json.dumps({
                "guild": {}, "channel": {}, "messages": [spoken(*one) for one in said_by]}),
            "whatsapp.txt": "".join(f"01/03/2024, 19:0{n} - {who}: {x}\n" for n, who, x in said_by),
        }  # fmt: skip
        for name, text in files.items():
            (folder / name).write_text(text)
            is_same(expected, folder / name, assistant="Bob")
        is_same(expected, as_days(folder, (question, answer)), assistant="bob")


@pytest.mark.parametrize("markup", RENDERED)
def test_the_same_talk_is_the_same_in_every_markup(markup):
    text = RENDERED[markup][0]

    @settings(max_examples=4)
    @given(st.fixed_dictionaries(dict.fromkeys(LETTER.findall(text), TEXTS)))
    def same(texts):
        def put(into):
            return LETTER.sub(lambda found: texts[found[0]], into)

        with tempfile.TemporaryDirectory() as there:
            folder = Path(there)
            how = {"format": "rendered", "markup": markup}
            (folder / "letters.txt").write_text(text)
            (row,) = read(folder / "letters.txt", **how)[1]
            messages = [{"role": role, "content": put(told)} for role, told in turns(row)]
            (folder / "plain.jsonl").write_text(jsonl({"messages": messages}))
            expected = prepared(folder / "plain.jsonl", {})
            for path in containers(folder, [{"text": put(text)}]):
                is_same(expected, path, **how)
            (folder / "a.txt").write_text(put(text))
            is_same(expected, folder / "a.txt", **how)

    same()
