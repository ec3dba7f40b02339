"""The server, asked by the official client: answers, streams, refusals, many at once."""

import json
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.parse import urlsplit

import openai
import pytest
import torch

from mypt.config import GPTConfig
from mypt.errors import ConfigError
from mypt.inference.generation import OpenRow
from mypt.inference.server import protocol
from mypt.inference.server.answering import bytes_of_row
from mypt.inference.server.serving import MOST_BYTES, listen
from mypt.model.gpt import GPT
from tests.mypt.inference.echo import CONTEXT, Echo, byte_tokenizer, serving


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def url(tokenizer):
    with serving(Echo(tokenizer), tokenizer) as url:
        yield url


def client_of(url, key="unused"):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def client(url):
    with client_of(url) as client:
        yield client


def say(client, text, **choices):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="echo", messages=messages, **choices)


def test_the_client_lists_the_model(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("echo", "model", "mypt")
    assert client.models.retrieve("echo").id == "echo"


def test_an_answer_has_text_reason_and_counts(client):
    found = say(client, "Grüß Gott 😀")
    (choice,) = found.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Grüß Gott 😀")
    assert choice.finish_reason == "stop"
    n_bytes = len("Grüß Gott 😀".encode())
    assert found.usage.completion_tokens == n_bytes + 1
    assert found.usage.prompt_tokens == n_bytes + 3  # <User>, </User>, <Assistant>
    assert found.usage.total_tokens == found.usage.prompt_tokens + n_bytes + 1
    assert found.id.startswith("chatcmpl-")
    assert found.id != say(client, "Hi").id


def test_a_stream_is_the_same_answer_in_pieces(client):
    events = list(say(client, "Grüß 😀!", stream=True, stream_options={"include_usage": True}))
    assert events[0].choices[0].delta.role == "assistant"
    texts = [event.choices[0].delta.content or "" for event in events[:-1]]
    assert "".join(texts) == "Grüß 😀!"
    assert len([text for text in texts if text]) == 7  # a character at a time, never half of one
    assert events[-2].choices[0].finish_reason == "stop"
    assert events[-1].choices == []
    assert events[-1].usage == say(client, "Grüß 😀!").usage
    assert [e.usage for e in say(client, "a", stream=True)] == [None] * 2


def test_stop_strings_end_an_answer_and_do_not_belong_to_it(client):
    assert say(client, "one, two, three", stop="two").choices[0].message.content == "one, "
    assert say(client, "one, two", stop=["x", "e,", "two"]).choices[0].message.content == "on"
    assert say(client, "abab", stop=["abac"]).choices[0].message.content == "abab"
    streamed = say(client, "one, twig, two", stop=["two"], stream=True)
    text = "".join(event.choices[0].delta.content or "" for event in streamed)
    assert text == "one, twig, "


def test_endless_stops_and_countless_parameters_hold_nobody(url, client):
    start = time.monotonic()
    assert say(client, "one, two", stop="x" * 10**6).choices[0].message.content == "one, two"
    many = json.dumps({f"k{n}": 1 for n in range(300_000)}).encode()
    status, said = answered(f"{url}/v1/chat/completions", many)
    assert (status, json.loads(said)["error"]["param"]) == (400, "k0")
    assert time.monotonic() - start < 10


def test_an_answer_that_is_cut_off_says_so(client):
    short = say(client, "too long", max_tokens=3)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("too", "length")
    assert say(client, "too long", max_completion_tokens=2).usage.completion_tokens == 2
    full = say(client, "x" * (CONTEXT - 10))
    assert full.choices[0].finish_reason == "length"
    assert full.usage.total_tokens == CONTEXT + 1  # the last token is never read again


def test_a_long_conversation_goes_on_and_the_answer_says_what_left_it(client):
    system = {"role": "system", "content": "Be kind."}
    turns = [{"role": "user", "content": "x" * 40}, {"role": "assistant", "content": "y" * 40}]
    last = {"role": "user", "content": "still there?"}
    for n_turns, left_out in ((1, 0), (5, 4)):
        asked = {"model": "echo", "messages": [system, *turns * n_turns, last], "max_tokens": 100}
        whole = client.chat.completions.create(**asked)
        assert whole.choices[0].message.content == "still there?"
        assert whole.model_extra["turns_left_out"] == left_out
        assert whole.usage.prompt_tokens <= CONTEXT - 100
        with client.chat.completions.create(**asked, stream=True) as events:
            assert events.response.headers["x-mypt-turns-left-out"] == str(left_out)
            assert {event.model_extra["turns_left_out"] for event in events} == {left_out}


def test_history_system_message_and_parts_are_read(client):
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": text} for text in ("sec", "ond")]},
    ]  # fmt: skip
    found = client.chat.completions.create(model="echo", messages=messages, temperature=0)
    assert found.choices[0].message.content == "second"


def test_documents_and_citations_are_read_as_training_writes_them(client):
    cited = [{"type": "text", "text": "Ann."}, {"type": "cite", "text": "p. 1"}]
    quoting = [{"type": "document", "text": "A book."}, {"type": "text", "text": "Who?"}]
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": cited},
        {"role": "user", "content": quoting},
    ]  # fmt: skip
    found = client.chat.completions.create(model="echo", messages=messages, temperature=0)
    written = "<context>\nA book.\n</context>\n\nWho?"
    assert found.choices[0].message.content == written
    tags = 2 * 3 + 1
    assert found.usage.prompt_tokens == len(f"firstAnn.<cite>p. 1</cite>{written}") + tags


def test_what_means_nothing_is_taken_and_what_cannot_be_done_is_refused(client):
    neutral = {"n": 1, "store": False, "logprobs": False, "user": "me", "tools": []}
    beyond = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}
    assert say(client, "Hi", **neutral, seed=-3, top_p=0.9, extra_body=beyond)
    for choices in (
        {"store": True}, {"modalities": ["audio"]}, {"temperature": 3},
        {"temperature": 5e-324},
        {"stop": ""}, {"stop": list("abcde")},
        {"max_tokens": 0}, {"extra_body": {"colour": 1}},
        # Python takes these for 1, 0 and False.
        {"n": True}, {"n": 1.0}, {"presence_penalty": False}, {"logprobs": 0},
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            say(client, "Hi", **choices)
        name = next(iter(choices.get("extra_body", choices)))
        assert caught.value.body["param"] == name
        assert name in caught.value.body["message"]


def test_a_wrong_model_a_long_prompt_and_odd_messages_are_refused_in_the_protocols_form(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "Hi"}])
    assert caught.value.body["code"] == "model_not_found"
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="at most 256") as caught:
            say(client, "x" * CONTEXT, stream=stream)
        assert caught.value.body["code"] == "context_length_exceeded"
    for messages in (
        [], [{"role": "robot", "content": "Hi"}], [{"role": "user"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError, match="messages"):
            client.chat.completions.create(model="echo", messages=messages)


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ({"role": "user", "content": "Hi", "name": "Ann"}, "'name' of a message"),
        ({"role": "user", "content": [{"text": "Hi", "citations": [1]}]}, "'citations' of a part"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "why": 1}]}, "'why' of a tool call"),
    ],
)
def test_a_field_of_a_message_that_is_not_read_is_refused_by_name(message, name):
    asked = protocol.ChatRequest(model="m", messages=[{"role": "user", "content": "a"}, message])
    with pytest.raises(protocol.Refused, match=rf"^messages\[1\]: .* does not read {name}"):
        asked.conversation()


def test_messages_are_read_as_those_of_training_data():
    calls = [{"id": key, "function": {"name": "f"}} for key in "ab"]
    thought = "<think>\nhm\n</think>\n\nso"
    messages = [
        {"role": "assistant", "content": thought, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "b", "content": "2"},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
    ]
    read = protocol.ChatRequest(model="m", messages=messages).conversation()
    assert [part.kind for part in read[0].parts] == ["reasoning", "text", "tool_call", "tool_call"]
    assert [message.text for message in read[1:]] == ["1", "2"]
    messages[2]["tool_call_id"] = "c"
    with pytest.raises(protocol.Refused, match=r"^messages\[2\]: a result of the call 'c'"):
        protocol.ChatRequest(model="m", messages=messages).conversation()


def answered(url, body=b"{}", **headers):
    request = urllib.request.Request(url, body, {"content-type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


def test_what_is_no_request_gets_an_error_too(url):
    chat = f"{url}/v1/chat/completions"
    for address, body, headers, status in (
        (chat, b"{", {}, 400),
        (chat, b"[" * 100_000, {}, 400),
        (chat, b"[]", {}, 400),
        (chat, b"{}", {"content-type": "text/plain"}, 415),
        (chat, b" " * (MOST_BYTES + 1), {}, 413),
        (chat, b"{}", {"host": "evil.example"}, 403),
        (f"{url}/v1/embeddings", b"{}", {}, 404),
        (f"{url}/v1/models", b"{}", {}, 405),
    ):
        found, said = answered(address, body, **headers)
        assert (found, json.loads(said)["error"]["type"]) == (status, "invalid_request_error")


@pytest.mark.parametrize(
    "hosts",
    [
        ["a`b.evil.com"], ['a"b.evil.com'], ["a{b}.evil.com"], ["evil.com:"], ["evil.com:70000"],
        ["evil.com/@localhost"], ["["], ["localhost, evil.com"], [""], [], ["localhost:0"],
        ["localhost:65536"], ["localhost:"], ["user@localhost"], ["[localhost]"], ["localhost#"],
        ["localhost", "localhost"], ["localhost", "evil.com"], ["[127.0.0.1]"], ["::1"],
    ],
)  # fmt: skip
def test_a_name_that_is_none_is_not_answered(url, hosts):
    assert by_name(url, "/v1/models", hosts) in (400, 403)  # some are no HTTP either
    assert by_name(url, "/elsewhere", hosts) in (400, 404)


@pytest.mark.parametrize("host", ["LOCALHOST", "localhost:65535", "127.0.0.1:1", "[::1]:8000"])
def test_this_machine_is_asked_by_each_of_its_names(url, host):
    assert by_name(url, "/v1/models", [host]) == 200


def by_name(url, path, hosts):
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), 30) as connection:
        head = "".join(f"Host: {host}\r\n" for host in hosts)
        version = "1.1" if hosts else "1.0"
        connection.sendall(f"GET {path} HTTP/{version}\r\n{head}\r\n".encode())
        return int(connection.recv(4096).split()[1])


@pytest.mark.parametrize(
    "fields",
    [
        {"LONG": 1},
        {"model": "LONG"},
        {"messages": [{"role": "user", "content": "Hi", "LONG": 1}]},
        {"stream_options": {"LONG": 1}},
        {"logit_bias": {"LONG": 1}},
        {"tools": [{"type": "function", "function": {"name": "f"}}],
         "tool_choice": {"type": "function", "function": {"name": "LONG"}}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["\x1b[31m" * 100_000, "\u202e" + "x" * 10**6])
def test_names_that_a_client_makes_up_are_shortened_and_made_visible(url, fields, name):
    asked = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]} | fields
    body = json.dumps(asked).replace("LONG", json.dumps(name)[1:-1]).encode()
    status, said = answered(f"{url}/v1/chat/completions", body)
    error = json.loads(said)["error"]
    assert status in (400, 404)
    assert len(said) < 800
    assert (error["message"] + (error["param"] or "")).isprintable()


def test_the_kind_of_a_body_is_told_in_letters_of_any_size(url):
    kinds = {"content-type": "APPLICATION/JSON; charset=utf-8"}
    assert answered(f"{url}/v1/chat/completions", b"{", **kinds)[0] == 400


@pytest.mark.parametrize("key", [" 1", "01", "+1", "1 ", "1_0", "-0", "\u0661", "1.0", ""])
def test_an_id_is_spelled_in_one_way(url, key):
    asked = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
    body = json.dumps(asked | {"logit_bias": {key: 1}}).encode()
    status, said = answered(f"{url}/v1/chat/completions", body)
    assert status == 400
    assert json.loads(said)["error"]["param"].startswith("logit_bias")


def test_an_empty_prompt_is_not_called_too_long(url):
    body = json.dumps({"model": "echo", "prompt": [[]]}).encode()
    status, said = answered(f"{url}/v1/completions", body)
    assert (status, json.loads(said)["error"]["code"]) == (400, None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (r'{"model": "echo", "messages": [{"role": "user", "content": "\ud800"}]}', "messages"),
        (r'{"model": "\udfff", "messages": [{"role": "user", "content": "Hi"}]}', "model"),
        (r'{"stop": ["a", "\ud83d"], "messages": []}', "stop"),
        (r'{"user": "\ude00\ud83d"}', "user"),
        (r'{"\ud800": 1}', "\\ud800"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_by_name(url, body, param):
    status, said = answered(f"{url}/v1/chat/completions", body.encode())
    error = json.loads(said)["error"]
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"].startswith(f"{param}: \\ud")


def test_a_whole_surrogate_pair_is_a_character(url):
    body = rb'{"model": "echo", "messages": [{"role": "user", "content": "\ud83d\ude00"}]}'
    status, said = answered(f"{url}/v1/chat/completions", body)
    assert status == 200
    assert json.loads(said)["choices"][0]["message"]["content"] == "😀"


@pytest.mark.parametrize("depth", [100, 500, 900, 950, 970, 980, 990, 1000])
def test_any_depth_gets_an_answer(url, depth):
    nested = "[" * depth + "]" * depth
    body = f'{{"model": "echo", "messages": [{{"role": "user", "content": {nested}}}]}}'
    status, said = answered(f"{url}/v1/chat/completions", body.encode())
    error = json.loads(said)["error"]
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert "recursion" not in error["message"]


@pytest.mark.parametrize("depth", [250, 600])
def test_what_is_nested_too_deeply_is_named(url, depth):
    nested = "[" * depth + "]" * depth
    body = f'{{"model": "echo", "messages": [{{"role": "user", "content": {nested}}}]}}'
    error = json.loads(answered(f"{url}/v1/chat/completions", body.encode())[1])["error"]
    assert (error["message"], error["param"]) == ("messages: nested too deeply", "messages")


def test_a_key_is_asked_for_where_one_is_set(tokenizer):
    with serving(Echo(tokenizer), tokenizer, api_key="sésame") as url:
        with client_of(url, "guess") as client, pytest.raises(openai.AuthenticationError) as caught:
            say(client, "Hi")
        assert caught.value.body["code"] == "invalid_api_key"
        status, said = answered(f"{url}/v1/models", None)
        assert (status, b"sesame" in said) == (401, False)
        with urllib.request.urlopen(url, timeout=30) as page:  # asks people for the key
            assert 'id="key"' in page.read().decode()


def test_other_machines_are_let_in_only_with_a_key():
    with pytest.raises(ConfigError, match="MYPT_API_KEY"):
        listen("0.0.0.0", 0, None)
    listen("0.0.0.0", 0, "key").close()


def test_32_clients_at_once_each_get_their_own_answer(client):
    texts = [f"client {n} says {'x' * n}" for n in range(32)]
    with ThreadPoolExecutor(32) as pool:
        whole = pool.map(lambda text: say(client, text).choices[0].message.content, texts)
        assert list(whole) == texts
        streams = pool.map(
            lambda t: "".join(
                e.choices[0].delta.content or "" for e in say(client, t, stream=True)
            ),
            texts,
        )
        assert list(streams) == texts


def test_beyond_the_line_the_answer_is_429_and_nobody_in_it_is_lost(tokenizer):
    model = Echo(tokenizer)
    model.gate.clear()
    with (
        serving(model, tokenizer, waiting=2) as url,
        client_of(url) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        asked = [pool.submit(say, client, f"number {n}") for n in range(8)]
        while sum(one.done() for one in asked) < 5:  # one is answered, two wait
            time.sleep(0.01)
        model.gate.set()
        kept = [one.result() for one in asked if one.exception() is None]
        assert len(kept) == 3
        assert {type(one.exception()) for one in asked} == {type(None), openai.RateLimitError}
        assert say(client, "again").choices[0].message.content == "again"


def test_several_are_answered_at_once_each_as_it_would_be_alone(tokenizer):
    model = Echo(tokenizer)
    texts = ["short", "a text that is longer", "x", "another one", "and the last of all"]
    with (
        serving(model, tokenizer, at_once=4) as url,
        client_of(url) as client,
        ThreadPoolExecutor(5) as pool,
    ):
        model.gate.clear()
        asked = [pool.submit(say, client, text) for text in texts]
        time.sleep(0.5)
        model.gate.set()
        found = [one.result().choices[0] for one in asked]
    assert [one.message.content for one in found] == texts
    assert {one.finish_reason for one in found} == {"stop"}
    tokens = sum(len(text) + 1 for text in texts)
    assert model.steps < tokens - 20, "a step writes a token of several answers"


def _only_the_bad_one_fails(model, tokenizer):
    """Three are answered at once, and the second of them cannot be."""
    with (
        serving(model, tokenizer, at_once=4) as url,
        client_of(url) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        model.gate.clear()
        asked = {text: pool.submit(say, client, text) for text in ("g1", "bad", "g2")}
        time.sleep(0.5)
        model.gate.set()
        for text in ("g1", "g2"):
            assert asked[text].result().choices[0].message.content == text
        assert isinstance(asked["bad"].exception(), openai.InternalServerError)


def test_an_answer_that_fails_takes_none_of_the_others_with_it(tokenizer):
    model = Echo(tokenizer)
    answer = model._answer

    def fails(read):
        if set(b"bad") >= {token for token in read if 96 < token < 123}:
            raise RuntimeError("cannot be read")
        return answer(read)

    model._answer = fails
    _only_the_bad_one_fails(model, tokenizer)


@pytest.mark.parametrize("stage", ["bend", "take"])
def test_an_answer_without_a_next_token_takes_none_of_the_others_with_it(
    tokenizer, monkeypatch, stage
):
    model, work = Echo(tokenizer), getattr(OpenRow, stage)

    def fails(row, *given):
        if set(b"bad") >= {token for token in row.ids if 96 < token < 123}:
            raise RuntimeError("no token")
        return work(row, *given)

    monkeypatch.setattr(OpenRow, stage, fails)
    _only_the_bad_one_fails(model, tokenizer)


def test_what_answers_keep_is_bounded():
    small = GPT(GPTConfig(block_size=64, vocab_size=64, n_layer=1, n_head=1, n_embd=8))
    assert bytes_of_row(small) == 2 * 64 * 8 * 4
    with torch.device("meta"):
        large = GPT(GPTConfig(block_size=8192, vocab_size=64, n_layer=24, n_head=16, n_embd=1024))
    assert bytes_of_row(large) == 2 * 24 * 8192 * 1024 * 4


def test_who_leaves_gives_up_the_place(tokenizer):
    model = Echo(tokenizer, endless=True)
    with serving(model, tokenizer) as url, client_of(url) as client:
        slow = threading.Event()
        wait, model.gate.wait = model.gate.wait, lambda _=None: slow.wait(0.02) or wait()
        stream = say(client, "on and on", stream=True)
        next(iter(stream))
        stream.close()
        slow.set()
        assert say(client, "b", max_tokens=2).choices[0].message.content == "bb"
        assert model.steps < CONTEXT


def begin(url, text):
    """Send a request over a socket of its own, and return that."""
    address = urlsplit(url)
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": text}]})
    opened = socket.create_connection((address.hostname, address.port))
    opened.sendall(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    return opened


def test_who_leaves_the_line_makes_room_in_it(tokenizer):
    model = Echo(tokenizer)
    model.gate.clear()
    with (
        serving(model, tokenizer, waiting=2) as url,
        client_of(url) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        left = [begin(url, f"number {n}") for n in range(3)]  # one is answered, two wait
        time.sleep(1)
        for opened in left:
            opened.close()
        time.sleep(1.5)
        asked = [pool.submit(say, client, f"later {n}") for n in range(2)]
        time.sleep(0.5)
        model.gate.set()
        texts = [one.result().choices[0].message.content for one in asked]
        assert texts == ["later 0", "later 1"]


def test_who_leaves_a_whole_answer_is_not_written_for(tokenizer):
    model = Echo(tokenizer, endless=True)
    step = model.step

    def slow(*words, **choices):
        time.sleep(0.05)
        return step(*words, **choices)

    model.step = slow
    with serving(model, tokenizer) as url:
        opened = begin(url, "x")
        while not model.steps:
            time.sleep(0.01)
        opened.close()
        time.sleep(2.5)
        before = model.steps
        time.sleep(0.5)
        assert 0 < before < CONTEXT - 10
        assert model.steps == before


def test_connections_that_never_ask_hold_nobody(url, client):
    address = urlsplit(url)
    opened = [socket.create_connection((address.hostname, address.port)) for _ in range(400)]
    try:
        for one in opened:
            one.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: local")
        start = time.monotonic()
        assert say(client, "hi").choices[0].message.content == "hi"
        assert time.monotonic() - start < 10
    finally:
        for one in opened:
            one.close()


def test_each_exchange_is_told_when_it_is_over_however_it_ended(tokenizer):
    told = []
    model = Echo(tokenizer)
    with serving(model, tokenizer, told=told.append) as url, client_of(url) as client:
        say(client, "whole", temperature=0)
        assert "".join(e.choices[0].delta.content or "" for e in say(client, "bits", stream=True))
        model.endless = True
        wait, model.gate.wait = model.gate.wait, lambda _=None: time.sleep(0.02) or wait()
        stream = say(client, "on and on", stream=True)
        next(iter(stream))
        stream.close()
        until = time.monotonic() + 30
        while len(told) < 3 and time.monotonic() < until:
            time.sleep(0.02)
    whole, bits, left = told
    assert (whole.said, whole.failed) == ("whole", "")
    assert whole.asked.messages == [{"role": "user", "content": "whole"}]
    assert (whole.n_prompt, whole.n_tokens) == (len("whole") + 3, len("whole") + 1)
    assert whole.seconds > 0
    assert (bits.said, bits.failed) == ("bits", "")
    assert left.failed == "the client left"
    assert "on and on".startswith(left.said[:9])
