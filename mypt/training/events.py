"""What the training loop yields; whoever runs it decides what to do with them (law 10).

As lines they are how the processes that train speak to the one that started them.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from mypt import errors
from mypt.references import CheckpointRef
from mypt.training.batches.groups import Groups


@dataclass(frozen=True, slots=True)
class Started:
    """Training is about to begin or to go on."""

    model_name: str
    step: int
    """Steps already done; above 0 when a run goes on."""
    max_iters: int
    n_parameters: int
    device: str
    dtype: str
    tokens_per_step: int
    policy: str
    """Whose tokens are learned, in words."""
    inherited: tuple[str, ...] = ()
    """What came from the base model and what the preset changed, a line each."""
    notes: tuple[str, ...] = ()
    """What else the user should know, a line each: a damaged checkpoint that was passed over, a
    resume on another device or thread count, a missing validation split."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Nats per supervised token over the whole step; nan if none was supervised."""
    learning_rate: float
    grad_norm: float
    tokens: int
    """Tokens the step read."""
    supervised: int
    """Tokens the step learned from; 0 means that weights and optimizer were left alone."""
    seconds: float


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Masked losses on both splits, in nats per supervised token."""

    step: int
    train_loss: float
    val_loss: float
    best: bool
    """Whether this is the lowest validation loss of a trained step so far; the evaluation before
    the first step is a baseline and never the best."""
    learned: Groups = field(default_factory=dict)
    """The losses of the steps since the last evaluation, by source, class and role: what was
    learned by, with its weights."""
    val: Groups = field(default_factory=dict)
    """``val_loss`` by source, class and role."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the model answers to one of the configured prompts."""

    step: int
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """A complete checkpoint lies on disk."""

    step: int
    checkpoint: CheckpointRef


@dataclass(frozen=True, slots=True)
class Finished:
    """Training ended, now or in an earlier run of the same name."""

    step: int
    reason: str
    """``max_iters``, ``early stop``, ``stopped`` (asked to, and goes on when run again) or
    ``already finished``."""
    checkpoint: CheckpointRef
    """The checkpoint to use: the best by validation loss, else the last."""


Event = Started | StepReport | EvalReport | Sample | CheckpointSaved | Finished


@dataclass(frozen=True, slots=True)
class Failed:
    """A process ended with an error that another start would only repeat."""

    kind: str
    """Name of the class in :mod:`mypt.errors`."""
    text: str

    def error(self) -> errors.MyptError:
        """Return the error as it was raised."""
        kind: type[errors.MyptError] = getattr(errors, self.kind, errors.TrainingError)
        return kind(self.text)


def to_line(said: Event | Failed) -> str:
    """Return an event as one line; floats come back to the bit, nan too."""
    name = type(said).__name__
    return json.dumps({"event": name} | _form(name).dump_python(said))


def from_line(line: str) -> Event | Failed | None:
    """Return what :func:`to_line` was given; None for half a line, of a process that was killed."""
    try:
        values = json.loads(line)
        name = values.pop("event")
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    said: Event | Failed = _form(name).validate_python(values)
    return said


@cache
def _form(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(Failed if name == Failed.__name__ else globals()[name])
