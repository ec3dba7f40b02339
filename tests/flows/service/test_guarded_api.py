import asyncio

import httpx
import pytest
from starlette.responses import PlainTextResponse

from flows.service.guarded_api import WayToMlflow, guarded

APP = guarded(
    WayToMlflow(PlainTextResponse("runs"), "http://127.0.0.1:5001"),
    ["http://127.0.0.1:4200"],
    ["127.0.0.1", "localhost"],
)


def ask(url, **headers):
    async def get():
        transport = httpx.ASGITransport(app=APP)
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.post(url, headers=headers)

    return asyncio.run(get())


def test_programs_and_our_own_page_are_answered():
    assert ask("http://127.0.0.1:4200/api").text == "runs"
    assert ask("http://localhost:4200/api", origin="http://127.0.0.1:4200").text == "runs"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999"])
def test_a_page_of_another_server_is_not_answered(origin):
    answer = ask("http://127.0.0.1:4200/api", origin=origin)
    assert answer.status_code == 403
    assert "runs" not in answer.text


@pytest.mark.parametrize(
    "host", ["a`b.evil.com", "a{b}.evil.com", "evil.com:", "evil.com:70000", "evil.com/@localhost",
             "[", "localhost, evil.com", "user@localhost", ""]
)  # fmt: skip
def test_a_name_that_is_none_is_not_answered(host):
    answer = ask("http://127.0.0.1:4200/api", host=host)
    assert (answer.status_code, "runs" in answer.text) == (400, False)


@pytest.mark.parametrize(
    "path", ["/api", "//api", "/%61pi", "/api/../api", "/mlflow/x", "/", "/%2e%2e/api", "/api%00"]
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("headers", "code"),
    [({"origin": "http://evil.example"}, 403), ({"host": "evil.example"}, 400)],
)
def test_the_guard_stands_before_every_path_and_every_protocol(path, kind, headers, code):
    sent = []
    given = {"host": "127.0.0.1:4200"} | headers
    scope = {
        "type": kind, "path": path, "raw_path": path.encode(), "query_string": b"", "method": "GET",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "extensions": {"websocket.http.response": {}},
    }  # fmt: skip

    async def ask_it():
        async def receive():
            return {"type": f"{kind}.connect"}

        async def send(message):
            sent.append(message)

        await APP(scope, receive, send)

    asyncio.run(ask_it())
    assert sent[0]["status"] == code
    assert b"runs" not in b"".join(message.get("body", b"") for message in sent)


def test_who_asks_under_a_foreign_name_is_not_answered():
    answer = ask("http://evil.example:4200/api")
    assert answer.status_code == 400
    assert "runs" not in answer.text


def test_a_link_to_mlflow_leads_to_where_it_is_now():
    answer = ask("http://127.0.0.1:4200/mlflow/experiments/1/runs/ab/artifacts/preview.html")
    assert answer.status_code == 307
    assert answer.headers["location"] == (
        "http://127.0.0.1:5001/#/experiments/1/runs/ab/artifacts/preview.html"
        "?workflowType=machine_learning"
    )
    assert ask("http://127.0.0.1:4200/api/mlflow/experiments").text == "runs"
