"""Parts of Prefect that are not promised: at another minor version they are looked at again."""

import asyncio
import inspect
import re
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest

from flows.service import internals

ROOT = Path(__file__).parents[3]
PRIVATE = re.compile(r"from prefect\.(server|runner)\b|SubprocessASGIServer|handle_sigterm")


def test_prefect_is_of_a_minor_version_that_was_tried():
    minor = version("prefect").rpartition(".")[0]
    assert minor in internals.TRIED, (
        f"Prefect {minor} was not tried: look at what {internals.__file__} uses of it, and add it"
    )


def test_nothing_else_reaches_into_prefect():
    found = [
        path
        for room in ("mypt", "tasks", "flows")
        for path in (ROOT / room).rglob("*.py")
        if PRIVATE.search(path.read_text())
    ]
    assert found == [Path(internals.__file__)]


def test_the_runner_still_has_the_handler_that_is_replaced():
    from prefect.runner import Runner

    assert "handle_sigterm" in inspect.getsource(Runner.start)

    async def stopped():
        runner, asked = internals.patient_runner(), asyncio.Event()

        async def stop():
            asked.set()

        runner.astop = stop
        runner.handle_sigterm()
        await asyncio.wait_for(asked.wait(), 10)

    asyncio.run(stopped())


@pytest.mark.parametrize("name", ["_internal.observers", "runner._scheduled_run_poller"])
def test_the_runner_asks_for_longer_than_a_server_takes_to_start(name, monkeypatch):
    place = import_module(f"prefect.{name}")
    monkeypatch.setattr(place, "critical_service_loop", place.critical_service_loop)
    internals.patient_runner()
    tries = []

    async def ask():
        tries.append(0)
        if len(tries) == 50:
            raise KeyError
        raise httpx.ConnectError("nobody listens")

    with pytest.raises(KeyError):
        asyncio.run(place.critical_service_loop(workload=ask, interval=0.0))
