"""What every optimizer step measured, to the last bit: by it two trainings are compared."""

from array import array
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mypt.errors import CheckpointError

HISTORY = "history.safetensors"


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
