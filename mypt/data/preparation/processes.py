"""What works on several portions at once, and the engine of one machine.

Its children are asked a job at a time, by a line of JSON.
"""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import IO, Any, Final, NamedTuple, Protocol

from mypt.children import SAFE, python
from mypt.config import Preparation

DEATHS: Final = 3
"""How many workers a portion may end before it is set aside."""


class Died(Exception):  # noqa: N818 - no error: the portion is set aside
    """A portion has ended as many workers as it may."""


class Pending(Protocol):
    """The result of one job, once it is there."""

    def result(self) -> Any:
        """Wait for it; raises :class:`Died`."""


class Engine(NamedTuple):
    """Something that works on several jobs at once."""

    submit: Callable[[str], Pending]
    width: int
    """How many."""


def cores() -> int:
    """Return how many cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def processes(preparation: Preparation) -> Iterator[Engine]:
    """Yield as many processes as were asked for, and end them behind it, whatever they do."""
    width = preparation.workers or cores()
    crew = _Processes(width)
    try:
        yield Engine(crew.submit, width)
    finally:
        crew.end()


class _Worker:
    """One child process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            python("-m", "mypt.data.preparation.worker", str(os.getpid())),
            env=os.environ | SAFE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which then ends them
        )
        self._in: IO[str] = self._process.stdin  # type: ignore[assignment]
        self._out: IO[str] = self._process.stdout  # type: ignore[assignment]

    def ask(self, job: str) -> str | None:
        """Return what came of a job; None if the process is gone."""
        try:
            self._in.write(job + "\n")
            self._in.flush()
        except BrokenPipeError:
            return None
        line = self._out.readline()
        return line if line.endswith("\n") else None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        for pipe in (self._in, self._out):
            with suppress(BrokenPipeError):  # half a job was not sent
                pipe.close()


class _Processes:
    """Processes of this machine, and a thread for each that waits for its answers."""

    def __init__(self, width: int) -> None:
        self._workers = [_Worker() for _ in range(width)]
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(width):
            self._idle.put(number)
        self._threads = ThreadPoolExecutor(width)
        self._lock, self._ended = threading.Lock(), False

    def submit(self, job: str) -> Pending:
        return self._threads.submit(self._ask, job)

    def end(self) -> None:
        """End all of them, whatever they do."""
        with self._lock:
            self._ended = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown()
        for worker in self._workers:
            worker.close()

    def _ask(self, job: str) -> str:
        number = self._idle.get()
        try:
            for _ in range(DEATHS):
                answer = self._workers[number].ask(job)
                if answer is not None:
                    return answer
                self._replace(number)
            raise Died
        finally:
            self._idle.put(number)

    def _replace(self, number: int) -> None:
        with self._lock:
            if self._ended:
                raise Died
            self._workers[number].kill()
            self._workers[number].close()
            self._workers[number] = _Worker()
