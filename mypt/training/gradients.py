"""The gradients of one optimizer step: summed losses, divided by the step's supervised tokens.

The same sum, whether one process makes it or many (DDP, FSDP2, or one fixed tree).

Adding floating-point numbers in another order gives other last bits. So with ``reduction: tree``
the n gradients of a step are always added as the same binary tree, whose leaves are the
micro-batches: a *subtree* is an aligned run of 2^level of them, the sum of its two halves.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from mypt.model.loss import MaskedLoss, supervised_positions
from mypt.training.compute import seed_everything
from mypt.training.distributed import share
from mypt.training.loader import Batch, send
from mypt.training.run import Run


class Subtree(NamedTuple):
    """Micro-batches ``start`` to ``start + 2 ** level - 1`` of the tree that adds gradients.

    ``start`` is a multiple of their number.
    """

    start: int
    level: int

    @property
    def is_right(self) -> bool:
        """Whether it is the right half of its parent."""
        return bool(self.start >> self.level & 1)


def subtrees(part: range) -> list[Subtree]:
    """Return the largest subtrees that make up a stretch of micro-batches, in order."""
    found, start = [], part.start
    while start < part.stop:
        level = (part.stop - start).bit_length() - 1
        if start:
            level = min(level, (start & -start).bit_length() - 1)
        found.append(Subtree(start, level))
        start += 1 << level
    return found


class Sum:
    """Adds subtrees that come from left to right; holds at most one a level.

    Not one of the tensors that come in is changed.
    """

    def __init__(self) -> None:
        self._stack: list[tuple[Subtree, list[Tensor]]] = []

    def add(self, subtree: Subtree, terms: list[Tensor]) -> None:
        """Add a subtree's tensors to the tree."""
        while self._stack and subtree.is_right:
            left, sums = self._stack[-1]
            if left.level != subtree.level:
                break
            self._stack.pop()
            terms = [one + other for one, other in zip(sums, terms, strict=True)]
            subtree = Subtree(left.start, left.level + 1)
        self._stack.append((subtree, terms))

    @property
    def parts(self) -> list[tuple[Subtree, list[Tensor]]]:
        """The subtrees that are not half of a larger one, from left to right."""
        return list(self._stack)

    def whole(self) -> list[Tensor]:
        """Return the sum of all subtrees; the last ones are added first."""
        *others, (_, terms) = self._stack
        for _, sums in reversed(others):
            terms = [one + other for one, other in zip(sums, terms, strict=True)]
        return terms


def add_all(parts: Iterable[tuple[Subtree, Tensor]]) -> Tensor:
    """Return the sum of subtrees of one tensor, given from left to right."""
    tree = Sum()
    for subtree, term in parts:
        tree.add(subtree, [term])
    return tree.whole()[0]


class Share(NamedTuple):
    """What this process computes of one step."""

    micros: range
    """Its micro-batches, by their number in the step."""
    batches: list[Batch]
    """As the loader made them: each goes to the device at its turn."""
    places: list[Tensor]
    """(N,) int64 each, on the CPU: supervised positions of the flattened batch."""
    supervised: int
    """Supervised tokens of the whole step, on all ranks: what every loss is divided by."""


def add_gradients(run: Run, mine: Share) -> Tensor:
    """Leave the gradients of the whole step in the model; return this rank's summed losses.

    Each micro-batch's summed loss is divided by the count of the whole step, over all ranks
    (law 3), so that gradients only ever add up. Nothing here waits for a device.

    Returns:
        (n,) float32, on the device: nats of each of this rank's micro-batches.
    """
    if run.plan.preset.reduction == "tree":
        return _as_tree(run, mine)
    if isinstance(run.model, FSDPModule):
        return _sharded(run, mine)
    if run.ranks.size > 1:
        return _replicated(run, mine)
    return _in_order(run, mine)


def loss_of(run: Run, batch: Batch, supervised: Tensor | None = None) -> MaskedLoss:
    """Return the loss of one micro-batch as a sum and a count, in the run's arithmetic.

    Args:
        run: Whose model, on whose device.
        batch: On the CPU, as the run's loaders give it.
        supervised: What the batch's targets and mask say, where that is known already.
    """
    if supervised is None:
        supervised = supervised_positions(batch.targets, batch.loss_mask)
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
        )


def _in_order(run: Run, mine: Share) -> Tensor:
    losses = torch.zeros(len(mine.batches), device=run.compute.device)
    for index, where in enumerate(mine.places):
        if len(where):
            losses[index] = _backward(run, mine, index)
    return losses


def _as_tree(run: Run, mine: Share) -> Tensor:
    """Add up as the one tree of :mod:`mypt.training.gradients`, at any number of ranks."""
    losses = torch.zeros(len(mine.batches), device=run.compute.device)
    weights = [weight for weight in run.model.parameters() if weight.requires_grad]
    tree = Sum()
    for index, micro in enumerate(mine.micros):
        if len(mine.places[index]):
            losses[index] = _backward(run, mine, index)
        found = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        tree.add(Subtree(micro, 0), found)
        run.optimizer.zero_grad(set_to_none=True)
    if run.ranks.size == 1:
        sums = tree.whole()
    else:
        n, size = run.plan.preset.grad_accumulation, run.ranks.size
        theirs = [subtrees(share(n, rank, size)) for rank in range(size)]
        parts = [terms for _, terms in tree.parts]
        sums = [_gathered([part[i] for part in parts], theirs) for i in range(len(weights))]
    for weight, total in zip(weights, sums, strict=True):
        weight.grad = total
    return losses


def _gathered(mine: list[Tensor], theirs: list[list[Subtree]]) -> Tensor:
    """Return the sum over all ranks of one weight's gradient.

    Args:
        mine: The sums of this rank's subtrees.
        theirs: The subtrees of each rank.
    """
    room = mine[0].new_zeros(max(map(len, theirs)), *mine[0].shape)
    torch.stack(mine, out=room[: len(mine)])
    found = [torch.empty_like(room) for _ in theirs]
    dist.all_gather(found, room)
    return add_all(
        (subtree, found[rank][i])
        for rank, own in enumerate(theirs)
        for i, subtree in enumerate(own)
    )


def _replicated(run: Run, mine: Share) -> Tensor:
    """Let DistributedDataParallel add up over the ranks while the last backward pass runs."""
    if run.replica is None:
        run.replica = DistributedDataParallel(
            _Loss(run), forward_sync_buffers=False, gradient_as_bucket_view=True, init_sync=False
        )
    losses, last = torch.zeros(len(mine.batches), device=run.compute.device), len(mine.places) - 1
    for index, where in enumerate(mine.places):
        if len(where) or index == last:  # the others wait for the last, supervised or not
            with nullcontext() if index == last else run.replica.no_sync():
                losses[index] = _backward(run, mine, index, run.replica)
    return losses


def _sharded(run: Run, mine: Share) -> Tensor:
    """Let FSDP2 gather weights and scatter gradients, each micro-batch: no rank holds them all."""
    losses = torch.zeros(len(mine.batches), device=run.compute.device)
    for index in range(len(mine.batches)):  # the supervised and the others: ranks stay in step
        losses[index] = _backward(run, mine, index)
    return losses


def _backward(
    run: Run, mine: Share, index: int, replica: DistributedDataParallel | None = None
) -> Tensor:
    batch, where = mine.batches[index], mine.places[index]
    seed_everything(run.plan.preset.seed, run.state.step, mine.micros[index])
    loss: Tensor = loss_of(run, batch, where).total if replica is None else replica(batch, where)
    averaged = isinstance(run.model, FSDPModule) or replica is not None
    scale = run.ranks.size if averaged else 1  # torch takes the mean over ranks; a sum is meant
    torch.autograd.backward([loss * scale / mine.supervised])
    return loss.detach()


class _Loss(nn.Module):
    """The loss as a module, since torch's wrapper looks after a ``forward``."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model = run.model
        self._run = (run,)

    def forward(self, batch: Batch, supervised: Tensor) -> Tensor:
        return loss_of(self._run[0], batch, supervised).total
