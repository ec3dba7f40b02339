"""The encoded rows of all sources in their one order, made in this process or by workers."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from mypt.config import Preparation
from mypt.data.encoding import Encoded, encode_rows
from mypt.data.meter import Meter
from mypt.data.portion_map import map_portions
from mypt.data.portion_work import Job
from mypt.data.portions import Portion
from mypt.data.sources import SourceReader
from mypt.data.tokenizer import Tokenizer

_WORTH_PROCESSES: Final = 32 << 20
"""Bytes of input from which it pays to start processes; below, this one works alone."""


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
            for batch in meter.batches(reader):
                yield index, encode_rows(batch, tokenizer)
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
        given = Job(portion=portion, tokenizer=str(results.parent), folder=str(results))
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
