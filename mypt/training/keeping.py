"""Who writes checkpoints: the one process there is, or rank 0 for all that hold the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from torch.distributed.fsdp import FSDPModule

from mypt.training.events import CheckpointSaved
from mypt.training.run import Run
from mypt.training.shard_writer import Parts
from mypt.training.writer import Writer


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
