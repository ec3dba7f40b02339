"""The statements of a proof: a batch against the files, and its loss against its mask.

Each says whether it held everywhere it was tried.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mypt.config import GPTConfig
from mypt.data.manifest import Split
from mypt.data.packing.layout import PackingPlan
from mypt.data.spans import KIND, KINDS
from mypt.evaluation.proof.alignment import Match, Piece, Truth, match, pieces_of
from mypt.model.gpt import GPT
from mypt.parsing import Frozen
from mypt.training.loader import Batch, GPTDataLoader

if TYPE_CHECKING:
    from rich.console import RenderableType

_CHANGED = 8
"""Supervised targets that are changed, one at a time."""


class ProofCheck(Frozen):
    """One statement about the batches, and whether it held everywhere it was tried."""

    name: str
    ok: bool
    count: int
    """How many tokens, pieces or runs it was tried on; 0 means that there was none."""
    detail: str = ""
    """The first place where it did not hold."""


class ProofReport(Frozen):
    """What was shown about a dataset's masks as training sees them."""

    dataset: str
    """Digest of the dataset."""
    seed: int
    shards: int
    """Shards that the proof looked at."""
    shards_in_all: int
    checks: tuple[ProofCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether every statement held."""
        return all(check.ok for check in self.checks)


def render(report: ProofReport) -> "RenderableType":
    """Return the report as rich prints it, a line a statement."""
    from rich.console import Group
    from rich.text import Text

    lines = []
    for check in report.checks:
        mark, style = ("ok", "green") if check.ok else ("FAILED", "bold red")
        lines.append(Text.assemble((f"{mark:7}", style), f"{check.count:>9,}  {check.name}"))
        if check.detail:
            lines.append(Text(f"{'':18}{check.detail}", style="dim"))
    verdict = "proved" if report.ok else "refuted"
    said = f"{verdict} on {report.shards} of {report.shards_in_all} shards, seed {report.seed}"
    return Group(*lines, Text(said, style="bold green" if report.ok else "bold red"))


_LAYERS, _HEADS, _WIDTH = 2, 2, 32


class _Tally:
    """Counts how often a statement was tried and keeps the first place where it failed."""

    def __init__(self, name: str) -> None:
        self.name, self.count, self.detail = name, 0, ""

    def add(self, count: int, ok: bool, detail: str) -> None:
        self.count += count
        if not ok and not self.detail:
            self.detail = detail

    def check(self) -> ProofCheck:
        return ProofCheck(name=self.name, ok=not self.detail, count=self.count, detail=self.detail)


def check_alignment(batch: Batch, truths: list[Truth], one_row: bool) -> list[ProofCheck]:
    """Hold every piece of a batch against the files.

    Args:
        batch: As the loader gave it.
        truths: The shards it may come from.
        one_row: Whether each piece must lie in one row of the dataset, as packed ones do.
    """
    stands = _Tally("each piece stands in the dataset" + (", inside one row" if one_row else ""))
    shifted = _Tally("each target is the next input")
    masked = _Tally("the mask of each target is what spans and policy say")
    headers = _Tally("no header is supervised")
    ends = _Tally("the ends of turns that the policy supervises are supervised")
    counted = _Tally("positions count from 0 in each piece")
    for piece in pieces_of(batch):
        found = match(piece, truths, one_row)
        n, where = len(piece.targets), str(piece)
        shifted.add(n, piece.chained, where)
        stands.add(1, found.found, where)
        if piece.positions is not None:
            counted.add(n, np.array_equal(piece.positions, np.arange(n)), where)
        if found.found:
            _hold(piece, found, masked, headers, ends)
    tallies = [stands, shifted, masked, headers, ends]
    if batch.positions is not None:
        tallies.append(counted)
    if batch.segments is not None and batch.loss_mask is not None:
        padding = _Tally("no padding is supervised")
        empty = batch.loss_mask[batch.segments < 0]
        padding.add(empty.numel(), not empty.any(), f"{int(empty.sum())} places")
        tallies.append(padding)
    return [tally.check() for tally in tallies]


def _hold(piece: Piece, found: Match, masked: _Tally, headers: _Tally, ends: _Tally) -> None:
    wrong = np.flatnonzero(found.wanted != piece.loss_mask)
    detail = ""
    if len(wrong):
        place = int(wrong[0])
        detail = (
            f"{piece}: place {piece.first + place}, {KINDS[found.kind[place]]}:"
            f" {piece.loss_mask[place]:g} found, {found.wanted[place]:g} expected"
        )
    masked.add(len(piece.targets), not detail, detail)
    header = found.kind == KIND["header"]
    headers.add(int(header.sum()), not piece.loss_mask[header].any(), detail)
    end = (found.kind == KIND["end"]) & (found.wanted > 0)
    ends.add(int(end.sum()), bool(piece.loss_mask[end].all()), detail)


def check_nothing_lost(
    loader: GPTDataLoader, split: Split, truths: list[Truth], plan: PackingPlan | None
) -> list[ProofCheck]:
    """Count an epoch: every token is accounted for, every supervised one that fits is a target.

    Args:
        loader: What training draws from.
        split: Which split.
        truths: All shards of the split.
        plan: Which pieces packed batches are made of; None for windows, which only may be drawn.
    """
    epoch = loader.epoch(split)
    tokens = sum(truth.shard.n_tokens for truth in truths)
    whole = _Tally("every token of the split is in the epoch or its account")
    found = epoch.tokens + epoch.skipped if plan is None else plan.total.tokens
    whole.add(tokens, found == tokens, f"{found} tokens found, {tokens} expected")
    if plan is None:
        return [whole.check()]
    supervised = sum(int(np.count_nonzero(truth.wanted)) for truth in truths)
    learned = _Tally("every supervised token of the split is in the epoch or its account")
    found = plan.total.supervised_in
    learned.add(supervised, found == supervised, f"{found} found, {supervised} expected")
    n_vocab = loader.dataset.manifest.n_vocab
    wanted = sum((_targets(t, plan, n, n_vocab) for n, t in enumerate(truths)), _zeros(n_vocab))
    drawn = _learned(loader, split, epoch.steps, n_vocab)
    planned = _Tally("the batches of an epoch learn each target of the plan once")
    wrong = [*np.flatnonzero(drawn != wanted), 0][0]
    detail = f"id {wrong}: {drawn[wrong]} times found, {wanted[wrong]} expected"
    planned.add(int(wanted.sum()), np.array_equal(drawn, wanted), detail)
    return [whole.check(), learned.check(), planned.check()]


def _zeros(n_vocab: int) -> NDArray[np.int64]:
    return np.zeros(n_vocab, dtype=np.int64)


def _targets(truth: Truth, plan: PackingPlan, number: int, n_vocab: int) -> NDArray[np.int64]:
    """Return how often each id of one shard is a supervised target of the plan's pieces."""
    chosen = plan.pieces["shard"] == number
    pieces, alone = plan.pieces[chosen], np.diff(plan.systems[chosen])[:, 0] == 0
    edges = np.zeros(truth.shard.n_tokens + 1, dtype=np.int64)
    # A piece's first token is a target only behind a system message that is read again.
    np.add.at(edges, pieces["start"] + alone, 1)
    np.add.at(edges, pieces["stop"], -1)
    times = np.cumsum(edges[:-1]) * (truth.wanted > 0)
    return np.bincount(truth.tokens, times, n_vocab).astype(np.int64)


def _learned(loader: GPTDataLoader, split: Split, n_steps: int, n_vocab: int) -> NDArray[np.int64]:
    """Return how often each id is a supervised target of an epoch's batches."""
    counts = _zeros(n_vocab)
    for step in range(n_steps):
        batch = loader.batch_at(split, step)
        counts += np.bincount(batch.targets[_supervised(batch)].numpy(), minlength=n_vocab)
    return counts


def check_gradients(batch: Batch, n_vocab: int, seed: int) -> list[ProofCheck]:
    """Change targets and look at every bit of loss and gradients of a small random model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, so that equal means equal bits
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _model(batch, n_vocab)
            return [
                _check_unsupervised(model, batch, n_vocab),
                _check_supervised(model, batch, n_vocab),
                _check_logits(model, batch),
            ]
    finally:
        torch.set_num_threads(threads)


def _model(batch: Batch, n_vocab: int) -> GPT:
    """Return a small model in float64, whose sums show the change of any one target."""
    config = GPTConfig(
        block_size=batch.input_ids.shape[1],
        vocab_size=n_vocab,
        n_layer=_LAYERS,
        n_head=_HEADS,
        n_embd=_WIDTH,
    )
    return GPT(config).double()


def _loss(model: GPT, batch: Batch, targets: Tensor) -> Tensor:
    """Return the summed loss as training computes it."""
    return model.loss(
        batch.input_ids,
        targets,
        batch.loss_mask,
        positions=batch.positions,
        segments=batch.segments,
    ).total


def _learn(model: GPT, batch: Batch, targets: Tensor) -> list[bytes]:
    """Return the bits of the loss and of every gradient."""
    loss = _loss(model, batch, targets)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return [_bits(values) for values in (loss, *gradients)]


def _bits(values: Tensor) -> bytes:
    return values.detach().numpy().tobytes()


def _other(targets: Tensor, n_vocab: int) -> Tensor:
    """Return for each target another id."""
    return (targets + torch.randint(1, n_vocab, targets.shape)) % n_vocab


def _supervised(batch: Batch) -> Tensor:
    if batch.loss_mask is None:
        return torch.ones_like(batch.targets, dtype=torch.bool)
    return batch.loss_mask.bool()


def _check_unsupervised(model: GPT, batch: Batch, n_vocab: int) -> ProofCheck:
    free = ~_supervised(batch)
    tally = _Tally("changing unsupervised targets changes no bit of loss or gradient")
    before = _learn(model, batch, batch.targets)
    targets = torch.where(free, _other(batch.targets, n_vocab), batch.targets)
    after = _learn(model, batch, targets)
    tally.add(int(free.sum()), before == after, "loss or a gradient changed")
    return tally.check()


@torch.no_grad()
def _check_supervised(model: GPT, batch: Batch, n_vocab: int) -> ProofCheck:
    tally = _Tally("changing a supervised target changes the loss")
    before = _bits(_loss(model, batch, batch.targets))
    places = _supervised(batch).nonzero()
    for place in places[:: max(1, len(places) // _CHANGED)][:_CHANGED]:
        row, column = place.tolist()
        targets = batch.targets.clone()
        targets[row, column] = _other(targets[row, column], n_vocab)
        after = _bits(_loss(model, batch, targets))
        tally.add(1, before != after, f"row {row}, place {column}: the loss stayed")
    return tally.check()


def _check_logits(model: GPT, batch: Batch) -> ProofCheck:
    """The seed's own forward pass: which logits feel the loss is the mask itself."""
    tally = _Tally("gradient reaches the logits of supervised targets and no others")
    logits, loss = model(
        batch.input_ids,
        batch.targets,
        batch.loss_mask,
        positions=batch.positions,
        segments=batch.segments,
    )
    felt = torch.autograd.grad(loss, logits)[0].ne(0).any(-1)
    supervised = _supervised(batch)
    wrong = (felt != supervised).nonzero().tolist()
    detail = f"row {wrong[0][0]}, place {wrong[0][1]}" if wrong else ""
    tally.add(int(supervised.sum()), not wrong, detail)
    return tally.check()
