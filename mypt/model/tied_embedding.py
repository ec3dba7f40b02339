"""Token embedding that shares its weight with the head, and the head's gradient with it."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class TiedGradient:
    """Where the head's backward pass leaves the weight's gradient for the embedding's.

    Autograd would make a (V, C) gradient for each of the two and add them up, although the
    embedding's has as few rows as the batch has tokens. Here the embedding adds those rows to
    what the head left. The head always comes first: the embedding's gradient flows through it.
    """

    __slots__ = ("of_head",)

    def __init__(self) -> None:
        self.of_head: Tensor | None = None


def embed(idx: Tensor, weight: Tensor, shared: TiedGradient) -> Tensor:
    """Return ``weight[idx]`` (B, T, C), whose gradient joins the one left in ``shared``.

    Args:
        idx: (B, T) int64 token ids.
        weight: (V, C).
        shared: What the head of this forward pass was given too.
    """
    found: Tensor = _Embed.apply(idx, weight, shared)  # type: ignore[no-untyped-call]
    return found


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, idx: Tensor, weight: Tensor, shared: TiedGradient) -> Tensor:
        ctx.save_for_backward(idx)
        ctx.shared = shared
        return torch.nn.functional.embedding(idx, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        (idx,) = ctx.saved_tensors
        total, ctx.shared.of_head = ctx.shared.of_head, None
        if total is None:
            raise RuntimeError("the head left no gradient for its tied embedding")
        # index_put_ would add in any order where a CPU has several threads: other bits each time
        rows = gradient.flatten(0, -2).to(total.dtype)
        return None, total.index_add_(0, idx.flatten(), rows), None
