"""What a training must remember from one step to the next besides weights and optimizer.

What every step measured is kept to the last bit: by it two trainings are compared.
"""

from array import array
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mypt import files
from mypt.config import later
from mypt.errors import CheckpointError
from mypt.parsing import Frozen

STATE = "trainer_state.json"
HISTORY = "history.safetensors"


class TrainerState(Frozen):
    """All that the next step depends on besides weights and optimizer (DESIGN.md D13)."""

    step: int = 0
    """Steps done."""
    tokens: int = 0
    """Tokens read."""
    supervised: int = 0
    """Tokens learned from."""
    empty_steps: int = 0
    """Steps that supervised no token and so changed nothing."""
    best_step: int | None = None
    """Step of the lowest validation loss."""
    best_val_loss: float | None = None
    """That loss, in nats per supervised token."""
    evals_since_best: int = 0
    """Evaluations without a better one."""
    train_loss: float | None = None
    """Of the last evaluation, on rows of the training split; None before it."""
    val_loss: float | None = None
    """Of the last evaluation; None before it, or where there is no validation split."""
    learned: tuple[tuple[float, ...], ...] = later(())
    """Losses and weights of the steps since the last evaluation, by source, class and role."""
    finished: str | None = None
    """Why training ended; None while it goes on."""
    mlflow_run_id: str | None = None
    """MLflow run that the metrics went to."""


def read_state(folder: Path) -> TrainerState:
    """Read the state in a step folder.

    Raises:
        CheckpointError: If it is missing or not what mypt writes.
    """
    path = folder / STATE
    try:
        return TrainerState.model_validate_json(files.read_bytes(path))
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read: {reason}; use an earlier step") from None


class History(NamedTuple):
    """One figure a step, the first step first; sixteen bytes a step in all."""

    loss: "array[float]"
    """Nats per supervised token; nan where none was supervised, or where nobody recorded it."""
    grad_norm: "array[float]"
    """Before clipping; nan where nobody recorded it."""

    @classmethod
    def unknown(cls, steps: int) -> Self:
        """Return the history of steps that nobody recorded; none at all for 0."""
        return cls(array("d", [np.nan]) * steps, array("d", [np.nan]) * steps)

    def add(self, loss: float, grad_norm: float) -> None:
        """Note one more step."""
        self.loss.append(loss)
        self.grad_norm.append(grad_norm)

    def copy(self) -> Self:
        """Return a copy that does not grow with this one."""
        return self._replace(loss=self.loss[:], grad_norm=self.grad_norm[:])


def write_history(path: Path, history: History) -> None:
    """Write a history as two tensors of float64."""
    save_file({name: np.array(values) for name, values in history._asdict().items()}, path)


def read_history(folder: Path, steps: int) -> History:
    """Read the history of a checkpoint.

    Args:
        folder: The step folder.
        steps: How many steps it has; where an older mypt wrote it, all of them are unknown.

    Raises:
        CheckpointError: If it is damaged or of another length.
    """
    path = folder / HISTORY
    if not path.exists():
        return History.unknown(steps)
    try:
        found = load_file(path)
        history = History(*(array("d", found[name].tobytes()) for name in History._fields))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read: {reason}; use an earlier step") from None
    lengths = [len(values) for values in history]
    if lengths != [steps] * len(lengths):
        raise CheckpointError(
            f"{path}: {lengths[0]} steps found, {steps} expected; use an earlier step"
        )
    return history
