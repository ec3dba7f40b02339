"""The blocks between the token embedding and the vocabulary projection.

A block attends, then computes for each position on its own. Rotary positions turn queries and keys
by their place, so that products see distances.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mypt.config import GPTConfig, RopeScaling
from mypt.model.attention import Attend
from mypt.model.elementwise import RMSNorm, gated
from mypt.model.linear_loss import TiedGradient, embed
from mypt.model.lora import Embedding, Linear

BASE = 10_000.0  # Su et al. 2021, section 3.2.2
RMS_EPS = 1e-6  # as in Llama's descendants


class MLP(nn.Module):
    """Wider, bent, back: GELU, in its tanh form as GPT-2's or exact, squared ReLU, or gated.

    A gated one makes a value and a gate by one product; it is 8/3 as wide as the residual
    stream where the others are 4 times, so that all have about as many weights.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.kind = config.mlp_type
        width = config.inner_width
        first = 2 * width if config.gated else width
        self.c_fc = Linear(config.n_embd, first, bias=config.bias)
        self.c_proj = Linear(width, config.n_embd, bias=config.bias)
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
        if self.kind == "gelu_erf":
            return F.gelu(x)
        if self.kind == "swiglu":
            return gated(x)
        value, gate = x.chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh") * value


def turns(
    block_size: int, width: int, base: float = BASE, scaling: RopeScaling | None = None
) -> Tensor:
    """Return (block_size, 2, width / 2) float32: cosines and sines of each place's angles.

    A table rather than a function of positions: equal places get equal bits, whatever stands
    around them, so that packed conversations stay apart.
    """
    speeds = base ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    gain = 1.0
    if scaling is not None:
        speeds, gain = speeds / divisors(speeds, scaling), scaling.gain
    angles = torch.arange(block_size, dtype=torch.float64)[:, None] * speeds
    return (gain * torch.stack([angles.cos(), angles.sin()], dim=1)).float()


def divisors(speeds: Tensor, scaling: RopeScaling) -> Tensor:
    """Return by what each speed is divided; Llama 3.1 mixes speeds, not divisors, in between."""
    if scaling.kind == "factors":
        return torch.tensor(scaling.factors, dtype=speeds.dtype)
    whole = torch.full_like(speeds, scaling.factor)
    if scaling.kind == "linear":
        return whole
    turned = scaling.original_context * speeds / (2 * torch.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    quick = ((turned - low) / (high - low)).clamp(0, 1)
    return 1 / (quick + (1 - quick) / whole)


def turn(heads: Tensor, by: Tensor) -> Tensor:
    """Turn each number of the first half with its partner in the second.

    Args:
        heads: (..., H, D) queries or keys.
        by: (..., 2, R / 2), rows of :func:`turns`; of R below D, the numbers behind stay.
    """
    cosine, sine = by[..., None, 0, :], by[..., None, 1, :]
    width = by.shape[-1]
    first, second, rest = heads.tensor_split((width, 2 * width), dim=-1)
    parts = [first * cosine - second * sine, second * cosine + first * sine]
    if rest.shape[-1]:
        parts.append(rest)
    return torch.cat(parts, dim=-1).type_as(heads)


class Wanted(NamedTuple):
    """The only places whose states are asked of the last block."""

    places: Tensor
    """(N,) int64, places of the flattened (B, T), ascending."""
    attend: Attend
    """Their queries (N, H, D) and all keys and values (B, T, G, D) to what they gathered."""


class SelfAttention(nn.Module):
    """Projections before and after whatever attention stands between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.key_heads = config.n_head, config.key_heads
        self.head_width = config.head_width
        self.queries, keys = (n * config.head_width for n in (config.n_head, config.key_heads))
        asked = self.queries + 2 * keys
        self.c_attn = Linear(config.n_embd, asked, bias=config.bias or config.qkv_bias)
        self.c_proj = Linear(self.queries, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.qk_norm, self.norm_whole = config.qk_norm, config.qk_norm_over == "all"
        if config.qk_norm:
            widths = (self.queries, keys) if self.norm_whole else (config.head_width,) * 2
            eps = config.qk_norm_eps or RMS_EPS
            self.q_norm, self.k_norm = (nn.RMSNorm(width, eps=eps) for width in widths)
        self.scale = 1.0
        if config.attention_scale is not None:  # attention itself divides by the root of the width
            self.scale = config.attention_scale * math.sqrt(config.head_width)

    def ask(self, x: Tensor, by: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of each position; ``by`` turns the first two."""
        query, others = self.c_attn(x).tensor_split((self.queries,), dim=-1)
        return self._query(query, by), *self._others(others, by)

    def ask_at(self, places: Tensor, x: Tensor, by: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return what :meth:`ask` returns, queries at ``places`` alone."""
        queries = self.c_attn.some(x.flatten(0, 1)[places], slice(self.queries))
        others = self.c_attn.some(x, slice(self.queries, None))
        theirs = None if by is None else by.flatten(0, 1)[places]
        return self._query(queries, theirs), *self._others(others, by)

    def answer(self, gathered: Tensor) -> Tensor:
        """Return what the heads (..., H, D) found, as (..., C)."""
        out: Tensor = self.dropout(self.c_proj(gathered.flatten(-2)))
        return out

    def _query(self, query: Tensor, by: Tensor | None) -> Tensor:
        query = query.view(*query.shape[:-1], self.n_head, self.head_width)
        if self.qk_norm:
            query = self._normed(query, self.q_norm)
        if self.scale != 1.0:
            query = query * self.scale
        return query if by is None else turn(query, by)

    def _others(self, others: Tensor, by: Tensor | None) -> tuple[Tensor, Tensor]:
        key, value = others.view(*others.shape[:-1], 2, self.key_heads, self.head_width).unbind(-3)
        if self.qk_norm:
            key = self._normed(key, self.k_norm)
        return (key if by is None else turn(key, by)), value

    def _normed(self, heads: Tensor, norm: nn.RMSNorm) -> Tensor:
        heads = heads.to(norm.weight.dtype)
        out: Tensor = norm(heads.flatten(-2)).view_as(heads) if self.norm_whole else norm(heads)
        return out


def make_norm(config: GPTConfig) -> nn.Module:
    """Return a norm of the residual stream."""
    if config.norm_type == "rmsnorm":
        return RMSNorm(config.n_embd, eps=config.eps)
    return nn.LayerNorm(config.n_embd, eps=config.eps, bias=config.bias)


class Block(nn.Module):
    """Attention, then the MLP, each normed before or after and added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        before, after = config.norm_place != "after", config.norm_place != "before"
        self.ln_1 = make_norm(config) if before else nn.Identity()
        self.attn = SelfAttention(config)
        self.ln_2 = make_norm(config) if before else nn.Identity()
        self.mlp = MLP(config)
        self.post_1 = make_norm(config) if after else nn.Identity()
        self.post_2 = make_norm(config) if after else nn.Identity()
        self.parallel, self.scale = config.parallel_blocks, config.residual_scale
        self.checkpointing = False
        """Keep nothing between forward and backward pass but what came in, and compute it again."""

    def forward(self, x: Tensor, attend: Attend, by: Tensor | None) -> Tensor:
        """Return the residual stream after this block, (B, T, C)."""
        return self._kept_or_not(self._everywhere, x, attend, by)

    def at(self, wanted: Wanted, x: Tensor, by: Tensor | None) -> Tensor:
        """Return the residual stream after this block at the wanted positions, (N, C)."""
        return self._kept_or_not(self._there, wanted, x, by)

    def _everywhere(self, x: Tensor, attend: Attend, by: Tensor | None) -> Tensor:
        return self.after(x, attend(*self.before(x, by)))

    def _there(self, wanted: Wanted, x: Tensor, by: Tensor | None) -> Tensor:
        asked = self.before_at(wanted.places, x, by)
        return self.after(x.flatten(0, 1)[wanted.places], wanted.attend(*asked))

    def _kept_or_not(self, work: Callable[..., Tensor], *given: Any) -> Tensor:
        if self.checkpointing and self.training:
            out: Tensor = checkpoint(work, *given, use_reentrant=False)
            return out
        return work(*given)

    def before(self, x: Tensor, by: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return what attention is asked."""
        return self.attn.ask(self.ln_1(x), by)

    def before_at(
        self, places: Tensor, x: Tensor, by: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what attention is asked, queries at ``places`` alone."""
        return self.attn.ask_at(places, self.ln_1(x), by)

    def after(self, x: Tensor, gathered: Tensor) -> Tensor:
        """Add what attention gathered to the residual stream, then what the MLP makes of it."""
        found = x + self._scaled(self.post_1(self.attn.answer(gathered)))
        read = x if self.parallel else found
        return found + self._scaled(self.post_2(self.mlp(self.ln_2(read))))

    def _scaled(self, added: Tensor) -> Tensor:
        return added if self.scale == 1.0 else added * self.scale


class Head(Linear):
    """The vocabulary projection."""

    def __init__(self, config: GPTConfig, weight: nn.Parameter | None = None) -> None:
        """Make it, or take the weight (V, C) of another."""
        device = None if weight is None else "meta"
        super().__init__(config.n_embd, config.vocab_size, bias=False, device=device)
        self.weight = self.weight if weight is None else weight
        self.softcap = config.logit_softcap

    def forward(self, states: Tensor) -> Tensor:
        """Return logits (..., V) of states (..., C)."""
        return self.bent(super().forward(states))

    def bent(self, logits: Tensor) -> Tensor:
        """Return the product's logits as the config bends them."""
        cap = self.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)


class Transformer(nn.Module):
    """Everything but the vocabulary projection, under GPT-2's own parameter names."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.rotary = config.pos_encoding == "rope"
        self.tables = [self._table(config, block) for block in range(config.n_layer)]
        if self.rotary:
            size = config.longest, config.turned_width
            table = turns(*size, config.rope_base, config.rope_scaling)
            self.register_buffer("turns", table, persistent=False)
            if config.window_rope_base is not None:
                near = turns(*size, config.window_rope_base)
                self.register_buffer("near_turns", near, persistent=False)
        else:
            self.wpe = nn.Embedding(config.longest, config.n_embd)
        self.scales = config.embedding_scale, config.logit_divisor
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = make_norm(config)

    def checkpoint_blocks(self, wanted: bool) -> None:
        """Let training keep one state a block and compute the others again, or all of them."""
        for block in self.h:
            cast(Block, block).checkpointing = wanted

    def forward(
        self,
        idx: Tensor,
        positions: Tensor,
        attends: list[Attend],
        wanted: Wanted | None = None,
        shared: TiedGradient | None = None,
    ) -> Tensor:
        """Return the hidden states after the final norm.

        Args:
            idx: (B, T) int64.
            positions: (B, T) int64.
            attends: How each block attends.
            wanted: Where alone states are wanted; None wants them all.
            shared: Where the head leaves the gradient of the weight that it shares; None lets
                autograd add up.

        Returns:
            (B, T, C), or (N, C) at the wanted places.
        """
        tokens = self.wte(idx) if shared is None else embed(idx, self.wte.weight, shared)
        tokens = tokens.to(cast(Tensor, self.ln_f.weight).dtype)  # as precise as the norms
        enters, leaves = self.scales
        if enters != 1.0:
            tokens = tokens * enters
        turned = {name: self.get_buffer(name)[positions] for name in set(self.tables) if name}
        by = [turned.get(name) for name in self.tables]
        x = self.drop(tokens if self.rotary else tokens + self.wpe(positions))
        *blocks, last = (cast(Block, block) for block in self.h)
        for block, gather, angles in zip(blocks, attends, by, strict=False):
            x = block(x, gather, angles)
        x = last(x, attends[-1], by[-1]) if wanted is None else last.at(wanted, x, by[-1])
        out: Tensor = self.ln_f(x)
        return out if leaves == 1.0 else out / leaves  # of the logits, whose product is linear

    @staticmethod
    def _table(config: GPTConfig, block: int) -> str:
        """Return the name of the buffer by which a block turns; empty where it does not."""
        near = config.window_rope_base is not None and config.is_windowed(block)
        return ("near_turns" if near else "turns") if config.is_turned(block) else ""
