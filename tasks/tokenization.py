"""Prefect tasks that read what a pipeline begins with: raw files, and a model from elsewhere.

Tokens of an earlier stage are put beside those of a later one here, too.
"""

from pathlib import Path

from prefect.cache_policies import NO_CACHE

from mypt.config import Preparation, PrepareConfig
from mypt.data import dataset
from mypt.data import replay as replays
from mypt.data.manifest import read_manifest
from mypt.data.preparation.tokenization import DatasetPlan
from mypt.data.replay import Earlier, replay_recipe
from mypt.home import datasets_dir
from mypt.references import CheckpointRef, DatasetRef
from mypt.training.checkpoints.folder import checkpoint_ref
from mypt.training.plan import begin_at
from tasks import progress
from tasks.assets import dataset_asset, materialized, model_asset
from tasks.keys import stage_key
from tasks.reporting.datasets import report_dataset
from tasks.reporting.inputs import dataset_input
from tasks.reporting.live import live_progress
from tasks.stages import (
    DATASET_MADE,
    Output,
    announce,
    log,
    make_room,
    stage,
    tell,
    whole_dataset,
)
from tasks.stopping import StoppableTask
from tasks.tracking.recording import recorded
from tasks.tracking.records import Params, flatten


@stage("tokenize {what} {name}", whole_dataset)
def tokenize(
    config: PrepareConfig,
    name: str,
    what: str,
    tokenizer: DatasetRef | None = None,
    preparation: Preparation = Preparation(),
) -> Output[DatasetRef]:
    """Turn raw files into a dataset of tokens and spans.

    Args:
        config: What to read and how.
        name: Prefix of the dataset's folder.
        what: What people call it, for the task run's name.
        tokenizer: A dataset whose tokenizer is used instead of the config's.
        preparation: Who reads and encodes; the dataset is the same.
    """
    if tokenizer is not None:
        config = config.model_copy(update={"tokenizer_from": tokenizer.path})
    plan = DatasetPlan(config)
    folder = datasets_dir() / f"{name}-{stage_key(dataset, plan.recipe)}"
    key = f"tokenize-{folder.name}"

    def make() -> DatasetRef:
        if plan.begins_with_base:
            from mypt.inference.huggingface.imports import check_base  # loads torch

            check_base(config.tokenization)
        with recorded(key, f"tokenize {what} {name}") as run:
            run.write(Params(values=flatten(config)))
            make_room(folder, whole_dataset)
            with (
                live_progress(folder.name) as move,
                progress.reading(f"tokenize {what}", log, move) as shown,
            ):
                made = dataset.tokenize(
                    plan, folder, progress=shown, reuse=True, preparation=preparation
                )
            report_dataset(run, folder)
        announce(DATASET_MADE, folder.name, digest=made.digest, path=made.path)
        upstream = [dataset_asset(tokenizer)] if tokenizer else []
        materialized(dataset_asset(made), upstream, digest=made.digest, path=made.path)
        return made

    return Output(folder, key, make)


@stage("replay {what} {name}", whole_dataset)
def replay(
    dataset: DatasetRef,
    earlier: dict[str, DatasetRef],
    shares: dict[str, float],
    name: str,
    what: str,
) -> Output[DatasetRef]:
    """Put rows of earlier stages beside a dataset's, in a new dataset.

    Args:
        dataset: Tokens and spans.
        earlier: The same of the stages of which some is read again, by their names.
        shares: Of the training tokens, which those rows make up.
        name: Prefix of the new dataset's folder.
        what: What people call it, for the task run's name.
    """
    again = [Earlier(one, earlier[one], share) for one, share in shares.items()]
    folder = datasets_dir() / f"{name}-replay-{stage_key(replays, replay_recipe(dataset, again))}"
    key = f"replay-{folder.name}"

    def make() -> DatasetRef:
        with recorded(key, f"replay {what} {name}") as run:
            run.write(Params(values={f"replay.{one}": str(share) for one, share in shares.items()}))
            for read in (dataset, *earlier.values()):
                run.write(dataset_input(read, "replay"))
            make_room(folder, whole_dataset)
            made = replays.replay(dataset, again, folder, reuse=True)
            report_dataset(run, folder)
        _tell_shares(made, name)
        announce(
            DATASET_MADE, folder.name, parent=dataset.digest, digest=made.digest, path=made.path
        )
        upstream = [dataset_asset(read) for read in (dataset, *earlier.values())]
        materialized(dataset_asset(made), upstream, digest=made.digest, path=made.path)
        return made

    return Output(folder, key, make)


def _tell_shares(made: DatasetRef, name: str) -> None:
    """Say how much of each source is read again."""
    manifest = read_manifest(Path(made.path), made.digest)
    sources, train = manifest.sources, manifest.split("train")
    read = [shard.n_tokens * sources[shard.source].weight for shard in train]
    own = len(manifest.making.config.sources) if manifest.making else len(sources)
    for number in range(own, len(sources)):
        mine = [n for n, shard in zip(read, train, strict=True) if shard.source == number]
        share = sum(mine) / sum(read)
        tell(f"{name}: {sources[number].name} is {share:.1%} of the training tokens")


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
