"""What every stage of the pipeline has in common as a Prefect task (D42)."""

import errno
import logging
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from prefect import Task, get_run_logger
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.runtime import task_run
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH

from mypt import files
from mypt.data.manifest import read_manifest, verify_files
from mypt.errors import MyptError
from mypt.home import checkpoint_to_use, lock
from mypt.training.lineage import verify_folder
from tasks.progress import print_line
from tasks.stopping import StoppableTask
from tasks.tracking.journal import is_finished
from tasks.tracking.recording import reuse

P = ParamSpec("P")
R = TypeVar("R")
_DELAYS = [1.0, 10.0]
_OURS = "mypt_says_it"
"""Attribute of a log record by which a handler knows it."""
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Output(NamedTuple, Generic[R]):
    """One result on disk: its place, and the way to it from an input that is resolved."""

    path: Path
    key: str
    """Names it, and its journal, by what decided it."""
    make: Callable[[], R]
    present: bool = False
    """Whether it is there, as :func:`stage` found it before the task began."""


_keyed: ContextVar[tuple[str, Output[Any]] | None] = ContextVar("_keyed", default=None)
"""The task run that was keyed last in this thread, by id, and what it will make."""


def stage(
    run_name: str, is_whole: Callable[[Path], object], name: str | None = None
) -> Callable[[Callable[P, Output[R]]], Task[P, R]]:
    """Return a decorator that makes a task of a function that resolves its input to an output.

    The function is called once a try: for the key that Prefect remembers results by. The output
    is not made while an equal one was made before and is still what it was, for Prefect does not
    look whether files are there. Two equal tasks in two processes wait for each other. What the
    machine may get over is tried again; wrong data and wrong numbers are not.

    Args:
        run_name: Name of a task run, with the function's parameters in braces.
        is_whole: Reads the output and raises if it is missing or was changed.
        name: The task's, if not the function's.
    """

    def decorate(function: Callable[P, Output[R]]) -> Task[P, R]:
        def cache_key(context: TaskRunContext, arguments: dict[str, Any]) -> str | None:
            _keyed.set(None)
            try:
                output = function(**arguments)  # type: ignore[call-arg]
            except (MyptError, OSError):
                return None  # the task meets the same error, and raises it
            output = output._replace(present=is_present(output.path, is_whole))
            _keyed.set((str(context.task_run.id), output))
            key = f"{output.key}-{files.digest_bytes(bytes(output.path))[:8]}"
            if not output.present:
                (PREFECT_LOCAL_STORAGE_PATH.value() / key).unlink(missing_ok=True)
            return key

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            name = task_run.name or function.__name__
            tell(name)
            output: Output[R] = _take(task_run.id) or function(*args, **kwargs)
            with lock(output.key):
                if output.present and is_finished(output.key):  # Prefect's result alone is lost
                    reuse(output.key, name)
                return output.make()

        return StoppableTask(
            run,
            name=name,
            task_run_name=run_name,
            cache_key_fn=cache_key,
            persist_result=True,
            result_serializer="json",
            retries=len(_DELAYS),
            retry_delay_seconds=_DELAYS,
            retry_condition_fn=_may_pass,
            on_completion=[_say_reused],
        )

    return decorate


def _take(task_run_id: str | None) -> Output[Any] | None:
    """Return what this very task run was keyed by, once."""
    run_id, output = _keyed.get() or (None, None)
    _keyed.set(None)
    return output if run_id == task_run_id else None


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


def _say_reused(_: Task[..., Any], run: TaskRun, state: State[Any]) -> None:
    if state.name == "Cached":
        tell(f"reused: {run.name}")
        if output := _take(str(run.id)):
            reuse(output.key, run.name)


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a line says more than that Prefect runs the hook above; it says so twice."""
    return record.levelno > logging.INFO or _say_reused.__name__ not in record.getMessage()


logging.getLogger("prefect.task_runs").addFilter(_is_news)


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
