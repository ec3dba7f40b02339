"""Runs as blocks of code: what happens inside is journalled, and a side thread sends it (D41)."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from mypt.errors import MyptError
from mypt.text import shorten
from tasks.tracking.destination import is_remote, read_sent, shown_uri, without_password
from tasks.tracking.journal import Journal, close_if_dead
from tasks.tracking.mirror import Mirror
from tasks.tracking.records import Opened, Reused, Status, journal_path, journals_dir, names, read

_INTERVAL = 2.0
"""Seconds between two sendings."""
_PATIENCE = 2.0
"""Seconds that a run waits in all for an MLflow over a network that does not answer."""
_LOCAL_PATIENCE = 120.0
"""The same for a file on this machine, which is slow at most: its first use makes 50 tables."""


class _Open(NamedTuple):
    journal: Journal
    experiment: str
    shared: dict[str, str]
    post: "_Post"
    made: set[str]
    """What did something: journals of the stages below, and what has none."""
    reused: set[str]
    """Journals of the stages below that found everything made by another run."""


_current: ContextVar[_Open | None] = ContextVar("open_run", default=None)


@contextmanager
def recorded(
    name: str,
    title: str,
    *,
    experiment: str = "mypt",
    tags: dict[str, str] | None = None,
    shared: dict[str, str] | None = None,
    parent: str | None = None,
) -> Iterator[Journal]:
    """Record what the block does as one run, below the run that is open around it.

    The outermost block sends everything before it ends, but waits no longer than two seconds
    for an MLflow that does not answer. An exception ends the run as FAILED, an interruption
    as KILLED; a killed process leaves it to the next one.

    Args:
        name: The journal's name; the same name goes on with the same run.
        title: What people call the run.
        experiment: MLflow experiment of an outermost run; others are in their parent's.
        tags: What is known about the run from the start.
        shared: Further tags, of this run and of all below it.
        parent: The journal of a run in another process that an outermost one is below.
    """
    outer = _current.get()
    post = outer.post if outer else _Post()
    journal = Journal(name)
    below = (outer.shared if outer else {}) | (shared or {})
    opened = Opened(
        experiment=outer.experiment if outer else experiment,
        title=title,
        parent=outer.journal.name if outer else parent,
        tags=below | (tags or {}),
    )
    journal.write(opened)
    post.take(name)
    if outer and name not in outer.reused:
        outer.made.add(name)
        if journal.first and journal.first.parent != opened.parent:
            outer.journal.write(Reused(journal=name, title=title))
    token = _current.set(_Open(journal, opened.experiment, below, post, set(), set()))
    status: Status = "KILLED"
    try:
        yield journal
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        _current.reset(token)
        journal.end(status)
        if outer is None:
            post.close()


def reuse(name: str, title: str) -> None:
    """Note on the open run that a stage below it was made before, and link to its run.

    Args:
        name: The stage's journal.
        title: What people call the stage.
    """
    run = _current.get()
    if run is None:
        return
    first = next(read(name), None) if journal_path(name).exists() else None
    if first and isinstance(first.record, Opened) and first.record.parent == run.journal.name:
        run.made.add(name)  # by the same flow run, which is tried again
        return
    run.reused.add(name)
    run.journal.write(Reused(journal=name, title=title))


def note_work(name: str) -> None:
    """Note that the open run did something new that is no run of its own."""
    if run := _current.get():
        run.made.add(name)


def reused_everything() -> bool:
    """Return whether all stages of the open run so far were made by other runs."""
    run = _current.get()
    return run is not None and bool(run.reused) and not run.made


def mlflow_run_id() -> str | None:
    """Return the id of the MLflow run of the open block, None if MLflow is away."""
    run = _current.get()
    return run.post.run_id(run.journal.name) if run else None


class _Post:
    """A side thread that sends journals, so that nobody waits for MLflow but at the end."""

    def __init__(self) -> None:
        self._leftovers = names()
        self._taken: list[str] = []
        self._moved = threading.Condition()
        self._wake = threading.Event()
        self._closing = self._done = False
        self._answers = 0
        self._failure = self._damage = ""
        self._patience = self._limit = _PATIENCE if is_remote() else _LOCAL_PATIENCE
        # A daemon: a server that never answers cannot keep the process from ending.
        threading.Thread(target=self._work, name="mlflow", daemon=True).start()

    def take(self, name: str) -> None:
        """Send a journal from now on."""
        if name not in self._taken:
            self._taken.append(name)

    def run_id(self, name: str) -> str | None:
        """Return the id of a journal's MLflow run, waiting for it while MLflow answers."""
        self._wake.set()
        self._wait(lambda: read_sent(name).run_id is not None)
        return read_sent(name).run_id

    def close(self) -> None:
        """Send the rest; say what could not be sent."""
        self._closing = True
        self._wake.set()
        self._wait(lambda: self._done)
        if not self._done:
            self._done = True
            sys.stderr.write(
                f"mypt: MLflow at {shown_uri()} lacks a part of this run"
                f" ({self._failure or 'no answer'}); it is kept in {journals_dir()}, and"
                " 'mypt sync' sends it\n"
            )
        if self._damage:
            sys.stderr.write(f"mypt: not sent to MLflow: {self._damage}\n")

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait for ``condition`` while MLflow answers; patience is lost while it does not."""
        with self._moved:
            while not condition() and self._patience > 0:
                start, answers = time.monotonic(), self._answers
                self._moved.wait(self._patience)
                if answers == self._answers:
                    self._patience -= time.monotonic() - start

    def _work(self) -> None:
        mirror = None
        while not self._done:
            closing = self._closing
            self._wake.clear()
            try:
                mirror = mirror or Mirror()
                self._send(mirror)
            except Exception as error:  # whatever ails MLflow, training goes on
                self._failed(error)
                with self._moved:  # a local database that refuses is not slow
                    self._patience = min(self._patience, _PATIENCE)
                    self._moved.notify_all()
            else:
                with self._moved:
                    self._done = closing
                    self._moved.notify_all()
            if not self._done:
                self._wake.wait(_INTERVAL)

    def _send(self, mirror: Mirror) -> None:
        """Send what this process writes, and once what others left."""
        leftovers = [name for name in self._leftovers if name not in self._taken]
        for name in (*self._taken, *leftovers):
            try:
                if name in leftovers:
                    close_if_dead(name)
                for _ in mirror.send(name):
                    self._answered()
            except MyptError as error:
                self._damage = str(error)
        self._leftovers = ()

    def _failed(self, error: Exception) -> None:
        with self._moved:
            self._failure = shorten(without_password(str(error)), 200)
            # A file may be slow, but one that fails is as good as away.
            self._patience = min(self._patience, _PATIENCE)
            self._moved.notify_all()

    def _answered(self) -> None:
        with self._moved:
            self._answers += 1
            self._failure = ""
            self._patience = self._limit
            self._moved.notify_all()
