"""What a block computes for each position on its own."""

import torch.nn.functional as F
from torch import Tensor, nn

from mypt.config import GPTConfig


class MLP(nn.Module):
    """Wider, bent, back: GELU in its tanh form as GPT-2's, squared ReLU, or SwiGLU.

    SwiGLU makes a value and a gate of it by one product; it is 8/3 as wide as the residual
    stream where the others are 4 times, so that all have about as many weights.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.kind = config.mlp_type
        width = config.inner_width
        first = 2 * width if self.kind == "swiglu" else width
        self.c_fc = nn.Linear(config.n_embd, first, bias=config.bias)
        self.c_proj = nn.Linear(width, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., C), each position on its own."""
        out: Tensor = self.dropout(self.c_proj(self._bend(self.c_fc(x))))
        return out

    def _bend(self, x: Tensor) -> Tensor:
        if self.kind == "gelu":
            return F.gelu(x, approximate="tanh")
        if self.kind == "relu2":
            return F.relu(x).square()
        value, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * value
