"""The proof of a mask, bit for bit, on real batches and a small random model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from mypt.data.dataset import Dataset, open_dataset
from mypt.data.manifest import Manifest, Split
from mypt.data.packing.layout import PackingPlan, plan_rows
from mypt.data.packing.pieces import LengthPolicy, in_twos
from mypt.errors import MaskError
from mypt.evaluation.proof.alignment import Truth
from mypt.evaluation.proof.checks import (
    ProofCheck,
    ProofReport,
    check_alignment,
    check_gradients,
    check_nothing_lost,
    render,
)
from mypt.training.loader import Batch, GPTDataLoader

__all__ = ["ProofCheck", "ProofReport", "prove_mask", "render"]

Batching = Literal["windows", "packed"]

MOST_TOKENS = 50_000_000
"""Of larger splits only so many shards are proved, and the report says so."""
MOST_LOGITS = 30_000_000
"""Places times vocabulary of a batch; fewer rows are taken where the vocabulary is large."""
_STEPS = 50
"""Batches that are looked through for one that supervises something."""


def prove_mask(
    dataset: str | Path | Dataset,
    *,
    split: Split = "train",
    rows: int = 16,
    block_size: int = 64,
    length_policy: LengthPolicy = "split",
    seed: int = 0,
) -> ProofReport:
    """Prove that training learns the supervised tokens of a dataset and no other.

    Batches are drawn as training draws them, as windows and, where rows are recorded, packed.
    On each: tokens and mask agree with the files and the laws; changing unsupervised targets
    changes no bit of loss or gradient; changing a supervised one changes the loss.

    Args:
        dataset: The dataset or its folder, with masks.
        split: Which split.
        rows: Rows of a batch.
        block_size: Places of a row, lowered where no shard is long enough, and raised to what the
            longest preference pair needs.
        length_policy: For packed batches; pairs are left whole.
        seed: Decides batches, weights and changes.

    Raises:
        MaskError: If the dataset has no masks, or they supervise nothing.
    """
    whole = dataset if isinstance(dataset, Dataset) else open_dataset(dataset, verify=False)
    record = whole.manifest.mask
    if record is None:
        raise MaskError(f"{whole.path} has no masks to prove; make them with 'mypt mask'")
    manifest = _limited(whole.manifest, split)
    limited, shards = Dataset(whole.path, manifest), manifest.split(split)
    truths = list(_truths(limited, split))
    places = min(block_size, max(shard.n_tokens for shard in shards) - 1)
    if whole.paired:
        length_policy, places = "drop", max(places, _longest_pair(limited, split))
    checks: list[ProofCheck] = []
    for batching in _batchings(manifest):
        loader = GPTDataLoader(
            limited,
            batch_size=max(2, min(rows, MOST_LOGITS // (places * manifest.n_vocab))),
            block_size=places,
            use_loss_mask=True,
            seed=seed,
            batching=batching,
            length_policy=length_policy,
            max_lost=1.0,
        )
        packed = batching == "packed"
        plan = plan_rows(limited, split, places, length_policy) if packed else None
        for check in _check(loader, split, truths, plan, seed):
            checks.append(check.model_copy(update={"name": f"{batching}: {check.name}"}))
    return ProofReport(
        dataset=whole.manifest.digest,
        seed=seed,
        shards=len(shards),
        shards_in_all=len(whole.manifest.split(split)),
        checks=tuple(checks),
    )


def _truths(dataset: Dataset, split: Split) -> Iterator[Truth]:
    manifest = dataset.manifest
    policy = manifest.mask.policy if manifest.mask else None
    for shard in manifest.split(split):
        source = manifest.sources[shard.source].name
        yield Truth(dataset.path, shard, policy, source, manifest.row_weights)


def _check(
    loader: GPTDataLoader, split: Split, truths: list[Truth], plan: PackingPlan | None, seed: int
) -> list[ProofCheck]:
    batch = _batch_that_learns(loader, split)
    return [
        *check_nothing_lost(loader, split, truths, plan),
        *check_alignment(batch, truths, one_row=plan is not None),
        *check_gradients(batch, loader.dataset.manifest.n_vocab, seed),
    ]


def _limited(manifest: Manifest, split: Split) -> Manifest:
    """Return the manifest with as many shards as the proof can search, spread over all."""
    shards = manifest.split(split)
    if not shards:
        raise MaskError(f"the split {split!r} has no shard, so that there is nothing to prove")
    if manifest.tokens(split) <= MOST_TOKENS:
        return manifest.model_copy(update={"shards": shards})
    most = max(shard.n_tokens for shard in shards)
    n_kept = max(1, min(len(shards), MOST_TOKENS // most))
    kept = {shards[i].index for i in np.linspace(0, len(shards) - 1, n_kept).round().astype(int)}
    chosen = tuple(shard for shard in shards if shard.index in kept)
    return manifest.model_copy(update={"shards": chosen})


def _longest_pair(dataset: Dataset, split: Split) -> int:
    """Return how many places the longest pair fills; a pair is never cut."""
    tables = [shard.rows for shard in dataset.shards(split) if shard.rows is not None]
    sizes = [(rows["stop"] - rows["start"]).astype(np.int64) for rows in tables]
    return max(int(in_twos(size - 1, np.add).max()) for size in sizes)


def _batchings(manifest: Manifest) -> tuple[Batching, ...]:
    recorded = all(shard.rows is not None for shard in manifest.shards)
    return ("windows", "packed") if recorded else ("windows",)


def _batch_that_learns(loader: GPTDataLoader, split: Split) -> Batch:
    """Return the first batch that supervises something, as training would meet it."""
    for step in range(_STEPS):
        batch = loader.batch_at(split, step)
        if batch.loss_mask is None or batch.loss_mask.any():
            return batch
    raise MaskError(
        f"{loader.dataset.path}, {split}: no target is supervised in {_STEPS} batches; look at the"
        " masks with 'mypt validate'"
    )
