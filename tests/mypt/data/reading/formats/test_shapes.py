"""Rows of columns: each shape of the table by three rows, its mask written out by hand."""

import csv
import io
import json
import re

import pyarrow as pa
import pytest
from pyarrow import parquet

from mypt.data.reading.formats.shapes import SHAPES, alpaca_prompt
from tests.mypt.data.marks import asked, marked
from tests.mypt.data.rawfiles import ASK, chat, dropped, jsonl, notes, read, write
from tests.pages import ROOT

HUMAN = "\n\nHuman: {}\n\nAssistant: {}"
CALL = "USER: {}\n\n\nASSISTANT: {} <|endoftext|>\n\n\n"


def two(*fields):
    """Three rows of a question and an answer, and what is learned of them."""
    said = [("a", "b"), ("c?", "d e"), ("f\ng", "h")]
    return [dict(zip(fields, pair, strict=True)) for pair in said], [asked(*pair) for pair in said]


def of(*cases):
    """Three rows, each with what is learned of it; nothing where it is left out."""
    rows, learned = zip(*cases, strict=True)
    return list(rows), [text for text in learned if text]


MESSAGES, WRONG = chat(("user", "a"), ("assistant", "b")), chat(("assistant", "no"))
CHOICE = {"chosen": "b", "rejected": "no"}
CASES = {
    "openorca": of(
        ({"id": 1, "system_prompt": "Be kind.", "question": "a", "response": "b"},
         asked("a", "b", "Be kind.")),
        ({"id": 2, "system_prompt": "", "question": "c", "response": "d"}, asked("c", "d")),
        ({"id": 3, "system_prompt": None, "question": "e", "response": "f"}, asked("e", "f")),
    ),
    "dolly": of(
        ({"instruction": "Sum.", "context": "1 2", "response": "3"}, asked("Sum.\n\n1 2", "3")),
        ({"instruction": "a", "context": "", "response": "b"}, asked("a", "b")),
        ({"instruction": "c", "response": "d"}, asked("c", "d")),
    ),
    "lima": of(
        ({"conversations": ["a", "b"]}, asked("a", "b")),
        ({"conversations": ["a", "b", "c", "d"]}, asked("a", "b") + asked("c", "d")),
        ({"conversations": ["e", "f"], "source": "x"}, asked("e", "f")),
    ),
    "capybara": of(
        ({"conversation": [{"input": "a", "output": "b"}]}, asked("a", "b")),
        ({"conversation": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]},
         asked("a", "b") + asked("c", "d")),
        ({"conversation": [{"input": "e", "output": "f"}]}, asked("e", "f")),
    ),
    "dialog": of(
        ({"dialog": ["a", "b"]}, asked("a", "b")),
        ({"dialog": ["c", "d", "e"]}, asked("c", "d") + "<User>e</User>"),
        ({"dialog": ["f", "g"]}, asked("f", "g")),
    ),
    "ultrachat": of(
        ({"id": "0", "data": ["a", "b"]}, asked("a", "b")),
        ({"id": "1", "data": ["a", "b", "c", "d"]}, asked("a", "b") + asked("c", "d")),
        ({"id": "2", "data": ["e", "f"]}, asked("e", "f")),
    ),
    "metamath": two("query", "response"),
    "numina": two("problem", "solution"),
    "flan": two("inputs", "targets"),
    "p3": of(*(
        ({"inputs": [1], "inputs_pretokenized": q, "targets": [2], "targets_pretokenized": a},
         asked(q, a))
        for q, a in ("ab", "cd", "ef")
    )),
    "prompt_completion": two("prompt", "completion"),
    "prompt_response": two("prompt", "response"),
    "input_output": two("input", "output"),
    "text_input": two("text_input", "output"),
    "human_assistant": two("human", "assistant"),
    "user_assistant": two("user", "assistant"),
    "question_answer": of(
        ({"question": "a", "answer": "b"}, asked("a", "b")),
        ({"context": "Ann is 5.", "question": "Age?", "answer": "5"},
         asked("Ann is 5.\n\nAge?", "5")),
        ({"article": "It is red.", "question": "Which?", "options": ["dog", "red"],
          "answer": "red"}, asked("It is red.\n\nWhich?\n\ndog\nred", "red")),
    ),
    "squad": of(
        ({"context": "c", "question": "a", "answers": {"text": ["b"], "answer_start": [0]}},
         asked("c\n\na", "b")),
        ({"context": "c", "question": "a", "answers": {"text": [], "answer_start": []}}, ""),
        ({"question": "a", "answers": {"text": ["b"], "answer_start": [0]}}, asked("a", "b")),
    ),
    "alpaca": of(
        ({"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be kind."},
         asked(alpaca_prompt("Add.", "1 2"), "3", "Be kind.")),
        ({"instruction": "Sum.", "context": "1", "output": "1"},
         asked(alpaca_prompt("Sum.", "1"), "1")),
        ({"instruction": "c", "input": "", "output": "d", "history": [["a", "b"]]},
         asked(alpaca_prompt("a"), "b") + asked(alpaca_prompt("c"), "d")),
    ),
    "self_instruct": of(
        ({"instruction": "i", "instances": [{"input": "x", "output": "y"}]}, asked("i\n\nx", "y")),
        ({"instruction": "i", "instances": [{"input": "", "output": "z"}]}, asked("i", "z")),
        ({"instruction": "j", "instances": [{"input": "k", "output": "l"}]}, asked("j\n\nk", "l")),
    ),
    "xlam": of(*(
        ({"id": n, "query": "a", "tools": '[{"name": "f"}]',
          "answers": json.dumps([{"name": "f", "arguments": {"x": n}}])},
         '<System>Tools:\n[{"name": "f"}]</System><User>a</User><Assistant>⟦<ToolCall>'
         f'{{"name": "f", "arguments": {{"x": {n}}}}}</ToolCall></Assistant>⟧')
        for n in (1, 2, 3)
    )),
    "glaive": of(
        ({"system": "SYSTEM: Be kind.", "chat": CALL.format("a", "b")},
         asked("a", "b", "Be kind.")),
        ({"system": "SYSTEM: Call f.", "chat": CALL.format(
            "a", """<functioncall> {"name": "f", "arguments": '{"x": 1}'}"""
          ) + 'FUNCTION RESPONSE: {"y": 2}\n\n\nASSISTANT: Two. <|endoftext|>'},
         '<System>Call f.</System><User>a</User><Assistant>⟦<ToolCall>{"name": "f", "arguments":'
         ' {"x": 1}}</ToolCall></Assistant>⟧<Tool>{"y": 2}</Tool><Assistant>⟦Two.</Assistant>⟧'),
        ({"system": "", "chat": CALL.format("a", "b") + CALL.format("c", "d")},
         asked("a", "b") + asked("c", "d")),
    ),
    "segments": of(
        ({"segments": [{"label": False, "text": "Q: a"}, {"label": True, "text": "b"}]},
         asked("Q: a", "b")),
        ({"segments": [{"label": False, "text": "<s>"}, {"label": False, "text": "c"},
                       {"label": True, "text": "d"}, {"label": True, "text": "e"}]},
         asked("<s>c", "de")),
        ({"segments": [{"label": False, "text": "f"}, {"label": True, "text": "g"}]},
         asked("f", "g")),
    ),
    "kto": of(
        ({"prompt": "a", "completion": "b", "label": True}, asked("a", "b")),
        ({"prompt": "a", "completion": "no", "label": False}, ""),
        ({"prompt": "c", "completion": "d", "label": True}, asked("c", "d")),
    ),
    "messages_kto": of(
        ({"messages": MESSAGES, "label": True}, asked("a", "b")),
        ({"messages": chat(ASK) + WRONG, "label": False}, ""),
        ({"messages": MESSAGES, "label": True}, asked("a", "b")),
    ),
    "messages_kto_tag": of(
        ({"messages": MESSAGES, "kto_tag": True}, asked("a", "b")),
        ({"messages": chat(ASK) + WRONG, "kto_tag": False}, ""),
        ({"messages": MESSAGES, "kto_tag": True}, asked("a", "b")),
    ),
    "alpaca_kto": of(
        ({"instruction": "a", "input": "", "output": "b", "kto_tag": True}, asked("a", "b")),
        ({"instruction": "a", "input": "", "output": "no", "kto_tag": False}, ""),
        ({"instruction": "a", "input": "x", "output": "c", "kto_tag": True},
         asked("a\n\nx", "c")),
    ),
    "preference": of(
        ({"prompt": "a"} | CHOICE, asked("a", "b")),
        ({"prompt": "a", "chosen": MESSAGES, "rejected": chat(("user", "a")) + WRONG},
         asked("a", "b")),
        ({"prompt": chat(("user", "a"), ("assistant", "x"), ("user", "c")),
          "chosen": chat(("assistant", "d")), "rejected": WRONG},
         "<User>a</User><Assistant>x</Assistant>" + asked("c", "d")),
    ),
    "orca_dpo": of(*(
        ({"system": s, "question": "a"} | CHOICE, asked("a", "b", s)) for s in ("s", "", "t")
    )),
    "alpaca_dpo": of(*(
        ({"instruction": "a", "input": x} | CHOICE, asked("a\n\nx" if x else "a", "b"))
        for x in ("x", "", None)
    )),
    "messages_dpo": of(*(
        ({"messages": chat(("user", q)), "chosen": chat(("assistant", "b")), "rejected": WRONG},
         asked(q, "b"))
        for q in "ace"
    )),
    "sharegpt_dpo": of(*(
        ({"conversations": [{"from": "human", "value": q}],
          "chosen": {"from": "gpt", "value": "b"}, "rejected": {"from": "gpt", "value": "no"}},
         asked(q, "b"))
        for q in "ace"
    )),
    "openai_dpo": of(*(
        ({"input": {"messages": chat(("user", q))}, "preferred_output": chat(("assistant", "b")),
          "non_preferred_output": WRONG}, asked(q, "b"))
        for q in "ace"
    )),
    "anthropic_hh": of(
        ({"chosen": HUMAN.format("a", "b"), "rejected": HUMAN.format("a", "no")}, asked("a", "b")),
        ({"chosen": HUMAN.format("a", "b") + HUMAN.format("c", "d"),
          "rejected": HUMAN.format("a", "b") + HUMAN.format("c", "no")},
         asked("a", "b") + asked("c", "d")),
        ({"chosen": HUMAN.format("e\n\nf", "g\n\nh"), "rejected": HUMAN.format("e\n\nf", "")},
         asked("e\n\nf", "g\n\nh")),
    ),
}  # fmt: skip


def test_every_shape_has_its_rows_here():
    assert CASES.keys() == {shape.name for shape in SHAPES}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_rows_of_a_shape_are_known_and_their_answers_learned(tmp_path, shape):
    rows, learned = CASES[shape.name]
    reader, found = read(write(tmp_path / "a.jsonl", jsonl(*rows)))
    assert [marked(row) for row in found] == learned
    assert reader.format == shape.format
    said = {f"row read as {shape.name}: {shape.turns}": 3} if shape.format == "columns" else {}
    others = {
        note: n
        for note, n in notes(reader).items()
        if not re.search(r"answer left out|'(inputs|targets|answer_start)' of", note)
    }
    assert others == said
    assert sum(dropped(reader).values()) == 3 - len(learned)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_words_of_the_table_are_what_a_user_may_write(tmp_path, shape):
    rows, learned = CASES[shape.name]
    path = write(tmp_path / "a.jsonl", jsonl(*rows))
    if shape.format != "alpaca":  # whose question is a prompt of its own
        assert [marked(row) for row in read(path, turns=shape.turns)[1]] == learned


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_shape_is_the_same_in_every_container(tmp_path, shape):
    rows, learned = CASES[shape.name]
    paths = [write(tmp_path / "a.json", json.dumps(rows)), tmp_path / "a.csv"]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = io.StringIO()
    table = csv.DictWriter(cells, keys)
    table.writeheader()
    for row in rows:
        values = {
            key: json.dumps(value) for key, value in row.items() if isinstance(value, list | dict)
        }
        table.writerow(row | values)
    write(paths[1], cells.getvalue())
    mixed = {key for key in keys if len({type(row[key]) for row in rows if key in row}) > 1}
    if not any(isinstance(row[key], list) for key in mixed for row in rows if key in row):
        parquet.write_table(
            pa.Table.from_pylist([dict.fromkeys(keys) | row for row in rows]),
            tmp_path / "a.parquet",
        )
        paths.append(tmp_path / "a.parquet")
    if any(isinstance(row.get("options"), list) for row in rows):
        paths.remove(tmp_path / "a.csv")  # in a cell such a list is only text
    for path in paths:
        assert [marked(row) for row in read(path)[1]] == learned, path


def test_the_table_of_the_docs_is_the_table_of_the_code():
    page = (ROOT / "docs" / "data.md").read_text()
    page = page[page.index("| shape |") :].partition("\n\n")[0]
    found = re.findall(r"^\| `(\w+)` \| `(\S+)` \| .+ \|$", page, re.MULTILINE)
    assert found == [(shape.name, shape.turns) for shape in SHAPES]
