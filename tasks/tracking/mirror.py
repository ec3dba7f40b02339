"""Journals sent to MLflow, each from where the last sending stopped (D41)."""

import sys
from collections.abc import Iterator, Sequence
from itertools import islice

from filelock import Timeout

from mypt.errors import MyptError
from mypt.evaluation.gate import champions
from mypt.home import lock
from tasks.tracking.client import Failure, MlflowRun, Tracker, is_gone, is_refusal
from tasks.tracking.destination import (
    is_remote,
    mlflow_is_there,
    read_sent,
    run_page,
    shown_uri,
    write_sent,
)
from tasks.tracking.journal import close_if_dead
from tasks.tracking.records import Ended, Opened, Record, Reused, Tags, journal_path, names, read

_WAIT_SECONDS = 30.0
_RECORDS = 200


class Mirror:
    """Sends journals to one MLflow. Sending twice changes nothing."""

    def __init__(self) -> None:
        self._tracker = Tracker()

    def send(self, name: str, wait: float = 0.0) -> Iterator[int]:
        """Send what MLflow lacks of a journal; yield how many records each request brought.

        Args:
            name: The journal.
            wait: Seconds to wait for another process that sends it just now, before leaving
                it to that one.

        Raises:
            Failure: If MLflow is away; what was yielded has arrived.
            MyptError: If the journal is damaged.
        """
        try:
            with lock(f"{name}.sending").acquire(timeout=wait):
                try:
                    yield from self._send(name)
                except Failure as error:
                    if not is_gone(error):
                        raise
                    # Somebody removed the run, or the whole database: the journal has it all.
                    self._tracker = Tracker()
                    write_sent(
                        name, read_sent(name).model_copy(update={"run_id": None, "offset": 0})
                    )
                    yield from self._send(name)
        except Timeout:
            return

    def _send(self, name: str) -> Iterator[int]:
        run = self._run(name)
        lines = read(name, read_sent(name).offset)
        while batch := list(islice(lines, _RECORDS)):
            records = [self._placed(line.record) for line in batch]
            try:
                self._tracker.apply(run, records)
            except Failure as error:
                if not is_refusal(error):
                    raise
                self._apply_singly(run, records)
            ended = isinstance(records[-1], Ended)
            progress = {"offset": batch[-1].end, "ended": ended}
            write_sent(name, read_sent(name).model_copy(update=progress))
            yield len(batch)

    def _run(self, name: str) -> MlflowRun:
        """Return the MLflow run of a journal: kept, found by its tag, or new."""
        state = read_sent(name)
        first = next(read(name)).record
        assert isinstance(first, Opened)
        if state.run_id and state.experiment_id:
            return MlflowRun(state.run_id, state.experiment_id, first.experiment, name)
        run = self._tracker.run(name, self._below_its_parent(first))
        found_at = {"run_id": run.id, "experiment_id": run.experiment}
        write_sent(name, state.model_copy(update=found_at))
        return run

    def _placed(self, record: Record) -> Record:
        if not isinstance(record, Reused) or not journal_path(record.journal).exists():
            return record
        made_by = self._run(record.journal)
        return record.model_copy(update={"page": run_page("", made_by.experiment, made_by.id)})

    def _below_its_parent(self, record: Opened) -> Opened:
        if record.parent is None:
            return record
        tags = record.tags | {"mlflow.parentRunId": self._run(record.parent).id}
        return record.model_copy(update={"tags": tags})

    def _apply_singly(self, run: MlflowRun, records: Sequence[Record]) -> None:
        """Let one record that MLflow refuses hold up no other; a tag of the run counts them."""
        refused = []
        for record in records:
            try:
                self._tracker.apply(run, [record])
            except Failure as error:
                if not is_refusal(error):
                    raise
                refused.append(str(error))
        if refused:
            note = f"{len(refused)} records; first: {refused[0]}"
            self._tracker.apply(run, [Tags(values={"mypt.refused": note})])


def sync() -> int:
    """Send what MLflow lacks of every journal; close those whose writer died.

    Returns:
        Records sent; 0 if MLflow had everything.

    Raises:
        MyptError: If MLflow is away or a journal is damaged.
    """
    mirror, sent = None, 0
    for name in sorted(names(), key=_begun):
        close_if_dead(name)
        try:
            mirror = mirror or Mirror()
            sent += sum(mirror.send(name, wait=_WAIT_SECONDS))
        except Failure as error:
            raise MyptError(
                f"MLflow at {shown_uri()} took {sent} records and then failed ({error}); nothing"
                " is lost, run 'mypt sync' when it answers"
            ) from None
    return sent


def _begun(name: str) -> int:
    """Return when a run began: what measures a checkpoint is sent after what made it."""
    for line in read(name):
        assert isinstance(line.record, Opened)
        return line.record.time
    return 0


def follow_prefect(server: str) -> None:
    """Let links from runs in the MLflow of this home lead to where its Prefect is now.

    A link that does not is named on the terminal and holds nobody.

    Args:
        server: Where it is, such as ``http://127.0.0.1:4200``.
    """
    if is_remote() or not (mlflow_is_there() and names()):  # else its tables may be half made
        return
    try:
        Tracker().follow_prefect(server)
    except Failure as error:
        sys.stderr.write(f"mypt: links in MLflow lead to where Prefect was ({error})\n")


def mirror_champion() -> None:
    """Let the alias ``champion`` say what the file says, where MLflow is there and lists them.

    An MLflow that is away is named on the terminal and holds nobody: ``mypt sync`` does the same.

    Raises:
        CheckpointError: If the champions' file is damaged.
    """
    held = champions()
    if not held or not mlflow_is_there():
        return
    try:
        missing = Tracker().crown([found.checkpoint.digest for found in held])
    except Failure as error:
        sys.stderr.write(
            f"mypt: MLflow at {shown_uri()} does not know the new champion ({error}); 'mypt sync'"
            " tells it\n"
        )
        return
    for found in held:
        if found.checkpoint.digest in missing:
            sys.stderr.write(
                f"mypt: MLflow's registry does not list the champion {found.name}, which no"
                " pipeline made; no alias points at it\n"
            )
