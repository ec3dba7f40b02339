"""Datasets, masks, models, evaluations and champions as Prefect's assets: what was made of what.

An asset keeps its key while what it is changes, so the key is a name without its content key, and
a materialization carries the digest. Keys hang on what is made, and so are not known where a task
is declared, as Prefect's decorator wants them; its events are sent by hand.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from prefect.assets import Asset
from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import emit_event

from mypt.data.manifest import read_manifest
from mypt.references import CheckpointRef, DatasetRef
from tasks.keys import KEY_DIGITS

MATERIALIZED, REFERENCED = "prefect.asset.materialization.succeeded", "prefect.asset.referenced"
_BY = "mypt"
_CONTENT_KEY = re.compile(f"-[0-9a-f]{{{KEY_DIGITS}}}$")


def asset(kind: str, name: str) -> Asset:
    """Return what a folder holds, whatever its content key, such as ``mypt://models/demo-chat``."""
    return Asset(key=f"mypt://{kind}/{_CONTENT_KEY.sub('', name)}")


def dataset_asset(dataset: DatasetRef) -> Asset:
    """Return the asset of a dataset; one with masks is another than the tokens that it shares."""
    folder = Path(dataset.path)
    masked = read_manifest(folder, dataset.digest).mask is not None
    return asset("masks" if masked else "datasets", folder.name)


def model_asset(checkpoint: CheckpointRef) -> Asset:
    """Return the asset of a model, of which a checkpoint is one materialization."""
    return asset("models", Path(checkpoint.path).parent.name)


def materialized(made: Asset, upstream: Iterable[Asset] = (), **facts: object) -> None:
    """Tell Prefect that an asset was made, and of which others; outside of a run, nobody.

    Args:
        made: What was made; what is found again is not told.
        upstream: What it was made of.
        facts: Metadata of this materialization, such as its digest.
    """
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        return
    upstream = tuple(upstream)
    for one in upstream:
        emit_event(REFERENCED, {"prefect.resource.id": one.key})
    related = [
        {"prefect.resource.id": one.key, "prefect.resource.role": "asset"} for one in upstream
    ]
    related.append({"prefect.resource.id": _BY, "prefect.resource.role": "asset-materialized-by"})
    name = made.key.rpartition("/")[2]
    resource = {"prefect.resource.id": made.key, "prefect.resource.name": name}
    emit_event(MATERIALIZED, resource, related=related, payload=facts)
