"""Text with role tags: never plain text in silence, and the turns that it came from."""

import pytest

from mypt.data.conversations import Document
from mypt.data.reading.formats.markups import MARKUPS, read_turns_of
from mypt.data.reading.records import Place, Tally
from mypt.errors import DataError
from tests.mypt.data.marks import asked, marked
from tests.mypt.data.rawfiles import dropped, jsonl, notes, read, write

LLAMA = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
TWICE = asked("a", "b") + asked("c", "d\n\ne")
RENDERED = {
    "chatml": (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n"
        "<|im_start|>assistant\nb\n\n b<|im_end|>\n",
        asked("a", "b\n\n b", "s"),
    ),
    "llama3": (
        "<|begin_of_text|>" + LLAMA.format("user", "a") + LLAMA.format("assistant", "b"),
        asked("a", "b"),
    ),
    "gemma": (
        "<bos><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n",
        asked("a", "b"),
    ),
    "zephyr": ("<|system|>\ns</s>\n<|user|>\na</s>\n<|assistant|>\nb</s>\n", asked("a", "b", "s")),
    "llama2": (
        "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST] d\n\ne </s>",
        asked("a", "b", "s") + asked("c", "d\n\ne"),
    ),
    "alpaca": (
        "Do it.\n\n### Instruction:\na\n\n### Input:\nx\n\n### Response:\nb",
        asked("a\n\nx", "b", "Do it."),
    ),
    "guanaco": ("### Human: a\n### Assistant: b\n### Human: c\n### Assistant: d\n\ne", TWICE),
    "glaive": (
        "SYSTEM: s\n\n\nUSER: a\n\n\nASSISTANT: b <|endoftext|>\n\n\n",
        asked("a", "b", "s"),
    ),
    "vicuna": ("s USER: a ASSISTANT: b</s>USER: c ASSISTANT: d\n\ne</s>", asked("a", "b", "s")
               + asked("c", "d\n\ne")),
    "llama4": (
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\na<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\nb<|eot|>",
        asked("a", "b"),
    ),
    "oasst": ("<|prompter|>a<|endoftext|><|assistant|>b<|endoftext|>", asked("a", "b")),
    "command": (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>a<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>b<|END_OF_TURN_TOKEN|>",
        asked("a", "b"),
    ),
    "deepseek": (
        "<\uff5cbegin\u2581of\u2581sentence\uff5c>s<\uff5cUser\uff5c>a<\uff5cAssistant\uff5c>b"
        "<\uff5cend\u2581of\u2581sentence\uff5c><\uff5cUser\uff5c>c<\uff5cAssistant\uff5c>d\n\ne",
        asked("a", "b", "s") + asked("c", "d\n\ne"),
    ),
    "harmony": (
        "<|start|>system<|message|>s<|end|><|start|>user<|message|>a<|end|>"
        "<|start|>assistant<|channel|>final<|message|>b<|return|>",
        asked("a", "b", "s"),
    ),
    "human_ai": ("Human: a\nAI: b\n\nHuman: c\nAI: d\n\ne", TWICE),
    "angled": ("<human>: a\n<bot>: b\n<human>: c\n<bot>: d\n\ne", TWICE),
    "bold": ("**User:** a\n\n**Assistant:** b\n\n**User**: c\n\n**Assistant**: d\n\ne", TWICE),
    "bracketed": ("[USER] a [ASSISTANT] b [USER]c[/USER][ASSISTANT] d\n\ne [/ASSISTANT]", TWICE),
    "instruction": ("Instruction: a\nResponse: b", asked("a", "b")),
    "prompt": ("Prompt: a\nResponse: b\n\nPrompt: c\nResponse: d\n\ne", TWICE),
    "customer": ("Customer: a\nAgent: b\nCustomer: c\nAgent: d\n\ne", TWICE),
    "question": ("Question: a\nAnswer: b\n\nQuestion: c\nAnswer: d\n\ne", TWICE),
    "qa": ("Q: a\nA: b\n\nQ: c\nA: d\n\ne", TWICE),
    "user": ("User: a\nAssistant: b\n\nUser: c\n\nAssistant: d\n\ne", TWICE),
    "human_lines": ("Human: a\nAssistant: b\nHuman: c\nAssistant: d\n\ne", TWICE),
    "human": ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d\n\ne", TWICE),
}  # fmt: skip


def test_every_markup_is_tried_here():
    assert RENDERED.keys() == MARKUPS.keys()


@pytest.mark.parametrize("markup", RENDERED)
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_rendered_text_is_refused_and_both_ways_out_work(tmp_path, markup, name):
    text, learned = RENDERED[markup]
    content = text if name == "a.txt" else jsonl({"text": "plain"}, {"text": text})
    path = write(tmp_path / name, content)
    ways = f"--format rendered --markup {markup} reads its turns, --format text takes it"
    with pytest.raises(DataError, match=ways):
        read(path)
    if name == "a.jsonl":
        assert [type(row) for row in read(path, format="text")[1]] == [Document, Document]
        path = write(path, jsonl({"text": text}, {"text": text}))
    else:
        assert "".join(row.text for row in read(path, format="text")[1]) == text
    n = 2 if name == "a.jsonl" else 1
    for how in ({"format": "rendered", "markup": markup}, {"format": "rendered"}):
        reader, rows = read(path, **how)
        assert reader.format == "rendered"
        assert [marked(row) for row in rows] == [learned] * n
        assert notes(reader) == {}


@pytest.mark.parametrize(
    "text",
    [
        "The tag <|im_end|> ends a turn.",
        "USER: a person who uses",
        "An [INST] of the United States",
        "Superhuman: a novel",
        "Human rights",
        "The assistant said to the User: go.",
        "Manager: Ann\nAssistant: Bob",
        "See the FAQ: all is there.\nA: first of the list",
        "A: an article\nQ: a letter",
        "**User** guide of the **Assistant**",
        "user: root\nmodel: small",
        "browser: a\nrobot: b",
        "See [user] and the list [robot].",
    ],
)
def test_text_that_only_mentions_a_tag_is_plain(tmp_path, text):
    _, rows = read(write(tmp_path / "a.jsonl", jsonl({"text": text})))
    assert rows == [Document(text, (0, 1))]


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>user\r\na<|im_end|>\r\n<|im_start|>assistant\r\nb<|im_end|>\r\n",
        "<|im_start|>user<|im_sep|>a<|im_end|><|im_start|>assistant<|im_sep|>b<|im_end|>",
        "### User:\na\n\n### Assistant:\nb",
        *("User: a\nBot: b", "user: a\nassistant: b", "User: a\nAI: b", "Human: a\nBot: b"),
        *("human: a\n\nassistant: b", "[User]: a\n[Assistant]: b", "[user] a [bot] b"),
        "Prompt: a\nCompletion: b",
    ],
)
def test_the_kin_of_a_markup_is_no_plain_text_either(tmp_path, text):
    path = write(tmp_path / "a.jsonl", jsonl({"text": text}))
    with pytest.raises(DataError, match="--format rendered --markup"):
        read(path)
    assert [marked(row) for row in read(path, format="rendered")[1]] == [asked("a", "b")]


@pytest.mark.parametrize(
    "field", [{"author": "assistant"}, {"type": "human"}, {"source": "User"}, {"Speaker": "Ann"}]
)
def test_who_speaks_is_known_by_what_a_field_says_too(tmp_path, field):
    path = write(tmp_path / "a.jsonl", jsonl({"text": "a"}, {"text": "b"} | field))
    with pytest.raises(DataError, match="says who speaks the text"):
        read(path)


def test_the_conversations_of_a_text_file_end_at_an_empty_line_behind_a_closed_turn(tmp_path):
    turn = "<|im_start|>{}\n{}<|im_end|>\n"
    one = turn.format("user", "a\n\na") + turn.format("assistant", "b")
    path = write(tmp_path / "a.txt", one + "\n\n" + one + turn.format("system", "s") + one)
    _, rows = read(path, format="rendered")
    assert [marked(row) for row in rows] == [
        asked("a\n\na", "b"), asked("a\n\na", "b"), asked("a\n\na", "b", "s"),
    ]  # fmt: skip
    assert [row.origin.line for row in rows] == [1, 9, 15]


def test_a_header_of_harmony_that_says_more_is_refused(tmp_path):
    text = RENDERED["harmony"][0].replace("<|start|>user", "<|start|>user at noon")
    with pytest.raises(DataError, match=r"a.jsonl:1: unknown role 'user at noon'"):
        read(write(tmp_path / "a.jsonl", jsonl({"text": text})), format="rendered")


def test_the_channels_of_a_harmony_turn_are_one_message():
    tag = "<|start|>{}<|message|>{}"
    text = "".join(
        tag.format(*said)
        for said in (
            ("user", "q<|end|>"),
            ("assistant<|channel|>analysis", "hm<|end|>"),
            (
                "assistant<|channel|>commentary to=functions.f <|constrain|>json",
                '{"x":1}<|call|>',
            ),
            ("functions.f to=assistant<|channel|>commentary", "2<|end|>"),
            ("assistant<|channel|>analysis", "so<|end|>"),
            ("assistant<|channel|>final", "two<|return|>"),
        )
    )
    said = read_turns_of(text, Place("a", 0, 1), Tally(), None)
    assert [(m.role, [(part.kind, part.text) for part in m.parts]) for m in said] == [
        ("user", [("text", "q")]),
        ("assistant", [("reasoning", "hm"), ("tool_call", '{"name": "f", "arguments": {"x": 1}}')]),
        ("tool", [("text", "2")]),
        ("assistant", [("reasoning", "so"), ("text", "two")]),
    ]


def test_a_turn_that_is_not_ended_or_says_nothing_is_counted(tmp_path):
    begun = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    path = write(tmp_path / "a.jsonl", jsonl({"text": begun}, {"text": begun + "b"}))
    reader, rows = read(path, format="rendered")
    assert [marked(row) for row in rows] == [asked("a", "b")]
    assert notes(reader) == {"turn without its end tag <|im_end|>": 2}
    assert dropped(reader) == {"a message of the assistant without text": 1}


@pytest.mark.parametrize(
    ("text", "markup", "message"),
    [
        ("plain", None, "found 'plain', without tags of chatml, .*; name its --markup, or"),
        ("plain", "llama3", "without tags of llama3"),
        ("<|im_start|>user\na<|im_end|>\nb", "chatml", "text behind the end of the turn"),
        ("<|im_start|>usr\na<|im_end|>", "chatml", "unknown role 'usr'; did you mean 'user'"),
    ],
)
def test_text_that_was_not_rendered_so_is_refused(tmp_path, text, markup, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "a.jsonl", jsonl({"text": text})), format="rendered", markup=markup)


def test_a_row_in_which_somebody_speaks_is_no_plain_text(tmp_path):
    rows = [{"role": "user", "text": "a"}, {"role": "assistant", "text": "b"}]
    reader, found = read(write(tmp_path / "a.jsonl", jsonl(*rows)))
    assert (reader.format, [marked(row) for row in found]) == ("chat", [asked("a", "b")])
    for key in ("role", "from", "speaker", "sender"):
        path = write(tmp_path / "a.jsonl", jsonl({"text": "a"}, {"text": "b", key: "Ann"}))
        with pytest.raises(DataError, match=f"a.jsonl:2: {key} 'Ann' says who speaks the text"):
            read(path)
        assert [row.text for row in read(path, format="text")[1]] == ["a", "b"]
