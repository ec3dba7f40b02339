"""The lineages behind a lineage: those of the parents, wherever they are written."""

from pathlib import Path
from typing import NamedTuple

from mypt.training.lineage import Lineage, ParentRecord, read_lineage
from mypt.training.search import Search


class Ancestry(NamedTuple):
    """A checkpoint's lineage, its parent's, and so on down to random weights."""

    lineages: tuple[Lineage, ...]
    """The checkpoint's own comes first."""
    lost: ParentRecord | None
    """The parent that nothing is known of but its name, where the line breaks off."""


def ancestry(step_folder: Path) -> Ancestry:
    """Return the lineages of a checkpoint and of all that its weights began with.

    Raises:
        CheckpointError: If the checkpoint's own lineage cannot be read.
    """
    folder = step_folder.absolute()
    search, found = Search(folder), [read_lineage(folder)]
    while (parent := found[-1].parent) is not None:
        before = parent_lineage(parent, search)
        if before is None:
            return Ancestry(tuple(found), parent)
        found.append(before)
    return Ancestry(tuple(found), None)


def parent_lineage(parent: ParentRecord, search: Search) -> Lineage | None:
    """Return a parent's lineage: the copy that its child keeps, or what lies where it lay."""
    if parent.lineage is not None:
        return parent.lineage
    place = search.checkpoint(parent.path, parent.digest)
    return None if place is None else read_lineage(place)
