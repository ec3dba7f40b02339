"""Cross-entropy over the tokens that the model is asked to learn, and over no other."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100
"""A target that other libraries write for "not supervised"; it is neither learned nor counted."""


class MaskedLoss(NamedTuple):
    """A loss that is not averaged yet (law 3).

    One optimizer step is made of several micro-batches with different numbers of supervised
    tokens; the mean of their means would weigh a token in a sparse one more than a token in a
    dense one, so the division waits until the step is whole.
    """

    total: Tensor
    """Summed loss in nats, each token's times its weight, shape (): float32, or float64 for float64
    input. 0 where no token is supervised."""
    weight: Tensor
    """How many supervised tokens ``total`` sums over, int64; or the sum of their weights."""
    terms: Tensor | None = None
    """(N,) what each of them adds to ``total``, without a gradient; :meth:`GPT.loss` tells."""

    @property
    def mean(self) -> Tensor:
        """Nats per supervised token; nan where none is supervised, for there is no mean."""
        return self.total / self.weight


def masked_cross_entropy(
    logits: Tensor, targets: Tensor, loss_mask: Tensor | None = None
) -> MaskedLoss:
    """Sum the next-token loss over the positions that ``loss_mask`` selects.

    B rows, T positions, V vocabulary entries.

    Args:
        logits: (B, T, V), any float dtype; the loss itself is computed in float32 or better.
        targets: (B, T) int64; ``targets[b, t]`` is the token that follows input t.
        loss_mask: (B, T) of 0 and 1, or floats: how much each token weighs. Aligned with
            ``targets``, not with the inputs. None supervises every position, as pretraining does.

    Raises:
        ValueError: If the shapes do not agree or the mask holds another value.
    """
    index = supervised_positions(targets, loss_mask)
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} does not fit targets {tuple(targets.shape)}"
        )
    chosen = logits.flatten(0, -2).index_select(0, index)
    precise = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    weights, here = weights_at(loss_mask, index), targets.flatten()[index]
    if weights is None:
        return sums(F.cross_entropy(precise, here, reduction="sum"), index, None)
    terms = F.cross_entropy(precise, here, reduction="none")
    return sums((weights * terms).sum(), index, weights)


def supervised_positions(targets: Tensor, loss_mask: Tensor | None) -> Tensor:
    """Return (N,) int64: the supervised positions of the flattened (B, T) batch, ascending.

    Raises:
        ValueError: If the mask has another shape, or holds integers other than 0 and 1 or a
            weight that is negative or not finite.
    """
    supervised = targets != IGNORE_INDEX
    if loss_mask is not None:
        if loss_mask.shape != targets.shape:
            raise ValueError(
                f"loss_mask {tuple(loss_mask.shape)} does not fit targets {tuple(targets.shape)}"
            )
        if loss_mask.is_floating_point():
            if not ((loss_mask >= 0) & loss_mask.isfinite()).all():
                raise ValueError("loss_mask holds weights that are negative or not finite")
        elif loss_mask.dtype != torch.bool and ((loss_mask != 0) & (loss_mask != 1)).any():
            raise ValueError("loss_mask holds integers other than 0 and 1; weights are floats")
        supervised = supervised & loss_mask.bool()
    return supervised.flatten().nonzero().squeeze(1)


def weights_at(loss_mask: Tensor | None, index: Tensor) -> Tensor | None:
    """Return (N,) how much the targets at ``index`` weigh; None where the mask has no weights."""
    if loss_mask is None or not loss_mask.is_floating_point():
        return None
    return loss_mask.flatten()[index]


def sums(total: Tensor, index: Tensor, weights: Tensor | None) -> MaskedLoss:
    """Return a sum over the targets at ``index`` with what it is to be divided by."""
    if weights is None:
        return MaskedLoss(total, index.new_full((), index.numel()))
    return MaskedLoss(total, weights.sum(dtype=torch.promote_types(weights.dtype, total.dtype)))
