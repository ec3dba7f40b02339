"""Who writes checkpoints beside training: the one process there is, or every rank its part.

One at a time, in order, whole or not at all. Of a model that no process holds whole the parts are
written first, then one file of all.
"""

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from mypt import files
from mypt.training.checkpoints import parts as shards
from mypt.training.checkpoints.checkpoint import Snapshot, save_checkpoint
from mypt.training.checkpoints.folder import point, prune
from mypt.training.distributed import copied_part
from mypt.training.events import CheckpointSaved
from mypt.training.run import Run


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


class Parts:
    """Every rank writes its parts beside training; rank 0 then joins them in a step folder.

    A run goes on from the parts, in as many processes as it likes; everything else (evaluation,
    lineage, a fine-tuning on top) reads the step folder. The parts of the newest step are kept.
    """

    def __init__(self, run: Run) -> None:
        """Agree with the other ranks on how to write."""
        self._folder, self._keep = run.folder, run.plan.preset.keep_checkpoints
        self._ranks = run.ranks
        self._token = run.ranks.first(lambda: f"-{secrets.token_hex(4)}")
        self._mesh = init_device_mesh("cpu", (run.ranks.size,))
        self._group = dist.new_group(backend="gloo")
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

    def write(self, run: Run) -> None:
        """Begin to write a checkpoint, after the one before it is done."""
        assert isinstance(run.model, FSDPModule)
        run.model.reshard()  # an evaluation leaves the vocabulary's matrix whole
        parts = run.snapshot(lambda tensor: copied_part(tensor, self._mesh))
        self._background.begin(lambda: self._write(parts))

    def saved(self, *, wait: bool = False) -> Iterator[CheckpointSaved]:
        """Yield each checkpoint that lies on disk since the last call; on rank 0 alone."""
        yield from self._background.done(wait=wait)

    def _write(self, parts: Snapshot) -> CheckpointSaved | None:
        state = parts.state
        ours = shards.write_shards(self._folder, parts, self._ranks, self._token, self._group)
        if not self._ranks.leads:
            return None
        ref = shards.consolidate(ours)
        point(self._folder, state.step, state.best_step)
        prune(self._folder, self._keep, state.best_step)
        remove_shards(self._folder, ours)
        return CheckpointSaved(state.step, ref)


def remove_shards(model: Path, kept: Path) -> None:
    """Remove all parts in a model's folder but those in ``kept``."""
    for path in sorted(model.glob(f"{shards.PREFIX}*")):
        if path != kept:
            files.remove_folder(path)


class Keeper(Protocol):
    """Takes checkpoints of a run, beside its training."""

    def write(self, run: Run) -> None:
        """Begin to write a checkpoint of the run as it stands."""

    def saved(self, *, wait: bool = False) -> Iterator[CheckpointSaved]:
        """Yield each checkpoint that lies on disk since the last call."""


@contextmanager
def keeper(run: Run) -> Iterator[Keeper]:
    """Yield who keeps the checkpoints of this process; leaving the block waits for the last."""
    if isinstance(run.model, FSDPModule):
        with Parts(run) as parts:
            yield parts
        return
    if not run.ranks.leads:
        yield _Onlooker()
        return
    with Writer(run.folder, run.plan.preset.keep_checkpoints) as writer:
        yield _Whole(writer)


class _Whole:
    """Writes what this process holds, which is all."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.saved = writer.saved

    def write(self, run: Run) -> None:
        self._writer.write(run.snapshot())


class _Onlooker:
    """Leaves the writing to rank 0."""

    def write(self, run: Run) -> None:
        run.saved_step = run.state.step

    def saved(self, *, wait: bool = False) -> Iterator[CheckpointSaved]:  # noqa: ARG002
        yield from ()
