"""The step folders of one model: the newest whole one, ``latest`` and ``best``, pruning."""

from collections.abc import Callable
from pathlib import Path

from mypt import files, home
from mypt.errors import CheckpointError
from mypt.references import CheckpointRef
from mypt.training.lineage import Lineage, read_lineage, verify_folder

RUN = "run.json"
"""What the name means, there from the first start on."""
LATEST = "latest"
BEST = "best"


def steps(folder: Path) -> tuple[int, ...]:
    """Return the steps that have a checkpoint folder, newest first."""
    found = (home.STEP_FOLDER.fullmatch(path.name) for path in folder.iterdir() if path.is_dir())
    return tuple(sorted((int(match[1]) for match in found if match), reverse=True))


def newest_whole(
    folder: Path, check: Callable[[Path, Lineage], None] = lambda *_: None
) -> tuple[Path | None, tuple[str, ...]]:
    """Return the newest checkpoint whose every byte is as written, and what was found otherwise.

    ``latest`` is not asked: a crash between a checkpoint and its pointer must not lose it.
    A checkpoint that is damaged, or another's, is renamed, so that its step can be made again.

    Args:
        folder: The model's folder.
        check: Raises a CheckpointError for a whole checkpoint of another run.
    """
    notes = []
    for step in steps(folder):
        path = folder / home.step_folder(step)
        try:
            check(path, verify_folder(path))
        except CheckpointError as error:
            aside = files.set_aside(path)
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


def checkpoint_ref(folder: Path) -> CheckpointRef:
    """Return the best checkpoint of a model by validation loss, else its latest."""
    path = home.checkpoint_to_use(folder)
    lineage = read_lineage(path)
    return CheckpointRef(path=str(path), digest=lineage.digest, step=lineage.step)
