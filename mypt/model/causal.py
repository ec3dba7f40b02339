"""Causal attention of heads that share keys, on a CPU: by products of blocks of queries.

torch's kernel for it repeats the keys, and computes squares of 512 of which it throws half away.
Queries that share a key lie here one behind another, (B * G, H / G * n, D), so that a group is one
product; weights are computed again for the backward pass, as there.
"""

import math
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LENGTHS: Final = range(192, 1025)
"""Of documents for which it is the quicker one."""
_BLOCK: Final = 32  # queries at a time: fewer waste less, more make quicker products


def is_quicker(query: Tensor, key: Tensor) -> bool:
    """Whether :func:`attend_causally` is quicker than torch's kernel for these, of one length."""
    grouped, low = key.shape[2] < query.shape[2], query.dtype == torch.bfloat16
    return query.device.type == "cpu" and grouped and not low and query.shape[1] in LENGTHS


def attend_causally(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return what each position gathers from the places up to its own.

    Args:
        query: (B, T, H, D), float32 or float64, as all three.
        key: (B, T, G, D); G divides H, and H / G neighbouring queries share a key.
        value: (B, T, G, D).

    Returns:
        (B, T, H, D).
    """
    found: Tensor = _Causal.apply(query, key, value)  # type: ignore[no-untyped-call]
    return found


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        groups = key.shape[2]
        keys, values = _grouped(key, groups), _grouped(value, groups)
        out = torch.empty(query.shape, dtype=query.dtype)
        for here, seen in _blocks(query.shape[1]):
            weights = _weights(_grouped(query[:, here], groups), keys[:, seen], here)
            _put(out[:, here], torch.bmm(weights, values[:, seen]), groups)
        ctx.save_for_backward(query, keys, values)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, keys, values = ctx.saved_tensors
        rows, length, _, width = query.shape
        groups, scale = len(keys) // rows, 1 / math.sqrt(width)
        d_query = torch.empty(query.shape, dtype=query.dtype)
        d_keys, d_values = torch.zeros_like(keys), torch.zeros_like(values)
        for here, seen in _blocks(length):
            asked, slope = (_grouped(t[:, here], groups) for t in (query, gradient))
            weights = _weights(asked, keys[:, seen], here)
            d_values[:, seen].baddbmm_(weights.mT, slope)
            d_weights = torch.bmm(slope, values[:, seen].mT)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_keys[:, seen].baddbmm_(d_scores.mT, asked, alpha=scale)
            _put(d_query[:, here], torch.bmm(d_scores, keys[:, seen]).mul_(scale), groups)
        d_key, d_value = (
            d.view(rows, groups, length, width).transpose(1, 2) for d in (d_keys, d_values)
        )
        return d_query, d_key, d_value


def _blocks(length: int) -> Iterator[tuple[slice, slice]]:
    """Yield each block of queries, and the keys that it sees."""
    for start in range(0, length, _BLOCK):
        stop = min(length, start + _BLOCK)
        yield slice(start, stop), slice(stop)


def _grouped(heads: Tensor, groups: int) -> Tensor:
    """Return heads (B, n, H, D) as (B * G, H / G * n, D)."""
    return _apart(heads, groups).permute(0, 2, 3, 1, 4).flatten(2, 3).flatten(0, 1)


def _put(heads: Tensor, grouped: Tensor, groups: int) -> None:
    """Write what :func:`_grouped` would make of ``heads`` into them."""
    rows, n, number, width = heads.shape
    lying = grouped.view(rows, groups, number // groups, n, width).permute(0, 3, 1, 2, 4)
    _apart(heads, groups).copy_(lying)


def _apart(heads: Tensor, groups: int) -> Tensor:
    """Return heads (B, n, H, D) as a view (B, n, G, H / G, D)."""
    rows, n, number, width = heads.shape
    return heads.view(rows, n, groups, number // groups, width)


def _weights(asked: Tensor, keys: Tensor, here: slice) -> Tensor:
    """Return (B * G, H / G * n, seen) how much of each place is gathered, 0 of later ones."""
    n, scale = here.stop - here.start, 1 / math.sqrt(keys.shape[-1])
    scores = torch.baddbmm(asked.new_empty(()), asked, keys.mT, beta=0, alpha=scale)
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    scores.view(len(scores), -1, n, keys.shape[1])[..., here].masked_fill_(later, -math.inf)
    return scores.softmax(-1)
