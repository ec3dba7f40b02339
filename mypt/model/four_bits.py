"""Frozen matrices in four bits: NF4, by ``bitsandbytes``.

Dettmers et al. 2023, "QLoRA", arXiv 2305.14314: each 64 numbers of a matrix share a scale, the
largest of them, and each is the nearest of sixteen that lie as a normal distribution does.
"""

import logging
import sys
from typing import Any, Final

import torch
from torch import Tensor, nn

from mypt.errors import ConfigError

BLOCK: Final = 64
"""Numbers that share a scale."""
_KIND: Final = "nf4"


class FourBits(nn.Module):
    """A matrix as codes and scales, read as numbers where it is multiplied."""

    def __init__(self, weight: Tensor) -> None:
        """Round a matrix (out, in), on the CPU: the same codes wherever it then lies.

        Raises:
            ConfigError: If bitsandbytes is not installed, or has nothing for the device.
        """
        super().__init__()
        bitsandbytes(f"weight_dtype {_KIND}", "weight_dtype float32", weight.device)
        found = torch.ops.bitsandbytes.quantize_4bit(
            weight.detach().float().cpu(), BLOCK, _KIND, torch.uint8
        )
        self.shape = weight.shape
        for name, part in zip(("codes", "scales"), found, strict=True):
            self.register_buffer(name, part.to(weight.device), persistent=False)

    def whole(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix (out, in) that the codes stand for."""
        codes, scales = self.get_buffer("codes"), self.get_buffer("scales")
        # As one row: its kernel for the CPU takes every row to begin with a scale of its own.
        found: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
            codes, scales, BLOCK, _KIND, [1, self.shape.numel()], dtype
        )
        return found.view(self.shape)


def bitsandbytes(knob: str, instead: str, device: torch.device) -> Any:
    """Return the library's functions; what it would fetch from a hub is kept away.

    Args:
        knob: What asks for it, as a preset says it.
        instead: What a preset may say instead.
        device: Where it is to compute.

    Raises:
        ConfigError: If it is not installed, or has nothing for the device.
    """
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{knob}: bitsandbytes has none for {device.type}; set {instead}")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    hub = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        from bitsandbytes import functional
    except ImportError:
        raise ConfigError(
            f"{knob}: bitsandbytes is not installed; pip install 'mypt[bitsandbytes]',"
            f" or set {instead}"
        ) from None
    finally:
        del sys.modules["kernels"]
        if hub is not None:
            sys.modules["kernels"] = hub
    return functional
