"""Several models behind one server: a request names its own, and the bounds hold over all."""

import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from mypt.inference.server import answering
from tests.mypt.inference.echo import Echo, byte_tokenizer, serving
from tests.mypt.inference.server.test_serving import client_of


class Shout(Echo):
    """Says it in capitals."""

    def _answer(self, read):
        return (token - 32 if 97 <= token <= 122 else token for token in super()._answer(read))


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def say(client, model, text):
    messages = [{"role": "user", "content": text}]
    found = client.chat.completions.create(model=model, messages=messages)
    assert found.model == model
    return found.choices[0].message.content


def waited(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_request_names_the_model_that_answers_it(tokenizer):
    others = {"shout": Shout(tokenizer), "mine/step_000100": Shout(tokenizer)}
    with serving(Echo(tokenizer), tokenizer, others=others) as url, client_of(url) as client:
        names = ["echo", "shout", "mine/step_000100"]
        assert [model.id for model in client.models.list().data] == names
        assert [client.models.retrieve(name).id for name in names] == names
        assert [say(client, name, "hi") for name in names] == ["hi", "HI", "HI"]
        with pytest.raises(openai.NotFoundError) as caught:
            say(client, "whisper", "hi")
        assert caught.value.body["code"] == "model_not_found"
        for name in ("whisper", *names):
            assert repr(name) in caught.value.body["message"]


def test_answers_of_several_models_are_written_at_once_a_model_a_step(tokenizer):
    echo, shout = Echo(tokenizer), Shout(tokenizer)
    texts = [f"{'x' * n} and {n}" for n in range(6)]
    with (
        serving(echo, tokenizer, at_once=12, others={"shout": shout}) as url,
        client_of(url) as client,
        ThreadPoolExecutor(12) as pool,
    ):
        echo.gate.clear()
        quiet = [pool.submit(say, client, "echo", text) for text in texts]
        loud = [pool.submit(say, client, "shout", text) for text in texts]
        time.sleep(0.5)
        echo.gate.set()
        assert [one.result() for one in quiet] == texts
        assert [one.result() for one in loud] == [text.upper() for text in texts]
    tokens = sum(len(text) + 1 for text in texts)
    assert max(echo.steps, shout.steps) < tokens / 2, "a step writes a token of several answers"


def test_what_all_models_keep_is_bounded_together(tokenizer, monkeypatch):
    echo, shout = Echo(tokenizer), Shout(tokenizer)
    monkeypatch.setattr(answering, "_MOST_KEPT", 3 * answering.bytes_of_row(echo) // 2)
    with (
        serving(echo, tokenizer, at_once=32, others={"shout": shout}) as url,
        client_of(url) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        echo.gate.clear()
        first = pool.submit(say, client, "echo", "first")
        time.sleep(0.3)
        second = pool.submit(say, client, "shout", "second")
        time.sleep(0.3)
        assert shout.steps == 0, "it waits until there is room"
        echo.gate.set()
        assert (first.result(), second.result()) == ("first", "SECOND")


def test_one_line_holds_the_requests_of_all_models(tokenizer):
    echo, shout = Echo(tokenizer), Shout(tokenizer)
    echo.gate.clear()
    with (
        serving(echo, tokenizer, waiting=1, others={"shout": shout}) as url,
        client_of(url) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        asked = [pool.submit(say, client, "echo", "one")]
        time.sleep(0.5)
        asked += [pool.submit(say, client, "shout", text) for text in ("two", "three")]
        waited(lambda: any(one.done() for one in asked))
        echo.gate.set()
        errors = [type(one.exception()) for one in asked]
    assert errors[0] is type(None)
    assert sorted(errors[1:], key=str) == [type(None), openai.RateLimitError]
