"""Journals sent to MLflow, each from where the last sending stopped (D41)."""

import sys
from collections.abc import Iterator, Sequence
from itertools import islice

from filelock import Timeout

from mypt.errors import ConfigError, MyptError
from mypt.evaluation.gate import champions
from mypt.home import lock, place_now
from mypt.text import markdown, one_line
from tasks.tracking.client import Failure, MlflowRun, Tracker, is_gone, is_refusal, refuses_run
from tasks.tracking.destination import (
    is_remote,
    mlflow_is_there,
    read_sent,
    run_page,
    shown_uri,
    ui_page,
    write_sent,
)
from tasks.tracking.journal import close_if_dead
from tasks.tracking.records import (
    Described,
    Ended,
    JournalLine,
    Opened,
    Params,
    Record,
    Reused,
    Tags,
    Traces,
    journal_path,
    names,
    read,
)

_WAIT_SECONDS = 30.0
_RECORDS = 200


class RefusedRunError(MyptError):
    """A run that MLflow does not take though it answers: somebody deleted it, or its experiment."""

    def __init__(self, journal: str, why: Failure) -> None:
        self.journal = journal
        self._opened = _first(journal)
        name = (read_sent(journal).run_id or "")[:12] or journal
        super().__init__(
            f"MLflow at {shown_uri()} does not take the run {one_line(self._opened.title)}"
            f" ({name}) of {self._opened.experiment}: {one_line(str(why))}; restore it there, or"
            f" let it go with 'mypt sync --forget {name}'"
        )

    def is_called(self, text: str) -> bool:
        """Return whether ``text`` means the run, or its experiment."""
        begins = read_sent(self.journal).is_called(text)
        return begins or text in (self.journal, self._opened.title, self._opened.experiment)


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
            RefusedRunError: If MLflow answers and does not take the run.
            MyptError: If the journal is damaged.
        """
        if read_sent(name).forgotten:
            return
        try:
            with lock(f"{name}.sending").acquire(timeout=wait):
                yield from self._send_or_again(name)
        except Timeout:
            return
        except Failure as error:
            if refuses_run(error):
                raise RefusedRunError(name, error) from None
            raise

    def _send_or_again(self, name: str) -> Iterator[int]:
        try:
            yield from self._send(name)
        except Failure as error:
            if not is_gone(error):
                raise
            # Somebody removed the run, or the whole database: the journal has it all.
            self._tracker = Tracker()
            write_sent(name, read_sent(name).model_copy(update={"run_id": None, "offset": 0}))
            yield from self._send(name)

    def _send(self, name: str) -> Iterator[int]:
        run = self._run(name)
        lines = read(name, read_sent(name).offset)
        while batch := _batch(lines):
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
        first = _first(name)
        if state.run_id and state.experiment_id:
            return MlflowRun(state.run_id, state.experiment_id, first.experiment, name)
        run = self._tracker.run(name, self._below_its_parent(first))
        found_at = {"run_id": run.id, "experiment_id": run.experiment}
        write_sent(name, state.model_copy(update=found_at))
        return run

    def _placed(self, record: Record) -> Record:
        """Return the record with addresses and places in it as they are now."""
        if isinstance(record, Params | Tags):
            values = {key: place_now(value) for key, value in record.values.items()}
            return record.model_copy(update={"values": values})
        if isinstance(record, Described):
            links = [self._link(*page) for page in record.pages if journal_path(page[1]).exists()]
            if record.beside and all(journal_path(name).exists() for name in record.beside):
                links.append(self._compared(*map(self._run, record.beside)))
            line = " · ".join(links)
            return record.model_copy(
                update={"lines": (*record.lines, *(("", line) if line else ()))}
            )
        if not isinstance(record, Reused) or not journal_path(record.journal).exists():
            return record
        made_by = self._run(record.journal)
        page, begun = run_page("", made_by.experiment, made_by.id), _begun(record.journal)
        return record.model_copy(update={"page": page, "begun": begun})

    def _link(self, label: str, journal: str, file: str) -> str:
        run = self._run(journal)
        page = f"/experiments/{run.experiment}/runs/{run.id}/artifacts/{file}"
        return f"[{markdown(label)}]({ui_page('', page)})"

    def _compared(self, one: MlflowRun, other: MlflowRun) -> str:
        """Return a link to MLflow's page of two models' answers, which its mode for agents has."""
        runs = {"selectedRunUuid": one.id, "compareToRunUuid": other.id}
        page = f"/experiments/{one.experiment}/evaluation-runs"
        return f"[answers side by side]({ui_page('', page, workflowType='genai', **runs)})"

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


def _batch(lines: Iterator[JournalLine]) -> list[JournalLine]:
    """Take the records of one request; answers, each of which MLflow is told, end it."""
    batch = []
    for line in islice(lines, _RECORDS):
        batch.append(line)
        if isinstance(line.record, Traces):
            break
    return batch


def sync(forget: str | None = None) -> int:
    """Send what MLflow lacks of every journal; close those whose writer died.

    Args:
        forget: A run that is sent no more if MLflow does not take it: its id or the beginning of
            that, its name, its journal, or the experiment of several.

    Returns:
        Records sent; 0 if MLflow had everything.

    Raises:
        ConfigError: If MLflow takes all that is called ``forget``.
        MyptError: If MLflow is away or does not take a run, or a journal is damaged; whatever
            can be sent was sent, unless MLflow is away.
    """
    mirror, sent, failed = None, 0, []
    for name in sorted(names(), key=_begun):
        close_if_dead(name)
        try:
            mirror = mirror or Mirror()
            for count in mirror.send(name, wait=_WAIT_SECONDS):
                sent += count
        except RefusedRunError as error:
            failed.append(error)
        except Failure as error:
            raise MyptError(
                f"MLflow at {shown_uri()} took {sent} records and then failed ({error}); nothing"
                " is lost, run 'mypt sync' when it answers"
            ) from None
    if forget is not None:
        failed = _let_go(failed, forget)
    if failed:
        more = f" (and {len(failed) - 1} more)" if failed[1:] else ""
        raise MyptError(f"{failed[0]}{more}; all others were sent, {sent} records")
    return sent


def _let_go(refused: Sequence[RefusedRunError], called: str) -> list[RefusedRunError]:
    """Send those of ``refused`` that are called so no more; return the others."""
    meant = [run for run in refused if run.is_called(called)]
    if not meant:
        raise ConfigError(
            f"--forget {called}: MLflow refuses no run of that id, name or experiment;"
            f" {len(refused)} are refused; only those can be let go"
        )
    for run in meant:
        write_sent(run.journal, read_sent(run.journal).model_copy(update={"forgotten": True}))
    return [run for run in refused if run not in meant]


def _begun(name: str) -> int:
    """Return when a run began: what measures a checkpoint is sent after what made it."""
    return _first(name).time if any(read(name)) else 0


def _first(name: str) -> Opened:
    first = next(read(name)).record
    assert isinstance(first, Opened)
    return first


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
