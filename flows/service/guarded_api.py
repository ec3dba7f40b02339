"""Prefect's server with the two checks that its own command lacks; run by ``mypt up``.

A page that a browser shows can send requests to servers of this machine, and by a trick with
names (DNS rebinding) read the answers too. Whoever is asked under a foreign name, or by a
foreign page, must not answer (D70).
"""

import sys
from collections.abc import Sequence

import uvicorn
from prefect.server.api.server import create_app
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class KnownOrigins:
    """Refuses a request that a page of another server makes; programs send no origin."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app, self._origins = app, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what comes from a page of ours or from a program."""
        app = self._app
        if scope["type"] in ("http", "websocket"):
            origin = Headers(scope=scope).get("origin")
            if origin is not None and origin not in self._origins:
                app = PlainTextResponse(f"pages of {origin} are not answered", 403)
        await app(scope, receive, send)


def guarded(app: ASGIApp, origins: Sequence[str], hosts: Sequence[str]) -> ASGIApp:
    """Return ``app`` behind both checks.

    Args:
        app: What answers.
        origins: Pages that may ask.
        hosts: Names and addresses under which it may be asked; ``*`` for any.
    """
    return TrustedHostMiddleware(
        KnownOrigins(app, origins), allowed_hosts=list(hosts), www_redirect=False
    )


def main(host: str, port: int, origins: Sequence[str], hosts: Sequence[str]) -> None:
    """Serve the API and the UI until a signal comes."""
    app = guarded(create_app(final=True), origins, hosts)
    uvicorn.run(app, host=host, port=port, timeout_keep_alive=5, log_level="error")


if __name__ == "__main__":
    address, number, pages, names = sys.argv[1:]
    main(address, int(number), pages.split(","), names.split(","))
