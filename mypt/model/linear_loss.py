"""Fused linear cross-entropy: the vocabulary projection and its gradients in one pass.

A token embedding that shares its weight with the head shares the head's gradient too.
"""

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mypt.model.lora import TokenRows
from mypt.model.objectives import NLL, Objective, Terms, anchor, hold, top_entropy, weigh

CHUNK_BYTES: Final = 48 << 20
"""Most bytes of logits at a time. Each chunk adds a (V, C) product to the weight's gradient, so
a few large ones are quicker than many small ones."""
CACHE_BYTES: Final = 1 << 20
"""What a core keeps close by: softmax passes over no more at a time."""
_VOCABULARY_ROWS = 4096  # rows of the weight's gradient that stay there while they are added


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


def linear_cross_entropy(
    rows: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    *,
    shared: TiedGradient | None = None,
    chunk_rows: int | None = None,
    weights: Tensor | None = None,
    objective: Objective = NLL,
    base: tuple[Tensor, Tensor] | None = None,
    terms: Tensor | None = None,
    few: TokenRows | None = None,
) -> Tensor:
    """Return the sum of ``F.cross_entropy(rows @ weight.T, targets)`` without all the logits.

    The gradients are computed on the way, while a chunk's logits are at hand: nothing is kept
    for the backward pass but they, and nothing is computed twice. Products run in autocast's
    dtype where it is on; the softmax, the sum and the weight's gradient are float32 or better.
    Only one backward pass goes through the result, since it hands its gradients over.

    Args:
        rows: (N, C), any float dtype; N may be 0.
        weight: (V, C), the rows of the output embedding.
        targets: (N,) int64.
        softcap: What logits are bent by tanh to stay within, the base's too; None leaves them.
        shared: Where the weight's gradient is left for the embedding that it is tied to; None
            hands it to autograd.
        chunk_rows: Rows whose logits are made at a time; None takes what CHUNK_BYTES holds.
        weights: (N,) how much each row counts; None: each as 1.
        objective: What stands in for the cross-entropy (:mod:`mypt.model.objectives`).
        base: (N, C) states and (V, C) head of the base model, for its ``kl_base``; C may differ.
        terms: (N,) to be filled with what each row adds.
        few: What is added to a few rows of ``weight``.

    Returns:
        The sum in nats, shape (): float32, or float64 for float64 input.
    """
    kind, dtype = rows.device.type, _dtype_of(rows, weight)
    chunk_rows = chunk_rows or _chunk_of(rows, weight, dtype)
    to = None if base is None or not objective.kl_base else (base[0].to(dtype), base[1].to(dtype))
    how = _How(objective, weights, to, terms, softcap, few)
    with torch.autocast(kind, enabled=False):
        if torch.is_grad_enabled():
            total: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
                rows,
                weight,
                targets,
                shared,
                chunk_rows,
                dtype,
                how,
                None if few is None else few.delta,
            )
            return total
        return _pass_over(rows, weight, targets, chunk_rows, dtype, how).sum()


@torch.no_grad()
def token_nats(
    rows: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    few: TokenRows | None = None,
) -> Tensor:
    """Return (N,) what each row adds to :func:`linear_cross_entropy`, without gradients.

    Args:
        rows: As there.
        weight: As there.
        targets: As there.
        softcap: As there.
        few: As there.
    """
    dtype = _dtype_of(rows, weight)
    with torch.autocast(rows.device.type, enabled=False):
        chunk_rows = _chunk_of(rows, weight, dtype)
        how = _PLAIN._replace(softcap=softcap, few=few)
        return _pass_over(rows, weight, targets, chunk_rows, dtype, how)[:, 0]


def _dtype_of(rows: Tensor, weight: Tensor) -> torch.dtype:
    """Return what products are computed in."""
    if torch.is_autocast_enabled(rows.device.type):
        return torch.get_autocast_dtype(rows.device.type)
    return torch.promote_types(rows.dtype, weight.dtype)


def _chunk_of(rows: Tensor, weight: Tensor, dtype: torch.dtype) -> int:
    """Return of how many rows to make logits at a time, so that chunks are as equal as can be."""
    most = max(1, CHUNK_BYTES // (len(weight) * dtype.itemsize))
    n_chunks = max(1, -(-len(rows) // most))
    return max(1, -(-len(rows) // n_chunks))


class _How(NamedTuple):
    """What the loss of a row is."""

    objective: Objective
    weights: Tensor | None
    base: tuple[Tensor, Tensor] | None
    terms: Tensor | None
    """Where it is left."""
    softcap: float | None
    few: TokenRows | None

    @property
    def plain(self) -> bool:
        return self.objective == NLL and self.weights is None


_PLAIN: Final = _How(NLL, None, None, None, None, None)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        targets: Tensor,
        shared: TiedGradient | None,
        chunk_rows: int,
        dtype: torch.dtype,
        how: _How,
        delta: Tensor | None,
    ) -> Tensor:
        d_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        d_weight = None
        if ctx.needs_input_grad[1]:
            new = torch.empty_like if len(rows) else torch.zeros_like
            d_weight = new(weight, dtype=_precise(weight.dtype))
        d_delta = None if delta is None else torch.zeros_like(delta)
        total = _pass_over(rows, weight, targets, chunk_rows, dtype, how, d_rows, d_weight, d_delta)
        ctx.shared = shared
        ctx.gradients = d_rows, d_weight, d_delta  # of a weight in bfloat16 still in float32
        return total.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "a second backward pass through one linear_cross_entropy; compute the loss again"
            )
        gradients, ctx.gradients = ctx.gradients, None
        d_rows, d_weight, d_delta = (
            None if part is None else part.mul_(scale) for part in gradients
        )
        if ctx.shared is not None:
            ctx.shared.of_head, d_weight = d_weight, None
        return d_rows, d_weight, None, None, None, None, None, d_delta


def _pass_over(
    rows: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk_rows: int,
    dtype: torch.dtype,
    how: _How,
    d_rows: Tensor | None = None,
    d_weight: Tensor | None = None,
    d_delta: Tensor | None = None,
) -> Tensor:
    """Return (N, 1) losses; fill the gradients of their sum where there is a place for them."""
    low_rows, low_weight = rows.to(dtype), weight.to(dtype)
    more = how.few
    low_delta = low_weight[:0] if more is None else more.delta.detach().to(dtype)
    space = torch.empty((min(chunk_rows, len(rows)), len(weight)), dtype=dtype, device=rows.device)
    losses = torch.empty(len(rows), 1, dtype=_precise(dtype), device=rows.device)
    for start in range(0, len(rows), chunk_rows):
        part = slice(start, start + chunk_rows)
        logits, here = space[: len(low_rows[part])], targets[part]
        torch.mm(low_rows[part], low_weight.T, out=logits)
        if more is not None:
            logits.index_add_(1, more.get_buffer("ids"), low_rows[part] @ low_delta.T)
        steep = None if how.softcap is None else bend(logits, how.softcap)
        losses[part], divisors, slopes = _terms(how, part, logits, here)[:3]
        if steep is not None:
            logits *= steep
            slopes = slopes * steep.gather(1, here[:, None])
        if d_rows is not None:
            product, own = (logits @ low_weight).to(divisors.dtype), weight[here]
            if more is not None:
                product += logits[:, more.get_buffer("ids")] @ low_delta
                own = own + more.at(here)
            d_rows[part] = product / divisors + slopes * own
        if d_delta is not None and more is not None:
            _add_few(d_delta, more, logits, here, rows[part] / divisors, slopes * rows[part])
        if d_weight is not None:
            _add_product(d_weight, logits, (rows[part] / divisors).to(dtype), first=start == 0)
            d_weight.index_add_(0, here, (slopes * rows[part]).to(d_weight.dtype))
    if how.terms is not None:
        how.terms.copy_(losses.squeeze(1))
    return losses


def _terms(how: _How, part: slice, logits: Tensor, targets: Tensor) -> Terms:
    """Return what the rows ``part`` add, their logits (n, V) overwritten by exponentials."""
    if how.plain:
        return _exponentiate(logits, targets)
    precise = _precise(logits.dtype)
    to = None
    if how.base is not None:
        states, head = how.base
        others = states[part] @ head.T
        if how.softcap is not None:
            bend(others, how.softcap)
        to = anchor(logits.to(precise), others.to(precise))
    plain = _exponentiate(logits, targets, entropy=how.objective.name == "eaft")
    weights = None if how.weights is None else how.weights[part, None].to(precise)
    found = weigh(how.objective, plain, weights)
    if to is None:
        return found
    beta = torch.ones_like(found.nats) if weights is None else weights
    return hold(how.objective.kl_base * beta, to, logits, targets[:, None], plain, found)


def bend(logits: Tensor, softcap: float) -> Tensor:
    """Overwrite logits by ``softcap * tanh(logits / softcap)``; return the slope at each."""
    logits.div_(softcap).tanh_()
    steep = 1 - logits.square()
    logits.mul_(softcap)
    return steep


def _exponentiate(logits: Tensor, targets: Tensor, entropy: bool = False) -> Terms:
    """Overwrite logits (n, V) with exponentials that are probabilities times ``divisor``.

    The target's own is 0: its slope, often far larger or, of a model that is sure, a small
    difference of large numbers, would suffer most from a product in low precision. The division
    is left to the far smaller (n, C) factors of the products.
    """
    n = len(logits)
    if logits.device.type == "cpu":
        n = max(1, CACHE_BYTES // (4 * logits.shape[1]))
    found = []
    for start in range(0, len(logits), n):
        block, target = logits[start : start + n], targets[start : start + n, None]
        values = block.to(_precise(block.dtype))
        top = values.amax(1, keepdim=True)
        values -= top
        spread = top_entropy(values) if entropy else top
        at_target = values.gather(1, target)
        others = values.exp_().scatter_(1, target, 0.0).sum(1, keepdim=True)
        divisor = at_target.exp() + others
        log = divisor.log()
        found.append((log - at_target, divisor, -others / divisor, log + top, spread))
        if values is not block:
            block.copy_(values)
    return Terms._make(torch.cat(column) for column in zip(*found, strict=True))


def _add_product(total: Tensor, slopes: Tensor, rows: Tensor, *, first: bool) -> None:
    """Add ``slopes.T @ rows`` to ``total`` (V, C), or overwrite it with the first product."""
    if slopes.dtype == total.dtype:
        torch.addmm(total, slopes.T, rows, beta=0 if first else 1, out=total)
        return
    for start in range(0, len(total), _VOCABULARY_ROWS):
        part = slice(start, start + _VOCABULARY_ROWS)
        product = slopes[:, part].T @ rows
        total[part] = product if first else total[part].add_(product)


def _add_few(
    total: Tensor, few: TokenRows, slopes: Tensor, targets: Tensor, rows: Tensor, at_target: Tensor
) -> None:
    """Add to ``total`` (K, C) what its tokens' logits tell, as targets and as others."""
    total += (slopes[:, few.get_buffer("ids")].T @ rows.to(slopes.dtype)).to(total.dtype)
    place = few.get_buffer("place")[targets]
    ours = place < len(total)
    total.index_add_(0, place[ours], at_target[ours].to(total.dtype))


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
