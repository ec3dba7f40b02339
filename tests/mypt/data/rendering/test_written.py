"""Rows in a base's own template: ids as transformers has them, spans as inference has them."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="pip install 'mypt[dev]'")

from mypt.config import MaskPolicy, PrepareConfig, Source
from mypt.data.conversations import Conversation, Document, Message, Origin, Part, say
from mypt.data.dataset import open_dataset, prepare
from mypt.data.masking import mask_from_spans
from mypt.data.preparation.encoding import encode_counted, encode_rows
from mypt.data.preparation.rendered import encode_rendered
from mypt.data.reading.records import Tally
from mypt.data.rendering.sandbox import TODAY
from mypt.data.spans import KIND, KINDS, ROLE
from mypt.data.tokenizer import Tokenizer, load_tokenizer
from mypt.errors import ConfigError, DataError
from mypt.inference.chat import chat_prompt
from mypt.inspection.validation import validate
from tests.mypt.data.rendering.bases import (
    BREAKS,
    CHANNELS,
    CHATML,
    CONTROLS,
    GLM,
    GLM_CALLS,
    HARMONY,
    NEMOTRON,
    OPENS,
    QWEN,
    R1,
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
            elif part.kind in ("tool_call", "failed_call"):
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


def test_a_turn_that_calls_a_tool_ends_with_the_header_that_follows_where_no_token_ends_it(
    tmp_path,
):
    write_base(tmp_path, GLM_CALLS)
    ours = load_tokenizer(f"hf:{tmp_path}", "base")
    assert ours.template.stops == ("<|start|>", "<tool_response>")
    assert ours.stop_ids == tuple(ours.special_tokens[token] for token in ours.template.stops)
    asked = Message("assistant", (Part("text", "So"), Part("tool_call", CALL)))
    turns = (say("user", "a"), asked, say("tool", "3"), say("assistant", "b"), say("user", "c"))
    encoded = encode_rows([Conversation(turns, HERE)], ours)
    ends = [text for kind, text in told(encoded, ours) if kind == "end"]
    assert ends == ["<tool_response>", "<|start|>"]


def test_a_token_that_stands_inside_a_turn_ends_none_and_is_not_learned_as_its_end(tmp_path):
    write_base(tmp_path, CHANNELS)
    ours = load_tokenizer(f"hf:{tmp_path}", "base")
    assert ours.template.stops == ("<|eot|>",)
    turns = [say(role, word) for role, word in zip(("user", "assistant") * 2, "abcd", strict=True)]
    encoded = encode_rows([Conversation(tuple(turns), HERE)], ours)
    assert [text for kind, text in told(encoded, ours) if kind == "end"] == ["<|eot|>"]


def test_a_template_that_was_kept_before_other_stops_were_known_keeps_its_digest(tmp_path):
    write_base(tmp_path, CHATML)
    template = load_tokenizer(f"hf:{tmp_path}", "base").template
    assert "also_stops" not in template.model_dump(mode="json")


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


@pytest.mark.parametrize("others", [(), ("tool_call",), ("failed_call",)])
def test_calls_that_a_base_writes_as_one_count_as_failed_where_one_has(qwen, monkeypatch, others):
    fast, ours = qwen
    calls = tuple(Part(kind, CALL) for kind in ("failed_call", *others))
    results = tuple(say("tool", "3") for _ in calls)
    turns = (say("user", "add"), Message("assistant", calls), *results, say("assistant", "3."))
    tally = Tally()
    encoded = encode_counted([Conversation(turns, HERE)], ours, tally)
    assert encoded.tokens.tolist() == theirs_of(fast, turns, monkeypatch)
    kinds = [kind for kind, _ in told(encoded, ours)]
    assert kinds == ["failed_call", "end", "reasoning", "content", "end"]
    note = "calls beside one that failed, which the base's template writes as one: all failed"
    assert tally.notes[note] == (others == ("tool_call",))
    mask = mask_from_spans(encoded.spans, len(encoded.tokens), MaskPolicy(skip_failed_calls=True))
    learned = ours.decode(encoded.tokens[mask.nonzero()[0]])
    assert learned == "<|im_end|><think>\n\n</think>\n\n3.<|im_end|>"


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"a": "int"}}}


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_a_rows_tools_are_written_in_the_bases_own_words(tmp_path, system):
    fast = write_base(tmp_path / "base", QWEN)
    turns = [{"role": "user", "content": "add"}, {"role": "assistant", "content": "3"}]
    if system:
        turns.insert(0, {"role": "system", "content": system})
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": turns, "tools": [TOOL]}) + "\n")
    given = {"tokenization": f"hf:{tmp_path / 'base'}", "template": "base", "val_fraction": 0.0}
    config = PrepareConfig(sources=(Source(path=str(path)),), **given)
    folder = Path(prepare(config, MaskPolicy(), tmp_path / "data").path)
    dataset = open_dataset(folder)
    (shard,) = dataset.shards("train")
    found = fast.apply_chat_template(turns, tools=[TOOL], return_dict=True)["input_ids"]
    assert shard.tokens.tolist() == found
    learned = dataset.tokenizer.decode(shard.tokens[np.asarray(shard.mask) == 1])
    assert learned == "3<|im_end|>"  # reasoning that says nothing is left out
    assert validate(folder).ok
    listed = f"Tools:\n{json.dumps([TOOL])}"
    asked = [say("system", f"{system}\n\n{listed}" if system else listed), say("user", "add")]
    fed = chat_prompt(dataset.tokenizer, asked)
    assert fed == shard.tokens[: len(fed)].tolist()


def prepared(folder, base, rows, **values):
    folder.mkdir(exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    given = {"tokenization": f"hf:{base}", "template": "base", "val_fraction": 0.0} | values
    config = PrepareConfig(sources=(Source(path=str(path)),), **given)
    return open_dataset(prepare(config, MaskPolicy(), folder / "data").path)


def test_turns_are_trained_on_as_inference_sees_them_where_earlier_ones_are_written_otherwise(
    tmp_path,
):
    """OPENS writes an empty block of reasoning before the last answer only."""
    write_base(tmp_path / "base", OPENS)
    words = [
        {"role": role, "content": f"{role} {n}"} for n in range(3) for role in ("user", "assistant")
    ]
    rows = [words, words[:2], [*words[:2], words[2], words[3] | {"train": False}]]
    with pytest.raises(DataError, match="every row was dropped"):
        prepared(tmp_path / "whole", tmp_path / "base", [words])
    made = prepared(tmp_path, tmp_path / "base", rows, train_as="inference", val_fraction=0.4)
    shards = [shard for split in ("train", "val") for shard in made.shards(split)]
    found = []
    for shard in shards:
        for row in shard.rows:
            span = slice(int(row["start"]), int(row["stop"]))
            learned = shard.tokens[span][np.asarray(shard.mask[span]) == 1]
            found.append((int(row["line"]), made.tokenizer.decode(learned)))
    assert sorted(found) == [
        (1, "assistant 0<|im_end|>"), (1, "assistant 1<|im_end|>"), (1, "assistant 2<|im_end|>"),
        (2, "assistant 0<|im_end|>"), (3, "assistant 0<|im_end|>"),
    ]  # fmt: skip
    places = [{int(row["line"]) for shard in made.shards(split) for row in shard.rows}
              for split in ("train", "val")]  # fmt: skip
    assert not places[0] & places[1], "turns of one conversation are on one side"
    assert validate(made.path).ok
    fed = chat_prompt(made.tokenizer, [say(one["role"], one["content"]) for one in words[:3]])
    ids = [shard.tokens.tolist() for shard in shards]
    assert any(fed == one[at : at + len(fed)] for one in ids for at in range(len(one)))


THINKING = {
    "r1": (R1, "{thought}\n</think>\n\n{answer}<|eot|>"),
    "v3.1": (R1.replace("<think>\\n", "<think>"), "{thought}</think>{answer}<|eot|>"),
    "nemotron": (NEMOTRON, "{thought}\n</think>\n{answer}<|im_end|>"),
}
"""Templates that strip earlier reasoning and open a tag for the next, and what is then written."""


def thinking_rows(n=30):
    """Talks of one to three exchanges, each answer with reasoning, some with a system message."""
    for row in conversations(PLAIN, n=n, seed=8):
        turns = tuple(
            Message("assistant", (Part("reasoning", f"Hm, {t.text}?"), *t.parts))
            if t.role == "assistant"
            else t
            for t in row.messages
        )
        yield Conversation(turns, HERE)


def each_turn(folder):
    """The base's tokenizer as train_as inference has it."""
    ours = load_tokenizer(f"hf:{folder}", "base")
    return Tokenizer(ours.vocabulary, ours.template.model_copy(update={"each_turn": True}))


@pytest.mark.parametrize("name", THINKING)
def test_each_turn_is_read_as_inference_feeds_it_where_a_template_opens_its_reasoning(
    name, tmp_path, monkeypatch
):
    source, expected = THINKING[name]
    fast = write_base(tmp_path, source)
    ours = each_turn(tmp_path)
    rows = list(thinking_rows())
    found = encode_rendered(rows, ours, many=True)
    assert not found.refused, found.refused[:3]
    turns = [(row, n) for row in rows for n, t in enumerate(row.messages) if t.role == "assistant"]
    assert len(found.rows) == len(turns) > len(rows)
    encoded = encode_rows(found.rows, ours)
    mask = mask_from_spans(encoded.spans, len(encoded.tokens), MaskPolicy())
    for place, (row, n) in zip(encoded.rows, turns, strict=True):
        span = slice(int(place["start"]), int(place["stop"]))
        ids, learned = encoded.tokens[span].tolist(), np.asarray(mask[span]) == 1
        fed = theirs_of(fast, row.messages[:n], monkeypatch, add_generation_prompt=True)
        assert ids[: len(fed)] == fed == chat_prompt(ours, row.messages[:n])
        assert not learned[: len(fed)].any(), "what is injected is a header"
        assert "<think>" in ours.decode(fed[-3:])
        thought, answer = (part.text for part in row.messages[n].parts)
        said = expected.format(thought=thought, answer=answer)
        assert ours.decode(encoded.tokens[span][learned].tolist()) == said
        ends = len(fed) + int(learned.sum())
        assert learned[len(fed) : ends].all()


@pytest.mark.parametrize("name", THINKING)
def test_a_turn_without_reasoning_is_refused_where_inference_opens_one(name, tmp_path):
    write_base(tmp_path, THINKING[name][0])
    ours = each_turn(tmp_path)
    found = encode_rendered(list(conversations(PLAIN, n=3)), ours, many=True)
    assert not found.rows
    assert all("no prefix of what training reads" in reason for _, reason in found.refused)


def test_turns_apart_want_a_template_of_the_base(tmp_path):
    write_base(tmp_path / "base", CHATML)
    with pytest.raises(ConfigError, match="train_as inference with template chatml"):
        prepared(tmp_path, tmp_path / "base", [[]], template="chatml", train_as="inference")


def test_a_template_without_a_form_for_tools_refuses_them(tmp_path):
    write_base(tmp_path, CHATML)
    ours = load_tokenizer(f"hf:{tmp_path}", "base")
    turns = (
        say("system", f"Tools:\n{json.dumps([TOOL])}"),
        say("user", "a"),
        say("assistant", "b"),
    )
    with pytest.raises(DataError, match="no form for tools"):
        encode_rows([Conversation(turns, HERE)], ours)


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


@pytest.mark.parametrize("kind", ["context", "cite"])
def test_what_a_base_has_no_form_for_is_refused_by_name(qwen, kind):
    _, ours = qwen
    parts = (Part(kind, "a"), Part("text", "b"))
    row = Conversation((Message("user", parts), say("assistant", "y")), HERE)
    with pytest.raises(DataError, match="no form for quoted documents and citations"):
        encode_rows([row], ours)


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
