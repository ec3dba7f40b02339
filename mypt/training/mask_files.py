"""Whether the masks that training asks for are there."""

from mypt.data.dataset import Dataset
from mypt.data.manifest import Split
from mypt.data.shards import MASK, shard_name
from mypt.errors import MaskError

_NAMES_SHOWN = 5


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
