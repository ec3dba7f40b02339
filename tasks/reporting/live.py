"""A bar on the page of a Prefect run that moves while a stage works."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.context import TaskRunContext

from tasks.progress import Move
from tasks.reporting.artifacts import artifact_key, away

_SECONDS = 2.0
"""Between two movements."""
_PAUSES = (1.0, 10.0, 60.0)
"""Seconds after which a busy server is asked again to remove a bar; nobody waits for that."""
_PATIENCE = 2.0
"""Seconds that the end of a stage waits for the last one."""


@contextmanager
def live_progress(name: str) -> Iterator[Move]:
    """Yield what moves the bar ``progress-NAME``; outside of Prefect it does nothing.

    The bar is gone when the block is through, and stays where it was when the block fails. A
    thread of its own tells Prefect, so that no step waits for a server. The first time that
    Prefect does not take it, the bar stays where it is.
    """
    if TaskRunContext.get() is None:
        yield lambda _share, _line: None
        return
    bar = _Bar(artifact_key(f"progress-{name}"))
    thread = threading.Thread(target=copy_context().run, args=(bar.work,), daemon=True)
    thread.start()
    try:
        yield bar.move
        bar.through = True
    finally:
        bar.done.set()
        thread.join(_PATIENCE)


class _Bar:
    def __init__(self, key: str) -> None:
        self.done = threading.Event()
        self.through = False
        self._key = key
        self._now = self._shown = (0.0, "")
        self._artifact: Any = None

    def move(self, share: float, line: str) -> None:
        self._now = (100 * share, line)

    def work(self) -> None:
        try:
            self._show()
            while not self.done.wait(_SECONDS):
                self._show()
            if not self.through:
                self._show()
        except Exception as error:  # a bar that does not move must not stop a training
            sys.stderr.write(f"mypt: progress is not shown in Prefect: {away(error)}\n")
            self.done.wait()
        if self.through and self._artifact is not None:
            self._go()

    def _go(self) -> None:
        """Remove the bar; one that stayed would say for ever that the stage came no further."""
        for pause in _PAUSES:
            with suppress(Exception):
                _remove(self._artifact)
                return
            time.sleep(pause)
        sys.stderr.write("mypt: the bar of a stage that is through stays in Prefect\n")

    def _show(self) -> None:
        now = self._now
        if self._artifact is None:
            self._artifact = create_progress_artifact(now[0], self._key, now[1])
        elif now != self._shown:
            update_progress_artifact(self._artifact, now[0], now[1])
        self._shown = now


def _remove(artifact: UUID) -> None:
    with get_client(sync_client=True) as client:
        client.delete_artifact(artifact)
