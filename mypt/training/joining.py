"""How ranks begin together: one holds the folder and looks what lies in it, all go on from that."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from mypt.training.checkpoint import Checkpoint, load_checkpoint
from mypt.training.distributed import Ranks
from mypt.training.folder import claim
from mypt.training.lineage import RunContext
from mypt.training.plan import RunPlan
from mypt.training.run import last_checkpoint
from mypt.training.shards import consolidate, newest_parts


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
        ConfigError: On every rank, as :func:`mypt.training.folder.claim`.
        CheckpointError: Likewise.
    """
    patience = plan.preset.step_timeout / 2 if ranks.size > 1 else 0.0
    kept: list[Checkpoint | None] = []
    with ExitStack() as held:

        def look() -> tuple[Path, Path | None, tuple[str, ...]]:
            folder = held.enter_context(claim(plan, context, patience))
            found, notes = _newest(folder, plan.preset.keep_checkpoints)
            kept.append(found)
            return folder, None if found is None else found.path, notes

        folder, path, notes = ranks.first(look)
        if not kept:  # rank 0 has verified it
            kept.append(None if path is None else load_checkpoint(path, verify=False))
        yield Beginning(folder, kept[0], notes)


def _newest(folder: Path, keep: int) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """Return the newest whole checkpoint, joined first where a crash left parts alone."""
    found, notes = last_checkpoint(folder, keep)
    parts, step, odd = newest_parts(folder)
    if parts is not None and step > (-1 if found is None else found.state.step):
        consolidate(parts)
        found, _ = last_checkpoint(folder, keep)
    return found, notes + odd
