"""Clients that are slow, endless, many or gone: others are answered, and nothing grows."""

import resource
import select
import socket
import time
from urllib.parse import urlsplit

import psutil
import pytest

from mypt.inference.server import serving as server
from tests.mypt.inference.echo import Echo
from tests.mypt.inference.server.test_serving import (
    begin,
    client_of,
    say,
    serving,
    tokenizer,  # noqa: F401
)

HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)


def connect(url):
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port))


def closed(opened, seconds):
    """Whether the server closes a connection within some seconds."""
    opened.settimeout(seconds)
    try:
        while opened.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@pytest.fixture
def url(tokenizer, monkeypatch):  # noqa: F811
    monkeypatch.setattr(server, "_HEAD_SECONDS", 0.5)
    monkeypatch.setattr(server, "_BODY_SECONDS", 1.0)
    with serving(Echo(tokenizer), tokenizer) as found:
        yield found


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", HEAD])
def test_a_request_that_does_not_come_is_not_waited_for(url, sent):
    with connect(url) as opened:
        opened.sendall(sent)
        assert closed(opened, 5.0)


def test_half_a_second_request_is_not_waited_for_either(url):
    with connect(url) as opened:
        opened.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        opened.settimeout(5.0)
        assert opened.recv(1 << 16).startswith(b"HTTP/1.1 200")
        opened.sendall(HEAD)
        assert closed(opened, 5.0)


def test_a_body_that_does_not_end_is_not_waited_for(url):
    with connect(url) as opened:
        opened.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
        opened.settimeout(5.0)
        assert opened.recv(1 << 16).startswith(b"HTTP/1.1 408")


def test_headers_without_end_are_not_kept(url):
    with connect(url) as opened:
        opened.settimeout(5.0)
        answer = b""
        try:
            for _ in range(100):
                opened.sendall(b"X-Long: " + b"x" * 10_000)
            answer = opened.recv(1 << 16)
        except OSError:
            answer = b"HTTP/1.1 400"  # it was told to stop while it sent
        assert answer.startswith(b"HTTP/1.1 4")


def test_large_requests_on_their_way_take_no_more_than_their_share(url, monkeypatch):
    monkeypatch.setattr(server, "_BODY_SECONDS", 30.0)
    monkeypatch.setattr(server, "_MOST_HELD", 4 << 20)
    opened = [connect(url) for _ in range(8)]
    for one in opened:
        one.sendall(HEAD + b"Content-Length: 2000000\r\n\r\n" + b" " * 1_000_000)
    time.sleep(1.0)
    for one in opened:
        one.setblocking(False)
    refused = 0
    for one in opened:
        try:
            refused += one.recv(1 << 16).startswith(b"HTTP/1.1 503")
        except BlockingIOError:
            continue
    assert 3 <= refused <= 4
    for one in opened:
        one.close()
    with client_of(url) as client:
        assert say(client, "hi").choices[0].message.content == "hi"


def test_requests_that_wait_take_no_thread_each(tokenizer):  # noqa: F811
    """Else those of a flood wait for one, before their place in the line is counted."""
    model = Echo(tokenizer)
    model.gate.clear()
    with serving(model, tokenizer, waiting=4) as url:
        before = psutil.Process().num_threads()
        opened = [begin(url, f"number {n}") for n in range(60)]
        answers, left = [], set(opened)
        while ready := select.select(list(left), [], [], 30 if len(answers) < 55 else 1)[0]:
            left.difference_update(ready)
            answers += [one.recv(1 << 16)[:12] for one in ready]
        assert psutil.Process().num_threads() <= before + 1
        assert answers == [b"HTTP/1.1 429"] * 55
        for one in opened:
            one.close()


@pytest.mark.slow
def test_thousands_of_idle_connections_hold_nobody(url):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    n = min(10_000, (hard - 1000) // 2)  # both ends are files of this process
    opened, before = [], psutil.Process().memory_info().rss
    try:
        for _ in range(n):
            opened.append(connect(url))
        begun = time.monotonic()
        with client_of(url) as client:
            assert say(client, "hi").choices[0].message.content == "hi"
        assert time.monotonic() - begun < 10
        assert psutil.Process().memory_info().rss - before < n * 64 << 10
        assert closed(opened[0], 10.0)
    finally:
        for one in opened:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
