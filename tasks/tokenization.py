"""Prefect task that turns raw files into tokens and spans."""

from mypt.config import Preparation, PrepareConfig
from mypt.data import dataset
from mypt.data.preparation.tokenization import recipe
from mypt.home import datasets_dir
from mypt.references import DatasetRef
from tasks import progress
from tasks.keys import stage_key
from tasks.reporting.datasets import report_dataset
from tasks.reporting.live import live_progress
from tasks.stages import Output, log, make_room, stage, whole_dataset
from tasks.tracking.recording import recorded
from tasks.tracking.records import Params, flatten


def _output(config: PrepareConfig, name: str, tokenizer: DatasetRef | None) -> Output:
    key = stage_key(dataset, recipe(_resolved(config, tokenizer)))
    return Output(datasets_dir() / f"{name}-{key}", f"tokenize-{name}-{key}")


@stage("tokenize {what} {name}", _output, whole_dataset)
def tokenize(
    config: PrepareConfig,
    name: str,
    what: str,
    tokenizer: DatasetRef | None = None,
    preparation: Preparation = Preparation(),
) -> DatasetRef:
    """Turn raw files into a dataset of tokens and spans.

    Args:
        config: What to read and how.
        name: Prefix of the dataset's folder.
        what: What people call it, for the task run's name.
        tokenizer: A dataset whose tokenizer is used instead of the config's.
        preparation: Who reads and encodes; the dataset is the same.
    """
    folder, key = _output(config, name, tokenizer)
    resolved = _resolved(config, tokenizer)
    with recorded(key, f"tokenize {what} {name}") as run:
        run.write(Params(values=flatten(resolved)))
        make_room(folder, whole_dataset)
        with (
            live_progress(folder.name) as move,
            progress.reading(f"tokenize {what}", log, move) as shown,
        ):
            made = dataset.tokenize(
                resolved, folder, progress=shown, reuse=True, preparation=preparation
            )
        report_dataset(run, folder)
    return made


def _resolved(config: PrepareConfig, tokenizer: DatasetRef | None) -> PrepareConfig:
    update = {"tokenizer_from": tokenizer.path} if tokenizer else {}
    return config.model_copy(update=update)
