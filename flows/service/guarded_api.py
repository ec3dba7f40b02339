"""Prefect's server with the two checks that its own command lacks; of `mypt up` and `mypt run`.

A page that a browser shows can send requests to servers of this machine, and by a trick with
names (DNS rebinding) read the answers too. Whoever is asked under a foreign name, or by a
foreign page, must not answer (D70). Besides it knows the way to MLflow, whose port may have been
another when a page was written.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from flows.service.internals import database_revisions, server_application
from mypt.children import SAFE, python
from tasks.databases import make_whole
from tasks.tracking.destination import MLFLOW_PATH, ui_page


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


class WayToMlflow:
    """Sends on, to where MLflow is now, who follows a page's link to a run there."""

    def __init__(self, app: ASGIApp, mlflow: str) -> None:
        self._app, self._mlflow = app, mlflow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is asked below ``MLFLOW_PATH``, and pass on all else."""
        app = self._app
        before, found, route = scope.get("path", "").partition(f"{MLFLOW_PATH}/")
        if scope["type"] == "http" and found and not before:
            app = RedirectResponse(ui_page(self._mlflow, f"/{route}"))
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


def make_database() -> None:
    """Make Prefect's database whole where it is a file under this home."""
    path = Path(os.environ["PREFECT_HOME"]) / "prefect.db"
    if not PREFECT_API_DATABASE_CONNECTION_URL.value().endswith(f":///{path}"):
        return

    def build(place: Path) -> None:
        url = {"PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{place}"}
        command = python("-m", "prefect", "server", "database", "upgrade", "--yes")
        subprocess.run(command, env=os.environ | SAFE | url, check=True, stdout=subprocess.DEVNULL)

    make_whole(path, database_revisions(), build)


def main(host: str, port: int, mlflow: str, origins: Sequence[str], hosts: Sequence[str]) -> None:
    """Serve the API and the UI until a signal comes."""
    make_database()
    app = guarded(WayToMlflow(server_application(), mlflow), origins, hosts)
    uvicorn.run(app, host=host, port=port, timeout_keep_alive=5, log_level="error")


def temporary(handle: int) -> None:
    """Serve the API alone, to programs of this machine, on a socket that listens already."""
    make_database()
    app = guarded(server_application(ephemeral=True), (), ("127.0.0.1",))
    config = uvicorn.Config(app, timeout_keep_alive=5, log_level="error")
    with socket.socket(fileno=handle) as listener:
        uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    if len(sys.argv) == 2:
        temporary(int(sys.argv[1]))
    else:
        address, number, beside, pages, names = sys.argv[1:]
        main(address, int(number), beside, pages.split(","), names.split(","))
