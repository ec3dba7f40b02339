"""What a lineage names, found by digest wherever it lies today, and the lineages behind it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mypt import files
from mypt.data.manifest import METADATA, Manifest, SourceFile, read_manifest
from mypt.errors import CheckpointError, MyptError
from mypt.home import exists, home
from mypt.training.lineage import LINEAGE, MOST_PARENTS, Lineage, ParentRecord, read_lineage


class Search:
    """Looks at the recorded place, then beside the checkpoint, in ``MYPT_HOME`` and around."""

    def __init__(self, step_folder: Path, depth: int = 0) -> None:
        """Begin at a checkpoint.

        Args:
            step_folder: The checkpoint.
            depth: How many trainings lie between it and the one whose chain is followed.

        Raises:
            CheckpointError: If that is more than mypt ever writes.
        """
        if depth > MOST_PARENTS:
            raise CheckpointError(
                f"{step_folder}: a chain of more than {MOST_PARENTS} parents, which mypt never"
                " writes; do not use it"
            )
        self.depth = depth
        around = (step_folder.parent.parent.parent, home(), home().parent, Path.cwd())
        self.roots = tuple(dict.fromkeys(around))

    def dataset(self, recorded: str, digest: str) -> tuple[Path, Manifest] | None:
        """Return the folder whose metadata has this digest, and its metadata."""
        for place in self._places(recorded, "datasets/*"):
            if exists(place / METADATA):
                try:
                    return place, read_manifest(place, digest)
                except MyptError:
                    continue
        return None

    def checkpoint(self, recorded: str, digest: str) -> Path | None:
        """Return the step folder whose lineage has this digest."""
        for place in self._places(recorded, "models/*/step_*"):
            if exists(place / LINEAGE):
                try:
                    if read_lineage(place).digest == digest:
                        return place
                except MyptError:
                    continue
        return None

    def source_files(self, file: SourceFile) -> list[Path]:
        """Return where a raw file may lie, those of the recorded size first."""
        return sorted(self.files(file.path), key=lambda place: place.stat().st_size != file.size)

    def unchanged_file(self, file: SourceFile) -> Path | None:
        """Return where a raw file lies with the bytes that were read, every byte hashed."""
        for place in self.source_files(file):
            if place.stat().st_size == file.size and files.sha256_file(place) == file.sha256:
                return place
        return None

    def files(self, recorded: str) -> Iterator[Path]:
        """Yield the files that may be the one that once lay at ``recorded``."""
        return (place for place in self._places(recorded) if exists(place) and place.is_file())

    def _places(self, recorded: str, *patterns: str) -> Iterator[Path]:
        """Yield the recorded place, its tail below each root, and what the patterns find."""
        old = Path(recorded)
        yield old
        tails = [old.parts[i:] for i in range(int(old.is_absolute()), len(old.parts))]
        for root in self.roots:
            yield from (root.joinpath(*tail) for tail in tails)
            for pattern in patterns:
                yield from sorted(root.glob(pattern))


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
        search = Search(folder, len(found) - 1)
    return Ancestry(tuple(found), None)


def parent_lineage(parent: ParentRecord, search: Search) -> Lineage | None:
    """Return a parent's lineage: the copy that its child keeps, or what lies where it lay."""
    if parent.lineage is not None:
        return parent.lineage
    place = search.checkpoint(parent.path, parent.digest)
    return None if place is None else read_lineage(place)
