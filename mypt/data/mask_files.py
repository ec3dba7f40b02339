"""Masks on disk: made from the spans beside them, shard by shard, and counted."""

from pathlib import Path, PurePath

import numpy as np

from mypt import files
from mypt.config import MaskPolicy
from mypt.data.manifest import Manifest, MaskRecord, Shard, SourceRecord, record_file
from mypt.data.mask_stats import mask_stats
from mypt.data.masking import mask_from_spans
from mypt.data.shards import MASK, ShardView, shard_name, view_shard
from mypt.errors import MaskError


def write_masks(folder: Path, manifest: Manifest, policy: MaskPolicy) -> Manifest:
    """Write a mask beside each shard of ``folder`` and return the metadata with them.

    Raises:
        MaskError: If the shards have no spans, a row wants a tool's result supervised, or the
            policy supervises nothing in the whole dataset.
    """
    shards = tuple(_write_mask(folder, shard, manifest, policy) for shard in manifest.shards)
    stats = mask_stats((view_shard(folder, shard) for shard in shards), manifest.sources)
    if not stats.total.supervised:
        roles = ", ".join(policy.roles) or "no role"
        raise MaskError(
            f"no token is supervised: the policy wants {roles}{' and text' * policy.text}, the rows"
            f" hold {', '.join(stats.by_role) or 'nothing'}; choose roles that are there, or look"
            " at the rows' own train marks"
        )
    record = MaskRecord(policy=policy, stats=stats)
    return manifest.model_copy(update={"shards": shards, "mask": record})


def _write_mask(folder: Path, shard: Shard, manifest: Manifest, policy: MaskPolicy) -> Shard:
    view = view_shard(folder, shard)
    if view.spans is None:
        raise MaskError(
            f"{shard.tokens.name} was made by hand and has no spans, so nobody knows who wrote its"
            " tokens; prepare the raw files with 'mypt prepare' to mask them by a policy"
        )
    source = manifest.sources[shard.source]
    mask = mask_from_spans(
        view.spans, shard.n_tokens, policy, row_name=lambda row: origin(view, source, row)
    )
    name = shard_name(shard.split, shard.index, MASK)
    with files.create(folder / name) as file:
        file.write(np.ascontiguousarray(mask).data)
    return shard.model_copy(update={"mask": record_file(folder, name)})


def origin(shard: ShardView, source: SourceRecord, row: int) -> str:
    """Return file and line of a row, counted in its shard."""
    if shard.rows is None or not source.files:
        return f"{shard.record.tokens.name} row {row}"
    found = shard.rows[row]
    return f"{PurePath(source.files[found['file']].path).name}:{found['line']}"
