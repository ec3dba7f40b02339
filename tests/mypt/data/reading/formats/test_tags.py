"""Reasoning and calls between tags."""

import pytest

from mypt.config import MaskPolicy
from mypt.data.conversations import Conversation, Document, Message, Origin, Part, say
from mypt.data.masking import mask_from_spans
from mypt.data.preparation.encoding import encode_rows
from mypt.data.reading.formats.tags import _names, mark_message, mark_parts
from mypt.data.reading.records import Tally
from mypt.data.tokenizer import load_tokenizer
from tests.mypt.data.rawfiles import jsonl, notes, read, write

CALL = '{"name": "f", "arguments": {}}'
AS_REASONING = "text between <think> tags read as reasoning"
AS_CALL = "text between <tool_call> tags read as a call"


def stays(*tags):
    return {f"{tag} in the text of the assistant stays text": 1 for tag in tags}


def marked(text, tags="think"):
    tally = Tally()
    message = mark_message(say("assistant", text), tags, tally)
    return [(part.kind, part.text) for part in message.parts], dict(tally.notes)


@pytest.mark.parametrize(
    ("text", "parts", "counted"),
    [
        (
            "<think>\nsix\n</think>\n\n42",
            [("reasoning", "six"), ("text", "42")],
            {AS_REASONING: 1},
        ),
        (" <think>a</think>b", [("reasoning", "a"), ("text", "b")], {AS_REASONING: 1}),
        ("<think>\n\n</think>\n\nb", [("reasoning", ""), ("text", "b")], {AS_REASONING: 1}),
        ("<think>a", [("text", "<think>a")], stays("<think>")),
        ("a</think>b", [("text", "a</think>b")], stays("</think>")),
        ("b<think>a</think>", [("text", "b<think>a</think>")], stays("<think>", "</think>")),
        (
            "<think>a</think>b<think>c",
            [("reasoning", "a"), ("text", "b<think>c")],
            {AS_REASONING: 1} | stays("<think>"),
        ),
        (f"<tool_call>\n{CALL}\n</tool_call>", [("tool_call", CALL)], {AS_CALL: 1}),
        (
            f"I look.\n<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>\nThen?",
            [("text", "I look."), ("tool_call", CALL), ("tool_call", CALL), ("text", "Then?")],
            {AS_CALL: 2},
        ),
        (
            f"<think>a</think>\n<tool_call>{CALL}</tool_call>",
            [("reasoning", "a"), ("tool_call", CALL)],
            {AS_REASONING: 1, AS_CALL: 1},
        ),
        *(
            (text, [("text", text)], stays("<tool_call>", "</tool_call>"))
            for text in (
                "<tool_call>f()</tool_call>",
                "<tool_call>{'name': 'f'}</tool_call>",
                '<tool_call>{"name": "f", "x": NaN}</tool_call>',
                "</tool_call><tool_call>",
                '<tool_call>["f"]</tool_call>',
                '<tool_call>{"name": "f", "arguments": "{"}</tool_call>',
                '<tool_call>{"name": "f", "x": 1e999}</tool_call>',
            )
        ),
        ("<thought>a</thought>b", [("text", "<thought>a</thought>b")], stays("<thought>")),
        *(
            (f"{tag} a", [("text", f"{tag} a")], stays(tag))
            for tag in (
                *("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
                *("<|python_tag|>", "<function=", "<invoke", "<|tool_call_begin|>"),
            )
        ),
        ("1 < 2", [("text", "1 < 2")], {}),
    ],
)
def test_text_between_tags_is_the_part_that_it_is_and_what_stays_text_is_counted(
    text, parts, counted
):
    assert marked(text) == (parts, counted)


def test_no_tag_that_is_looked_for_is_passed_over_in_a_row():
    for tag in _names("think,why")[1]:
        row = Conversation((say("assistant", f"a {tag} b"),), Origin(0, 1))
        tally = Tally()
        mark_parts(row, "think,why", tally)
        assert tally.notes == stays(tag)


def test_other_tags_may_be_named_and_none_leaves_all_text():
    text = f"<why>a</why>b<tool_call>{CALL}</tool_call>"
    assert marked(text, "think,why")[0] == [("reasoning", "a"), ("text", "b"), ("tool_call", CALL)]
    assert marked(text, "none") == ([("text", text)], stays("<tool_call>", "</tool_call>"))
    assert marked("<think>a</think>b", "none")[1] == stays("<think>", "</think>")


def test_reasoning_that_stands_beside_the_content_too_is_read_once():
    tally = Tally()
    for thought, kinds in (("a", ["reasoning", "text"]), ("z", ["reasoning", "text"])):
        told = (Part("reasoning", thought), Part("text", "<think>a</think>b"))
        message = mark_message(Message("assistant", told), "think", tally)
        assert [part.kind for part in message.parts] == kinds
    assert message.text == "z<think>a</think>b"
    assert tally.notes == {AS_REASONING: 1} | stays("<think>", "</think>")


def test_the_word_of_a_part_about_its_mask_holds_for_its_pieces():
    told = (Part("text", "<think>a</think>b", False), Part("text", "c"))
    message = mark_message(Message("assistant", told), "think", Tally())
    assert [part.train for part in message.parts] == [False, False, None]


def test_only_the_assistant_is_read_so():
    tally = Tally()
    row = Conversation((say("user", "<think>a</think>b"),), Origin(0, 1))
    document = Document("<think>a</think>b", Origin(0, 1))
    assert mark_parts(row, "think", tally) is row
    assert mark_parts(document, "think", tally) is document
    assert not tally.notes


def test_a_template_with_these_tags_writes_the_same_text_and_the_policy_acts_on_it(tmp_path):
    text = f"<think>\nsix\n</think>\n\n42<tool_call>\n{CALL}\n</tool_call>"
    rows = [{"prompt": "6*7?", "completion": text}]
    reader, found = read(write(tmp_path / "a.jsonl", jsonl(*rows)))
    assert notes(reader) == {AS_REASONING: 1, AS_CALL: 1}
    ours = load_tokenizer("byte", "chatml")
    encoded = encode_rows(found, ours)
    written = ours.decode(encoded.tokens)
    assert written == f"<|im_start|>user\n6*7?<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>"
    policy = MaskPolicy(reasoning=False, tool_calls=False)
    mask = mask_from_spans(encoded.spans, len(encoded.tokens), policy)
    assert ours.decode(encoded.tokens[mask == 1]) == "42<|im_end|>"
    _, found = read(tmp_path / "a.jsonl", reasoning_tags="none")
    assert [part.kind for part in found[0].messages[1].parts] == ["text"]


QUOTED = [
    ("user", [("context", "one"), ("context", "two"), ("text", "Who?")]),
    ("assistant", [("text", "Ann"), ("cite", "one")]),
]
NAMED = "context=documents,cite=source"
BY_TAGS = "<documents>\none\n</documents>\n<documents>two</documents>\n\nWho?"


def said(row):
    return [(m.role, [(part.kind, part.text) for part in m.parts]) for m in row.messages]


@pytest.mark.parametrize(
    ("asks", "answers"),
    [
        ({"content": "Who?", "documents": ["one", "two"]}, {"content": "Ann", "source": "one"}),
        (
            {"value": "Who?", "documents": [{"text": "one"}, {"content": "two"}]},
            {"content": [{"type": "text", "text": "Ann"}], "source": "one"},
        ),
        ({"content": BY_TAGS}, {"content": "Ann<source>one</source>"}),
        (
            {"content": [{"type": "document", "text": "one"}, {"type": "context", "text": "two"},
                         {"type": "text", "text": "Who?"}]},
            {"content": [{"type": "text", "text": "Ann"}, {"type": "cite", "text": "one"}]},
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("format", ["messages", "chat"])
def test_documents_and_citations_are_read_from_fields_tags_and_parts(
    tmp_path, format, asks, answers
):
    turns = [{"role": "user"} | asks, {"role": "assistant"} | answers]
    rows = turns if format == "chat" else [{"messages": turns}]
    reader, (row,) = read(write(tmp_path / "a.jsonl", jsonl(*rows)), parts=NAMED)
    assert said(row) == QUOTED
    counted = {
        "text between <documents> tags read as context": 2,
        "text between <source> tags read as cite": 1,
    }
    assert notes(reader) == (counted if asks["content" if "content" in asks else "value"] == BY_TAGS
                             else {})  # fmt: skip


def test_fields_that_nobody_named_are_counted_and_tags_stay_text(tmp_path):
    turns = [
        {"role": "user", "content": BY_TAGS, "context": "one"},
        {"role": "assistant", "content": "Ann<source>one</source>", "cite": "one"},
    ]
    reader, (row,) = read(write(tmp_path / "a.jsonl", jsonl({"messages": turns})))
    assert [kinds for _, [(kinds, _)] in said(row)] == ["text", "text"]
    unread = {f"'{field}' of a message was not read": 1 for field in ("cite", "context")}
    assert unread.items() <= notes(reader).items()


def test_only_an_assistant_cites_and_unclosed_tags_stay_text(tmp_path):
    turns = [
        {"role": "user", "content": "<source>a</source> <documents>b"},
        {"role": "assistant", "content": "<documents>a</documents>b"},
    ]
    _, (row,) = read(write(tmp_path / "a.jsonl", jsonl({"messages": turns})), parts=NAMED)
    assert said(row) == [
        ("user", [("text", "<source>a</source> <documents>b")]),
        ("assistant", [("context", "a"), ("text", "b")]),
    ]


def test_fields_of_a_tree_and_of_calls_arguments_are_told_apart(tmp_path):
    call = {"name": "f", "arguments": {"role": "x", "documents": "kept"}}
    answer = {"role": "assistant", "text": "Ann", "source": "one", "replies": []}
    tree = {"role": "prompter", "text": "Who?", "documents": "one", "replies": [answer]}
    _, (row,) = read(write(tmp_path / "a.jsonl", jsonl(tree)), parts=NAMED, format="tree")
    assert said(row) == [("user", [("context", "one"), ("text", "Who?")]), QUOTED[1]]
    turns = [{"role": "user", "content": "hi"},
             {"role": "assistant", "content": None, "tool_calls": [call]}]  # fmt: skip
    _, (row,) = read(write(tmp_path / "b.jsonl", jsonl({"messages": turns})), parts=NAMED)
    assert '"documents": "kept"' in row.messages[1].text
