"""What the training loop yields; whoever runs it decides what to do with them (law 10)."""

from dataclasses import dataclass

from mypt.references import CheckpointRef


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
