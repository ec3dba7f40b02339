"""The loss over supervised tokens of a validation split, each token weighing the same."""

import math
from dataclasses import dataclass

from mypt.data.dataset import Dataset
from mypt.evaluation.token_scores import score_tokens
from mypt.model.gpt import GPT


@dataclass(frozen=True, slots=True)
class SplitLoss:
    """A summed loss and what it sums over; the division comes last (law 3)."""

    total: float
    """Nats."""
    supervised: int
    """Supervised tokens that were scored."""
    available: int
    """Supervised tokens of the split; more than were scored where only some batches were asked
    for, or turns are longer than the model's block."""

    @property
    def mean(self) -> float:
        """Nats per supervised token."""
        return self.total / self.supervised

    @property
    def perplexity(self) -> float:
        """Between how many equally likely tokens the model hesitates: e to the mean."""
        return math.exp(self.mean)


def validation_loss(model: GPT, dataset: Dataset, *, max_batches: int = 0) -> SplitLoss:
    """Return the loss of :func:`mypt.evaluation.token_scores.score_tokens`, summed.

    Raises:
        DataError: If the split is empty or supervises nothing.
        MaskError: If some masks are missing.
    """
    scores = score_tokens(model, dataset, max_batches=max_batches)
    return SplitLoss(float(scores.loss.sum(dtype="float64")), len(scores.loss), scores.available)
