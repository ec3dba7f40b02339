"""Causal attention by blocks of queries, against torch's kernel in float64."""

import pytest
import torch
import torch.nn.functional as F

from mypt.model.attention import attend, separate, share
from mypt.model.causal import LENGTHS, attend_causally, is_quicker


def drawn(rows, length, heads, groups, width=8, dtype=torch.float64):
    torch.manual_seed(0)
    sizes = (heads, groups, groups)
    return [torch.randn(rows, length, n, width, dtype=dtype, requires_grad=True) for n in sizes]


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
@pytest.mark.parametrize(("heads", "groups"), [(9, 3), (4, 1), (2, 2)])
def test_values_and_gradients_are_those_of_the_whole_square(length, heads, groups):
    qkv = drawn(2, length, heads, groups)
    query, key, value = (part.transpose(1, 2) for part in (qkv[0], *share(*qkv)))
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    found, slope = attend_causally(*qkv), torch.randn_like(expected)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    pairs = (torch.autograd.grad(out, qkv, slope) for out in (found, expected))
    for one, other in zip(*pairs, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)


def test_a_document_is_the_same_bits_alone_as_among_others():
    lengths = [200, 300, 76]
    qkv = drawn(1, sum(lengths), 6, 2, dtype=torch.float32)
    assert is_quicker(qkv[0][:, :300], qkv[1])
    numbers = torch.arange(3).repeat_interleave(torch.tensor(lengths))[None]
    together = attend(*qkv, separate(numbers))
    alone = [
        attend(*document) for document in zip(*(p.split(lengths, 1) for p in qkv), strict=True)
    ]
    assert torch.equal(together, torch.cat(alone, 1))
    doubled = [part.repeat(2, 1, 1, 1) for part in qkv]
    assert torch.equal(attend(*doubled)[:1], attend(*qkv))


def test_it_is_taken_where_keys_are_shared_and_rows_are_neither_short_nor_long():
    query, key, _ = drawn(1, LENGTHS.start, 4, 2)
    assert is_quicker(query, key)
    assert not is_quicker(query[:, 1:], key[:, 1:])
    assert not is_quicker(query, query)
    assert not is_quicker(query.bfloat16(), key.bfloat16())
