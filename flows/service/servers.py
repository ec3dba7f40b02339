"""``mypt up``: Prefect, MLflow and the deployments on this machine, and their clean end (D43)."""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from flows.environment import answers
from flows.service.addresses import Addresses
from flows.service.server_process import ServerProcess
from mypt.children import python
from mypt.errors import MyptError
from mypt.home import home
from tasks.tracking.destination import ui_page

ENDS = {signal.SIGTERM: 143, signal.SIGHUP: 129}
"""Exit code for each signal but Ctrl-C, which is how people stop it."""
_START_SECONDS = 600.0
_LIVES_SECONDS = 30.0
"""A server that ends sooner will not live when it is started again."""


def up(at: Addresses) -> int:
    """Start everything over ``MYPT_HOME``, wait until it answers, and stop it when asked.

    Args:
        at: Where the servers listen.

    Returns:
        0 after Ctrl-C, 143 after SIGTERM, 129 where its terminal was closed.

    Raises:
        MyptError: If a process does not start, or ends by itself.
    """
    environment = os.environ | at.environment()
    console = Console(highlight=False)
    with _signals() as asked, tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        processes: list[ServerProcess] = []
        try:
            console.print(f"starting Prefect and MLflow over {home()} ...", markup=False)
            for name, command in at.commands().items():
                processes.append(ServerProcess(name, command, environment))
            if _wait(processes, asked, lambda: answers(f"{at.prefect}/api/health")):
                command = python("-m", "flows.service.serving", str(ready))
                processes.append(ServerProcess("serving", command, environment, quiet=False))
                if _wait(
                    processes, asked, lambda: ready.exists() and answers(f"{at.mlflow}/health")
                ):
                    console.print(_welcome(at), markup=False, soft_wrap=True)
                    keep(processes, asked)
            console.print("stopping ...")
        finally:
            _stop(processes)
        console.print(f"stopped: everything is kept in {home()}", markup=False, soft_wrap=True)
        return ENDS.get(signal.Signals(asked[0]), 0) if asked else 0


def _stop(processes: Sequence[ServerProcess]) -> None:
    """Stop who serves the flows, whose runs must still reach their server, then both servers."""
    for last in processes[-1:]:
        last.stop()
    for server in processes[:-1]:
        server.ask_to_end()  # both at once: each takes seconds
    for server in processes[:-1]:
        server.stop()


def _welcome(at: Addresses) -> str:
    beside = Path(sys.executable).with_name("prefect")
    found = shutil.which("prefect")
    command = "prefect" if found and Path(found) == beside else str(beside)
    password = "  export PREFECT_API_AUTH_STRING=USER:PASSWORD\n" if at.auth else ""
    return (
        f"Prefect  {at.prefect}\n"
        f"MLflow   {ui_page(at.mlflow)}\n"
        "serving sft-pipeline/local and each stage alone; in a second terminal:\n"
        f"  export PREFECT_API_URL={at.prefect}/api\n"
        f"{password}"
        f"  {command} deployment run sft-pipeline/local --watch\n"
        "Ctrl-C stops everything"
    )


def _wait(
    processes: Sequence[ServerProcess],
    asked: list[int],
    done: Callable[[], bool],
    seconds: float = _START_SECONDS,
) -> bool:
    """Wait until ``done``, while every process lives; False if somebody asked for the end."""
    start = time.monotonic()
    while not done():
        if asked:
            return False
        for process in processes:
            process.check()
        if time.monotonic() - start > seconds:
            names = ", ".join(str(process.log) for process in processes)
            raise MyptError(f"the servers do not answer after {seconds:.0f} seconds; see {names}")
        time.sleep(0.2)
    return True


def keep(processes: Sequence[ServerProcess], asked: list[int]) -> None:
    """Wait until somebody asks for the end; what a server shows is started again where it dies.

    A training beside it goes on. Who serves the flows is their parent, so its end is theirs.

    Args:
        processes: The last one serves the flows.
        asked: Filled by signals.

    Raises:
        MyptError: If that one ends, or another soon after it was started.
    """
    while not asked:
        for process in processes:
            try:
                process.check()
            except MyptError as error:
                if process is processes[-1] or process.seconds < _LIVES_SECONDS:
                    raise
                sys.stderr.write(f"mypt: {error}; it is started again\n")
                process.stop()
                process.start()
        time.sleep(0.2)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Yield the list of the signals that asked for the end."""
    asked: list[int] = []
    kinds = [signal.SIGINT, *ENDS]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # by nohup: a terminal may close
        kinds.remove(signal.SIGHUP)
    before = [signal.signal(kind, lambda number, _: asked.append(number)) for kind in kinds]
    try:
        yield asked
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
