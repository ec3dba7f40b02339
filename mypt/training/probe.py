"""How quick this machine is: a few steps of the very model, on tokens that mean nothing."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch

from mypt import files
from mypt.config import Preset
from mypt.errors import TrainingError
from mypt.model.compiling import compile_blocks, missing_compiler
from mypt.model.gpt import GPT
from mypt.training.compute import Compute, resolve, seed_everything, use_threads
from mypt.training.machines import Probe
from mypt.training.optim import make_optimizer

_WARM_UP: Final = 2
_PATIENCE: Final = 60.0
"""Seconds."""
_SAMPLE_BYTES: Final = 1 << 26


def probe(preset: Preset, steps: int, density: float) -> Probe:
    """Time up to ``steps`` micro-batches and updates; the first two are not counted.

    Args:
        preset: What would be trained; each rank of several computes such micro-batches.
        steps: At most; it also ends after a minute.
        density: Share of the tokens to supervise.

    Raises:
        ConfigError: If the config names a device that this machine has not.
        TrainingError: If the memory does not do.
    """
    compute = resolve(preset, preset.gpt())
    try:
        with use_threads(compute.threads):
            passes, updates = _time_steps(preset, compute, steps, density)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        raise TrainingError(
            f"the probe ran out of memory on {compute.device} with batch_size {preset.batch_size}"
            f" x block_size {preset.block_size}; halve batch_size and double grad_accumulation, or"
            " plan with --probe 0"
        ) from error
    record = compute.record()
    return Probe(
        device=f"{record.device_name}, {compute.threads} threads"
        if compute.device.type == "cpu"
        else record.device_name,
        kind=record.device,
        dtype=record.dtype,
        steps=len(passes),
        micro_seconds=statistics.median(passes),
        update_seconds=statistics.median(updates),
    )


def write_rate(folder: Path) -> float:
    """Return bytes a second that reach the disk below ``folder``, by writing 64 MiB once."""
    files.make_folder(folder)
    path = folder / f"{files.TEMPORARY_PREFIX}probe"
    data = np.random.default_rng(0).bytes(_SAMPLE_BYTES)
    started = time.monotonic()
    try:
        files.write_bytes(path, data)
        return _SAMPLE_BYTES / (time.monotonic() - started)
    finally:
        path.unlink(missing_ok=True)


def _time_steps(
    preset: Preset, compute: Compute, steps: int, density: float
) -> tuple[list[float], list[float]]:
    seed_everything(preset.seed)
    model = GPT(preset.gpt()).to(compute.device).train()
    if preset.compile and not missing_compiler(compute.device):
        compile_blocks(model)
    model.transformer.checkpoint_blocks(preset.activation_checkpointing)
    optimizer = make_optimizer(model, preset)
    shape = (preset.batch_size, preset.block_size)
    ids = torch.randint(preset.vocab_size, shape).to(compute.device)
    mask = (torch.rand(shape) < density).to(torch.uint8).to(compute.device)
    mask[0, 0] = 1

    def one_pass() -> None:
        with compute.autocast():
            loss = model.loss(ids, ids, mask, prune_last_block=preset.prune_last_block)
        torch.autograd.backward([loss.total / loss.n_tokens])

    def one_update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    passes, updates, began = list[float](), list[float](), time.monotonic()
    for _ in range(_WARM_UP + steps):
        passes.append(_seconds(one_pass, compute))
        updates.append(_seconds(one_update, compute))
        if len(passes) > _WARM_UP and time.monotonic() - began > _PATIENCE:
            break
    return passes[_WARM_UP:], updates[_WARM_UP:]


def _seconds(work: Callable[[], None], compute: Compute) -> float:
    started = time.monotonic()
    work()
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
    return time.monotonic() - started
