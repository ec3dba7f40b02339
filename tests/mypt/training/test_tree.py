"""One order of adding, whoever holds which terms."""

import pytest
import torch

from mypt.training.distributed import Subtree, Sum, add_all, share, subtrees


def terms(n):
    """Numbers whose sum depends on the order."""
    return torch.randn(n, 50, generator=torch.Generator().manual_seed(n)) * 10 ** torch.arange(
        n
    ).remainder(7).unsqueeze(1)


def summed(part, values):
    tree = Sum()
    for micro in part:
        tree.add(Subtree(micro, 0), [values[micro]])
    return [(block, found[0]) for block, found in tree.parts]


@pytest.mark.parametrize("n", [1, 2, 3, 8, 12, 13])
def test_any_number_of_ranks_adds_to_the_same_bits(n):
    values = terms(n)
    alone = add_all(summed(range(n), values))
    for size in range(1, n + 1):
        parts = [summed(share(n, rank, size), values) for rank in range(size)]
        assert torch.equal(add_all(block for part in parts for block in part), alone)


def test_the_order_matters_to_these_numbers():
    values = terms(13)
    assert not torch.equal(add_all(summed(range(13), values)), values.flip(0).cumsum(0)[-1])


def test_eight_terms_add_in_pairs_of_pairs():
    a, b, c, d, e, f, g, h = values = terms(8)
    expected = ((a + b) + (c + d)) + ((e + f) + (g + h))
    assert torch.equal(add_all(summed(range(8), values)), expected)


def test_blocks_are_aligned_and_cover_the_stretch():
    assert subtrees(range(3, 13)) == [Subtree(3, 0), Subtree(4, 2), Subtree(8, 2), Subtree(12, 0)]
    assert subtrees(range(8)) == [Subtree(0, 3)]
    for part in (range(5, 6), range(1, 8), range(6, 31)):
        found = [m for b in subtrees(part) for m in range(b.start, b.start + 2**b.level)]
        assert found == list(part)


def test_shares_are_whole_and_even():
    for n, size in ((8, 4), (8, 3), (5, 5)):
        parts = [share(n, rank, size) for rank in range(size)]
        assert [micro for part in parts for micro in part] == list(range(n))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
