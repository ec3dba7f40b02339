"""The command that says what a training needs and takes, before it runs."""

from pathlib import Path

from flows.commands.whole import MaybeWhole, Whole
from flows.console import Console, print_json
from mypt.errors import ConfigError


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
    from mypt.training import forecast_table, machines, planning

    positive = {
        "count": count, "utilisation": utilisation, "disk_rate": disk_rate,
        "failure_hours": failure_hours, "price_per_hour": price_per_hour,
    }  # fmt: skip
    for flag, value in positive.items():
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{flag} {value}: expected a number above 0")
    if utilisation > 1:
        raise ConfigError(f"--utilisation {utilisation}: expected a share of the peak, at most 1")
    found = planning.plan(
        planning.read_presets(config),
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
            Console().print(forecast_table.render(one))
    return 0 if all(one.fits for one in found) else 1
