"""Several answers, likelihoods, penalties and completions, asked by the official client."""

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError

import openai
import pytest
import torch

from mypt.config import GPTConfig
from mypt.errors import ConfigError
from mypt.inference.chat import chat_prompt
from mypt.inference.server import choices, protocol, serving
from mypt.model.gpt import GPT
from tests.mypt.inference.echo import Echo, byte_tokenizer
from tests.mypt.inference.echo import serving as served
from tests.mypt.inference.server.test_serving import answered, client_of

CONTEXT = 96


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    """Untrained weights that differ enough for argmax to be no toss-up."""
    torch.manual_seed(3)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32}
    model = GPT(GPTConfig(block_size=CONTEXT, vocab_size=tokenizer.n_vocab, **sizes)).eval()
    model.gate = type("Open", (), {"set": lambda _: None})()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.dim() == 2 else None
    return model


@pytest.fixture(scope="module")
def url(model, tokenizer):
    with served(model, tokenizer, at_once=8) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with client_of(url) as client:
        yield client


def chat(client, **choices):
    asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8} | choices
    return client.chat.completions.create(model="echo", **asked)


def complete(client, prompt, **choices):
    return client.completions.create(model="echo", prompt=prompt, **choices)


def naive(model, ids):
    """(T, V) log-probabilities of what follows each token, by one plain forward pass."""
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids]))[0][0].double(), dim=-1)


def test_n_answers_are_those_that_seeds_which_count_on_give_alone(client):
    together = chat(client, n=4, seed=7)
    alone = [chat(client, seed=seed) for seed in (7, 8, 9, 10)]
    texts = [one.choices[0].message.content for one in alone]
    assert [one.message.content for one in together.choices] == texts
    assert [one.index for one in together.choices] == [0, 1, 2, 3]
    assert len(set(texts)) > 1
    assert together.usage.prompt_tokens == alone[0].usage.prompt_tokens
    written = sum(one.usage.completion_tokens for one in alone)
    assert together.usage.completion_tokens == written
    streamed = dict.fromkeys(range(4), "")
    ends = []
    for event in chat(client, n=4, seed=7, stream=True):
        (choice,) = event.choices
        streamed[choice.index] += choice.delta.content or ""
        ends += [choice.finish_reason] if choice.finish_reason else []
    assert [streamed[n] for n in range(4)] == texts
    assert len(ends) == 4


def test_logprobs_are_those_of_a_plain_forward_pass(client, model, tokenizer):
    asked = {"temperature": 0.7, "seed": 1, "logprobs": True, "top_logprobs": 3}
    asked |= {"presence_penalty": 1.5, "logit_bias": {"104": 3.0}}  # neither is believed
    found = chat(client, **asked)
    told = found.choices[0].logprobs.content
    ids = chat_prompt(tokenizer, protocol.ChatRequest(
        model="m", messages=[{"role": "user", "content": "Hi"}]
    ).conversation())  # fmt: skip
    written = [byte for one in told for byte in one.bytes]
    assert len(told) == len(written) == 8
    sure = naive(model, ids + written)
    for place, one in enumerate(told, len(ids) - 1):
        assert one.logprob == pytest.approx(float(sure[place, written[place - len(ids) + 1]]), 1e-4)
        values, likeliest = sure[place].topk(3)
        assert [t.logprob for t in one.top_logprobs] == pytest.approx(values.tolist(), 1e-4)
        spelled = [tokenizer.decode_part([id]) for id in likeliest.tolist()]
        assert [t.token for t in one.top_logprobs] == spelled
    streamed = [
        one
        for event in chat(client, **asked, stream=True)
        if event.choices[0].logprobs
        for one in event.choices[0].logprobs.content
    ]
    assert streamed == told
    assert chat(client).choices[0].logprobs is None


def test_ids_that_are_no_token_are_counted_and_never_told(tokenizer):
    torch.manual_seed(3)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32}
    model = GPT(GPTConfig(block_size=CONTEXT, vocab_size=tokenizer.n_vocab + 300, **sizes)).eval()
    model.gate = type("Open", (), {"set": lambda _: None})()
    with served(model, tokenizer) as url, client_of(url) as client:
        for stream in (False, True):
            found = chat(client, logprobs=True, top_logprobs=20, temperature=0, stream=stream)
            told = [one.choices[0].logprobs for one in (found if stream else [found])]
            tops = [token.top_logprobs for one in told if one for token in one.content]
            assert tops
            assert all(len(top) == 20 for top in tops)
        prompt = [*b"Hi"]
        said = complete(client, prompt, logprobs=20, echo=True, max_tokens=0).choices[0].logprobs
    with torch.no_grad():
        believed = float(model(torch.tensor([prompt]))[0][0, 0].log_softmax(0)[prompt[1]])
    assert said.token_logprobs[1] == pytest.approx(believed, abs=1e-4)
    assert 20 <= len(said.top_logprobs[1]) <= 21


@pytest.mark.parametrize("n", [0, 3])
def test_a_stream_that_fails_says_so_whichever_piece_it_is(client, monkeypatch, n):
    pieces, calls = choices.TextChoice.pieces, []

    def fails(choice, piece):
        calls.append(piece)
        if len(calls) > n:
            raise RuntimeError("no piece")
        return pieces(choice, piece)

    monkeypatch.setattr(choices.TextChoice, "pieces", fails)
    with pytest.raises(openai.APIError, match="the answer failed"):
        list(complete(client, "Hi", stream=True, max_tokens=8))


def test_an_echo_is_measured_to_its_first_token_as_lm_eval_asks(client, model):
    text = "Grüß Gott"
    ids = list(text.encode())
    sure = naive(model, ids)
    for prompt in (text, ids, [ids]):
        found = complete(client, prompt, echo=True, logprobs=1, max_tokens=1, temperature=0)
        (choice,) = found.choices
        told = choice.logprobs
        assert choice.text.startswith(text)
        assert told.token_logprobs[0] is None
        expected = [float(sure[n, id]) for n, id in enumerate(ids[1:])]
        assert told.token_logprobs[1 : len(ids)] == pytest.approx(expected, 1e-4)
        tops = [max(top.values()) for top in told.top_logprobs[1 : len(ids)]]
        assert tops == pytest.approx(sure[:-1].max(dim=-1).values.tolist(), 1e-4)
        assert told.tokens[:3] == ["G", "r", "bytes:\\xc3"]
        assert told.text_offset[: len(ids)] == [0, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8]
        assert len(told.tokens) == len(ids) + 1
        assert found.usage.prompt_tokens == len(ids)
    only = complete(client, text, echo=True, max_tokens=0)
    assert (only.choices[0].text, only.usage.completion_tokens) == (text, 0)


def test_completions_go_on_with_each_text_alone_or_streamed(client):
    texts = ["one", "two and a half", ""]
    alone = [complete(client, text, seed=3, max_tokens=6).choices[0].text for text in texts]
    found = complete(client, texts, seed=3, max_tokens=6, n=2)
    assert [one.text for one in found.choices[::2]] == alone
    assert [one.index for one in found.choices] == list(range(6))
    assert found.object == "text_completion"
    assert found.id.startswith("cmpl-")
    streamed = dict.fromkeys(range(3), "")
    asked = {"seed": 3, "max_tokens": 6, "echo": True, "logprobs": 0}
    offsets = {n: [] for n in range(3)}
    for event in complete(client, texts, **asked, stream=True):
        (choice,) = event.choices
        streamed[choice.index] += choice.text
        offsets[choice.index] += choice.logprobs.text_offset
    assert list(streamed.values()) == [text + more for text, more in zip(texts, alone, strict=True)]
    whole = complete(client, texts, **asked)
    assert [one.logprobs.text_offset for one in whole.choices] == list(offsets.values())
    endless = complete(client, "a", logit_bias={"97": 100})
    assert endless.usage.completion_tokens == 16  # the protocol's own default


def test_penalties_and_bias_are_openais(client, model, tokenizer):
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence + bias[j], c of what was written."""
    known = [*range(256), *tokenizer.special_tokens.values()]
    ends = (*tokenizer.stop_ids, tokenizer.end_of_text)
    bias = {"104": 2.5, "101": -100}
    for presence, frequency in ((1.8, 0.0), (0.0, 1.9), (-0.5, 0.7)):
        ids, counts = list(b"Hello hello"), torch.zeros(tokenizer.n_vocab)
        for _ in range(10):
            with torch.no_grad():
                logits = model(torch.tensor([ids]))[0][0, -1]
            logits = logits - counts * frequency - (counts > 0) * presence
            for id, value in bias.items():
                logits[int(id)] += value
            best = known[int(logits[known].argmax())]
            ids.append(best)
            counts[best] += 1
        found = complete(
            client, "Hello hello", temperature=0, max_tokens=10, logit_bias=bias,
            presence_penalty=presence, frequency_penalty=frequency, logprobs=0,
        )  # fmt: skip
        stop = next((n for n, id in enumerate(ids[11:]) if id in ends), 10)
        read = [tokenizer.decode_bytes([id]) for id in ids[11 : 11 + stop]]
        told = found.choices[0].logprobs.tokens
        assert len(told) == stop
        assert b"".join(read).decode(errors="replace") == found.choices[0].text
    only = complete(client, "Hello", temperature=0, logit_bias={"65": 100}, max_tokens=5)
    assert only.choices[0].text == "AAAAA"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("chat/completions", {"n": 33}, "n"),
        ("chat/completions", {"n": 0}, "n"),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("chat/completions", {"logit_bias": {"5": 101}}, "logit_bias"),
        ("chat/completions", {"logit_bias": {"x": 1}}, "logit_bias"),
        ("chat/completions", {"logit_bias": {"999": 1}}, "logit_bias"),
        ("chat/completions", {"logit_bias": {str(n): 0 for n in range(1025)}}, "logit_bias"),
        ("chat/completions", {"presence_penalty": 2.1}, "presence_penalty"),
        ("chat/completions", {"frequency_penalty": "1"}, "frequency_penalty"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": ["a", [1]]}, "prompt"),
        ("completions", {"prompt": [True]}, "prompt"),
        ("completions", {"prompt": ["a"] * 33}, "prompt"),
        ("completions", {"prompt": ["a"] * 9, "n": 4}, "prompt"),
        ("completions", {"prompt": [-1]}, "prompt"),
        ("completions", {"prompt": [10**30]}, "prompt"),
        ("completions", {"prompt": [1, -(10**4000)]}, "prompt"),
        ("chat/completions", {"logit_bias": {"9" * 4000: 1}}, "logit_bias"),
        ("chat/completions", {"logit_bias": {"x" * 10**6: 1}}, "logit_bias"),
        ("completions", {"prompt": "x" * (CONTEXT + 1)}, "prompt"),
        ("completions", {"prompt": "a", "logprobs": True}, "logprobs"),
        ("completions", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("completions", {"prompt": "a", "best_of": 2}, "best_of"),
        ("completions", {"prompt": "a", "messages": []}, "messages"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name_in_one_line(url, path, fields, param):
    messages = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {}
    body = json.dumps({"model": "echo"} | messages | fields).encode()
    status, said = answered(f"{url}/v1/{path}", body)
    error = json.loads(said)["error"]
    assert status == 400, error
    assert error["param"].partition(".")[0] == param
    assert "\n" not in error["message"]
    assert len(error["message"]) < 300


def test_several_answers_take_as_many_places_in_the_line(tokenizer):
    model = Echo(tokenizer)
    with (
        served(model, tokenizer, waiting=3) as url,
        client_of(url) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        assert len(chat(client, n=8).choices) == 8  # nobody waits
        model.gate.clear()
        first = pool.submit(chat, client, n=3)
        time.sleep(0.5)  # one is answered, two wait
        with pytest.raises(openai.RateLimitError):
            chat(client, n=2)
        last = pool.submit(chat, client)
        model.gate.set()
        assert [len(one.result().choices) for one in (first, last)] == [3, 1]


def asked(url, method, **headers):
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as found:
            return found.status, found.headers, found.read()
    except HTTPError as error:
        return error.code, error.headers, error.read()


def test_the_server_says_that_it_is_well_and_what_it_has_not(url):
    assert asked(f"{url}/health", "GET")[::2] == (200, b'{"status":"ok"}')
    for path in ("embeddings", "responses"):
        status, _, said = asked(f"{url}/v1/{path}", "POST")
        error = json.loads(said)["error"]["message"]
        assert (status, error.startswith(f"POST /v1/{path}: ")) == (404, True)
        assert "/v1/chat/completions" in error


def test_other_pages_and_names_are_let_in_only_where_they_are_named(model, tokenizer):
    chats = "v1/chat/completions"
    asks = {"origin": "https://a.example", "access-control-request-method": "POST",
            "access-control-request-headers": "content-type,x-stainless-os"}  # fmt: skip
    with served(model, tokenizer) as url:
        status, headers, _ = asked(f"{url}/{chats}", "OPTIONS", **asks)
        assert (status, headers["access-control-allow-origin"]) == (405, None)
        assert asked(f"{url}/v1/models", "GET", host="host.docker.internal:1")[0] == 403
    named = {"origins": ["https://a.example"], "hosts": ["Host.Docker.Internal"]}
    with served(model, tokenizer, **named) as url:
        status, headers, _ = asked(f"{url}/{chats}", "OPTIONS", **asks)
        assert (status, headers["access-control-allow-origin"]) == (200, "https://a.example")
        other = asks | {"origin": "https://b.example"}
        status, headers, _ = asked(f"{url}/{chats}", "OPTIONS", **other)
        assert (status, headers["access-control-allow-origin"]) == (400, None)
        origin = {"origin": "https://a.example", "host": "host.docker.internal:1"}
        status, headers, _ = asked(f"{url}/v1/models", "GET", **origin)
        assert (status, headers["access-control-allow-origin"]) == (200, "https://a.example")
        assert asked(f"{url}/v1/models", "GET", host="evil.example")[0] == 403


@pytest.mark.parametrize("wrong", [{"origins": ["*"]}, {"origins": ["a.example"]},
                                   {"origins": ["https://a.example/x"]}, {"hosts": ["*"]},
                                   {"hosts": ["a b"]}, {"hosts": ["http://a"]}])  # fmt: skip
def test_whatever_is_no_single_site_or_name_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"expected a (site|name)"):
        serving.create_app(None, **wrong)
