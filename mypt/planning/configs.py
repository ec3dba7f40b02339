"""A config file, and perhaps a dataset, to forecasts of what it would train.

How quick this machine is, a few steps of the very model tell, on tokens that mean nothing.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch

from mypt import files, home
from mypt.config import Preset, load_config, load_pipeline
from mypt.data.dataset import open_dataset
from mypt.data.manifest import TOKENIZER_STATE, read_manifest
from mypt.data.vocabularies.base_files import PREFIXES
from mypt.errors import ConfigError
from mypt.model.compiling import compile_training
from mypt.model.gpt import GPT
from mypt.model.objectives import Objective
from mypt.parsing import read_json
from mypt.planning.forecast import Data, Forecast, fit_world, forecast
from mypt.planning.machines import Machine, Probe
from mypt.training.compute import Compute, memory_named, resolve, seed_everything, use_threads
from mypt.training.lineage import read_lineage
from mypt.training.loader import GPTDataLoader
from mypt.training.optim import make_optimizer, narrow
from mypt.training.plan import fit_to_data

_WARM_UP: Final = 2
_PATIENCE: Final = 60.0
"""Seconds."""
_SAMPLE_BYTES: Final = 1 << 26


def read_presets(path: Path) -> tuple[Preset, ...]:
    """Return what a config trains: one preset, or each training of a pipeline.

    Raises:
        ConfigError: If the file cannot be read as either, or begins with a model of elsewhere.
        CheckpointError: If the model that it begins with is not there.
    """
    if not read_json(path).keys() & {"pretrain", "sft", "stages"}:
        return (load_config(path),)
    config = load_pipeline(path)
    chain, named = config.chain, config.init_from_model
    if named.startswith(PREFIXES):
        raise ConfigError(
            f"{path}: begins with {named}, whose sizes are known once it is read; train one step of"
            " it, and plan from that model"
        )
    begun = read_lineage(home.checkpoint_to_use(named)).config if named else chain[0].train
    held, found = dict(begun.architecture()), list[Preset]()
    for stage in chain:
        if "block_size" in stage.train.model_fields_set:
            held["block_size"] = stage.train.block_size
        found.append(stage.checked.model_copy(update=held))
    return tuple(found)


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
        if preset.base == "transformers":
            raise ConfigError(
                "base transformers: the module's sizes are the base's own, which no forecast knows;"
                " leave base out to plan for a model of ours, or train some steps and look"
            )
        here = machine._replace(processes=count or preset.processes)
        shared, data = fit_world(preset, here.processes), None
        if dataset_dir is not None:
            shared, _ = fit_to_data(shared, dataset_dir, read_manifest(dataset_dir))
            data = _read(shared, dataset_dir)
            asked = {"grad_accumulation": preset.grad_accumulation}
            preset = shared.model_copy(update=asked)  # so many steps, by what shares them
        if probe_steps:
            here = _measured(shared, here, probe_steps, data.density if data else 1.0)
        found.append(forecast(preset, here, data))
    return tuple(found)


def _read(preset: Preset, folder: Path) -> Data:
    """Return what a dataset decides."""
    dataset = open_dataset(folder, verify=False)
    epoch = GPTDataLoader.of(preset, dataset).epoch("train")
    if epoch.accounts:  # places of padding are computed too, and never learned
        rows = epoch.steps * preset.grad_accumulation * preset.batch_size
        places = rows * preset.block_size
        density = sum(account.supervised for account in epoch.accounts) / places
    else:
        mask = dataset.manifest.mask if preset.use_loss_mask else None
        density = mask.stats.by_split["train"].density if mask else 1.0
    size = (folder / TOKENIZER_STATE).stat().st_size
    return Data(tokens=epoch.tokens, steps=epoch.steps, density=density, other_bytes=size)


def _measured(preset: Preset, machine: Machine, steps: int, density: float) -> Machine:
    measured = probe(preset, steps, density)
    rate = machine.write_rate or write_rate(home.home())
    return machine._replace(probe=measured, write_rate=rate)


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
    what = "the probe, which --probe 0 leaves out"
    with memory_named(what, preset, compute), use_threads(compute.threads):
        passes, updates = _time_steps(preset, compute, steps, density)
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
    model = narrow(GPT(preset.gpt()).to(compute.device), preset.weight_dtype).train()
    if preset.compile:
        compile_training(model)
    model.checkpoint_blocks(preset.activation_checkpointing)
    optimizer = make_optimizer(model, preset)
    shape = (preset.batch_size, preset.block_size)
    ids = torch.randint(preset.vocab_size, shape).to(compute.device)
    mask = (torch.rand(shape) < density).to(torch.uint8).to(compute.device)
    mask[0, 0] = 1
    segments = None
    if preset.of_pairs:  # two sides a row
        mask[:, [0, -1]] = 1
        sides = (torch.arange(preset.block_size) >= preset.block_size // 2).int()
        segments = sides.expand(shape).to(compute.device)
    base = None
    if preset.keeps_base:
        base = GPT(preset.gpt()).to(compute.device).requires_grad_(False).eval()

    def one_pass() -> None:
        with compute.autocast():
            loss = model.loss(
                ids,
                ids,
                mask,
                segments=segments,
                prune_last_block=preset.prune_last_block,
                objective=Objective.of(preset),
                base=base,
            )
        torch.autograd.backward([loss.mean])

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
