"""Which weights there are, and how they begin."""

from typing import Literal, Self

from pydantic import Field, model_validator

from mypt.parsing import Frozen

MAX_BLOCK = 10_000_000
"""Longest context that a config may ask for, in tokens; bounds here catch slips of the pen."""


class Architecture(Frozen):
    """What a model is; a fine-tuned model keeps its base model's (DESIGN.md D12)."""

    block_size: int = Field(default=256, ge=1, le=MAX_BLOCK)
    """Longest context, in tokens."""
    vocab_size: int = Field(default=50304, ge=1, le=10_000_000)
    """Rows of the embedding; at least the tokenizer's vocabulary."""
    n_layer: int = Field(default=6, ge=1, le=1000)
    """Transformer blocks."""
    n_head: int = Field(default=6, ge=1, le=1000)
    """Attention heads; divides n_embd."""
    n_embd: int = Field(default=384, ge=1, le=100_000)
    """Width of the residual stream."""
    bias: bool = False
    """Bias terms in linear layers and layer norms, as GPT-2 has them."""
    pos_encoding: Literal["learned", "rope"] = "learned"
    """A learned vector a place, as GPT-2, or queries and keys turned by their place."""
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    """RMSNorm neither centres nor has a bias."""
    mlp_type: Literal["gelu", "swiglu", "relu2"] = "gelu"
    """What the MLP does between its two products; SwiGLU's is gated and two thirds as wide."""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys."""
    n_kv_head: int | None = Field(default=None, ge=1)
    """Heads of keys and values, shared by groups of queries; divides n_head, null is n_head."""
    tie_weights: bool = True
    """One matrix for token embedding and vocabulary projection."""
    mlp_width: int | None = Field(default=None, ge=1)
    """Numbers between the MLP's two products; null is 4 times n_embd, of SwiGLU 8/3 times."""
    norm_eps: float | None = Field(default=None, gt=0.0)
    """What norms add to a variance; null is 1e-5, of RMSNorm 1e-6."""
    rope_base: float = Field(default=10_000.0, gt=0.0)
    """Longest wavelength of rotary positions, over 2 pi."""

    @property
    def eps(self) -> float:
        """What the residual stream's norms add to a variance."""
        return self.norm_eps or (1e-6 if self.norm_type == "rmsnorm" else 1e-5)

    @property
    def inner_width(self) -> int:
        """Numbers between the MLP's two products."""
        gated = self.mlp_type == "swiglu"
        return self.mlp_width or (8 * -(-self.n_embd // 3) if gated else 4 * self.n_embd)

    @property
    def head_width(self) -> int:
        """Numbers of a query."""
        return self.n_embd // self.n_head

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_head {self.n_head} does not divide n_embd {self.n_embd}; set n_head to one that"
                " does"
            )
        if self.n_head % self.key_heads:
            raise ValueError(
                f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}; set n_kv_head to"
                " one that does"
            )
        if self.pos_encoding == "rope" and self.head_width % 2:
            raise ValueError(f"n_embd / n_head is {self.head_width}; rope wants an even width")
        return self


class GPTConfig(Architecture):
    """What :class:`mypt.model.gpt.GPT` is built from."""

    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of activations dropped in training; not architecture, so fine-tuning sets its own."""
    zero_init: bool = False
    """Random weights begin with residual projections of 0, so that each block begins as nothing."""
    scaled_init: bool = False
    """Random matrices are drawn by what they read, the blocks' by 1 / sqrt(inputs), embeddings and
    head by half of 1 / sqrt(n_embd), instead of GPT-2's 0.02 whatever the width."""
