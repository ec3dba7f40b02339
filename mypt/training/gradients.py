"""The gradients of one optimizer step: summed losses, divided by the step's supervised tokens.

The same sum, whether one process makes it or many (DDP, FSDP2, or one fixed tree).
"""

from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mypt.model.loss import MaskedLoss, supervised_positions
from mypt.model.objectives import NLL
from mypt.training.compute import seed_everything
from mypt.training.distributed import Subtree, Sum
from mypt.training.loader import Batch, send
from mypt.training.run import Run


class Share(NamedTuple):
    """What this process computes of one step."""

    micros: range
    """Its micro-batches, by their number in the step."""
    batches: list[Batch]
    """As the loader made them: each goes to the device at its turn."""
    places: list[Tensor]
    """(N,) int64 each, on the CPU: supervised positions of the flattened batch."""
    weight: float
    """Of all supervised tokens of the whole step, on all ranks: what every loss is divided by."""


def add_gradients(run: Run, mine: Share) -> tuple[Tensor, list[Tensor]]:
    """Leave the gradients of the whole step in the model; return what this rank's losses are.

    Each micro-batch's summed loss is divided by the count of the whole step, over all ranks
    (law 3), so that gradients only ever add up. Nothing here waits for a device.

    Returns:
        On the device, (n,) float32: nats of each of this rank's micro-batches. And for each of
        them, (N,): what its supervised tokens add to that, where any of them were looked at.
    """
    if run.plan.preset.reduction == "tree":
        return _as_tree(run, mine)
    if run.ranks.size > 1 and run.replica is None and not run.sharded:
        run.replica = DistributedDataParallel(
            _Loss(run), forward_sync_buffers=False, gradient_as_bucket_view=True, init_sync=False,
            find_unused_parameters=run.plan.preset.base == "transformers",  # an expert, a tower
        )  # fmt: skip
    losses, last = torch.zeros(len(mine.batches), device=run.compute.device), len(mine.places) - 1
    terms = [losses[:0]] * len(losses)
    replica = run.replica
    for index, where in enumerate(mine.places):
        # DDP adds up over the ranks while the last pass runs, supervised or not; FSDP2 gathers and
        # scatters in each, so that ranks stay in step.
        together = run.sharded or (replica is not None and index == last)
        if len(where) or together:
            with nullcontext() if together or replica is None else replica.no_sync():
                losses[index], terms[index] = _backward(run, mine, index)
    return losses, terms


def loss_of(run: Run, batch: Batch, supervised: Tensor | None = None) -> MaskedLoss:
    """Return the loss of one micro-batch as a sum and a count, in the run's arithmetic.

    Args:
        run: Whose model, on whose device.
        batch: On the CPU, as the run's loaders give it.
        supervised: What the batch's targets and mask say, where it is learned from. None scores
            it: plain nats, each supervised token the same, whatever training makes of them; pairs
            by what it makes of them.
    """
    objective, base = run.objective, run.base
    if supervised is None:
        supervised = supervised_positions(batch.targets, batch.loss_mask)
        if not objective.of_pairs:
            batch, objective, base = batch._replace(loss_mask=None), NLL, None
    device = run.compute.device
    batch, supervised = batch.to(device), send(supervised, device)
    with run.compute.autocast():
        return run.model.loss(
            batch.input_ids,
            batch.targets,
            batch.loss_mask,
            positions=batch.positions,
            segments=batch.segments,
            supervised=supervised,
            prune_last_block=run.plan.preset.prune_last_block,
            objective=objective,
            base=base,
        )


def _as_tree(run: Run, mine: Share) -> tuple[Tensor, list[Tensor]]:
    """Add up as the one tree of :mod:`mypt.training.distributed`, at any number of ranks."""
    losses = torch.zeros(len(mine.batches), device=run.compute.device)
    terms = [losses[:0]] * len(losses)
    weights = [weight for weight in run.model.parameters() if weight.requires_grad]
    tree = Sum()
    for index, micro in enumerate(mine.micros):
        if len(mine.places[index]):
            losses[index], terms[index] = _backward(run, mine, index)
        found = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        tree.add(Subtree(micro, 0), found)
        run.optimizer.zero_grad(set_to_none=True)
    sums = run.ranks.add_trees(tree, run.plan.preset.grad_accumulation)
    for weight, total in zip(weights, sums, strict=True):
        weight.grad = total
    return losses, terms


def _backward(run: Run, mine: Share, index: int) -> tuple[Tensor, Tensor]:
    batch, where, replica = mine.batches[index], mine.places[index], run.replica
    seed_everything(run.plan.preset.seed, run.state.step, mine.micros[index])
    found: MaskedLoss = (replica or partial(loss_of, run))(batch, where)
    averaged = run.sharded or replica is not None
    scale = run.ranks.size if averaged else 1  # torch takes the mean over ranks; a sum is meant
    torch.autograd.backward([found.total * scale / mine.weight])
    assert found.terms is not None, "the model tells"
    return found.total.detach(), found.terms


class _Loss(nn.Module):
    """The loss as a module, since torch's wrapper looks after a ``forward``."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model = run.model
        self._run = (run,)

    def forward(self, batch: Batch, supervised: Tensor) -> MaskedLoss:
        return loss_of(self._run[0], batch, supervised)
