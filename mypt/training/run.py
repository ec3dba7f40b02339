"""One run in memory: how it begins, comes back from the disk, and reaches it again."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mypt.data.dataset import Dataset, open_dataset
from mypt.data.manifest import TOKENIZER_STATE
from mypt.data.shards import TokenRange, name_row
from mypt.model.gpt import GPT
from mypt.model.objectives import Objective
from mypt.training.batches.groups import LossGroups
from mypt.training.checkpoints.checkpoint import (
    Checkpoint,
    Snapshot,
    load_optimizer,
    take_snapshot,
)
from mypt.training.checkpoints.outset import begin_model
from mypt.training.checkpoints.sharded import folder_of, load_shards
from mypt.training.checkpoints.state import History, TrainerState, read_history
from mypt.training.circumstances import begin_lineage, begin_notes
from mypt.training.compute import Compute, read_together, resolve
from mypt.training.distributed import ALONE, Ranks, copied, shard
from mypt.training.lineage import Lineage, RunContext
from mypt.training.loader import Batch, GPTDataLoader
from mypt.training.optim import make_optimizer
from mypt.training.plan import RunPlan

_WATCH_SEED = 1 << 32  # no training seed: evaluation draws other rows than training


@dataclass(slots=True)
class Run:
    """What the loop works on; ``state`` is replaced as steps are made, the rest stays."""

    plan: RunPlan
    folder: Path
    compute: Compute
    dataset: Dataset
    loader: GPTDataLoader
    """Rows that training learns from."""
    watch: GPTDataLoader
    """Rows that evaluations score: another stream, the same rows each time."""
    model: GPT
    optimizer: torch.optim.AdamW
    lineage: Lineage
    """Of the next checkpoint, but for its step and files."""
    state: TrainerState
    history: History
    groups: LossGroups
    """Sources, classes and roles of this dataset's tokens."""
    learned: NDArray[np.float64]
    """(2, G) what training learned by since the last evaluation: losses and weights."""
    saved_step: int | None
    """Step of the last snapshot; None before the first."""
    notes: tuple[str, ...]
    ranks: Ranks = ALONE
    """Who else makes the same steps."""
    base: GPT | None = None
    """What the objective holds the model to, or compares it with."""
    replica: DistributedDataParallel | None = None
    """What torch wraps the model in where ranks hold copies of it; made by the first step."""

    @property
    def sharded(self) -> bool:
        """Whether each rank holds a part of every weight."""
        return self.plan.preset.parallel == "fsdp"

    @property
    def objective(self) -> Objective:
        """What the model learns by."""
        return Objective.of(self.plan.preset)

    def batch(self, micro: int) -> Batch:
        """Return micro-batch ``micro`` of the next step, on the CPU."""
        return self.loader.batch_at("train", self.state.step, micro)

    def places(self, micro: int) -> list[list[TokenRange]]:
        """Return what each row of a micro-batch of the next step is made of."""
        return self.loader.places_at("train", self.state.step, micro)

    def row_names(self, micro: int) -> list[str]:
        """Say where each row of a micro-batch of the next step comes from."""
        return [name_row(self.dataset.manifest.sources, row) for row in self.places(micro)]

    def count_step(self, tokens: int, supervised: int, loss: float, grad_norm: float) -> None:
        """Note that one more step was made, of ``tokens`` read and ``supervised`` learned."""
        state = self.state
        self.history.add(loss, grad_norm)
        self.state = state.model_copy(
            update={
                "step": state.step + 1,
                "tokens": state.tokens + tokens,
                "supervised": state.supervised + supervised,
                "empty_steps": state.empty_steps + (supervised == 0),
            }
        )

    def snapshot(self, copy: Callable[[Tensor], Tensor] = copied) -> Snapshot:
        """Return a copy of what the checkpoint of this step holds, tensors by ``copy``."""
        self.saved_step = self.state.step
        self.dataset.check_unchanged()
        tokenizer_state = (self.dataset.path / TOKENIZER_STATE).read_bytes()
        noted = tuple(map(tuple, self.learned.tolist())) if self.learned.any() else ()
        return take_snapshot(
            self.model,
            self.optimizer,
            self.state.model_copy(update={"learned": noted}),
            self.history,
            tokenizer_state,
            self.lineage,
            copy,
        )


def open_run(
    plan: RunPlan,
    folder: Path,
    context: RunContext,
    found: Checkpoint | None,
    notes: tuple[str, ...],
    ranks: Ranks = ALONE,
) -> Run:
    """Begin a run, or go on from ``found``; on every rank alike.

    Raises:
        MyptError: If dataset or parent are gone or changed since the plan was made.
    """
    config = plan.preset
    watched = {"seed": config.seed + _WATCH_SEED, "grad_accumulation": 1}
    compute = replace(resolve(config, config.gpt()), processes=ranks.size)
    dataset = open_dataset(Path(plan.dataset.path), digest=plan.dataset.digest)
    model, base, said = begin_model(plan, found, compute.device)
    if config.parallel == "fsdp":
        shard(model, compute, ranks.size)
    optimizer = make_optimizer(model, config)
    state, history = TrainerState(), History.unknown(0)
    if found is not None:
        if config.parallel == "fsdp" and (parts := folder_of(folder, found.state.step)).is_dir():
            load_shards(parts, model, optimizer)  # verified by rank 0
        else:
            load_optimizer(found.path, model, optimizer)
        state = found.state.model_copy(update={"finished": None})  # or it was extended
        history = read_history(found.path, found.state.step)
    loader = GPTDataLoader.of(config, dataset)
    groups = LossGroups([source.name for source in dataset.manifest.sources])
    epoch = loader.epoch("train")
    notes += read_together(model, config, compute, epoch.accounts)
    lineage = begin_lineage(
        plan.model_name, config, plan.parent, dataset, compute, epoch, context, found
    )
    run_id = context.mlflow_run_id or state.mlflow_run_id
    return Run(
        plan=plan,
        folder=folder,
        compute=compute,
        dataset=dataset,
        loader=loader,
        watch=GPTDataLoader.of(config.model_copy(update=watched), dataset),
        model=model.train(),
        optimizer=optimizer,
        lineage=lineage,
        state=state.model_copy(update={"mlflow_run_id": run_id, "learned": ()}),
        history=history,
        groups=groups,
        learned=np.array(state.learned or groups.none()),
        saved_step=None if found is None else state.step,
        notes=notes + said + begin_notes(config, compute, dataset, found),
        ranks=ranks,
        base=base,
    )
