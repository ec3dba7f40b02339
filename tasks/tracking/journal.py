"""The journal of a run: written first, so that MLflow may be away (D41)."""

import math
from contextlib import suppress

from filelock import Timeout

from mypt.errors import MyptError
from mypt.home import lock
from tasks.tracking.records import (
    Ended,
    Metrics,
    Opened,
    Record,
    Status,
    journal_path,
    journals_dir,
    read,
)

_LOCK_SECONDS = 10.0


class Journal:
    """The journal of one run, open for appending by one process at a time.

    Opened again under the same name it goes on: a figure of a step that it already holds is
    not written twice, so a resumed training repeats nothing.

    Raises:
        MyptError: If another process keeps writing it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        journals_dir().mkdir(parents=True, exist_ok=True)
        self._lock = lock(f"{name}.writing")
        try:
            self._lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout:
            raise MyptError(
                f"{journal_path(name)} is being written by another process; expected one run of"
                " that name at a time; wait for it, or stop it"
            ) from None
        self.first: Opened | None = None  # how the run began, whoever goes on with it
        self._steps: dict[str, int] = {}
        path = journal_path(name)
        end = 0
        for line in read(name) if path.exists() else ():
            end = line.end
            self._remember(line.record)
        self._file = path.open("ab")
        self._file.truncate(end)  # what a killed process left of its last line

    def write(self, record: Record) -> None:
        """Append a record; of metrics only what is a number and not yet there.

        The bytes reach the operating system at once: a killed process has written all of it,
        and only a power cut can lose the tail.

        Raises:
            MyptError: If the disk refuses.
        """
        if isinstance(record, Metrics):
            record = record.model_copy(update={"values": self._fresh(record)})
            if not record.values:
                return
        try:
            self._file.write(record.model_dump_json().encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise MyptError(
                f"{journal_path(self.name)}: cannot be written ({error.strerror}); make room and"
                " run the same again, which goes on"
            ) from error
        self._remember(record)

    def end(self, status: Status) -> None:
        """Say how the run ended, and let others write the journal."""
        try:
            self.write(Ended(status=status))
        finally:
            with suppress(OSError):  # what refused a line has said so
                self._file.close()
            self._lock.release()

    def _fresh(self, record: Metrics) -> dict[str, float]:
        return {
            key: value
            for key, value in record.values.items()
            if math.isfinite(value) and self._steps.get(key, -1) < record.step
        }

    def _remember(self, record: Record) -> None:
        if isinstance(record, Opened) and self.first is None:
            self.first = record
        if isinstance(record, Metrics):
            for key in record.values:
                self._steps[key] = max(record.step, self._steps.get(key, -1))


def is_finished(name: str) -> bool:
    """Return whether the run of a journal came to its end."""
    last = None
    for line in read(name) if journal_path(name).exists() else ():
        last = line.record
    return isinstance(last, Ended) and last.status == "FINISHED"


def close_if_dead(name: str) -> None:
    """End the journal of a process that was killed before it could."""
    held = lock(f"{name}.writing")
    try:
        with held.acquire(timeout=0):
            path, last = journal_path(name), None
            for line in read(name):
                last = line
            if last is None or isinstance(last.record, Ended):
                return
            when = int(path.stat().st_mtime * 1000)
            with path.open("ab") as file:
                file.truncate(last.end)
                file.write(Ended(time=when, status="KILLED").model_dump_json().encode() + b"\n")
    except Timeout:
        return  # it lives
