"""Requests that wait in a bounded line for the one thread that lets the model write."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from mypt.inference.reply import Reply

_LOG = logging.getLogger(__name__)


class LineFull(Exception):  # noqa: N818 - no fault of anybody: the request may come again
    """So many requests wait that no further one is taken."""


class Closed(Exception):  # noqa: N818 - likewise
    """The server is about to end."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request."""

    reply: Reply
    emit: Callable[[str | BaseException | None], None]
    """Called from the writing thread: with each text, at last with None or with what went wrong."""
    left: threading.Event = field(default_factory=threading.Event)
    """Set by whoever no longer wants the answer."""


class Line:
    """First come, first served; each answer is written by itself, as fast as the machine can."""

    def __init__(self, length: int) -> None:
        """Start the thread.

        Args:
            length: How many requests may wait beside the one that is answered.
        """
        self._length = length
        self._jobs: deque[Job] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mypt-answers", daemon=True)
        self._thread.start()

    def add(self, job: Job) -> None:
        """Let a request wait.

        Raises:
            LineFull: If too many wait already.
            Closed: If the server is about to end.
        """
        with self._changed:
            if self._closed:
                raise Closed
            if len(self._jobs) >= self._length:
                raise LineFull
            self._jobs.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Break off the answer that is being written and refuse all that wait.

        Safe in a signal handler, where a lock might be held already: it takes none.
        """
        self._closed = True

    def join(self) -> None:
        """Wait for the thread after :meth:`close`."""
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                job = self._jobs.popleft()
            self._answer(job)

    def _answer(self, job: Job) -> None:
        texts = iter(job.reply)
        try:
            while not (self._closed or job.left.is_set()):
                text = next(texts, None)
                job.emit(text)
                if text is None:
                    return
            if not job.left.is_set():
                job.emit(Closed())
        except Exception as error:  # one bad answer must not end the others
            _LOG.exception("an answer failed")
            job.emit(error)
