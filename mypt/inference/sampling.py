"""How the next token is chosen from what the model thinks of each."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mypt.parsing import Frozen

COLDEST = 1e-30
"""Lowest temperature that logits are divided by; below, the likeliest token is what is meant."""


class Sampling(Frozen):
    """What may be chosen, and the seed that decides among it."""

    temperature: float = Field(default=0.0, ge=0.0)
    """0 takes the likeliest token each time; 1 draws as the model believes."""
    top_k: int | None = Field(default=None, ge=1)
    """Draw among the k likeliest tokens."""
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    """Draw among the likeliest tokens that together reach this probability."""
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    """Draw among the tokens of at least this share of the likeliest one's probability."""
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100.0)
    """Divides the logits of tokens that stood there before, in the prompt or the answer; above 1
    they become less likely. Tokens that end an answer are left as they are."""
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Taken from the logit of each token that stands in the answer already."""
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Likewise, once for each time that it stands there."""
    logit_bias: dict[int, float] = Field(default_factory=dict)
    """What is added to the logits of these tokens."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the draws; a row of a batch draws as it would alone."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if 0 < self.temperature < COLDEST:
            raise ValueError(f"temperature {self.temperature} is below {COLDEST}; set 0")
        return self

    @property
    def bends(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        added = self.presence_penalty or self.frequency_penalty or self.logit_bias
        return bool(added) or self.repetition_penalty != 1


GREEDY = Sampling()


class Penalty:
    """Bends a row's logits by what stands in it already, and by the bias that was asked for.

    The repetition penalty counts the prompt too, and a token once; presence and frequency count
    what was written, as OpenAI's protocol has it.
    """

    def __init__(self, ids: Sequence[int], stop_ids: Sequence[int], sampling: Sampling) -> None:
        """Note what the row holds."""
        self._sampling, self._stops = sampling, frozenset(stop_ids)
        self._seen = set(ids) - self._stops
        self._written = Counter[int]()

    def apply(self, logits: Tensor) -> Tensor:
        """Return (V,) logits: positive ones of tokens seen divided, negative ones multiplied.

        Then presence and frequency penalties are taken off, and the bias is added.
        """
        sampling = self._sampling
        if sampling.repetition_penalty != 1:
            seen = torch.tensor(sorted(self._seen), dtype=torch.int64, device=logits.device)
            old, factor = logits[seen], sampling.repetition_penalty
            logits = logits.index_copy(0, seen, torch.where(old > 0, old / factor, old * factor))
        added = defaultdict(float, sampling.logit_bias)
        if sampling.presence_penalty or sampling.frequency_penalty:
            for token, times in self._written.items():
                added[token] -= sampling.presence_penalty + times * sampling.frequency_penalty
        where = torch.tensor([*added], dtype=torch.int64, device=logits.device)
        return logits.index_add(0, where, logits.new_tensor([*added.values()]))

    def add(self, token: int) -> None:
        """Note what was written."""
        self._seen |= {token} - self._stops
        self._written[token] += 1


class Sampler:
    """Chooses the tokens of one row, one after the other."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = torch.Generator().manual_seed(sampling.seed)

    def choose(self, logits: Tensor) -> int:
        """Return the next token.

        The temperature comes first, then top_k, top_p and min_p, each on what the one before
        it left, made to add up to 1 again; the likeliest token always stays.

        Args:
            logits: (V,), any float dtype, any device.
        """
        sampling = self._sampling
        if sampling.temperature == 0:
            return int(logits.argmax())
        ordered, ids = torch.sort(logits.float().cpu(), descending=True, stable=True)
        likely = torch.softmax((ordered - ordered[0]) / sampling.temperature, dim=0)
        likely = likely[: sampling.top_k]
        if sampling.top_p is not None:
            likely = likely / likely.sum()
            enough = likely.cumsum(0) - likely < sampling.top_p
            enough[0] = True  # in float32 the smallest top_p is no more than 0
            likely = likely[enough]
        if sampling.min_p is not None:
            likely = likely[likely >= sampling.min_p * likely[0]]
        return int(ids[torch.multinomial(likely, 1, generator=self._random)])
