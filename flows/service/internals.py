"""All that we use of Prefect though its documentation promises none of it.

A test fails at a minor version that is not in ``TRIED``: look at each of these there, and add it.
"""

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from tasks.databases import revisions_in

if TYPE_CHECKING:
    from prefect.runner import Runner

TRIED = ("3.8",)
"""Minor versions of Prefect with which all of it was tried."""
_TRIES = 100_000
"""How often in a row Prefect may not answer, every two seconds: days."""


def server_application(*, ephemeral: bool = False) -> ASGIApp:
    """Return Prefect's own server, which offers no setting for the checks around it (D70).

    Args:
        ephemeral: Without what only a lasting server needs, such as its pages.
    """
    from prefect.server.api.server import create_app

    return create_app(ephemeral=ephemeral, final=True)


def database_revisions() -> tuple[str, ...]:
    """Return the revisions of the tables that Prefect knows, the newest first."""
    from prefect.server import database

    migrations = Path(database.__file__).with_name("_migrations")
    return revisions_in(migrations, migrations / "versions" / "sqlite")


def patient_runner() -> "Runner":
    """Return a runner of one flow run whose SIGTERM ends it as cancelled, with time to save.

    It asks for work, and for what is cancelled, until Prefect answers again: its own loops give
    up after three tries, and so a server that is started anew would end the flow run.
    """
    from prefect._internal import observers
    from prefect.runner import Runner, _scheduled_run_poller
    from prefect.utilities.services import critical_service_loop

    for place in (observers, _scheduled_run_poller):
        loop = partial(critical_service_loop, consecutive=_TRIES)
        setattr(place, critical_service_loop.__name__, loop)

    class _Patient(Runner):
        def handle_sigterm(self, *_: Any, **__: Any) -> None:
            """Stop within the event loop; Prefect's own handler forgets to wait for it."""
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(lambda: loop.create_task(self.astop()))

    return _Patient(limit=1, pause_on_shutdown=False)
