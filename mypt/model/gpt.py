"""The GPT in training and in generation: the seed's GPT-2, or the modern parts a config names."""

import math
from functools import partial
from typing import Self, cast

import torch
from torch import Tensor, nn

from mypt.config import GPTConfig
from mypt.model.attention import Attend, attend, attend_at, restart_positions, separate_blocks
from mypt.model.cache import KVCache, Turned
from mypt.model.linear_loss import TiedGradient, linear_cross_entropy
from mypt.model.lora import TokenRows
from mypt.model.loss import MaskedLoss, masked_cross_entropy, sums, supervised_positions, weights_at
from mypt.model.objectives import NLL, Objective
from mypt.model.preference import preference_loss
from mypt.model.transformer import Head, Transformer, Wanted

INIT_STD = 0.02  # Radford et al. 2019, section 2.3, as is the scaling of residual projections


class GPT(nn.Module):
    """A decoder-only transformer.

    B rows, T positions, C = n_embd, V = vocab_size throughout. Weights are drawn from torch's
    global generator: seed it before.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = Head(config)
        self._turned = Turned()
        if config.tie_weights:
            self.lm_head.weight = self.transformer.wte.weight
        self._initialise()

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        loss_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits of every position and the mean loss over supervised targets.

        Args:
            idx: (B, T) int64 token ids.
            targets: (B, T) int64; ``targets[b, t]`` follows ``idx[b, t]``. None: no loss.
            loss_mask: (B, T) of 0 and 1, or floats: how much each weighs. Aligned with
                ``targets``; None supervises all.
            positions: As in :meth:`hidden`.
            segments: As in :meth:`hidden`.

        Returns:
            (B, T, V) logits, and the mean in nats, shape (), or None without targets. Where no
            token is supervised there is no mean and the loss is nan; training takes
            :meth:`loss` instead, whose sum is then 0.

        Raises:
            ValueError: If shapes do not fit, or a mask comes without targets.
        """
        if targets is None and loss_mask is not None:
            raise ValueError("a loss_mask without targets selects nothing; pass both or neither")
        logits = self.lm_head(self.hidden(idx, positions=positions, segments=segments))
        if targets is None:
            return logits, None
        return logits, masked_cross_entropy(logits, targets, loss_mask).mean

    def loss(
        self,
        idx: Tensor,
        targets: Tensor,
        loss_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        supervised: Tensor | None = None,
        prune_last_block: bool = True,
        objective: Objective = NLL,
        base: "GPT | None" = None,
    ) -> MaskedLoss:
        """Return sum, count and terms of :meth:`forward`'s loss, for supervised targets' work only.

        One backward pass goes through it (:mod:`mypt.model.linear_loss`).

        Args:
            idx: As in :meth:`forward`.
            targets: As in :meth:`forward`.
            loss_mask: As in :meth:`forward`.
            positions: As in :meth:`hidden`.
            segments: As in :meth:`hidden`.
            supervised: What :func:`~mypt.model.loss.supervised_positions` says of targets and
                mask, where the caller knows it already: a device need not be asked again.
            prune_last_block: Let the last block compute keys and values everywhere, and all else
                only where a target is supervised, since nothing reads the rest.
            objective: What is summed instead of negative log-likelihoods.
            base: The model that the objective's ``kl_base`` holds this one to, or the reference of
                one of pairs, whose loss is a sum over pairs.

        Raises:
            ValueError: If shapes do not fit, or an objective of pairs has no segments.
        """
        index = supervised_positions(targets, loss_mask) if supervised is None else supervised
        shared = self._shared()
        read = idx, positions, segments, index if prune_last_block else None
        held = None
        if base is not None:
            with torch.no_grad():
                held = base._states(index, *read), base.lm_head.weight
        states = self._states(index, *read, shared)
        few = cast(TokenRows | None, self.lm_head.adapter)
        learned = states, self.lm_head.weight, targets.flatten()[index], self.config.logit_softcap
        if objective.of_pairs:
            return preference_loss(*learned, segments, index, objective, held, shared, few)
        weights = weights_at(loss_mask, index)
        terms = states.new_empty(len(states), dtype=torch.promote_types(states.dtype, torch.float))
        total = linear_cross_entropy(
            *learned,
            shared=shared,
            weights=weights,
            objective=objective,
            base=held,
            terms=terms,
            few=few,
        )
        return sums(total, index, weights)._replace(terms=terms)

    def hidden(
        self, idx: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Return the hidden states after the final norm, (B, T, C).

        Args:
            idx: (B, T) int64 token ids, T at most what the weights hold.
            positions: (B, T) int64; None counts from 0, again in each segment.
            segments: (B, T) int; attention never crosses from one run of equal numbers to the
                next, so that no bit of one run depends on another. None is one run a row.

        Raises:
            ValueError: If a row is longer than the weights hold.
        """
        return self._read(idx, positions, segments)

    def _states(
        self,
        index: Tensor,
        idx: Tensor,
        positions: Tensor | None,
        segments: Tensor | None,
        rows: Tensor | None,
        shared: TiedGradient | None = None,
    ) -> Tensor:
        """Return (N, C): the states at ``index``; the last block computes ``rows`` alone."""
        if rows is not None and rows.numel() < idx.numel():
            return self._read(idx, positions, segments, rows, shared)
        return (
            self._read(idx, positions, segments, None, shared).flatten(0, 1).index_select(0, index)
        )

    def _read(
        self,
        idx: Tensor,
        positions: Tensor | None,
        segments: Tensor | None,
        rows: Tensor | None = None,
        shared: TiedGradient | None = None,
    ) -> Tensor:
        self.config.check_row(idx.shape[1])
        if positions is None and segments is not None:
            positions = restart_positions(segments)
        elif positions is None:
            positions = torch.arange(idx.shape[1], device=idx.device).expand_as(idx)
        dropout = self.config.dropout if self.training else 0.0
        documents = separate_blocks(self.config, idx, segments, dropout)
        attends: list[Attend] = [partial(attend, documents=d, dropout=dropout) for d in documents]
        wanted = None
        if rows is not None:
            last = partial(attend_at, rows, documents=documents[-1], dropout=dropout)
            wanted = Wanted(rows, last)
        states: Tensor = self.transformer(idx, positions, attends, wanted, shared)
        return states

    @torch.no_grad()
    def step(
        self, ids: Tensor, cache: KVCache, positions: Tensor, *, last: Tensor | None = None
    ) -> Tensor:
        """Read S new tokens a row and return the logits that follow each row's last one.

        Prompts of different lengths go in as one ragged step: pad on the right with any id,
        let positions count on, and name each row's last real token in ``last``.

        Args:
            ids: (B, S) int64.
            cache: What the rows have read before; the new tokens are added to it.
            positions: (B, S) int64, the place of each new token in its own row.
            last: (B,) int64, index into S; None takes the last column.

        Returns:
            (B, V) logits.

        Raises:
            ValueError: If a position lies outside the cache.
        """
        low = self.lm_head.weight.dtype == torch.bfloat16  # beside norms in float32
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=low):
            states = self.read(ids, cache, positions, cache.visible(positions))
            if last is None:
                last = torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
            rows = torch.arange(len(ids), device=ids.device)
            return self._project(states[rows, last])

    def read(self, ids: Tensor, cache: KVCache, positions: Tensor, visible: Tensor) -> Tensor:
        """Add new tokens to the cache; return their states after the final norm, (B, S, C).

        Args:
            ids: As for :meth:`step`.
            cache: Likewise.
            positions: Likewise.
            visible: What the cache's ``visible`` says of them.
        """
        states: Tensor = self.transformer(ids, positions, cache.attends(positions, visible))
        return states

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """Return an empty cache for :meth:`step`, on the model's device and in its dtype."""
        weight = self.lm_head.weight
        return KVCache(
            self.config, batch_size, max_length, device=weight.device, dtype=weight.dtype
        )

    def _project(self, states: Tensor) -> Tensor:
        """Return logits (B, V) of few rows (B, C), in the product's quickest form on a CPU.

        The vocabulary's matrix is nearly all that a step of a small model reads. MKL reads it
        three times quicker for one row if it lies the other way round, and nearly twice for a
        few if it comes first.
        """
        if states.device.type != "cpu" or self.lm_head.adapter is not None:
            logits: Tensor = self.lm_head(states)
            return logits
        weight = self.lm_head.weight
        if len(states) == 1:
            return self.lm_head.bent(states @ self._turned.of(weight.detach()))
        return self.lm_head.bent((weight @ states.T).T)

    def train(self, mode: bool = True) -> Self:
        """Train or answer, as torch has it; a model that is trained keeps no turned head."""
        if mode:
            self._turned = Turned()
        return super().train(mode)

    def checkpoint_blocks(self, wanted: bool) -> None:
        """Let training keep one state a block and compute the others again, or all of them."""
        self.transformer.checkpoint_blocks(wanted)

    def _shared(self) -> TiedGradient | None:
        head = self.lm_head.weight
        tied = head is self.transformer.wte.weight and head.requires_grad
        return TiedGradient() if tied else None

    def _initialise(self) -> None:
        shrinks = math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            residual = name.endswith("c_proj.weight")
            if residual and self.config.zero_init:
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                std = INIT_STD
                if self.config.scaled_init:
                    share = 1.0 if name.startswith("transformer.h.") else 0.5
                    std = share / math.sqrt(parameter.shape[1])
                nn.init.normal_(parameter, std=std / shrinks if residual else std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
