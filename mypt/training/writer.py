"""Writes checkpoints beside training: one at a time, in order, whole or not at all."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from mypt.training.checkpoint import Snapshot, save_checkpoint
from mypt.training.events import CheckpointSaved
from mypt.training.folder import point, prune


class Background:
    """One thread that makes one checkpoint at a time, in order."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[CheckpointSaved | None] | None = None
        self._saved: list[CheckpointSaved] = []

    def begin(self, work: Callable[[], CheckpointSaved | None]) -> None:
        """Begin with ``work``, after what was begun before it is done.

        Raises:
            CheckpointError: If that could not be written.
        """
        self._settle()
        self._pending = self._thread.submit(work)

    def done(self, *, wait: bool = False) -> Iterator[CheckpointSaved]:
        """Yield what was made since the last call; with ``wait``, what is being made too.

        Raises:
            CheckpointError: If one could not be written.
        """
        if self._pending is not None and (wait or self._pending.done()):
            self._settle()
        yield from self._saved
        self._saved.clear()

    def close(self) -> None:
        """Wait for what was begun."""
        self._thread.shutdown(wait=True)

    def _settle(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            made = pending.result()
            self._saved += [] if made is None else [made]


class Writer:
    """Writes the checkpoints of one run; leaving the block waits for it."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Write below ``folder`` and keep the newest ``keep`` checkpoints and the best."""
        self._folder, self._keep = folder, keep
        self._background = Background()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._background.close()

    def write(self, snapshot: Snapshot) -> None:
        """Begin to write a checkpoint, after the one before it is done.

        Raises:
            CheckpointError: If the one before it could not be written.
        """
        self._background.begin(lambda: self._write(snapshot))

    def saved(self, *, wait: bool = False) -> Iterator[CheckpointSaved]:
        """Yield each checkpoint that lies on disk since the last call.

        Args:
            wait: For the one that is being written, too.

        Raises:
            CheckpointError: If one could not be written.
        """
        yield from self._background.done(wait=wait)

    def _write(self, snapshot: Snapshot) -> CheckpointSaved:
        state = snapshot.state
        ref = save_checkpoint(self._folder, snapshot)
        point(self._folder, state.step, state.best_step)
        prune(self._folder, self._keep, state.best_step)
        return CheckpointSaved(state.step, ref)
