"""A checkpoint that MLflow loads and asks (D85).

The ``MLmodel`` beside it names this module, and MLflow calls :func:`_load_pyfunc`; nothing is
unpickled.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mypt.errors import CheckpointError, DataError
from mypt.inference.server.choices import choices_of, completion, head_of, hold
from mypt.inference.server.protocol import ChatRequest, Refused, read_request
from mypt.training.checkpoints.checkpoint import load_model
from tasks.tracking.models import REFERENCE, holds_weights, read_reference


class ChatModel:
    """Answers chat-completion requests as ``mypt serve`` does, without streams."""

    def __init__(self, step: Path, digest: str | None = None) -> None:
        """Load a step folder.

        Args:
            step: The folder.
            digest: Of its lineage; None: any.

        Raises:
            CheckpointError: If it is damaged, or another than the digest says.
        """
        self._model, self._tokenizer, self._found = load_model(step)
        found = self._found.ref.digest
        if digest not in (None, found):
            raise CheckpointError(
                f"{step}: digest {found[:12]} found, {digest[:12]} expected; the checkpoint is not"
                " the one that MLflow lists"
            )

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
            asked = read_request(json.dumps(given, default=_plain).encode(), ChatRequest)
            if asked.stream:
                raise Refused(400, "stream: MLflow's pyfunc gives whole answers; leave it out")
            choices, left_out, work = choices_of(self._model, self._tokenizer, asked)
            if work is not None:
                hold(choices, work())
        except Refused as error:
            raise DataError(str(error)) from None
        for choice in choices:
            for _ in choice.reply:
                pass
        head = head_of(asked, self._found.ref.digest, int(time.time()), left_out)
        return completion(asked, choices, head)


def _load_pyfunc(path: str) -> ChatModel:
    """Return the model of a step folder, or of the one that a reference in it names.

    MLflow calls this by name.

    Raises:
        CheckpointError: If the weights are not there, damaged or not the ones referred to.
    """
    step = Path(path)
    if not (step / REFERENCE).is_file() or holds_weights(step):
        return ChatModel(step)
    named = read_reference(step)
    if not Path(named.path).is_dir():
        raise CheckpointError(
            f"{named.path}: not there; expected the checkpoint {named.digest[:12]} that MLflow"
            " lists; set MYPT_HOME to the home that holds it, or let a pipeline upload its weights"
            ' with "tracking": {"upload": "weights"}'
        )
    return ChatModel(Path(named.path), named.digest)


def _is_missing(value: object) -> bool:
    return value is None or value != value


def _plain(value: Any) -> Any:
    """Return an array or a number of numpy as JSON has it."""
    return value.tolist()
