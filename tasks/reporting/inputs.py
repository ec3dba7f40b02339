"""What a run says of the data that it reads."""

import json
from pathlib import Path

from mypt.data.manifest import TOKENIZER_STATE, Split, read_manifest
from mypt.references import CheckpointRef, DatasetRef
from mypt.training.plan import RunPlan
from tasks.tracking.records import DatasetInput, MeasuredOn

_CONTEXTS: dict[str, Split] = {
    "pretrain": "train",
    "train": "train",
    "validation": "val",
    "evaluate": "val",
}
"""Which split is read for what; for anything else it is both."""
SHOWN_DIGITS = 12
_DIGITS = 4
"""Of a share, behind the point."""


def called(path: str, digest: str) -> str:
    """Return a folder's name, or what else is given as one, and the beginning of its digest."""
    return f"{Path(path).name} ({digest[:SHOWN_DIGITS]})"


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
    columns = {"token": "integer"} | ({"mask": "integer"} if manifest.mask else {})
    profile: dict[str, int | float] = {
        "rows": sum(shard.n_rows for shard in shards),
        "tokens": sum(shard.n_tokens for shard in shards),
    }
    if manifest.mask:  # used or not: what a training learned stands on its run
        stats = manifest.mask.stats
        of_split = stats.by_split.get(split, stats.total) if split else stats.total
        profile["supervised by its masks"] = of_split.supervised
        profile["density"] = round(of_split.density, _DIGITS)
        for role, found in stats.by_role.items():
            profile[f"{role}, both splits: tokens"] = found.tokens
            profile[f"{role}, both splits: density"] = round(found.density, _DIGITS)
    return DatasetInput(
        name=validation_name(path) if split == "val" else path.name,
        digest=dataset.digest,
        path=dataset.path,
        context=context,
        profile=profile,
        columns=columns | ({"role": "string"} if manifest.kind == "chat" else {}),
    )


def validation_name(dataset: Path) -> str:
    """Return the name of a dataset's validation split; MLflow keeps one input a name and run."""
    return f"{dataset.name}/val"


def measured_on(checkpoint: CheckpointRef, dataset: DatasetRef) -> MeasuredOn:
    """Return what figures of a checkpoint on a dataset's validation split are about."""
    name = validation_name(Path(dataset.path))
    return MeasuredOn(checkpoint=checkpoint.digest, dataset=name, digest=dataset.digest)


def plan_params(plan: RunPlan) -> dict[str, str]:
    """Return what tells two trainings apart in a table, beside their knobs."""
    dataset = Path(plan.dataset.path)
    manifest = read_manifest(dataset)
    state = json.loads((dataset / TOKENIZER_STATE).read_bytes())
    return {
        "policy": plan.policy,
        "template": str(state["template"]["name"]),
        "tokenizer": manifest.tokenizer_name,
        "dataset": manifest.digest[:SHOWN_DIGITS],
    }
