"""Norms and gates of training, in fewer passes over memory than autograd's own.

A processor waits for memory in both: autograd keeps and reads again what takes less to compute.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.RMSNorm):
    """Each row over the root of its mean square, times a gain."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., C), the same up to rounding whether it is learned from or not."""
        if _is_learned_from(x) and x.dtype == self.weight.dtype != torch.bfloat16:
            assert self.eps is not None, "always given"
            found: Tensor = _Norm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
            return found
        return super().forward(x)


def gated(x: Tensor) -> Tensor:
    """Return the first half of ``x`` (..., 2 n) times the SiLU of the second, (..., n)."""
    if _is_learned_from(x):
        found: Tensor = _Gated.apply(x)  # type: ignore[no-untyped-call]
        return found
    value, gate = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def _is_learned_from(x: Tensor) -> bool:
    """Whether there will be a backward pass here; a compiler finds a better one itself."""
    return torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling()


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        over = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, over)
        out: Tensor = (x * over).mul_(gain)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, gain, over = ctx.saved_tensors
        d_gain = None
        if ctx.needs_input_grad[1]:
            d_gain = (x * over).mul_(gradient).flatten(0, -2).sum(0)
        slope = gradient * gain
        along = torch.linalg.vecdot(slope, x).unsqueeze(-1).mul_(over.pow(3)).div_(-x.shape[-1])
        return slope.mul_(over).addcmul_(x, along), d_gain, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        value, gate = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        value, gate = x.chunk(2, dim=-1)
        slopes = torch.empty_like(x)
        d_value, d_gate = slopes.chunk(2, dim=-1)
        torch.mul(F.silu(gate), gradient, out=d_value)
        torch.ops.aten.silu_backward.grad_input(gradient * value, gate, grad_input=d_gate)
        return slopes
