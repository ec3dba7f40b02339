"""A checkpoint as a model of MLflow's, written and loaded without importing it (D85).

``mypt export MODEL --to mlflow DIR`` writes a folder that ``mlflow models serve`` and
``mlflow.pyfunc.load_model`` read. ``MLmodel`` names this module, and MLflow calls
:func:`_load_pyfunc`; nothing is unpickled.
"""

import json
import platform
import secrets
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from mypt import files
from mypt.errors import DataError
from mypt.inference.server.answering import head_of, reply_to
from mypt.inference.server.protocol import Refused, completion, read_request
from mypt.training.checkpoints.checkpoint import Checkpoint, load_model

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


class ChatModel:
    """Answers chat-completion requests as ``mypt serve`` does, without streams."""

    def __init__(self, step: Path) -> None:
        """Load a step folder.

        Raises:
            CheckpointError: If it is damaged.
        """
        self._model, self._tokenizer, self._found = load_model(step)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Return the answer to one request, or a list of the answers to several.

        Args:
            model_input: A request, a list of them, or a data frame with a row for each.
            params: Fields for all of them, such as temperature.

        Raises:
            DataError: If one cannot be answered.
        """
        if hasattr(model_input, "to_dict"):  # a data frame, which only MLflow and its users know
            model_input = model_input.to_dict("records")
        rows = [model_input] if isinstance(model_input, Mapping) else list(model_input)
        answers = [self._answer({**row, **(params or {})}) for row in rows]
        return answers[0] if len(answers) == 1 else answers

    def _answer(self, fields: dict[str, Any]) -> Any:
        given = {key: value for key, value in fields.items() if not _is_missing(value)}
        given.setdefault("model", self._found.lineage.model_name)
        try:
            asked = read_request(json.dumps(given, default=_plain).encode())
            if asked.stream:
                raise Refused(400, "stream: MLflow's pyfunc gives whole answers; leave it out")
            reply, left_out = reply_to(self._model, self._tokenizer, asked)
        except Refused as error:
            raise DataError(str(error)) from None
        head = head_of(self._found.ref.digest, int(time.time()), left_out)
        return completion(asked, reply, "".join(reply), head)


def export_mlflow(found: Checkpoint, out: Path) -> None:
    """Write a folder with a whole checkpoint in it, and what MLflow reads beside it.

    Raises:
        FileExistsError: If ``out`` exists.
    """
    step = found.path.name
    needs = [f"mypt=={version('mypt')}"]
    with files.new_folder(out) as new:
        shutil.copytree(found.path, new / step)
        files.write_bytes(new / "requirements.txt", "\n".join([*needs, ""]).encode())
        python = {
            "python": platform.python_version(), "dependencies": ["-r requirements.txt"],
        }  # fmt: skip
        files.write_json(new / "python_env.yaml", python)  # JSON is YAML
        files.write_json(new / "MLmodel", _mlmodel(found, step))


def _mlmodel(found: Checkpoint, data: str) -> dict[str, Any]:
    """Return what MLflow calls an ``MLmodel``."""
    inputs = [{"name": "messages", "required": True, "type": "array", "items": _MESSAGE}]
    inputs += [{"name": name, "required": False, **kind} for name, kind in _OPTIONS.items()]
    outputs = [{"name": name, "required": True, **kind} for name, kind in _ANSWER.items()]
    now = datetime.fromtimestamp(time.time(), UTC)
    return {
        "flavors": {
            "python_function": {
                "loader_module": __name__,
                "data": data,
                "env": {"virtualenv": "python_env.yaml"},
                "python_version": platform.python_version(),
            }
        },
        "mlflow_version": version("mlflow"),
        "model_uuid": secrets.token_hex(16),
        "utc_time_created": now.strftime("%Y-%m-%d %H:%M:%S.%f"),
        "metadata": {"digest": found.ref.digest, "model": found.lineage.model_name},
        "signature": {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs), "params": None},
    }


def _load_pyfunc(path: str) -> ChatModel:
    """Return the model of a step folder; MLflow calls this by name."""
    return ChatModel(Path(path))


def _is_missing(value: object) -> bool:
    return value is None or value != value


def _plain(value: Any) -> Any:
    """Return an array or a number of numpy as JSON has it."""
    return value.tolist()
