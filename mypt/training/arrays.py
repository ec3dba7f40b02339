"""Rows of a batch as numpy arrays, and the one place where targets are shifted."""

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
    loss_mask: NDArray[np.uint8] | None
    """(B, T) of 0 and 1, aligned with ``targets``; None supervises all."""
    positions: NDArray[np.int64] | None = None
    """(B, T), counted from 0 in each piece; None counts along the row."""
    segments: NDArray[np.int64] | None = None
    """(B, T), the number of the piece in its row, -1 for padding; None is one piece a row."""


class Shifted(NamedTuple, Generic[Scalar]):
    """Inputs, the tokens that follow them, and the mask of the latter; all (..., n)."""

    inputs: NDArray[Scalar]
    targets: NDArray[Scalar]
    loss_mask: NDArray[np.uint8] | None


def shift(tokens: NDArray[Scalar], mask: NDArray[np.uint8] | None) -> Shifted[Scalar]:
    """Turn n + 1 tokens, whose mask lies beside them, into n inputs and their targets.

    Law 5: on disk the mask belongs to its token; in a batch it belongs to its target. This
    happens here and nowhere else.

    Args:
        tokens: (..., n + 1).
        mask: (..., n + 1), or None.
    """
    return Shifted(tokens[..., :-1], tokens[..., 1:], None if mask is None else mask[..., 1:])
