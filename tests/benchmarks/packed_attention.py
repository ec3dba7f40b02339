"""Attention over packed conversations that stay apart, against a dense mask."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from harness import Line, interleave, judge, ratio

from mypt.model.attention import attend, document_mask, separate

HEADS, WIDTH, ROWS = 4, 64, 4


def lines(*, quick: bool) -> Iterator[Line]:
    """Yield the lines of this area."""
    for length, reach in ((1024, 2.5), (2048, 5.5)):
        torch.manual_seed(0)
        ends = torch.rand(ROWS, length) < 1 / 150
        segments = ends.cumsum(1)
        query, key, value = torch.randn(3, ROWS, length, HEADS, WIDTH, requires_grad=True)
        parts = [query.detach(), key.detach(), value.detach()]
        variants = {
            "ours": _learn(parts, lambda *qkv, s=segments: attend(*qkv, separate(s))),
            "dense": _learn(parts, lambda *qkv, s=segments: _dense(s, *qkv)),
        }
        found = ratio(interleave(variants, 3 if quick else 9), "ours", "dense")
        yield Line(
            work=f"packed attention, isolated, T {length:,}, float32, forward and backward",
            against="scaled_dot_product_attention with a dense mask",
            reach=f">= {reach}",
            measured=str(found),
            met=judge(found.median, reach),
            note=f"conversations of {ROWS * length / (int(ends.sum()) + ROWS):.0f} tokens",
        )


def _learn(parts: list[torch.Tensor], run: Callable[..., torch.Tensor]) -> Callable[[], None]:
    leaves = [part.clone().requires_grad_() for part in parts]

    def work() -> None:
        run(*leaves).sum().backward()
        for leaf in leaves:
            leaf.grad = None

    return work


def _dense(segments: torch.Tensor, *qkv: torch.Tensor) -> torch.Tensor:
    query, key, value = (part.transpose(1, 2) for part in qkv)
    mask = document_mask(segments)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
