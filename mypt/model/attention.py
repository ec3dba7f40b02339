"""Causal attention within each document: never from one packed conversation into the next.

On a GPU what lies across their borders is not even computed.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from mypt.config import GPTConfig
from mypt.model.causal import attend_causally, is_quicker

_NARROWEST = 16  # numbers of a head from which the kernels are made
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries (B, T, H, D), keys and values (B, T, G, D) to what each position gathered (B, T, H, D);
G divides H, and H / G neighbouring queries share a key."""


def has_kernel(device: torch.device, head_width: int, dropout: float) -> bool:
    """Return whether :func:`attend_blocks` is quicker than a dense mask here, and can do it."""
    fits = head_width >= _NARROWEST and dropout == 0.0
    return device.type == "cuda" and fits and find_spec("triton") is not None


def block_mask(runs: Tensor, window: int | None = None) -> BlockMask:
    """Return which blocks of queries and keys meet, and which of them only in part.

    Args:
        runs: (B, T) int64, the same number where places belong to one conversation.
        window: Places that a query sees, its own included; None is all before it.
    """

    def seen(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        together = (key <= query) & (runs[row, query] == runs[row, key])
        return together if window is None else together & (query - key < window)

    rows, length = runs.shape
    return create_block_mask(seen, rows, None, length, length, device=runs.device)


def attend_blocks(query: Tensor, key: Tensor, value: Tensor, blocks: BlockMask) -> Tensor:
    """Attend where ``blocks`` lets: one kernel, compiled at its first call, for all conversations.

    Args:
        query: (B, T, H, D), of autocast's dtype where it is on, as for all three.
        key: (B, T, G, D).
        value: (B, T, G, D).
        blocks: What :func:`block_mask` returned for these rows.

    Returns:
        (B, T, H, D).
    """
    kind = query.device.type
    parts = [part.transpose(1, 2) for part in (query, key, value)]
    if torch.is_autocast_enabled(kind):
        parts = [part.to(torch.get_autocast_dtype(kind)) for part in parts]
    grouped = query.shape[2] != key.shape[2]
    attend = _compiled() if kind == "cuda" else flex_attention  # a CPU has no fused kernel of it
    gathered: Tensor = attend(*parts, block_mask=blocks, enable_gqa=grouped)
    return gathered.transpose(1, 2)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)


class Documents(NamedTuple):
    """Where attention must stop, worked out once a forward pass and used by every block.

    On a CPU one causal call a document is both exact and the quickest (it never computes a
    score that is thrown away). Elsewhere many small calls would starve the device: one kernel
    skips the blocks that lie across documents, or takes one dense mask where it cannot.
    """

    lengths: list[int] | None = None
    """Lengths of the documents in reading order; they add up to B * T."""
    mask: Tensor | None = None
    """(B, 1, T, T) bool, True where a query may look."""
    blocks: BlockMask | None = None
    """Blocks of scores that are wanted."""
    window: int | None = None
    """With ``lengths``: places that a query sees, its own included; None is all before it."""


def separate(
    segments: Tensor, *, head_width: int = 0, dropout: float = 0.0, window: int | None = None
) -> Documents:
    """Return how attention keeps apart the runs of equal numbers in each row.

    Args:
        segments: (B, T) int; neighbours with the same number belong to one document. A number
            that comes back after another one begins a new document.
        head_width: Numbers of a query; with ``dropout`` decides which kernel a GPU has for it.
        dropout: Share of attention weights that will be dropped.
        window: Places that a query sees, its own included; None is all before it.
    """
    if has_kernel(segments.device, head_width, dropout):
        return Documents(blocks=block_mask(run_numbers(segments), window))
    if segments.device.type != "cpu":
        return Documents(mask=document_mask(segments, window))
    runs = run_numbers(segments).flatten()
    lengths = torch.unique_consecutive(runs, return_counts=True)[1].tolist()
    return Documents(lengths, window=window)


def separate_blocks(
    config: GPTConfig, idx: Tensor, segments: Tensor | None, dropout: float
) -> list[Documents | None]:
    """Return where attention stops in each block; None where only the future is unseen.

    Args:
        config: Says which blocks have a window.
        idx: (B, T) int64.
        segments: As for :func:`separate`; None is one document a row.
        dropout: As for :func:`separate`.
    """
    whole, near, window = None, None, config.window
    width = config.head_width
    if segments is not None:
        whole = near = separate(segments, head_width=width, dropout=dropout)
    if window is not None and window < idx.shape[1]:
        runs = torch.zeros_like(idx) if segments is None else segments
        near = separate(runs, head_width=width, dropout=dropout, window=window)
    return [near if config.is_windowed(block) else whole for block in range(config.n_layer)]


def document_mask(segments: Tensor, window: int | None = None) -> Tensor:
    """Return (B, 1, T, T) bool: which positions a query may look at, itself and before."""
    runs = run_numbers(segments)
    causal = _causal(segments.shape[1], window, segments.device)
    return (runs[:, None, :, None] == runs[:, None, None, :]) & causal


def _causal(length: int, window: int | None, device: torch.device) -> Tensor:
    """Return (T, T) bool: the places at or before each, those within ``window`` where there is."""
    before = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return before if window is None else before.triu(1 - window)


def run_numbers(segments: Tensor) -> Tensor:
    """Number the runs of equal neighbours, (B, T) int64, without repeating a number."""
    return _run_starts(segments).flatten().cumsum(0).view_as(segments)


def restart_positions(segments: Tensor) -> Tensor:
    """Return (B, T) int64 positions that count from 0 in each run of equal neighbours."""
    places = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = torch.where(_run_starts(segments), places, 0).cummax(dim=1).values
    return places - starts


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend causally, inside ``documents`` where they are given.

    Args:
        query: (B, T, H, D): B rows, T positions, H heads of D numbers.
        key: (B, T, G, D).
        value: (B, T, G, D).
        documents: What :func:`separate` returned for these rows; None is one document a row.
        dropout: Share of attention weights dropped.

    Returns:
        (B, T, H, D). A document's part is a function of that document's part of queries, keys
        and values alone, to the last bit.
    """
    return _attend((query, key, value), documents, dropout)


def attend_at(
    places: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return what :func:`attend` gives at ``places``, where alone queries are known.

    Args:
        places: (N,) int64, places of the flattened (B, T), ascending, none twice.
        query: (N, H, D).
        key: (B, T, G, D), of every place.
        value: (B, T, G, D), of every place.
        documents: As for :func:`attend`.
        dropout: As for :func:`attend`.

    Returns:
        (N, H, D).
    """
    rows, length = key.shape[:2]
    row, place = places // length, places % length
    if documents is None and key.device.type == "cpu":
        counts = row.bincount(minlength=rows)
        width = int(counts.max())
        if 2 * width <= length:  # a dense mask computes twice what a causal call does
            slot = torch.arange(len(places)) - (counts.cumsum(0) - counts)[row]
            seen = torch.zeros(rows, width, dtype=torch.int64).index_put((row, slot), place)
            mask = seen[:, None, :, None] >= torch.arange(length)
            few = query.new_zeros(rows, width, *query.shape[1:]).index_put((row, slot), query)
            return _attend((few, key, value), Documents(mask=mask), dropout)[row, slot]
    everywhere = query.new_zeros(rows, length, *query.shape[1:]).index_put((row, place), query)
    return _attend((everywhere, key, value), documents, dropout)[row, place]


def share(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values (..., H, D), those of each group repeated for all its queries."""
    times = query.shape[-2] // key.shape[-2]
    if times == 1:
        return key, value
    return key.repeat_interleave(times, dim=-2), value.repeat_interleave(times, dim=-2)


def _attend(qkv: Sequence[Tensor], documents: Documents | None, dropout: float) -> Tensor:
    """Attend with queries, keys and values apart, each (B, T or fewer, H, D)."""
    if qkv[0].device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # a CPU's bfloat16 attention is slower than its float32, backward up to five times
        with torch.autocast("cpu", enabled=False):
            return _attend([part.float() for part in qkv], documents, dropout)
    if documents is not None and documents.blocks is not None:
        return attend_blocks(qkv[0], qkv[1], qkv[2], documents.blocks)
    if documents is not None and documents.lengths is not None:
        return _attend_each(qkv, documents.lengths, documents.window, dropout)
    return _attend_together(qkv, None if documents is None else documents.mask, dropout)


def _attend_together(qkv: Sequence[Tensor], mask: Tensor | None, dropout: float) -> Tensor:
    """Attend in one call where ``mask`` lets; causally where there is none."""
    if mask is None and not dropout and is_quicker(*qkv[:2]):
        return attend_causally(*qkv)
    query, key, value = (part.transpose(1, 2) for part in (qkv[0], *share(*qkv)))
    gathered = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None
    )
    return gathered.transpose(1, 2)


def _attend_each(
    qkv: Sequence[Tensor], lengths: list[int], window: int | None, dropout: float
) -> Tensor:
    """Attend in one call a document; queries, keys and values lie one document behind another."""

    def one(*qkv: Tensor) -> Tensor:
        length, mask = qkv[0].shape[1], None
        if window is not None and length > window:
            mask = _causal(length, window, qkv[0].device)
        return _attend_together(qkv, mask, dropout)

    parts = (torch.split(part.flatten(0, 1)[None], lengths, dim=1) for part in qkv)
    found = [one(*document) for document in zip(*parts, strict=True)]
    return torch.cat(found, dim=1).view_as(qkv[0])


def _run_starts(segments: Tensor) -> Tensor:
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return starts
