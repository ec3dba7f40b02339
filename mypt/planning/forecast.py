"""What a training will need and take, said before anything runs."""

import math
from typing import NamedTuple

from mypt.config import Preset
from mypt.parsing import Frozen
from mypt.planning.machines import (
    FAILURE_HOURS,
    LAUNCH_SECONDS,
    LAUNCHES,
    WRITE_RATE,
    Machine,
)
from mypt.planning.sizes import (
    Memory,
    Operations,
    Parallel,
    Weights,
    count_operations,
    count_weights,
    estimate,
    moment_bytes,
    weight_bytes,
)

_STEP_BYTES = 16
"""What the history keeps of a step."""
_HOUR = 3600.0


class Data(NamedTuple):
    """What a dataset decides of a training."""

    tokens: int
    """Read once an epoch."""
    steps: int
    """Of an epoch."""
    density: float
    """Share of the tokens that is supervised."""
    other_bytes: int = 0
    """Of the tokenizer's state, which every checkpoint holds."""


class Checkpoints(Frozen):
    """What is written, and how often it should be."""

    bytes: int
    """Of the last one."""
    write_seconds: float
    failure_seconds: float
    """Between two failures of any process."""
    interval_seconds: float
    """Between two checkpoints, so that writing and repeated steps cost least."""
    interval_steps: int | None
    """The same in steps, at least 1; None where the time of a step is not known."""


class Forecast(Frozen):
    """One training, before it runs."""

    name: str
    weights: Weights
    parameters: int
    processes: int
    parallel: Parallel
    memory: dict[Parallel, Memory]
    """Of each process, by what it would hold; ``parallel`` is what the config says."""
    memory_limit: int | None
    """Of a named GPU."""
    density: float
    tokens_per_step: int
    steps: int | None
    """Of the whole training; None where epochs say it and no dataset is given."""
    steps_per_epoch: int | None
    """None without a dataset, as the next one."""
    tokens_per_epoch: int | None
    operations: Operations
    """Of one step, on all processes."""
    operations_per_token: float
    checkpoints: Checkpoints
    where: str
    """What computes; empty where no time is given."""
    measured: bool
    """Whether the time comes from a probe, not from a table."""
    step_seconds: float | None
    seconds: float | None
    """Of all steps and evaluations."""
    cost: float | None
    assumed: tuple[str, ...]
    """What was neither read nor measured, a line each."""

    @property
    def fits(self) -> bool:
        """Whether a process fits into the named GPU; true where none is named."""
        return self.memory_limit is None or self.memory[self.parallel].peak <= self.memory_limit


def forecast(preset: Preset, machine: Machine, data: Data | None = None) -> Forecast:
    """Return what training ``preset`` needs and takes on ``machine``.

    Where its processes do not divide a step's micro-batches, a step has so many more.
    """
    asked, preset = preset, fit_world(preset, machine.processes)
    weights, density = count_weights(preset), data.density if data else 1.0
    step = _count(preset, preset.grad_accumulation, density)
    step_seconds = _step_seconds(preset, machine, step)
    steps = preset.max_iters if preset.epochs is None else None
    seconds = None
    if step_seconds is not None and steps is not None:
        seconds = step_seconds * _steps_worth(preset, step)
    several: Parallel = "ddp" if preset.parallel == "none" else preset.parallel
    kind, dtype = _arithmetic(preset, machine)
    modes: tuple[Parallel, ...] = ("none",) if machine.processes == 1 else ("ddp", "fsdp")
    tokens = preset.batch_size * preset.grad_accumulation * preset.block_size
    price = machine.price_per_hour
    return Forecast(
        name=preset.name,
        weights=weights,
        parameters=weights.total,
        processes=machine.processes,
        parallel="none" if machine.processes == 1 else several,
        memory={
            mode: estimate(
                preset, mode, processes=machine.processes, density=density, dtype=dtype, device=kind
            )
            for mode in modes
        },
        memory_limit=machine.gpu.memory if machine.gpu else None,
        density=density,
        tokens_per_step=tokens,
        steps=steps,
        steps_per_epoch=data.steps if data else None,
        tokens_per_epoch=data.tokens if data else None,
        operations=step,
        operations_per_token=step.total / tokens,
        checkpoints=_checkpoints(preset, machine, data, step_seconds),
        where=_where(machine),
        measured=machine.probe is not None,
        step_seconds=step_seconds,
        seconds=seconds,
        cost=None if price is None or seconds is None
        else seconds / _HOUR * machine.processes * price,
        assumed=(*_more_micros(asked, preset, machine), *_assumed(preset, machine, data)),
    )  # fmt: skip


def fit_world(preset: Preset, processes: int) -> Preset:
    """Return a preset whose micro-batches a number of processes can share, as few as that takes.

    Training refuses to choose: another accumulation is another batch.
    """
    shared = -(-preset.grad_accumulation // processes) * processes
    return preset.model_copy(update={"grad_accumulation": shared})


def best_interval(write: float, failure: float) -> float:
    """Return seconds between checkpoints at which failures cost least.

    Young's square root (CACM 17, 1974) with Daly's further terms (FGCS 22, 2006, equation 37).

    Args:
        write: Seconds that a checkpoint takes.
        failure: Seconds between two failures, on average.
    """
    if write >= 2 * failure:
        return failure
    root = math.sqrt(write / (2 * failure))
    return math.sqrt(2 * write * failure) * (1 + root / 3 + root**2 / 9) - write


def _count(preset: Preset, micros: int, density: float) -> Operations:
    return count_operations(
        preset,
        preset.batch_size * micros,
        density=density,
        prune_last_block=preset.prune_last_block,
        checkpointing=preset.activation_checkpointing,
        keeps_base=bool(preset.keeps_base),
        of_pairs=preset.of_pairs,
    )


def _arithmetic(preset: Preset, machine: Machine) -> tuple[str, str]:
    """Return the kind of device and of products; a GPU is planned in bfloat16 unless told."""
    if machine.probe is not None:
        return machine.probe.kind, machine.probe.dtype
    dtype = "bfloat16" if preset.dtype == "auto" else preset.dtype
    return "cuda" if machine.gpu or preset.device != "cpu" else "cpu", dtype


def _step_seconds(preset: Preset, machine: Machine, step: Operations) -> float | None:
    if machine.probe is not None:
        micros = preset.grad_accumulation // machine.processes
        return micros * machine.probe.micro_seconds + machine.probe.update_seconds
    if machine.gpu is not None:
        speed = machine.processes * machine.gpu.peak * machine.utilisation
        return max(step.computed / speed, _launching(preset, machine))
    return None


def _launching(preset: Preset, machine: Machine) -> float:
    """Return seconds that starting the kernels of a step takes, below which no GPU comes."""
    micros = preset.grad_accumulation // machine.processes
    return micros * preset.n_layer * LAUNCHES * LAUNCH_SECONDS


def _steps_worth(preset: Preset, step: Operations) -> float:
    """Return steps and evaluations, these as steps: a forward pass is a third of one."""
    evaluations = 1 + -(-preset.max_iters // preset.eval_interval)
    share = step.total / step.computed
    passes = 2 * preset.eval_iters / preset.grad_accumulation
    return preset.max_iters + evaluations * passes * share / 3


def _checkpoints(
    preset: Preset,
    machine: Machine,
    data: Data | None,
    step_seconds: float | None,
) -> Checkpoints:
    size = weight_bytes(preset) + moment_bytes(preset) + _STEP_BYTES * preset.max_iters
    size += data.other_bytes if data else 0
    write = size / (machine.write_rate or WRITE_RATE)
    failure = machine.failure_hours * _HOUR / machine.processes
    interval = best_interval(write, failure)
    return Checkpoints(
        bytes=size,
        write_seconds=write,
        failure_seconds=failure,
        interval_seconds=interval,
        interval_steps=None if step_seconds is None else max(1, round(interval / step_seconds)),
    )


def _more_micros(asked: Preset, preset: Preset, machine: Machine) -> tuple[str, ...]:
    """Say, if so, that a step has more micro-batches than the config asks for."""
    before, now = asked.grad_accumulation, preset.grad_accumulation
    if before == now:
        return ()
    return (
        f"grad_accumulation {now} instead of {before}, which {machine.processes} processes do not"
        f" divide: {now / before:.3g} times the tokens a step; to train so, put it into the config",
    )


def _assumed(preset: Preset, machine: Machine, data: Data | None) -> tuple[str, ...]:
    lines = []
    if preset.lora:
        lines.append("all weights are learned; with lora memory, time and checkpoints are less")
    if preset.epochs is not None:
        lines.append(f"{preset.epochs:g} epochs; --dataset_dir tells how many steps and how long")
    if data is None:
        lines.append("every token is supervised; --dataset_dir tells what is")
    if machine.gpu is not None:
        lines.append(
            f"{machine.utilisation:.0%} of the peak that is published,"
            f" {machine.gpu.peak / 1e12:.4g} TFLOP/s"
        )
        floor = _launching(preset, machine) * 1000
        lines.append(
            f"no step is quicker than {floor:.3g} ms: {LAUNCHES} kernels a block and micro-batch,"
            f" {LAUNCH_SECONDS * 1e6:g} \u00b5s to start each"
        )
    if machine.probe is not None and machine.processes > 1:
        lines.append("processes do not slow each other down")
    if machine.write_rate is None:
        lines.append(f"checkpoints are written at {WRITE_RATE / 1e9:g} GB a second")
    usual = machine.failure_hours == FAILURE_HOURS
    source = ", as Llama 3's trainings had it" if usual else ""
    lines.append(f"{machine.failure_hours:,.0f} hours between failures of a process{source}")
    return tuple(lines)


def _where(machine: Machine) -> str:
    if machine.probe is not None:
        return machine.probe.device
    return f"{machine.processes} x {machine.gpu.name}" if machine.gpu else ""
