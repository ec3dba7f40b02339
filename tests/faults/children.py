"""Forked processes: torch is imported once, and each trial has a process of its own to lose."""

import json
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

PATIENCE = 240.0
"""Seconds after which a child counts as hung."""


class Ended(NamedTuple):
    """How a child came to its end."""

    code: int
    """Exit code, or minus the signal that killed it."""
    kind: str = ""
    """Classes of the exception that it raised, the nearest first; empty if there was none."""
    message: str = ""
    """What that exception says."""
    trace: str = ""
    said: Any = None
    """What ``work`` returned, if it was no exit code."""

    @property
    def shell_code(self) -> int:
        """The code as a shell or a scheduler shows it."""
        return self.code if self.code >= 0 else 128 - self.code

    def __bool__(self) -> bool:
        return self.code == 0


class Child:
    """A forked process that does ``work`` and leaves without any cleaning up."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._pipe, written = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            _live(work, written)
        os.close(written)
        self._said = b""

    def wait(self) -> Ended:
        """Return how it ended; a child that hangs is killed and raises."""
        deadline = time.monotonic() + PATIENCE
        while select.select([self._pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = os.read(self._pipe, 1 << 16)
            self._said += piece
            if not piece:
                break
        else:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise AssertionError(f"a child hung for {PATIENCE:.0f} seconds")
        os.close(self._pipe)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        try:
            return Ended(code, **json.loads(self._said or b"{}"))
        except ValueError:  # killed while it spoke
            return Ended(code)


def run(work: Callable[[], object]) -> Ended:
    """Do ``work`` in a child and wait for its end."""
    return Child(work).wait()


def run_whole(work: Callable[[], object]) -> None:
    """Do ``work`` in a child, which must not fail."""
    ask(lambda: work() and None)


def ask(work: Callable[[], object]) -> Any:
    """Do ``work`` in a child, which must not fail, and return what it returns."""
    ended = run(work)
    assert ended, f"exit {ended.code}: {ended.trace or ended.message}"
    return ended.said


def killed_after(work: Callable[[], object], seconds: float, number: int) -> Ended:
    """Do ``work`` in a child that gets a signal on the way."""
    child = Child(work)
    time.sleep(seconds)
    os.kill(child.pid, number)  # a zombie, if it has ended already
    return child.wait()


def _live(work: Callable[[], object], said: int) -> None:
    code = 70
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        result = work()
        code = result if isinstance(result, int) else 0
        os.write(said, json.dumps({} if isinstance(result, int) else {"said": result}).encode())
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
        spoken = {"kind": kinds, "message": str(error), "trace": traceback.format_exc()[-4000:]}
        os.write(said, json.dumps(spoken).encode())
    finally:
        os._exit(code)
