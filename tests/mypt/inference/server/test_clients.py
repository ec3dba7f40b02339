"""Other clients of OpenAI's protocol, each as its own documentation has it used."""

import json

import pydantic
import pytest

from mypt.data.tokenizer import load_tokenizer
from tests.mypt.inference import echo
from tests.mypt.inference.echo import Echo, serving
from tests.mypt.inference.server.test_serving import client_of
from tests.mypt.inference.server.test_tools import CALL, SMALL

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # some clients warn


class Person(pydantic.BaseModel):
    """Somebody."""

    name: str = pydantic.Field(max_length=5)
    alive: bool


@pytest.fixture(scope="module")
def url():
    tokenizer = load_tokenizer("byte")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(echo, "CONTEXT", 512)
        with serving(Echo(tokenizer), tokenizer) as url:
            yield url


@pytest.fixture(scope="module")
def random_url():
    """A model that writes anything, so that only a grammar makes it say what is asked."""
    pytest.importorskip("llguidance", reason="pip install 'mypt[structured]'")
    from tests.mypt.inference.server.test_constraints import untrained

    tokenizer = load_tokenizer("byte")
    with serving(untrained(tokenizer), tokenizer) as url:
        yield url


def both(a: bool, b: bool) -> bool:
    """Say whether both are true."""
    return a and b


def test_openais_own_helpers_parse_answers_and_tools(random_url):
    import openai

    with client_of(random_url) as client:
        asked = {"model": "echo", "messages": [{"role": "user", "content": "Who?"}], "seed": 1}
        found = client.chat.completions.parse(**asked, response_format=Person)
        assert isinstance(found.choices[0].message.parsed, Person)
        tool = openai.pydantic_function_tool(Person)
        found = client.chat.completions.parse(**asked, tools=[tool], tool_choice="required")
        (call,) = found.choices[0].message.tool_calls
        assert isinstance(call.function.parsed_arguments, Person)


def test_langchain_chats_streams_and_reads_calls(url):
    chat_models = pytest.importorskip("langchain_openai", reason="pip install langchain-openai")
    model = chat_models.ChatOpenAI(base_url=f"{url}/v1", api_key="none", model="echo")
    assert model.invoke("Hello").content == "Hello"
    assert "".join(piece.content for piece in model.stream("Hello you")) == "Hello you"
    assert [one.content for one in model.batch(["a", "b"])] == ["a", "b"]
    bound = model.bind_tools([SMALL])
    said = bound.invoke(f"Now {CALL}")
    (call,) = said.tool_calls
    assert (said.content, call["name"], call["args"]) == ("Now ", "add", {"a": 1})
    result = {"role": "tool", "content": "2", "tool_call_id": call["id"]}
    history = [{"role": "user", "content": "go"}, said, result, {"role": "user", "content": "ok"}]
    assert bound.invoke(history).content == "ok"
    whole = None
    for piece in bound.stream(CALL):
        whole = piece if whole is None else whole + piece
    assert [one["args"] for one in whole.tool_calls] == [{"a": 1}]
    measured = model.bind(logprobs=True, top_logprobs=2).invoke("Hi")
    assert len(measured.response_metadata["logprobs"]["content"]) == 2


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_langchain_gets_structured_output(random_url, method):
    chat_models = pytest.importorskip("langchain_openai", reason="pip install langchain-openai")
    model = chat_models.ChatOpenAI(
        base_url=f"{random_url}/v1", api_key="none", model="echo", seed=1, max_tokens=300
    )
    if method == "json_mode":
        model = model.bind(response_format={"type": "json_object"})
        assert model.invoke("Give JSON.").content.startswith("{")
        return
    found = model.with_structured_output(Person, method=method).invoke("Who?")
    assert isinstance(found, Person)
    called = model.bind_tools([both], tool_choice="both", strict=True).invoke("true and true")
    assert set(called.tool_calls[0]["args"]) == {"a", "b"}


def test_litellm_asks_and_streams(url, random_url, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it is fetched otherwise
    litellm = pytest.importorskip("litellm", reason="pip install litellm")
    asked = {"model": "openai/echo", "api_base": f"{url}/v1", "api_key": "none"}
    messages = [{"role": "user", "content": "Hello"}]
    found = litellm.completion(**asked, messages=messages, n=2)
    assert [one.message.content for one in found.choices] == ["Hello", "Hello"]
    pieces = litellm.completion(**asked, messages=messages, stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in pieces) == "Hello"
    said = [{"role": "user", "content": CALL}]
    (call,) = (
        litellm.completion(**asked, messages=said, tools=[SMALL]).choices[0].message.tool_calls
    )
    assert json.loads(call.function.arguments) == {"a": 1}
    text = asked | {"model": "text-completion-openai/echo", "api_base": f"{random_url}/v1"}
    found = litellm.text_completion(**text, prompt="Hi", max_tokens=2, logit_bias={"65": 100})
    assert found.choices[0].text == "AA"


def test_llm_of_the_command_line_asks(url, tmp_path, monkeypatch):
    llm = pytest.importorskip("llm", reason="pip install llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ours\n  model_name: echo\n  api_base: {url}/v1\n  api_key_name: none\n"
        "  supports_tools: true\n"
    )
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    model = llm.get_model("ours")
    assert model.prompt("Hello", key="x").text() == "Hello"
    assert "".join(model.prompt("Hello", key="x", stream=True)) == "Hello"
