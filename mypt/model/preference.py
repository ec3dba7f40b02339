"""Preference objectives: how much more likely than its rejected side a chosen one is to be.

With s the sum of log-probabilities that the model gives a side's supervised tokens, n how many they
are, r the same sum of the reference (the base model, of which no gradient flows; 0 without one),
and + the chosen side, - the rejected, a pair adds

- ``dpo``: -(1 - e) log sigmoid(h) - e log sigmoid(-h), with h = beta ((s+ - r+) - (s- - r-)).
  Rafailov et al. 2023, "Direct Preference Optimization", arXiv 2305.18290, equation 7; e is
  ``label_smoothing``, the share of labels taken to be wrong: Mitchell 2023, "A note on DPO with
  noisy preferences & relationship to IPO" (conservative DPO), equation 3;
- ``ipo``: (h - 1 / (2 beta))^2, with h = (s+ - r+) / n+ - (s- - r-) / n-. Azar et al. 2023, "A
  General Theoretical Paradigm to Understand Learning from Human Preferences", arXiv 2310.12036,
  equation 17, tau being beta here; by the mean over tokens rather than their sum, as TRL has it
  from the paper's authors;
- ``simpo``: as ``dpo``, with h = beta (s+ / n+ - s- / n-) - gamma. Meng et al. 2024, "SimPO",
  arXiv 2405.14734, equation 6; it has no reference.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mypt.model.linear_loss import TiedGradient, linear_cross_entropy, token_nats
from mypt.model.lora import TokenRows
from mypt.model.loss import MaskedLoss
from mypt.model.objectives import Objective


class Sides(NamedTuple):
    """The sides of preference pairs, (P, 2) each: the chosen first, the rejected second.

    P is as many as fit a batch: places without a pair have 0 tokens.
    """

    log_p: Tensor
    """Summed log-probabilities of a side's supervised tokens."""
    n_tokens: Tensor
    """How many they are, int64."""


def number_sides(segments: Tensor, index: Tensor) -> Tensor:
    """Return (N,) int64: which side of which pair each supervised token belongs to.

    Sides are numbered along the batch, those of pair p being 2p and 2p + 1.

    Args:
        segments: (B, T); a row's pieces stand in twos, as packed pairs do.
        index: (N,) places of the flattened (B, T).
    """
    return index // segments.shape[1] * _sides_a_row(segments) + segments.flatten()[index]


def count_pairs(segments: Tensor | None) -> int:
    """Return how many pairs a packed batch of (B, T) segments holds; on the host."""
    assert segments is not None, "a config of pairs is packed"
    return int((segments.amax(1) + 1).sum().item()) // 2


def sum_sides(nats: Tensor, sides: Tensor, segments: Tensor) -> Sides:
    """Add up the tokens of each side, in their order.

    Args:
        nats: (N,) negative log-likelihoods.
        sides: (N,) what :func:`number_sides` says of them.
        segments: (B, T).
    """
    size = len(segments) * _sides_a_row(segments)
    total = nats.new_zeros(size).index_add(0, sides, -nats)
    count = sides.new_zeros(size).index_add(0, sides, torch.ones_like(sides))
    return Sides(total.reshape(-1, 2), count.reshape(-1, 2))


def pair_losses(model: Sides, reference: Tensor | None, objective: Objective) -> Tensor:
    """Return (P,): what each pair adds to the loss; 0 where there is no pair.

    Args:
        model: What the model gives.
        reference: (P, 2), the reference's ``log_p``; None is 0.
        objective: One of this page.
    """
    there = (model.n_tokens > 0).all(1)
    scores = model.log_p if reference is None else model.log_p - reference
    if objective.name != "dpo":
        scores = scores / model.n_tokens.clamp(min=1)
    gap = scores[:, 0] - scores[:, 1]
    if objective.name == "ipo":
        losses = (gap - 1 / (2 * objective.beta)).square()
    else:
        odds = objective.beta * gap - (objective.gamma if objective.name == "simpo" else 0.0)
        wrong = objective.label_smoothing
        losses = -(1 - wrong) * F.logsigmoid(odds) - wrong * F.logsigmoid(-odds)
    return torch.where(there, losses, 0.0)


def preference_loss(
    rows: Tensor,
    weight: Tensor,
    targets: Tensor,
    softcap: float | None,
    segments: Tensor | None,
    index: Tensor,
    objective: Objective,
    reference: tuple[Tensor, Tensor] | None = None,
    shared: TiedGradient | None = None,
    few: TokenRows | None = None,
) -> MaskedLoss:
    """Return the summed loss of a batch's pairs, and how many they are; no logits are kept.

    Its ``terms`` are plain nats of the supervised tokens, which do not add up to it.

    What a token's loss is to be multiplied by follows from the whole of its side. So the head is
    passed twice: without gradients for the sums, then with each token weighed by the slope of the
    loss at its own nats.

    Args:
        rows: (N, C) states at the supervised positions.
        weight: (V, C), the rows of the output embedding.
        targets: (N,) int64.
        softcap: As for :func:`~mypt.model.linear_loss.linear_cross_entropy`, the reference's too.
        segments: (B, T); a row's pieces stand in twos, as packed pairs do.
        index: (N,) places of the targets in the flattened (B, T).
        objective: One of this page.
        reference: States and head of the reference, where the objective has one.
        shared: As for :func:`~mypt.model.linear_loss.linear_cross_entropy`.
        few: Likewise.

    Raises:
        ValueError: If there are no segments.
    """
    if segments is None:
        raise ValueError(f"{objective.name} without segments, which say what stands beside what")
    learns, sides = torch.is_grad_enabled(), number_sides(segments, index)
    held = None
    if reference is not None:
        held = sum_sides(token_nats(*reference, targets, softcap), sides, segments).log_p
    nats = token_nats(rows, weight, targets, softcap, few).requires_grad_(learns)
    model = sum_sides(nats, sides, segments)
    total = pair_losses(model, held, objective).sum()
    n_pairs = (model.n_tokens > 0).all(1).sum()
    if not learns:
        return MaskedLoss(total, n_pairs, nats)
    (slopes,) = torch.autograd.grad(total, nats)
    surrogate = linear_cross_entropy(
        rows, weight, targets, softcap, shared=shared, weights=slopes, few=few
    )
    same = surrogate - surrogate.detach()
    return MaskedLoss(total.detach() + same, n_pairs, nats.detach())


def _sides_a_row(segments: Tensor) -> int:
    """Return a number of sides that no row has more of, even, without asking a device."""
    return segments.shape[1] + segments.shape[1] % 2
