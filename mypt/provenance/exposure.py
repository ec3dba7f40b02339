"""Which source rows a checkpoint was trained on and how often, counted again from seed and steps.

Which rows make a batch is a function of dataset, seed and step alone (law 8), so nothing needs
to be recorded while training: the draws are made once more, without reading a token.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from mypt.data.dataset import Dataset, open_dataset
from mypt.data.manifest import Split
from mypt.data.shards import ShardView
from mypt.errors import MyptError
from mypt.parsing import Frozen
from mypt.provenance.row_counts import RowCounts, count_packed, count_windows, no_counts
from mypt.provenance.search import Search, ancestry
from mypt.training.batches.order import Batching
from mypt.training.batches.windows import Windows
from mypt.training.lineage import DatasetRecord, Lineage

MANY_PASSES: Final = 4.0
"""Passes over the same tokens above which a warning is shown. Up to about four, repeated data
teach nearly as much as new ones (Muennighoff et al. 2023, Scaling Data-Constrained Language
Models); beyond, a model begins to recite."""


class RowExposure(NamedTuple):
    """One source row in one training."""

    training: str
    """Model and step, such as ``chat step 500``."""
    source: str
    file: str
    """The raw file, where it was read."""
    line: int
    split: Split
    """Rows of ``val`` are only scored, never learned."""
    times: int
    """Windows, or pieces of packed rows, in which at least one token of the row was learned."""
    learned: int
    """Tokens of the row that were learned, each counted as often as it was."""
    read: int
    """Tokens of the row that stood in a batch, as context or learned, counted likewise."""
    supervised: int
    """Tokens of the row that could be learned, each counted once."""

    @property
    def passes(self) -> float:
        """How often each of its supervised tokens was learned on average."""
        return self.learned / self.supervised if self.supervised else 0.0


class SourceExposure(Frozen):
    """One source in one training, over all rows of its training split."""

    training: str
    source: str
    rows: int
    rows_learned: int
    """Rows of which at least one token was learned."""
    times_most: int
    """The largest ``times`` of a row."""
    learned: int
    """Tokens learned, each counted as often as it was."""
    supervised: int
    """Tokens that could be learned, each counted once."""

    @property
    def passes(self) -> float:
        """How often each supervised token was learned on average."""
        return self.learned / self.supervised if self.supervised else 0.0


@dataclass(frozen=True, slots=True)
class Training:
    """What one training of the chain saw of its dataset."""

    lineage: Lineage
    dataset: Dataset
    counts: dict[int, RowCounts]
    """By index of the shard in ``train``."""

    @property
    def name(self) -> str:
        """Model and step."""
        return f"{self.lineage.model_name} step {self.lineage.step}"

    def rows(self, split: Split, shard: ShardView) -> Iterator[RowExposure]:
        """Yield the rows of one shard in order."""
        for index in range(0 if shard.rows is None else len(shard.rows)):
            yield self.row(split, shard, index)

    def row(self, split: Split, shard: ShardView, index: int) -> RowExposure:
        """Return one row of a shard that has rows."""
        assert shard.rows is not None
        record, source = shard.rows[index], self.dataset.manifest.sources[shard.record.source]
        counts = self.counts[shard.record.index] if split == "train" else ()
        return RowExposure(
            self.name,
            source.name,
            source.files[int(record["file"])].path,
            int(record["line"]),
            split,
            *([int(part[index]) for part in counts] or [0] * len(RowCounts._fields)),
        )

    def sources(self) -> Iterator[SourceExposure]:
        """Yield the sources that have rows in the training split."""
        for number, source in enumerate(self.dataset.manifest.sources):
            shards = [s for s in self.dataset.manifest.split("train") if s.source == number]
            parts = [self.counts[shard.index] for shard in shards]
            if parts:
                yield SourceExposure(
                    training=self.name,
                    source=source.name,
                    rows=sum(len(part.times) for part in parts),
                    rows_learned=sum(int((part.learned > 0).sum()) for part in parts),
                    times_most=max(int(part.times.max(initial=0)) for part in parts),
                    learned=sum(int(part.learned.sum()) for part in parts),
                    supervised=sum(int(part.supervised.sum()) for part in parts),
                )


@dataclass(frozen=True, slots=True)
class Exposure:
    """What a checkpoint and its parents were trained on, row by row."""

    trainings: tuple[Training, ...]
    """The checkpoint's own comes first."""
    problems: tuple[str, ...] = ()
    """What could not be counted and why, a line each; empty if the answer is whole."""

    def rows(self) -> Iterator[RowExposure]:
        """Yield every row of every training split, in the order of the shards."""
        for training in self.trainings:
            for shard in training.dataset.shards("train"):
                yield from training.rows("train", shard)

    def sources(self) -> tuple[SourceExposure, ...]:
        """Return the sources of every training."""
        return tuple(found for training in self.trainings for found in training.sources())

    def warnings(self) -> tuple[str, ...]:
        """Return a line for each source that was seen so often that a model begins to recite."""
        return tuple(
            f"{source.training}: source {source.source} was learned {source.passes:.1f} times over,"
            f" more than {MANY_PASSES:g}; expect the model to recite it"
            for source in self.sources()
            if source.passes > MANY_PASSES
        )


def exposure(step_folder: Path) -> Exposure:
    """Count what a checkpoint and its parents were trained on.

    Windows: a row counts each time a window learns one of its tokens. Packed: each time one of
    its pieces is read, so a row that fits the block counts once an epoch, times the weight of
    its source. Memory is bounded by the row index and a few million draws, not by the steps.

    Raises:
        CheckpointError: If the checkpoint's own lineage cannot be read.
    """
    found, search = ancestry(step_folder), Search(step_folder.absolute())
    trainings, problems = [], []
    for lineage in found.lineages:
        try:
            training = _recount(lineage, search)
        except MyptError as error:
            problems.append(f"{lineage.model_name} step {lineage.step}: {error}")
            continue
        trainings.append(training)
        learned = sum(int(part.learned.sum()) for part in training.counts.values())
        if learned != lineage.supervised:
            problems.append(
                f"{training.name}: counted {learned} learned tokens, the lineage says"
                f" {lineage.supervised}; another version drew other rows, do not trust the counts"
            )
    if found.lost is not None:
        lost = f"{found.lost.model_name} step {found.lost.step}"
        problems.append(f"{lost}: its lineage is gone, so nobody knows what it was trained on")
    return Exposure(tuple(trainings), tuple(problems))


def _recount(lineage: Lineage, search: Search) -> Training:
    config, dataset = lineage.config, _open(lineage.dataset, search)
    shards = dataset.shards("train")
    if any(shard.rows is None for shard in shards):
        raise MyptError(
            f"{dataset.path} was made by hand and has no index of rows; expected one that 'mypt"
            " prepare' made; which tokens were drawn is known, whose they are is not"
        )
    masked = bool(config.use_loss_mask)
    counts = {shard.record.index: no_counts(shard, masked) for shard in shards}
    n_batches = lineage.step * config.grad_accumulation
    rows = Batching.of(config).rows(dataset, "train")
    if isinstance(rows, Windows):
        count_windows(rows, n_batches, config.block_size, counts, masked)
    else:
        count_packed(rows, shards, n_batches, counts, masked)
    return Training(lineage, dataset, counts)


def _open(record: DatasetRecord, search: Search) -> Dataset:
    found = search.dataset(record.path, record.digest)
    if found is None:
        raise MyptError(
            f"{record.path}: no dataset of digest {record.digest[:12]} is there any more; put it"
            " back, or make it again with 'mypt reproduce'"
        )
    return open_dataset(found[0], digest=record.digest)
