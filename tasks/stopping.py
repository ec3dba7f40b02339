"""Ctrl-C, SIGTERM and Prefect's Cancel: our own code stops at once, Prefect's is never cut short.

Prefect takes what interrupts it for a crash, and crashes call people. So signals are heard without
a word while Prefect is at work, and what was asked for ends a task and its flow as cancelled.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.states import Cancelled
from prefect.transactions import get_transaction

P = ParamSpec("P")
R = TypeVar("R")
_KINDS = (signal.SIGINT, signal.SIGTERM)


class _Thread(threading.local):
    acts = False
    """Whether a signal stops what it does just now."""
    ours = False
    """Whether that is our code: a second Ctrl-C cuts it short, and Prefect's never."""


_this = _Thread()
_asked: list[int] = []
"""Signals that came since the outermost block began that hears them."""


class Stopped(BaseException):
    """Raised where the work stands when somebody asks for its end."""


@contextmanager
def heard() -> Iterator[list[int]]:
    """Hear SIGINT and SIGTERM while the block runs, and yield the list of those that came.

    The first stops what is :func:`acting`, now or once it comes to act. A second Ctrl-C stops
    wherever our code stands, and what Prefect is doing once it is done; a third kills. Only the
    main thread hears; in another nothing is changed.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    outermost = signal.getsignal(signal.SIGINT) is not _hear
    if outermost:
        _asked = []
    before = [signal.signal(kind, _hear) for kind in _KINDS]
    try:
        yield _asked
    finally:
        for kind, handler in zip(_KINDS, before, strict=True):
            signal.signal(kind, handler)
        if outermost:
            _asked = []


@contextmanager
def acting(now: bool = True, *, ours: bool = True) -> Iterator[Callable[[], bool]]:
    """Let a signal stop the block at once, or hold it back until the block ends.

    Args:
        now: Stop at once.
        ours: The block is our code, which a second Ctrl-C stops at once in any case.

    Yields:
        Whether a stop was asked for, for a block that looks for itself where it can stop.

    Raises:
        Stopped: Behind the block, or in it.
    """
    before = _this.acts, _this.ours
    try:
        _this.acts, _this.ours = now, ours
        if now and _asked:
            raise Stopped
        yield lambda: bool(_asked)
    finally:
        _this.acts, _this.ours = before
    if before[0] and _asked:
        raise Stopped


def _hear(number: int, _frame: FrameType | None) -> None:
    first = not _asked
    _asked.append(number)
    if number == signal.SIGINT and first:
        os.write(2, b"\nmypt: stopping; Ctrl-C again ends at once\n")
    if first and _this.acts:
        raise Stopped
    if not first and number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if _this.ours:
            raise Stopped
        os.write(2, b"\nmypt: Prefect writes it down; Ctrl-C again kills\n")


def cancelled() -> Any:
    """Return the state of what was stopped, as the result of a task or of a flow."""
    name = signal.Signals(_asked[0]).name
    return Cancelled(message=f"Stopped by {name}; what was complete is kept, run the same again.")


class StoppableTask(Task[P, R]):
    """A task whose function can be stopped anywhere, and which then is cancelled.

    Args:
        function: What it does.
        options: As :func:`prefect.task` takes them.
    """

    def __init__(self, function: Callable[P, R], **options: Any) -> None:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                with acting():
                    return function(*args, **kwargs)
            except Stopped:
                transaction = get_transaction()
                if transaction is not None:
                    transaction.write_on_commit = False  # there is no result to be found again
                return cancelled()  # type: ignore[no-any-return]

        super().__init__(run, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task; where it was stopped, so is its flow."""
        with acting(False, ours=False):
            return super().__call__(*args, **kwargs)


def stoppable(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function of a flow that hears signals and, where one came, ends as cancelled."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with heard():
            try:
                with acting():
                    return function(*args, **kwargs)
            except Stopped:
                return cancelled()  # type: ignore[no-any-return]

    return run
