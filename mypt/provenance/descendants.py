"""The way up: which checkpoints saw a dataset or a raw file, themselves or through a parent."""

import re
from pathlib import Path
from typing import NamedTuple

from mypt import files
from mypt.data.manifest import METADATA, SourceFile, read_manifest
from mypt.errors import ConfigError, MyptError
from mypt.home import STEP_FOLDER, datasets_dir, models_dir
from mypt.parsing import Frozen
from mypt.provenance.search import ancestry
from mypt.training.lineage import DatasetRecord

_DIGEST = re.compile(r"[0-9a-f]{12,64}")
SAME_BYTES = "the same bytes"
OTHER_BYTES = "a file of that path, with other bytes than now"
GONE = "a file of that path, which is gone"
DATASET = "the dataset"


class Use(Frozen):
    """One way in which one checkpoint saw what was asked for."""

    checkpoint: str
    """Its step folder."""
    name: str
    """Model and step."""
    through: tuple[str, ...]
    """The parents by which it came, model and step, nearest first; empty if it was trained on
    it itself."""
    what: str
    """What was recognised: the dataset, or the raw file by its bytes or only by its path."""
    dataset: str
    """The dataset that was trained on, where it lay then."""
    source: str | None = None
    """The source of the raw file."""


class Uses(Frozen):
    """Every checkpoint below ``MYPT_HOME/models`` that saw it."""

    uses: tuple[Use, ...]
    searched: int
    """Checkpoints that were looked at."""
    problems: tuple[str, ...] = ()
    """Checkpoints whose lineage cannot be read or breaks off, a line each: they may have, too."""


class _Wanted(NamedTuple):
    digests: frozenset[str]
    """Datasets, by digest or the beginning of one."""
    sha256: str
    """Raw file, likewise; empty if only its path is known."""
    path: Path | None


def find_uses(what: str) -> Uses:
    """Return which checkpoints saw something.

    Args:
        what: A dataset's folder, a raw file, the path of one that is gone, or the digest of
            either, at least 12 digits of it.

    Raises:
        ConfigError: If it is an ordinary folder, or is not here and nobody knows its path.
        ManifestError: If it is a damaged dataset.
    """
    wanted, found, problems, searched = _wanted(what), [], [], 0
    for folder in sorted(models_dir().glob("*/step_*")):
        if not STEP_FOLDER.fullmatch(folder.name):
            continue
        searched += 1
        try:
            lineages, lost = ancestry(folder)
        except MyptError as error:
            problems.append(str(error))
            continue
        names = tuple(f"{lineage.model_name} step {lineage.step}" for lineage in lineages)
        if lost is not None:
            gone = f"{lost.model_name} step {lost.step}"
            problems.append(f"{folder}: nobody knows what its parent {gone} was trained on")
        for depth, lineage in enumerate(lineages):
            for seen_as, source in _recognised(lineage.dataset, wanted):
                use = Use(
                    checkpoint=str(folder),
                    name=names[0],
                    through=names[1 : depth + 1],
                    what=seen_as,
                    dataset=lineage.dataset.path,
                    source=source,
                )
                found.append(use)
    if not found and wanted.path is not None and not wanted.sha256:
        raise _never_heard_of(what)
    return Uses(uses=tuple(found), searched=searched, problems=tuple(problems))


def _wanted(what: str) -> _Wanted:
    path = Path(what)
    if (path / METADATA).is_file():
        return _Wanted(_with_maskings(read_manifest(path).digest), "", None)
    if path.is_dir():
        raise ConfigError(
            f"--uses {what}: a folder without {METADATA}; expected a dataset, a raw file, or the"
            " digest of either"
        )
    if path.is_file():
        return _Wanted(frozenset(), files.sha256_file(path), path.absolute())
    if _DIGEST.fullmatch(what):
        return _Wanted(frozenset({what}), what, None)
    return _Wanted(frozenset(), "", path.absolute())


def _never_heard_of(what: str) -> ConfigError:
    return ConfigError(
        f"--uses {what}: no such dataset or file is here and no checkpoint was trained on a file of"
        " that path; expected a dataset, a raw file, or the digest of either"
    )


def _with_maskings(digest: str) -> frozenset[str]:
    """Return the digest and those of the datasets here that were masked again from it."""
    parents = {}
    for folder in datasets_dir().glob("*"):
        if (folder / METADATA).is_file():
            try:
                manifest = read_manifest(folder)
            except MyptError:  # damaged: whoever trained on it has its digest and its parent's
                continue
            parents[manifest.digest] = manifest.parent
    found, before = {digest}, 0
    while len(found) > before:
        before = len(found)
        found |= {made for made, parent in parents.items() if parent in found}
    return frozenset(found)


def _recognised(record: DatasetRecord, wanted: _Wanted) -> list[tuple[str, str | None]]:
    """Return what of a dataset was asked for, and the source it is in."""
    ours = [digest for digest in (record.digest, record.parent) if digest]
    if any(own.startswith(digest) for own in ours for digest in wanted.digests):
        return [(DATASET, None)]
    return [
        (what, source.name)
        for source in record.sources
        for file in source.files
        if (what := _same_file(file, wanted))
    ]


def _same_file(file: SourceFile, wanted: _Wanted) -> str:
    if wanted.sha256 and file.sha256.startswith(wanted.sha256):
        return SAME_BYTES
    if wanted.path is not None and Path(file.path) == wanted.path:
        return OTHER_BYTES if wanted.sha256 else GONE
    return ""
