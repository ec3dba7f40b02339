"""Prefect task that finds the model a pipeline begins with, and reads one from elsewhere first."""

from pathlib import Path

from prefect.cache_policies import NO_CACHE

from mypt.references import CheckpointRef, DatasetRef
from mypt.training.checkpoints.folder import checkpoint_ref
from mypt.training.plan import begin_at
from tasks.assets import materialized, model_asset
from tasks.stages import tell
from tasks.stopping import StoppableTask


def begin(init_from: str, dataset: DatasetRef, whose: str) -> CheckpointRef:
    """Return the checkpoint that the first training of a pipeline begins with.

    What comes from elsewhere is read each time: its files may have changed, and equal ones make
    the same checkpoint.

    Args:
        init_from: As for :func:`mypt.training.plan.plan_run`.
        dataset: What will be trained on first.
        whose: Whose arithmetic a model from elsewhere has, as ``base`` of a preset says.

    Raises:
        MyptError: If it is not there, or cannot be read.
    """
    place, news = begin_at(init_from, Path(dataset.path), whose)
    found = checkpoint_ref(place)
    tell(f"begins with {place.parent.name} step {found.step}")
    for line in news:
        tell(line)
    materialized(model_asset(found), digest=found.digest, path=found.path)
    return found


begin_with = StoppableTask(
    begin, name="begin", task_run_name="begin with {init_from}", cache_policy=NO_CACHE
)
