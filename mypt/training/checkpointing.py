"""Checkpoints are written beside training, one at a time, in order, whole or not at all.

Of a model that no process holds whole every rank writes its part first, then rank 0 one file of
all.
"""

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from mypt import files
from mypt.references import CheckpointRef
from mypt.training.checkpoints import sharded
from mypt.training.checkpoints.checkpoint import Snapshot, save_checkpoint
from mypt.training.checkpoints.folder import point, prune
from mypt.training.distributed import copied, reshard
from mypt.training.events import CheckpointSaved
from mypt.training.run import Run

Work = Callable[[], CheckpointSaved | None]
"""Writes one checkpoint; None on a rank that leaves telling of it to rank 0."""


class Keeper:
    """Writes the checkpoints of one run on a thread of its own."""

    def __init__(self, snapshot: Callable[[], Work]) -> None:
        """Keep what ``snapshot`` copies: it returns what is to be done with the copy."""
        self._snapshot = snapshot
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._begun: list[Future[CheckpointSaved | None]] = []

    def write(self) -> None:
        """Copy the run as it stands and begin to write it, after the one before is done.

        Raises:
            CheckpointError: If the one before could not be written.
        """
        work = self._snapshot()
        if self._begun:
            self._begun[-1].result()
        self._begun.append(self._thread.submit(work))

    def saved(self, *, wait: bool = False) -> Iterator[CheckpointSaved]:
        """Yield each checkpoint that came to lie on disk since the last call.

        Args:
            wait: For the one that is being written, too.

        Raises:
            CheckpointError: If one could not be written.
        """
        while self._begun and (wait or self._begun[0].done()):
            made = self._begun.pop(0).result()
            if made is not None:
                yield made

    def close(self) -> None:
        """Wait for what was begun."""
        self._thread.shutdown(wait=True)


def keeper(run: Run) -> closing[Keeper]:
    """Return who writes the checkpoints of this process; leaving the block waits for the last.

    Every rank of a sharded model writes its part, else rank 0 alone writes what all hold.
    """
    if run.sharded:
        return closing(Keeper(_parts_of(run)))
    return closing(Keeper(partial(_whole_of if run.ranks.leads else _nothing_of, run)))


def _whole_of(run: Run) -> Work:
    snapshot = run.snapshot()
    return lambda: _point_at(run, snapshot, save_checkpoint(run.folder, snapshot))


def _nothing_of(run: Run) -> Work:
    run.saved_step = run.state.step
    return lambda: None


def _parts_of(run: Run) -> Callable[[], Work]:
    """Agree with the other ranks on how to write; return what takes this rank's parts.

    A run goes on from the parts, in as many processes as it likes; everything else (evaluation,
    lineage, a fine-tuning on top) reads the step folder. The parts of the newest step are kept.
    """
    token = run.ranks.first(lambda: f"-{secrets.token_hex(4)}")
    mesh = init_device_mesh("cpu", (run.ranks.size,))
    group = dist.new_group(backend="gloo")

    def write(parts: Snapshot) -> CheckpointSaved | None:
        ours = sharded.write_shards(run.folder, parts, run.ranks, token, group)
        if not run.ranks.leads:
            return None
        saved = _point_at(run, parts, sharded.consolidate(ours))
        for path in sorted(run.folder.glob(f"{sharded.PREFIX}*")):
            if path != ours:
                files.remove_folder(path)
        return saved

    def snapshot() -> Work:
        reshard(run.model)  # an evaluation leaves the vocabulary's matrix whole
        return partial(write, run.snapshot(lambda tensor: copied(tensor, mesh)))

    return snapshot


def _point_at(run: Run, snapshot: Snapshot, ref: CheckpointRef) -> CheckpointSaved:
    state = snapshot.state
    point(run.folder, state.step, state.best_step)
    prune(run.folder, run.plan.preset.keep_checkpoints, state.best_step)
    return CheckpointSaved(state.step, ref)
