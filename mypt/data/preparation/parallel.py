"""The encoded rows of all sources in their one order, made in this process or by workers."""

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from mypt.config import Preparation
from mypt.data.preparation.dask_workers import dask_workers
from mypt.data.preparation.encoding import Encoded, encode_counted
from mypt.data.preparation.processes import Died, Engine, Pending, processes
from mypt.data.preparation.row_batches import Meter
from mypt.data.preparation.worker import Done, PortionJob
from mypt.data.reading.portions import Portion
from mypt.data.reading.records import Tally
from mypt.data.reading.sources import SourceReader
from mypt.data.tokenizer import Tokenizer

_AHEAD: Final = 2
"""Portions for each worker that are given out before the first of them is taken."""


_ENGINES: Final[dict[str, Callable[[Preparation], AbstractContextManager[Engine]]]] = {
    "process": processes,
    "dask": dask_workers,
}
_WORTH_PROCESSES: Final = 32 << 20
"""Bytes of input from which it pays to start processes; below, this one works alone."""


def map_portions(
    portions: Iterable[Portion], job: Callable[[Portion], str], preparation: Preparation
) -> Iterator[tuple[Portion, Done | None]]:
    """Yield what came of each portion, in order, whoever worked on it and whenever.

    A bounded number is given out at a time, so that neither memory nor disk fill with results.
    A portion of several pieces that ends its workers is given out again piece by piece, so
    that the one at fault can be named.

    Args:
        portions: What to work on.
        job: What :func:`mypt.data.preparation.worker.work` is given for one.
        preparation: Which engine; any but "serial".

    Yields:
        A portion, and what came of it; None where its one piece ended three workers.

    Raises:
        ConfigError: If the engine is not installed, or its scheduler cannot be reached.
    """
    with _ENGINES[preparation.engine](preparation) as engine:
        waiting: deque[tuple[Portion, Pending]] = deque()
        for portion in portions:
            waiting.append((portion, engine.submit(job(portion))))
            if len(waiting) > _AHEAD * engine.width:
                yield from _outcome(*waiting.popleft(), job, engine)
        while waiting:
            yield from _outcome(*waiting.popleft(), job, engine)


def _outcome(
    portion: Portion, answer: Pending, job: Callable[[Portion], str], engine: Engine
) -> Iterator[tuple[Portion, Done | None]]:
    try:
        yield portion, Done.model_validate_json(answer.result())
    except Died:
        parts = portion.alone()
        if len(parts) == 1:
            yield portion, None
            return
        for part in parts:
            yield from _outcome(part, engine.submit(job(part)), job, engine)


def encode_sources(
    folder: Path,
    readers: Sequence[SourceReader],
    tokenizer: Tokenizer,
    meter: Meter,
    preparation: Preparation,
) -> Iterator[tuple[int, Encoded]]:
    """Yield the index of a source and some of its rows, until all were given.

    The rows and their order depend on nothing but the sources; how many are given at a time
    does.

    Args:
        folder: Holds the tokenizer's state; workers leave their results below it for a while.
        readers: The sources, which count their rows.
        tokenizer: The same as the state's.
        meter: Tells how far it is.
        preparation: Who works.

    Raises:
        DataError: For the first row that is wrong, or if a source has none that is kept.
        ConfigError: If the engine cannot be had.
    """
    size = sum(reader.bytes_total for reader in readers)
    small = preparation.engine == "process" and size < _WORTH_PROCESSES
    if small or preparation.engine == "serial":
        for index, reader in enumerate(readers):
            names = {number: file.path for number, file in enumerate(reader.files)}
            for batch in meter.batches(reader):
                tally = Tally.of(reader.how)
                encoded = encode_counted(batch, tokenizer, tally, names)
                reader.add(len(encoded.rows) - len(batch), tally)
                yield index, encoded
            reader.finish()  # once more: its template may have refused what was left
        return
    results = folder.absolute() / "portions"
    results.mkdir()
    try:
        yield from _map(results, readers, meter, preparation)
    finally:
        shutil.rmtree(results)


def _map(
    results: Path, readers: Sequence[SourceReader], meter: Meter, preparation: Preparation
) -> Iterator[tuple[int, Encoded]]:
    def job(portion: Portion) -> str:
        given = PortionJob(portion=portion, tokenizer=str(results.parent), folder=str(results))
        return given.model_dump_json()

    for reader in readers:
        reader.begin()
    portions = (part for index, reader in enumerate(readers) for part in reader.portions(index))
    reading = 0
    for portion, done in map_portions(portions, job, preparation):
        for reader in readers[reading : portion.source]:
            reader.finish()
        reading = portion.source
        if done is None:
            readers[reading].set_aside(portion.pieces[0])
        else:
            done.check()
            readers[reading].add(done.n_rows, done.tally)
            for encoded in done.take():
                yield reading, encoded
        meter.advance(portion.size)
    for reader in readers[reading:]:
        reader.finish()
