"""Rows of a batch as numpy arrays, and the one shift: targets, and the mask that follows them."""

from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


class Arrays(NamedTuple):
    """A batch before it becomes tensors; B rows, T places."""

    input_ids: NDArray[np.int64]
    """(B, T) token ids."""
    targets: NDArray[np.int64]
    """(B, T); the token that follows each input."""
    loss_mask: NDArray[np.uint8 | np.float32] | None
    """(B, T) of 0 and 1, or how much each token weighs, aligned with ``targets``; None supervises
    all."""
    positions: NDArray[np.int64] | None = None
    """(B, T), counted from 0 in each piece; None counts along the row."""
    segments: NDArray[np.int64] | None = None
    """(B, T), the number of the piece in its row, -1 for padding; None is one piece a row."""


class Shifted(NamedTuple, Generic[Scalar]):
    """Inputs, the tokens that follow them, and the mask of the latter; all (..., n)."""

    inputs: NDArray[Scalar]
    targets: NDArray[Scalar]
    loss_mask: NDArray[np.uint8 | np.float32] | None


def shift(tokens: NDArray[Scalar], mask: NDArray[np.uint8 | np.float32] | None) -> Shifted[Scalar]:
    """Turn n + 1 tokens, whose mask lies beside them, into n inputs and their targets.

    Law 5: on disk the mask belongs to its token; in a batch it belongs to its target. This
    happens here and nowhere else. The five tokens of :mod:`mypt.data.preparation.encoding`:

    >>> inputs, targets, loss_mask = shift(
    ...     np.array([49, 43, 49, 50, 256]), np.array([0, 0, 0, 1, 1], np.uint8)
    ... )
    >>> inputs.tolist(), targets.tolist(), loss_mask.tolist()
    ([49, 43, 49, 50], [43, 49, 50, 256], [0, 0, 1, 1])

    Args:
        tokens: (..., n + 1).
        mask: (..., n + 1), or None.
    """
    return Shifted(tokens[..., :-1], tokens[..., 1:], None if mask is None else mask[..., 1:])
