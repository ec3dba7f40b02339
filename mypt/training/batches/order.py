"""Which rows make a batch: the settings that decide it, in one record, and whether masks are there.

What a trained checkpoint was shown is counted from the same record, and without torch.
"""

from pathlib import Path
from typing import Literal, NamedTuple

from mypt.config import UNWEIGHED, Normalisation, Preset, TrainConfig
from mypt.data.dataset import Dataset
from mypt.data.manifest import Manifest, Split
from mypt.data.packing.layout import plan_rows
from mypt.data.packing.pieces import LengthPolicy
from mypt.data.shards import MASK, shard_name
from mypt.errors import ConfigError, MaskError
from mypt.training.batches.packed import PackedRows
from mypt.training.batches.windows import Windows

_NAMES_SHOWN = 5


class Batching(NamedTuple):
    """All that decides, beside the dataset, which rows make a batch."""

    batch_size: int
    """Rows a micro-batch; the most there are, for packed rows."""
    block_size: int
    """Inputs a row, in tokens."""
    use_loss_mask: bool
    """Learn only what the dataset's masks supervise."""
    seed: int
    batching: Literal["windows", "packed"]
    length_policy: LengthPolicy
    """What becomes of rows that no block holds; packed only."""
    max_lost: float
    """Largest share of supervised tokens that may be lost to length; packed only."""
    grad_accumulation: int
    """Micro-batches an optimizer step."""
    normalisation: Normalisation = "token"
    """What weighs the same; packed only."""

    @classmethod
    def of(cls, config: Preset) -> "Batching":
        """Return how a training of this config, as it was planned, draws its batches."""
        assert config.use_loss_mask is not None, "a plan says whether masks are used"
        assert config.length_policy is not None, "a plan says what becomes of long conversations"
        return cls(*(getattr(config, name) for name in cls._fields))

    def rows(self, dataset: Dataset, split: Split) -> Windows | PackedRows:
        """Lay out the rows of one split.

        Raises:
            MaskError: If masks are missing or supervise nothing where they are asked for.
            DataError: If the split cannot be batched this way.
            ConfigError: If ``batching`` has another value.
        """
        if self.batching not in ("windows", "packed"):
            raise ConfigError(f"batching {self.batching!r} found, 'windows' or 'packed' expected")
        if self.normalisation != "token" and self.batching != "packed":
            raise ConfigError(
                f"normalisation {self.normalisation!r} found with batching {self.batching!r}; set"
                " batching: packed"
            )
        if self.use_loss_mask:
            check_masks(dataset, split)
        if self.batching == "windows":
            return Windows(
                dataset,
                split,
                batch_size=self.batch_size,
                block_size=self.block_size,
                use_loss_mask=self.use_loss_mask,
                seed=self.seed,
            )
        plan = plan_rows(
            dataset,
            split,
            self.block_size,
            self.length_policy,
            use_loss_mask=self.use_loss_mask,
            max_lost=self.max_lost,
        )
        return PackedRows(
            dataset,
            split,
            plan,
            batch_size=self.batch_size,
            grad_accumulation=self.grad_accumulation,
            use_loss_mask=self.use_loss_mask,
            seed=self.seed,
            normalisation=self.normalisation,
        )


def check_masks(dataset: Dataset, split: Split) -> None:
    """Refuse to train on masks that are not there or select nothing (law 6).

    Raises:
        MaskError: Naming the missing files and both ways out.
    """
    shards = dataset.shards(split)
    missing = [shard_name(split, s.record.index, MASK) for s in shards if s.mask is None]
    if missing:
        more = len(missing) - _NAMES_SHOWN
        names = ", ".join(missing[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
        raise MaskError(
            f"{dataset.path}: use_loss_mask is true and {len(missing)} of {len(shards)} mask files"
            f" of {split} are missing: {names}; make them with 'mypt mask' (or 'mypt prepare"
            " --mask_role assistant'), or set use_loss_mask: false to learn every token"
        )
    if not any(shard.mask is not None and shard.mask.any() for shard in shards):
        raise MaskError(
            f"{dataset.path}: the masks of {split} are all zero, so no token would be learned; mask"
            " it again with 'mypt mask' and another policy, or set use_loss_mask: false"
        )


def check_pairs(config: TrainConfig, where: Path, manifest: Manifest) -> None:
    """Refuse an objective that does not fit what the rows are.

    Raises:
        ConfigError: If one wants preference pairs and the dataset has none, or the other way round.
        MaskError: If the tokens of pairs are weighed.
    """
    if config.of_pairs and not manifest.pairs:
        raise ConfigError(
            f"{where}: its rows are no preference pairs, which objective {config.objective}"
            " compares; prepare it with pairs (--pairs), or set objective nll"
        )
    if manifest.pairs and not config.of_pairs:
        raise ConfigError(
            f"{where}: its rows are preference pairs, whose rejected sides objective"
            f" {config.objective} would learn; set objective dpo, ipo or simpo, or prepare it"
            " without pairs to learn the chosen sides"
        )
    if manifest.pairs and manifest.mask and manifest.mask.weights != UNWEIGHED:
        raise MaskError(
            f"{where}: its tokens are weighed, which objective {config.objective} does not hear;"
            " mask it again with 'mypt mask' and a policy without weights"
        )
