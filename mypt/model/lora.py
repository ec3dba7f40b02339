"""Low-rank adapters: what is learned beside matrices that stay as they are.

Hu et al. 2021, "LoRA", arXiv 2106.09685: a frozen matrix W computes as W + s B A, by two thin
products. A matrix of ours may be several of the published ones side by side (queries, keys and
values): each has an A and a B of its own, as if it stood alone.
"""

import copy
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mypt.config import Architecture, Lora
from mypt.errors import ConfigError
from mypt.model.four_bits import FourBits

GPTLike = TypeVar("GPTLike", bound=nn.Module)
_BLOCK: Final = re.compile(r"transformer\.h\.\d+\.")
BESIDE: Final = "adapter"
"""What a layer calls what is learned beside it."""
Layout = tuple[slice, tuple[slice, ...], float]
"""The rows of a matrix that are multiplied; to which of them each pair of A and B adds, one after
the other; and by how much."""


class Target(NamedTuple):
    """Rows of one of a block's matrices that have an adapter of their own."""

    name: str
    rows: slice


def targets(config: Architecture, lora: Lora) -> dict[str, tuple[Target, ...]]:
    """Return what is adapted of each matrix of a block, by the matrix's name within the block.

    Raises:
        ConfigError: If a target is none of this architecture's.
    """
    heads, keys = (n * config.head_width for n in (config.n_head, config.key_heads))
    inner, width = config.inner_width, config.n_embd
    sizes = {
        "attn.c_attn": {"q_proj": heads, "k_proj": keys, "v_proj": keys},
        "attn.c_proj": {"o_proj": width},
        "mlp.c_fc": {"up_proj": inner} | ({"gate_proj": inner} if config.gated else {}),
        "mlp.c_proj": {"down_proj": width},
    }
    known = {target for parts in sizes.values() for target in parts}
    wanted = known if lora.targets == "all-linear" else set(lora.targets)
    if odd := sorted(wanted - known):
        raise ConfigError(f"lora.targets: mlp_type {config.mlp_type} has no {odd[0]}; leave it out")
    found = {}
    for name, parts in sizes.items():
        start, here = 0, list[Target]()
        for target, size in parts.items():
            if target in wanted:
                here.append(Target(target, slice(start, start + size)))
            start += size
        if here:
            found[name] = tuple(here)
    return found


class LowRank(nn.Module):
    """What is learned beside one matrix: an A and a B for each target in it, stacked."""

    def __init__(self, of: "Linear", wanted: tuple[Target, ...], lora: Lora) -> None:
        """Begin with B at 0, where the adapted matrix is the frozen one; A is drawn as is usual."""
        super().__init__()
        rank = lora.rank
        self.rows = tuple(target.rows for target in wanted)
        self.rank, self.scale, self.dropout = rank, lora.scale, lora.dropout
        self.a = nn.Parameter(of.weight.new_empty(rank * len(self.rows), of.in_features))
        out = sum(rows.stop - rows.start for rows in self.rows)
        self.b = nn.Parameter(of.weight.new_zeros(out, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def beside(
        self, x: Tensor, weight: Tensor | FourBits, bias: Tensor | None, rows: slice
    ) -> Tensor:
        """Return the adapted product of ``x`` (..., in) for ``rows`` of the matrix."""
        start, stop, _ = rows.indices(weight.shape[0])
        within = [start <= own.start and own.stop <= stop for own in self.rows]
        first, n = (within.index(True) if any(within) else 0), sum(within)
        own = self.rows[first : first + n]
        if not own:
            return product(x, weight, bias, rows)
        before = sum(one.stop - one.start for one in self.rows[:first])
        size = sum(one.stop - one.start for one in own)
        a = self.a[first * self.rank : (first + n) * self.rank]
        places = tuple(slice(one.start - start, one.stop - start) for one in own)
        seen = F.dropout(x, self.dropout) if self.dropout and self.training else None
        b = self.b[before : before + size]
        layout = rows, places, self.scale
        found: Tensor = _Beside.apply(x, seen, weight, bias, a, b, layout)  # type: ignore[no-untyped-call]
        return found


class TokenRows(nn.Module):
    """What is added to the rows of a few tokens; all other rows stay as they are."""

    def __init__(self, ids: tuple[int, ...], of: nn.Embedding | nn.Linear) -> None:
        super().__init__()
        vocabulary, width = of.weight.shape
        self.delta = nn.Parameter(of.weight.new_zeros(len(ids), width))
        place = torch.full((vocabulary,), len(ids))
        place[list(ids)] = torch.arange(len(ids))
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        self.register_buffer("place", place, persistent=False)
        """(V,) int64: where among them each token of the vocabulary is, K if nowhere."""

    def at(self, idx: Tensor) -> Tensor:
        """Return (..., C) what is added to the rows of ``idx``."""
        padded = F.pad(self.delta, (0, 0, 0, 1))
        return F.embedding(self.get_buffer("place")[idx], padded)

    def beside(
        self, x: Tensor, weight: Tensor | FourBits, bias: Tensor | None, rows: slice
    ) -> Tensor:
        """Return logits of ``x`` (..., C): those of ``weight``, and what its rows learned."""
        assert rows == slice(None), "a vocabulary is read whole"
        assert isinstance(weight, Tensor), "a vocabulary is never packed"
        ids = self.get_buffer("ids")
        return F.linear(x, weight, bias).index_add(-1, ids, F.linear(x, self.delta))


class Embedding(nn.Embedding):
    """Rows of tokens, of which a few may be adapted."""

    def __init__(self, n: int, width: int) -> None:
        super().__init__(n, width)
        self.adapter: TokenRows | None = None

    def forward(self, idx: Tensor) -> Tensor:
        """Return the row of each token, (..., C)."""
        found = super().forward(idx)
        return found if self.adapter is None else found + self.adapter.at(idx)


class Linear(nn.Linear):
    """A matrix, which may be computed in part, and adapted."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool, device: str | None = None) -> None:
        super().__init__(n_in, n_out, bias=bias, device=device)
        self.adapter: LowRank | TokenRows | None = None
        self.packed: FourBits | None = None

    def pack(self) -> None:
        """Keep the matrix, which is frozen, in four bits instead.

        Raises:
            ConfigError: If this machine has none.
        """
        self.packed = FourBits(self.weight)
        self.weight = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Return the product of ``x`` (..., in) with the whole matrix."""
        return self.some(x, slice(None))

    def some(self, x: Tensor, rows: slice) -> Tensor:
        """Return the product with ``rows`` of the matrix alone; targets are never cut."""
        beside = product if self.adapter is None else self.adapter.beside
        return beside(x, self.packed or self.weight, self.bias, rows)


def product(x: Tensor, weight: Tensor | FourBits, bias: Tensor | None, rows: slice) -> Tensor:
    """Return the product of ``x`` (..., in) with ``rows`` of a matrix, of four bits or not."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight[rows], None if bias is None else bias[rows])
    a, b = x.new_zeros(0, weight.shape[1]), x.new_zeros(0, 1)
    found: Tensor = _Beside.apply(x, None, weight, bias, a, b, (rows, (), 1.0))  # type: ignore[no-untyped-call]
    return found


class _Beside(torch.autograd.Function):
    """x W' + s x A' B', where nothing is kept of the large product and no W learns.

    Autograd alone would write the sum of two products of full width, forward and backward, and
    keep the numbers of a W of four bits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        seen: Tensor | None,
        weight: Tensor | FourBits,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        layout: Layout,
    ) -> Tensor:
        kind, dtype = x.device.type, torch.promote_types(x.dtype, a.dtype)
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        rows, places, scale = layout
        with torch.autocast(kind, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(dtype)
            read = flat if seen is None else seen.reshape(flat.shape).to(dtype)
            own = None if bias is None else bias[rows].to(dtype)
            out = F.linear(flat, _numbers(weight, rows, dtype), own)
            low_a, low_b = a.to(dtype), b.to(dtype)
            thin = read @ low_a.T
            for place, part, few in _parts(places, thin, low_b):
                out[:, place].addmm_(part, few.T, alpha=scale)
        ctx.save_for_backward(
            read, low_a, low_b, thin, weight if isinstance(weight, Tensor) else None
        )
        ctx.packed = None if isinstance(weight, Tensor) else weight
        ctx.layout, ctx.shape, ctx.dropped = layout, x.shape, seen is not None
        ctx.types = x.dtype, a.dtype
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        read, a, b, thin, weight = ctx.saved_tensors
        rows, places, scale = ctx.layout
        given, learned = ctx.types
        flat = gradient.reshape(-1, gradient.shape[-1]).to(read.dtype)
        d_thin, d_b = torch.empty_like(thin), torch.empty_like(b)
        for (place, part, few), d_part, d_few in zip(
            _parts(places, thin, b),
            torch.split(d_thin, b.shape[1], 1) if places else (),
            _split(places, d_b),
            strict=True,
        ):
            torch.mm(flat[:, place], few, out=d_part)
            d_few.copy_((part.T @ flat[:, place]).T)  # wide rather than tall, which is quicker
        d_thin, d_b = d_thin.mul_(scale), d_b.mul_(scale)
        d_x = d_seen = None
        if ctx.needs_input_grad[0]:
            d_x = flat @ _numbers(ctx.packed or weight, rows, flat.dtype)
            if places and not ctx.dropped:
                d_x.addmm_(d_thin, a)
            d_x = d_x.view(ctx.shape).to(given)
        if ctx.needs_input_grad[1]:
            d_seen = (d_thin @ a).view(ctx.shape).to(given)
        d_a = d_thin.T @ read
        return d_x, d_seen, None, None, d_a.to(learned), d_b.to(learned), None


def _numbers(weight: Tensor | FourBits, rows: slice, dtype: torch.dtype) -> Tensor:
    """Return rows of a matrix as numbers that can be multiplied."""
    whole = weight.whole(dtype) if isinstance(weight, FourBits) else weight
    return whole[rows].to(dtype)


def _split(places: tuple[slice, ...], stacked: Tensor) -> tuple[Tensor, ...]:
    """Return the B of each target."""
    return torch.split(stacked, [place.stop - place.start for place in places])


def _parts(
    places: tuple[slice, ...], thin: Tensor, b: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield each target's place in the product, its thin product and its B."""
    if places:
        yield from zip(places, torch.split(thin, b.shape[1], 1), _split(places, b), strict=True)


def adapt(model: nn.Module, config: Architecture, lora: Lora) -> None:
    """Freeze a GPT's weights and put an adapter beside each wanted matrix of its blocks.

    Rows of ``lora.tokens`` are learned in the embedding, and in a head of its own.

    Raises:
        ConfigError: If a target or a token is none of this model's.
    """
    model.requires_grad_(False)
    wanted = targets(config, lora)
    for name, layer in model.named_modules():
        kind = _BLOCK.sub("", name)
        if isinstance(layer, Linear) and kind in wanted:
            layer.adapter = LowRank(layer, wanted[kind], lora)
    if lora.tokens:
        if max(lora.tokens) >= config.vocab_size:
            raise ConfigError(
                f"lora.tokens: {max(lora.tokens)} is no id of vocab_size {config.vocab_size}"
            )
        table, head = (model.get_submodule(name) for name in ("transformer.wte", "lm_head"))
        assert isinstance(table, Embedding), "a GPT's"
        assert isinstance(head, Linear), "a GPT's"
        table.adapter = TokenRows(lora.tokens, table)
        head.adapter = table.adapter if config.tie_weights else TokenRows(lora.tokens, head)


def bare(model: GPTLike) -> GPTLike:
    """Return the same weights without adapters, as a model of its own that copies none."""
    held = [*model.parameters(), *model.buffers()]
    made = copy.deepcopy(model, {id(tensor): tensor for tensor in held})
    for layer in made.modules():
        if isinstance(layer, Linear | Embedding):
            layer.adapter = None
    return made


def _head(config: Architecture) -> str:
    return "transformer.wte.weight" if config.tie_weights else "lm_head.weight"


def merged(
    config: Architecture,
    lora: Lora,
    base: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    weight_dtype: str = "float32",
) -> dict[str, Tensor]:
    """Return the weights of a plain GPT that computes what base and adapter do, in float32.

    The sum is made in float64 and rounded once, whatever adds up how.

    Args:
        config: The model's.
        lora: The adapter's.
        base: Every parameter of the base by name.
        adapter: The adapter's, as training keeps them.
        weight_dtype: What training rounded the base's matrices to.

    Raises:
        ConfigError: If that is nf4 and this machine has none.
    """
    whole, wanted = dict(base), targets(config, lora)
    if weight_dtype == "nf4":
        for name, weight in base.items():
            if weight.dim() == 2 and _BLOCK.match(name):
                whole[name] = FourBits(weight).whole(torch.float32)
    if weight_dtype == "bfloat16":
        read = {"transformer.wpe.weight"} | ({"transformer.wte.weight"} - {_head(config)})
        for name, weight in base.items():
            if weight.dim() == 2 and name not in read:
                whole[name] = weight.bfloat16().float()
    for key in adapter:
        name, _, part = key.rpartition(f".{BESIDE}.")
        if part == "delta":
            weight = whole[f"{name}.weight"].clone()
            weight[list(lora.tokens or ())] += adapter[key]
            whole[f"{name}.weight"] = weight
        if part != "a":
            continue
        own = wanted[_BLOCK.sub("", name)]
        weight = whole[f"{name}.weight"].double()
        b, start = adapter[f"{name}.{BESIDE}.b"].double(), 0
        for target, a in zip(own, torch.split(adapter[key].double(), lora.rank), strict=True):
            size = target.rows.stop - target.rows.start
            weight[target.rows].addmm_(b[start : start + size], a, alpha=lora.scale)
            start += size
        whole[f"{name}.weight"] = weight.float()
    return whole
