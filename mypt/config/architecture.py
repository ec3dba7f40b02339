"""Which weights there are, and how they begin."""

from typing import Literal, Self

from pydantic import Field, model_validator

from mypt.config.data import later
from mypt.errors import ConfigError
from mypt.parsing import Frozen

MAX_BLOCK = 10_000_000
"""Longest context that a config may ask for, in tokens; bounds here catch slips of the pen."""


class RopeScaling(Frozen):
    """How rotary positions stretch beyond the context that weights were first trained on."""

    kind: Literal["linear", "llama3", "factors"]
    """All speeds by ``factor``; slow ones by it and quick ones not at all (Llama 3.1); each by a
    divisor of its own (LongRoPE)."""
    factor: float = Field(default=1.0, gt=0.0)
    """By which speeds are divided; of kind factors 1."""
    low_freq_factor: float = Field(default=1.0, gt=0.0)
    """llama3: turns within ``original_context`` below which a speed counts as slow."""
    high_freq_factor: float = Field(default=4.0, gt=0.0)
    """llama3: turns above which it counts as quick; between the two, divisors are mixed."""
    original_context: int = Field(default=8192, ge=1, le=MAX_BLOCK)
    """llama3: tokens of the context before."""
    factors: tuple[float, ...] = ()
    """factors: a divisor for each pair of numbers that turns."""
    gain: float = Field(default=1.0, gt=0.0)
    """factors: by which cosines and sines are multiplied."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} is not below high_freq_factor"
                f" {self.high_freq_factor}; set one that is"
            )
        if any(factor <= 0 for factor in self.factors):
            raise ValueError(f"factors hold {min(self.factors)}; expected numbers above 0")
        return self


class Architecture(Frozen):
    """What a model is; a fine-tuned model keeps its base model's (DESIGN.md D12)."""

    block_size: int = Field(default=256, ge=1, le=MAX_BLOCK)
    """Tokens of a row in training, and the longest context of a model that begins at random."""
    longest_context: int | None = Field(default=None, ge=1, le=MAX_BLOCK)
    """Longest context that the weights hold, where rows in training are shorter; null is
    block_size."""
    vocab_size: int = Field(default=50304, ge=1, le=10_000_000)
    """Rows of the embedding; at least the tokenizer's vocabulary."""
    n_layer: int = Field(default=6, ge=1, le=1000)
    """Transformer blocks."""
    n_head: int = Field(default=6, ge=1, le=1000)
    """Attention heads; divides n_embd, unless head_dim says how wide one is."""
    n_embd: int = Field(default=384, ge=1, le=100_000)
    """Width of the residual stream."""
    bias: bool = False
    """Bias terms in linear layers and layer norms, as GPT-2 has them."""
    pos_encoding: Literal["learned", "rope"] = "learned"
    """A learned vector a place, as GPT-2, or queries and keys turned by their place."""
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    """RMSNorm neither centres nor has a bias."""
    mlp_type: Literal["gelu", "gelu_erf", "swiglu", "geglu", "relu2"] = "gelu"
    """What the MLP does between its two products: GELU by tanh or exact, squared ReLU, or gated by
    SiLU or by tanh's GELU and two thirds as wide."""
    qk_norm: bool = False
    """RMSNorm of queries and keys."""
    qk_norm_over: Literal["head", "all"] = "head"
    """Whether they are normed head by head or over the whole width."""
    qk_norm_eps: float | None = Field(default=None, gt=0.0)
    """What those norms add to a variance; null is 1e-6."""
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
    rope_scaling: RopeScaling | None = None
    """How rotary positions are stretched; null is not at all."""
    rope_width: int | None = Field(default=None, ge=2)
    """Numbers of a head that turn, the first ones; null is all."""
    nope_every: int = Field(default=0, ge=0)
    """Every n-th block has no rotary positions; 0 is none of them."""
    head_dim: int | None = Field(default=None, ge=1, le=10_000)
    """Numbers of a query; null is n_embd / n_head."""
    qkv_bias: bool = False
    """Bias terms of queries, keys and values, also where ``bias`` is false."""
    norm_place: Literal["before", "after", "both"] = "before"
    """Where each half of a block is normed: what it reads, what it adds, or both."""
    parallel_blocks: bool = False
    """Attention and MLP of a block read the same and are added together."""
    window: int | None = Field(default=None, ge=1, le=MAX_BLOCK)
    """Places that a query sees, its own included; null is all before it."""
    full_every: int = Field(default=0, ge=0)
    """Every n-th block has no window; 0 is none of them."""
    window_rope_base: float | None = Field(default=None, gt=0.0)
    """rope_base of blocks with a window, which are not stretched; null is the others'."""
    embedding_scale: float = Field(default=1.0, gt=0.0)
    """By which token embeddings are multiplied where they enter the first block."""
    attention_scale: float | None = Field(default=None, gt=0.0)
    """By which products of queries and keys are multiplied; null is 1 / sqrt(width of a head)."""
    residual_scale: float = Field(default=1.0, gt=0.0)
    """By which what a block adds is multiplied."""
    logit_divisor: float = Field(default=1.0, gt=0.0)
    """By which logits are divided."""
    logit_softcap: float | None = later(None, gt=0.0)
    """Logits are bent by tanh to stay within it; null leaves them."""
    base: Literal["mypt", "transformers"] = later("mypt")
    """Whose arithmetic the model is: ours, or that of the module that transformers has for a base
    which is read from elsewhere."""
    base_config: str = later("")
    """``config.json`` of such a base, the very text; what it says of sizes is what holds."""

    @property
    def eps(self) -> float:
        """What the residual stream's norms add to a variance."""
        return self.norm_eps or (1e-6 if self.norm_type == "rmsnorm" else 1e-5)

    @property
    def inner_width(self) -> int:
        """Numbers between the MLP's two products."""
        return self.mlp_width or (8 * -(-self.n_embd // 3) if self.gated else 4 * self.n_embd)

    @property
    def gated(self) -> bool:
        """Whether the MLP's first product makes a value and a gate."""
        return self.mlp_type in ("swiglu", "geglu")

    @property
    def longest(self) -> int:
        """Longest context that the weights hold, in tokens."""
        return self.longest_context or self.block_size

    @property
    def head_width(self) -> int:
        """Numbers of a query."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def turned_width(self) -> int:
        """Numbers of a query that rotary positions turn."""
        return self.rope_width or self.head_width

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    def is_windowed(self, block: int) -> bool:
        """Whether the block of this number, from 0, sees no further back than ``window``."""
        return self.window is not None and not _is_nth(block, self.full_every)

    def is_turned(self, block: int) -> bool:
        """Whether the block of this number, from 0, has rotary positions."""
        return self.pos_encoding == "rope" and not _is_nth(block, self.nope_every)

    def with_rows(self, size: int, scaling: RopeScaling | None, where: str) -> Self:
        """Return this architecture for rows of ``size`` tokens; its weights fit as before.

        Args:
            size: Tokens of a row.
            scaling: How rotary positions are stretched; other than now, they hold longer rows.
            where: Whose weights they are, for errors.

        Raises:
            ConfigError: If the weights hold no rows so long.
        """
        rotary = self.pos_encoding == "rope"
        stretched = rotary and scaling != self.rope_scaling
        longest = max(size, self.longest) if stretched else self.longest
        if size > longest:
            wanted = "state rope_scaling, or " if rotary else ""
            raise ConfigError(
                f"block_size is {size}; expected at most {longest}, which is what the base model"
                f" {where} holds; {wanted}set block_size to that or less"
            )
        update: dict[str, object] = {"block_size": size}
        update["longest_context"] = None if longest == size else longest
        update["rope_scaling"] = scaling if rotary else self.rope_scaling
        return self.model_copy(update=update)

    def check_row(self, length: int) -> None:
        """Refuse to read a row of ``length`` tokens if it is longer than the weights hold.

        Raises:
            ValueError: If it is.
        """
        if length > self.longest:
            raise ValueError(f"rows of {length} tokens do not fit block_size {self.longest}")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.head_dim is None and self.n_embd % self.n_head:
            raise ValueError(
                f"n_head {self.n_head} does not divide n_embd {self.n_embd}; set n_head to one that"
                " does"
            )
        if self.n_head % self.key_heads:
            raise ValueError(
                f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}; set n_kv_head to"
                " one that does"
            )
        if self.pos_encoding == "rope" and self.turned_width % 2:
            named = "rope_width" if self.rope_width else "head_dim"
            name = named if self.rope_width or self.head_dim else "n_embd / n_head"
            raise ValueError(f"{name} is {self.turned_width}; rope wants an even width")
        return self

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.turned_width > self.head_width:
            raise ValueError(f"rope_width {self.rope_width} exceeds a head's {self.head_width}")
        if self.longest < self.block_size:
            raise ValueError(
                f"longest_context {self.longest_context} is below block_size {self.block_size}"
            )
        divisors = self.rope_scaling.factors if self.rope_scaling else ()
        if divisors and len(divisors) != self.turned_width // 2:
            raise ValueError(
                f"rope_scaling has {len(divisors)} factors; expected {self.turned_width // 2}, one"
                " a pair of numbers that turns"
            )
        return self


def _is_nth(block: int, every: int) -> bool:
    return every > 0 and (block + 1) % every == 0


class GPTConfig(Architecture):
    """What :class:`mypt.model.gpt.GPT` is built from."""

    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of activations dropped in training; not architecture, so fine-tuning sets its own."""
    zero_init: bool = False
    """Random weights begin with residual projections of 0, so that each block begins as nothing."""
    scaled_init: bool = False
    """Random matrices are drawn by what they read, the blocks' by 1 / sqrt(inputs), embeddings and
    head by half of 1 / sqrt(n_embd), instead of GPT-2's 0.02 whatever the width."""
