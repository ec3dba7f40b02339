"""The command that says what a training needs and takes, before it runs."""

from pathlib import Path
from typing import TYPE_CHECKING

from flows.commands.flags import MaybeWhole, Whole
from flows.console import Console, print_json
from mypt.errors import ConfigError
from mypt.text import counted

if TYPE_CHECKING:
    from rich.table import Table

    from mypt.planning.forecast import Forecast
    from mypt.planning.sizes import Memory


def plan(
    config: Path,
    *,
    dataset_dir: Path | None = None,
    gpu: str | None = None,
    count: MaybeWhole = None,
    utilisation: float = 0.4,
    probe: Whole = 20,
    disk_rate: float | None = None,
    failure_hours: float = 50_000.0,
    price_per_hour: float | None = None,
    json: bool = False,
) -> int:
    """Say what a training needs and takes before it runs; exit 1 if it fits no GPU named.

    Without --gpu some steps on meaningless tokens tell the time on this machine.

    Args:
        config: A preset such as configs/150M.json, or a pipeline such as configs/demo.json.
        dataset_dir: What it would learn from: tokens, steps of an epoch, supervised share.
        gpu: l4, rtx4090, l40s, a100, h100, h200, b200 or mi300x, instead of this machine.
        count: GPUs or processes that share each step; default: the preset's processes.
        utilisation: Share of the GPU's published peak that training reaches.
        probe: Steps to time on this machine, at most a minute; 0 times none.
        disk_rate: Gigabytes a second that a checkpoint is written at; default: measured with the
            steps, 1 for a GPU.
        failure_hours: Hours between two failures of one GPU or process, on average.
        price_per_hour: Of one GPU or process, in any currency.
        json: Print the forecast as JSON.
    """
    from mypt.planning import configs, machines

    positive = {
        "count": count, "utilisation": utilisation, "disk_rate": disk_rate,
        "failure_hours": failure_hours, "price_per_hour": price_per_hour,
    }  # fmt: skip
    for flag, value in positive.items():
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{flag} {value}: expected a number above 0")
    if utilisation > 1:
        raise ConfigError(f"--utilisation {utilisation}: expected a share of the peak, at most 1")
    found = configs.plan(
        configs.read_presets(config),
        machines.Machine(
            gpu=machines.find_gpu(gpu) if gpu else None,
            utilisation=utilisation,
            write_rate=disk_rate and disk_rate * 1e9,
            failure_hours=failure_hours,
            price_per_hour=price_per_hour,
        ),
        count=count,
        dataset_dir=dataset_dir,
        probe_steps=0 if gpu else probe,
    )
    if json:
        print_json({"trainings": [one.model_dump(mode="json") for one in found]})
    else:
        for one in found:
            Console().print(render(one))
    return 0 if all(one.fits for one in found) else 1


def render(found: "Forecast") -> "Table":
    """Return one training's forecast, a line a figure, as something that rich can print."""
    from rich.table import Table

    table = Table(title=found.name, show_header=False)
    parts = ", ".join(f"{name} {n:,}" for name, n in found.weights.model_dump().items() if n)
    table.add_row("parameters", f"{found.parameters:,}", parts)
    for mode, memory in found.memory.items():
        who = "one process" if mode == "none" else f"each of {found.processes}, {mode}"
        table.add_row(f"memory of {who}", _bytes(memory.peak), _parts(memory))
    if found.memory_limit is not None:
        verdict = "fits" if found.fits else "does not fit"
        how = "one process" if found.parallel == "none" else found.parallel
        table.add_row("memory of the GPU", _bytes(found.memory_limit), f"{how} {verdict}")
    _add_work(table, found)
    saved = found.checkpoints
    table.add_row("a checkpoint", _bytes(saved.bytes), f"{_time(saved.write_seconds)} to write")
    steps = f", {counted(saved.interval_steps, 'step')}" if saved.interval_steps else ""
    table.add_row(
        "best time between two",
        _time(saved.interval_seconds) + steps,
        f"with a failure every {_time(saved.failure_seconds)}",
    )
    _add_time(table, found)
    for line in found.assumed:
        table.add_row("assumed", "", line)
    return table


def _add_work(table: "Table", found: "Forecast") -> None:
    learned = f"{found.density:.1%} supervised" if found.steps_per_epoch else "supervised: unknown"
    table.add_row("tokens a step", f"{found.tokens_per_step:,}", learned)
    if found.steps_per_epoch is not None and found.steps is not None:
        epochs = found.steps / found.steps_per_epoch
        said = f"{found.tokens_per_epoch:,} tokens; {found.steps:,} steps are {epochs:.2f} epochs"
        table.add_row("an epoch", counted(found.steps_per_epoch, "step"), said)
    work = found.operations
    said = f"{found.operations_per_token:.3g} a token; head {work.head / work.total:.0%}"
    if work.beside:
        said += f"; base and pairs' sides add {work.beside / work.total:.0%}"
    if work.again:
        said += f"; activation checkpointing adds {work.again / work.total:.0%}"
    table.add_row("FLOPs a step", f"{work.total:.3g}", said)


def _add_time(table: "Table", found: "Forecast") -> None:
    if found.step_seconds is None:
        return
    kind = "measured" if found.measured else "calculated"
    rate = found.tokens_per_step / found.step_seconds
    said = f"{rate:,.0f} tokens a second on {found.where}, {kind}"
    table.add_row("a step", _time(found.step_seconds), said)
    if found.seconds is not None:
        table.add_row(f"all {found.steps:,} steps", _time(found.seconds), "with evaluations")
    if found.cost is not None:
        table.add_row("cost", f"{found.cost:,.2f}", "at the price that was given")


def _parts(memory: "Memory") -> str:
    parts = memory.model_dump(exclude={"peak", "snapshot"})
    held = ", ".join(f"{name} {_bytes(n)}" for name, n in parts.items() if n)
    return f"{held}; beside it, on the CPU, {_bytes(memory.snapshot)} while a checkpoint is written"


def _bytes(n: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} B"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            n = seconds / size
            return f"{n:,.0f} {unit}" if n >= 100 else f"{n:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
