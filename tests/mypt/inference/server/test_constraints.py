"""Answers in JSON and calls of tools that cannot be anything else, by an untrained model."""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from itertools import islice

import jsonschema
import openai
import pytest
import torch

from mypt.config import GPTConfig
from mypt.data.tokenizer import load_tokenizer, train_tokenizer
from mypt.errors import ConfigError
from mypt.inference.server.tools import Tool, call_form
from mypt.model.gpt import GPT
from tests.mypt.inference.echo import serving
from tests.mypt.inference.server.test_serving import client_of

llguidance = pytest.importorskip("llguidance", reason="pip install 'mypt[structured]'")

from mypt.inference.server.constraints import call_grammar, json_grammar  # noqa: E402

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "pets": {"type": "array", "items": {"enum": ["cat", "dog"]}, "maxItems": 2},
    },
    "required": ["name", "age", "pets"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON, "strict": True}}
ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": ADD}} for name in ("add", "sub")
]
TEXT = 'She said: {"name": "Ann", "age": 3}, and he did so. ' * 20


def untrained(tokenizer):
    torch.manual_seed(1)
    sizes = {"block_size": 1024, "n_layer": 1, "n_head": 2, "n_embd": 16}
    model = GPT(GPTConfig(vocab_size=tokenizer.n_vocab + 9, **sizes)).eval()
    model.gate = type("Open", (), {"set": lambda _: None})()
    return model


@pytest.fixture(scope="module", params=["byte", "bpe:300"])
def client(request):
    name = request.param
    tokenizer = (
        load_tokenizer("byte", "chatml") if name == "byte" else train_tokenizer(name, [TEXT])
    )
    with serving(untrained(tokenizer), tokenizer, at_once=8) as url, client_of(url) as client:
        yield client


def ask(client, **choices):
    asked = {"messages": [{"role": "user", "content": "Hi"}], "seed": 5} | choices
    return client.chat.completions.create(model="echo", **asked)


def test_an_answer_holds_to_its_schema_whatever_the_model_would_rather_write(client):
    for seed in range(4):
        (choice,) = ask(client, response_format=FORMAT, seed=seed).choices
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), PERSON)
    free = ask(client, max_tokens=40).choices[0].message.content
    with pytest.raises(ValueError, match=r"."):
        json.loads(free)


def test_others_in_the_batch_are_as_they_are_alone_and_streams_are_the_same(client):
    alone = ask(client, n=3, response_format=FORMAT).choices
    texts = [one.message.content for one in alone]
    assert len(set(texts)) == 3
    streamed = ["", "", ""]
    for event in ask(client, n=3, response_format=FORMAT, stream=True):
        (choice,) = event.choices
        streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    single = ask(client, response_format=FORMAT, seed=6).choices[0].message.content
    assert single == texts[1]


def test_any_object_is_one(client):
    for seed in range(3):
        bias = {str(b): -100 for b in b"abcdefghijklmnopqrstuvwxyz"}
        (choice,) = ask(
            client, response_format={"type": "json_object"}, seed=seed, max_tokens=200,
            logit_bias=bias | {"125": 8},
        ).choices  # fmt: skip
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)
        assert choice.message.content.startswith("{")


def test_a_tool_is_called_where_one_must_be_and_the_named_one_where_it_is_named(client):
    names = set()
    for seed in range(6):
        (choice,) = ask(client, tools=TOOLS, tool_choice="required", seed=seed).choices
        (call,) = choice.message.tool_calls
        names.add(call.function.name)
        jsonschema.validate(json.loads(call.function.arguments), ADD)
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert names == {"add", "sub"}
    named = {"type": "function", "function": {"name": "sub"}}
    for seed in range(3):
        (choice,) = ask(client, tools=TOOLS, tool_choice=named, seed=seed).choices
        assert choice.message.tool_calls[0].function.name == "sub"


def test_a_strict_tool_may_be_called_and_then_surely_as_its_schema_says(client):
    tools = [{"type": "function", "function": one["function"] | {"strict": True}} for one in TOOLS]
    called = 0
    for seed in range(12):
        (choice,) = ask(client, tools=tools, seed=seed, max_tokens=300, temperature=1.5).choices
        for call in choice.message.tool_calls or ():
            jsonschema.validate(json.loads(call.function.arguments), ADD)
            called += 1
    assert called


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "wrong"}, "Invalid type"),
        ({"$ref": "http://a.example/b"}, "retriev"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"enum": ["x" * 70_000]}, "65,536"),
    ],
)
def test_a_schema_that_cannot_be_held_is_refused_in_one_line(client, schema, said):
    form = {"type": "json_schema", "json_schema": {"name": "p", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        ask(client, response_format=form)
    assert caught.value.body["param"] == "response_format"
    assert "\n" not in caught.value.body["message"]
    assert len(caught.value.body["message"]) < 300


def nested(depth):
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "string"}


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [f"x{n}" for n in range(8000)]},
        {"type": "object", "properties": {f"k{n}": {"type": "string"} for n in range(1500)}},
        {"type": "string", "pattern": "(a{1,1000}){1,1000}"},
        {"type": "string", "pattern": "(.*a){1,300}"},
        {"allOf": [{"anyOf": [{"required": [f"a{n}"]}, {"minItems": n}]} for n in range(40)]},
        {"$defs": {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(200)},
         "$ref": "#/$defs/d0"},
        nested(60),
    ],
)  # fmt: skip
def test_no_schema_holds_the_server(client, schema):
    form = {"type": "json_schema", "json_schema": {"name": "p", "schema": schema}}
    begun = time.monotonic()
    with suppress(openai.BadRequestError, openai.InternalServerError):
        ask(client, response_format=form, max_tokens=20)
    assert time.monotonic() - begun < 20
    assert ask(client, max_tokens=2).choices


def test_an_answer_whose_grammar_fails_ends_alone(client, monkeypatch):
    from mypt.inference.server import constraints

    monkeypatch.setattr(constraints.Grammar, "mask", broken)
    with pytest.raises(openai.BadRequestError, match="the schema is too complex"):
        ask(client, response_format=FORMAT)
    assert ask(client, max_tokens=2).choices


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_proves_too_complex_is_refused_and_stands_in_no_log(
    client, stream, caplog, capfd
):
    keys = {f"k{n}": {"type": "string", "pattern": f"^a{n}$"} for n in range(1000)}
    schema = {"type": "object", "properties": keys}
    form = {"type": "json_schema", "json_schema": {"name": "p", "schema": schema}}
    with pytest.raises(openai.APIError, match="the schema is too complex") as caught:
        list(ask(client, response_format=form, stream=stream))
    assert len(caught.value.body["message"]) < 400
    (line,) = caplog.messages
    assert len(line) < 400
    assert not capfd.readouterr().err


def test_nobody_waits_for_the_grammar_of_another(client, monkeypatch):
    from mypt.inference.server import choices

    begun, held = threading.Event(), threading.Event()
    make = choices.json_grammar

    def slow(*given):
        begun.set()
        assert held.wait(60)
        return make(*given)

    monkeypatch.setattr(choices, "json_grammar", slow)
    with ThreadPoolExecutor(70) as pool:
        asked = [pool.submit(ask, client, response_format=FORMAT, seed=n) for n in range(66)]
        assert begun.wait(30)
        assert ask(client, max_tokens=2).choices
        refused = [one.exception() for one in islice(as_completed(asked), 2)]
        held.set()
    assert {type(error) for error in refused} == {openai.RateLimitError}


def test_a_prompt_too_long_is_refused_before_its_grammar_is_made(client, monkeypatch):
    from mypt.inference.server import choices

    monkeypatch.setattr(choices, "json_grammar", None)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, response_format=FORMAT, messages=[{"role": "user", "content": "x" * 5000}])
    assert caught.value.body["code"] == "context_length_exceeded"


def test_schemas_are_bounded_together():
    large = {"type": "object", "description": "x" * 20_000}
    tools = [{"type": "function", "function": {"name": f"f{n}", "parameters": large}}
             for n in range(4)]  # fmt: skip
    tokenizer = load_tokenizer("byte", "chatml")
    form = call_form(tokenizer.template)
    listed = [Tool.model_validate(tool) for tool in tools]
    with pytest.raises(ConfigError, match="schemas of 80,"):
        call_grammar(untrained(tokenizer), tokenizer, form, listed, must=True)
    assert call_grammar(untrained(tokenizer), tokenizer, form, listed[:3], must=True)


def broken(grammar):
    grammar.error = "too complex"
    return torch.ones(grammar._size, dtype=torch.bool)


def test_without_the_library_it_is_refused_in_one_line(monkeypatch):
    tokenizer = load_tokenizer("byte")
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"pip install 'mypt\[structured\]'"):
        json_grammar(untrained(tokenizer), tokenizer, PERSON)
