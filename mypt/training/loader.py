"""Batches from a dataset: which rows make batch ``step`` depends on nothing but seed and step."""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mypt.config import Normalisation, Preset
from mypt.data.dataset import Dataset, open_dataset
from mypt.data.manifest import SPLITS, Split
from mypt.data.packing.accounts import LengthAccount
from mypt.data.packing.pieces import LengthPolicy
from mypt.data.shards import TokenRange
from mypt.errors import ConfigError, DataError
from mypt.training.batches.order import Batching
from mypt.training.batches.packed import PackedRows
from mypt.training.batches.shift import Arrays
from mypt.training.batches.windows import Windows


class Batch(NamedTuple):
    """One micro-batch; B rows, T places."""

    input_ids: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64; the token that follows each input."""
    loss_mask: Tensor | None
    """(B, T) uint8 of 0 and 1, or float32 where tokens are weighed, aligned with ``targets``; None
    supervises all."""
    positions: Tensor | None = None
    """(B, T) int64, counted from 0 in each packed piece; None counts along the row."""
    segments: Tensor | None = None
    """(B, T) int64, the packed piece that a place belongs to, -1 for padding."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on ``device``."""
        return Batch._make([None if part is None else send(part, device) for part in self])


class Epoch(NamedTuple):
    """What once through a split is."""

    steps: int
    """Optimizer steps; of windows, as many as read as many tokens as the split has."""
    tokens: int
    """Tokens that are read, or may be drawn."""
    skipped: int = 0
    """Tokens of shards that are shorter than a window and are never drawn."""
    accounts: tuple[LengthAccount, ...] = ()
    """Packed only: what the block size keeps and loses, by source."""
    fill: float = 1.0
    """Packed only: share of the places that hold a token."""


class GPTDataLoader:
    """Draws the batches of both splits of one dataset.

    ``batching="windows"``: random windows; with ``use_loss_mask`` a batch carries the mask.
    ``batching="packed"``: whole conversations, each once an epoch. Such a batch always carries a
    mask, since padding must not be learned; without ``use_loss_mask`` it is 1 on every target
    inside a conversation.
    """

    def __init__(
        self,
        dataset_dir: Dataset | str | Path,
        *,
        batch_size: int,
        block_size: int,
        use_loss_mask: bool = False,
        seed: int = 0,
        batching: Literal["windows", "packed"] = "windows",
        length_policy: LengthPolicy = "split",
        max_lost: float = 0.05,
        grad_accumulation: int = 1,
        normalisation: Normalisation = "token",
        device: str | torch.device = "cpu",
    ) -> None:
        """Open a dataset (or take an open one) and lay out both splits.

        Args:
            dataset_dir: The dataset.
            batch_size: Rows a micro-batch; the most there are, for packed rows.
            block_size: Inputs a row, in tokens.
            use_loss_mask: Learn only what the dataset's masks supervise.
            seed: With the step, decides all rows. Evaluation takes a loader of its own.
            batching: See above.
            length_policy: As for :func:`mypt.data.packing.layout.plan_rows`; packed only.
            max_lost: As for :func:`mypt.data.packing.layout.plan_rows`; packed only.
            grad_accumulation: Micro-batches an optimizer step.
            normalisation: What weighs the same; packed only.
            device: Where the tensors go.

        Raises:
            MaskError: If masks are missing or supervise nothing where they are asked for.
            DataError: If a split cannot be batched this way.
            ManifestError: If the dataset is damaged.
            ConfigError: If ``batching`` has another value.
        """
        opened = dataset_dir if isinstance(dataset_dir, Dataset) else open_dataset(dataset_dir)
        self.dataset = opened
        self.device = torch.device(device)
        self._stays = self.device.type == "cpu"  # asked once: it takes a sixth of a batch's time
        self._how = how = Batching(
            batch_size, block_size, use_loss_mask, seed, batching, length_policy, max_lost,
            grad_accumulation, normalisation,
        )  # fmt: skip
        self._drawn = dict.fromkeys(SPLITS, 0)
        self._rows = {split: how.rows(opened, split) for split in SPLITS if opened.shards(split)}

    @classmethod
    def of(cls, config: Preset, dataset: Dataset) -> "GPTDataLoader":
        """Return the loader that a training of this config draws from.

        Raises:
            MyptError: As the constructor.
        """
        return cls(dataset, **Batching.of(config)._asdict())

    def batch_at(self, split: Split, step: int, micro: int = 0) -> Batch:
        """Return micro-batch ``micro`` of the step that follows ``step`` finished ones.

        A pure function of dataset, seed, split, step and micro: asking changes nothing.

        Raises:
            DataError: If the dataset has no such split.
            ValueError: If a step has fewer micro-batches.
        """
        return self._to_device(self._of(split).batch(self._number(step, micro)))

    def places_at(self, split: Split, step: int, micro: int = 0) -> list[list[TokenRange]]:
        """Return which stretches of which shards each row of :meth:`batch_at` is made of.

        Raises:
            DataError: As :meth:`batch_at`.
            ValueError: As :meth:`batch_at`.
        """
        return self._of(split).places(self._number(step, micro))

    def get_batch(self, split: Split) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
        """Return the next batch as the seed does: (X, Y, mask), or (X, Y) without masks.

        The n-th call for a split gives the n-th micro-batch of :meth:`batch_at`; each split
        counts for itself.

        Raises:
            ConfigError: If conversations are packed: X, Y and mask do not say where one ends,
                so that a model would read across; :meth:`batch_at` does.
            DataError: If the dataset has no such split.
        """
        rows = self._of(split)
        if isinstance(rows, PackedRows):
            raise ConfigError(
                "get_batch found packed conversations, which (X, Y, mask) cannot keep apart; take"
                " batch_at(split, step) with its positions and segments, or set batching: windows"
            )
        batch = self._to_device(rows.batch(self._drawn[split]))
        self._drawn[split] += 1
        if batch.loss_mask is None:
            return batch.input_ids, batch.targets
        return batch.input_ids, batch.targets, batch.loss_mask

    def epoch(self, split: Split) -> Epoch:
        """Return what once through a split is.

        Raises:
            DataError: If the dataset has no such split.
        """
        rows = self._of(split)
        if isinstance(rows, PackedRows):
            plan = rows.plan
            return Epoch(rows.steps_per_epoch, plan.n_places, 0, plan.accounts, plan.fill)
        step = self._how.batch_size * self._how.block_size * self._how.grad_accumulation
        return Epoch(-(-rows.n_tokens // step), rows.n_tokens, rows.n_skipped)

    @property
    def notes(self) -> tuple[str, ...]:
        """In what windows fall short of ``block_size`` or of the data, a line each."""
        windows = [rows for rows in self._rows.values() if isinstance(rows, Windows)]
        return tuple(note for rows in windows for note in rows.notes)

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens read once through ``train``."""
        return self.epoch("train").tokens

    def _number(self, step: int, micro: int) -> int:
        micros = self._how.grad_accumulation
        if not 0 <= micro < micros:
            raise ValueError(
                f"micro-batch {micro} of a step of {micros}; GPTDataLoader's grad_accumulation says"
                " how many a step has"
            )
        return step * micros + micro

    def _of(self, split: Split) -> Windows | PackedRows:
        if split not in self._rows:
            raise DataError(
                f"{self.dataset.path} has no rows in its split {split!r}; prepare it with another"
                " val_fraction"
            )
        return self._rows[split]

    def _to_device(self, arrays: Arrays) -> Batch:
        batch = Batch._make([None if part is None else torch.from_numpy(part) for part in arrays])
        return batch if self._stays else batch.to(self.device)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor`` on ``device``; a GPU fetches it by itself while the host goes on."""
    if tensor.device.type == device.type:
        return tensor
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
