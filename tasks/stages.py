"""What every stage of the pipeline has in common as a Prefect task (D42)."""

import errno
import json
import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, get_args, get_type_hints

from prefect import Task, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import emit_event
from prefect.exceptions import MissingContextError
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.runtime import task_run
from prefect.transactions import TransactionState, get_transaction
from pydantic import TypeAdapter

from mypt import files
from mypt.data.manifest import read_manifest, verify_files
from mypt.errors import MyptError
from mypt.home import checkpoint_to_use, home, lock
from mypt.training.lineage import verify_folder
from tasks.progress import print_line
from tasks.reporting.artifacts import MadeBy, collected
from tasks.stopping import StoppableTask
from tasks.tracking.journal import is_finished
from tasks.tracking.recording import reuse
from tasks.tracking.records import journals_dir

P = ParamSpec("P")
R = TypeVar("R")
_DELAYS = [1.0, 10.0]
_JITTER = 0.5
"""Share by which a delay differs: runs that met the same busy disk come back one by one."""
_OURS = "mypt_says_it"
"""Attribute of a log record by which a handler knows it."""
DATASET_MADE = "mypt.dataset.made"
"""Prefect event of a dataset that was tokenized or masked; one that is found again makes none."""
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Output(NamedTuple, Generic[R]):
    """One result on disk: its place, and the way to it from an input that is resolved."""

    path: Path
    key: str
    """Names it, and its journal, by what decided it."""
    make: Callable[[], R]


def stage(
    run_name: str, is_whole: Callable[[Path], object], name: str | None = None
) -> Callable[[Callable[P, Output[R]]], Task[P, R]]:
    """Return a decorator that makes a task of a function that resolves its input to an output.

    The function is called once a try. The output is not made while an equal one was made before
    and is still what it was. Prefect keeps no result: what a file of its store calls itself would
    decide what reads it, and could be a pickle; ours are read by :class:`Made`. Two equal tasks
    in two processes wait for each other. What the machine may get over is tried again; wrong
    data and wrong numbers are not.

    Args:
        run_name: Name of a task run, with the function's parameters in braces.
        is_whole: Reads the output and raises if it is missing or was changed.
        name: The task's, if not the function's.
    """

    def decorate(function: Callable[P, Output[R]]) -> Task[P, R]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            name = task_run.name or function.__name__
            output = function(*args, **kwargs)
            made: Made[R] = Made(output, function)
            with lock(output.key):
                if is_present(output.path, is_whole):
                    if (kept := made.read()) is not None:
                        result, making = kept
                        tell(f"reused: {name}")
                        log(f"{name} was {making}")
                        reuse(output.key, name)
                        making.show_again()
                        _show_as_cached()
                        return result
                    if is_finished(output.key):  # only its result is lost
                        reuse(output.key, name)
                tell(name)
                with collected() as shown:
                    result = output.make()
                return made.write(result, MadeBy(shown=tuple(shown)))

        return StoppableTask(
            run,
            name=name,
            task_run_name=run_name,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=len(_DELAYS),
            retry_delay_seconds=_DELAYS,
            retry_jitter_factor=_JITTER,
            retry_condition_fn=_may_pass,
        )

    return decorate


class Made(Generic[R]):
    """What a stage returned, beside its journal: JSON with its own digest, checked by type.

    Args:
        output: Whose result it is.
        function: The stage's function, whose annotation names the type.
    """

    def __init__(self, output: Output[R], function: Callable[..., Output[R]]) -> None:
        inside = output.path.is_relative_to(home())  # then it moves with the home
        named = output.path.relative_to(home()) if inside else output.path
        place = files.digest_bytes(bytes(named))[:8]
        self._path = journals_dir() / f"{output.key}-{place}.result.json"
        kind = get_args(get_type_hints(function).get("return"))
        self._kind: TypeAdapter[R] = TypeAdapter(kind[0] if kind else Any)

    def read(self) -> tuple[R, MadeBy] | None:
        """Return it and how it was made; None if it is not there, was changed, or is no result."""
        try:
            kept = files.read_sealed(self._path)
            making = MadeBy.model_validate_json(json.dumps(kept["made"]))
            return self._kind.validate_python(kept["result"]), making
        except (OSError, ValueError, KeyError):
            return None

    def write(self, result: R, making: MadeBy) -> R:
        """Keep it, with how it was made, and return it."""
        said = {"result": self._kind.dump_python(result, mode="json")}
        files.make_folder(self._path.parent)
        files.write_sealed(self._path, said | {"made": making.model_dump(mode="json")})
        return result


def _show_as_cached() -> None:
    """Let Prefect show the task run as found again."""
    transaction = get_transaction()
    if transaction is not None:
        transaction.state = TransactionState.COMMITTED


def is_present(path: Path, is_whole: Callable[[Path], object]) -> bool:
    """Return whether an output is there and as it was written."""
    try:
        is_whole(path)
    except (MyptError, OSError, ValueError):
        return False
    return True


def make_room(folder: Path, is_whole: Callable[[Path], object]) -> bool:
    """Return whether ``folder`` must be made, with a damaged one of that name set aside."""
    if is_present(folder, is_whole):
        return False
    if folder.exists():
        aside = files.set_aside(folder)
        tell(f"{folder.name} was changed since it was made; it is {aside.name} now, and made again")
    return True


def tell(line: str) -> None:
    """Print a line, and show it in the log of the Prefect run."""
    print_line(line)
    log(line)


def log(line: str) -> None:
    """Show a line in the log of the Prefect run, if there is one.

    Where a worker's terminal has that log, too, it is left out there: it was printed, or a bar
    makes it needless.
    """
    try:
        logger = get_run_logger()
    except MissingContextError:
        return
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.addFilter(_is_of_others)
    logger.info(line, extra={_OURS: True})


def announce(event: str, name: str, **facts: object) -> None:
    """Tell Prefect of something, so that an automation may follow; outside of a run, nobody.

    Args:
        event: Its name, such as ``mypt.model.made``: the second word is what it is about.
        name: What people call that.
        facts: What else is known, such as its digest.
    """
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    kind = event.split(".")[1].replace("gate", "model")
    resource = {"prefect.resource.id": f"mypt.{kind}.{name}", "prefect.resource.name": name}
    emit_event(event, resource, payload=facts)


def _is_of_others(record: logging.LogRecord) -> bool:
    return not hasattr(record, _OURS)


def _may_pass(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Return whether an error is of the machine and may be over at the next try."""
    error = state.data
    if isinstance(error, MyptError):
        error = error.__cause__  # the core says in one line what the machine said
    lasting = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)
    return (
        isinstance(error, OSError)
        and not isinstance(error, lasting)
        and error.errno not in _LASTING
    )


def whole_dataset(folder: Path) -> None:
    """Check a dataset.

    Raises:
        ManifestError: If anything is missing or was changed.
    """
    verify_files(folder, read_manifest(folder))


def whole_model(folder: Path) -> None:
    """Check the checkpoint of a model folder that is to be used.

    Raises:
        CheckpointError: If there is none, or anything in it is missing or was changed.
    """
    verify_folder(checkpoint_to_use(folder))


def whole_report(path: Path) -> None:
    """Check a sealed JSON file.

    Raises:
        ValueError: If it was changed.
        OSError: If it cannot be read.
    """
    files.read_sealed(path)
