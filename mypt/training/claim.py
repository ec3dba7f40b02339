"""The lock of a model's name, the step to resume from, and how the ranks begin together."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import Timeout
from pydantic import ValidationError

from mypt import files, home
from mypt.config import Preset
from mypt.errors import CheckpointError, ConfigError
from mypt.parsing import Frozen
from mypt.training.checkpoints import folder as step_folders
from mypt.training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from mypt.training.checkpoints.folder import RUN, steps
from mypt.training.checkpoints.sharded import consolidate, newest_parts
from mypt.training.checkpoints.state import read_state
from mypt.training.distributed import Ranks
from mypt.training.lineage import Lineage, RunContext, read_lineage
from mypt.training.plan import RunPlan

_LOCK = ".lock"


class Beginning(NamedTuple):
    """Where a run stands before its next step."""

    folder: Path
    """The model's folder, held by rank 0 for this run alone."""
    found: Checkpoint | None
    """The checkpoint to go on from; None begins."""
    notes: tuple[str, ...]
    """A line for each damaged checkpoint that was passed over."""


@contextmanager
def beginning(plan: RunPlan, context: RunContext, ranks: Ranks) -> Iterator[Beginning]:
    """Yield where a run stands; nobody else writes in its folder inside the block.

    Where ranks were started again, whoever is left of the last start may still hold the folder;
    it ends within ``step_timeout`` seconds, and rank 0 waits for that.

    Raises:
        ConfigError: On every rank, as :func:`mypt.training.claim.claim`.
        CheckpointError: Likewise.
    """
    patience = plan.preset.step_timeout / 2 if ranks.size > 1 else 0.0
    kept: list[Checkpoint | None] = []
    with ExitStack() as held:

        def look() -> tuple[Path, Path | None, tuple[str, ...]]:
            folder = held.enter_context(claim(plan, context, patience))
            found, notes = _newest(folder, plan)
            kept.append(found)
            return folder, None if found is None else found.path, notes

        folder, path, notes = ranks.first(look)
        if not kept:  # rank 0 has verified it
            kept.append(None if path is None else load_checkpoint(path, verify=False, merge=False))
        yield Beginning(folder, kept[0], notes)


def _newest(folder: Path, plan: RunPlan) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """Return the newest whole checkpoint, joined first where a crash left parts alone."""
    found, notes = last_checkpoint(folder, plan)
    parts, step, odd = newest_parts(folder)
    if parts is not None and step > (-1 if found is None else found.state.step):
        consolidate(parts)
        found, more = last_checkpoint(folder, plan)
        odd = more + odd
    return found, notes + odd


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
    lock = files.new_lock(folder / _LOCK)
    try:
        lock.acquire(timeout=patience)
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
    if changed and not steps(folder) and not any(folder.glob(f"{files.DAMAGED}*")):
        _begin(folder, plan, context)  # a start that failed before its first step owns no name
    elif changed:
        raise ConfigError(f"model {plan.model_name!r} {_in_the_way(found.plan, plan, folder)}")


def _in_the_way(old: RunPlan, new: RunPlan, folder: Path) -> str:
    """Say why a name cannot mean ``new`` as well, and what to do."""
    longer = new.preset.max_iters > old.preset.max_iters
    if longer and not _lengthened(old, new).differences(new):
        return (
            f"is a run of {old.preset.max_iters:,} steps, and {new.preset.max_iters:,} are asked"
            " for; give --extend to go on for so many, or choose another model name"
        )
    return (
        f"is a run of another config: {', '.join(old.differences(new))}; choose another model name"
        f" (--init_from_model {new.model_name} begins with this one's weights), or remove {folder}"
    )


def _lengthened(old: RunPlan, new: RunPlan) -> RunPlan:
    """Return ``old`` with the steps of ``new``."""
    longer = old.preset.model_copy(update={"max_iters": new.preset.max_iters})
    return old.model_copy(update={"preset": longer})


def as_begun(preset: Preset, model_name: str) -> Preset:
    """Return the preset of a run that is to be extended, its warm-up as long as it was.

    A share of the steps was one of the length that the run began with, or was extended to; another
    share stays as it is, and is refused as another config.
    """
    folder = home.models_dir() / model_name
    found = read_run(folder)
    if preset.warmup is None or found is None or not steps(folder):
        return preset
    made = found.plan.preset
    earlier = read_lineage(home.find_checkpoint(folder)).extended
    lengths = {made.max_iters, *(one.max_iters for one in earlier)}
    if made.warmup_iters not in {round(preset.warmup * length) for length in lengths}:
        return preset
    return preset.model_copy(update={"warmup": None, "warmup_iters": made.warmup_iters})


def extend(plan: RunPlan) -> None:
    """Let a name mean the same run with more steps; its next training goes on for so long.

    Raises:
        ConfigError: If there is no such run, more than its length differs, it would be shorter, or
            it ended for another reason than its length.
        CheckpointError: If another process holds it.
    """
    folder = home.models_dir() / plan.model_name
    found = read_run(folder)
    if found is None or not steps(folder):
        raise ConfigError(f"{folder}: no run that could be extended; train it first")
    old, new = found.plan.preset, plan.preset.max_iters
    if other := _lengthened(found.plan, plan).differences(plan):
        raise ConfigError(
            f"model {plan.model_name!r} is a run of another config: {', '.join(other)}; --extend"
            " changes max_iters alone"
        )
    if new < old.max_iters:
        raise ConfigError(f"max_iters {old.max_iters} -> {new}: --extend makes a run longer only")
    with claim(found.plan, found.context):
        state = read_state(home.find_checkpoint(folder))
        if state.finished and state.step < old.max_iters:
            raise ConfigError(
                f"model {plan.model_name!r} ended by {state.finished} at step {state.step}; more"
                f" steps make it no better: train it further with --init_from_model"
            )
        _begin(folder, plan, found.context)


def _begin(folder: Path, plan: RunPlan, context: RunContext) -> None:
    record = RunRecord(plan=plan, context=context)
    files.write_sealed(folder / RUN, record.model_dump(mode="json", exclude={"digest"}))


def last_checkpoint(folder: Path, plan: RunPlan) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """Return the checkpoint to go on from, and a line for each that was passed over.

    Puts right what a crash after a checkpoint may have left undone: pointers and pruning.

    Args:
        folder: The model's folder, held by this run.
        plan: The run; whole checkpoints of another one are passed over like damaged ones.
    """
    record = read_run(folder)
    names = {plan.model_name} | ({record.plan.model_name} if record else set())

    def check(path: Path, lineage: Lineage) -> None:
        state = read_state(path)
        other = plan.differences_of(lineage)
        if lineage.model_name not in names:
            other = (f"model {plan.model_name} -> {lineage.model_name}", *other)
        for step in {lineage.step, state.step} - {int(path.name.removeprefix("step_"))}:
            other = (f"the folder's step -> {step}", *other)
        if other:
            raise CheckpointError(f"{path}: of another run: {', '.join(other)}; put back its own")

    path, notes = step_folders.newest_whole(folder, check)
    if path is None:
        return None, notes
    found = load_checkpoint(path, verify=False, merge=False)  # verified a moment ago
    step_folders.point(folder, found.state.step, found.state.best_step)
    step_folders.prune(folder, plan.preset.keep_checkpoints, found.state.best_step)
    return found, notes
