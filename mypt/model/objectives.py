"""Objectives: what a supervised token adds to the loss, beside its negative log-likelihood.

With p the model's probabilities at one position, y the target, w its weight, sg(.) what no gradient
flows through, and Z the sum of the exponentials of the logits, a token adds

    w * (f * -log p_y  +  z_loss * (log Z)^2  +  kl_base * KL(q || p))

where f is

- ``nll``: 1, the plain negative log-likelihood;
- ``dft``: sg(p_y). Wu et al. 2025, "On the Generalization of SFT", arXiv 2508.05629, equation 9;
- ``eaft``: sg(H(p_20) / ln 20), p_20 being the 20 largest probabilities made to sum to 1, and H
  their entropy. "Entropy-Adaptive Fine-Tuning", arXiv 2601.02151;

and ``z_loss`` is that of Chowdhery et al. 2022, "PaLM", arXiv 2204.02311, section 5 (there 1e-4);
``kl_base`` holds the model to the probabilities q of its base, as in "Anchored Supervised
Fine-Tuning", arXiv 2509.23753, which adds it to ``dft``.
"""

import math
from typing import Final, Literal, NamedTuple

from torch import Tensor

from mypt.config import TrainConfig

TOP: Final = 20
"""How many of the largest probabilities ``eaft`` looks at."""


class Objective(NamedTuple):
    """Which objective a training has; those of pairs stand in :mod:`mypt.model.preference`."""

    name: Literal["nll", "dft", "eaft", "dpo", "ipo", "simpo"] = "nll"
    z_loss: float = 0.0
    kl_base: float = 0.0
    beta: float = 0.1
    label_smoothing: float = 0.0
    gamma: float = 0.5

    @classmethod
    def of(cls, config: TrainConfig) -> "Objective":
        """Return that of a training."""
        return cls(config.objective, *(getattr(config, name) for name in cls._fields[1:]))

    @property
    def of_pairs(self) -> bool:
        """Whether it compares the sides of preference pairs."""
        return self.name in ("dpo", "ipo", "simpo")


NLL: Final = Objective()


class Terms(NamedTuple):
    """What the softmax knows of each row of logits, (n, 1) and float32 or better."""

    nats: Tensor
    """The negative log-likelihood of the target."""
    divisor: Tensor
    """By which the exponentials are to be divided to be probabilities."""
    slope: Tensor
    """Of the nats at the target's logit: its probability less 1."""
    log_z: Tensor
    """Logarithm of the sum of all exponentials."""
    entropy: Tensor
    """Of the largest probabilities, between 0 and 1, where the objective asks for it."""


def top_entropy(logits: Tensor) -> Tensor:
    """Return (n, 1): the entropy of each row's :data:`TOP` largest probabilities, over its most.

    Args:
        logits: (n, V), less any number a row.
    """
    k = min(TOP, logits.shape[1])
    log_p = logits.topk(k, dim=1, sorted=False).values.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1, keepdim=True) / math.log(max(k, 2))


def weigh(objective: Objective, found: Terms, weights: Tensor | None) -> Terms:
    """Return each row's share of the loss, and divisor and slope of its gradient.

    The gradient at a logit j is p_j times a number a row, less another at the target alone: so
    weights and objectives change what the exponentials are divided by, and the target's slope.

    Args:
        objective: All of it but ``kl_base``.
        found: Of the plain negative log-likelihood.
        weights: (n, 1), or None where each is 1.
    """
    nats, divisor, slope, log_z, entropy = found
    pull = 1.0 if weights is None else weights
    if objective.name != "nll":
        pull = pull * ((-nats).exp() if objective.name == "dft" else entropy)
    loss, slope_now = pull * nats, pull * slope
    if objective.z_loss:
        z = objective.z_loss if weights is None else objective.z_loss * weights
        loss, slope_now = loss + z * log_z.square(), slope_now + 2 * z * log_z * (1 + slope)
        pull = pull + 2 * z * log_z
    return Terms(loss, divisor / pull, slope_now, log_z, entropy)


class Anchor(NamedTuple):
    """The base's probabilities at the positions of some rows, and how far the model is."""

    q: Tensor
    """(n, V) probabilities."""
    gap: Tensor
    """(n, 1): KL(q || p), less the model's own log Z."""


def anchor(logits: Tensor, base_logits: Tensor) -> Anchor:
    """Return the base's probabilities beside a model's (n, V) logits, which are not changed."""
    log_z = base_logits.logsumexp(1, keepdim=True)
    q = (base_logits - log_z).exp_()
    return Anchor(q, (q * (base_logits - logits)).sum(1, keepdim=True) - log_z)


def hold(
    beta: Tensor, to: Anchor, exponentials: Tensor, targets: Tensor, plain: Terms, found: Terms
) -> Terms:
    """Add ``beta`` times KL(q || p) to what :func:`weigh` found; (n, 1) all.

    The exponentials are overwritten by the gradient at every logit but the target's.
    """
    p_y, q_y = 1 + plain.slope, to.q.gather(1, targets)
    to.q.scatter_(1, targets, 0.0)
    pull = 1 / found.divisor + beta / plain.divisor
    exponentials.copy_(exponentials * pull - beta * to.q)
    return found._replace(
        nats=found.nats + beta * (to.gap + plain.log_z),
        divisor=pull.new_ones(()).expand_as(pull),
        slope=found.slope + beta * (p_y - q_y),
    )
