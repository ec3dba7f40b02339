"""Writes checkpoints of a model that no process holds whole: parts first, then one file of all."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from mypt import files
from mypt.training import shards
from mypt.training.checkpoint import Snapshot
from mypt.training.events import CheckpointSaved
from mypt.training.folder import point, prune
from mypt.training.run import Run
from mypt.training.sharding import copied
from mypt.training.writer import Background


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
        parts = run.snapshot(lambda tensor: copied(tensor, self._mesh))
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
