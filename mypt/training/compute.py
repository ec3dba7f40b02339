"""Device, arithmetic, threads and randomness of a run: resolved once, recorded, nothing global."""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from mypt.config import GPTConfig, Preset, TrainConfig
from mypt.data.packing.accounts import LengthAccount
from mypt.errors import ConfigError, TrainingError
from mypt.model.foreign import ForeignGPT
from mypt.model.gpt import GPT
from mypt.model.parameters import shapes
from mypt.training.lineage import ComputeRecord

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_TRIED = 256
"""Tokens of the row in which packing is tried."""
_WIDE = 128
"""Width from which a CPU step is quicker in bfloat16; below, casting costs what products save."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Where a run computes, and in which arithmetic."""

    device: torch.device
    dtype: torch.dtype
    """Of matrix products; gradients, moments and losses stay float32, as do weights unless the
    config's ``weight_dtype`` says otherwise."""
    threads: int
    """CPU threads."""
    processes: int = 1
    """How many share each step."""
    parallel: str = "none"
    """What each of them holds."""

    def autocast(self) -> torch.autocast:
        """Return the context in which forward passes run."""
        lower = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=lower)

    def record(self) -> ComputeRecord:
        """Return what the lineage keeps of it."""
        return ComputeRecord(
            machine=f"{platform.system()} {platform.machine()}",
            device=self.device.type,
            device_name=_device_name(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            threads=self.threads,
            processes=self.processes,
            parallel=self.parallel,
            isa=torch.backends.cpu.get_cpu_capability(),
        )


def check_room(config: GPTConfig) -> None:
    """Refuse weights that this machine has no memory for, before any is taken.

    Raises:
        ConfigError: If there are such.
    """
    n_bytes = 4 * sum(shape.numel() for shape in shapes(config).values())
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if n_bytes > room:
        raise ConfigError(
            f"n_layer {config.n_layer}, n_embd {config.n_embd}: weights of {n_bytes >> 30:,} GiB,"
            f" and this machine has {room >> 30:,} GiB of memory; choose smaller sizes"
        )


def resolve(config: TrainConfig, model: GPTConfig) -> Compute:
    """Decide what ``auto`` means on this machine.

    Raises:
        ConfigError: If the config names a device that this machine has not.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    wanted = config.device
    name = next(n for n, there in available.items() if there) if wanted == "auto" else wanted
    if not available[name]:
        there = ", ".join(n for n, found in available.items() if found)
        raise ConfigError(f"device {name!r} is not on this machine; it has {there}; use 'auto'")
    device = torch.device(name)
    if config.weight_dtype == "bfloat16":
        dtype = torch.bfloat16
    elif config.dtype == "auto":
        dtype = torch.bfloat16 if _bfloat16_pays(device, model) else torch.float32
    else:
        dtype = _DTYPES[config.dtype]
    # A tree promises the same bits in any number of processes, and threads can change them.
    usual = 1 if config.reduction == "tree" else torch.get_num_threads()
    threads = config.threads or usual
    return Compute(device, dtype, threads, config.processes, config.parallel)


def read_together(
    model: GPT, config: Preset, compute: Compute, accounts: Sequence[LengthAccount]
) -> tuple[str, ...]:
    """Let a module of transformers read packed rows whole if that is proved; return a line on it.

    Args:
        model: On its device; one of ours keeps conversations apart by construction.
        config: How it is trained.
        compute: In which arithmetic.
        accounts: What an epoch's rows hold.
    """
    if not isinstance(model, ForeignGPT) or config.batching != "packed":
        return ()
    with compute.autocast():
        proved = model.prove_packing(min(config.block_size, _TRIED))
    name, kept = type(model.module).__name__, sum(account.rows_kept for account in accounts)
    if proved:
        return (f"{name} reads a row's conversations together: none changed a bit of another",)
    return (
        f"{name} does not keep a row's conversations apart to the last bit: each of the {kept}"
        " of an epoch is read by itself, one a call",
    )


@contextmanager
def use_threads(n: int) -> Iterator[None]:
    """Compute on ``n`` CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def memory_named(what: str, config: Preset, compute: Compute) -> Iterator[None]:
    """Say what to change where memory runs out in ``what``.

    Raises:
        TrainingError: In place of the error of whichever allocator refused.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        out = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not out and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"{what}: out of memory on {compute.device} with batch_size {config.batch_size} x"
            f" block_size {config.block_size}; halve batch_size and double grad_accumulation,"
            " which learns the same"
        ) from error


def seed_everything(*key: int) -> None:
    """Seed torch's generators from ``key`` alone (DESIGN.md D13).

    Dropout of a micro-batch is a function of (seed, step, micro), so that a resumed run needs
    no generator state.
    """
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


def _bfloat16_pays(device: torch.device, model: GPTConfig) -> bool:
    """Return whether bfloat16 products make a step quicker.

    On CPUs only with instructions for it, and for models whose products outweigh the casts.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16")) and model.n_embd >= _WIDE


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return str(torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or "CPU")
