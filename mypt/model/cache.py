"""Keys and values of the tokens that a model has already read, so that none is read twice."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mypt.config import GPTConfig
from mypt.model.attention import Attend, share

_FIRST = 256
"""Slots that a cache begins with."""


class Turned:
    """A matrix the other way round, made anew only where the matrix has changed."""

    def __init__(self) -> None:
        self._made: tuple[Tensor, int, Tensor] | None = None

    def of(self, matrix: Tensor) -> Tensor:
        """Return ``matrix.T`` laid out anew, or as it was made for the same numbers before."""
        now = matrix._version  # torch counts what is written into it
        made = self._made  # which holds the matrix too, so that no other comes to lie there
        if made is None or (made[0].data_ptr(), made[1]) != (matrix.data_ptr(), now):
            made = self._made = matrix, now, matrix.T.contiguous()
        return made[2]


class KVCache:
    """A store: slot p of a row holds the key and value of that row's position p.

    Memory is taken as rows get longer, twice as much each time, and never for more than they may
    be.

    Rows may be of different lengths. A query at position p sees the slots up to p and no
    other, so what lies behind a row's own end (padding of a ragged prompt) is never seen, and
    is overwritten when the row gets there.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        max_length: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make room for ``batch_size`` rows of at most ``max_length`` tokens.

        Raises:
            ValueError: If ``max_length`` exceeds the longest context that the model holds.
        """
        if max_length > config.longest:
            raise ValueError(
                f"a cache of {max_length} tokens does not fit block_size {config.longest}"
            )
        shape = (batch_size, min(max_length, _FIRST), config.key_heads, config.head_width)
        self.max_length, self._config = max_length, config
        # A tensor each: of one that held them all, a compiled step would copy the whole (D97).
        self._keys, self._values = (
            [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
            for _ in range(2)
        )
        self._count()

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Tensor,
        visible: Tensor,
    ) -> Tensor:
        """Store the new keys and values of one layer, then attend over all that is visible.

        Args:
            layer: Index of the block.
            query: (B, S, H, D) of the S new tokens of each row.
            key: (B, S, G, D) likewise.
            value: (B, S, G, D) likewise.
            positions: (B, S) int64, the slot of each new token.
            visible: (B, 1, S, U) bool, what :meth:`visible` returned for ``positions``.

        Returns:
            (B, S, H, D).
        """
        keys, values = self._keys[layer], self._values[layer]
        keys[self._rows, positions] = key.to(keys.dtype)
        values[self._rows, positions] = value.to(values.dtype)
        used = visible.shape[-1]
        seen = share(query, keys[:, :used].to(query.dtype), values[:, :used].to(query.dtype))
        gathered = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            seen[0].transpose(1, 2),
            seen[1].transpose(1, 2),
            attn_mask=visible,
        )
        return gathered.transpose(1, 2)

    def visible(self, positions: Tensor) -> Tensor:
        """Return (B, 1, S, U) bool: which of the first U slots each new token may look at.

        There is room for all of them then.

        Raises:
            ValueError: If a position lies outside the cache.
        """
        used = int(positions.max()) + 1
        if used > self.max_length or int(positions.min()) < 0:
            raise ValueError(
                f"positions {int(positions.min())}..{used - 1} do not fit a cache of"
                f" {self.max_length} tokens"
            )
        if used > (room := self._keys[0].shape[1]):
            room = min(self.max_length, max(used, 2 * room))
            self._keys, self._values = (
                [_longer(part, room) for part in parts] for parts in (self._keys, self._values)
            )
        slots = torch.arange(used, device=positions.device)
        return slots <= positions[:, None, :, None]

    def attends(self, positions: Tensor, visible: Tensor) -> list[Attend]:
        """Return how each block attends to what was read before and to the new tokens.

        Args:
            positions: (B, S) int64, the slot of each new token.
            visible: What :meth:`visible` returned for them.
        """
        near, window = visible, self._config.window
        if window is not None:
            slots = torch.arange(visible.shape[-1], device=positions.device)
            near = visible & (slots > positions[:, None, :, None] - window)
        seen = [near if self._config.is_windowed(n) else visible for n in range(len(self._keys))]
        return [
            partial(self.attend, layer, positions=positions, visible=one)
            for layer, one in enumerate(seen)
        ]

    def join(self, other: "KVCache") -> None:
        """Take in the rows of another cache, behind those that are here."""
        self.max_length = max(self.max_length, other.max_length)
        room = max(self._keys[0].shape[1], other._keys[0].shape[1])
        self._keys, self._values = (
            [
                torch.cat([_longer(a, room), _longer(b, room)])
                for a, b in zip(mine, new, strict=True)
            ]
            for mine, new in ((self._keys, other._keys), (self._values, other._values))
        )
        self._count()

    def keep(self, rows: list[int]) -> None:
        """Forget all rows but these, which follow one another from now on."""
        self._keys, self._values = (
            [part[rows] for part in parts] for parts in (self._keys, self._values)
        )
        self._count()

    def _count(self) -> None:
        one = self._keys[0]
        self._rows = torch.arange(len(one), device=one.device)[:, None]


@dataclass(slots=True)
class RowCache:
    """What the module keeps of a row that it has read; one that keeps nothing reads it again."""

    kept: dict[str, Any] = field(default_factory=dict)
    read: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    state: Tensor = field(default_factory=lambda: torch.empty(0))
    """(C,), the last one."""


class RowCaches(KVCache):
    """Rows that the module reads one by one."""

    def __init__(self, batch_size: int, max_length: int) -> None:
        self.max_length = max_length
        self.rows = [RowCache() for _ in range(batch_size)]

    def join(self, other: KVCache) -> None:
        """Take in the rows of another cache, behind those that are here."""
        assert isinstance(other, RowCaches), "another model's cache"
        self.rows = self.rows + other.rows

    def keep(self, rows: list[int]) -> None:
        """Forget all rows but these."""
        self.rows = [self.rows[n] for n in rows]


def _longer(part: Tensor, room: int) -> Tensor:
    """Return what was kept (B, T, G, D) with room for more, which is 0."""
    return F.pad(part, (0, 0, 0, 0, 0, room - part.shape[1]))
