"""The model that a run begins or goes on with, and the base that it is held to."""

from pathlib import Path
from typing import NamedTuple

import torch

from mypt.errors import CheckpointError
from mypt.model.compiling import compile_training
from mypt.model.gpt import GPT
from mypt.model.lora import adapt, bare
from mypt.model.parameters import make_model, n_parameters
from mypt.training.checkpoints.checkpoint import Checkpoint, load_checkpoint, load_weights
from mypt.training.compute import check_room, seed_everything
from mypt.training.optim import narrow
from mypt.training.plan import RunPlan


class Outset(NamedTuple):
    """What a run trains."""

    model: GPT
    base: GPT | None
    """What its objective holds it to; an adapter's is the same memory."""
    notes: tuple[str, ...]
    """How it is trained, a line each."""


def begin_model(plan: RunPlan, found: Checkpoint | None, device: torch.device) -> Outset:
    """Return the model of a run, as it is before its next step.

    Args:
        plan: Whose base, or random weights, it begins with.
        found: The checkpoint to go on from, as it lies on the disk; None begins.
        device: Where the weights go.

    Raises:
        CheckpointError: If the base is gone or another one.
        ConfigError: If the model does not fit this machine, or has no such matrix as is to be
            adapted, or matrices are to have four bits and bitsandbytes is missing.
    """
    config = plan.preset
    check_room(config.gpt())
    seed_everything(config.seed)
    model = make_model(config.gpt())
    if plan.parent is not None and (found is None or config.lora):
        _load_base(plan, model)
    notes: tuple[str, ...] = ()
    if config.lora:
        frozen = n_parameters(model)
        adapt(model, config.gpt(), config.lora)
        learned = sum(w.numel() for w in model.parameters() if w.requires_grad)
        notes = (f"lora: {learned:,} weights are learned beside {frozen:,}",)
    if found is not None:
        load_weights(model, found.weights, found.path)
    narrow(model.to(device), config.weight_dtype)
    base = _base_to_hold_to(plan, model, device)
    notes = (compile_training(model) if config.compile else ()) + notes
    model.checkpoint_blocks(config.activation_checkpointing)
    return Outset(model, base, notes)


def _base_to_hold_to(plan: RunPlan, model: GPT, device: torch.device) -> GPT | None:
    if not plan.preset.keeps_base:
        return None
    if plan.preset.lora:
        return bare(model).eval()
    return _load_base(plan, make_model(plan.preset.gpt())).to(device).requires_grad_(False).eval()


def _load_base(plan: RunPlan, model: GPT) -> GPT:
    """Return ``model`` with the weights that the plan begins with."""
    assert plan.parent is not None, "a plan has looked"
    base = load_checkpoint(Path(plan.parent.path))
    if base.lineage.weights != plan.parent.weights:
        raise CheckpointError(
            f"{base.path}: weights {base.lineage.weights[:12]} found,"
            f" {plan.parent.weights[:12]} planned; plan the run again"
        )
    load_weights(model, base.weights, base.path)
    return model
