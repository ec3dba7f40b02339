"""Sums in one fixed order, however many processes share the terms: a binary tree.

Adding floating-point numbers in another order gives other last bits. So the n gradients of a
step are always added as the same binary tree, whose leaves are the micro-batches: a *block* is
an aligned stretch of 2^level of them, and is always the sum of its two halves.
"""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor


class Block(NamedTuple):
    """Micro-batches ``start`` to ``start + 2 ** level - 1``; ``start`` is a multiple of that."""

    start: int
    level: int

    @property
    def is_right(self) -> bool:
        """Whether it is the right half of its parent."""
        return bool(self.start >> self.level & 1)


def blocks(part: range) -> list[Block]:
    """Return the largest blocks that make up a stretch of micro-batches, in order."""
    found, start = [], part.start
    while start < part.stop:
        level = (part.stop - start).bit_length() - 1
        if start:
            level = min(level, (start & -start).bit_length() - 1)
        found.append(Block(start, level))
        start += 1 << level
    return found


class Sum:
    """Adds blocks that come from left to right; holds at most one a level.

    Not one of the tensors that come in is changed.
    """

    def __init__(self) -> None:
        self._stack: list[tuple[Block, list[Tensor]]] = []

    def add(self, block: Block, terms: list[Tensor]) -> None:
        """Add a block's tensors to the tree."""
        while self._stack and block.is_right:
            left, sums = self._stack[-1]
            if left.level != block.level:
                break
            self._stack.pop()
            terms = [one + other for one, other in zip(sums, terms, strict=True)]
            block = Block(left.start, left.level + 1)
        self._stack.append((block, terms))

    @property
    def parts(self) -> list[tuple[Block, list[Tensor]]]:
        """The blocks that are not half of a larger one, from left to right."""
        return list(self._stack)

    def whole(self) -> list[Tensor]:
        """Return the sum of all blocks; the last ones are added first."""
        *others, (_, terms) = self._stack
        for _, sums in reversed(others):
            terms = [one + other for one, other in zip(sums, terms, strict=True)]
        return terms


def add_all(parts: Iterable[tuple[Block, Tensor]]) -> Tensor:
    """Return the sum of blocks of one tensor, given from left to right."""
    tree = Sum()
    for block, term in parts:
        tree.add(block, [term])
    return tree.whole()[0]
