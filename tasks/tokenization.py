"""Prefect task that turns raw files into tokens and spans."""

from mypt.config import Preparation, PrepareConfig
from mypt.data import dataset
from mypt.data.preparation.tokenization import DatasetPlan
from mypt.home import datasets_dir
from mypt.references import DatasetRef
from tasks import progress
from tasks.assets import dataset_asset, materialized
from tasks.keys import stage_key
from tasks.reporting.datasets import report_dataset
from tasks.reporting.live import live_progress
from tasks.stages import DATASET_MADE, Output, announce, log, make_room, stage, whole_dataset
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
