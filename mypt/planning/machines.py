"""What a training may run on: this machine, measured, or GPUs as their makers publish them."""

import difflib
from typing import NamedTuple

from mypt.errors import ConfigError

UTILISATION = 0.4
"""Share of a GPU's peak that training reaches, where nobody says otherwise."""
FAILURE_HOURS = 50_000.0
"""Hours a GPU between failures: 419 interruptions of 16,384 GPUs in 54 days (Llama 3, 2024)."""
WRITE_RATE = 1e9
"""Bytes a second that reach the disk, where nobody says otherwise or measured it."""


LAUNCHES = 100
"""Kernels that a block starts in the forward and backward pass of a micro-batch, roughly."""
LAUNCH_SECONDS = 5e-6
"""What starting a kernel takes, whatever it computes: no pass is quicker than its launches."""


class Gpu(NamedTuple):
    """One kind of GPU, as its maker publishes it."""

    name: str
    peak: float
    """Floating-point operations a second: dense bfloat16 products, float32 sums."""
    memory: int
    """Bytes."""


GPUS = {
    "l4": Gpu("NVIDIA L4", 121e12, 24 * 10**9),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", 165.2e12, 24 * 10**9),
    "l40s": Gpu("NVIDIA L40S", 362e12, 48 * 10**9),
    "a100": Gpu("NVIDIA A100 80GB SXM", 312e12, 80 * 10**9),
    "h100": Gpu("NVIDIA H100 SXM", 989.4e12, 80 * 10**9),
    "h200": Gpu("NVIDIA H200 SXM", 989.4e12, 141 * 10**9),
    "b200": Gpu("NVIDIA B200, of an HGX B200", 2250e12, 180 * 10**9),
    "mi300x": Gpu("AMD Instinct MI300X", 1307.4e12, 192 * 10**9),
}
"""Where the figure is published with sparsity only, half of it stands here."""


class Probe(NamedTuple):
    """What was measured."""

    device: str
    """What computed."""
    kind: str
    """cpu, cuda or mps."""
    dtype: str
    steps: int
    """How many were timed; fewer than asked for where they took longer than a minute."""
    micro_seconds: float
    """Forward and backward pass of one micro-batch, the median."""
    update_seconds: float
    """One AdamW update, the median."""


class Machine(NamedTuple):
    """What a training is planned for."""

    processes: int = 1
    """How many share each step."""
    probe: Probe | None = None
    """This machine, measured."""
    gpu: Gpu | None = None
    """Or so many of these."""
    utilisation: float = UTILISATION
    write_rate: float | None = None
    """Bytes a second that reach the disk; None is not known."""
    failure_hours: float = FAILURE_HOURS
    """Of one process, on average."""
    price_per_hour: float | None = None
    """Of one process."""


def find_gpu(name: str) -> Gpu:
    """Return a GPU by the name that people call it.

    Raises:
        ConfigError: If it is not in the table.
    """
    try:
        return GPUS[name.lower()]
    except KeyError:
        near = difflib.get_close_matches(name.lower(), GPUS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(GPUS)}"
        raise ConfigError(f"gpu {name[:60]!r} is not in the table; {meant}") from None
