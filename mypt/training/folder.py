"""The folder of one model name: who may write in it, what it holds, what is thrown away."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from mypt import files, home
from mypt.errors import CheckpointError, ConfigError
from mypt.parsing import Frozen
from mypt.training.lineage import RunContext, verify_folder
from mypt.training.plan import RunPlan

RUN = "run.json"
LATEST = "latest"
BEST = "best"
DAMAGED = "damaged-"
_LOCK = ".lock"


class RunRecord(Frozen):
    """``run.json``: what the name means."""

    plan: RunPlan
    context: RunContext
    """Of the first start; a run killed before its first checkpoint goes on with these ids."""
    digest: str = ""


@contextmanager
def claim(plan: RunPlan, context: RunContext, patience: float = 0.0) -> Iterator[Path]:
    """Yield the model's folder, held for this run alone; the first claim writes ``run.json``.

    Args:
        plan: What is about to be trained.
        context: Who asked for it.
        patience: Seconds to wait for whoever holds it now.

    Raises:
        CheckpointError: If another process holds it, or it holds steps of an unknown run.
        ConfigError: If the name belongs to a run of another config, dataset or parent.
    """
    folder = home.models_dir() / home.check_name(plan.model_name, "model name")
    files.make_folder(folder)
    lock = FileLock(folder / _LOCK, timeout=patience, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise CheckpointError(
            f"{folder} is held by another run that is training now; wait for it or choose"
            " another model name"
        ) from None
    try:
        files.remove_leftovers(folder)
        _check_same_run(folder, plan, context)
        yield folder
    finally:
        lock.release()


def read_run(folder: Path) -> RunRecord | None:
    """Return what a model folder was made for; None if nothing began there.

    Raises:
        CheckpointError: If ``run.json`` is damaged.
    """
    path = folder / RUN
    try:
        return RunRecord.model_validate(files.read_sealed(path))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise CheckpointError(f"{path}: not what this mypt writes; use another name") from None
    except ValueError as error:
        raise CheckpointError(
            f"{path}: damaged: {error}; put a copy back or train under another name"
        ) from None


def steps(folder: Path) -> tuple[int, ...]:
    """Return the steps that have a checkpoint folder, newest first."""
    found = (home.STEP_FOLDER.fullmatch(path.name) for path in folder.iterdir() if path.is_dir())
    return tuple(sorted((int(match[1]) for match in found if match), reverse=True))


def newest_whole(folder: Path) -> tuple[Path | None, tuple[str, ...]]:
    """Return the newest checkpoint whose every byte is as written, and what was found damaged.

    ``latest`` is not asked: a crash between a checkpoint and its pointer must not lose it.
    A damaged checkpoint is renamed, so that its step can be made again.
    """
    notes = []
    for step in steps(folder):
        path = folder / home.step_folder(step)
        try:
            verify_folder(path)
        except CheckpointError as error:
            aside = files.set_aside(path, DAMAGED)
            notes.append(f"not used, renamed {aside.name}: {error}")
        else:
            return path, tuple(notes)
    return None, tuple(notes)


def point(folder: Path, step: int, best_step: int | None) -> None:
    """Let ``latest`` and ``best`` name checkpoints that are there."""
    files.write_bytes(folder / LATEST, f"{home.step_folder(step)}\n".encode())
    best = folder / BEST
    if best_step is not None and (folder / home.step_folder(best_step)).is_dir():
        name = f"{home.step_folder(best_step)}\n".encode()
        if not best.is_file() or best.read_bytes() != name:
            files.write_bytes(best, name)
    else:
        files.remove_file(best)


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Remove all checkpoints but the newest ``keep`` and the best."""
    for step in steps(folder)[keep:]:
        if step != best_step:
            files.remove_folder(folder / home.step_folder(step))


def _check_same_run(folder: Path, plan: RunPlan, context: RunContext) -> None:
    found = read_run(folder)
    if found is None:
        if there := steps(folder):
            raise CheckpointError(
                f"{folder} holds step {there[0]} and no {RUN}: nobody knows what made it; choose"
                " another model name"
            )
        _begin(folder, plan, context)
        return
    changed = found.plan.differences(plan)
    if changed and not steps(folder) and not any(folder.glob("damaged-*")):
        _begin(folder, plan, context)  # a start that failed before its first step owns no name
    elif changed:
        raise ConfigError(
            f"model {plan.model_name!r} is a run of another config: {', '.join(changed)};"
            f" choose another model name (with --init_from_model {plan.model_name} to train this"
            f" one further), or remove {folder}"
        )


def _begin(folder: Path, plan: RunPlan, context: RunContext) -> None:
    record = RunRecord(plan=plan, context=context)
    files.write_sealed(folder / RUN, record.model_dump(mode="json", exclude={"digest"}))
