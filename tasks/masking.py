"""Prefect task that decides which tokens are supervised."""

from mypt.config import MaskPolicy
from mypt.data import dataset as datasets
from mypt.data import mask_files
from mypt.data.dataset import masked_recipe
from mypt.data.policies import policy_words
from mypt.home import datasets_dir
from mypt.references import DatasetRef
from tasks.assets import dataset_asset, materialized
from tasks.keys import stage_key
from tasks.reporting.datasets import report_masks
from tasks.reporting.inputs import dataset_input
from tasks.stages import DATASET_MADE, Output, announce, make_room, stage, whole_dataset
from tasks.tracking.recording import recorded
from tasks.tracking.records import Params


@stage("mask {what} {name}", whole_dataset)
def mask(dataset: DatasetRef, policy: MaskPolicy, name: str, what: str) -> Output[DatasetRef]:
    """Write the loss masks of a dataset under a policy, in a new dataset.

    Args:
        dataset: Tokens and spans.
        policy: Whose tokens are supervised.
        name: Prefix of the new dataset's folder.
        what: What people call it, for the task run's name.
    """
    decided = stage_key(mask_files, masked_recipe(dataset.digest, policy))
    folder = datasets_dir() / f"{name}-{decided}"
    key = f"mask-{folder.name}"

    def make() -> DatasetRef:
        with recorded(key, f"mask {what} {name}") as run:
            run.write(Params(values={"policy": policy_words(policy)}))
            run.write(dataset_input(dataset, "mask"))
            make_room(folder, whole_dataset)
            masked = datasets.mask(dataset.path, policy, folder, digest=dataset.digest, reuse=True)
            report_masks(run, folder)
        facts = {"digest": masked.digest, "path": masked.path, "policy": policy_words(policy)}
        announce(DATASET_MADE, folder.name, parent=dataset.digest, **facts)
        materialized(dataset_asset(masked), [dataset_asset(dataset)], **facts)
        return masked

    return Output(folder, key, make)
