"""One portion's work, from rows to tokens and spans in a file, and the process that does it.

The process reads a job a line on standard input and writes what came of it on output; it is
started by :mod:`mypt.data.preparation.processes`, with its process id as the only argument.
"""

import gc
import os
import secrets
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from numpy.lib import format as npy
from pydantic import Field

from mypt import errors, files
from mypt.children import COLLECTED, end_with
from mypt.data.preparation.encoding import Encoded, encode_counted
from mypt.data.preparation.row_batches import batches
from mypt.data.reading.portions import Portion, read_portion
from mypt.data.reading.records import Tally, Unread
from mypt.data.tokenizer import Tokenizer, load_tokenizer
from mypt.errors import DataError, MyptError
from mypt.parsing import Frozen


class PortionJob(Frozen):
    """One portion for a worker to encode; it needs no other word, and reads files only."""

    portion: Portion
    tokenizer: str
    """Folder of the tokenizer's state."""
    folder: str
    """Where the result goes."""


class Done(Frozen):
    """What a worker gives back, besides a file of tokens, spans and rows."""

    file: str = ""
    """Path of that file."""
    digest: str = ""
    """blake3 of its bytes."""
    n_rows: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    notes: dict[str, int] = Field(default_factory=dict)
    unread: dict[str, Unread] = Field(default_factory=dict)
    speakers: dict[str, int] = Field(default_factory=dict)
    fault: tuple[str, str] | None = None
    """Kind and text of the error that the portion is refused with."""

    @property
    def tally(self) -> Tally:
        """What was left out or changed."""
        tally = Tally()
        tally.dropped, tally.notes = Counter(self.dropped), Counter(self.notes)
        tally.add_unread(self.unread)
        tally.speakers = Counter(self.speakers)
        return tally

    def check(self) -> None:
        """Raise what the worker met.

        Raises:
            MyptError: As reading and encoding in this process would have.
            OSError: If the disk refused.
            MemoryError: If the worker's memory did not do.
        """
        if self.fault is None:
            return
        kind, text = self.fault
        builtin = {"OSError": OSError, "MemoryError": MemoryError}
        raise builtin.get(kind, getattr(errors, kind, DataError))(text)

    def take(self) -> Iterator[Encoded]:
        """Yield what the file holds, and remove it.

        Raises:
            DataError: If it is not what the worker wrote.
        """
        path = Path(self.file)
        if files.digest_file(path) != self.digest:
            raise DataError(f"{path}: changed between worker and dataset; run again")
        with path.open("rb") as file:
            while file.read(1):
                file.seek(-1, os.SEEK_CUR)
                yield Encoded(*(npy.read_array(file, allow_pickle=False) for _ in range(4)))
        path.unlink()


def work(job: str) -> str:
    """Do one job and return what came of it, both as JSON; nothing is raised.

    The file's name is new each time: a worker that was given up may still be writing.
    """
    given = PortionJob.model_validate_json(job)
    try:
        done = _encode(given)
    except MyptError as error:
        done = Done(fault=(type(error).__name__, str(error)))
    except (OSError, MemoryError) as error:
        kind = OSError if isinstance(error, OSError) else MemoryError
        done = Done(fault=(kind.__name__, str(error)))
    except Exception as error:
        traceback.print_exc()
        names = " and ".join(piece.name for piece in given.portion.pieces)
        said = f"{type(error).__name__}: {error}"
        text = f"{names}: {said}; this is a fault of mypt: please report it"
        done = Done(fault=("DataError", text))
    return done.model_dump_json()


def _encode(job: PortionJob) -> Done:
    tokenizer, tally, n_rows = _load(job.tokenizer), Tally.of(job.portion.how), 0
    path = Path(job.folder) / secrets.token_hex(16)
    names = {piece.file: piece.path for piece in job.portion.pieces}
    with files.create(path) as file:
        for batch in batches(read_portion(job.portion, tally)):
            encoded = encode_counted(batch, tokenizer, tally, names)
            n_rows += len(encoded.rows)
            _append(file, encoded)
    return Done(
        file=str(path),
        digest=files.digest_file(path),
        n_rows=n_rows,
        dropped=dict(tally.dropped),
        notes=dict(tally.notes),
        unread=tally.unread,
        speakers=dict(tally.speakers),
    )


def _append(file: BinaryIO, encoded: Encoded) -> None:
    for array in encoded:
        npy.write_array(file, array, allow_pickle=False)


@lru_cache(maxsize=1)
def _load(folder: str) -> Tokenizer:
    return load_tokenizer(folder)


def main() -> None:
    """Work until there are no more jobs."""
    end_with(int(sys.argv[1]))
    gc.set_threshold(COLLECTED)
    speech = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not be taken for a result
    for job in sys.stdin:
        print(work(job), file=speech, flush=True)


if __name__ == "__main__":
    main()
