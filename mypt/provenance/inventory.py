"""What lies under ``MYPT_HOME``: models and datasets, read from their metadata alone."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from mypt.data.manifest import METADATA, Manifest, read_manifest
from mypt.data.policies import EVERY_TOKEN, policy_words
from mypt.errors import MyptError
from mypt.home import datasets_dir, find_checkpoint, models_dir
from mypt.parsing import Frozen
from mypt.training.checkpoints.folder import RUN, steps
from mypt.training.checkpoints.state import read_state
from mypt.training.lineage import LINEAGE, Lineage, read_lineage


class Listed(Frozen):
    """A model, a dataset or a run, as one line of a list."""

    kind: Literal["model", "dataset", "run"]
    name: str
    path: str
    date: datetime | None
    """Of its last checkpoint, of its making or of its beginning; None where it is damaged."""
    about: str
    """How far it came, or how much it holds."""
    size: int | None = None
    """Bytes on the disk."""
    loss: float | None = None
    """The lowest that validation gave in training, in nats a supervised token; None of pairs."""
    mask: str = ""
    """What is learned, and its share of the tokens."""
    parent: str = ""
    """What it began with, or re-masks: a name, or the digest of what is not listed."""
    digest: str = ""
    """A dataset's."""
    problem: str = ""
    """Why nothing else is known of it."""


def newest_first(items: Iterable[Listed]) -> tuple[Listed, ...]:
    """Return items by date, those without one last."""
    return tuple(sorted(items, key=lambda item: item.date or day(0), reverse=True))


def day(seconds: float) -> datetime:
    """Return a time of files as one that says its zone."""
    return datetime.fromtimestamp(seconds, UTC)


def models() -> tuple[Listed, ...]:
    """Return every model that was begun, newest first; one without a checkpoint says so."""
    begun = {path.parent for sign in (RUN, "step_*") for path in models_dir().glob(f"*/{sign}")}
    return newest_first(_item("model", folder, _model) for folder in begun)


def datasets() -> tuple[Listed, ...]:
    """Return every dataset that is known of, newest first.

    Those are what pipelines prepared, what models here were trained on, what lies beside that, and
    what lies in the working folder or in a folder of it, such as ``data/``.
    """
    folders = {path for path in datasets_dir().glob("[!.]*") if path.is_dir()}
    beside = {Path.cwd(), *(path for path in Path.cwd().glob("[!.]*") if path.is_dir())}
    for path in models_dir().glob("*/latest"):
        try:
            folder = Path(read_lineage(find_checkpoint(path.parent)).dataset.path)
        except (MyptError, OSError):  # the list of models says so
            continue
        beside.add(folder.parent)
    folders |= {path.parent for place in beside for path in place.glob(f"[!.]*/{METADATA}")}
    found = [_item("dataset", place, _dataset) for place in {path.resolve() for path in folders}]
    names = {item.digest: item.name for item in found}
    return newest_first(
        item.model_copy(update={"parent": names.get(item.parent, item.parent[:12])})
        if item.parent
        else item
        for item in found
    )


def _item(
    kind: Literal["model", "dataset"], folder: Path, read: Callable[[Path], Listed]
) -> Listed:
    try:
        return read(folder)
    except (MyptError, OSError) as error:
        return Listed(
            kind=kind, name=folder.name, path=str(folder), date=None, about="", problem=str(error)
        )


def _model(folder: Path) -> Listed:
    if not steps(folder):
        date = day((folder / RUN).stat().st_mtime)
        return Listed(
            kind="model", name=folder.name, path=str(folder), date=date, about="no checkpoint yet"
        )
    step_folder = find_checkpoint(folder)
    lineage, state = read_lineage(step_folder), read_state(step_folder)
    parent = lineage.parent
    return Listed(
        kind="model",
        name=folder.name,
        path=str(folder),
        date=day((step_folder / LINEAGE).stat().st_mtime),
        about=f"step {lineage.step:,} of {lineage.config.max_iters:,}",
        size=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        loss=None if lineage.config.of_pairs else state.best_val_loss,
        mask=_learned(lineage),
        parent=f"{parent.model_name} step {parent.step}" if parent else "none",
    )


def _learned(lineage: Lineage) -> str:
    """Return the policy in force and the share of the tokens read that were learned."""
    if lineage.policy == EVERY_TOKEN:
        return EVERY_TOKEN
    return _share(lineage.policy, lineage.supervised, lineage.tokens)


def _dataset(folder: Path) -> Listed:
    manifest = read_manifest(folder)
    tokens = manifest.tokens("train") + manifest.tokens("val")
    return Listed(
        kind="dataset",
        name=folder.name,
        path=str(folder),
        date=day((folder / METADATA).stat().st_mtime),
        about=f"{tokens:,} tokens of {manifest.tokenizer_name}",
        size=sum(file.size for file in manifest.files()),
        mask=_masked(manifest),
        parent=manifest.parent or "",
        digest=manifest.digest,
    )


def _masked(manifest: Manifest) -> str:
    if manifest.mask is None:
        return "no masks"
    total = manifest.mask.stats.total
    return _share(policy_words(manifest.mask.policy), total.supervised, total.tokens)


def _share(words: str, supervised: int, tokens: int) -> str:
    return f"{words}, {supervised / max(tokens, 1):.1%}"
