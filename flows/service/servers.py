"""``mypt up``: Prefect, MLflow and the deployments on this machine, and their clean end (D43)."""

import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from flows.environment import answers
from flows.service.addresses import Addresses
from mypt.errors import MyptError
from mypt.home import home
from tasks.tracking.destination import ui_page

TERMINATED = 143
_START_SECONDS = 180.0
_GRACE_SECONDS = 45.0
"""How long a training may take to reach its next step and to write its last checkpoint."""


def up(at: Addresses) -> int:
    """Start everything over ``MYPT_HOME``, wait until it answers, and stop it when asked.

    Args:
        at: Where the servers listen.

    Returns:
        0 after Ctrl-C, 143 after SIGTERM.

    Raises:
        MyptError: If a process does not start, or ends by itself.
    """
    environment = os.environ | at.environment()
    console = Console(highlight=False)
    with _signals() as asked, tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        processes: list[_Process] = []
        try:
            console.print(f"starting Prefect and MLflow over {home()} ...", markup=False)
            for name, command in at.commands().items():
                processes.append(_Process(name, command, environment))
            if _wait(processes, asked, lambda: answers(f"{at.prefect}/api/health")):
                command = [sys.executable, "-m", "flows.service.serving", str(ready)]
                processes.append(_Process("serving", command, environment, quiet=False))
                if _wait(
                    processes, asked, lambda: ready.exists() and answers(f"{at.mlflow}/health")
                ):
                    console.print(_welcome(at), markup=False, soft_wrap=True)
                    _wait(processes, asked, lambda: False, seconds=math.inf)
            console.print("stopping ...")
        finally:
            for process in reversed(processes):  # a run that ends must still reach its server
                process.stop()
        return TERMINATED if signal.SIGTERM in asked else 0


class _Process:
    """A child in a process group of its own, so that Ctrl-C reaches it only through us."""

    def __init__(
        self, name: str, command: Sequence[str], environment: dict[str, str], *, quiet: bool = True
    ) -> None:
        self.name = name
        self.log = home() / "logs" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as file:
            self._child = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file if quiet else None,
                stderr=file if quiet else None,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise if the process has ended."""
        code = self._child.poll()
        if code is not None:
            tail = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            why = f"{tail[0].strip()}; see {self.log}" if tail else "see its output above"
            raise MyptError(f"{self.name} ended by itself with code {code}: {why}")

    def stop(self) -> None:
        """Ask the process to end, then make it and all its children end."""
        if self._child.poll() is None:
            self._child.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(_GRACE_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()


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
    processes: Sequence[_Process],
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


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Yield the list of the signals that asked for the end."""
    asked: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, lambda number, _: asked.append(number)) for kind in kinds]
    try:
        yield asked
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
