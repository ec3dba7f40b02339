"""Every supervised token of a validation split, scored one by one and remembered with its place."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mypt.data.dataset import Dataset, ShardView
from mypt.data.mask_files import supervised_in
from mypt.data.shards import TokenRange
from mypt.data.tokenizer import Tokenizer
from mypt.errors import DataError
from mypt.model.gpt import GPT
from mypt.training.batches.groups import CLASS, begins_turn, classes_of
from mypt.training.loader import Batch, GPTDataLoader

_ROWS: Final = 32
_SEED: Final = 0
_LOGITS_AT_ONCE: Final = 2**24
PLACES: Final = np.dtype(
    [
        ("token", "<u4"), ("klass", "u1"), ("role", "u1"), ("turn", "<u4"), ("source", "<u4"),
        ("length", "<u8"), ("row", "<u8"), ("n_bytes", "<u4"),
    ]
)  # fmt: skip
"""What a supervised token is: its id and class, who wrote it in which turn, the source, length
and number of its conversation, and the bytes of text that it stands for."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """N supervised tokens, in an order that depends on the dataset and the block size alone."""

    loss: NDArray[np.float32]
    """(N,) nats."""
    hit: NDArray[np.bool_]
    """(N,) whether the likeliest token was the right one."""
    said_stop: NDArray[np.bool_]
    """(N,) whether the likeliest token was one that ends a turn."""
    confidence: NDArray[np.float32]
    """(N,) probability of the likeliest token."""
    places: NDArray[np.void]
    """(N,) of PLACES."""
    available: int
    """Supervised tokens of the split; more than N where only some batches were asked for, or
    turns are longer than the model's block."""

    @property
    def mean(self) -> float:
        """Nats per supervised token: one sum, one division (law 3)."""
        return float(self.loss.sum(dtype=np.float64)) / len(self.loss)

    @property
    def perplexity(self) -> float:
        """Between how many equally likely tokens the model hesitates: e to the mean."""
        return math.exp(self.mean)


@torch.no_grad()
def score_tokens(
    model: GPT, dataset: Dataset, *, max_batches: int = 0, block_size: int | None = None
) -> TokenScores:
    """Score a model on ``val``, in float32, by rows of one block size.

    The rows come from a loader of its own: the same ones for every model of that block size,
    whatever was trained before. Conversations are scored whole and once, however often their
    source was shown in training; shards made by hand have no conversations and are scored by
    random windows.

    Args:
        model: On any device; its dropout is turned off.
        dataset: With masks, only supervised tokens count; without, all do.
        max_batches: The most batches of 32 rows to score; 0 scores the whole split once.
        block_size: Of the rows; None takes the model's own.

    Raises:
        DataError: If the split is empty or supervises nothing.
        MaskError: If some masks are missing.
    """
    model.eval()
    indexed = all(shard.rows is not None for shard in dataset.shards("val"))
    loader = GPTDataLoader(
        _only_val_once(dataset),
        batch_size=_ROWS,
        block_size=block_size or model.config.block_size,
        use_loss_mask=dataset.manifest.mask is not None,
        seed=_SEED,
        batching="packed" if indexed else "windows",
        length_policy="drop" if dataset.paired else "split",
        max_lost=1.0,
        device=model.lm_head.weight.device,
    )
    n_batches = loader.epoch("val").steps
    found = []
    tables = _Tables(dataset)
    for index in range(min(n_batches, max_batches or n_batches)):
        batch = loader.batch_at("val", index)
        chosen = _supervised(batch)
        places = tables.places(loader.places_at("val", index), batch)[chosen.cpu().numpy()]
        found.append((*_score(model, batch, chosen, dataset.tokenizer.stop_ids), places))
    if not found or not sum(len(scores[0]) for scores in found):
        raise DataError(
            f"{dataset.path}: nothing of val is supervised, so there is no loss; prepare it with"
            " another val_fraction or mask policy"
        )
    loss, hit, said, confidence, places = (
        np.concatenate(column) for column in zip(*found, strict=True)
    )
    return TokenScores(loss, hit, said, confidence, places, _supervised_in(dataset))


def _supervised(batch: Batch) -> Tensor:
    """Return (N,) flat indices of the supervised places."""
    if batch.loss_mask is None:
        return torch.arange(batch.targets.numel(), device=batch.targets.device)
    return batch.loss_mask.flatten().nonzero().squeeze(1)


def _score(
    model: GPT, batch: Batch, chosen: Tensor, stop_ids: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float32]]:
    states = model.hidden(batch.input_ids, positions=batch.positions, segments=batch.segments)
    states, targets = states.flatten(0, 1)[chosen], batch.targets.flatten()[chosen]
    stops = torch.tensor(stop_ids, device=targets.device)
    parts = []
    size = max(1, _LOGITS_AT_ONCE // model.config.vocab_size)
    lots = zip(torch.split(states, size), torch.split(targets, size), strict=True)
    for some, wanted in lots:
        sure = torch.log_softmax(model.lm_head(some).float(), dim=-1)
        best, likeliest = sure.max(dim=-1)
        loss = -sure.gather(1, wanted[:, None]).squeeze(1)
        parts.append((loss, likeliest == wanted, torch.isin(likeliest, stops), best.exp()))
    if not parts:
        nothing = np.empty(0, np.float32)
        return nothing, nothing.astype(bool), nothing.astype(bool), nothing
    found = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    return found[0], found[1], found[2], found[3]


class _Tables:
    """What each token of each validation shard is, read from the spans once."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._bytes = _bytes_of(dataset.tokenizer)
        self._of = cache(self._table)
        self._shards = {shard.record.tokens.name: shard for shard in dataset.shards("val")}
        rows = [0 if shard.rows is None else len(shard.rows) for shard in self._shards.values()]
        self._before = dict(zip(self._shards, np.cumsum([0, *rows]).tolist(), strict=False))

    def places(self, rows: list[list[TokenRange]], batch: Batch) -> NDArray[np.void]:
        """Return (B * T,) of PLACES; a piece of n tokens fills n - 1 places of its row."""
        found = np.zeros(tuple(batch.targets.shape), PLACES)
        for row, places in enumerate(rows):
            at = 0
            for place in places:
                table = self._of(place.shard.record.tokens.name)
                read = np.r_[slice(*place.system), slice(place.start, place.stop)][1:]
                found[row, at : at + len(read)] = table[read]
                at += len(read)
        return found.reshape(-1)

    def _table(self, name: str) -> NDArray[np.void]:
        shard = self._shards[name]
        table = np.zeros(len(shard.tokens), PLACES)
        table["token"] = shard.tokens
        table["n_bytes"] = self._bytes[shard.tokens]
        table["source"] = shard.record.source
        table["klass"] = CLASS["other"]
        if shard.rows is not None:
            lengths = (shard.rows["stop"] - shard.rows["start"]).astype(np.int64)
            table["length"] = np.repeat(lengths, lengths)
            table["row"] = np.repeat(np.arange(len(lengths)) + self._before[name], lengths)
        if shard.spans is not None:
            _describe(table, shard)
        return table


def _describe(table: NDArray[np.void], shard: ShardView) -> None:
    """Fill in what the spans say: class, role and turn."""
    spans = shard.spans
    assert spans is not None
    lengths = (spans["stop"] - spans["start"]).astype(np.int64)
    table["klass"] = np.repeat(classes_of(spans), lengths)
    table["role"] = np.repeat(spans["role"], lengths)
    table["turn"] = np.repeat(spans["message"], lengths)
    begins = begins_turn(spans, np.append(spans["kind"][:1], spans["kind"][:-1]))
    table["klass"][spans["start"][begins]] = CLASS["first token"]


def _bytes_of(tokenizer: Tokenizer) -> NDArray[np.uint32]:
    """Return (n_vocab,) bytes of text that each id stands for; special tokens stand for none."""
    sizes = np.zeros(tokenizer.n_vocab, np.uint32)
    tokens = tokenizer.vocabulary.tokens
    sizes[: len(tokens)] = [len(token) for token in tokens]
    sizes[list(tokenizer.special_tokens.values())] = 0
    return sizes


def of_side(scores: TokenScores, dataset: Dataset, side: int) -> TokenScores:
    """Return the scores of one side of all preference pairs: 0 the chosen ones, 1 the rejected."""
    own = scores.places["row"] % 2 == side
    return TokenScores(
        scores.loss[own],
        scores.hit[own],
        scores.said_stop[own],
        scores.confidence[own],
        scores.places[own],
        _supervised_in(dataset, side),
    )


def _only_val_once(dataset: Dataset) -> Dataset:
    manifest = dataset.manifest
    sources = tuple(source.model_copy(update={"weight": 1.0}) for source in manifest.sources)
    changes = {"sources": sources, "shards": manifest.split("val")}
    return replace(dataset, manifest=manifest.model_copy(update=changes))


def _supervised_in(dataset: Dataset, side: int | None = None) -> int:
    """Return the supervised tokens of val, or of one side of its pairs."""
    found = 0
    for shard in dataset.shards("val"):
        mask = np.ones(shard.record.n_tokens, np.uint8) if shard.mask is None else shard.mask
        if side is None:
            found += int(np.count_nonzero(mask))
        elif shard.rows is not None:
            found += int(supervised_in(mask, shard.rows)[side::2].sum())
    return found
