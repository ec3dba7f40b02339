"""Which checkpoints of a pipeline lie on disk, as MLflow's registry of models tells it."""

import json
import re
from typing import Any

from tasks.records import Checkpoint

CHAMPION = "champion"
"""Alias of the checkpoint that the gate promoted last."""


def register(client: Any, pipeline: str, run_id: str, record: Checkpoint, model: str) -> None:
    """List a checkpoint under its pipeline's name, and strike out those that are gone.

    Args:
        client: An ``MlflowClient``, which only tracking.py may import.
        pipeline: The pipeline's name.
        run_id: The run that wrote the checkpoint.
        record: The checkpoint.
        model: Id of its logged model.
    """
    name = re.sub(r"[/:']+", "-", pipeline)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description="Checkpoints that lie on disk.")
    known = client.search_model_versions(f"name = '{name}'")
    listed = None
    for version in (found for found in known if found.run_id == run_id):
        step, same = int(version.tags["step"]), version.tags["digest"] == record.digest
        if same:
            listed = version
        elif step == record.step or step not in record.kept:
            client.delete_model_version(name, version.version)
    facts = {"digest": record.digest, "path": record.path, "step": str(record.step)}
    listed = listed or client.create_model_version(
        name,
        client.get_logged_model(model).artifact_location,
        run_id,
        facts | {"time": str(record.time)},
        description=record.name,
        await_creation_for=0,
        model_id=model,
    )
    listing = json.dumps([{"name": name, "version": str(listed.version)}])
    client.set_logged_model_tags(model, {"mlflow.modelVersions": listing})
    times = {str(version.version): int(version.tags["time"]) for version in known}
    aliased = client.get_registered_model(name).aliases
    for alias in record.aliases:  # an old journal that is sent again moves none back
        if times.get(str(aliased.get(alias)), 0) <= record.time:
            client.set_registered_model_alias(name, alias, listed.version)


def crown(client: Any, digest: str) -> bool:
    """Give the alias ``champion`` to the checkpoint of this digest, and take it from others.

    Args:
        client: An ``MlflowClient``, which only tracking.py may import.
        digest: Of the checkpoint's lineage.

    Returns:
        Whether the registry lists that checkpoint.
    """
    listed = client.search_model_versions(f"tags.digest = '{digest}'")
    crowned = {version.name: version.version for version in listed}
    for model in client.search_registered_models():
        if model.name in crowned:
            client.set_registered_model_alias(model.name, CHAMPION, crowned[model.name])
        elif CHAMPION in model.aliases:
            client.delete_registered_model_alias(model.name, CHAMPION)
    return bool(crowned)
