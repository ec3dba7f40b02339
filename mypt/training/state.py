"""What a training must remember from one step to the next besides weights and optimizer."""

from pathlib import Path

from pydantic import ValidationError

from mypt.errors import CheckpointError
from mypt.parsing import Frozen

STATE = "trainer_state.json"


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
        return TrainerState.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read: {reason}; use an earlier step") from None
