"""How likely a model holds the tokens that stand in a text, and which it holds likelier.

That is what the model itself believes: before temperature, penalties, bias and whatever else
decides what it writes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mypt.model.gpt import GPT

_AT_ONCE = 2**24
"""Logits that are held at once."""


class Likelihood(NamedTuple):
    """One token of a text."""

    token: int
    logprob: float | None
    """None of a text's first token, before which nothing stands."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at its place and their log-probabilities, the likeliest first."""


def likelihood(
    logits: Tensor, tokens: Sequence[int], top: int, known: Tensor | None = None
) -> list[Likelihood]:
    """Return how likely tokens are by the logits at their places.

    Likelihoods are over all ids, and those of ids that are no token are part of the whole; they
    are only never told.

    Args:
        logits: (N, V), any float dtype.
        tokens: N of them.
        top: How many of the likeliest are told beside each.
        known: (V,) bool, ids that stand for a token; None: all.
    """
    sure = torch.log_softmax(logits.float(), dim=-1)
    own = sure.gather(1, torch.tensor(tokens, device=sure.device)[:, None])[:, 0].tolist()
    told = sure if known is None else sure.masked_fill(~known, -torch.inf)
    values, ids = told.topk(min(top, sure.shape[1]), dim=-1)
    ranked = (zip(*pair, strict=True) for pair in zip(ids.tolist(), values.tolist(), strict=True))
    likeliest = [tuple(one for one in pairs if one[1] > -torch.inf) for pairs in ranked]
    return [Likelihood(*one) for one in zip(tokens, own, likeliest, strict=True)]


@torch.no_grad()
def prompt_likelihood(
    model: GPT, ids: Sequence[int], top: int, known: Tensor | None = None
) -> list[Likelihood]:
    """Return how likely each token of a text is behind those before it.

    Args:
        model: On any device, answering (no dropout).
        ids: At most what the model's longest context holds.
        top: As for :func:`likelihood`, as is ``known``.
        known: Likewise.
    """
    found = [Likelihood(ids[0], None)]
    if len(ids) == 1:
        return found
    weight, rows = model.lm_head.weight, max(1, _AT_ONCE // model.config.vocab_size)
    low = weight.dtype == torch.bfloat16  # beside norms in float32
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=low):
        states = model.hidden(torch.tensor([ids[:-1]], device=weight.device))[0]
        for start in range(0, len(states), rows):
            part = states[start : start + rows]
            behind = ids[start + 1 : start + 1 + len(part)]
            found += likelihood(model.lm_head(part), behind, top, known)
    return found
