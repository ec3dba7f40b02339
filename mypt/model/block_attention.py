"""Attention over packed conversations on a GPU: what lies across their borders is not computed."""

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

_NARROWEST = 16  # numbers of a head from which the kernels are made


def has_kernel(device: torch.device, head_width: int, dropout: float) -> bool:
    """Return whether :func:`attend_blocks` is quicker than a dense mask here, and can do it."""
    fits = head_width >= _NARROWEST and dropout == 0.0
    return device.type == "cuda" and fits and find_spec("triton") is not None


def block_mask(runs: Tensor) -> BlockMask:
    """Return which blocks of queries and keys meet, and which of them only in part.

    Args:
        runs: (B, T) int64, the same number where places belong to one conversation.
    """

    def seen(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (runs[row, query] == runs[row, key])

    rows, length = runs.shape
    return create_block_mask(seen, rows, None, length, length, device=runs.device)


def attend_blocks(query: Tensor, key: Tensor, value: Tensor, blocks: BlockMask) -> Tensor:
    """Attend where ``blocks`` lets: one kernel, compiled at its first call, for all conversations.

    Args:
        query: (B, T, H, D), of autocast's dtype where it is on, as for all three.
        key: (B, T, G, D).
        value: (B, T, G, D).
        blocks: What :func:`block_mask` returned for these rows.

    Returns:
        (B, T, H, D).
    """
    kind = query.device.type
    parts = [part.transpose(1, 2) for part in (query, key, value)]
    if torch.is_autocast_enabled(kind):
        parts = [part.to(torch.get_autocast_dtype(kind)) for part in parts]
    grouped = query.shape[2] != key.shape[2]
    attend = _compiled() if kind == "cuda" else flex_attention  # a CPU has no fused kernel of it
    gathered: Tensor = attend(*parts, block_mask=blocks, enable_gqa=grouped)
    return gathered.transpose(1, 2)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
