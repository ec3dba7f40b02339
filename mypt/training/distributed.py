"""The processes that train one model together: who does what, and what they tell each other.

With FSDP2 every rank holds a part of each weight, and all of a block only while it computes.

Adding floating-point numbers in another order gives other last bits. So with ``reduction: tree``
the n gradients of a step are always added as the same binary tree, whose leaves are the
micro-batches: a *subtree* is an aligned run of 2^level of them, the sum of its two halves.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from mypt import errors
from mypt.model.gpt import GPT
from mypt.training.compute import Compute

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

Told = TypeVar("Told")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train; the default is a process alone.

    What ranks tell each other travels on the CPU, in sums of which all but one term are 0, so
    that no bit depends on how many they are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this rank writes what only one may write."""
        return self.rank == 0

    def share(self, n: int) -> range:
        """Return which of a step's ``n`` micro-batches are this rank's."""
        return share(n, self.rank, self.size)

    def turns(self, n: int) -> Iterator[tuple[int, bool]]:
        """Yield which of ``n`` batches to score next, and whether the result counts.

        Each rank gets as many turns, since a sharded model answers only to all ranks at once;
        in the last one some score a batch that another counts.
        """
        for first in range(0, n, self.size):
            index = first + self.rank
            yield min(index, n - 1), index < n

    def total(self, *counts: int) -> tuple[int, ...]:
        """Return the sums of the ranks' counts."""
        if self.size == 1:
            return counts
        sums = torch.tensor(counts, dtype=torch.int64)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def merge(self, found: dict[int, float], n: int) -> list[float]:
        """Return ``n`` numbers of which each rank found some; those nobody found are 0."""
        values = torch.zeros(n, dtype=torch.float64)
        for index, value in found.items():
            values[index] = value
        if self.size > 1:
            dist.all_reduce(values)
        return values.tolist()

    def merge_rows(
        self, found: dict[int, NDArray[np.float64]], n: int, shape: tuple[int, ...]
    ) -> NDArray[np.float64]:
        """Return the sum of ``n`` arrays of which each rank found some, added in their order."""
        rows = np.zeros((n, *shape))
        for index, row in found.items():
            rows[index] = row
        if self.size > 1:
            dist.all_reduce(torch.from_numpy(rows))
        total: NDArray[np.float64] = rows.sum(axis=0)
        return total

    def add_trees(self, mine: "Sum", n: int) -> list[Tensor]:
        """Return the tensors of the whole tree of ``n`` micro-batches.

        Args:
            mine: The subtrees that this rank has.
            n: Micro-batches of all ranks.
        """
        if self.size == 1:
            return mine.whole()
        theirs = [subtrees(share(n, rank, self.size)) for rank in range(self.size)]
        parts = [terms for _, terms in mine.parts]
        return [_gathered(list(terms), theirs) for terms in zip(*parts, strict=True)]

    def agree(self, asked: bool) -> bool:
        """Return whether any rank was asked."""
        return self.total(int(bool(asked)))[0] > 0

    def first(self, work: Callable[[], Told]) -> Told:
        """Let rank 0 do ``work``; return on every rank what it gave.

        Raises:
            MyptError: On every rank, where ``work`` raised one.
        """
        if self.size == 1:
            return work()
        told: list[Any] = [None, None]
        failed: Exception | None = None
        if self.leads:
            try:
                told[0] = work()
            except errors.MyptError as error:
                failed = error
                told[1] = (type(error).__name__, str(error))
        dist.broadcast_object_list(told, src=0)
        if failed is not None:
            raise failed
        if told[1] is not None:
            kind, text = told[1]
            raise getattr(errors, kind)(text)
        result: Told = told[0]
        return result

    def same(self, value: str, what: str) -> None:
        """Check that every rank was given the same.

        Raises:
            ConfigError: On every rank, if not.
        """
        found: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        if len(set(found)) > 1:
            raise errors.ConfigError(
                f"{what}: {', '.join(sorted({str(one)[:12] for one in found}))} found on"
                f" {self.size} ranks, one expected; start every machine with the same command, the"
                " same files and the same mypt"
            )

    def wait(self) -> None:
        """Return when every rank has come here."""
        self.total(0)


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


ALONE = Ranks()
"""The one rank of a training in one process."""


@contextmanager
def joined(
    device: str, timeout: float, meet_at: str = "env://", rank: int = -1, size: int = -1
) -> Iterator[Ranks]:
    """Yield this process's place among those that train, and leave them at the end.

    Args:
        device: Kind of device that computes; what ranks tell each other goes over the CPU.
        timeout: Seconds after which a rank that waits for another gives up.
        meet_at: Where ranks find each other; the default is where torchrun says.
        rank: This process's number; -1 asks torchrun.
        size: How many there are; -1 asks torchrun.
    """
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    limit = timedelta(seconds=timeout)
    dist.init_process_group(backend, meet_at, timeout=limit, rank=rank, world_size=size)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def share(n: int, rank: int, size: int) -> range:
    """Return which of ``n`` micro-batches rank ``rank`` of ``size`` computes.

    A stretch without gaps, as long as its neighbours' but for one: a function of nothing else,
    so that a step is the same step however many share it.
    """
    return range(n * rank // size, n * (rank + 1) // size)


def shard(model: GPT, compute: Compute, size: int) -> None:
    """Let the ranks share the weights of ``model``, which all of them hold alike before.

    With bfloat16 products, blocks travel and compute in bfloat16; the parts that ranks keep,
    their gradients' sums and the optimizer stay float32. The vocabulary's matrix stays whole
    from the forward pass to the backward pass, since both ends of the model read it.

    Args:
        model: On its device already.
        compute: The run's arithmetic.
        size: Number of ranks.
    """
    from torch.distributed.fsdp import (  # with sympy, as long again as torch itself
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    policy = MixedPrecisionPolicy()
    if compute.dtype == torch.bfloat16:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    mesh = init_device_mesh(compute.device.type, (size,))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh, mp_policy=policy)
        register_fsdp_forward_method(block, "at")
    # A float32 that goes into the whole model is a weight of a token, and stays one.
    fully_shard(model, mesh=mesh, mp_policy=replace(policy, cast_forward_inputs=False))
    register_fsdp_forward_method(model, "loss")


def reshard(model: GPT) -> None:
    """Let this rank hold no more of a sharded ``model`` than its own part."""
    cast("FSDPModule", model).reshard()


def is_part(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Return whether a tensor is a rank's part of a larger one; importing none of its kind."""
    return hasattr(tensor, "placements")


def part_of(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's part of a tensor that every rank holds, cut as ``parameter`` is cut.

    A tensor that is cut already, a count, or any tensor of a model that is whole, stays whole.
    """
    if is_part(whole) or not is_part(parameter) or not whole.dim():
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, places = parameter.device_mesh, parameter.placements
    return distribute_tensor(whole.to(mesh.device_type), mesh, places, src_data_rank=None)


def copied(tensor: Tensor, mesh: DeviceMesh | None = None) -> Tensor:
    """Return a copy on the CPU; of this rank's part, as a part of the same whole.

    Args:
        tensor: A part of a whole, or a whole tensor.
        mesh: The ranks' CPUs, in the order of their devices; for parts.
    """
    if not is_part(tensor):
        return tensor.detach().to("cpu", copy=True).contiguous()
    part = tensor.to_local().detach().to("cpu", copy=True)
    size, stride = tensor.size(), tensor.stride()
    return type(tensor).from_local(part, mesh, tensor.placements, shape=size, stride=stride)
