"""One source row by file and line: what every training of a checkpoint's chain did with it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mypt import files
from mypt.config import Reading
from mypt.data.manifest import SPLITS, SourceFile, SourceRecord, Split
from mypt.data.reading.raw import RawFile
from mypt.data.reading.readers import last_line
from mypt.data.shards import ShardView
from mypt.errors import ConfigError, DataError
from mypt.provenance.exposure import Exposure, RowExposure, Training
from mypt.provenance.search import Search

_SHA256_DIGITS = 12
_NAMES_SHOWN = 5
_DIGITS = 18
"""Of a line number that fits the files on disk."""


class Found(NamedTuple):
    """Where a row was found."""

    rows: tuple[RowExposure, ...]
    """What begins at that line, a row a training; several where a line holds several rows."""
    twins: tuple[RowExposure, ...]
    """Rows of other places that say exactly the same."""
    line: int
    """The line that the rows begin at: the one asked for, or the nearest one before it."""
    changed: tuple[str, ...] = ()
    """Files of that name that held other bytes when they were read, so that lines may differ."""


class _Table(NamedTuple):
    """Some rows of one shard."""

    training: Training
    split: Split
    shard: ShardView
    at: NDArray[np.int64]
    """Which rows."""

    def column(self, name: str) -> NDArray[Any]:
        """Return one field of these rows."""
        assert self.shard.rows is not None, "only shards with rows are counted"
        return np.ascontiguousarray(self.shard.rows[name][self.at])

    def only(self, chosen: NDArray[np.bool_]) -> "_Table":
        """Return the ``chosen`` ones of these rows."""
        return self._replace(at=self.at[chosen])

    def raw_files(self) -> Iterator[tuple[SourceRecord, SourceFile]]:
        """Yield the files that these rows come from."""
        source = self.training.dataset.manifest.sources[self.shard.record.source]
        for number in np.unique(self.column("file")).tolist():
            yield source, source.files[number]

    def rows(self) -> Iterator[RowExposure]:
        """Yield them one by one."""
        for index in self.at.tolist():
            yield self.training.row(self.split, self.shard, index)


def parse_place(text: str) -> tuple[str, int]:
    """Return file and line of ``FILE:LINE``.

    Raises:
        ConfigError: If it is none.
    """
    file, _, line = text.rpartition(":")
    if not file or not line.isdecimal() or len(line) > _DIGITS or not int(line):
        raise ConfigError(f"--row {text[:80]!r}: expected FILE:LINE with lines counted from 1")
    return file, int(line)


def find_row(exposure: Exposure, file: str, line: int) -> Found:
    """Return what became of a source row, and of rows elsewhere that say the same.

    Args:
        exposure: The trainings to look in.
        file: A raw file: its path now or then, the end of that path, or its sha256.
        line: The line, item or table row that it begins at, counted from 1.

    Raises:
        DataError: If no training read such a file, none of its rows begins there or before, or
            the line lies behind the file's end.
    """
    wanted, changed = _of_file(exposure, file)
    lines = [np.extract((found := table.column("line")) <= line, found) for table in wanted]
    begins = max((int(found.max(initial=0)) for found in lines), default=0)
    if not begins:
        raise DataError(
            f"{file}:{line}: no row that was kept begins there or before; expected the line of a"
            " row; rows that were dropped are counted in 'mypt lineage'"
        )
    if begins < line and not any((table.column("line") > line).any() for table in wanted):
        _check_not_behind(wanted, f"{file}:{line}", line, begins)
    hits = [table.only(table.column("line") == begins) for table in wanted]
    digests = np.unique(np.concatenate([hit.column("digest") for hit in hits]))
    twins = [
        table.only(np.isin(table.column("digest"), digests) & ~_among(table, hits))
        for table in _tables(exposure)
    ]
    return Found(
        tuple(row for hit in hits for row in hit.rows()),
        tuple(row for twin in twins for row in twin.rows()),
        begins,
        changed,
    )


def _check_not_behind(wanted: list[_Table], place: str, line: int, begins: int) -> None:
    """Refuse a line behind the last row that a file has no such line for.

    Raises:
        DataError: If the file ends before it, or is not there any more to be asked.
    """
    for table in wanted:
        for source, file in table.raw_files():
            found = Search(table.training.dataset.path).unchanged_file(file)
            if found is None:
                continue
            making, index = table.training.dataset.manifest.making, table.shard.record.source
            asked = making.sources[index] if making else Reading()
            how = asked.model_copy(update={"format": source.format})
            last = last_line(RawFile(found, encoding=how.encoding), how)
            if line <= last:
                return
            raise DataError(f"{place}: the file ends at {last}; expected a line from 1 to {last}")
    raise DataError(
        f"{place}: the last row that was kept begins at {begins}, and the file as it was read is"
        " not there any more to say whether it has that line; put it back, or ask for a row"
    )


def _tables(exposure: Exposure) -> Iterator[_Table]:
    """Yield all rows of both splits of every training."""
    for training in exposure.trainings:
        for split in SPLITS:
            for shard in training.dataset.shards(split):
                if shard.rows is not None:
                    yield _Table(training, split, shard, np.arange(len(shard.rows)))


def _of_file(exposure: Exposure, name: str) -> tuple[list[_Table], tuple[str, ...]]:
    """Return the rows that come from one raw file, and where it held other bytes then."""
    path = Path(name)
    sha256 = files.sha256_file(path) if path.is_file() else name
    known: dict[str, None] = {}
    changed, found = set(), []
    for table in _tables(exposure):
        source = table.training.dataset.manifest.sources[table.shard.record.source]
        same = [i for i, file in enumerate(source.files) if _is(file, path, sha256)]
        known |= {Path(file.path).name: None for file in source.files}
        if path.is_file():
            changed |= {source.files[i].path for i in same if source.files[i].sha256 != sha256}
        if same:
            found.append(table.only(np.isin(table.column("file"), same)))
    if not found:
        names = ", ".join([*known][:_NAMES_SHOWN]) + " ..." * (len(known) > _NAMES_SHOWN)
        raise DataError(f"{name}: no training of this checkpoint read such a file; it read {names}")
    return found, tuple(sorted(changed))


def _is(file: SourceFile, path: Path, sha256: str) -> bool:
    parts, old = path.parts, Path(file.path).parts
    given = len(sha256) >= _SHA256_DIGITS and file.sha256.startswith(sha256)
    return given or path.absolute() == Path(file.path) or old[-len(parts) :] == parts


def _among(table: _Table, hits: list[_Table]) -> NDArray[np.bool_]:
    """Return which rows of a table are among the hits."""
    same = [hit.at for hit in hits if hit.training is table.training and hit.shard is table.shard]
    return np.isin(table.at, np.concatenate(same)) if same else np.zeros(len(table.at), bool)
