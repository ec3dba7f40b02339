"""A config file, and perhaps a dataset, to forecasts of what it would train."""

from pathlib import Path

from mypt import home
from mypt.config import PipelineConfig, Preset, load_config, load_pipeline
from mypt.data.dataset import open_dataset
from mypt.data.manifest import TOKENIZER_STATE
from mypt.errors import ConfigError
from mypt.parsing import read_json
from mypt.training.forecast import Data, Forecast, check_world, forecast
from mypt.training.machines import Machine
from mypt.training.plan import plan_run


def read_presets(path: Path) -> tuple[Preset, ...]:
    """Return what a config trains: one preset, or the two trainings of a pipeline.

    Raises:
        ConfigError: If the file cannot be read as either.
    """
    if PipelineConfig.model_fields.keys() & {"pretrain", "sft"} & read_json(path).keys():
        config = load_pipeline(path)
        architecture = config.pretrain.architecture().model_dump()
        return config.pretrain, config.sft.model_copy(update=architecture)
    return (load_config(path),)


def plan(
    presets: tuple[Preset, ...],
    machine: Machine,
    *,
    count: int | None = None,
    dataset_dir: Path | None = None,
    probe_steps: int = 0,
) -> tuple[Forecast, ...]:
    """Return a forecast of each training.

    Args:
        presets: What would be trained, one after the other.
        machine: What on; its processes are set here.
        count: Processes that share each step; None takes each preset's own.
        dataset_dir: What it would learn from; None plans without.
        probe_steps: How many steps to time on this machine; 0 times none.

    Raises:
        MyptError: If a training of this kind would be refused, or memory runs out while timing.
    """
    if dataset_dir is not None and len(presets) > 1:
        raise ConfigError(
            f"--dataset_dir {dataset_dir} with the config of a pipeline, whose stages prepare their"
            " own; leave it out, or name a preset such as configs/tiny_sft.json"
        )
    found = []
    for preset in presets:
        here = machine._replace(processes=count or preset.processes)
        check_world(preset, here.processes)  # before anything that takes time
        data = None if dataset_dir is None else _read(preset, dataset_dir)
        if probe_steps:
            here = _measured(preset, here, probe_steps, data.density if data else 1.0)
        found.append(forecast(preset, here, data))
    return tuple(found)


def _read(preset: Preset, folder: Path) -> Data:
    """Return what a dataset decides, after the checks that training begins with."""
    from mypt.training.loader import GPTDataLoader  # loads torch

    plan_run(preset, "plan", folder)
    dataset = open_dataset(folder, verify=False)
    epoch = GPTDataLoader(
        dataset,
        batch_size=preset.batch_size,
        block_size=preset.block_size,
        use_loss_mask=preset.use_loss_mask,
        batching=preset.batching,
        length_policy=preset.length_policy,
        max_lost=preset.max_lost,
        grad_accumulation=preset.grad_accumulation,
    ).epoch("train")
    if epoch.accounts:  # places of padding are computed too, and never learned
        places = epoch.tokens / epoch.fill
        density = sum(account.supervised for account in epoch.accounts) / places
    else:
        mask = dataset.manifest.mask if preset.use_loss_mask else None
        density = mask.stats.by_split["train"].density if mask else 1.0
    size = (folder / TOKENIZER_STATE).stat().st_size
    return Data(tokens=epoch.tokens, steps=epoch.steps, density=density, other_bytes=size)


def _measured(preset: Preset, machine: Machine, steps: int, density: float) -> Machine:
    from mypt.training.probe import probe, write_rate  # loads torch

    measured = probe(preset, steps, density)
    rate = machine.write_rate or write_rate(home.home())
    return machine._replace(probe=measured, write_rate=rate)
