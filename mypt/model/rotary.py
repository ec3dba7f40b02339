"""Rotary positions: queries and keys turned by their place, so that products see distances."""

import torch
from torch import Tensor

BASE = 10_000.0  # Su et al. 2021, section 3.2.2


def turns(block_size: int, width: int, base: float = BASE) -> Tensor:
    """Return (block_size, 2, width / 2) float32: cosines and sines of each place's angles.

    A table rather than a function of positions: equal places get equal bits, whatever stands
    around them, so that packed conversations stay apart.
    """
    speeds = base ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(block_size, dtype=torch.float64)[:, None] * speeds
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def turn(heads: Tensor, by: Tensor) -> Tensor:
    """Turn each number of the first half with its partner in the second.

    Args:
        heads: (..., H, D) queries or keys.
        by: (..., 2, D / 2), rows of :func:`turns`.
    """
    cosine, sine = by[..., None, 0, :], by[..., None, 1, :]
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.type_as(heads)
