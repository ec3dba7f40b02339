"""What a run says of the data that it reads."""

import json
from pathlib import Path

from mypt.data.manifest import TOKENIZER_STATE, Split, read_manifest
from mypt.data.policies import policy_words
from mypt.references import CheckpointRef, DatasetRef
from tasks.tracking.records import DatasetInput, MeasuredOn

_CONTEXTS: dict[str, Split] = {
    "pretrain": "train",
    "train": "train",
    "validation": "val",
    "evaluate": "val",
}
"""Which split is read for what; for anything else it is both."""
SHOWN_DIGITS = 12


def dataset_input(dataset: DatasetRef, context: str) -> DatasetInput:
    """Return the record of a dataset, or of one of its splits, that a stage reads.

    Args:
        dataset: The dataset.
        context: What it is read for, in the word that MLflow shows.
    """
    path = Path(dataset.path)
    manifest = read_manifest(path, dataset.digest)
    split = _CONTEXTS.get(context)
    shards = [shard for shard in manifest.shards if split in (None, shard.split)]
    profile = {
        "rows": sum(shard.n_rows for shard in shards),
        "tokens": sum(shard.n_tokens for shard in shards),
    }
    tags = {}
    if manifest.mask:
        stats = manifest.mask.stats
        of_split = stats.by_split.get(split, stats.total) if split else stats.total
        profile["supervised tokens"] = of_split.supervised
        tags["mask_density"] = f"{stats.total.density:.4f}"
    return DatasetInput(
        name=validation_name(path) if split == "val" else path.name,
        digest=dataset.digest,
        path=dataset.path,
        context=context,
        tags=tags,
        profile=profile,
    )


def validation_name(dataset: Path) -> str:
    """Return the name of a dataset's validation split; MLflow keeps one input a name and run."""
    return f"{dataset.name}/val"


def measured_on(checkpoint: CheckpointRef, dataset: DatasetRef) -> MeasuredOn:
    """Return what figures of a checkpoint on a dataset's validation split are about."""
    name = validation_name(Path(dataset.path))
    return MeasuredOn(checkpoint=checkpoint.digest, dataset=name, digest=dataset.digest)


def data_params(dataset: Path) -> dict[str, str]:
    """Return what tells two datasets apart in a table."""
    manifest = read_manifest(dataset)
    state = json.loads((dataset / TOKENIZER_STATE).read_bytes())
    return {
        "policy": policy_words(manifest.mask.policy) if manifest.mask else "every token",
        "template": str(state["template"]["name"]),
        "tokenizer": manifest.tokenizer_name,
        "dataset": manifest.digest[:SHOWN_DIGITS],
    }
