"""Rows in a base's own template: ids as transformers has them, spans as inference has them."""

import json
import random
import re
from collections import Counter

import pytest

pytest.importorskip("transformers", reason="pip install 'mypt[dev]'")

from mypt.config import MaskPolicy
from mypt.data.conversations import Conversation, Document, Message, Origin, Part, say
from mypt.data.masking import mask_from_spans
from mypt.data.preparation.encoding import encode_counted, encode_rows
from mypt.data.preparation.rendered import encode_rendered
from mypt.data.reading.records import Tally
from mypt.data.rendering.sandbox import TODAY
from mypt.data.spans import KIND, KINDS, ROLE
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import ConfigError, DataError
from mypt.inference.chat import chat_prompt
from tests.mypt.data.rendering.bases import (
    BREAKS,
    CONTROLS,
    GLM,
    HARMONY,
    QWEN,
    STOPS,
    STYLES,
    write_base,
)

PLAIN = ["Hello", "two words", "a\nb", "1 + 1 = 2", "\xfcml\xe4ut \u2713", "```py\nx=1\n```"]
NASTY = ["  two  spaces", "\n\nlead", "trail \n", "</think>", "<|im_end|>", "x<think>y", "[/INST]"]
SCHEMES = ("prepend", "first", "always")
"""Whether SentencePiece's space stands before texts, as a normalizer or as Metaspace puts it."""
HERE = Origin(0, 1)
CALL = '{"name": "add", "arguments": {"a": 1, "b": "two \\u00e9"}}'


def conversations(words, n=60, seed=3):
    draw = random.Random(seed)

    def text():
        return " ".join(draw.choices(words, k=draw.randint(1, 3)))

    for _ in range(n):
        turns = [say("system", text())] if draw.random() < 0.3 else []
        for _ in range(draw.randint(1, 3)):
            turns += [say("user", text()), say("assistant", text())]
        yield Conversation(tuple(turns), HERE)


def theirs_of(fast, turns, monkeypatch, **options):
    """What ``apply_chat_template`` gives; its clock is ours."""
    from transformers.utils import chat_template_utils

    class Clock:
        now = staticmethod(lambda: TODAY)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    messages = []
    for turn in turns:
        one = {
            "role": turn.role,
            "content": "".join(p.text for p in turn.parts if p.kind == "text"),
        }
        for part in turn.parts:
            if part.kind == "reasoning":
                one["reasoning_content"] = part.text
            elif part.kind == "tool_call":
                call = {"type": "function", "function": json.loads(part.text)}
                one.setdefault("tool_calls", []).append(call)
        messages.append(one)
    found = fast.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    return found["input_ids"]


SPACES = [(name, how) for name in ("chatml", "llama", "mistral") for how in SCHEMES]


@pytest.fixture(
    params=[*((name, "") for name in STYLES), *SPACES], ids=lambda one: " ".join(filter(None, one))
)
def base(request, tmp_path):
    name, scheme = request.param
    fast = write_base(tmp_path, STYLES[name], scheme=scheme)
    return name, fast, load_tokenizer(f"hf:{tmp_path}", "base")


def spells(row):
    return any(token in turn.text for turn in row.messages for token in CONTROLS)


def test_the_stop_is_what_the_template_makes_the_model_write_last(base):
    name, _, ours = base
    assert ours.template.stop == STOPS[name]
    assert ours.stop_id == ours.special_tokens[STOPS[name]]


def test_ids_are_those_of_apply_chat_template_for_every_accepted_row(base, monkeypatch):
    _, fast, ours = base
    rows = [*conversations(PLAIN), *conversations(PLAIN + NASTY, seed=4)]
    found = encode_rendered(rows, ours, many=True)
    clean = [
        row for row, _ in found.refused if all(w not in t.text for t in row.messages for w in NASTY)
    ]
    assert not clean, found.refused[:3]
    assert len(found.rows) > 70, Counter(reason for _, reason in found.refused)
    encoded = encode_rows(found.rows, ours)
    for number, row in enumerate(found.rows):
        tokens = encoded.tokens[encoded.rows[number]["start"] : encoded.rows[number]["stop"]]
        if not spells(row):
            assert tokens.tolist() == theirs_of(fast, row.messages, monkeypatch)


def test_what_inference_feeds_is_a_prefix_and_the_rest_is_learned(base):
    _, _, ours = base
    for row in conversations(PLAIN, n=20):
        encoded = encode_rows([row], ours)
        mask = mask_from_spans(encoded.spans, len(encoded.tokens), MaskPolicy())
        learned = []
        for index, turn in enumerate(row.messages):
            if turn.role == "assistant":
                fed = chat_prompt(ours, row.messages[:index])
                assert encoded.tokens[: len(fed)].tolist() == fed
                assert mask[len(fed)] == 1
                assert mask[len(fed) - 1] == 0
                end = next(
                    n for n in range(len(fed), len(mask)) if encoded.tokens[n] == ours.stop_id
                )
                learned += range(len(fed), end + 1)
        assert mask.nonzero()[0].tolist() == learned


def test_no_text_of_a_user_gives_a_control_id(base):
    _, _, ours = base
    text = "".join(CONTROLS) + " and more"
    row = Conversation((say("user", text), say("assistant", "no")), HERE)
    plain = Conversation((say("user", "x"), say("assistant", "no")), HERE)
    controls = list(ours.special_tokens.values())
    tally = Tally()
    found, expected = (encode_counted([one], ours, tally) for one in (row, plain))
    count = [sum(int((e.tokens == number).sum()) for number in controls) for e in (found, expected)]
    assert count[0] == count[1]
    assert tally.notes["text that spells a token of the base stays text"] == 1


def told(encoded, ours):
    return [
        (KINDS[kind], ours.decode(encoded.tokens[start:stop]))
        for start, stop, _, _, role, kind, _ in encoded.spans.tolist()
        if role == ROLE["assistant"] and kind != KIND["header"]
    ]


@pytest.mark.parametrize(
    ("template", "stop", "ends"),
    [(HARMONY, "<|eot|>", ["<|im_end|>", "<|eot|>"]), (GLM, "<|start|>", ["<|start|>"])],
    ids=["another stop at the end", "the next header stops"],
)
def test_each_turn_ends_with_what_the_template_lets_follow_it(tmp_path, template, stop, ends):
    write_base(tmp_path, template)
    ours = load_tokenizer(f"hf:{tmp_path}", "base")
    assert ours.template.stop == stop
    turns = [say(role, word) for role, word in zip(("user", "assistant") * 2, "abcd", strict=True)]
    encoded = encode_rows([Conversation(tuple(turns), HERE)], ours)
    assert [text for kind, text in told(encoded, ours) if kind == "end"] == ends


@pytest.fixture
def qwen(tmp_path):
    return write_base(tmp_path, QWEN), load_tokenizer(f"hf:{tmp_path}", "base")


def test_reasoning_and_tool_calls_have_spans_of_their_own(qwen, monkeypatch):
    fast, ours = qwen
    asked = Message(
        "assistant", (Part("reasoning", "hm"), Part("text", "So"), Part("tool_call", CALL))
    )
    turns = (
        say("user", "add"), asked, say("tool", "3"), say("tool", "4"),
        Message("assistant", (Part("reasoning", "right"), Part("text", "It is 3."))),
    )  # fmt: skip
    encoded = encode_rows([Conversation(turns, HERE)], ours)
    assert encoded.tokens.tolist() == theirs_of(fast, turns, monkeypatch)
    assert told(encoded, ours) == [
        ("reasoning", "<think>\nhm\n</think>\n\n"), ("content", "So"),
        ("tool_call", f"\n<tool_call>\n{CALL}\n</tool_call>".replace("\\u00e9", "\xe9")),
        ("end", "<|im_end|>"), ("reasoning", "<think>\nright\n</think>\n\n"),
        ("content", "It is 3."), ("end", "<|im_end|>"),
    ]  # fmt: skip


def test_a_part_that_speaks_for_itself_keeps_its_word_about_the_mask(qwen):
    _, ours = qwen
    parts = (Part("reasoning", "hm", train=False), Part("text", "So"))
    encoded = encode_rows(
        [Conversation((say("user", "a"), Message("assistant", parts)), HERE)], ours
    )
    mask = mask_from_spans(encoded.spans, len(encoded.tokens), MaskPolicy())
    assert ours.decode(encoded.tokens[mask == 1]) == "So<|im_end|>"
    mixed = (Part("text", "a", train=True), Part("text", "b", train=False))
    with pytest.raises(DataError, match="some to be learned and some not"):
        encode_rows([Conversation((say("user", "a"), Message("assistant", mixed)), HERE)], ours)


def test_an_empty_block_of_reasoning_is_reasoning_and_not_the_answer(qwen):
    _, ours = qwen
    row = Conversation((say("user", "a"), say("assistant", "b")), HERE)
    assert told(encode_rows([row], ours), ours) == [
        ("reasoning", "<think>\n\n</think>\n\n"), ("content", "b"), ("end", "<|im_end|>"),
    ]  # fmt: skip


def test_reasoning_that_the_template_strips_from_history_is_counted(qwen):
    _, ours = qwen
    thought = Message("assistant", (Part("reasoning", "hm"), Part("text", "b")))
    row = Conversation((say("user", "a"), thought, say("user", "c"), thought), HERE)
    tally = Tally()
    assert len(encode_counted([row], ours, tally).rows) == 1
    assert tally.notes["reasoning of earlier turns left out by the base's template"] == 1


def test_a_row_whose_text_the_template_rewrites_is_refused_by_name_or_counted(qwen):
    _, ours = qwen
    row = Conversation((say("user", "a"), say("assistant", "x</think>y")), Origin(0, 7))
    with pytest.raises(DataError, match=r"line 7: .*rewrites what a message says"):
        encode_rows([row], ours)
    good = Conversation((say("user", "a"), say("assistant", "y")), HERE)
    tally = Tally()
    assert len(encode_counted([good, row, good], ours, tally).rows) == 2
    assert sum(tally.dropped.values()) == 1


def test_a_tool_call_that_spells_a_control_token_is_refused(qwen):
    _, ours = qwen
    call = '{"name": "say", "arguments": {"text": "<|im_end|>"}}'
    turns = (say("user", "a"), Message("assistant", (Part("tool_call", call),)))
    with pytest.raises(DataError, match="spells a token of the base"):
        encode_rows([Conversation(turns, HERE)], ours)


def test_a_template_that_breaks_the_prefix_law_is_told_with_the_difference(tmp_path):
    write_base(tmp_path, BREAKS)
    ours = load_tokenizer(f"hf:{tmp_path}", "base")
    row = Conversation((say("user", "a"), say("assistant", "b")), HERE)
    with pytest.raises(DataError, match=re.escape("no prefix of what training reads")) as caught:
        encode_rows([row], ours)
    assert "<think>" in str(caught.value)


def test_generation_marks_that_disagree_are_refused(tmp_path):
    marks = STYLES["generation"].replace(
        "'<|im_end|>' }}{%- endgeneration %}", "'' }}{%- endgeneration %}{{- '<|im_end|>' }}"
    )
    assert marks != STYLES["generation"]
    write_base(tmp_path, marks)
    ours = load_tokenizer(f"hf:{tmp_path}", "base")
    row = Conversation((say("user", "a"), say("assistant", "b")), HERE)
    with pytest.raises(DataError, match="generation %} marks other text"):
        encode_rows([row], ours)


def test_a_base_without_a_template_and_a_tokenizer_without_a_base_are_refused(tmp_path):
    write_base(tmp_path, "")
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        load_tokenizer(f"hf:{tmp_path}", "base")
    with pytest.raises(ConfigError, match="expected hf:FOLDER"):
        load_tokenizer("byte", "base")


def test_documents_stand_beside_rendered_rows(base):
    _, _, ours = base
    rows = [Document("Call me <|im_end|>.", HERE), *conversations(PLAIN, n=1), Document("", HERE)]
    encoded = encode_rows(rows, ours)
    first = encoded.tokens[: encoded.rows[0]["stop"]]
    assert ours.decode(first) == f"Call me <|im_end|>.{ours.vocabulary.end}"
    assert encoded.rows[2]["stop"] - encoded.rows[2]["start"] == 1


def test_the_state_on_disk_renders_the_same(base, tmp_path):
    _, _, ours = base
    (tmp_path / "state").mkdir()
    ours.write(tmp_path / "state")
    again = load_tokenizer(tmp_path / "state")
    assert again.digest == ours.digest
    row = next(conversations(PLAIN, n=1))
    assert (encode_rows([row], again).tokens == encode_rows([row], ours).tokens).all()
