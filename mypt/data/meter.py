"""How far the reading of all sources is."""

from collections.abc import Callable, Iterator, Sequence

from mypt.data.batches import batches
from mypt.data.conversations import Row
from mypt.data.sources import SourceReader

Progress = Callable[[int, int, int, int], None]
"""Called with bytes read, bytes to read, rows and tokens written so far."""


class Meter:
    """Tells how far it is; ``rows`` and ``tokens`` are set by who writes them."""

    def __init__(
        self, readers: Sequence[SourceReader], progress: Progress | None, passes: int
    ) -> None:
        """Expect ``passes`` passes over all of ``readers``."""
        self.rows = self.tokens = 0
        self._progress = progress
        self._total = passes * sum(reader.bytes_total for reader in readers)
        self._done = 0

    def batches(self, reader: SourceReader) -> Iterator[list[Row]]:
        """Yield a source's rows, in lists of a bounded size; report when one is used up."""
        for batch in batches(reader):
            yield batch
            self._report(reader.bytes_done)
        self._done += reader.bytes_total

    def advance(self, n_bytes: int) -> None:
        """Count what was read elsewhere, and report."""
        self._done += n_bytes
        self._report(0)

    def _report(self, more: int) -> None:
        if self._progress is not None:
            done = self._done + more
            self._progress(done, max(done, self._total), self.rows, self.tokens)
