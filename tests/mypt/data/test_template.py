import json

import pytest
from hypothesis import given, settings

from mypt.data.conversations import Conversation, Document, Message, Part, say
from mypt.data.spans import BY_POLICY, KINDS, ROLES
from mypt.data.template import Template, load_template
from mypt.data.tokenizer import load_tokenizer
from mypt.errors import ConfigError, DataError
from mypt.parsing import parse_config
from tests.mypt.data.rows import HERE, TEMPLATES, conversations
from tests.mypt.data.segments import render

FORMS = {name: load_template(name) for name in TEMPLATES}
CHAT = Conversation((say("user", "Hi"), say("assistant", "Hello")), HERE)
SMALL = {
    "name": "small",
    "special_tokens": ["[A]", "[B]", "[S]"],
    "turns": {"user": {"header": "[A]"}, "assistant": {"header": "answer: ", "end": "[B]"}},
}


def written(segments):
    return "".join(segment.text or segment.special for segment in segments)


def small(**changes):
    return parse_config(SMALL | changes, Template, "small.json")


EXPECTED = {
    "mypt": "<System>Be brief</System><User>Hi</User><Assistant>Hello</Assistant><User>Bye</User>",
    "chatml": "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>",
    "alpaca": "Be brief\n\n### Instruction:\nHi\n\n### Response:\nHello<|endoftext|>\n\n"
    "### Instruction:\nBye",
    "plain": "Be briefHiHello<|endoftext|>Bye",
}
EXPECTED["documents"] = EXPECTED["mypt"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_written_as_the_template_says(name):
    turns = (
        say("system", "Be brief"),
        say("user", "Hi"),
        say("assistant", "Hello"),
        say("user", "Bye"),
    )
    assert written(render(FORMS[name], Conversation(turns, HERE))) == EXPECTED[name]


def test_there_is_an_expectation_for_every_template():
    assert set(EXPECTED) == set(TEMPLATES)


def test_nothing_is_put_before_a_conversation_that_has_no_system_turn():
    assert written(render(FORMS["mypt"], CHAT)) == "<User>Hi</User><Assistant>Hello</Assistant>"


@settings(max_examples=60)
@given(conversation=conversations)
def test_history_is_never_written_differently_once_more_turns_follow(conversation):
    for template in FORMS.values():
        whole = render(template, conversation)
        for n in range(1, len(conversation.messages)):
            shorter = render(template, Conversation(conversation.messages[:n], HERE))
            assert whole[: len(shorter)] == shorter


@settings(max_examples=60)
@given(conversation=conversations)
def test_there_is_one_start_token_where_the_template_has_one_and_none_elsewhere(conversation):
    for name, template in FORMS.items():
        special = [segment.special for segment in render(template, conversation)]
        assert special.count("<|begin_of_text|>") == (1 if name == "llama3" else 0)


def test_every_segment_says_who_wrote_it_and_why():
    parts = Part("reasoning", "2+2"), Part("text", "4"), Part("tool_call", "add(2, 2)")
    turns = say("user", "What's 2+2?"), Message("assistant", parts, train=True), say("tool", "4")
    segments = render(FORMS["mypt"], Conversation(turns, HERE))
    told = [
        (s.text or s.special, ROLES[s.role], KINDS[s.kind], s.message, s.train, s.part)
        for s in segments
    ]
    assert told == [
        ("<User>", "user", "header", 0, BY_POLICY, 0),
        ("What's 2+2?", "user", "content", 0, BY_POLICY, 0),
        ("</User>", "user", "end", 0, BY_POLICY, 0),
        ("<Assistant>", "assistant", "header", 1, 1, 0),
        ("<Reasoning>", "assistant", "reasoning", 1, 1, 0),
        ("2+2", "assistant", "reasoning", 1, 1, 0),
        ("</Reasoning>", "assistant", "reasoning", 1, 1, 0),
        ("4", "assistant", "content", 1, 1, 1),
        ("<ToolCall>", "assistant", "tool_call", 1, 1, 2),
        ("add(2, 2)", "assistant", "tool_call", 1, 1, 2),
        ("</ToolCall>", "assistant", "tool_call", 1, 1, 2),
        ("</Assistant>", "assistant", "end", 1, 1, 0),
        ("<Tool>", "tool", "header", 2, BY_POLICY, 0),
        ("4", "tool", "content", 2, BY_POLICY, 0),
        ("</Tool>", "tool", "end", 2, BY_POLICY, 0),
    ]


def test_a_separator_belongs_to_the_header_of_the_turn_it_precedes():
    segments = render(FORMS["chatml"], CHAT)
    separator = segments[4]
    assert (separator.text, separator.message, KINDS[separator.kind]) == ("\n", 1, "header")


def test_a_document_is_its_text_and_the_token_that_ends_it():
    segments = render(load_tokenizer("byte", "llama3"), Document("Call me Ishmael.", HERE))
    assert [(s.text, s.special, ROLES[s.role], KINDS[s.kind]) for s in segments] == [
        ("Call me Ishmael.", None, "text", "content"),
        (None, "<|endoftext|>", "text", "end"),
    ]


def test_an_empty_answer_has_its_stop_and_no_content():
    row = Conversation((say("user", "Hi"), say("assistant", "")), HERE)
    assert written(render(FORMS["mypt"], row)) == "<User>Hi</User><Assistant></Assistant>"
    assert all(segment.text != "" for segment in render(FORMS["mypt"], row))


def test_a_users_own_file_may_hold_comments(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text("// my tags\n" + json.dumps(SMALL))
    assert written(render(load_template(path), CHAT)) == "[A]Hianswer: Hello[B]"


def test_the_digest_changes_with_every_string_and_with_nothing_else():
    template = small()
    before = template.digest
    render(template, CHAT)
    assert template.digest == before == small().digest == Template(**template.model_dump()).digest
    changed = [
        small(name="other"), small(separator="\n"), small(start="[S]"),
        small(reasoning={"open": "so: "}), small(special_tokens=["[A]", "[B]", "[S]", "[C]"]),
        small(turns={**SMALL["turns"], "user": {"header": "[A]", "end": "."}}),
    ]  # fmt: skip
    assert len({before, *(other.digest for other in changed)}) == 1 + len(changed)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"special_tokens": []}, "special_tokens"),
        ({"special_tokens": ["[A]", "[B]", "[A]"]}, "distinct"),
        ({"special_tokens": ["[B]", ""]}, "not empty"),
        ({"turns": {"assistant": {"end": "[B]"}}}, "turns: expected user too"),
        ({"turns": {"user": {}, "assistant": {"end": "\n"}}}, "the model stops at that token"),
        ({"turns": {"user": {}, "assistant": {"end": "[B]\n"}}}, "the model stops at that token"),
        ({"start": "[A]"}, "'\\[A\\]' stands in other strings too"),
        ({"reasoning": {"close": "[B]"}}, "no part may hold it"),
        ({"seperator": "\n"}, "did you mean 'separator'"),
        ({"turns": {"user": {}, "assistant": {"ends": "[B]"}}}, "ends"),
        ({"turns": {"human": {}}}, "human"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_the_reason(changes, reason):
    with pytest.raises(ConfigError, match=reason) as error:
        small(**changes)
    assert str(error.value).startswith("small.json: ")
    assert "\n" not in str(error.value)


def test_a_name_that_is_no_template_is_refused_with_the_names_that_are():
    with pytest.raises(ConfigError, match="no template 'chatlm'; expected alpaca, chatml, "):
        load_template("chatlm")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (say("tool", "4"), "no form for role 'tool', only for user, assistant"),
        (Message("assistant", (Part("reasoning", "hm"),)), "no form for reasoning parts"),
        (Message("assistant", (Part("tool_call", "f()"),)), "no form for tool_call parts"),
    ],
)
def test_what_a_template_has_no_form_for_is_refused_and_not_dropped(message, reason):
    with pytest.raises(DataError, match=reason):
        render(small(), Conversation((say("user", "Hi"), message), HERE))


def test_the_longest_special_token_is_found_first():
    tags = {"special_tokens": ["<a", "<a>", "<b>"], "turns": {"user": {"header": "<a><a"}}}
    template = small(**tags | {"turns": tags["turns"] | {"assistant": {"end": "<b>"}}})
    segments = render(template, Conversation((say("user", "x"),), HERE))
    assert [segment.special for segment in segments] == ["<a>", "<a", None]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "\ud800"}, "half of a surrogate pair"),
        ({"name": ""}, "name: String should have at least 1 character, found ''"),
        (
            {"special_tokens": []},
            "special_tokens: Tuple should have at least 1 item ",
        ),
        ({"turns": {"user": {}}}, "turns: expected assistant too"),
    ],
)
def test_what_is_wrong_with_an_own_file_is_said_in_plain_words(tmp_path, change, says):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(load_template("chatml").model_dump(mode="json") | change))
    with pytest.raises(ConfigError) as error:
        load_template(path)
    assert says in str(error.value)


QUOTING = (
    Message("user", (Part("context", "one"), Part("context", "two"), Part("text", "Who?"))),
    Message("assistant", (Part("text", "Ann"), Part("cite", "one"))),
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mypt", "<User><context>\none\n</context>\n\n<context>\ntwo\n</context>\n\nWho?</User>"
         "<Assistant>Ann<cite>one</cite></Assistant>"),
        ("documents", "<User><Context>one</Context><Context>two</Context>Who?</User>"
         "<Assistant>Ann<Cite>one</Cite></Assistant>"),
    ],
)  # fmt: skip
def test_documents_and_citations_stand_in_text_or_in_tokens_of_their_own(name, text):
    segments = render(FORMS[name], Conversation(QUOTING, HERE))
    assert written(segments) == text
    kinds = [KINDS[segment.kind] for segment in segments if segment.kind > KINDS.index("end")]
    assert set(kinds) == {"context", "cite"}
    own = {s.special for s in segments if KINDS[s.kind] in ("context", "cite")} - {None}
    assert len(own) == (4 if name == "documents" else 0)


def test_templates_of_before_keep_their_digests_and_can_quote():
    digests = {
        "mypt": "0b30d5b51e0d",
        "chatml": "daa4de5bc94b",
        "llama3": "8fedf2e3c2e4",
        "alpaca": "985486348c76",
        "plain": "9241a26436a7",
    }
    assert {name: FORMS[name].digest[:12] for name in digests} == digests
    silent = small(cite=None)
    assert small().digest != silent.digest
    with pytest.raises(DataError, match="no form for cite parts; choose another"):
        render(silent, Conversation(QUOTING, HERE))
