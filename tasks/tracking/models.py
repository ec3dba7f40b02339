"""Checkpoints as MLflow's models: folders that it loads, written without importing it (D85).

``mlflow models serve`` and ``mlflow.pyfunc.load_model`` read them, from ``mypt export MODEL --to
mlflow DIR`` and from the registry alike.
"""

import json
import platform
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from mypt import files
from mypt.references import CheckpointRef
from mypt.training.lineage import read_lineage
from tasks.tracking.records import CheckpointRecord

CHAMPION = "champion"
"""Alias of the checkpoint of a pipeline that the gate promoted last."""
REFERENCE = "reference.json"
"""In a folder without weights, says where they lie."""
MLMODEL = "MLmodel"
_LOADER = "tasks.pyfunc"
_STRING, _LONG, _DOUBLE = ({"type": name} for name in ("string", "long", "double"))
_TEXTS: Final = {"type": "array", "items": _STRING}
_MESSAGE: Final = {
    "type": "object",
    "properties": {
        "role": _STRING | {"required": True}, "content": _STRING | {"required": True},
    },
}  # fmt: skip
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "temperature": _DOUBLE, "top_p": _DOUBLE, "min_p": _DOUBLE, "repetition_penalty": _DOUBLE,
    "top_k": _LONG, "max_tokens": _LONG, "seed": _LONG, "n": _LONG, "stop": _TEXTS,
}  # fmt: skip
_USAGE: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_ANSWER: Final[dict[str, dict[str, Any]]] = {
    "id": _STRING, "object": _STRING, "created": _LONG, "model": _STRING,
    "choices": {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "index": _LONG | {"required": True},
                "message": _MESSAGE | {"required": True},
                "finish_reason": _STRING | {"required": True},
            },
        },
    },
    "usage": {
        "type": "object", "properties": {name: _LONG | {"required": True} for name in _USAGE}
    },
}  # fmt: skip


def export_mlflow(step: Path, out: Path, ref: CheckpointRef, name: str, *, weights: bool) -> None:
    """Write a folder that MLflow loads.

    Args:
        step: A step folder.
        out: The new folder.
        ref: What refers to the step folder.
        name: What people call the model.
        weights: Whether the whole checkpoint is in it, or its JSON files and a reference.

    Raises:
        FileExistsError: If ``out`` exists.
    """
    needs = [f"mypt=={metadata.version('mypt')}"]
    with files.new_folder(out) as new:
        inner = new / step.name
        if weights:
            shutil.copytree(step, inner)
        else:
            files.make_folder(inner)
            for path in step.glob("*.json"):
                shutil.copy(path, inner)
            files.write_json(inner / REFERENCE, ref.model_dump(mode="json"))
        files.write_bytes(new / "requirements.txt", "\n".join([*needs, ""]).encode())
        python = {
            "python": platform.python_version(), "dependencies": ["-r requirements.txt"],
        }  # fmt: skip
        files.write_json(new / "python_env.yaml", python)  # JSON is YAML
        files.write_json(new / MLMODEL, _mlmodel(ref.digest, name, step.name))


def holds_weights(step: Path) -> bool:
    """Return whether a step folder holds all files of its checkpoint."""
    return all((step / file.name).is_file() for file in read_lineage(step).files)


def read_reference(step: Path) -> CheckpointRef:
    """Return what a folder without weights refers to, where that lies now."""
    return CheckpointRef.model_validate_json((step / REFERENCE).read_bytes())


def _mlmodel(digest: str, name: str, data: str) -> dict[str, Any]:
    """Return what MLflow calls an ``MLmodel``."""
    inputs = [{"name": "messages", "required": True, "type": "array", "items": _MESSAGE}]
    inputs += [{"name": name, "required": False, **kind} for name, kind in _OPTIONS.items()]
    outputs = [{"name": name, "required": True, **kind} for name, kind in _ANSWER.items()]
    now = datetime.fromtimestamp(time.time(), UTC)
    return {
        "flavors": {
            "python_function": {
                "loader_module": _LOADER,
                "data": data,
                "env": {"virtualenv": "python_env.yaml"},
                "python_version": platform.python_version(),
            }
        },
        "mlflow_version": metadata.version("mlflow"),
        "model_uuid": secrets.token_hex(16),
        "utc_time_created": now.strftime("%Y-%m-%d %H:%M:%S.%f"),
        "metadata": {"digest": digest, "model": name},
        "signature": {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs), "params": None},
    }


def register(client: Any, pipeline: str, run_id: str, record: CheckpointRecord, model: str) -> None:
    """List a checkpoint under its pipeline's name, and strike out those that are gone.

    Args:
        client: An ``MlflowClient``.
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


def crown(client: Any, digests: Sequence[str]) -> set[str]:
    """Give the alias ``champion`` to the checkpoints of these digests, and take it from others.

    Args:
        client: An ``MlflowClient``.
        digests: Of the checkpoints' lineage; of two in one pipeline, the later has the alias.

    Returns:
        Those that the registry does not list.
    """
    crowned, missing = {}, set(digests)
    for digest in digests:
        for version in client.search_model_versions(f"tags.digest = '{digest}'"):
            crowned[version.name] = version.version
            missing.discard(digest)
    for model in client.search_registered_models():
        if model.name in crowned:
            client.set_registered_model_alias(model.name, CHAMPION, crowned[model.name])
        elif CHAMPION in model.aliases:
            client.delete_registered_model_alias(model.name, CHAMPION)
    return missing
