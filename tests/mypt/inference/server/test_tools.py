"""Tools: shown to the model by its template, and its calls read back, whole and in a stream."""

import json

import openai
import pytest

from mypt.data.rendering.base_template import BaseTemplate
from mypt.data.template import load_template, template_names
from mypt.errors import ConfigError
from mypt.inference.server import protocol
from mypt.inference.server.tools import CallReader, call_form
from tests.mypt.data.rendering import bases
from tests.mypt.inference import echo
from tests.mypt.inference.echo import Echo, byte_tokenizer, serving
from tests.mypt.inference.server.test_serving import answered, client_of

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
MISTRAL = """\
{%- if tools %}{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '[INST] ' + message.content + '[/INST]' }}
    {%- elif message.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {{- '{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- ', "id": "' + call.id + '"}' + ('' if loop.last else ', ') }}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- else %}{{- ' ' + message.content + eos_token }}{% endif %}
{%- endfor %}"""
DEEPSEEK = """\
{%- if tools %}{{- tools | tojson }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- '<User>' + message.content + '<Assistant>' }}
    {%- elif message.tool_calls %}
        {{- '<calls>' }}
        {%- for call in message.tool_calls %}
            {{- ('' if loop.first else '\\n') + '<call>function<sep>' + call.function.name }}
            {{- '\\n```json\\n' + call.function.arguments | tojson + '\\n```</call>' }}
        {%- endfor %}
        {{- '</calls>' + eos_token }}
    {%- else %}{{- message.content + eos_token }}{% endif %}
{%- endfor %}"""
LLAMA = bases.LLAMA.replace("{{- bos_token }}", "{{- bos_token }}{{- tools | tojson }}", 1)


def base(source):
    return BaseTemplate(
        source=source, variables={"bos_token": "<s>", "eos_token": "</s>"}, stop="</s>"
    )


def called(text, template):
    """What an answer says and calls, read whole and letter by letter."""
    form = call_form(template)
    said, calls = form.read(text)
    for size in (1, 7):
        reader = CallReader(form)
        bits = [reader.add(text[n : n + size]) for n in range(0, len(text), size)]
        rest, found = reader.end()
        assert "".join([*bits, rest]) == said
        assert [one["function"] for one in found] == [one["function"] for one in calls]
    return said, [(one["function"]["name"], one["function"]["arguments"]) for one in calls]


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (base(bases.QWEN), '<tool_call>\n{"name": "f", "arguments": {"a": {"b": [1]}}}\n'
         '</tool_call>\n<tool_call>{"name":"g",\n"arguments":{}}</tool_call>'),
        (base(MISTRAL), '[TOOL_CALLS] [{"name": "f", "arguments": {"a": {"b": [1]}}, "id": "Ab3"},'
         ' {"name": "g", "arguments": {}, "id": "x9"}]'),
        (base(DEEPSEEK), '<calls><call>function<sep>f\n```json\n{"a": {"b": [1]}}\n```</call>\n'
         "<call>function<sep>g\n```json\n{}\n```</call></calls>"),
    ],
)  # fmt: skip
def test_calls_are_read_as_the_bases_template_writes_them(template, written):
    expected = [("f", '{"a": {"b": [1]}}'), ("g", "{}")]
    assert called(written, template) == ("", expected)
    assert called("Let me see." + written, template) == ("Let me see.", expected)
    assert called(written[:-6], template)[1] == expected  # its end may be missing


def test_a_template_that_marks_no_call_begins_its_answer_with_it():
    template = base(LLAMA)
    written = '{"name": "f", "parameters": {"a": 1}}'
    assert called(written, template) == ("", [("f", '{"a": 1}')])
    assert called(f"\n{written}", template)[1] == [("f", '{"a": 1}')]
    for text in (f"So: {written}", '{"name": 3}', "{", "hello", '{"name": "f", "parameters": 1}'):
        assert called(text, template) == (text, [])


@pytest.mark.parametrize("name", template_names())
def test_our_own_templates_write_calls_as_training_spells_them(name):
    template = load_template(name)
    form = template.tool_call
    call = f'{form.open}{{"name": "add", "arguments": {{"a": 1}}}}{form.close}'
    said, calls = called(call + call, template)
    assert (said.strip(), calls) == ("", [("add", '{"a": 1}')] * 2)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>", "<tool_call>\n{}", '<tool_call>{"name": "f", "arguments": NaN}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "a < b <tool_c",
        '<tool_call>{"name": "f", "arguments": ' + '{"a":' * 5000, "</tool_call>",
        '<tool_call>{"name": "f g", "arguments": {}}</tool_call>',
    ],
)  # fmt: skip
def test_what_is_no_call_stays_text(text):
    assert called(text, base(bases.QWEN)) == (text, [])


def test_prose_that_names_the_mark_hides_no_call_behind_it():
    text = 'I write <tool_call> now: <tool_call>{"name": "f", "arguments": {}}</tool_call>'
    said, calls = called(text, base(bases.QWEN))
    assert (said, calls) == ("I write <tool_call> now: ", [("f", "{}")])


@pytest.mark.parametrize("source", [bases.CHATML, bases.LLAMA, bases.MISTRAL, bases.GLM_CALLS])
def test_a_template_without_tools_refuses_them_in_one_line(source):
    with pytest.raises(ConfigError, match="no form for tools"):
        call_form(base(source))


def test_the_prompt_lists_the_tools_as_training_does():
    asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL]}
    first, _ = protocol.ChatRequest(**asked).conversation()
    assert (first.role, first.text) == ("system", f"Tools:\n{json.dumps([TOOL])}")
    strict = TOOL | {"function": TOOL["function"] | {"strict": True}}
    assert protocol.ChatRequest(**asked | {"tools": [strict]}).conversation()[0] == first
    (only,) = protocol.ChatRequest(**asked, tool_choice="none").conversation()
    assert only.role == "user"


@pytest.fixture(scope="module")
def client():
    tokenizer = byte_tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(echo, "CONTEXT", 512)
        with serving(Echo(tokenizer), tokenizer) as url, client_of(url) as client:
            yield client


CALL = '<ToolCall>{"name": "add", "arguments": {"a": 1}}</ToolCall>'
SMALL = {"type": "function", "function": {"name": "add"}}


def ask(client, text, **choices):
    messages = [{"role": "user", "content": text}]
    asked = {"messages": messages, "tools": [SMALL]} | choices
    return client.chat.completions.create(model="echo", **asked)


def test_a_call_comes_back_as_the_protocol_has_it_and_its_result_is_read(client):
    (choice,) = ask(client, f"Adding. {CALL}").choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Adding. "
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, call.function.arguments) == (
        "function",
        "add",
        '{"a": 1}',
    )
    history = [
        {"role": "user", "content": "a"},
        choice.message.model_dump(exclude_unset=True),
        {"role": "tool", "tool_call_id": call.id, "content": "2"},
    ]
    found = ask(client, "", messages=[*history, {"role": "user", "content": "and"}])
    assert found.choices[0].message.content == "and"
    assert found.choices[0].finish_reason == "stop"
    assert ask(client, CALL).choices[0].message.content is None
    assert ask(client, CALL, tool_choice="none").choices[0].message.content == CALL
    assert ask(client, CALL, tools=[]).choices[0].message.content == CALL


def test_a_stream_gives_text_at_once_and_calls_when_they_are_whole(client):
    text, calls, ends = "", [], []
    for event in ask(client, f"Two: {CALL}{CALL}", stream=True):
        (choice,) = event.choices
        text += choice.delta.content or ""
        calls += choice.delta.tool_calls or []
        ends += [choice.finish_reason] if choice.finish_reason else []
    assert text == "Two: "
    assert [(one.index, one.function.name) for one in calls] == [(0, "add"), (1, "add")]
    assert len({one.id for one in calls}) == 2
    assert ends == ["tool_calls"]
    with client.chat.completions.stream(
        model="echo", messages=[{"role": "user", "content": CALL}], tools=[SMALL]
    ) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert call.function.arguments == '{"a": 1}'


@pytest.mark.parametrize(
    ("choices", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a", "why": 1}}]}, "tools"),
        ({"tools": [SMALL] * 129}, "tools"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "sub"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"extra_body": {"functions": [{"name": "add"}]}}, "functions"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
    ],
)  # fmt: skip
def test_what_is_no_tool_is_refused_by_name(client, choices, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "Hi", **choices)
    assert caught.value.body["param"].partition(".")[0] == param
    assert "\n" not in caught.value.body["message"]


@pytest.mark.parametrize("depth", [50, 400, 900, 950, 970, 980, 990, 1000])
@pytest.mark.parametrize(
    "field",
    [
        '"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": DEEP}}}]',
        '"response_format": {"type": "json_schema",'
        ' "json_schema": {"name": "s", "schema": {"enum": [DEEP]}}}',
    ],
)
def test_schemas_of_any_depth_get_an_answer(client, depth, field):
    nested = field.replace("DEEP", "[" * depth + "]" * depth)
    body = f'{{"model": "echo", "messages": [{{"role": "user", "content": "Hi"}}], {nested}}}'
    url = str(client.base_url) + "chat/completions"
    status, said = answered(url, body.encode())
    assert status in (200, 400), said
    assert b"\n" not in said
