"""A server that speaks OpenAI's chat-completions protocol, and its page to talk (D75)."""

import asyncio
import re
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from mypt.errors import ConfigError
from mypt.inference.server.answering import Queue, Served, answer, refused
from mypt.inference.server.protocol import (
    Asked,
    ChatRequest,
    CompletionRequest,
    Refused,
    read_request,
    short,
)
from mypt.pages.render import content_hash, render
from mypt.references import CheckpointRef

LOCAL = ("127.0.0.1", "localhost", "::1")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/*?#@]+")
_HOST = re.compile(r"[\w.-]+|[0-9a-f:.]+")
_ASKED = re.compile(r"([a-z0-9_.-]+|\[[0-9a-f]*:[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_HIGHEST_PORT = 65535
MOST_BYTES = 4 * 2**20
"""Longest request; a conversation that fills any context is far shorter."""
_FORMS: dict[str, type[Asked]] = {
    "/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest,
}  # fmt: skip
_HAS = ", ".join((*_FORMS, "/v1/models", "/health"))
_GRACE_SECONDS = 5
_HEAD_SECONDS = 10.0
_KEEP_SECONDS = 60
"""A busy machine takes seconds to read a next request that has come already."""
_BODY_SECONDS = 30.0
_MOST_HELD = 64 * 2**20
"""Bytes of all requests that are on their way at once."""


def chat_page(models: Mapping[str, CheckpointRef], *, key: bool) -> tuple[str, str]:
    """Return the page's HTML and the policy that lets a browser run its script and no other.

    Args:
        models: Which checkpoint answers, by what each is called.
        key: Whether people must give an API key.
    """
    styles, scripts = ["page.css", "chat.css"], ["markdown.js", "chat.js"]
    shown = [{"name": name, "step": c.step, "digest": c.digest} for name, c in models.items()]
    html = render("chat.html", styles=styles, scripts=scripts, models=shown, key=key)
    policy = (
        f"default-src 'none'; connect-src 'self'; script-src '{content_hash(scripts)}';"
        f" style-src '{content_hash(styles)}'; frame-ancestors 'none'; base-uri 'none';"
        " form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return html, policy


def create_app(
    models: Sequence[Served],
    api_key: str | None = None,
    *,
    origins: Sequence[str] = (),
    hosts: Sequence[str] = (),
) -> FastAPI:
    """Return the application: models, chats, completions, ``/health`` and the page at ``/``.

    Args:
        models: Of names that differ; a request says which one it asks.
        api_key: What clients must send; None serves this machine only.
        origins: Sites whose pages may ask too, such as ``https://example.org``.
        hosts: Names of this machine besides its own that clients may use where no key is set.

    Raises:
        ConfigError: If an origin or a host is none.
    """
    _check_named(origins, hosts)
    app = FastAPI(title="mypt", docs_url=None, redoc_url=None, openapi_url=None)
    if origins:  # clients send a dozen headers of their own
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"],
            allow_headers=["*"], expose_headers=["x-mypt-turns-left-out"],
        )  # fmt: skip
    check = partial(_check, api_key, frozenset((*LOCAL, *map(str.lower, hosts))))
    app.include_router(_routes(models, check))

    @app.get("/health")
    async def health() -> Any:
        return {"status": "ok"}

    @app.get("/")
    async def page() -> Response:
        shown = {served.name: served.checkpoint for served in models}
        html, policy = chat_page(shown, key=api_key is not None)
        return HTMLResponse(html, headers={"content-security-policy": policy})

    app.add_exception_handler(Refused, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(Exception, _refuse)
    return app


def _routes(models: Sequence[Served], check: Callable[[Request], Awaitable[None]]) -> APIRouter:
    """Return what clients ask for; each request is checked first."""
    routes = APIRouter(dependencies=[Depends(check)])
    known, held = {served.name: served for served in models}, Counter[str]()
    cards = {
        served.name: {
            "id": served.name, "object": "model", "created": int(served.clock()),
            "owned_by": "mypt",
        }
        for served in models
    }  # fmt: skip

    @routes.get("/v1/models")
    async def all_models() -> Any:
        return {"object": "list", "data": list(cards.values())}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Any:
        return cards[_named(known, name).name]

    for path, form in _FORMS.items():
        routes.add_api_route(path, partial(_answer, known, held, form), methods=["POST"])
    return routes


async def _answer(
    known: Mapping[str, Served], held: Counter[str], form: type[Asked], request: Request
) -> Response:
    asked = read_request(await _body(request, held), form)
    return await answer(_named(known, asked.model), asked, request)


def listen(host: str, port: int, api_key: str | None) -> socket.socket:
    """Return a listening socket; only this machine reaches it where there is no key.

    Raises:
        ConfigError: If others would reach a server without a key.
        OSError: If the port is taken.
    """
    if host not in LOCAL and not api_key:
        raise ConfigError(
            f"host {host}: other machines would reach the model; set --api_key or MYPT_API_KEY,"
            " or leave --host out"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def configured(app: FastAPI, grace: int) -> uvicorn.Config:
    """Return how uvicorn serves ``app``: no client may wait, or send, without end.

    Args:
        app: As :func:`create_app` returns it.
        grace: Seconds that answers which are being written may take at the end.
    """
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=_KEEP_SECONDS,
        timeout_graceful_shutdown=grace,
        http=_Impatient,  # unlike httptools, h11 takes no endless headers
        ws="none",
    )


def serve(app: FastAPI, queue: Queue, listening: socket.socket) -> None:
    """Answer until SIGTERM or Ctrl-C, which are raised again when all is closed."""
    config = configured(app, _GRACE_SECONDS)
    try:
        _Server(config, queue).run(sockets=[listening])
    finally:
        queue.close()
        queue.join()


class _Impatient(H11Protocol):
    """Closes a connection on which no request comes, or half of one; a browser opens another."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to look whether anything is asked."""
        super().connection_made(transport)
        self._look(idle=False)

    def _look(self, *, idle: bool) -> None:
        if self.transport.is_closing():
            return
        now_idle = self.cycle is None or self.cycle.response_complete
        now_idle = now_idle and self.timeout_keep_alive_task is None  # which looks after itself
        if idle and now_idle:
            self.transport.close()
        else:
            self.loop.call_later(_HEAD_SECONDS, lambda: self._look(idle=now_idle))


class _Server(uvicorn.Server):
    """Breaks answers off when it is told to end; else it would wait for the longest."""

    def __init__(self, config: uvicorn.Config, queue: Queue) -> None:
        super().__init__(config)
        self._queue = queue

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Close the queue, then do as uvicorn does."""
        self._queue.close()
        super().handle_exit(sig, frame)


def _check_named(origins: Sequence[str], hosts: Sequence[str]) -> None:
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"allow_origin {origin!r}: expected a site alone, such as https://example.org; name"
                " each that may ask, since any other page could else talk with the model"
            )
    for host in hosts:
        if not _HOST.fullmatch(host.lower()):
            raise ConfigError(f"allow_host {host!r}: expected a name such as host.docker.internal")


async def _check(api_key: str | None, hosts: frozenset[str], request: Request) -> None:
    """Refuse whoever has no key, or, where none is set, comes under another name.

    A page elsewhere whose name was made to point here could else talk with the model. Were it not
    asynchronous, each request would wait here for a thread, and a flood of them without end.
    """
    if api_key is None:
        if _host(request) not in hosts:
            wanted = "; start the server with --allow_host for another name"
            found = short(", ".join(request.headers.getlist("host")))
            raise Refused(403, f"host {found!r}: expected {' or '.join(LOCAL)}{wanted}")
        return
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme != "Bearer" or not secrets.compare_digest(key.encode(), api_key.encode()):
        raise Refused(401, "a wrong or no API key; send it as a bearer", code="invalid_api_key")


def _host(request: Request) -> str:
    """Return the name that a client asks for, empty where it is none.

    From the header itself: of one that it cannot read, starlette gives the socket's address.
    """
    given = request.headers.getlist("host")
    match = _ASKED.fullmatch(given[0].lower()) if len(given) == 1 else None
    if match is None or not 0 < int(match[2] or 1) <= _HIGHEST_PORT:
        return ""
    return match[1].strip("[]")


def _named(known: Mapping[str, Served], name: str) -> Served:
    if name not in known:
        raise Refused(
            404, f"no model {short(name)!r}; this server has {', '.join(map(repr, known))}",
            param="model", code="model_not_found",
        )  # fmt: skip
    return known[name]


async def _body(request: Request, held: Counter[str]) -> bytes:
    """Return a request's bytes; only JSON, which no page elsewhere can send without asking.

    Args:
        request: Who asks.
        held: Counts the bytes of all requests that are on their way.
    """
    kind = request.headers.get("content-type", "").partition(";")[0]
    if kind.strip().lower() != "application/json":
        raise Refused(415, "expected content-type application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                body += part
                held["bytes"] += len(part)
                if len(body) > MOST_BYTES:
                    raise Refused(413, f"more than {MOST_BYTES:,} bytes")
                if held["bytes"] > _MOST_HELD:
                    raise Refused(503, "too many large requests at once; ask again in a while")
    except ClientDisconnect:
        raise Refused(400, "the body was never sent whole") from None  # nobody hears it
    except asyncio.CancelledError:
        raise Refused(503, "the server is about to end") from None
    except TimeoutError:
        raise Refused(408, f"the body did not come within {_BODY_SECONDS:.0f} seconds") from None
    finally:
        held["bytes"] -= len(body)
    return bytes(body)


async def _refuse(request: Request, error: Exception) -> Response:
    found = refused(error)
    if isinstance(error, HTTPException):  # of a path or method that is not known
        asked = f"{request.method} {short(request.scope['path'])}"
        found = Refused(found.status, f"{asked}: {error.detail}; this server has {_HAS}")
    return JSONResponse(found.body, found.status)
